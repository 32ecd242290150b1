"""Measures what each adjoint costs: time of a gradient, memory, and distance from the exact one.

Every adjoint runs in a process of its own, so that its memory can be told from the others'. The
results go to `benchmarks/results/adjoints.json`, from which the page on adjoints makes its table.

Run from the checkout root:

    python -m benchmarks.adjoints
    python -m benchmarks.adjoints --smoke
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from benchmarks.run import machine

RESULTS = pathlib.Path(__file__).parent / "results" / "adjoints.json"
ADJOINTS = ("discrete", "forward", "backsolve", "interpolating", "quadrature")
CASES = {
    "lotka_volterra": "4 parameters, 101 save points on (0, 10), float64, rtol 1e-6",
    "network": "field 32-128-32 (8,352 weights), batch 64, t from 0 to 40, float32, rtol 1e-5",
}
#: Forward mode would carry one direction for each of the network's weights.
LEFT_OUT = {("network", "forward")}


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "ADJOINT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, smoke=options.smoke)))
        return
    about = machine()
    line = f"{datetime.date.today()}, {about['cpu']}, {about['cores']} cores"
    record = {"cases": CASES, "machine": line, "results": {}}
    for case in CASES:
        exact = _run(case, "exact", options.smoke)["gradient"]
        for adjoint in ADJOINTS:
            if (case, adjoint) in LEFT_OUT:
                continue
            found = _run(case, adjoint, options.smoke)
            gradient = found.pop("gradient")
            largest = max(map(abs, exact))
            found["error"] = max(abs(a - b) for a, b in zip(gradient, exact, strict=True)) / largest
            record["results"].setdefault(case, {})[adjoint] = found
            print(case, adjoint, found, flush=True)
    if not options.smoke:
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")


def _run(case, adjoint, smoke):
    command = [sys.executable, "-m", "benchmarks.adjoints", "--one", case, adjoint]
    command += ["--smoke"] if smoke else []
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_pass_re=^$"
        environment = os.environ | {"XLA_FLAGS": dump}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, text=True, env=environment
        )
        memory = program_memory(folder)
    return json.loads(done.stdout.splitlines()[-1]) | {"memory": memory}


def measure(case, adjoint, smoke):
    """One adjoint in this process.

    Args:
        case: a key of `CASES`.
        adjoint: a name, or "exact" for the discrete one at a tight tolerance in float64.
        smoke: whether to make it small.

    Returns:
        Seconds of the first call and of later ones, and the gradient.
    """
    import tensorflow as tf

    exact = adjoint == "exact"
    gradient = {"lotka_volterra": _lotka_volterra, "network": _network}[case](
        "discrete" if exact else adjoint, exact, smoke
    )
    program = tf.function(gradient, jit_compile=True, autograph=False)
    program.get_concrete_function()
    began = time.perf_counter()
    found = program().numpy()
    first = time.perf_counter() - began
    times = []
    for _ in range(2 if smoke else 15):
        began = time.perf_counter()
        program().numpy()
        times.append(time.perf_counter() - began)
    times.sort()
    return {
        "compile": first - times[0],
        "time": times[len(times) // 2],
        "gradient": found.tolist(),
    }


def program_memory(folder):
    """Megabytes of all buffers of the largest compiled program, as XLA's assignment lists them."""
    sizes = [0]
    for path in pathlib.Path(folder).glob("*buffer-assignment*"):
        found = re.search(r"Total bytes used: (\d+)", path.read_text())
        sizes.append(int(found.group(1)) if found else 0)
    return max(sizes) / 2**20


def _lotka_volterra(adjoint, exact, smoke):
    import numpy as np
    import tensorflow as tf

    import keras_neuralde as nde

    def field(t, y, p):
        x, z = tf.unstack(y)
        return tf.stack([p[0] * x - p[1] * x * z, -p[2] * z + p[3] * x * z])

    times = np.linspace(0.0, 10.0, 5 if smoke else 101)
    tolerance = 1e-12 if exact else 1e-6

    def gradient():
        p = tf.constant([1.5, 1.0, 3.0, 1.0], tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(p)
            problem = nde.ODEProblem(field, tf.ones(2, tf.float64), (0.0, 10.0), p)
            y = nde.solve(
                problem, "tsit5", saveat=times, rtol=tolerance, atol=tolerance, adjoint=adjoint
            ).y
            loss = tf.reduce_sum((y - 1.0) ** 2)
        return tape.gradient(loss, p)

    return gradient


def _network(adjoint, exact, smoke):
    import numpy as np
    import tensorflow as tf

    import keras_neuralde as nde

    rng = np.random.default_rng(0)
    dtype = tf.float64 if exact else tf.float32
    width, hidden, batch = (4, 8, 3) if smoke else (32, 128, 64)
    scale = 2.0 / np.sqrt(hidden)
    values = [
        rng.normal(size=(width, hidden)) * scale, rng.normal(size=hidden),
        rng.normal(size=(hidden, width)) * scale, rng.normal(size=width),
    ]  # fmt: skip
    y0 = tf.constant(rng.normal(size=(batch, width)), dtype)
    tolerance = 1e-10 if exact else 1e-5

    def field(t, y, p):
        return tf.tanh(y @ p[0] + p[1]) @ p[2] + p[3] - y

    def gradient():
        p = [tf.constant(value, dtype) for value in values]
        with tf.GradientTape() as tape:
            tape.watch(p)
            problem = nde.ODEProblem(field, y0, (0.0, 1.0 if smoke else 40.0), p)
            y = nde.solve(
                problem, "tsit5", batch_ndims=1, rtol=tolerance, atol=tolerance, adjoint=adjoint
            ).y
            loss = tf.reduce_mean(y**2)
        return tf.concat([tf.reshape(bar, [-1]) for bar in tape.gradient(loss, p)], 0)

    return gradient


if __name__ == "__main__":
    main()
