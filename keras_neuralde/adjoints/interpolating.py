"""The interpolating adjoint: on the way back y is read from the record of the forward solve."""

import dataclasses

import tensorflow as tf

from keras_neuralde.adjoints.base import differentiable
from keras_neuralde.adjoints.continuous import ContinuousAdjoint, Sweep
from keras_neuralde.integrate import (
    STATUS,
    attempts,
    integrate_recorded,
    nan_where_failed,
)
from keras_neuralde.interpolation import Interpolant
from keras_neuralde.passing import integrate
from keras_neuralde.save_points import read_saves
from keras_neuralde.solution import Status


@dataclasses.dataclass(frozen=True)
class Interpolating(ContinuousAdjoint):
    """The continuous adjoint along the interpolated solution.

    Stable where `Backsolve` is not; memory grows with the steps, `max_record` of them at most.

    Args:
        rtol: relative tolerance of the backward solve; that of the forward one by default.
        atol: absolute tolerance likewise.
        nodes: Gauss-Legendre points per step for the integral over the parameters.
    """

    name = "interpolating"

    def integrate(self, task, field, y0, terms):
        plan = dataclasses.replace(task.plan, saves=True, segment=task.max_record)

        def forward(bound, g, y0):
            carry, ring = integrate_recorded(plan, g, y0, bound)
            y = carry.y
            if task.plan.saves:
                y = read_saves(plan, bound, y0, ring, attempts(carry.control))
            outputs = nan_where_failed(y, carry.control), carry.control
            return outputs, (outputs, ring, y0)

        def primal(bound, g, y0):
            outcome = integrate(task.plan, g, y0, bound)
            return outcome.y, outcome.control

        def backward(memory, bound, theta, y_bar):
            outcome, ring, y0 = memory
            control = outcome[1]
            turns = attempts(control)
            solution = Interpolant(ring, turns, bound.direction, plan.solver.dense_degree())

            def y_at(t):
                return solution(t[None], tf.ones_like(t[None], tf.bool), from_start=True)[0][0]

            sweep = Sweep(self, task, field, bound, theta, outcome, y0, y_at)
            bars = sweep.cotangents(y_bar)
            if not task.expected:
                # The solve was made without a record; the one made now does not hold it all.
                full = control[STATUS] == float(Status.RECORD_FULL)
                bars = tf.where(full[:, None], tf.constant(float("nan"), bars.dtype), bars)
            return self.sweep_back(sweep, bars, task.max_record)

        return differentiable(self.name, task, field, y0, terms, forward, primal, backward)

    def sweep_back(self, sweep, y_bar, max_record):
        """The gradient from the cotangents at the save points."""
        return sweep.integrate_on_the_way(y_bar)
