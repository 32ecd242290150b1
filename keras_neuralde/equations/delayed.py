"""Delay equations at the front door."""

import functools

import numpy as np
import tensorflow as tf

from keras_neuralde import solvers, values
from keras_neuralde.equations.base import Equation, Lifted, checked
from keras_neuralde.equations.ordinary import implicit_terms
from keras_neuralde.history import MOST_STOPS, DelayField, DelayFunctions, discontinuities
from keras_neuralde.programs import function_key
from keras_neuralde.settings import Shape


class DelayEquation(Equation):
    """A `DDEProblem`."""

    def choose_solver(self, solver, adjoint, controller):
        solver = solvers.get(solver)
        return solver if solver.remembers else solvers.MethodOfSteps(solver)

    def check(self, settings):
        if settings.joint:
            raise ValueError(
                "step_control='joint' is not for delay equations: each trajectory has its own "
                "past. Leave it out."
            )
        if settings.adjoint.name != "discrete":
            raise ValueError(
                "a delay equation has the gradient adjoint='discrete' only. "
                f"Received: adjoint={settings.adjoint!r}"
            )

    def inputs(self, settings, layout, inputs, seed):
        return {"lags": _lags(self.problem, layout.dtype, layout)}

    def shape(self, saves, watched, settings, inputs):
        watched |= any(values.is_tensor(lag) for lag in self.problem.constant_lags)
        return Shape(saves, watched)

    def key(self, references):
        functions = (self.problem.f, self.problem.history)
        return "delay", *(function_key(one, references) for one in functions)

    def lift(self, layout, p):
        functions = DelayFunctions(self.problem.f, self.problem.history)
        wrap = functools.partial(checked, layout=layout)
        return LiftedDelayEquation(functions.lift(layout, p, lambda f, name: wrap(f, name=name)))


class LiftedDelayEquation(Lifted):
    """The traced field and history."""

    def __init__(self, lifted):
        self.functions = (lifted.field, lifted.history)
        self.lifted = lifted

    def bind(self, context):
        return DelayField(
            self.lifted, context.layout, context.batch_dims, context.p_leaves, context.terms,
            implicit_terms(context),
        )  # fmt: skip

    def stops(self, context):
        """The discontinuities that the constant lags carry on."""
        inputs, terms = context.inputs, context.terms
        if not inputs["lags"]:
            return None
        lags = [tf.reshape(lag, [-1]) if lag.shape.rank else lag for lag in inputs["lags"]]
        # Where a derivative of the past is read, no lag makes a jump weaker.
        depth = MOST_STOPS if self.lifted.slot.neutral else context.settings.solver.order
        return discontinuities(lags, terms.t0, terms.t_end, terms.direction, depth)


def _lags(problem, dtype, layout):
    """The constant lags as tensors, scalars or of the batch shape."""
    batch = tf.TensorShape(layout.batch_shape)
    lags = []
    for index, given in enumerate(problem.lags):
        if callable(given):
            continue
        lag = values.as_float(given, dtype, f"lags[{index}]")
        if lag.shape.rank not in (0, layout.batch_ndims) or (
            lag.shape.rank and not lag.shape.is_compatible_with(batch)
        ):
            raise ValueError(
                f"`lags[{index}]` must be a scalar or of the batch shape {batch}. "
                f"Received shape: {lag.shape}"
            )
        known = values.known(lag)
        if known is not None and not (np.all(np.isfinite(known)) and np.all(known > 0)):
            raise ValueError(
                f"`lags[{index}]` must be positive and finite; a lag that may vanish is a function "
                f"(t, y, p) -> lag. Received: {given!r}"
            )
        lags.append(lag)
    found = [values.known(lag) for lag in lags]
    for index, one in enumerate(found):
        if any(
            one is not None and other is not None and np.array_equal(one, other)
            for other in found[:index]
        ):
            raise ValueError(
                f"`lags` must differ: name each once, and read it as often as you like. "
                f"Received: {[float(np.max(x)) for x in found if x is not None]}"
            )
    return lags
