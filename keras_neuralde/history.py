"""The past of a delay equation: the user's history before the start, the recorded steps after it.

A step of a delay equation reads earlier states. Before the start they come from the history
function, between the start and the current step from the interpolants of the recorded steps, and
inside the current step, where a lag is shorter than the step, from that step's own interpolant,
which the method of steps iterates.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_neuralde import captures
from keras_neuralde.checks import check_takes
from keras_neuralde.fields import BoundField, Field
from keras_neuralde.interpolation import horner

#: The most points that steps end on because of a discontinuity.
MOST_STOPS = 512


@dataclasses.dataclass(frozen=True)
class DelayFunctions:
    """The functions of a `DDEProblem`.

    Args:
        f: the field, `f(t, y, h, p)`.
        history: the state before the start, `history(t, p)`.
    """

    f: Callable
    history: Callable

    def lift(self, layout, p_specs, checked):
        """A `LiftedDelay`.

        Args:
            layout: the `StateLayout`.
            p_specs: the nest of specs of p.
            checked: `checked(function, signature)` wraps a function so that what it returns is
                compared with the state.
        """
        slot = Slot(layout)

        def field(t, y, p):
            check_takes(self.f, "f(t, y, h, p)", t, y, slot.h, p)
            return self.f(t, y, slot.h, p)

        t = tf.TensorSpec(layout.batch_shape, layout.dtype)
        history = checked(self.history, "history(t, p)")
        lifted = captures.lift(checked(field, "f(t, y, h, p)"), t, layout.structure, p_specs)
        if lifted.inline is None:
            raise TypeError(
                "f(t, y, h, p) has a Python `if` or loop over tensors; write it with tf.where, "
                "tf.cond or tf.while_loop."
            )
        return LiftedDelay(lifted, captures.lift(history, t, p_specs), slot)


class Slot:
    """What `h` stands for while a field is being traced.

    Attributes:
        reads: how often the field reads the past.
        neutral: whether it reads a derivative of the past.
    """

    def __init__(self, layout):
        self._layout = layout
        self._read: Any = None
        self.reads = 0
        self.neutral = False

    def h(self, t_past, *, derivative=False):
        """The state at `t_past`, or its time derivative."""
        layout = self._layout
        batch = tf.TensorShape(layout.batch_shape)
        try:
            t_past = tf.convert_to_tensor(t_past, layout.dtype)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"h(t_past) takes a time of the dtype of `t`, {layout.dtype.name}. "
                f"Received: {t_past!r}"
            ) from error
        if t_past.shape.rank not in (0, layout.batch_ndims) or (
            t_past.shape.rank and not t_past.shape.is_compatible_with(batch)
        ):
            raise ValueError(
                f"h(t_past) takes a time of the shape of `t`, {batch}. "
                f"Received shape: {t_past.shape}"
            )
        if self._read is not None:
            return self._read(t_past, derivative)
        self.reads += 1
        self.neutral |= bool(derivative)
        # Traced for what the field closes over, not for its values.
        return tf.nest.map_structure(
            lambda spec: (
                tf.zeros([size or 1 for size in spec.shape], spec.dtype)
                + 0.0 * tf.reduce_sum(t_past)
            ),
            layout.structure,
        )

    @contextlib.contextmanager
    def filled(self, read):
        """A scope in which `h` is `read`."""
        before, self._read = self._read, read
        try:
            yield
        finally:
            self._read = before


class LiftedDelay(NamedTuple):
    """A traced field, the traced history, and the slot through which the field reads the past."""

    field: Any
    history: Any
    slot: Slot


class Record(NamedTuple):
    """Recorded steps as flat arrays, so that reading them has a sparse gradient.

    Attributes:
        times: `(size * 2 * rows,)`.
        y: `(size * rows, width)`.
        dense: `(size * rows, degree * width)`.
        turns: how many records there are.
        size: the static most of them.
    """

    times: tf.Tensor
    y: tf.Tensor
    dense: tf.Tensor
    turns: tf.Tensor
    size: int

    @classmethod
    def of(cls, ring, turns):
        """The record of an `integrate.Ring`."""
        dense = tf.reshape(ring.dense, (-1, ring.dense.shape[2] or tf.shape(ring.dense)[2]))
        y = tf.reshape(ring.y, (-1, ring.y.shape[2] or tf.shape(ring.y)[2]))
        return cls(tf.reshape(ring.times, [-1]), y, dense, turns, ring.times.shape[0])

    def newest(self, t, count):
        """The last record in each row, `count` times: where a search begins."""
        return [tf.zeros_like(t, tf.int32) + tf.maximum(self.turns - 1, 0)] * count

    def find(self, probe, direction, valid, near):
        """The first record in each row that ends at or after `probe`.

        From `near`, a bracket is widened in doubling steps and then halved.

        Args:
            probe: `(rows,)`, direction times the time to look for.
            direction: `(rows,)`.
            valid: `(rows,)` booleans; elsewhere the answer means nothing.
            near: `(rows,)` int32, records to look from.

        Returns:
            `(rows,)` int32.
        """
        rows = probe.shape[0] or tf.shape(probe)[0]
        column = tf.range(rows)
        times, probe = tf.stop_gradient(self.times), tf.stop_gradient(probe)
        top = tf.maximum(self.turns - 1, 0)

        def is_behind(at):
            return direction * tf.gather(times, (2 * at + 1) * rows + column) < probe

        def narrow(low, high, step, _):
            up = (high < top) & is_behind(high)
            down = ~up & (low > 0) & ~is_behind(tf.maximum(low - 1, 0))
            middle = (low + high) // 2
            behind = is_behind(middle)
            upper = tf.where(behind, high, middle)
            lower = tf.where(behind & (low < high), middle + 1, low)
            new_low = tf.where(up, high + 1, tf.where(down, tf.maximum(low - step, 0), lower))
            new_high = tf.where(up, tf.minimum(high + step, top), tf.where(down, low - 1, upper))
            moving = valid & (up | down | (new_low < new_high))
            return new_low, new_high, 2 * step, tf.reduce_any(moving)

        loop = (near, near, tf.constant(1), tf.constant(True))
        return tf.while_loop(lambda *loop: loop[-1], narrow, loop)[0]

    def read(self, t, at, valid, derivative=False):
        """States, or slopes, at times `t`, `(rows,)`, inside the records `at`, where `valid`."""
        rows = t.shape[0] or tf.shape(t)[0]
        column = tf.range(rows)
        start = tf.gather(self.times, 2 * at * rows + column)
        end = tf.gather(self.times, (2 * at + 1) * rows + column)
        flat = at * rows + column
        valid &= start != end
        h = tf.where(valid, end - start, 1.0)
        dense = tf.gather(self.dense, flat)
        y = tf.gather(self.y, flat)
        parts = tf.split(dense, dense.shape[1] // y.shape[1], axis=1)
        return _inside(y, parts, tf.where(valid, t - start, 0.0), h, derivative)


class Past:
    """What one step sees of the past.

    Args:
        record: the `Record`.
        t: `(rows,)`, where the current step starts.
        t_next: where it ends.
        y: `(rows, width)`, the state at `t`.
        dense: `(rows, degree * width)`, the current step's own interpolant.
        near: for each read of an evaluation, `(rows,)` int32: records to look from.
        strict: whether reading ahead gives NaN; otherwise the state at the evaluation's time.

    Attributes:
        inside: `(rows,)` booleans, whether something was read inside the current step; `None` if
            that could not be found out.
        ahead: the same of times later than that of the evaluation.
        near: the records that the last evaluation found.
    """

    def __init__(self, record, t, t_next, y, dense, near, strict=True):
        self._record, self._t, self._t_next, self._y = record, t, t_next, y
        self._strict = strict
        self._moved = t_next != t
        dense = tf.where(self._moved[:, None], dense, tf.zeros_like(dense))
        self._parts = tf.split(dense, dense.shape[1] // y.shape[1], axis=1)
        self._graph = _current_graph()
        self.near = list(near)
        self._reads = 0
        self.inside = self.ahead = tf.zeros_like(t, tf.bool)

    def begin(self):
        """Told when an evaluation of the field begins."""
        self._reads = 0

    def read(self, time, t, history, field, derivative=False):
        """What an evaluation of the field at `time` sees of the past.

        Args:
            time: `(rows,)`.
            t: `(rows,)`, the times to read.
            history: `history(t, derivative)` → `(rows, width)`, the state before the start.
            field: the `DelayField`.
            derivative: whether to read slopes instead of states.

        Returns:
            `(rows, width)`.
        """
        direction, start, stop = field.direction, self._t, self._t_next
        slack = _slack(time, t)
        # Just after a step began, a discontinuity of the past lies behind; just before it ends,
        # it lies ahead.
        early = tf.abs(time - start) <= tf.abs(stop - time)
        probe = direction * t + tf.where(early, slack, -slack)
        before = probe <= direction * field.t0
        current = ~before & (probe > direction * start)
        ahead = direction * t > direction * time + slack
        self._note(current & self._moved & (direction * t > direction * start + slack), ahead)

        within = current & self._moved & ~ahead
        h = tf.where(within, stop - start, 1.0)
        since = tf.where(within, t - start, 0.0)
        now = _inside(self._y, self._parts, since, h, derivative)
        valid = ~before & ~current
        found = self._find(probe, direction, valid)
        recorded = self._record.read(t, found, valid, derivative)
        value = tf.where(current[:, None], now, recorded)
        earlier = history(tf.where(before, t, field.t0), derivative)
        value = tf.where(before[:, None], earlier, value)
        if not self._strict:
            return value
        return tf.where(ahead[:, None], tf.constant(float("nan"), value.dtype), value)

    def _find(self, probe, direction, valid):
        """The records to read: near to those that the same read of the last evaluation found."""
        number = self._reads
        self._reads += 1
        if number >= len(self.near) or _current_graph() is not self._graph:
            return self._record.find(probe, direction, valid, self._record.newest(probe, 1)[0])
        self.near[number] = self._record.find(probe, direction, valid, self.near[number])
        return self.near[number]

    def _note(self, inside, ahead):
        if self.inside is None or _current_graph() is not self._graph:
            # Read inside a loop or a branch of the field, out of which no flag can come.
            self.inside = None
            return
        self.inside |= inside
        self.ahead |= ahead


class _Beginning:
    """The past before the first step: the history, and after the start the state itself."""

    def __init__(self, y):
        self._y = y

    def begin(self):
        """See `Past.begin`."""

    def read(self, time, t, history, field, derivative=False):
        before = field.direction * t + _slack(time, t) <= field.direction * field.t0
        past = history(tf.where(before, t, field.t0), derivative)
        # No slope is known yet; what is read here chooses the first step only.
        now = tf.zeros_like(self._y) if derivative else self._y
        return tf.where(before[:, None], past, now)


def _inside(y, parts, since, h, derivative):
    """The state, or its slope, a time `since` after the start of a step of length `h`."""
    value, slope = horner(y, parts, (since / h)[:, None])
    return slope / h[:, None] if derivative else value


def _slack(time, t):
    eps = float(np.finfo(t.dtype.as_numpy_dtype).eps)
    return 8.0 * eps * (tf.abs(time) + tf.abs(t))


def _current_graph():
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


class DelayField(Field):
    """A lifted delay equation on packed states; it reads the past of the scope it is called in.

    Args:
        lifted: a `LiftedDelay`.
        layout: the `StateLayout`.
        batch_dims: as in `Field`.
        p_leaves: as in `Field`.
        terms: the `Terms`: where the solve starts, and in which direction it goes.
        implicit: an `Implicit`.
    """

    is_arithmetic = by_numbers = False

    def __init__(self, lifted, layout, batch_dims, p_leaves, terms, implicit):
        super().__init__(lifted.field, layout, batch_dims, p_leaves, implicit=implicit)
        self.t0 = tf.stop_gradient(terms.t0)
        self.direction = terms.direction
        self._history = lifted.history
        self._slot = lifted.slot
        self.reads = lifted.slot.reads
        self._past: Any = None

    @property
    def _functions(self):
        return [self._function, self._history]

    @property
    def captures(self):
        """Tensors that the field or the history closes over, each once."""
        return list({id(tensor): tensor for tensor in super().captures}.values())

    def bind(self, theta):
        return BoundDelay(self, theta)

    @contextlib.contextmanager
    def seeing(self, past):
        """A scope in which the field reads the given past."""
        before, self._past = self._past, past
        try:
            yield
        finally:
            self._past = before

    def _outcome(self, time, y, theta):
        past = self._past or _Beginning(y)
        past.begin()

        def state(t):
            arguments = [self._time(t, y), *self._parameters(theta)]
            return self._layout.pack(self._history(arguments))

        def history(t, derivative):
            return _slope(state, t) if derivative else state(t)

        def read(t, derivative):
            rows = [y.shape[0] or -1]
            t, at = (tf.reshape(tf.broadcast_to(s, tf.shape(time)), rows) for s in (t, time))
            return self._unpack(past.read(at, t, history, self, derivative))

        with self._slot.filled(read):
            return super()._outcome(time, y, theta)


def _slope(function, t):
    """The time derivative of `function(t)`, `(rows, width)`: as the transpose of the transpose."""
    t = tf.identity(t)
    with tf.GradientTape(watch_accessed_variables=False) as outer:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(t)
            out = function(t)
        weights = tf.zeros_like(out)
        outer.watch(weights)
        pulled = tape.gradient(out, t, output_gradients=weights)
    if pulled is None:
        return tf.zeros_like(out)
    return outer.gradient(
        pulled, weights, output_gradients=tf.ones_like(t), unconnected_gradients="zero"
    )


class BoundDelay(BoundField):
    """A `DelayField` for given parameters, and the record that its steps read."""

    def __init__(self, field, theta, record=None):
        super().__init__(field, theta)
        self.record = record
        self.reads = field.reads
        self.seeing = field.seeing

    def recalling(self, ring, turns):
        """The same field with the first `turns` records of `ring` as its past."""
        return BoundDelay(self._field, self._theta, Record.of(ring, turns))


def discontinuities(lags, t0, t_end, direction, depth):
    """Where the solution or a derivative of it jumps: the sums of up to `depth` constant lags.

    A jump at the start, between the slope of the history and that of the solution, comes back one
    derivative higher after every lag, or as it is where the field reads a derivative of the past
    (Bellen & Zennaro, "Numerical Methods for Delay Differential Equations", 2003, section 2.1).

    Args:
        lags: a list of tensors, each a scalar or `(rows,)`.
        t0: `(rows,)`.
        t_end: `(rows,)`.
        direction: `(rows,)`.
        depth: the most lags in a sum: the order of the method, or `MOST_STOPS` for all.

    Returns:
        `(n, rows)`, sorted in the direction of time, NaN after the last before `t_end`.
    """
    counts: list = []
    for terms in range(1, depth + 1):
        chosen = itertools.combinations_with_replacement(range(len(lags)), terms)
        more = [[one.count(lag) for lag in range(len(lags))] for one in chosen]
        if counts and len(counts) + len(more) > MOST_STOPS:
            break
        counts += more
    times = tf.stack([lag + tf.zeros_like(t0) for lag in lags])
    sums = tf.reduce_sum(tf.constant(counts, t0.dtype)[:, :, None] * times, axis=1)
    eps = float(np.finfo(t0.dtype.as_numpy_dtype).eps)
    infinity = tf.constant(float("inf"), t0.dtype)
    ahead = tf.sort(tf.where(_seen_before(sums, t0, eps), infinity, sums), axis=0)
    stops = t0 + direction * ahead
    near = 64.0 * eps * tf.abs(t_end)
    inside = tf.math.is_finite(ahead) & (direction * stops < direction * t_end - near)
    return tf.where(inside, stops, tf.constant(float("nan"), t0.dtype))


def _seen_before(sums, t0, eps):
    """Which sums of lags, `(n, rows)`, are those of an earlier row but for rounding.

    They are one point, not a step of the length of an error; and it moves with the earlier one, of
    fewer lags, whose jump is the larger.
    """
    n = sums.shape[0]
    later = tf.range(n)[:, None]

    def compare(j, seen):
        close = tf.abs(sums - sums[j]) <= 64.0 * eps * (tf.abs(sums) + tf.abs(t0))
        return j + 1, seen | (close & (later > j))

    none = tf.zeros_like(sums, tf.bool)
    return tf.while_loop(lambda j, _: j < n - 1, compare, (0, none))[1]
