"""The gradient of a method that can be undone: states are computed backwards, not stored."""

import dataclasses

import tensorflow as tf

from keras_neuralde.adjoints.backward import Backward
from keras_neuralde.adjoints.base import Adjoint, differentiable
from keras_neuralde.adjoints.grid import Grid, check_grid
from keras_neuralde.integrate import advance, begin, finish
from keras_neuralde.passing import integrate


@dataclasses.dataclass(frozen=True)
class Reversible(Adjoint):
    """The discrete gradient of `reversible_heun` with memory that does not grow with the steps.

    The state before a step is found from the one after it, exactly but for rounding (Kidger,
    Foster, Li & Lyons, "Efficient and accurate gradients for neural SDEs", NeurIPS 2021), and the
    step's vector-Jacobian product is that of the discrete adjoint. For equal steps.
    """

    name = "reversible"

    def integrate(self, task, field, y0, terms):
        plan = task.plan
        if not plan.solver.reversible:
            raise ValueError(
                "adjoint='reversible' undoes steps: it needs the solver 'reversible_heun'; with "
                f"another use adjoint='discrete'. Received: solver={plan.solver.name!r}"
            )
        check_grid(self.name, plan)

        def forward(bound, g, y0):
            carry, outputs = advance(plan, g, bound, *begin(plan, g, y0, bound))
            outcome = finish(plan, carry, outputs)
            return (outcome.y, outcome.control), (outcome, carry.y, y0)

        def primal(bound, g, y0):
            outcome = integrate(plan, g, y0, bound)
            return outcome.y, outcome.control

        def backward(memory, bound, theta, y_bar):
            outcome, y, y0 = memory
            grid = Grid(bound, outcome.control)
            failed = grid.failed[:, None]
            y_bar = tf.where(failed, tf.zeros_like(y_bar), y_bar)
            undone = _Undoing(plan, field, bound, checkpoints=0, time_gradient=False)
            return undone((grid, tf.where(failed, y0, y)), outcome, y_bar, theta)

        return differentiable(self.name, task, field, y0, terms, forward, primal, backward)


class _Undoing(Backward):
    """The backward pass of the discrete adjoint, whose states come from undoing the steps."""

    def turns(self, trail, walk, theta, y_bar, save_rate):
        grid, y = trail
        g = self.field.bind(theta)

        def undo(number, y, walk):
            t, t_next = grid.step(number)
            before, _ = self.plan.solver.advance(g, t_next, t, y, False)
            # A step of length zero would mirror the second state in the first.
            before = tf.where((t != t_next)[:, None], before, y)
            walk = self.reverse(self.plan.solver, t, t_next, before, walk, theta, y_bar, save_rate)
            return number - 1, before, walk

        loop = (grid.turns - 1, y, walk)
        return tf.while_loop(lambda number, *_: number >= 0, undo, loop)[-1]
