"""States inside recorded steps: the interpolant of a run of steps, and dense output for users."""

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from keras_neuralde import values
from keras_neuralde.state import StateLayout
from keras_neuralde.typing import Nest, TensorLike

# The longest run of steps that is searched for one time in each row without a loop.
_UNROLLED = 1024
# Up to so many comparisons a search counts the steps that end before, instead of halving. Where the
# number of rows is unknown, there are many.
_COUNTED, _MANY = 1 << 17, 1 << 10


class Interpolant:
    """A run of recorded steps, to be asked for states at times inside it.

    Args:
        ring: the records: `times` `(size, 2, rows)`, `y` `(size, rows, width)` and `dense`
            `(size, rows, degree * width)`. A rejected or resting turn has length zero. A third
            time says where a step that was cut would have ended.
        turns: how many records are valid, from the first.
        direction: `(rows,)`, +1 forwards and -1 backwards in time.
        degree: of the polynomial inside a step.
        right: whether a time between two steps belongs to the later one.

    Attributes:
        start: `(rows,)`, direction times the time where the first step begins.
        end: the same of where the last step ends.
    """

    def __init__(self, ring, turns, direction, degree, right=False):
        self._ring, self._direction, self._degree = ring, direction, degree
        self._right = right
        self._size = ring.times.shape[0]
        infinity = tf.constant(float("inf"), ring.y.dtype)
        valid = tf.expand_dims(tf.range(self._size) < turns, 1)
        starts, ends, *_ = tf.unstack(ring.times, axis=1)
        self.start = direction * tf.gather(starts, 0)
        self.end = direction * tf.gather(ends, tf.maximum(turns - 1, 0))
        ends = tf.where(valid, direction * ends, infinity)
        self._ends = tf.reshape(ends, [-1])

    def covers(self, t):
        """Whether a time `(n, rows)` or `(n, 1)` lies behind the start and not past the end."""
        s = self._direction * t
        if self._right:
            return (s >= self.start) & (s < self.end)
        return (s > self.start) & (s <= self.end)

    def __call__(self, t, inside, from_start=False):
        """States and time derivatives.

        Args:
            t: `(n, rows)` or `(n, 1)`.
            inside: `(n, rows)` booleans; where false the answer means nothing.
            from_start: whether `t` may be the start itself, which no step ends at.

        Returns:
            The pair `(y, dy/dt)`, each `(n, rows, width)`.
        """
        ring = self._ring
        rows = tf.shape(ring.y)[1]
        s = self._direction * t + tf.zeros_like(self.start)
        if from_start:
            # Past rejected attempts at the start, which have no length.
            eps = float(np.finfo(ring.y.dtype.as_numpy_dtype).eps)
            s = tf.maximum(s, self.start + (2.0 * eps * tf.abs(self.start) + 1e-30))
        flat = self._record_of(s, rows)
        times = tf.unstack(ring.times, axis=1)
        start, stop = (tf.gather(tf.reshape(times[i], [-1]), flat) for i in (0, -1))
        if from_start:
            inside &= start != stop
        h = tf.where(inside, stop - start, 1.0)[:, :, None]
        theta = tf.where(inside, t - start, 0.0)[:, :, None] / h
        # Sizes that are known stay known: a loop's shapes must not change from 1 to unknown.
        columns = [part.shape[2] or tf.shape(part)[2] for part in (ring.y, ring.dense)]
        y = tf.gather(tf.reshape(ring.y, (-1, columns[0])), flat)
        dense = tf.gather(tf.reshape(ring.dense, (-1, columns[1])), flat)
        value, slope = horner(y, tf.split(dense, self._degree, axis=-1), theta)
        return value, slope / h

    def find(self, t):
        """Where the step lies in which `t`, `(rows,)` or `(1,)`, does; for `step_at`."""
        s = self._direction * t + tf.zeros_like(self.start)
        return self._record_of(s, tf.shape(self._ring.y)[1])

    def step_at(self, place):
        """Start, end and state at the start of a step, from `find`."""
        ring = self._ring
        y = tf.gather(tf.reshape(ring.y, (-1, ring.y.shape[2] or tf.shape(ring.y)[2])), place)
        ends = (tf.gather(tf.reshape(ring.times[:, i], [-1]), place) for i in (0, -1))
        return *ends, y

    def _record_of(self, s, rows):
        """The first record that ends at or after `s`, as an index into flat rows."""
        column, counted = tf.range(rows), self._size * math.prod(n or _MANY for n in s.shape)
        if counted <= _COUNTED:
            # One kernel, where every probe of a bisection would be another.
            ends = tf.reshape(self._ends, (self._size, *[1] * (s.shape.rank - 1), -1))
            before = ends <= s if self._right else ends < s
            at = tf.reduce_sum(tf.cast(before, tf.int32), axis=0)
            return tf.minimum(at, self._size - 1) * rows + column

        def halve(stride, at):
            probe = tf.minimum(at + (stride - 1), self._size - 1)
            end = tf.gather(self._ends, probe * rows + column)
            return at + tf.where(end <= s if self._right else end < s, stride, 0)

        at = tf.zeros_like(s, tf.int32)
        stride = (1 << (self._size - 1).bit_length()) // 2
        if self._size > _UNROLLED or s.shape.rank == 2:
            # Written out, a long search at many places would take longer to compile than to run.
            at = tf.while_loop(
                lambda stride, at: stride > 0,
                lambda stride, at: (stride // 2, halve(stride, at)),
                (tf.constant(stride), at),
            )[1]
        else:
            while stride:
                at, stride = halve(stride, at), stride // 2
        return tf.minimum(at, self._size - 1) * rows + column


def horner(y, coefficients, theta):
    """y + Σ Q_m θ^m, m from 1, and its derivative with respect to θ."""
    value = tf.zeros_like(y)
    slope = tf.zeros_like(y)
    for coefficient in reversed(coefficients):
        slope = slope * theta + value
        value = value * theta + coefficient
    # value = Σ Q_m θ^(m-1), slope = its derivative.
    return y + theta * value, value + theta * slope


@dataclasses.dataclass(frozen=True)
class DenseOutput:
    """The solution as a function of time.

    Calling it interpolates inside the recorded steps to the accuracy of the method's own
    interpolant; gradients flow to everything that the solve has gradients for, and to the times.
    """

    ring: Any
    turns: tf.Tensor
    direction: tf.Tensor
    t_end: tf.Tensor
    degree: int
    layout: StateLayout
    batch_dims: list

    def __call__(self, t: TensorLike) -> Nest:
        """The state at `t`: a number, a 1-D array, or `(*batch, n)` times of each trajectory.

        Args:
            t: times between the start and the end, in any order; NaN for none.

        Returns:
            The nest of states, `(n, *batch, *state)`; without the first axis for a number. NaN
            past the time where a trajectory failed, and where there is no time.

        Raises:
            ValueError: for times outside the span that was solved (NaN inside a graph).
        """
        layout, dtype = self.layout, self.ring.y.dtype
        if t is None:
            raise TypeError("`t` must be a number or an array of numbers. Received: None")
        times = values.as_float(t, dtype, "t")
        rank = times.shape.rank
        if rank not in (0, 1, 1 + layout.batch_ndims) or (rank > 1 and layout.joint):
            raise ValueError(
                "`t` must be a number, a 1-D array or, with per-sample steps, of shape (*batch, n) "
                f"with {layout.batch_ndims} batch axes. Received shape: {times.shape}"
            )
        times = times if rank else times[None]
        flat = tf.transpose(tf.reshape(times, [-1, times.shape[-1] or tf.shape(times)[-1]]))
        interpolant = Interpolant(self.ring, self.turns, self.direction, self.degree)
        missing = tf.math.is_nan(flat)
        flat = tf.where(missing, self.direction * interpolant.start, flat)
        s = self.direction * flat
        slack = 4 * np.finfo(dtype.as_numpy_dtype).eps * tf.abs(flat)
        within = (s >= interpolant.start - slack) & (s <= self.direction * self.t_end + slack)
        if tf.executing_eagerly() and not tf.reduce_all(within):
            first = self.direction * interpolant.start
            raise ValueError(
                "`t` must lie within the solved span of each trajectory, "
                f"{first.numpy().min():.6g} to {self.t_end.numpy().max():.6g}. "
                f"Received: {np.asarray(t)}"
            )
        inside = within & ~missing & (s <= interpolant.end + slack)
        y, _ = interpolant(flat, inside, from_start=True)
        y = tf.where(inside[:, :, None], y, tf.constant(float("nan"), dtype))
        leading = [tf.shape(y)[0] if y.shape[0] is None else y.shape[0]] if rank else []
        return layout.unpack(y if rank else y[0], self.batch_dims, leading)
