"""Where in a step conditions cross zero."""

from typing import NamedTuple

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


class Crossings(NamedTuple):
    """The first crossings of a step.

    Attributes:
        theta: `(roots, rows)`, the shares of the step where they are; infinite for none.
        ceased: `(roots, rows)`, where a condition is not finite, no crossing before; infinite where
            it is.
        piled: `(rows,)` booleans, whether an event happens again at the time where it has just
            happened.
        nearest: `(roots, rows)`, 0 or 1, the end of the step where the condition is nearer to zero.
    """

    theta: tf.Tensor
    ceased: tf.Tensor
    piled: tf.Tensor
    nearest: tf.Tensor


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
        """The first crossing of each condition.

        What a condition is behind its crossing does not matter, nor behind that of another: the
        step ends there. Where it ceases to be finite between two probes, the crossing is looked for
        in the part where it is.

        Args:
            g: the field.
            inside: the `Inside` of the step.
            moved: `(rows,)` booleans, whether there is a step.
            memory: the `Memory`.

        Returns:
            A `Crossings`.
        """
        inside.levels = self._levels(memory.counts, inside.t.dtype)
        just_fired = tf.gather(memory.fired, self._places)
        side, start, left_zero = self._sides(g, inside, just_fired)
        zero, infinity = tf.zeros_like(start), tf.constant(float("inf"), start.dtype)
        wanted = tf.constant(
            [[float(self._channels[e].direction)] for e in self._places], start.dtype
        )
        missing = moved & tf.math.is_finite(start)

        def right_way(side):
            return (side != 0.0) & ((wanted == 0.0) | (wanted == -side))

        def probe(j, missing, side, value, low, high, at_low, at_high, first):
            theta = zero + tf.cast(j, value.dtype) / _PROBES
            there = self._at(g, inside, theta)
            found = missing & (side * there <= 0.0) & right_way(side)
            found |= missing & ~tf.math.is_finite(there)
            low = tf.where(found, theta - 1.0 / _PROBES, low)
            high = tf.where(found, theta, high)
            at_low, at_high = tf.where(found, value, at_low), tf.where(found, there, at_high)
            first = tf.where(found, side, first)
            turned = (side == 0.0) | (side * there < 0.0)
            side = tf.where(missing & turned, tf.sign(there), side)
            return j + 1, missing & ~found, side, there, low, high, at_low, at_high, first

        loop = (tf.constant(1), missing, side, start, zero, zero, zero, zero, zero)
        walked = tf.while_loop(lambda j, *_: j <= _PROBES, probe, loop)
        _, left, _, end, low, high, at_low, at_high, side = walked
        hit = missing & ~left
        # A condition that begins at zero has no sign there: the search starts without a low end.
        blind = hit & left_zero & (low == 0.0)
        bracket = (low, high, at_low, at_high)
        root, at_root, lost = self._refine(g, inside, hit, side, right_way(side), bracket, blind)
        ceased = hit & ~tf.math.is_finite(at_root)
        lost &= ~ceased
        never = tf.where(moved & ~missing, zero, infinity)
        return Crossings(
            tf.where(hit & ~lost & ~ceased, root, infinity),
            tf.where(ceased, root, never),
            tf.reduce_any(lost & (just_fired > 0), axis=0),
            tf.where(tf.abs(end) < tf.abs(start), tf.ones_like(zero), zero),
        )

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

    def _refine(self, g, inside, hit, side, counts, bracket, blind):
        """Narrows brackets by the Illinois method, with a bisection in every third turn.

        (Dowell & Jarratt, "A modified regula falsi method for computing the root of an equation",
        BIT 11, 1971.) Where the low end is not known, the high end is halved until a point before
        the crossing is found. Where a condition is not finite counts as behind, and so does a sign
        other than `side` where `counts`.

        Returns:
            The ends behind the crossings, the conditions there, and whether no point before one was
            found: it follows the last within the resolution of numbers.
        """
        low, high, at_low, at_high = bracket
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
            behind = (counts & (side * there <= 0.0)) | ~tf.math.is_finite(there)
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
        _, low, high, _, at_high, *_ = walked
        return high, at_high, hit & blind & (low == 0.0) & (high <= tiny)
