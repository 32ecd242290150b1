"""One quasi-Newton iteration: a direction, and a search along it with a single evaluation site.

Every turn of the loop evaluates the objective once, at one place of the program: a network or a
whole ODE solve inside it is compiled once. The first turn may evaluate the starting point; the
others bisect for a step that satisfies the weak Wolfe conditions (Lewis & Overton, "Nonsmooth
optimization via quasi-Newton methods", Mathematical Programming 141, 2013, Algorithm 4.6), which
asks for no derivative that a noisy objective could not give.
"""

import enum
from typing import NamedTuple

import numpy as np
import tensorflow as tf

_DECREASE = 1e-4
_CURVATURE = 0.9


class Progress(enum.IntEnum):
    """What a closure optimizer knows about its own end."""

    RUNNING = 0
    GRADIENT_CONVERGED = 1
    LOSS_CONVERGED = 2
    STALLED = 3
    NON_FINITE = 4

    @property
    def message(self) -> str:
        """A sentence for the user."""
        return _MESSAGES[self]


_MESSAGES = {
    Progress.RUNNING: "running",
    Progress.GRADIENT_CONVERGED: "converged: the gradient is below gradient_tolerance",
    Progress.LOSS_CONVERGED: (
        "converged: the loss changed by no more than loss_tolerance and its rounding allow"
    ),
    Progress.STALLED: (
        "the line search found no lower loss although the gradient is not small. When the loss "
        "holds a differential equation, its step sequence changes with the parameters and roughens "
        "the loss: set freeze_steps=True, lower rtol and atol (1e-6), use float64, or take fixed "
        "steps. Otherwise the loss may be at the limit of its floating-point precision"
    ),
    Progress.NON_FINITE: (
        "the loss or its gradient is NaN or infinite at the starting point: check the data, start "
        "from other weights, or let a first-order optimizer move there first"
    ),
}


class Point(NamedTuple):
    """A place, its loss and its gradient."""

    x: tf.Tensor
    loss: tf.Tensor
    gradient: tf.Tensor


class Search(NamedTuple):
    """The state of the loop.

    Attributes:
        base: the point that the iteration starts from; its loss and gradient may be stale.
        known: whether they are not.
        direction: where the search goes.
        slope: the derivative of the loss along it, at the start.
        step: the step to try next.
        low: the longest step known to be too short, 0 at first.
        high: the shortest step known to be too long, infinite at first.
        best: the lowest point found that satisfies the decrease condition.
        found: whether there is one.
        fresh: whether the memory was dropped after a failed search.
        tries: evaluations along this direction.
        evaluations: all evaluations.
        done: whether the iteration has ended.
        progress: a `Progress`.
    """

    base: Point
    known: tf.Tensor
    direction: tf.Tensor
    slope: tf.Tensor
    step: tf.Tensor
    low: tf.Tensor
    high: tf.Tensor
    best: Point
    found: tf.Tensor
    fresh: tf.Tensor
    tries: tf.Tensor
    evaluations: tf.Tensor
    done: tf.Tensor
    progress: tf.Tensor


def iterate(evaluate, direct, base, known, *, idle, max_tries, gradient_tolerance, loss_tolerance):
    """One iteration: evaluates the start if need be, then searches for a lower point.

    Args:
        evaluate: `evaluate(x) -> (loss, gradient)`; called at one place.
        direct: `direct(gradient, fresh) -> direction`; `fresh` asks for steepest descent, scaled.
        base: the starting `Point`.
        known: boolean tensor: whether the loss and gradient of `base` are those at `base.x`.
        idle: boolean tensor: only evaluate the start and stop there.
        max_tries: evaluations along one direction.
        gradient_tolerance: stop when no component of the gradient is larger.
        loss_tolerance: stop when the loss changes relatively less.

    Returns:
        The final `Search`; `best` is the accepted point where `found`.
    """
    dtype = base.x.dtype
    zero, one = tf.zeros((), dtype), tf.ones((), dtype)
    infinity = tf.constant(float("inf"), dtype)
    state = Search(
        base, known, tf.zeros_like(base.x), zero, one, zero, infinity, base, tf.constant(False),
        tf.constant(False), tf.constant(0), tf.constant(0), tf.constant(False),
        tf.constant(int(Progress.RUNNING)),
    )  # fmt: skip

    def aim(state, fresh):
        """Sets out from the base along a new direction, or stops there."""
        gradient = state.base.gradient
        direction = direct(gradient, fresh)
        slope = tf.reduce_sum(direction * gradient)
        finite = tf.math.is_finite(state.base.loss) & tf.math.is_finite(slope)
        converged = tf.reduce_max(tf.abs(gradient)) <= gradient_tolerance
        progress = tf.where(converged, int(Progress.GRADIENT_CONVERGED), int(Progress.RUNNING))
        progress = tf.where(finite, progress, int(Progress.NON_FINITE))
        progress = tf.where(idle, int(Progress.RUNNING), progress)
        return state._replace(
            direction=direction, slope=slope, step=one, low=zero, high=infinity, fresh=fresh,
            tries=tf.constant(0), done=idle | (progress != int(Progress.RUNNING)),
            progress=progress,
        )  # fmt: skip

    def judge(state, point):
        """What an evaluation along the direction means."""
        base = state.base
        slope = tf.reduce_sum(state.direction * point.gradient)
        finite = tf.math.is_finite(point.loss) & tf.math.is_finite(slope)
        lower = finite & (point.loss <= base.loss + _DECREASE * state.step * state.slope)
        # Ever shorter steps end at an equal loss, which proves nothing, unless no step along this
        # direction promises more than the rounding of the loss.
        rounding = 8.0 * float(np.finfo(dtype.as_numpy_dtype).eps)
        negligible = -state.slope <= rounding * tf.abs(base.loss)
        lower &= (point.loss < base.loss) | negligible
        flat = slope >= _CURVATURE * state.slope
        better = lower & (~state.found | (point.loss < state.best.loss))
        best = _choose(better, point, state.best)
        low = tf.where(lower & ~flat, state.step, state.low)
        high = tf.where(lower, state.high, state.step)
        step = tf.where(tf.math.is_finite(high), 0.5 * (low + high), 2.0 * state.step)
        # Far too long, or not even finite: come back faster than by halves.
        step = tf.where(lower | (low > 0), step, tf.where(finite, step, 0.1 * state.step))
        tries = state.tries + 1
        found = state.found | lower
        over = tries >= max_tries
        done = (lower & flat) | (over & found)
        gain = tf.abs(base.loss - best.loss)
        settled = found & (
            gain <= loss_tolerance * tf.maximum(tf.abs(base.loss), tf.abs(best.loss))
        )
        progress = tf.where(done & settled, int(Progress.LOSS_CONVERGED), int(Progress.RUNNING))
        stalled = over & ~found & state.fresh
        progress = tf.where(stalled, int(Progress.STALLED), progress)
        return state._replace(
            best=best, found=found, low=low, high=high, step=step, tries=tries,
            done=done | stalled, progress=progress,
        )  # fmt: skip

    def turn(state):
        x = tf.where(state.known, state.base.x + state.step * state.direction, state.base.x)
        loss, gradient = evaluate(x)
        point = Point(x, loss, gradient)
        state = state._replace(evaluations=state.evaluations + 1)
        at_base = ~state.known
        started = state._replace(base=_choose(at_base, point, state.base), known=tf.constant(True))
        judged = judge(state, point)
        exhausted = ~at_base & (judged.tries >= max_tries) & ~judged.found & ~judged.done
        aimed = aim(started, exhausted)
        return (_choose(at_base | exhausted, aimed, judged),)

    state = tf.cond(known, lambda: aim(state, tf.constant(False)), lambda: state)
    return tf.while_loop(lambda state: ~state.done, turn, (state,))[0]


def _choose(condition, yes, no):
    return tf.nest.map_structure(lambda a, b: tf.where(condition, a, b), yes, no)
