"""Long lives of one process: memory stays flat, nothing is traced again."""

import gc
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_neuralde as nde

# `NDE_SOAK=1000 python -m pytest tests/test_endurance.py` takes the whole time.
FITS = int(os.environ.get("NDE_SOAK", "150"))
CYCLES = 50 if FITS >= 1000 else 12

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc"),
]


def resident():
    """Megabytes of this process."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Counting(keras.layers.Layer):
    """A field that counts how often Python runs it."""

    calls = 0

    def build(self, shape):
        self.rate = self.add_weight(shape=(), initializer="ones")

    def call(self, y):
        Counting.calls += 1
        return -self.rate * y


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_a_thousand_fits(optimizer):
    y0 = keras.Input((2,))
    layer = nde.NeuralODE(Counting(), (0.0, 1.0), "euler", dt0=0.5, controller="constant")
    model = nde.Model(y0, layer(y0))
    model.compile("adam" if optimizer == "adam" else nde.optimizers.LBFGS(), "mse")
    x = np.random.default_rng(0).normal(size=(8, 2)).astype("float32")
    before, calls = None, None
    for fit in range(FITS):
        model.fit(x, 0.3 * x, epochs=1, verbose=0)
        if fit == FITS // 3:
            before, calls = resident(), Counting.calls
    assert Counting.calls == calls, "a fit traced the model again"
    # A leak of one copy of anything that holds a graph would be a hundred times that.
    growth = 1024 * (resident() - before) / (FITS - FITS // 3 - 1)
    assert growth < 40, f"{growth:.0f} KB for each fit"


CYCLE = """
import sys, keras, numpy as np, keras_neuralde as nde
from tests.test_endurance import resident
kind, path, cycles = sys.argv[1], sys.argv[2], int(sys.argv[3])
keras.utils.set_random_seed(0)
y0 = keras.Input((2,))
dense = keras.layers.Dense(2)
layer = dense if kind == "dense" else nde.NeuralODE(dense, (0.0, 1.0), "euler", dt0=0.5)
model = keras.Model(y0, layer(y0))
for cycle in range(cycles + 3):
    model.save(path)
    keras.backend.clear_session()
    model = keras.models.load_model(path)
    if cycle == 2:
        before = resident()
print((resident() - before) / cycles)
"""


def test_saving_and_loading_grow_no_more_than_a_dense_layer(tmp_path):
    def growth(kind):
        arguments = [kind, str(tmp_path / f"{kind}.keras"), str(CYCLES)]
        run = subprocess.run(
            [sys.executable, "-c", CYCLE, *arguments],
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-2000:]
        return float(run.stdout.splitlines()[-1])

    ours, stock = growth("ode"), growth("dense")
    assert ours <= stock + 0.5, f"{ours:.2f} MB a cycle, a Dense layer {stock:.2f} MB"
