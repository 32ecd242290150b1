"""Where in a step conditions cross zero."""

import numpy as np
import tensorflow as tf

from keras_neuralde.events import ROOT
from keras_neuralde.happenings.affects import number_of
from keras_neuralde.interpolation import horner
from keras_neuralde.solvers.base import pull_back

# Points of a step at which the conditions are looked at.
_PROBES = 8
_MOST_HALVINGS = 60
_MOST_REFINEMENTS = 200


class Inside:
    """The interpolant of one step of each row, by the share of the step.

    Attributes:
        levels: what the conditions of the roots are compared with, each `(rows,)`.
    """

    def __init__(self, t, t_next, y, dense, degree):
        self.t, self.t_next, self.y = t, t_next, y
        self._parts = tf.split(dense, degree, axis=1)
        self.length = tf.where(t_next != t, t_next - t, tf.ones_like(t))
        self.slope_at_start = self._parts[0]
        self.change = tf.abs(tf.add_n(self._parts))
        self.levels: list = []

    def time(self, theta):
        """`(rows,)`, the end exactly for 1."""
        return tf.where(theta == 1.0, self.t_next, self.t + theta * (self.t_next - self.t))

    def state(self, theta):
        """`(rows, width)`."""
        return horner(self.y, self._parts, theta[:, None])[0]

    def slope(self, theta):
        """The time derivative of `state`."""
        return horner(self.y, self._parts, theta[:, None])[1] / self.length[:, None]


class Roots:
    """Finds the crossings of the channels that are roots of a condition.

    Args:
        channels: the `Channel`s.
        draws: the `Draws`.
    """

    def __init__(self, channels, draws):
        self._channels, self._draws = channels, draws
        self._places = [e for e, c in enumerate(channels) if c.kind == ROOT]

    def _levels(self, counts, dtype):
        """What the condition of each root is compared with: zero, or a random number."""
        levels = []
        for e in self._places:
            if self._channels[e].waits:
                levels.append(-tf.math.log(self._draws.uniforms(e, counts[e], 1, dtype)[:, 0]))
            else:
                levels.append(tf.zeros_like(counts[e], dtype))
        return levels

    def _conditions(self, g, inside, times, states):
        """The conditions of all roots, each at a time of its own; `(roots, rows)`."""
        found = zip(self._places, times, states, inside.levels, strict=True)
        return tf.stack(
            [number_of(g, self._channels[e].condition, t, y) - level for e, t, y, level in found]
        )

    def _at(self, g, inside, theta):
        """The conditions at shares `theta`, `(roots, rows)`, of the step."""
        shares = tf.unstack(theta, num=len(self._places))
        times = [inside.time(share) for share in shares]
        return self._conditions(g, inside, times, [inside.state(share) for share in shares])

    def first(self, g, inside, moved, memory):
        """The first crossing of each condition, `(roots, rows)`; see `Found`."""
        inside.levels = self._levels(memory.counts, inside.t.dtype)
        just_fired = tf.gather(memory.fired, self._places)
        side, value, left_zero = self._sides(g, inside, just_fired)
        zero = tf.zeros_like(value)
        wanted = tf.constant(
            [[float(self._channels[e].direction)] for e in self._places], value.dtype
        )
        finite = tf.reduce_all(tf.math.is_finite(value), axis=0)
        missing = tf.logical_and(moved, tf.ones_like(value, tf.bool))

        def probe(j, missing, side, value, low, high, at_low, at_high, first, finite):
            theta = zero + tf.cast(j, value.dtype) / _PROBES
            there = self._at(g, inside, theta)
            finite &= tf.reduce_all(tf.math.is_finite(there), axis=0)
            reached = missing & (side * there <= 0.0) & (side != 0.0)
            counts = reached & ((wanted == 0.0) | (wanted == -side))
            low = tf.where(counts, theta - 1.0 / _PROBES, low)
            high = tf.where(counts, theta, high)
            at_low, at_high = tf.where(counts, value, at_low), tf.where(counts, there, at_high)
            first = tf.where(counts, side, first)
            turned = (side == 0.0) | (side * there < 0.0)
            side = tf.where(missing & turned, tf.sign(there), side)
            return j + 1, missing & ~counts, side, there, low, high, at_low, at_high, first, finite

        loop = (tf.constant(1), missing, side, value, zero, zero, zero, zero, zero, finite)
        walked = tf.while_loop(lambda j, *_: j <= _PROBES, probe, loop)
        _, missing, _, _, low, high, at_low, at_high, side, finite = walked
        hit = moved & ~missing
        # A condition that begins at zero has no sign there: the search starts without a low end.
        blind = hit & left_zero & (low == 0.0)
        root, lost = self._refine(g, inside, hit, side, low, high, at_low, at_high, blind)
        root = tf.where(hit & ~lost, root, tf.constant(float("inf"), root.dtype))
        return root, finite, tf.reduce_any(lost & (just_fired > 0), axis=0)

    def _sides(self, g, inside, fired):
        """On which side of zero each condition begins, and whether it begins at zero.

        A condition that has just fired, or starts at zero, is on the side to which it moves.
        """
        eps = float(np.finfo(inside.t.dtype.as_numpy_dtype).eps)
        step = (inside.t_next - inside.t)[:, None]
        sides, values, zeros = [], [], []
        for place, e in enumerate(self._places):
            t, y = tf.identity(inside.t), tf.identity(inside.y)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([t, y])
                value = number_of(g, self._channels[e].condition, t, y) - inside.levels[place]
            by_t, by_y = pull_back(tape, value, [t, y], [tf.ones_like(value)])
            moving = by_t * step[:, 0] + tf.reduce_sum(by_y * inside.slope_at_start, axis=1)
            size = tf.abs(by_t) * (tf.abs(t) + tf.abs(step[:, 0]))
            size += tf.reduce_sum(tf.abs(by_y) * (tf.abs(y) + inside.change), axis=1)
            # The state was computed at a time that is only known to its rounding.
            size += tf.abs(moving) / tf.abs(inside.length) * tf.abs(t)
            at_zero = (fired[place] > 0) & (tf.abs(value) <= 64.0 * eps * size)
            at_zero |= value == 0.0
            sides.append(tf.where(at_zero, tf.sign(moving), tf.sign(value)))
            values.append(value)
            zeros.append(at_zero)
        return tf.stack(sides), tf.stack(values), tf.stack(zeros)

    def _refine(self, g, inside, hit, side, low, high, at_low, at_high, blind):
        """Narrows brackets by the Illinois method, with a bisection in every third turn.

        (Dowell & Jarratt, "A modified regula falsi method for computing the root of an equation",
        BIT 11, 1971.) Where the low end is not known, the high end is halved until a point before
        the crossing is found.

        Returns:
            The ends behind the crossings, and whether no point before one was found: it follows
            the last within the resolution of numbers.
        """
        eps = float(np.finfo(low.dtype.as_numpy_dtype).eps)
        step = tf.abs(inside.t_next - inside.t)
        resolution = tf.abs(inside.t) + tf.abs(inside.t_next)
        resolution = 0.25 * eps * resolution / tf.where(step > 0.0, step, tf.ones_like(step))

        def unsettled(low, high, at_high, blind):
            wide = high - low > tf.maximum(resolution, eps * high)
            return hit & (wide | blind) & (at_high != 0.0)

        def turn(k, low, high, at_low, at_high, last, blind):
            going = unsettled(low, high, at_high, blind)
            secant = high - at_high * tf.math.divide_no_nan(high - low, at_high - at_low)
            good = going & ~blind & (secant > low) & (secant < high) & (k % 3 != 2)
            point = tf.where(good, secant, 0.5 * (low + high))
            there = self._at(g, inside, point)
            behind = side * there <= 0.0
            up, down = going & ~behind, going & behind
            # The value at an end that stays twice is halved, so that the other end moves too.
            at_high = tf.where(up & (last > 0), 0.5 * at_high, at_high)
            at_low = tf.where(down & (last < 0), 0.5 * at_low, at_low)
            low, at_low = tf.where(up, point, low), tf.where(up, there, at_low)
            high, at_high = tf.where(down, point, high), tf.where(down, there, at_high)
            last = tf.where(up, 1, tf.where(down, -1, last))
            return k + 1, low, high, at_low, at_high, last, blind & ~up & (high > tiny)

        tiny = 2.0**-_MOST_HALVINGS
        loop = (tf.constant(0), low, high, at_low, at_high, tf.zeros_like(low, tf.int32), blind)
        walked = tf.while_loop(
            lambda k, low, high, at_low, at_high, last, blind: (
                (k < _MOST_REFINEMENTS) & tf.reduce_any(unsettled(low, high, at_high, blind))
            ),
            turn,
            loop,
        )
        _, low, high, *_ = walked
        return high, hit & blind & (low == 0.0) & (high <= tiny)
