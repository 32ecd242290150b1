"""The discrete adjoint: the exact gradient of the numbers that the loop computed.

The accepted step sizes are held fixed, as in every discretise-then-optimise gradient. The forward
pass is in `adjoints.trail`, the backward pass in `adjoints.backward`.
"""

import dataclasses
import functools
import math

import tensorflow as tf

from keras_neuralde import passing
from keras_neuralde.adjoints.alone import BackwardAlone, TurnsAlone, columns_alone
from keras_neuralde.adjoints.backward import Backward
from keras_neuralde.adjoints.base import Adjoint, differentiable
from keras_neuralde.adjoints.trail import Turns, forward, forward_at_once
from keras_neuralde.integrate import STATUS, outputs_of
from keras_neuralde.save_points import repeating
from keras_neuralde.solution import Status

# The default number of checkpoints, and what the records of a segment may take then, in bytes.
_PLENTY, _SMALL = 64, 1 << 19
# Up to so many turns for each checkpoint are recorded in one piece, where their number is known.
# The record of a turn is smaller than a checkpoint, so that memory stays about the same.
_AT_ONCE = 4


@dataclasses.dataclass(frozen=True)
class Discrete(Adjoint):
    """The exact gradient of the computed solution, its accepted steps held fixed.

    Walks the steps backwards with one vector-Jacobian product each (Hager, "Runge-Kutta methods in
    optimal control and the transformed adjoint system", Numerische Mathematik 87, 2000). Memory
    is bounded by `checkpoints`; past it, states are recomputed.
    """

    name = "discrete"

    def integrate(self, task, field, y0, terms):
        columns = columns_alone(task, field, y0, terms)
        alone = columns is not None
        # A trajectory alone takes turns for its save points too.
        once = task.turns is not None and not alone
        once = once and task.turns <= _AT_ONCE * task.checkpoints
        segment = task.turns if once else _turns_of_a_segment(task, y0, alone)
        slopes = task.plan.saves and task.time_gradient
        own = repeating(task.plan, field, y0, terms.saves)
        plan = dataclasses.replace(own, segment=segment, save_slopes=slopes)
        checkpoints, time_gradient = task.checkpoints, task.time_gradient
        plan = dataclasses.replace(plan, repeats=True) if alone else plan
        turns_of = TurnsAlone if alone else Turns

        def record(bound, g, y0):
            integrated = forward_at_once if once else forward
            outcome, trail = integrated(turns_of(plan, g, bound), y0, checkpoints)
            return outputs_of(outcome), (outcome, trail)

        def primal(bound, g, y0):
            return outputs_of(passing.integrate(own, g, y0, bound))

        def backward(memory, bound, theta, y_bar, *told):
            outcome, trail = memory
            failed = outcome.control[STATUS] != float(Status.SUCCESS)
            y_bar = tf.where(failed[:, None], tf.zeros_like(y_bar), y_bar)
            if told:
                times_bar, states_bar, _ = told
                told = (
                    tf.where(failed, tf.zeros_like(times_bar), times_bar),
                    tf.where(failed[:, None], tf.zeros_like(states_bar), states_bar),
                )
            kind = functools.partial(BackwardAlone, columns) if alone else Backward
            backward = kind(plan, field, bound, checkpoints, time_gradient, y0, told)
            return backward(trail, outcome, y_bar, theta)

        return differentiable(self.name, task, field, y0, terms, record, primal, backward)


def _turns_of_a_segment(task, y0, alone):
    """All checkpoints' worth of turns, as a power of two.

    Where the records of one trajectory are small there are up to eight times as many: the last
    segment need not be rerun, and often it is the only one. (A batch of 64 with 30 steps lost a
    tenth.) Who asks for fewer checkpoints than usual gets less memory.
    """
    turns, plan = 1 << int(math.log2(task.checkpoints)), task.plan
    rows, width = y0.shape
    if task.checkpoints < _PLENTY or plan.happenings is not None or rows != 1 or not width:
        return turns
    degree = plan.solver.dense_degree() if plan.dense and not alone else 0
    fitting = _SMALL // ((2 + width * (1 + degree)) * y0.dtype.size)
    return max(turns, 1 << int(math.log2(max(1, min(8 * turns, fitting)))))
