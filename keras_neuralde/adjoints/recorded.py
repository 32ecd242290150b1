"""The discrete gradient of a solve that keeps every step: dense output.

All steps are on record, so that nothing is recomputed: the backward pass is a single walk over the
record, in which every step also receives the cotangents of what was read from its interpolant.
"""

import tensorflow as tf

from keras_neuralde.adjoints.base import differentiable
from keras_neuralde.integrate import Ring, attempts, integrate_recorded


def integrate_densely(task, field, y0, terms):
    """Integrates and returns the record, differentiable entry by entry.

    Args:
        task: a `Task`; `plan.saves` must be set, for the interpolants.
        field: the `Field`.
        y0: `(rows, width)`.
        terms: the `Terms`, without save points.

    Returns:
        `(y, ring, turns, control)`; `y` is `(rows, width)`, where each row stopped.
    """

    def primal(bound, g, y0):
        carry, ring = integrate_recorded(task.plan, g, y0, bound)
        return carry.y, *ring, carry.control

    def forward(bound, g, y0):
        outputs = primal(bound, g, y0)
        return outputs, outputs[1:]

    def backward(memory, bound, theta, y_bar, *bars):
        *ring, control = memory
        ring, turns = Ring(*ring), attempts(control)
        return _walk_back(task, field, bound, ring, turns, theta, y_bar, Ring(*bars))

    outputs = differentiable("discrete", task, field, y0, terms, forward, primal, backward)
    y, *ring, control = outputs
    return y, Ring(*ring), attempts(control), control


def _walk_back(task, field, terms, ring, turns, theta, y_bar, bars):
    plan, time_gradient = task.plan, task.time_gradient
    zeros = tf.zeros_like(terms.t0)

    def one_turn(turn, y_bar, t_bar, t_end_bar, theta_bar, variables_bar):
        t, t_next = tf.unstack(tf.gather(ring.times, turn))
        step = plan.solver.step_vjp(
            field, t, t_next, tf.gather(ring.y, turn), theta, y_bar,
            tf.gather(bars.dense, turn), time_gradient,
        )  # fmt: skip
        start_bar, end_bar, y_before, theta_step, variables_step = step
        y_bar = y_before + tf.gather(bars.y, turn)
        theta_bar = [a + b for a, b in zip(theta_bar, theta_step, strict=True)]
        variables_bar = [a + b for a, b in zip(variables_bar, variables_step, strict=True)]
        if time_gradient:
            read = tf.gather(bars.times, turn)
            # The step keeps its size, so what moves its end moves its start, unless it was cut.
            at_end = t_bar + end_bar + read[1]
            cut = (t_next == terms.t_end) & (t_next != t)
            t_bar = start_bar + read[0] + tf.where(cut, zeros, at_end)
            t_end_bar += tf.where(cut, at_end, 0.0)
        return turn - 1, y_bar, t_bar, t_end_bar, theta_bar, variables_bar

    # Without a turn, what was read was read at the start.
    y_bar += tf.where(turns == 0, bars.y[0], tf.zeros_like(y_bar))
    loop = (
        turns - 1, y_bar, zeros, zeros,
        [tf.zeros_like(tensor) for tensor in theta],
        [tf.zeros_like(variable) for variable in field.variables],
    )  # fmt: skip
    walked = tf.while_loop(lambda turn, *_: turn >= 0, one_turn, loop)
    _, y0_bar, t0_bar, t_end_bar, theta_bar, variables_bar = walked
    saves_bar = tf.zeros((0, 1), y0_bar.dtype)
    return t0_bar, t_end_bar, saves_bar, y0_bar, list(theta_bar), list(variables_bar)
