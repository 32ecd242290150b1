"""What L-BFGS and BFGS share: options, the accepted iteration, and when it is the last one."""

import inspect
from typing import Any, Literal, TypeAlias, get_args

import tensorflow as tf

from keras_neuralde.checks import (
    check_choice,
    check_flag,
    check_not_negative,
    check_positive,
    check_whole,
)
from keras_neuralde.freezing import freeze
from keras_neuralde.optimizers.closure import ClosureOptimizer, flat_closure, flatten, unflatten
from keras_neuralde.optimizers.line_search import Point, Progress, iterate

Engine: TypeAlias = Literal["native", "tfp"]
"""The names that `engine=` takes."""


class QuasiNewton(ClosureOptimizer):
    """A closure optimizer that learns curvature from pairs of steps and gradient changes.

    A subclass says what it remembers: `memory`, `direction`, `remember`, `forget`, and how TFP's
    minimizer makes the same iteration, `tfp_step`.

    Args:
        name: name of the optimizer.
        initial_step_norm: the largest component of the very first step, or `None`.
        engine: `"native"` or `"tfp"`.
        gradient_tolerance: converged when no component of the gradient is larger.
        loss_tolerance: converged when an iteration changes the loss relatively less.
        max_evaluations: evaluations of the loss in one line search.
        freeze_steps: whether the solves in the loss keep their steps during a line search.
        **keywords: options of `keras.optimizers.Optimizer`.
    """

    def __init__(
        self,
        name: str,
        initial_step_norm: float | None,
        engine: Engine,
        gradient_tolerance: float,
        loss_tolerance: float,
        max_evaluations: int,
        freeze_steps: bool,
        **keywords: Any,
    ) -> None:
        super().__init__(name=name, **keywords)
        if initial_step_norm is not None:
            initial_step_norm = check_positive("initial_step_norm", initial_step_norm)
        self.initial_step_norm = initial_step_norm
        self.engine = check_choice("engine", engine, get_args(Engine))
        self.gradient_tolerance = check_not_negative("gradient_tolerance", gradient_tolerance)
        self.loss_tolerance = check_not_negative("loss_tolerance", loss_tolerance)
        self.max_evaluations = check_whole("max_evaluations", max_evaluations)
        self.freeze_steps = check_flag("freeze_steps", freeze_steps)

    def memory(self):
        """What `direction` needs of the state, as tensors."""
        raise NotImplementedError

    def direction(self, gradient, memory, fresh):
        """Where to search: `-H gradient`, or scaled steepest descent where `fresh`."""
        raise NotImplementedError

    def remember(self, base, step, change, fresh, found):
        """Learns from an accepted step.

        Args:
            base: the `Point` it started from.
            step: the step.
            change: of the gradient along it.
            fresh: whether the memory was dropped during this iteration.
            found: whether there is a step at all.
        """
        raise NotImplementedError

    def forget(self):
        """Drops what was learned: the next direction is one of scaled steepest descent."""
        raise NotImplementedError

    def tfp_step(self, evaluate, base, known, go):
        """One iteration of TFP's minimizer.

        Args:
            evaluate: `evaluate(x) -> (loss, gradient)`.
            base: the `Point` it starts from, with its true loss and gradient.
            known: whether they were known without an evaluation.
            go: whether to do anything.

        Returns:
            `(point, progress, evaluations)`.
        """
        raise NotImplementedError

    def minimize_step(self, closure, variables, deterministic, idle=False):
        """One accepted iteration.

        Args:
            closure: `closure(values) -> (loss, gradients)` for a list of values of `variables`.
            variables: the model's trainable variables.
            deterministic: whether the loss depends on the variables and the data alone.
            idle: a boolean (tensor): evaluate the loss and its gradient, but stay.

        Returns:
            `(loss, values, gradients)` of the accepted point.
        """
        self.build(variables)
        self.check_variables(variables)
        values = [tf.convert_to_tensor(v) for v in variables]
        x = flatten(values)
        if self.freeze_steps:
            # The steps of this point, for the whole iteration; the loss known of it belongs to the
            # steps of the point before.
            closure, deterministic = freeze(closure, values), False
        base, known = self.known(x, deterministic)
        idle = tf.convert_to_tensor(idle)
        step = self._tfp_iteration if self.engine == "tfp" else self._native_iteration
        point = step(flat_closure(closure, variables), base, known, deterministic, idle)
        values = unflatten(point.x, variables)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        self.iterations.assign_add(1)
        return point.loss, values, unflatten(point.gradient, variables)

    def _native_iteration(self, evaluate, base, known, deterministic, idle):
        ended = self.ended(deterministic) & ~idle
        memory = self.memory()
        search = iterate(
            evaluate,
            lambda gradient, fresh: self.direction(gradient, memory, fresh),
            base,
            known | ended,
            idle=idle | ended,
            max_tries=self.max_evaluations,
            gradient_tolerance=self.gradient_tolerance,
            loss_tolerance=self.loss_tolerance,
        )
        here = search.base
        point = Point(
            *(tf.where(search.found, a, b) for a, b in zip(search.best, here, strict=True))
        )
        step, change = point.x - here.x, point.gradient - here.gradient
        self.remember(here, step, change, search.fresh, search.found)
        progress = tf.where(ended | idle, self.status(), search.progress)
        self.keep(point, progress, search.evaluations)
        return point

    def _tfp_iteration(self, evaluate, base, known, deterministic, idle):
        loss, gradient = tf.cond(
            known, lambda: (base.loss, base.gradient), lambda: evaluate(base.x)
        )
        base = Point(base.x, loss, gradient)
        go = ~self.ended(deterministic) & ~idle
        point, progress, evaluations = self.tfp_step(evaluate, base, known, go)
        self.keep(point, progress, evaluations + tf.cast(~known, tf.int32))
        return point

    def progress_of_tfp(self, base, point, go, moved, first):
        """What an iteration of TFP's minimizer means; its own flags do not survive a resume."""
        small = tf.reduce_max(tf.abs(point.gradient)) <= self.gradient_tolerance
        gain = tf.abs(base.loss - point.loss)
        settled = moved & (gain <= self.loss_tolerance * tf.abs(base.loss))
        progress = tf.where(~moved & first, int(Progress.STALLED), int(Progress.RUNNING))
        progress = tf.where(settled, int(Progress.LOSS_CONVERGED), progress)
        progress = tf.where(small, int(Progress.GRADIENT_CONVERGED), progress)
        finite = tf.math.is_finite(base.loss)
        progress = tf.where(finite, progress, int(Progress.NON_FINITE))
        return tf.where(go, progress, self.status())

    def first_scale(self, gradient):
        """The multiple of the gradient that makes a step of `initial_step_norm`."""
        if self.initial_step_norm is None:
            return tf.ones((), gradient.dtype)
        size = tf.reduce_max(tf.abs(gradient))
        return self.initial_step_norm / tf.maximum(size, tf.constant(1e-30, size.dtype))

    def __repr__(self):
        defaults = inspect.signature(type(self).__init__).parameters
        shown = [
            f"{name}={value!r}"
            for name, value in self.get_config().items()
            if name in defaults and value != defaults[name].default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def get_config(self):
        return {
            "name": self.name,
            "initial_step_norm": self.initial_step_norm,
            "engine": self.engine,
            "gradient_tolerance": self.gradient_tolerance,
            "loss_tolerance": self.loss_tolerance,
            "max_evaluations": self.max_evaluations,
            "freeze_steps": self.freeze_steps,
        }


def trustworthy(step, change):
    """Whether the curvature of a pair stands out of rounding, so that it may be learned from."""
    norms = tf.norm(step) * tf.norm(change)
    eps = tf.constant(1e-10 if step.dtype == tf.float64 else 1e-6, step.dtype)
    return tf.reduce_sum(step * change) > eps * norms
