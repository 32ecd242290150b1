"""Trains small models on one device, two devices or one of several workers; run by the tests.

    python -m tests.distribution.train {one,mirrored,worker} FILE OPTIMIZERS [DIRECTORY]

Losses and weights of every optimizer (their names, joined by commas) go to FILE. With DIRECTORY,
training is backed up there after every epoch, and goes on from what it finds there; a process with
VICTIM in its environment kills itself in the middle.
"""

import contextlib
import os
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

ROWS = 10
KILL_AFTER = 5


def strategy_of(kind):
    if kind == "mirrored":
        (cpu,) = tf.config.list_physical_devices("CPU")
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    return tf.distribute.MultiWorkerMirroredStrategy() if kind == "worker" else None


def make_model(noisy=False):
    def init(seed):
        return keras.initializers.RandomNormal(stddev=0.3, seed=seed)

    hidden = keras.layers.Dense(4, "tanh", kernel_initializer=init(0))
    field = keras.Sequential([hidden, keras.layers.Dense(2, kernel_initializer=init(1))])
    y0 = keras.Input((2,))
    layer = nde.NeuralODE(field, (0.0, 1.0), "tsit5", rtol=1e-5)
    if noisy:
        diffusion = keras.layers.Dense(2, kernel_initializer=init(2))
        keywords = {"dt0": 0.25, "controller": "constant", "seed": 3}
        layer = nde.NeuralDSDE(field, diffusion, (0.0, 1.0), "euler_maruyama", **keywords)
    return nde.Model(y0, layer(y0))


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.05),
    "noise": lambda: keras.optimizers.Adam(0.05),
    "lbfgs": nde.optimizers.LBFGS,
    "chain": lambda: nde.optimizers.Chain(
        [keras.optimizers.Adam(0.05), nde.optimizers.LBFGS()], steps=[3]
    ),
}


class Killed(keras.callbacks.Callback):
    """Ends the process as the operating system would: without a word."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == KILL_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)


class BackupByChief(keras.callbacks.BackupAndRestore):
    """Backups by the first worker, from which all go on: in `docs/distribution.md` too."""

    def __init__(self, directory, chief):
        super().__init__(directory)
        self.chief = chief

    def on_epoch_end(self, epoch, logs=None):
        if self.chief:
            super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs=None):
        if self.chief:
            super().on_train_end(logs)


def main(kind, file, names, directory=None):
    keras.config.set_floatx("float64")
    strategy = strategy_of(kind)
    scope = strategy.scope if strategy else contextlib.nullcontext
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 2))
    y = x @ np.array([[0.6, -0.5], [0.5, 0.6]])
    results = {}
    for name in names.split(","):
        callbacks = []
        if directory is not None:
            chief = os.environ.get("WORKER", "0") == "0"
            callbacks.append(BackupByChief(directory, chief))
        if "VICTIM" in os.environ:
            callbacks.append(Killed())
        with scope():
            model = make_model(noisy=name == "noise")
            model.compile(OPTIMIZERS[name](), "mse", metrics=["mae"], jit_compile=False)
        # Nine rows do not divide by two; Keras's own steps take a mean of means then.
        rows = slice(0, ROWS if name in ("adam", "noise") else ROWS - 1)
        history = model.fit(
            x[rows], y[rows], batch_size=ROWS, epochs=8, verbose=0, validation_data=(x[:4], y[:4]),
            callbacks=callbacks,
        ).history  # fmt: skip
        results[name] = np.concatenate([np.ravel(w) for w in model.get_weights()])
        results |= {f"{name} {key}": np.array(value) for key, value in history.items()}
    np.savez(file, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
