"""Save points that are written while steps pass them.

Where a turn is one kernel (see `components`), the states at save points come from the step that
passes them, and no record of the steps is kept. Many rows pass one save point in a turn, each its
own; a trajectory alone passes several, and can leave a short record of each turn for the way back.
"""

import dataclasses
import math

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from keras_neuralde import components
from keras_neuralde.integrate import (
    Carry,
    Due,
    T,
    advance,
    any_running,
    apart,
    attempt,
    begin,
    finish,
    following,
    packed,
    unpacked,
)
from keras_neuralde.save_points import at_start

#: The most save points that a trajectory alone passes in one turn.
AT_ONCE = 1

_BLANK = Carry((), (), ())
# What stands before the carry in the array of a trajectory alone: how many turns there were, the
# number of the next save point, and where the next step ends.
_TOLD = 3


def integrate(plan, g, y0, terms):
    """The whole integration, without a memory of its steps beyond the current segment.

    Returns:
        An `Outcome`: `y` is `(num_times, rows, width)` with save points, else `(rows, width)`.
    """
    in_passing = dataclasses.replace(plan, repeats=True)
    if not plan.saves or not pays(in_passing, g, y0, terms.saves):
        return finish(plan, *advance(plan, g, terms, *begin(plan, g, y0, terms)), terms)
    carry, outputs = begin(in_passing, g, y0, terms)
    if is_alone(y0):
        alone = Alone(in_passing, g, terms)
        block, states = alone.start(carry, outputs)
        block, states = alone.run(block, states)
        carry, outputs = alone.end(block, states)
    else:
        carry, outputs = save_in_passing(in_passing, g, terms, carry, outputs)
    return finish(plan, carry, outputs, terms)


def pays(plan, g, y0, saves):
    """Whether steps write save points in passing, if there are any."""
    if not plan.solver.repeatable or not apart(plan, g, y0):
        return False
    if plan.save_slopes and not is_alone(y0):
        return False
    # Their numbers must be exact.
    return saves is None or (saves.shape[0] or math.inf) < 1 << 24


def is_alone(y0):
    """Whether there is one trajectory."""
    return y0.shape[0] == 1


class Alone:
    """One trajectory, whose turns leave one array to each other.

    Args:
        plan: the `Plan`, one that `pays`.
        g: the field.
        terms: the `Terms`.
    """

    def __init__(self, plan, g, terms):
        self._plan, self._g, self._terms = plan, g, terms
        self._width = g.size
        self._most = AT_ONCE if plan.saves else 0
        #: The numbers of a record: the time and the number of the save point after a turn, where
        #: its step ended, and the state after it.
        self.numbers = 3 + self._width
        if plan.saves:
            nan = tf.constant(float("nan"), terms.saves.dtype)
            more = [[0, self._most + 1], [0, 0]]
            self._saves = tf.pad(terms.saves, more, constant_values=nan)[:, 0]

    def start(self, carry, outputs):
        """The array before the first turn, and the states at the save points, `(n, width)`."""
        first, states = tf.zeros_like(self._terms.t0), ()
        if self._plan.saves:
            first = tf.reduce_sum(tf.cast(at_start(self._terms), carry.y.dtype), axis=0)
            # Slopes beside them, where they are saved.
            states = tf.concat([one[:, 0] for one in outputs[: 1 + self._plan.save_slopes]], axis=1)
            states = tf.pad(states, [[0, self._most], [0, 0]])
        t_next = following(self._plan, self._g, self._terms, tf.unstack(carry.control))
        told = tf.stack([tf.zeros_like(first), first, t_next])
        return tf.concat([told, packed(carry)], axis=0), states

    def end(self, block, states):
        """The carry and the outputs after the last turn."""
        carry = unpacked(tf.unstack(block)[_TOLD:], self._width, _BLANK)
        if not self._plan.saves:
            return carry, ()
        count = self._terms.saves.shape[0] or tf.shape(self._terms.saves)[0]
        states, slopes = states[:count, None, : self._width], states[:count, None, self._width :]
        return carry, (states, slopes if self._plan.save_slopes else ())

    def is_running(self, block):
        """Whether there are steps to take."""
        return any_running(block[_TOLD:])

    def run(self, block, states, ring=None, forced=None):
        """Turns until it has ended, or the ring is full.

        Args:
            block: what `start` or a run before has left.
            states: likewise; an empty tuple leaves them out.
            ring: `(size + 1, numbers)`, the array for the records of `size` turns, the first of
                which is that before them; `None` for none.
            forced: `(known, flags)`: whether the decisions of these turns are on record, and they,
                as `flags` gives them, `(AT_ONCE + 1, size)`.

        Returns:
            The block and the states, and with a ring also the ring and the number of turns.
        """
        records, writes = ring is not None, isinstance(states, tf.Tensor)
        block = tf.concat([tf.zeros_like(block[:1]), block[1:]], axis=0)
        if records:
            size = float(ring.shape[0] - 1)
            y = unpacked(tf.unstack(block)[_TOLD:], self._width, _BLANK).y
            head = tf.stack([block[_TOLD + T, 0], block[1, 0], block[2, 0]])
            ring = _put(ring, tf.concat([head, y[0]], axis=0)[None], tf.constant(0))

        def more(block, *_):
            running = self.is_running(block)
            return running & (block[0, 0] < size) if records else running

        def once(block, states, ring):
            block, passed, record = self._turn(block, forced)
            if writes:
                values = tf.stack([tf.concat(value, 0) for value in passed.values])
                states = _put(states, values, tf.cast(passed.along[1][0], tf.int32))
            if records:
                ring = _put(ring, record[None], tf.cast(block[0, 0], tf.int32))
            return block, states, ring

        loop = (block, states, ring if records else ())
        block, states, ring = tf.while_loop(more, once, loop)
        if not records:
            return block, states
        return block, states, ring, tf.cast(block[0, 0], tf.int32)

    def _turn(self, block, forced):
        """One turn: the new block, what passed, and the record.

        Nothing but the turn's kernels reads the old block: XLA would copy it for anything else.
        """
        turn, number, t_next, *parts = tf.unstack(block)
        carry = unpacked(parts, self._width, _BLANK)
        times = self.times_from(number[0], self._most + 1) if self._most else []
        times = [time[None] for time in times]
        due = Due(number, times, t_next, [turn + 1.0, number, t_next])
        if forced is not None:
            at = tf.cast(turn[0], tf.int32)
            moved, *flags = tf.unstack(tf.gather(forced[1], at, axis=1)[:, None])
            due = due._replace(known=forced[0], moved=moved, passed=flags[: self._most])
        new, passed = attempt(self._plan, self._g, self._terms, carry, due=due)
        turn, _, attempted = passed.along
        head = tf.stack([turn, passed.number, passed.time])
        record = [new.control[T], passed.number, attempted, *components.split(new.y)]
        return tf.concat([head, packed(new)], axis=0), passed, tf.concat(record, axis=0)

    def times_from(self, number, count):
        """The times of save points from `number` on, a list of numbers."""
        index = tf.cast(number, tf.int32)
        return [_number(self._saves, index + i) for i in range(count)]

    def record(self, ring, turn):
        """The record of a turn, a list of numbers."""
        return row_of(ring, turn)

    def flags(self, ring, turns):
        """The decisions of a segment, `(AT_ONCE + 1, size)` booleans."""
        valid = tf.range(ring.shape[0] - 1) < turns
        took = ring[1:, 1] - ring[:-1, 1]
        moved = ring[1:, 0] != ring[:-1, 0]
        return tf.stack([moved & valid, *((took > float(i)) & valid for i in range(AT_ONCE))])


def _put(whole, part, index):
    """`whole` with `part` from row `index` on."""
    start = tf.stack([index, tf.zeros_like(index)])
    return gen_xla_ops.xla_dynamic_update_slice(whole, part, start)


def row_of(whole, index):
    """Row `index` of a matrix, a list of numbers."""
    return [_number(whole, index, i) for i in range(whole.shape[1])]


def _number(whole, *index):
    """One number of `whole`: read by itself, it melts into the kernel that reads it."""
    start = tf.stack([tf.convert_to_tensor(one, tf.int32) for one in index])
    return tf.reshape(gen_xla_ops.xla_dynamic_slice(whole, start, [1] * len(index)), ())


def save_in_passing(plan, g, terms, carry, outputs):
    """`advance` for many rows, which pass their save points at turns of their own."""
    width = int(carry.y.shape[1])
    rows = carry.y.shape[0] or tf.shape(carry.y)[0]
    count = terms.saves.shape[0] or tf.shape(terms.saves)[0]
    column, shared = tf.range(rows), terms.saves.shape[1] == 1
    times, shape = tf.reshape(terms.saves, [-1]), tf.shape(outputs[0])[:2]
    nan = tf.constant(float("nan"), terms.saves.dtype)

    def time_of(number):
        index = tf.minimum(tf.cast(number, tf.int32), count - 1)
        time = tf.gather(times, index if shared else index * rows + column)
        return tf.where(number < tf.cast(count, number.dtype), time, nan)

    def once(block, flat):
        time, number, *parts = tf.unstack(block)
        due = Due(number, [time, time_of(number + 1.0)])
        new, passed = attempt(plan, g, terms, unpacked(parts, width, carry), due=due)
        # Past the end, where nothing is written, unless a save point was passed.
        place = tf.cast(number, tf.int32) * rows + column
        place = tf.where(passed.number > number, place, shape[0] * rows)[:, None]
        pairs = zip(flat, passed.values[0], strict=True)
        flat = [tf.tensor_scatter_nd_update(full, place, part) for full, part in pairs]
        told = tf.stack([passed.time, passed.number])
        return tf.concat([told, packed(new)], axis=0), flat

    first = tf.reduce_sum(tf.cast(at_start(terms), carry.y.dtype), axis=0)
    block = tf.concat([tf.stack([time_of(first), first]), packed(carry)], axis=0)
    flat = [tf.reshape(part, [-1]) for part in components.split(outputs[0])]
    block, flat = tf.while_loop(lambda block, _: any_running(block[2:]), once, (block, flat))
    y = components.join([tf.reshape(part, shape) for part in flat])
    y.set_shape(outputs[0].shape)
    return unpacked(tf.unstack(block)[2:], width, carry), (y, ())
