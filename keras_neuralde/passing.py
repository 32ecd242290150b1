"""Save points that are written while steps pass them.

Where a turn is one kernel (see `components`), the states at save points come from the step that
passes them, and no record of the steps is kept. Each row passes its save points at turns of its
own. A trajectory alone can leave a short record of each turn for the way back.

A loop whose turns touch less than 1,024 bytes becomes one compiled function with XLA:CPU, without
the cost of launching its kernels. For two components that is so: hence one array for all that a
turn leaves to the next, save points one by one, and records of nothing that can be told otherwise.
"""

import dataclasses
import math

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from keras_neuralde import components
from keras_neuralde.integrate import (
    STATUS,
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

_BLANK = Carry((), (), ())
# Up to so many save points, turns in which no row can pass one are taken by a loop of their own,
# which computes nothing for them. With more there is hardly such a turn among many rows.
_FEW = 32
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
        carry, outputs = advance(plan, g, terms, *begin(plan, g, y0, terms))
        return finish(plan, carry, outputs, terms)
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
        #: The numbers of a record: time, number of the next save point, and state after a turn.
        self.numbers = 2 + self._width
        if plan.saves:
            nan = tf.constant(float("nan"), terms.saves.dtype)
            self._saves = tf.pad(terms.saves, [[0, 2], [0, 0]], constant_values=nan)[:, 0]

    def start(self, carry, outputs):
        """The array before the first turn, and the states at the save points, `(n, width)`."""
        first, states = tf.zeros_like(self._terms.t0), ()
        if self._plan.saves:
            first = tf.reduce_sum(tf.cast(at_start(self._terms), carry.y.dtype), axis=0)
            # Slopes beside them, where they are saved.
            states = tf.concat([one[:, 0] for one in outputs[: 1 + self._plan.save_slopes]], axis=1)
            states = tf.pad(states, [[0, 1], [0, 0]])
        t_next = following(self._plan, self._g, self._terms, tf.unstack(carry.control))
        return tf.stack([tf.zeros_like(first), first, t_next, *packed(carry)]), states

    def end(self, block, states):
        """The carry and the outputs after the last turn."""
        carry = unpacked(tf.unstack(block)[_TOLD:], self._width, _BLANK)
        if not self._plan.saves:
            return carry, ()
        count = self._terms.saves.shape[0]
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
                as `flags` gives them, `(2, size)`.

        Returns:
            The block and the states, and with a ring also the ring and the number of turns.
        """
        records, writes = ring is not None, isinstance(states, tf.Tensor)
        block = tf.concat([tf.zeros_like(block[:1]), block[1:]], axis=0)
        if records:
            size = float(ring.shape[0] - 1)
            y = unpacked(tf.unstack(block)[_TOLD:], self._width, _BLANK).y
            first = tf.concat([block[_TOLD + T], block[1], y[0]], axis=0)
            ring = _put(ring, first, tf.constant(0))

        def more(block, *_):
            running = self.is_running(block)
            return running & (block[0, 0] < size) if records else running

        def once(block, states, ring):
            block, passed, record = self._turn(block, forced)
            if writes:
                # What has not been passed yet will be written once more.
                number = tf.cast(passed.along[1][0], tf.int32)
                states = _put(states, tf.concat(passed.value, axis=0), number)
            if records:
                ring = _put(ring, record, tf.cast(block[0, 0], tf.int32))
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
        time = later = None
        if self._plan.saves:
            time, later = self.time_of(number[0])[None], self.time_of(number[0] + 1.0)[None]
        due = Due(number, time, later, t_next, [turn + 1.0, number])
        if forced is not None:
            at = tf.cast(turn[0], tf.int32)
            moved, saved = tf.unstack(tf.gather(forced[1], at, axis=1)[:, None])
            due = due._replace(forced=(forced[0], moved, saved))
        new, passed = attempt(self._plan, self._g, self._terms, carry, due=due)
        block = tf.stack([passed.along[0], passed.number, passed.time, *packed(new)])
        record = [new.control[T], passed.number, *components.split(new.y)]
        return block, passed, tf.concat(record, axis=0)

    def time_of(self, number):
        """The time of a save point; NaN behind the last."""
        return _number(self._saves, tf.cast(number, tf.int32))

    def flags(self, ring, turns):
        """The decisions of a segment, `(2, size)` booleans: moved on, and passed a save point."""
        valid = tf.range(ring.shape[0] - 1) < turns
        changed = ring[1:, :2] != ring[:-1, :2]
        return tf.transpose(changed & valid[:, None])


def _put(whole, row, index):
    """`whole` with `row` in place of row `index`."""
    start = tf.stack([index, tf.zeros_like(index)])
    return gen_xla_ops.xla_dynamic_update_slice(whole, row[None], start)


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
    count = terms.saves.shape[0]
    column, shared = tf.range(rows), terms.saves.shape[1] == 1
    times, shape = tf.reshape(terms.saves, [-1]), tf.shape(outputs[0])[:2]
    nan = tf.constant(float("nan"), terms.saves.dtype)

    def time_of(number):
        index = tf.minimum(tf.cast(number, tf.int32), count - 1)
        time = tf.gather(times, index if shared else index * rows + column)
        return tf.where(number < tf.cast(count, number.dtype), time, nan)

    def once(told, bundles, flat):
        time, number = tf.unstack(told)
        due = Due(number, time, time_of(number + 1.0))
        new, passed = attempt(plan, g, terms, loose(bundles), due=due)
        # Past the end, where nothing is written, unless a save point was passed.
        place = tf.cast(number, tf.int32) * rows + column
        place = tf.where(passed.number > number, place, shape[0] * rows)[:, None]
        pairs = zip(flat, passed.value, strict=True)
        flat = [tf.tensor_scatter_nd_update(full, place, part) for full, part in pairs]
        return tf.stack([passed.time, passed.number]), components.bundled(packed(new)), flat

    def ahead(told, bundles):
        """Whether a row has a step to take (1) that may pass a save point (2)."""
        control = tf.unstack(loose(bundles).control)
        t_next, one = following(plan, g, terms, control), terms.direction
        passes = one * told[0] <= one * t_next
        kinds = tf.where(control[STATUS] < 0.0, tf.where(passes, 2, 1), 0)
        return tf.reduce_max(kinds)

    def loose(bundles):
        return unpacked(components.loosened(bundles), width, carry)

    def until_due(told, bundles):
        """The turns in which no row can pass a save point."""

        def lean(*bundles):
            new, _ = attempt(plan, g, terms, loose(bundles))
            return components.bundled(packed(new))

        return tf.while_loop(lambda *bundles: tf.equal(ahead(told, bundles), 1), lean, bundles)

    def more(told, bundles, _):
        return any_running(loose(bundles).control)

    def turns(told, bundles, flat):
        bundles = until_due(told, bundles) if count <= _FEW else bundles
        return once(told, bundles, flat)

    first = tf.reduce_sum(tf.cast(at_start(terms), carry.y.dtype), axis=0)
    told, bundles = tf.stack([time_of(first), first]), components.bundled(packed(carry))
    flat = [tf.reshape(part, [-1]) for part in components.split(outputs[0])]
    _, bundles, flat = tf.while_loop(more, turns, (told, bundles, flat))
    y = components.join([tf.reshape(part, shape) for part in flat])
    y.set_shape(outputs[0].shape)
    return loose(bundles), (y, ())
