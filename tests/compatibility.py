"""Installs the package into fresh environments of several Pythons and uses it there.

    python -m tests.compatibility [--tensorflow-cpu] PYTHON...

PYTHON is an interpreter. With --tensorflow-cpu the smaller wheel takes the place of `tensorflow`,
by the recipe in `docs/installing.md`. An interpreter that is not there is named and left out.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The dependencies of the package but for those that ask for the whole wheel.
CPU = [
    ["tensorflow-cpu>=2.21,<2.22", "keras>=3.12,<4", "tensorflow-probability>=0.25,<0.26", "numpy"],
    ["--no-deps", "tf-keras>=2.21,<2.22"],
    ["--no-deps", str(ROOT)],
]
PROGRAM = """
import importlib.metadata, sys, tempfile
import keras, numpy as np, tensorflow as tf, keras_neuralde as nde

assert "site-packages" in nde.__file__, nde.__file__
problem = nde.ODEProblem(lambda t, y, p: -p * y, np.ones(2), (0.0, 1.0), np.float64(2.0))
sol = nde.solve(problem, rtol=1e-8, atol=1e-8)
np.testing.assert_allclose(sol.y, np.exp(-2.0), rtol=1e-6)
y0 = keras.Input((2,), name="y0")
field = keras.Sequential([keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)])
model = nde.Model(y0, nde.NeuralODE(field, (0.0, 1.0), saveat=[0.5, 1.0])(y0))
model.compile(nde.optimizers.LBFGS(), "mse")
x = np.random.default_rng(0).normal(size=(8, 2)).astype("float32")
losses = model.fit(x, np.stack([x, 0.5 * x], 1), epochs=5, verbose=0).history["loss"]
assert losses[-1] < losses[0], losses
folder = tempfile.mkdtemp()
model.save(folder + "/model.keras")
twin = keras.models.load_model(folder + "/model.keras")
nde.export_saved_model(twin, folder + "/1")
served = tf.saved_model.load(folder + "/1").signatures["serving_default"]
np.testing.assert_allclose(
    served(y0=tf.constant(x))["output_0"], model(x), rtol=1e-4, atol=1e-5
)
have = {d.metadata["Name"] for d in importlib.metadata.distributions()}
wheel = "tensorflow-cpu" if "tensorflow" not in have else "tensorflow"
print("Python", sys.version.split()[0], wheel, tf.__version__, "Keras", keras.__version__)
"""


def try_one(python, cpu):
    """Installs, runs the program, and says how long it took."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        inside = str(pathlib.Path(folder, "bin", "python"))
        begin = time.perf_counter()
        for packages in CPU if cpu else [[str(ROOT)]]:
            subprocess.run([inside, "-m", "pip", "install", "--quiet", *packages], check=True)
        installed = time.perf_counter()
        subprocess.run([inside, "-c", PROGRAM], check=True, cwd=folder)
        ran = time.perf_counter()
        print(f"  installed in {installed - begin:.0f} s, ran in {ran - installed:.0f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensorflow-cpu", action="store_true")
    parser.add_argument("pythons", nargs="+")
    options = parser.parse_args()
    for python in options.pythons:
        # A shim of a version manager may be there without the interpreter behind it.
        if shutil.which(python) is None or subprocess.run([python, "-V"], check=False).returncode:
            print(f"{python} is not on this machine", file=sys.stderr)
            continue
        try_one(python, options.tensorflow_cpu)


if __name__ == "__main__":
    main()
