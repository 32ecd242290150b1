"""Newton's iteration for the stages of implicit methods."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_neuralde.solvers.mass import times_mass

#: What the increment must fall below, in units of the step's tolerances.
KAPPA = 1e-3


class Root(NamedTuple):
    """Where an iteration ended.

    Attributes:
        z: `(rows, width)`.
        converged: `(rows,)` booleans.
        evaluations: `(rows,)` evaluations of the field.
    """

    z: tf.Tensor
    converged: tf.Tensor
    evaluations: tf.Tensor


def solve_stage(g, t, base, scale, matrix, z, active, limit):
    """Solves M z = s f(t, base + z) by the simplified Newton iteration.

    Each turn solves W Δ = s f(t, base + z) - M z with the W = M - s J of the step and adds Δ. With
    θ the ratio of the last two increments' norms, a row has converged when

        θ / (1 - θ) ‖Δ‖ <= 1,

    the norm in units of what `stopping_scale` returns, so that what is left is below it (Hairer &
    Wanner, "Solving Ordinary Differential Equations II", section IV.8, the stopping rule of
    RADAU5). It diverges when θ >= 1, when what is left after `limit` turns would still be too
    much, or when it is not finite.

    Args:
        g: the bound field.
        t: `(rows,)`, the time of the stage.
        base: `(rows, width)`.
        scale: s, `(rows, 1)`.
        matrix: W, an `IterationMatrix`.
        z: `(rows, width)`, the first guess.
        active: `(rows,)` booleans: which rows need a root.
        limit: the most turns.

    Returns:
        A `Root`.
    """
    unit = stopping_scale(g, base + z)
    zero = tf.zeros_like(t)

    def turn(k, z, size, running, converged, count):
        y = base + z
        change = matrix.nearly_solve(scale * g(t, y) - times_mass(g, z))
        new = tf.sqrt(tf.reduce_mean(tf.square(change / unit), axis=1))
        ratio = new / tf.maximum(size, tf.constant(1e-30, z.dtype))
        rest = tf.where(ratio < 1.0, ratio / (1.0 - tf.minimum(ratio, 0.999)), 1e30) * new
        # A tenth of the unit is noise: increments that small need not shrink any more.
        arrived = (rest <= 1.0) | (new <= 0.1)
        left = tf.cast(limit - 1 - k, z.dtype)
        hopeless = (ratio >= 1.0) | (rest * tf.pow(tf.minimum(ratio, 1.0), left) > 1.0)
        stop = arrived | ((k > 0) & hopeless) | ~tf.math.is_finite(new)
        z = tf.where(running[:, None], z + change, z)
        count += tf.where(running, tf.ones_like(count), 0.0)
        converged |= running & arrived
        return k + 1, z, new, running & ~stop, converged, count

    # Before the second turn there is no ratio: an infinite one keeps the rule from firing.
    loop = (0, z, zero, active, ~active, zero)
    _, z, _, _, converged, count = tf.while_loop(
        lambda k, z, size, running, *_: (k < limit) & tf.reduce_any(running),
        turn,
        loop,
        maximum_iterations=limit,
    )
    return Root(z, converged, count)


def stopping_scale(g, y):
    """The unit of Newton's increments, `(rows, width)`.

    It is `KAPPA` times the tolerances atol + rtol |y|, but no less than the rounding errors. With
    constant steps, whose errors no tolerance limits, it is the rounding errors alone: the stages
    are then solved as exactly as the numbers allow.
    """
    eps = float(np.finfo(y.dtype.as_numpy_dtype).eps)
    size = tf.abs(y)
    largest = tf.reduce_max(size, axis=1, keepdims=True)
    if g.implicit.tolerances is None:
        return 50.0 * eps * (size + 0.1 * largest) + 1e-30
    rtol, atol = g.implicit.tolerances
    return KAPPA * (atol + rtol * size) + 10.0 * eps * size + 1e-30
