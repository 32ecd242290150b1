"""What is kept about what happened: from turn to turn, of a segment, and of the whole solve."""

from typing import Any, NamedTuple

import tensorflow as tf


class Memory(NamedTuple):
    """What one turn hands to the next about what happened.

    Attributes:
        due: `(stops, rows)`, direction times the next time of the channels whose times are known.
        pace: the same, the rate at which that time was drawn: of a bounded rate its bound then.
        fired: `(channels, rows)` int32, which channels happened at the end of the last step.
        counts: the same, how often each happened.
        number: `(rows,)` int32, how often anything did: the counter of random numbers.
        noise: what is left of the noise of a grid's step that was cut, a `brownian.Rest`; an empty
            tuple for other paths and without noise.
    """

    due: tf.Tensor
    pace: tf.Tensor
    fired: tf.Tensor
    counts: tf.Tensor
    number: tf.Tensor
    noise: Any = ()


class HybridRing(NamedTuple):
    """The records of a segment, as in `integrate.Ring`, and what happened.

    Attributes:
        times: `(size, 3, rows)`: where a step begins, where it was cut, where it would have ended.
        y: `(size, rows, width)`.
        dense: `(size, rows, degree * width)`, on the whole step.
        fired: `(size, channels, rows)` int32.
        notes: `(size, 3, rows)` int32: the channel whose root cut the step or -1, whether the
            step's end was a stop, and the counter of random numbers.
        before: `(size, channels, rows, width)`, the states before the affects.
        kind: as in `integrate.Ring`.
        noise: the `brownian.Increment` of the step where `Memory.noise` is more than empty.
    """

    times: tf.Tensor
    y: tf.Tensor
    dense: tf.Tensor
    fired: tf.Tensor
    notes: tf.Tensor
    before: tf.Tensor
    kind: tf.Tensor | tuple = ()
    noise: Any = ()


class Log(NamedTuple):
    """What happened, in order; one more entry than there is room for takes what is dropped.

    Attributes:
        times: `((entries + 1) * rows,)`.
        states: `((entries + 1) * rows, width)`.
        index: `((entries + 1) * rows,)` int32.
        count: `(rows,)` int32.
    """

    times: tf.Tensor
    states: tf.Tensor
    index: tf.Tensor
    count: tf.Tensor


class Logbook:
    """Writes a `Log` and reads it.

    Args:
        channels: the `Channel`s.
    """

    def __init__(self, channels):
        self._channels = len(channels)
        self._told = [e for e, channel in enumerate(channels) if channel.recorded]
        self._entries = max(1, sum(c.max_events for c in channels if c.recorded))

    def empty(self, t, y):
        """A `Log` of nothing, for times `(rows,)` and states `(rows, width)`."""
        rows, width = tf.unstack(tf.shape(y))
        size = self._entries + 1
        nan = tf.constant(float("nan"), y.dtype)
        return Log(
            tf.fill([size * rows], nan), tf.fill([size * rows, width], nan),
            tf.fill([size * rows], -1), tf.zeros_like(t, tf.int32),
        )  # fmt: skip

    def write(self, log, times, fired, before, turns):
        """The log with what happened in the first `turns` of some records.

        Args:
            log: the `Log`.
            times: `(size, rows)`.
            fired: `(size, channels, rows)`.
            before: `(size, channels, rows, width)`.
            turns: how many of the records are valid.
        """
        told = self._told
        if not told:
            return log
        size, rows = tf.shape(times)[0], tf.shape(times)[1]
        width = before.shape[3] or tf.shape(before)[3]
        valid = tf.range(size)[:, None, None] < turns
        flags = (tf.gather(fired, told, axis=1) > 0) & valid
        flags = tf.cast(tf.reshape(flags, (-1, rows)), tf.int32)
        place = log.count + tf.cumsum(flags, axis=0, exclusive=True)
        place = tf.where((flags > 0) & (place < self._entries), place, self._entries)
        at = tf.reshape(place * rows + tf.range(rows), (-1, 1))
        number = len(told)
        states = tf.reshape(tf.gather(before, told, axis=1), (-1, width))
        index = tf.tile(tf.range(number)[None, :, None], [size, 1, rows])

        def put(buffer, values):
            return tf.tensor_scatter_nd_update(buffer, at, values)

        return Log(
            put(log.times, tf.reshape(tf.tile(times[:, None], [1, number, 1]), [-1])),
            put(log.states, states),
            put(log.index, tf.reshape(index, [-1])),
            log.count + tf.reduce_sum(flags, axis=0),
        )

    def read(self, log, rows, width):
        """Times, states before and indices, `(entries, rows, ...)`, and how many there are."""
        n = self._entries
        return (
            tf.reshape(log.times, (n + 1, rows))[:n],
            tf.reshape(log.states, (n + 1, rows, width))[:n],
            tf.reshape(log.index, (n + 1, rows))[:n],
            log.count,
        )

    def read_back(self, fired, count, told):
        """Cotangents that the log's entries of one turn send to states and to the time.

        Args:
            fired: `(channels, rows)`.
            count: `(rows,)`, the entries up to and with this turn.
            told: the cotangents of the log's times and states, `(entries, rows, ...)`.

        Returns:
            The former, `(channels, rows, width)`, the latter, and the entries before the turn.
        """
        times_bar, states_bar = told
        rows = tf.shape(fired)[1]
        width = states_bar.shape[2] or tf.shape(states_bar)[2]
        column = tf.range(rows)
        flat_times = tf.reshape(times_bar, [-1])
        flat_states = tf.reshape(states_bar, (-1, width))
        total = tf.zeros((rows,), times_bar.dtype)
        parts = [tf.zeros((rows, width), times_bar.dtype) for _ in range(self._channels)]
        for e in reversed(self._told):
            now = fired[e] > 0
            count -= fired[e]
            at = tf.clip_by_value(count, 0, self._entries - 1) * rows + column
            total += tf.where(now, tf.gather(flat_times, at), tf.zeros_like(total))
            parts[e] = tf.where(now[:, None], tf.gather(flat_states, at), parts[e])
        return tf.stack(parts), total, count
