"""`Model.fit` for optimizers that evaluate the loss themselves."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras.src.models.functional import Functional

from keras_neuralde import distributed
from keras_neuralde.optimizers.closure import closure_stage
from keras_neuralde.optimizers.line_search import Progress


class ClosureTrainer:
    """A mixin that lets a model's train step hand its optimizer a closure.

    Put it before `keras.Model`: `class Mine(ClosureTrainer, keras.Model)`. With an optimizer that
    works on gradients, a train step is Keras's own. With a closure optimizer one train step is one
    accepted iteration; the logged loss belongs to the accepted point, metrics and other state are
    updated once by one clean forward pass, and `fit` ends when the optimizer has converged.

    `jit_compile="auto"` compiles on a CPU too, unless a distribution strategy is in scope.

    Under `tf.distribute.MirroredStrategy` and `MultiWorkerMirroredStrategy` every optimizer takes
    the steps that it takes on one device: make and compile the model in the strategy's scope.
    """

    def _resolve_auto_jit_compile(self):
        """What `jit_compile="auto"` means: compiled, on one CPU too."""
        return not tf.distribute.has_strategy() and _supports_jit(self)

    def make_train_function(self, force: bool = False) -> Callable:
        """As Keras's, after a look at whether the optimizer can work here."""
        _refuse_unfit(self)
        strategy = self.distribute_strategy
        if closure_stage(self.optimizer) is None or not distributed.spreads(strategy):
            return super().make_train_function(force)
        if self.train_function is None or force:
            step = self._train_step_on_all
            self.train_function = distributed.make_function(self, strategy, step, False)
        return None

    def _make_function(self, step_function):
        """As Keras's, which fails where several workers take part."""
        strategy = self.distribute_strategy
        if not distributed.spans_workers(strategy):
            return super()._make_function(step_function)
        return distributed.make_function(self, strategy, step_function, True)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """As Keras's, which fails for several workers and for shares of different sizes."""
        strategy = self._distribute_strategy
        if iterator is not None and distributed.spreads(strategy):
            _, _, batches = next(iter(iterator))
            iterator, data_batch = None, distributed.one_share(strategy, next(batches))
        return super()._maybe_symbolic_build(iterator, data_batch)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of the optimizer on one batch."""
        if closure_stage(self.optimizer) is None:
            return super().train_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if not self.built:
            self(x, training=False)
        closure = self._closure(x, y, sample_weight, self.trainable_variables)
        loss, values = self._minimize(closure)
        return self._logs_after(data, loss, values)

    def _train_step_on_all(self, data):
        """The same in cross-replica context, on a batch that is spread over replicas."""
        strategy, variables = self.distribute_strategy, self.trainable_variables

        def make_closure(data):
            return self._closure(*keras.utils.unpack_x_y_sample_weight(data), variables)

        closure = distributed.closure_on_all(strategy, data, make_closure)
        loss, values = self._minimize(closure)
        logs = strategy.run(self._logs_after, args=(data, loss, values))
        return distributed.means(strategy, logs)

    def _minimize(self, closure):
        """One step of the closure optimizer: the loss, and the values where it belongs."""
        deterministic = not self.non_trainable_variables
        variables = self.trainable_variables
        loss, values, _ = self.optimizer.minimize_step(closure, variables, deterministic)
        return loss, values

    def _logs_after(self, data, loss, values):
        """Updates metrics and other state by one forward pass, and returns the logs."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        variables, state = self.trainable_variables, self.non_trainable_variables
        rows = tf.shape(next(leaf for leaf in tf.nest.flatten(x) if leaf is not None))[0]
        self._loss_tracker.update_state(loss, sample_weight=rows)
        custom = type(self).compute_metrics is not keras.Model.compute_metrics
        if custom or state or len(self.metrics) > 1:
            y_pred = self._replay(x, y, sample_weight, variables, values)
            return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return self.get_metrics_result()

    def _replay(self, x, y, sample_weight, variables, values):
        """Updates all state but the weights, by a forward pass where the logged loss belongs."""
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            y_pred = self(x, training=True)
            self._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
        for variable in (*self.non_trainable_variables, *self.metrics_variables):
            value = scope.get_current_value(variable)
            if value is not None:
                variable.assign(value)
        return y_pred

    def _closure(self, x, y, sample_weight, variables):
        """The loss and its gradient as a function of candidate values; changes nothing."""

        def closure(values):
            mapping = list(zip(variables, values, strict=True))
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
                    y_pred = self(x, training=True)
                    loss = self._compute_loss(
                        x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
                    )
            gradients = tape.gradient(loss, values)
            _refuse_unconnected(variables, gradients)
            return loss, [
                tf.zeros_like(value) if gradient is None else gradient
                for value, gradient in zip(values, gradients, strict=True)
            ]

        return closure

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Literal["auto", 0, 1, 2] = "auto",
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        **rest: Any,
    ) -> keras.callbacks.History:
        """As `keras.Model.fit`.

        Arrays that fit into one batch, for training or validation, are put on the device once,
        which takes the overhead of an epoch from tens of milliseconds to one or two. With a closure
        optimizer, training ends when it has converged, and says why when it had to give up.
        """
        self._assert_compile_called("fit")
        packed = self.steps_per_execution > 1
        keywords = {"x": x, "y": y, "batch_size": batch_size, **rest}
        keywords, whole = _prepare_training(keywords, packed)
        keywords = _prepare_validation(keywords, batch_size)
        if closure_stage(self.optimizer) is not None:
            self._build_for(x, whole)
            callbacks = _with_convergence(callbacks, self, whole)
        elif self.built and not self.optimizer.built:
            # Variables that are made inside the first step have it traced twice.
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        return super().fit(epochs=epochs, verbose=verbose, callbacks=callbacks, **keywords)

    def _build_for(self, x, whole):
        """Builds model and optimizer before the first step, so that it can be told of its data."""
        with self.distribute_strategy.scope():
            if not self.built and whole:
                self(tf.nest.map_structure(lambda leaf: leaf[:1], x), training=False)
            if self.built:
                self.optimizer.build(self.trainable_variables)

    def train_on_batch(self, *arguments: Any, **keywords: Any) -> Any:
        """As `keras.Model.train_on_batch`; a closure optimizer takes every batch for a new one."""
        if closure_stage(self.optimizer) is not None:
            self.optimizer.start(same_data=False)
        return super().train_on_batch(*arguments, **keywords)


@keras.saving.register_keras_serializable(package="keras_neuralde")
class Model(ClosureTrainer, keras.Model):
    """A `keras.Model` whose optimizer may evaluate the loss itself.

    Everything else is Keras's: functional construction, `fit`, callbacks, saving, export.

    Example:

    >>> import keras, keras_neuralde as nde
    >>> x = keras.Input((2,))
    >>> model = nde.Model(x, keras.layers.Dense(1)(x))
    >>> model.compile(nde.optimizers.LBFGS(), "mse")
    """

    def __new__(cls, *arguments, **keywords):
        """Makes a functional model when given inputs and outputs, as `keras.Model` does."""
        if cls is Model and (len(arguments) == 2 or "outputs" in keywords):
            # Python goes on with the initialiser of the class that is returned.
            return FunctionalModel.__new__(FunctionalModel, *arguments, **keywords)
        return super().__new__(cls, *arguments, **keywords)


@keras.saving.register_keras_serializable(package="keras_neuralde")
class FunctionalModel(Model, Functional):
    """What `Model(inputs, outputs)` makes."""


def _supports_jit(model):
    """Whether no layer of the model declares that XLA cannot compile it."""
    layers = [model, *model._flatten_layers(include_self=False)]
    return all(getattr(layer, "supports_jit", True) for layer in layers)


def _refuse_unconnected(variables, gradients):
    """Refuses a loss that no variable can change; warns of variables that cannot."""
    lost = [v.path for v, g in zip(variables, gradients, strict=True) if g is None]
    if len(lost) == len(variables):
        raise ValueError(f"the loss does not depend on any trainable variable. Received: {lost}")
    if lost:
        warnings.warn(f"the loss does not depend on the variables {lost}", stacklevel=2)


def _refuse_unfit(model):
    """Refuses what a closure optimizer cannot do, before anything is traced."""
    optimizer = model.optimizer
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        inner = closure_stage(optimizer.inner_optimizer)
        if inner is not None:
            raise ValueError(
                f"{type(inner).__name__} cannot work in float16, whose losses are too coarse for a "
                "line search: use the dtype policy float32 or float64. "
                f"Received: the policy {model.dtype_policy.name} and a LossScaleOptimizer"
            )
    stage = closure_stage(optimizer)
    if stage is not None:
        distributed.refuse_asynchronous(model.distribute_strategy, type(stage).__name__)


class _Convergence(keras.callbacks.Callback):
    """Ends `fit` when the optimizer has nothing left to do.

    Steps on changing batches or with stochastic layers meet another function each time: there, only
    a whole epoch without any change is an end.
    """

    def __init__(self, same_data):
        super().__init__()
        self._same_data = same_data
        self._last = None

    def on_train_begin(self, logs=None):
        self.model.optimizer.start(self._same_data)
        batches = (self.params or {}).get("steps") or 1
        if batches > 1:
            name = type(closure_stage(self.model.optimizer)).__name__
            warnings.warn(
                f"{name} takes each of the {batches} batches of an epoch for another function and "
                "makes little progress on it: give it all data in one batch, as "
                "fit(..., batch_size=len(x)) does.",
                stacklevel=2,
            )

    def on_epoch_end(self, epoch, logs=None):
        progress = self.model.optimizer.progress
        last, self._last = self._last, (progress, (logs or {}).get("loss"))
        if progress is Progress.RUNNING:
            return
        same_function = self._same_data and not self.model.non_trainable_variables
        if not (same_function or progress is Progress.NON_FINITE or last == self._last):
            return
        self.model.stop_training = True
        if progress in (Progress.STALLED, Progress.NON_FINITE):
            warnings.warn(f"fit() ended: {progress.message}", stacklevel=2)


def _with_convergence(callbacks, model, same_data):
    """The user's callbacks and, after them, the one that ends training."""
    convergence = _Convergence(same_data)
    if isinstance(callbacks, keras.callbacks.CallbackList):
        others = [c for c in callbacks.callbacks if not isinstance(c, _Convergence)]
        callbacks.callbacks = [*others, convergence]
        convergence.set_model(model)
        convergence.set_params(callbacks.params)
        return callbacks
    callbacks = [] if callbacks is None else callbacks
    callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    return [*callbacks, convergence]


def _prepare_training(keywords, packed):
    """The keywords of `fit` with arrays of one batch on the device, and whether they are."""
    arrays = (keywords["x"], keywords["y"], keywords.get("sample_weight"))
    if keywords.get("class_weight") or keywords.get("steps_per_epoch"):
        return keywords, False
    fraction = keywords.get("validation_split")
    validation = {}
    if fraction and keywords.get("validation_data") is None:
        halves = _split(arrays, fraction)
        if halves is None:
            return keywords, False
        arrays, validation["validation_data"] = halves
    data = _one_batch(arrays, keywords["batch_size"])
    if data is None:
        return keywords, False
    replaced = ("x", "y", "batch_size", "sample_weight", "shuffle", "validation_split")
    rest = {key: value for key, value in keywords.items() if key not in replaced}
    # A data set that never ends need not be opened anew every epoch; but a train function of
    # several steps would take as many of them from it.
    data = {"x": data} if packed else {"x": data.repeat(), "steps_per_epoch": 1}
    return {**rest, **validation, **data, "shuffle": False}, True


def _prepare_validation(keywords, batch_size):
    """The keywords of `fit` with validation arrays of one batch on the device."""
    arrays = keywords.get("validation_data")
    if not isinstance(arrays, (list, tuple)) or keywords.get("validation_steps"):
        return keywords
    arrays = keras.utils.unpack_x_y_sample_weight(tuple(arrays))
    # That of training may have been dropped because one batch needs none.
    batch_size = keywords.get("validation_batch_size") or batch_size
    data = _one_batch(arrays, batch_size)
    if data is None:
        return {**keywords, "validation_batch_size": batch_size}
    rest = {key: value for key, value in keywords.items() if key != "validation_batch_size"}
    return {**rest, "validation_data": data}


def _split(arrays, fraction):
    """The first rows and the last of them, or `None` where Keras should handle them."""
    rows = _common_rows(arrays)
    if rows is None:
        return None
    end = math.floor(rows * (1.0 - fraction))
    if not 0 < end < rows:
        return None

    def part(rows):
        return tf.nest.map_structure(lambda leaf: None if leaf is None else leaf[rows], arrays)

    return part(slice(0, end)), part(slice(end, rows))


def _common_rows(arrays):
    """How many rows all arrays have, or `None` if they are not arrays of numbers alike."""
    leaves = [leaf for leaf in tf.nest.flatten(arrays) if leaf is not None]
    if not leaves or not all(isinstance(leaf, (np.ndarray, tf.Tensor)) for leaf in leaves):
        return None
    numbers = all(np.dtype(tf.as_dtype(leaf.dtype).as_numpy_dtype).kind != "O" for leaf in leaves)
    rows = {leaf.shape[0] if len(leaf.shape) else None for leaf in leaves}
    return rows.pop() if numbers and len(rows) == 1 else None


def _one_batch(arrays, batch_size):
    """Arrays as a data set of one batch, or `None` where Keras should handle them.

    Args:
        arrays: `(x, y, sample_weight)`.
        batch_size: rows of a batch; `None` for Keras's 32.
    """
    rows = _common_rows(arrays)
    if not rows or rows > (batch_size or 32):
        return None
    x, y, sample_weight = arrays
    if sample_weight is not None and (y is None or tf.nest.is_nested(y)):
        return None  # Keras knows which output takes which weights
    batch = (x,) if y is None else (x, y) if sample_weight is None else (x, y, sample_weight)
    if any(leaf is None for leaf in tf.nest.flatten(batch)):
        return None
    floatx = keras.config.floatx()

    def convert(leaf):
        tensor = tf.convert_to_tensor(leaf)
        return tf.cast(tensor, floatx) if tensor.dtype.is_floating else tensor

    # Data sets take a list for one tensor.
    batch = keras.tree.lists_to_tuples(tf.nest.map_structure(convert, batch))
    return tf.data.Dataset.from_tensors(batch)
