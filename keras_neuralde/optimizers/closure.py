"""What optimizers that evaluate the loss themselves have in common."""

import math
import warnings

import keras
import tensorflow as tf

from keras_neuralde.optimizers.line_search import Point, Progress


def named_optimizer(name, given):
    """The Keras optimizer that is meant by an object or a name.

    Args:
        name: the argument's name, for the sentence.
        given: what came.

    Raises:
        TypeError: for something that is neither.
        ValueError: for a name that Keras does not know.
    """
    if not isinstance(given, (str, keras.optimizers.Optimizer)):
        raise TypeError(f"`{name}` must be a Keras optimizer or its name. Received: {given!r}")
    try:
        return keras.optimizers.get(given)
    except (TypeError, ValueError) as error:
        ours = given.lower().replace("-", "") in ("bfgs", "lbfgs")
        hint = "; those of keras_neuralde.optimizers are given as objects" if ours else ""
        raise ValueError(
            f"`{name}` must be the name of a Keras optimizer{hint}. Received: {given!r}"
        ) from error


class ClosureOptimizer(keras.optimizers.Optimizer):
    """An optimizer whose step calls the loss as often as it needs.

    It works with `keras_neuralde.Model` (or any model with `ClosureTrainer`), which hands it a
    closure in place of gradients. Its state is made of tracked optimizer variables: the last
    accepted point, its loss and gradient, counters, and what the method adds.
    """

    def __init__(self, name, **keywords):
        refuse_gradient_options(type(self).__name__, keywords)
        if "learning_rate" in keywords:
            raise ValueError(
                f"{type(self).__name__} has no learning rate: its line search finds the length of "
                f"every step. Received: learning_rate={keywords['learning_rate']!r}"
            )
        super().__init__(learning_rate=1.0, name=name, **keywords)

    @property
    def learning_rate(self):
        """Always one: there is none. It exists because Keras's callbacks log it."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        if float(value) != 1.0 and not getattr(self, "_warned", False):
            self._warned = True
            warnings.warn(
                f"{type(self).__name__} has no learning rate: its line search finds the length of "
                f"every step. It was set to {float(value):g}, which is ignored.",
                stacklevel=2,
            )

    def build(self, variables):
        """Makes the state for a list of variables of one floating dtype.

        Raises:
            ValueError: if there are no variables, if their dtypes differ or are too coarse for a
                line search, or if one of them has a constraint.
        """
        if self.built:
            return
        self._refuse_unfit(variables)
        super().build(variables)
        self._dtype = keras.backend.standardize_dtype(variables[0].dtype)
        self._size = sum(math.prod(v.shape) for v in variables)
        self._x = self._new("x", (self._size,))
        self._gradient = self._new("gradient", (self._size,))
        self._loss = self._new("loss", ())
        self._valid = self._new("valid", (), "bool")
        self._same_data = self._new("same_data", (), "bool")
        self._status = self._new("status", (), "int32")
        self._evaluations = self._new("evaluations", (), "int32")

    def _refuse_unfit(self, variables):
        name = type(self).__name__
        if not variables:
            raise ValueError(
                f"{name} needs variables to train. Received: a model without trainable variables"
            )
        dtypes = sorted({keras.backend.standardize_dtype(v.dtype) for v in variables})
        if dtypes not in (["float32"], ["float64"]):
            raise ValueError(
                f"{name} needs trainable variables of one dtype, float32 or float64. "
                f"Received: {dtypes}"
            )
        bound = [v.path for v in variables if getattr(v, "constraint", None) is not None]
        if bound:
            raise ValueError(
                f"{name} cannot keep the constraints of {bound}: its line search would leave them. "
                "Learn an unconstrained variable and map it, as softplus does to positive numbers."
            )

    def check_variables(self, variables):
        """Refuses variables other than those that the state was made for.

        Raises:
            ValueError: if they differ.
        """
        mine = [self._var_key(v) for v in self._trainable_variables]
        if [self._var_key(v) for v in variables] != mine:
            raise ValueError(
                f"{type(self).__name__} was built for {len(mine)} trainable variables and is now "
                f"given others ({len(variables)}): layers were frozen, thawed or replaced. "
                "Compile the model with a new optimizer."
            )

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
        return Progress(int(tf.convert_to_tensor(self._status))) if self.built else Progress.RUNNING

    def closure_stage(self):
        """Itself: the optimizer that evaluates the loss, as in a `Chain`."""
        return self

    @property
    def message(self):
        """`progress` as a sentence."""
        return self.progress.message

    @property
    def num_evaluations(self):
        """Evaluations of the loss and its gradient so far."""
        return int(tf.convert_to_tensor(self._evaluations)) if self.built else 0

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

    def ended(self, deterministic):
        """A boolean tensor: whether another step would meet the same function and do nothing.

        Args:
            deterministic: whether the loss depends on the variables and the data alone.
        """
        running = tf.equal(self.status(), int(Progress.RUNNING))
        return ~running & tf.convert_to_tensor(self._same_data) & deterministic

    def status(self):
        """`progress` as an integer tensor, for compiled code."""
        return tf.convert_to_tensor(self._status)


def closure_stage(optimizer):
    """The optimizer, or its stage, that evaluates the loss itself; `None` without one."""
    # A method, not a property: Keras saves and loads whatever the attributes of an object hold.
    find = getattr(optimizer, "closure_stage", None)
    return None if find is None else find()


def refuse_gradient_options(name, keywords):
    """Refuses options of `keras.optimizers.Optimizer` that change gradients or their use.

    Args:
        name: of the optimizer, for the message.
        keywords: its keywords.

    Raises:
        ValueError: if one of them is on.
    """
    options = (
        "weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "use_ema",
        "ema_overwrite_frequency", "loss_scale_factor", "gradient_accumulation_steps",
    )  # fmt: skip
    given = {key: keywords[key] for key in options if keywords.get(key)}
    if given:
        raise ValueError(
            f"{name} takes no options that change gradients or average weights; give them to a "
            "first-order stage of a Chain, or penalise weights by a regularizer of the layer. "
            f"Received: {given}"
        )


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
