"""`Model.fit` for optimizers that evaluate the loss themselves."""

import warnings

import keras
import numpy as np
import tensorflow as tf
from keras.src.models.functional import Functional

from keras_neuralde.optimizers.line_search import Progress


class ClosureTrainer:
    """A mixin that lets a model's train step hand its optimizer a closure.

    Put it before `keras.Model`: `class Mine(ClosureTrainer, keras.Model)`. With an optimizer that
    works on gradients, a train step is Keras's own. With a closure optimizer one train step is one
    accepted iteration; the logged loss belongs to the accepted point, metrics and other state are
    updated once by one clean forward pass, and `fit` ends when the optimizer has converged.

    `jit_compile="auto"` compiles on a CPU too, unless a distribution strategy is in scope.
    """

    def _resolve_auto_jit_compile(self):
        """What `jit_compile="auto"` means: compiled, on one CPU too."""
        return not tf.distribute.has_strategy() and _supports_jit(self)

    def train_step(self, data):
        """One step of the optimizer on one batch."""
        if not hasattr(self.optimizer, "minimize_step"):
            return super().train_step(data)
        if getattr(self.optimizer, "_closure_stage", self.optimizer) is None:
            return super().train_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if not self.built:
            self(x, training=False)
        variables = self.trainable_variables
        deterministic = not self.non_trainable_variables
        closure = self._closure(x, y, sample_weight, variables)
        loss, _ = self.optimizer.minimize_step(closure, variables, deterministic)
        rows = tf.shape(next(leaf for leaf in tf.nest.flatten(x) if leaf is not None))[0]
        self._loss_tracker.update_state(loss, sample_weight=rows)
        if self._compile_metrics is None and not self.non_trainable_variables:
            return self.get_metrics_result()
        y_pred = self(x, training=True)
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _closure(self, x, y, sample_weight, variables):
        """The loss and its gradient as a function of candidate values; changes nothing."""

        def closure(values):
            mapping = list(zip(variables, values, strict=True))
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                with keras.StatelessScope(state_mapping=mapping):
                    y_pred = self(x, training=True)
                    loss = self._compute_loss(
                        x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
                    )
            return loss, tape.gradient(loss, values, unconnected_gradients="zero")

        return closure

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, **rest
    ):
        """As `keras.Model.fit`.

        Arrays that fit into one batch are put on the device once, which takes the overhead of an
        epoch from tens of milliseconds to one or two. With a closure optimizer, training ends when
        it has converged, and says why.
        """
        whole = _whole_batch(x, y, batch_size, rest)
        if hasattr(self.optimizer, "start"):
            self._build_for(x, whole)
            callbacks = _with_convergence(callbacks, whole is not None)
        keywords = {"epochs": epochs, "verbose": verbose, "callbacks": callbacks}
        if whole is None:
            return super().fit(x, y, batch_size=batch_size, **keywords, **rest)
        return super().fit(whole, steps_per_epoch=1, shuffle=False, **keywords, **rest)

    def _build_for(self, x, whole):
        """Builds model and optimizer before the first step, so that it can be told of its data."""
        if not self.built and whole is not None:
            self(tf.nest.map_structure(lambda leaf: leaf[:1], x), training=False)
        if self.built:
            self.optimizer.build(self.trainable_variables)


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


class _Convergence(keras.callbacks.Callback):
    """Ends `fit` when the optimizer has nothing left to do."""

    def __init__(self, same_data):
        super().__init__()
        self._same_data = same_data

    def on_train_begin(self, logs=None):
        self.model.optimizer.start(self._same_data)

    def on_epoch_end(self, epoch, logs=None):
        progress = self.model.optimizer.progress
        if progress is Progress.RUNNING:
            return
        self.model.stop_training = True
        if progress in (Progress.STALLED, Progress.NON_FINITE):
            warnings.warn(f"fit() ended: {progress.message}", stacklevel=2)


def _with_convergence(callbacks, same_data):
    """The user's callbacks and, after them, the one that ends training."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.append(_Convergence(same_data))
        return callbacks
    callbacks = [] if callbacks is None else callbacks
    callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    return [*callbacks, _Convergence(same_data)]


def _whole_batch(x, y, batch_size, rest):
    """The arrays as a data set of one endless batch, or `None` where Keras should handle them."""
    plain = ("sample_weight", "validation_data", "initial_epoch", "validation_freq", "shuffle")
    others = [name for name, value in rest.items() if name not in plain and value]
    leaves = [leaf for leaf in tf.nest.flatten((x, y)) if leaf is not None]
    if (
        others
        or not leaves
        or not all(isinstance(leaf, (np.ndarray, tf.Tensor)) for leaf in leaves)
    ):
        return None
    rows = {leaf.shape[0] for leaf in leaves if len(leaf.shape)}
    if len(rows) != 1 or max(rows) > (batch_size or 32):
        return None
    batch = (x, y, rest.pop("sample_weight", None))
    rest.pop("shuffle", None)
    while len(batch) > 1 and batch[-1] is None:
        batch = batch[:-1]
    if any(part is None for part in batch):
        return None
    floatx = keras.config.floatx()

    def convert(leaf):
        tensor = tf.convert_to_tensor(leaf)
        return tf.cast(tensor, floatx) if tensor.dtype.is_floating else tensor

    return tf.data.Dataset.from_tensors(tf.nest.map_structure(convert, batch)).repeat()
