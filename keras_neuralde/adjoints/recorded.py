"""The discrete gradient of a solve that keeps every step: dense output and delay equations.

All steps are on record, so that nothing is recomputed: the backward pass is a single walk over the
record, in which every step also receives the cotangents of what was read from its interpolant. In
a delay equation later steps read too, and send their cotangents to the records ahead of the walk.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_neuralde.adjoints.base import differentiable
from keras_neuralde.controllers import Constant
from keras_neuralde.history import Record
from keras_neuralde.integrate import Ring, attempts, integrate_recorded, next_stop


def integrate_densely(task, field, y0, terms):
    """Integrates and returns the record, differentiable entry by entry.

    Args:
        task: a `Task`; `plan.saves` must be set, for the interpolants.
        field: the `Field`.
        y0: `(rows, width)`.
        terms: the `Terms`, without save points. For a delay equation their place is taken by its
            discontinuities, which have a gradient then.

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
        walk_back = _walk_back_past if task.plan.solver.remembers else _walk_back
        return walk_back(task, field, bound, ring, turns, theta, y_bar, Ring(*bars))

    outputs = differentiable("discrete", task, field, y0, terms, forward, primal, backward)
    y, *ring, control = outputs
    return y, Ring(*ring), attempts(control), control


def _walk_back(task, field, terms, ring, turns, theta, y_bar, bars):
    plan, time_gradient = task.plan, task.time_gradient
    zeros = tf.zeros_like(terms.t0)

    def one_turn(turn, y_bar, t_bar, t_end_bar, theta_bar, variables_bar):
        t, t_next = tf.unstack(tf.gather(ring.times, turn))
        kind = tf.gather(ring.kind, turn) if plan.switches else ()
        step = plan.solver.taken(kind).step_vjp(
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


class _PastWalk(NamedTuple):
    """The cotangents on the way back through a delay equation.

    Attributes:
        y: of the state at the end of the step to come.
        t: of the time there.
        t_end: of the end of the solve.
        origin: of the start of the solve, from the grid of equal steps that is counted from it.
        stops: of the discontinuities, flat.
        theta: of the differentiable tensors that the field reads.
        variables: of its variables.
        read: of the arrays of the `Record`: what was read of each step.
    """

    y: tf.Tensor
    t: tf.Tensor
    t_end: tf.Tensor
    origin: tf.Tensor
    stops: tf.Tensor
    theta: list
    variables: list
    read: list


def _walk_back_past(task, field, terms, ring, turns, theta, y_bar, bars):
    """`_walk_back` for a delay equation."""
    plan = task.plan
    rows = y_bar.shape[0] or tf.shape(y_bar)[0]
    whole, bars = Record.of(ring, turns), Record.of(bars, turns)
    stops = terms.saves if plan.stops else tf.zeros((0, 1), y_bar.dtype)
    eps = float(np.finfo(y_bar.dtype.as_numpy_dtype).eps)
    zeros = tf.zeros_like(terms.t0)

    def one_turn(turn, walk):
        at = turn * rows + tf.range(rows)
        t, t_next = tf.unstack(tf.gather(ring.times, turn))
        y, dense = tf.gather(whole.y, at), tf.gather(whole.dense, at)
        t_read, _, dense_read = walk.read
        ends = tf.unstack(tf.gather(tf.reshape(t_read, (-1, 2, rows)), turn), num=2)
        totals = (walk.theta, walk.variables, walk.read)
        loop = (walk.y, tf.gather(dense_read, at), [zeros, zeros, tf.zeros_like(y)], totals)

        def one_pass(y1_bar, dense_bar, below, totals):
            (*own, dense_bar), totals = plan.solver.recorded_vjp(
                field, whole._replace(turns=turn), t, t_next, y, dense, theta, y1_bar, dense_bar,
                totals,
            )  # fmt: skip
            below = [total + bar for total, bar in zip(below, own, strict=True)]
            return tf.zeros_like(y1_bar), dense_bar, below, totals

        # A step that reads itself is the fixed point Q = Φ(Q) of its interpolant, and the cotangent
        # of Q that goes through it is the sum of (∂Φ/∂Q)ᵀ applied over and over: the implicit
        # function theorem, without anything where no lag is shorter than the step.
        least = eps * (tf.reduce_max(tf.abs(walk.y)) + tf.reduce_max(tf.abs(loop[1])))
        _, _, below, (theta_bar, variables_bar, read) = _at_least_once(
            lambda _, dense_bar, *rest: tf.reduce_any(tf.abs(dense_bar) > least), one_pass, loop
        )
        t_bar, t_next_bar, y_before = below
        new = walk._replace(
            y=y_before + tf.gather(read[1], at), theta=theta_bar, variables=variables_bar, read=read
        )
        if not task.time_gradient:
            return turn - 1, new
        # The step keeps its size, so what moves its end moves its start, unless it was cut.
        at_end = walk.t + t_next_bar + ends[1]
        moved = t_next != t
        cut = (t_next == terms.t_end) & moved
        new = new._replace(t_end=walk.t_end + tf.where(cut, at_end, zeros))
        if plan.stops and not plan.replays:
            stop, index = next_stop(terms, t)
            met = (t_next == stop) & moved & ~cut
            place = index * rows + tf.range(rows)
            cut |= met
            if isinstance(plan.controller, Constant):
                # Points of the grid stay where they are, whatever ended a step before them.
                grid = tf.where(moved & ~cut, at_end, zeros)
                cut |= moved
                new = new._replace(origin=walk.origin + grid)
            new = new._replace(
                stops=tf.tensor_scatter_nd_add(
                    walk.stops, place[:, None], tf.where(met, at_end, zeros)
                )
            )
        return turn - 1, new._replace(t=t_bar + ends[0] + tf.where(cut, zeros, at_end))

    # Without a turn, what was read was read at the start.
    y_bar += tf.where(turns == 0, bars.y[:rows], tf.zeros_like(y_bar))
    walk = _PastWalk(
        y_bar, zeros, zeros, zeros, tf.zeros_like(tf.reshape(stops, [-1])),
        [tf.zeros_like(tensor) for tensor in theta],
        [tf.zeros_like(variable) for variable in field.variables],
        [bars.times, bars.y, bars.dense],
    )  # fmt: skip
    _, walk = tf.while_loop(lambda turn, _: turn >= 0, one_turn, (turns - 1, walk))
    stops_bar = tf.reshape(walk.stops, tf.shape(stops))
    # Points past the end are no tensors that anything depends on.
    stops_bar = tf.where(tf.math.is_finite(stops), stops_bar, tf.zeros_like(stops_bar))
    t0_bar = walk.t + walk.origin
    return t0_bar, walk.t_end, stops_bar, walk.y, list(walk.theta), list(walk.variables)


def _at_least_once(more, body, loop, most=40):
    """A while loop whose first turn is always made, and of at most `most` turns."""

    def again(count, *loop):
        return (count == 0) | (more(*loop) & (count < most))

    return tf.while_loop(
        again, lambda count, *loop: (count + 1, *body(*loop)), (tf.constant(0), *loop)
    )[1:]
