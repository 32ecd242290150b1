"""Optimizers one after the other, in one compiled train step."""

import itertools

import keras
import tensorflow as tf

from keras_neuralde.optimizers.closure import ClosureOptimizer
from keras_neuralde.optimizers.line_search import Progress


@keras.saving.register_keras_serializable(package="keras_neuralde")
class Chain(keras.optimizers.Optimizer):
    """First one optimizer, then the next: usually ADAM to find the valley, L-BFGS to reach its end.

    The stage follows from `iterations`, which is part of the optimizer's state: the switch compiles
    nothing anew, and a run that is resumed from a checkpoint goes on in the stage where it was.

    Args:
        optimizers: Keras optimizers; the last may be a closure optimizer such as `LBFGS`.
        steps: train steps of each stage but the last.
        name: name of the optimizer.
        **keywords: keywords of `keras.optimizers.Optimizer`.

    Raises:
        TypeError: if a stage is not a Keras optimizer.
        ValueError: if `steps` does not fit, or a closure optimizer is not the last stage.

    Example:

    >>> import keras, keras_neuralde as nde
    >>> chain = Chain([keras.optimizers.Adam(0.05), nde.optimizers.LBFGS()], steps=[300])
    >>> chain.stage
    0
    """

    def __init__(self, optimizers, steps, name="chain", **keywords):
        keywords.pop("learning_rate", None)
        super().__init__(learning_rate=1.0, name=name, **keywords)
        optimizers = [keras.optimizers.get(optimizer) for optimizer in optimizers]
        steps = [int(count) for count in steps if count is not None]
        if len(optimizers) < 1 or len(steps) != len(optimizers) - 1 or any(n < 0 for n in steps):
            raise ValueError(
                f"`steps` must hold one number for each of {len(optimizers)} stages but the last. "
                f"Received: {steps}"
            )
        if any(isinstance(optimizer, ClosureOptimizer) for optimizer in optimizers[:-1]):
            raise ValueError(
                "only the last stage of a Chain can be a closure optimizer such as LBFGS. "
                f"Received: {[type(optimizer).__name__ for optimizer in optimizers]}"
            )
        self.optimizers = optimizers
        self.steps = steps

    @property
    def _closure_stage(self):
        last = self.optimizers[-1]
        return last if isinstance(last, ClosureOptimizer) else None

    def build(self, variables):
        """Builds every stage."""
        if self.built:
            return
        super().build(variables)
        for optimizer in self.optimizers:
            optimizer.build(variables)

    @property
    def variables(self):
        """The chain's own state and that of every stage."""
        own = list(super().variables)
        seen = {id(v) for v in own}
        inner = itertools.chain.from_iterable(o.variables for o in self.optimizers)
        return own + [v for v in inner if id(v) not in seen]

    @property
    def stage(self):
        """The index of the current stage."""
        return int(self._stage())

    def _stage(self):
        ends = list(itertools.accumulate(self.steps))
        iterations = tf.cast(tf.convert_to_tensor(self.iterations), tf.int64)
        return sum((tf.cast(iterations >= end, tf.int32) for end in ends), tf.constant(0))

    @property
    def progress(self):
        """A `Progress`; only a closure optimizer in the last stage ever ends."""
        if self._closure_stage is None or self.stage < len(self.steps):
            return Progress.RUNNING
        return self._closure_stage.progress

    @property
    def message(self):
        """`progress` as a sentence."""
        return self.progress.message

    def start(self, same_data):
        """Forgets what belongs to the data; see `ClosureOptimizer.start`."""
        if self._closure_stage is not None:
            self._closure_stage.start(same_data)

    def apply(self, grads, trainable_variables=None):
        """One step of the current stage, for chains of first-order optimizers.

        Raises:
            ValueError: if the last stage evaluates the loss itself.
        """
        if self._closure_stage is not None:
            self._closure_stage.apply(grads, trainable_variables)
        variables = (
            self._trainable_variables if trainable_variables is None else trainable_variables
        )
        variables = list(variables)
        self.build(variables)
        self._switch(list(grads), variables)
        self.iterations.assign_add(1)

    def minimize_step(self, closure, variables, deterministic):
        """One step of the current stage.

        The loss is evaluated at one place of the program for all stages: a first-order stage takes
        the evaluation with which a line search would begin.

        Args:
            closure: `closure(values) -> (loss, gradients)`.
            variables: the model's trainable variables.
            deterministic: whether the loss depends on the variables and the data alone.

        Returns:
            `(loss, gradients)`: before the update in a first-order stage, at the accepted point in
            the last one.
        """
        self.build(variables)
        first_order = self._stage() < len(self.steps)
        loss, gradients = self._closure_stage.minimize_step(
            closure, variables, deterministic, idle=first_order
        )
        tf.cond(first_order, lambda: self._switch(gradients, variables), lambda: tf.constant(0))
        self.iterations.assign_add(1)
        return loss, gradients

    def _switch(self, gradients, variables):
        """Applies the first-order optimizer of the current stage."""

        def branch(optimizer):
            def update():
                optimizer.apply(gradients, variables)
                return tf.constant(0)

            return update

        stages = [o for o in self.optimizers if not isinstance(o, ClosureOptimizer)]
        return tf.switch_case(self._stage(), [branch(optimizer) for optimizer in stages])

    def get_config(self):
        config = super().get_config()
        config.pop("learning_rate", None)
        return {
            **config,
            "optimizers": [keras.saving.serialize_keras_object(o) for o in self.optimizers],
            "steps": self.steps,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config["optimizers"] = [
            keras.saving.deserialize_keras_object(o, custom_objects=custom_objects)
            for o in config["optimizers"]
        ]
        return cls(**config)
