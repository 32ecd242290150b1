"""The backsolve adjoint: y is solved for again, backwards, together with λ."""

import dataclasses

from keras_neuralde.adjoints import backsolve_noise
from keras_neuralde.adjoints.base import differentiable
from keras_neuralde.adjoints.continuous import ContinuousAdjoint, Sweep
from keras_neuralde.adjoints.grid import check_grid
from keras_neuralde.passing import integrate


@dataclasses.dataclass(frozen=True)
class Backsolve(ContinuousAdjoint):
    """The continuous adjoint of constant memory (Chen et al., 2018).

    On the way back y is integrated too, and taken from the solution at every save point. Where the
    equation forgets its past (stiff, dissipative or chaotic ones), solving it backwards is
    unstable and the gradient is wrong or NaN: use another adjoint there.

    A Stratonovich equation is solved backwards along the same Brownian path, on the grid of its
    equal steps; the settings below are for ordinary equations.

    Args:
        rtol: relative tolerance of the backward solve; that of the forward one by default.
        atol: absolute tolerance likewise.
        nodes: Gauss-Legendre points per step for the integral over the parameters.
    """

    name = "backsolve"

    def integrate(self, task, field, y0, terms):
        stochastic = task.plan.solver.stochastic
        if stochastic:
            check_grid(self.name, task.plan)

        def primal(bound, g, y0):
            outcome = integrate(task.plan, g, y0, bound)
            return outcome.y, outcome.control

        def forward(bound, g, y0):
            outputs = primal(bound, g, y0)
            return outputs, (outputs, y0)

        def backward(memory, bound, theta, y_bar):
            outcome, y0 = memory
            if stochastic:
                return backsolve_noise.walk_back(task, field, bound, theta, outcome, y0, y_bar)
            sweep = Sweep(self, task, field, bound, theta, outcome, y0)
            return sweep.integrate_on_the_way(sweep.cotangents(y_bar))

        return differentiable(self.name, task, field, y0, terms, forward, primal, backward)
