"""Keras callbacks: pictures of a training, and what the solvers inside a model have to do."""

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_neuralde import plot
from keras_neuralde.checks import (
    check_array,
    check_integer,
    check_labels,
    check_path,
    check_whole,
)
from keras_neuralde.observation import observe
from keras_neuralde.solution import Status
from keras_neuralde.typing import Nest


class PlotPrediction(keras.callbacks.Callback):
    """Draws the model's prediction against data as training goes.

    The last axis of what the model returns holds the components, the one before it time: the
    layers' `(batch, num_times, state)`. Of further axes the entry `row` is drawn.

    Args:
        x: the input to predict from, as `model.predict` takes it.
        y: the data, of the shape of the prediction; `None` draws no dots. NaN entries are left out.
        t: the times, `(num_times,)`; `None` numbers them.
        directory: where the pictures go, as `epoch_0010.png`; made when it is missing. `None`
            shows them instead: in a notebook each replaces the one before.
        every: a picture after that many epochs, and one after the last.
        row: which entry of the batch to draw, a number or, with more leading axes, a tuple.
        labels: names of the components.

    Raises:
        ValueError: for `every` below 1.

    Example:

    >>> import keras, numpy as np, tempfile, os, keras_neuralde as nde
    >>> t = np.linspace(0.1, 1.0, 5)
    >>> layer = nde.NeuralODE(keras.layers.Dense(1), (0.0, 1.0), saveat=t)
    >>> model = keras.Sequential([keras.Input((1,)), layer])
    >>> model.compile("adam", "mse", jit_compile=True)
    >>> x, y = np.ones((1, 1)), np.exp(-t)[None, :, None]
    >>> pictures = tempfile.mkdtemp()
    >>> show = nde.callbacks.PlotPrediction(x, y, t, directory=pictures, every=2)
    >>> history = model.fit(x, y, epochs=3, verbose=0, callbacks=[show])
    >>> sorted(os.listdir(pictures))
    ['epoch_0002.png', 'epoch_0003.png']
    """

    def __init__(
        self,
        x: Nest,
        y: npt.ArrayLike | None = None,
        t: npt.ArrayLike | None = None,
        *,
        directory: str | os.PathLike | None = None,
        every: int = 10,
        row: int | tuple[int, ...] = 0,
        labels: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        _check_inputs(x)
        for key, value in (("y", y), ("t", t)):
            if value is not None:
                check_array(key, value)
        self.x, self.y, self.t = x, y, t
        if directory is not None:
            directory = pathlib.Path(check_path("directory", directory))
        self.directory = directory
        self.every = check_whole("every", every)
        self.row = row if isinstance(row, tuple) else (row,)
        for place in self.row:
            check_integer("row", place)
        self.labels = None if labels is None else check_labels("labels", labels)
        self._drawn = None

    def on_train_begin(self, logs=None):
        plot.figure()  # No Matplotlib is said now, not after the first epochs.
        self._drawn = None

    def on_epoch_end(self, epoch, logs=None):
        self._epoch, self._loss = epoch, (logs or {}).get("loss")
        if (epoch + 1) % self.every == 0:
            self._draw()

    def on_train_end(self, logs=None):
        if self._drawn != getattr(self, "_epoch", None):
            self._draw()

    def _draw(self):
        predicted = self._one_row(self.model.predict(self.x, verbose=0), "the model's output")
        data = None if self.y is None else self._one_row(self.y, "`y`")
        t = np.arange(len(predicted)) if self.t is None else self.t
        figure = self._figure()
        ax = plot.prediction(t, predicted, data, ax=figure.add_subplot(), labels=self.labels)
        loss = "" if self._loss is None else f", loss {float(self._loss):.3g}"
        ax.set_title(f"epoch {self._epoch + 1}{loss}")
        if self.t is None:
            ax.set_xlabel("time index")
        if self.directory is None:
            _show(figure)
        else:
            self.directory.mkdir(parents=True, exist_ok=True)
            figure.savefig(self.directory / f"epoch_{self._epoch + 1:04d}.png", dpi=110)
        self._drawn = self._epoch

    def _figure(self):
        if self.directory is not None or _in_notebook():
            return plot.figure()
        import matplotlib.pyplot as plt

        return plt.figure("prediction", clear=True, layout="constrained")

    def _one_row(self, values, what):
        values = np.asarray(values)
        if values.ndim != len(self.row) + 2:
            raise ValueError(
                f"{what} must have {len(self.row)} axes that `row` chooses from, then time, then "
                f"components. Received: shape {values.shape} with row={self.row}"
            )
        return values[self.row]


class SolverStatistics(keras.callbacks.Callback):
    """Logs what the solvers inside a model have to do: steps, rejections, failures.

    After an epoch the model is called once, eagerly, on a batch of yours, and each solve in it is
    noted under the name of its layer: `steps` and `rejected`, the means over the trajectories,
    `max_steps`, the most that one of them took, and `failed`, how many did not reach the end. Steps
    that grow while the loss falls are an equation that becomes stiff. A trajectory that fails is
    named once in a warning with its status, where `fit` itself only shows a NaN.

    The numbers become part of the epoch's `logs`, and so of `history.history`, as
    `"neural_ode/steps"`; with `log_dir` they go to TensorBoard too.

    Args:
        x: a batch of inputs, small: it is solved again after each epoch that counts.
        log_dir: a directory for TensorBoard's event files; `None` writes none.
        every: after how many epochs. In between `logs` repeats the last numbers.

    Raises:
        ValueError: for `every` below 1; in training, for a model without a solve in it.

    Example:

    >>> import keras, numpy as np, keras_neuralde as nde
    >>> layer = nde.NeuralODE(keras.layers.Dense(1), (0.0, 1.0), name="decay")
    >>> model = keras.Sequential([keras.Input((1,)), layer])
    >>> model.compile("adam", "mse", jit_compile=True)
    >>> x = np.ones((4, 1))
    >>> statistics = nde.callbacks.SolverStatistics(x)
    >>> history = model.fit(x, 0.5 * x, epochs=2, verbose=0, callbacks=[statistics])
    >>> sum(history.history["decay/failed"])
    0
    """

    def __init__(
        self, x: Nest, log_dir: str | os.PathLike | None = None, *, every: int = 1
    ) -> None:
        super().__init__()
        _check_inputs(x)
        self.x, self.log_dir = x, None if log_dir is None else check_path("log_dir", log_dir)
        self.every = check_whole("every", every)
        self._writer: Any = None
        self._last: dict[str, float] = {}
        self._warned: set[tuple[str, int]] = set()

    def on_train_begin(self, logs=None):
        self._last, self._warned = {}, set()
        if self.log_dir is not None:
            self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_epoch_end(self, epoch, logs=None):
        if epoch % self.every == 0 or not self._last:
            self._last = self._solve_again()
            if self._writer is not None:
                with self._writer.as_default(step=epoch):
                    for name, value in self._last.items():
                        _write_scalar(name, value)
        if logs is not None:
            logs.update(self._last)

    def on_train_end(self, logs=None):
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _solve_again(self):
        with observe() as seen:
            self.model(_as_tensors(self.x), training=False)
        if not seen:
            raise ValueError(
                "SolverStatistics saw no solve: the model has no layer of keras_neuralde, or calls "
                f"it inside a tf.function of its own. Received: {self.model!r}"
            )
        found: dict = {}
        for place, solution in seen:
            name = _unused(place.rpartition("/")[2] or "solve", found)
            found |= {f"{name}/{key}": value for key, value in _numbers(solution).items()}
            self._warn(name, solution)
        return found

    def _warn(self, name, solution):
        codes = set(solution.status.numpy().ravel().tolist()) - {0}
        for code in sorted(codes - {code for known, code in self._warned if known == name}):
            self._warned.add((name, code))
            print(f"\n{name}: a trajectory {Status(code).message}")


def _numbers(solution):
    steps = np.atleast_1d(solution.stats.num_steps.numpy())
    rejected = np.atleast_1d(solution.stats.num_rejected.numpy())
    return {
        "steps": float(steps.mean()),
        "rejected": float(rejected.mean()),
        "max_steps": int(steps.max()),
        "failed": int(np.count_nonzero(solution.status.numpy())),
    }


def _unused(name, found):
    """A layer that is called twice gets a number the second time."""
    names, k = {key.rpartition("/")[0] for key in found}, 1
    candidate = name
    while candidate in names:
        k += 1
        candidate = f"{name}_{k}"
    return candidate


def _write_scalar(name, value):
    """One scalar for TensorBoard, without TensorBoard's own package."""
    metadata = tf.compat.v1.SummaryMetadata(
        plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
    )
    tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)


def _as_tensors(x):
    return tf.nest.map_structure(tf.convert_to_tensor, x)


def _in_notebook():
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def _show(figure):
    """In place of the last picture of a notebook's cell, or in a window."""
    if _in_notebook():
        from IPython.display import clear_output, display

        clear_output(wait=True)
        display(figure)
    else:
        import matplotlib.pyplot as plt

        plt.pause(0.01)


def _check_inputs(x):
    """Refuses what no model takes."""
    leaves = tf.nest.flatten(x)
    no_inputs = str, bytes, os.PathLike, type(None)
    if not leaves or any(isinstance(leaf, no_inputs) or callable(leaf) for leaf in leaves):
        raise TypeError(
            f"`x` must be a batch of inputs, as `model.predict` takes them. Received: {x!r}"
        )
