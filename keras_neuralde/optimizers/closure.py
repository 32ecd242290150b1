"""What optimizers that evaluate the loss themselves have in common."""

import math

import keras
import tensorflow as tf

from keras_neuralde.optimizers.line_search import Point, Progress


class ClosureOptimizer(keras.optimizers.Optimizer):
    """An optimizer whose step calls the loss as often as it needs.

    It works with `keras_neuralde.Model` (or any model with `ClosureTrainer`), which hands it a
    closure in place of gradients. Its state is made of tracked optimizer variables: the last
    accepted point, its loss and gradient, counters, and what the method adds.
    """

    def __init__(self, name, **keywords):
        super().__init__(learning_rate=1.0, name=name, **keywords)

    def build(self, variables):
        """Makes the state for a list of variables of one floating dtype."""
        if self.built:
            return
        super().build(variables)
        dtypes = sorted({keras.backend.standardize_dtype(v.dtype) for v in variables})
        if len(dtypes) != 1:
            raise ValueError(
                f"{type(self).__name__} needs trainable variables of one dtype. Received: {dtypes}"
            )
        self._dtype = dtypes[0]
        self._size = sum(math.prod(v.shape) for v in variables)
        self._x = self._new("x", (self._size,))
        self._gradient = self._new("gradient", (self._size,))
        self._loss = self._new("loss", ())
        self._valid = self._new("valid", (), "bool")
        self._same_data = self._new("same_data", (), "bool")
        self._status = self._new("status", (), "int32")
        self._evaluations = self._new("evaluations", (), "int32")

    def _new(self, name, shape, dtype=None):
        return self.add_variable(
            shape=shape, initializer="zeros", dtype=dtype or self._dtype, name=name
        )

    def apply(self, grads, trainable_variables=None):
        """Refused: this optimizer cannot work with gradients alone."""
        raise ValueError(
            f"{type(self).__name__} evaluates the loss itself and cannot be fed gradients by a "
            "plain keras.Model. Use keras_neuralde.Model(inputs, outputs) in place of keras.Model, "
            "or add the mixin keras_neuralde.ClosureTrainer to your model's bases."
        )

    @property
    def progress(self):
        """How the optimizer stands: a `Progress`."""
        return Progress(int(self._status)) if self.built else Progress.RUNNING

    @property
    def message(self):
        """`progress` as a sentence."""
        return self.progress.message

    @property
    def num_evaluations(self):
        """Evaluations of the loss and its gradient so far."""
        return int(self._evaluations) if self.built else 0

    def start(self, same_data):
        """Forgets what belongs to the data: the loss, and that the search had ended.

        Args:
            same_data: whether all steps from now on see the same batch.
        """
        if self.built:
            self._valid.assign(False)
            self._same_data.assign(same_data)
            self._status.assign(int(Progress.RUNNING))

    def known(self, x, deterministic):
        """The base point, and whether its loss and gradient are still true."""
        same_data = tf.convert_to_tensor(self._same_data) & deterministic
        point = Point(x, tf.convert_to_tensor(self._loss), tf.convert_to_tensor(self._gradient))
        unmoved = tf.reduce_all(tf.equal(x, tf.convert_to_tensor(self._x)))
        return point, tf.convert_to_tensor(self._valid) & unmoved & same_data

    def keep(self, point, progress, evaluations):
        """Stores an accepted point."""
        self._x.assign(point.x)
        self._loss.assign(point.loss)
        self._gradient.assign(point.gradient)
        self._valid.assign(tf.math.is_finite(point.loss))
        self._status.assign(progress)
        self._evaluations.assign_add(evaluations)

    @property
    def running(self):
        """A boolean tensor: whether there is anything left to do."""
        return tf.equal(tf.convert_to_tensor(self._status), int(Progress.RUNNING))


def flatten(tensors):
    """A list of tensors as one vector."""
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)


def unflatten(vector, like):
    """The inverse of `flatten`."""
    parts = tf.split(vector, [math.prod(tensor.shape) for tensor in like])
    return [tf.reshape(part, tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def flat_closure(closure, variables):
    """A closure over lists of tensors as a function of one vector."""

    def evaluate(x):
        loss, gradients = closure(unflatten(x, variables))
        return tf.cast(loss, x.dtype), flatten(gradients)

    return evaluate
