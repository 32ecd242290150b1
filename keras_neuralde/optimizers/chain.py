"""Optimizers one after the other, in one compiled train step."""

import itertools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_neuralde.optimizers.closure import (
    ClosureOptimizer,
    named_optimizer,
    refuse_gradient_options,
)
from keras_neuralde.optimizers.line_search import Progress


@keras.saving.register_keras_serializable(package="keras_neuralde")
class Chain(keras.optimizers.Optimizer):
    """First one optimizer, then the next: usually ADAM to find the valley, L-BFGS to reach its end.

    The stage follows from `iterations`, which is part of the optimizer's state: the switch compiles
    nothing anew, and a run that is resumed from a checkpoint goes on in the stage where it was.

    At most one stage can be a closure optimizer such as `LBFGS`, at any place: before, after or
    between first-order optimizers. When it has converged on one batch of data before its steps are
    over, the next stage begins; as the last stage, it ends `fit`.

    Options such as `clipnorm`, `weight_decay` or `gradient_accumulation_steps` belong to the
    stages. Averages of weights (`use_ema`) are refused: Keras puts them in place at the end of
    `fit`, when a later stage has moved on.

    Args:
        optimizers: Keras optimizers, or their names.
        steps: train steps of each stage but the last, which has no end of its own.
        name: name of the optimizer.
        **keywords: options of `keras.optimizers.Optimizer`; those that change gradients are
            refused.

    Raises:
        TypeError: if a stage is not a Keras optimizer.
        ValueError: if `steps` does not fit, if two stages are closure optimizers or the same
            object, or if an option cannot work in a chain.

    Example:

    >>> import keras, keras_neuralde as nde
    >>> chain = Chain([keras.optimizers.Adam(0.05), nde.optimizers.LBFGS()], steps=[300])
    >>> chain.stage
    0
    """

    def __init__(
        self,
        optimizers: Sequence[keras.optimizers.Optimizer | str],
        steps: Sequence[int],
        name: str = "chain",
        **keywords: Any,
    ) -> None:
        refuse_gradient_options("Chain", keywords)
        if "learning_rate" in keywords:
            raise ValueError(
                "the learning rates of a Chain are those of its stages. "
                f"Received: learning_rate={keywords['learning_rate']!r}"
            )
        super().__init__(learning_rate=1.0, name=name, **keywords)
        self.optimizers = _checked_stages(optimizers)
        self.steps = _checked_steps(steps, len(self.optimizers))
        closures = [i for i, o in enumerate(self.optimizers) if isinstance(o, ClosureOptimizer)]
        self._closure_index = closures[0] if closures else None

    def __repr__(self):
        lengths = [f" for {count} steps" for count in self.steps] + [""]
        stages = zip(self.optimizers, lengths, strict=True)
        return f"<Chain: {', then '.join(_brief(stage) + length for stage, length in stages)}>"

    def closure_stage(self):
        """The stage that evaluates the loss itself, or `None`."""
        return None if self._closure_index is None else self.optimizers[self._closure_index]

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
    def learning_rate(self):
        """The learning rate of the current stage."""
        return self.optimizers[self.stage].learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        self.optimizers[self.stage].learning_rate = value

    @property
    def _ends(self):
        return list(itertools.accumulate(self.steps))

    @property
    def stage(self) -> int:
        """The index of the current stage."""
        done = int(tf.convert_to_tensor(self.iterations))
        return sum(done >= end for end in self._ends)

    def _stage(self):
        """`stage` as a tensor."""
        done = tf.convert_to_tensor(self.iterations)
        return sum((tf.cast(done >= end, tf.int32) for end in self._ends), tf.constant(0))

    @property
    def progress(self) -> Progress:
        """A `Progress`; a chain ends with a closure optimizer that is its last stage."""
        if self.stage != self._closure_index:
            return Progress.RUNNING
        progress = self.closure_stage().progress
        last = self._closure_index == len(self.steps)
        return progress if last or progress is Progress.NON_FINITE else Progress.RUNNING

    @property
    def message(self) -> str:
        """`progress` as a sentence."""
        return self.progress.message

    def start(self, same_data):
        """Forgets what belongs to the data; see `ClosureOptimizer.start`."""
        if self.closure_stage() is not None:
            self.closure_stage().start(same_data)

    def apply(self, grads, trainable_variables=None):
        """One step of the current stage, for chains of first-order optimizers.

        Raises:
            ValueError: if a stage evaluates the loss itself.
        """
        if self.closure_stage() is not None:
            self.closure_stage().apply(grads, trainable_variables)
        variables = (
            self._trainable_variables if trainable_variables is None else trainable_variables
        )
        variables = list(variables)
        self.build(variables)
        self._apply_stage(list(grads), variables)
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
            `(loss, values, gradients)`: before the update in a first-order stage, of the accepted
            point in that of the closure optimizer.
        """
        self.build(variables)
        searching = tf.equal(self._stage(), self._closure_index)
        loss, values, gradients = self.closure_stage().minimize_step(
            closure, variables, deterministic, idle=~searching
        )
        self._apply_stage(gradients, variables)
        self._count(searching & self.closure_stage().ended(deterministic))
        return loss, values, gradients

    def _apply_stage(self, gradients, variables):
        """Applies the optimizer of the current stage, if it is of first order."""

        def branch(optimizer):
            def update():
                if not isinstance(optimizer, ClosureOptimizer):
                    optimizer.apply(gradients, variables)
                return tf.constant(0)

            return update

        tf.switch_case(self._stage(), [branch(optimizer) for optimizer in self.optimizers])

    def _count(self, ended):
        """Counts the step; a search that has ended hands over to the next stage."""
        following = tf.convert_to_tensor(self.iterations) + 1
        if self._closure_index < len(self.steps):
            status = self.closure_stage().status()
            over = ended & tf.not_equal(status, int(Progress.NON_FINITE))
            end = tf.constant(self._ends[self._closure_index], following.dtype)
            following = tf.where(over, tf.maximum(following, end), following)
        self.iterations.assign(following)

    def get_config(self):
        return {
            "name": self.name,
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


def _checked_stages(optimizers):
    """The stages as optimizers that can work in a chain."""
    if not isinstance(optimizers, (list, tuple)) or not optimizers:
        raise TypeError(
            "`optimizers` must be a list of Keras optimizers or their names. "
            f"Received: {optimizers!r}"
        )
    optimizers = [named_optimizer("optimizers", optimizer) for optimizer in optimizers]
    names = [type(optimizer).__name__ for optimizer in optimizers]
    if len({id(optimizer) for optimizer in optimizers}) != len(optimizers):
        raise ValueError(f"every stage of a Chain must be an object of its own. Received: {names}")
    if sum(isinstance(optimizer, ClosureOptimizer) for optimizer in optimizers) > 1:
        raise ValueError(
            "at most one stage of a Chain can be a closure optimizer such as LBFGS. "
            f"Received: {names}"
        )
    for optimizer in optimizers:
        _refuse_unfit(optimizer)
    return optimizers


def _refuse_unfit(optimizer):
    """Refuses a stage that would silently do something else than alone."""
    name = type(optimizer).__name__
    if isinstance(optimizer, Chain) and optimizer.closure_stage() is not None:
        raise ValueError(
            "a Chain cannot hold a Chain with LBFGS: put all stages into one Chain. "
            f"Received: a stage of type {name} with stages of its own"
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError("a stage of a Chain cannot scale the loss. Received: LossScaleOptimizer")
    for option in ("use_ema", "loss_scale_factor"):
        if getattr(optimizer, option, None):
            raise ValueError(
                f"`{option}` cannot work in a stage of a Chain. "
                f"Received: {name}({option}={getattr(optimizer, option)!r})"
            )


def _checked_steps(steps, stages):
    """`steps` as a list of integers, one for each stage but the last."""
    counts = list(steps) if isinstance(steps, (list, tuple)) else [steps]
    if counts and len(counts) == stages and counts[-1] is None:
        counts = counts[:-1]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts)
    if stages < 1 or len(counts) != stages - 1 or not whole:
        raise ValueError(
            "`steps` must hold one number of train steps for each stage but the last "
            f"({stages} stages). Received: {steps!r}"
        )
    return counts


def _brief(optimizer):
    """An optimizer's name, of ours with its settings."""
    own = isinstance(optimizer, ClosureOptimizer)
    return repr(optimizer) if own else type(optimizer).__name__
