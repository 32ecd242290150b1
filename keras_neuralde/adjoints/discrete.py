"""The discrete adjoint: the exact gradient of the numbers that the loop computed.

The accepted step sizes are held fixed, as in every discretise-then-optimise gradient. Steps are
walked backwards one turn of the loop at a time, all rows together; a rejected or resting turn has
length zero, so that its vector-Jacobian product is the identity and no masks are needed.

Memory is bounded. The forward pass keeps the carry at the start of segments in `checkpoints`
slots; when they are full, every second one is dropped and the spacing doubles. The backward pass
reruns one segment at a time from the nearest slot, leaving further carries in the slots that have
become free, and replays the decisions (accept or reject, what happened) that the forward pass took.
Where all turns are known to fit into one segment there is nothing to rerun, and no slots are kept.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import tensorflow as tf

from keras_neuralde import components, passing
from keras_neuralde.adjoints.base import Adjoint, differentiable
from keras_neuralde.integrate import (
    STATUS,
    T,
    any_running,
    begin,
    empty_ring,
    finish,
    outputs_of,
    run_segment,
)
from keras_neuralde.save_points import (
    at_start,
    collect,
    put_together,
    repeating,
    taken_apart,
    write,
)
from keras_neuralde.solution import Status

_BITS = 16
# The default number of checkpoints, and what the records of a segment may take then, in bytes.
_PLENTY, _SMALL = 64, 1 << 19
# Up to so many turns for each checkpoint are recorded in one piece, where their number is known.
# The record of a turn is smaller than a checkpoint, so that memory stays about the same.
_AT_ONCE = 4


class Trail(NamedTuple):
    """What the backward pass needs of the forward one.

    Without slots there is one segment, and the ring holds all that is needed.

    Attributes:
        ring: the records of the last segment.
        turns: the valid records in it.
        segments: how many segments there were.
        slots: carries at segment starts, `(checkpoints + 1, ...)`; the last one is scratch.
        decisions: the bits of the `flags` of the segments that start at a slot.
        stride: segments between slots.
    """

    ring: Any
    turns: tf.Tensor
    segments: tf.Tensor | tuple = ()
    slots: Any = ()
    decisions: tf.Tensor | tuple = ()
    stride: tf.Tensor | tuple = ()


@dataclasses.dataclass(frozen=True)
class Discrete(Adjoint):
    """The exact gradient of the computed solution, its accepted steps held fixed.

    Walks the steps backwards with one vector-Jacobian product each (Hager, "Runge-Kutta methods in
    optimal control and the transformed adjoint system", Numerische Mathematik 87, 2000). Memory
    is bounded by `checkpoints`; past it, states are recomputed.
    """

    name = "discrete"

    def integrate(self, task, field, y0, terms):
        alone = _goes_alone(task, field, y0, terms)
        # A trajectory alone takes turns for its save points too.
        once = task.turns is not None and not alone
        once = once and task.turns <= _AT_ONCE * task.checkpoints
        segment = task.turns if once else _turns_of_a_segment(task, y0)
        slopes = task.plan.saves and task.time_gradient
        own = repeating(task.plan, field, y0, terms.saves)
        plan = dataclasses.replace(own, segment=segment, save_slopes=slopes)
        checkpoints, time_gradient = task.checkpoints, task.time_gradient
        plan = dataclasses.replace(plan, repeats=True) if alone else plan
        turns_of = _TurnsAlone if alone else _Turns

        def forward(bound, g, y0):
            integrated = _forward_at_once if once else _forward
            outcome, trail = integrated(turns_of(plan, g, bound), y0, checkpoints)
            return outputs_of(outcome), (outcome, trail)

        def primal(bound, g, y0):
            return outputs_of(passing.integrate(own, g, y0, bound))

        def backward(memory, bound, theta, y_bar, *told):
            outcome, trail = memory
            failed = outcome.control[STATUS] != float(Status.SUCCESS)
            y_bar = tf.where(failed[:, None], tf.zeros_like(y_bar), y_bar)
            if told:
                times_bar, states_bar, _ = told
                told = (
                    tf.where(failed, tf.zeros_like(times_bar), times_bar),
                    tf.where(failed[:, None], tf.zeros_like(states_bar), states_bar),
                )
            kind = _BackwardAlone if alone else Backward
            backward = kind(plan, field, bound, checkpoints, time_gradient, y0, told)
            return backward(trail, outcome, y_bar, theta)

        return differentiable(self.name, task, field, y0, terms, forward, primal, backward)


def _turns_of_a_segment(task, y0):
    """All checkpoints' worth of turns, as a power of two.

    Where the records of one trajectory are small there are up to eight times as many: the last
    segment need not be rerun, and often it is the only one. (A batch of 64 with 30 steps lost a
    tenth.) Who asks for fewer checkpoints than usual gets less memory.
    """
    turns, plan = 1 << int(math.log2(task.checkpoints)), task.plan
    rows, width = y0.shape
    if task.checkpoints < _PLENTY or plan.happenings is not None or rows != 1 or not width:
        return turns
    degree = plan.solver.dense_degree() if plan.dense else 0
    fitting = _SMALL // ((2 + width * (1 + degree)) * y0.dtype.size)
    return max(turns, 1 << int(math.log2(max(1, min(8 * turns, fitting)))))


def _goes_alone(task, field, y0, terms):
    """Whether the turns of one trajectory are kernels forwards and backwards."""
    if not passing.is_alone(y0):
        return False
    plan = dataclasses.replace(task.plan, repeats=True)
    theta = field.theta
    if not passing.pays(plan, field.bind(theta), y0, terms.saves):
        return False
    return components.columns_of(field, y0, theta) is not None


class _Turns:
    """How the forward pass takes the turns of a segment, and what it records of them.

    Args:
        plan: the `Plan`.
        g: the field.
        terms: the `Terms`.
    """

    def __init__(self, plan, g, terms):
        self.plan, self.g, self.terms = plan, g, terms
        self._apart = False

    def start(self, y0):
        """The carry, an empty ring and the outputs before the first turn."""
        carry, outputs = begin(self.plan, self.g, y0, self.terms)
        self._apart = self.plan.repeats and components.pays(self.g, carry.y)
        outputs = taken_apart(outputs) if self._apart else outputs
        return carry, empty_ring(self.plan, carry, self.plan.segment), outputs

    def is_running(self, carry):
        """Whether a row has steps to take."""
        return any_running(carry.control)

    def run(self, carry, ring, outputs):
        """A segment: the carry, the ring, the number of turns and the outputs after it."""
        carry, ring, turns = run_segment(self.plan, self.g, self.terms, carry, ring)
        return carry, ring, turns, collect(self.plan, self.g, self.terms, ring, turns, outputs)

    def rerun(self, carry, ring, known, flags):
        """A segment once more, with its decisions where they are `known`: all but the outputs."""
        kinds = flags[1] if self.plan.switches else ()
        fired = flags[1 + self.plan.switches :]
        fired = tf.stack(fired, axis=1) if fired else ()
        forced = (known, flags[0], kinds, fired)
        return run_segment(self.plan, self.g, self.terms, carry, ring, forced)

    def end(self, carry, outputs):
        """The `Outcome`."""
        outputs = put_together(outputs) if self._apart else outputs
        return finish(self.plan, carry, outputs, self.terms)

    def flags(self, ring, turns):
        """What is decided in a segment, a list of `(segment, rows)` booleans.

        Whether steps are accepted, where the solver switches their kinds, and what happened.
        """
        accepted = tf.not_equal(ring.times[:, 0], ring.times[:, -1])
        flags = [accepted & (tf.range(self.plan.segment)[:, None] < turns)]
        if self.plan.switches:
            flags.append(ring.kind > 0.0)
        if self.plan.happenings is not None:
            flags += tf.unstack(ring.fired > 0, num=len(self.plan.happenings.channels), axis=1)
        return flags


class _TurnsAlone:
    """The same for a trajectory alone, see `passing.Alone`."""

    def __init__(self, plan, g, terms):
        self.plan, self.g, self.terms = plan, g, terms
        self.alone = passing.Alone(plan, g, terms)

    def start(self, y0):
        block, states = self.alone.start(*begin(self.plan, self.g, y0, self.terms))
        return block, tf.zeros((self.plan.segment + 1, self.alone.numbers), y0.dtype), states

    def is_running(self, block):
        return self.alone.is_running(block)

    def run(self, block, ring, states):
        block, states, ring, turns = self.alone.run(block, states, ring)
        return block, ring, turns, states

    def rerun(self, block, ring, known, flags):
        flags = tf.stack(flags)[:, :, 0]
        block, _, ring, turns = self.alone.run(block, (), ring, (known, flags))
        return block, ring, turns

    def end(self, block, states):
        carry, outputs = self.alone.end(block, states)
        return finish(self.plan, carry, outputs, self.terms)

    def flags(self, ring, turns):
        return [flag[:, None] for flag in tf.unstack(self.alone.flags(ring, turns))]


def _forward(turns, y0, checkpoints):
    """The integration, leaving a `Trail`.

    Args:
        turns: the `_Turns`.
        y0: `(rows, width)`.
        checkpoints: how many carries are kept.
    """
    carry, ring, outputs = turns.start(y0)
    slots = tf.nest.map_structure(
        lambda leaf: tf.zeros(tf.concat([[checkpoints + 1], tf.shape(leaf)], 0), leaf.dtype), carry
    )
    zero = tf.constant(0)
    words = _pack(turns.flags(ring, zero))
    decisions = tf.zeros(tf.concat([[checkpoints + 1], tf.shape(words)], 0), tf.int32)
    trail = Trail(ring, zero, zero, slots, decisions, tf.constant(1))

    def turn_segment(carry, trail, outputs):
        trail = _make_room(trail, checkpoints)
        due = trail.segments % trail.stride == 0
        slot = tf.where(due, trail.segments // trail.stride, checkpoints)
        slots = tf.nest.map_structure(lambda b, v: write(b, slot, v), trail.slots, carry)
        carry, ring, count, outputs = turns.run(carry, trail.ring, outputs)
        decisions = write(trail.decisions, slot, _pack(turns.flags(ring, count)))
        trail = Trail(ring, count, trail.segments + 1, slots, decisions, trail.stride)
        return carry, trail, outputs

    carry, trail, outputs = tf.while_loop(
        lambda carry, *_: turns.is_running(carry), turn_segment, (carry, trail, outputs)
    )
    return turns.end(carry, outputs), trail


def _forward_at_once(turns, y0, checkpoints):
    """`_forward` for a number of turns that is known to fit into one segment."""
    carry, ring, outputs = turns.start(y0)
    carry, ring, count, outputs = turns.run(carry, ring, outputs)
    return turns.end(carry, outputs), Trail(ring, count)


def _make_room(trail, checkpoints):
    """Drops every second slot when the next segment would need one too many."""
    if checkpoints == 1:
        # One slot only: it stays at the start, whatever the number of segments.
        return trail._replace(stride=tf.maximum(trail.stride, trail.segments + 1))
    full = trail.segments >= checkpoints * trail.stride
    kept = tf.minimum(2 * tf.range(checkpoints + 1), checkpoints)

    def thin():
        return tf.nest.map_structure(
            lambda buffer: tf.gather(buffer, kept), (trail.slots, trail.decisions)
        )

    slots, decisions = tf.cond(full, thin, lambda: (trail.slots, trail.decisions))
    return trail._replace(
        slots=slots, decisions=decisions, stride=tf.where(full, 2 * trail.stride, trail.stride)
    )


def _pack(flags):
    """A list of `(size, rows)` booleans as bits, `(len(flags) * words, rows)`."""
    size = flags[0].shape[0]
    words = -(-size // _BITS)
    flags = tf.cast(tf.stack(flags), tf.int32)
    flags = tf.pad(flags, [[0, 0], [0, words * _BITS - size], [0, 0]])
    bits = tf.reshape(flags, (flags.shape[0] * words, _BITS, -1)) * (2 ** tf.range(_BITS))[:, None]
    return tf.reduce_sum(bits, axis=1)


def _unpack(bits, size):
    """The inverse of `_pack`."""
    shifted = bits[:, None, :] // (2 ** tf.range(_BITS))[:, None]
    words = -(-size // _BITS)
    flags = tf.reshape(shifted % 2, (bits.shape[0] // words, words * _BITS, -1))
    return tf.unstack(tf.equal(flags[:, :size], 1))


class Backward:
    """The backward pass, as one callable from cotangents to cotangents."""

    turns_of: Any = _Turns

    def __init__(self, plan, field, terms, checkpoints, time_gradient, y0=None, told=()):
        self.plan = plan
        self.field = field
        self.terms = terms
        self.y0, self.told = y0, told
        self.checkpoints = checkpoints
        self.time_gradient = time_gradient

    def __call__(self, trail, outcome, y_bar, theta):
        plan, terms, field = self.plan, self.terms, self.field
        hybrid = plan.happenings is not None
        saves_bar = save_rate = None
        if plan.saves:
            # A saved value moves with its time at the interpolant's slope.
            y_bar = tf.where(tf.math.is_finite(outcome.y), y_bar, tf.zeros_like(y_bar))
            if self.time_gradient:
                save_rate = tf.reduce_sum(y_bar * outcome.slopes, axis=-1)
                saves_bar = save_rate
                if terms.saves.shape[1] == 1 and y_bar.shape[1] != 1:
                    saves_bar = tf.reduce_sum(saves_bar, axis=1, keepdims=True)
        zeros = tf.zeros_like(terms.t0)
        walk = _Walk(
            y_bar=self._at_last(outcome, y_bar) if plan.saves else y_bar,
            t_bar=zeros,
            t_end_bar=zeros,
            theta_bar=[tf.zeros_like(tensor) for tensor in theta],
            variables_bar=[tf.zeros_like(variable) for variable in field.variables],
            save=self._last_save(outcome) if plan.saves else tf.zeros_like(zeros, tf.int32),
            count=outcome.log[-1] if hybrid else tf.zeros_like(zeros, tf.int32),
            t_next=zeros,
        )
        walk = self.turns(trail, walk, theta, y_bar, save_rate)

        y0_bar, t_bar = walk.y_bar, walk.t_bar
        if plan.saves:
            resting = at_start(terms)
            if hybrid:
                resting &= terms.saves != terms.t0
            y0_bar += tf.reduce_sum(tf.where(resting[:, :, None], y_bar, 0.0), axis=0)
            if self.time_gradient:
                t_bar -= tf.reduce_sum(tf.where(resting, save_rate, 0.0), axis=0)
        theta_bar, variables_bar = list(walk.theta_bar), list(walk.variables_bar)
        if hybrid:
            y0_bar, t_bar, theta_first, variables_first = plan.happenings.reverse_start(
                field, theta, terms, self.y0, y0_bar, t_bar, walk.count, self.told
            )
            theta_bar = [a + b for a, b in zip(theta_bar, theta_first, strict=True)]
            variables_bar = [a + b for a, b in zip(variables_bar, variables_first, strict=True)]
        if saves_bar is None:
            saves_bar = tf.zeros_like(terms.saves) if plan.saves else tf.zeros((0, 1), y0_bar.dtype)
        return (
            t_bar,
            walk.t_end_bar,
            saves_bar,
            y0_bar,
            theta_bar,
            variables_bar,
        )

    def _at_last(self, outcome, y_bar):
        """The cotangent of the last state: of the save points there, where they are its."""
        if self.plan.happenings is None:
            return tf.zeros_like(y_bar[0])
        last = self.terms.saves == outcome.control[T]
        return tf.reduce_sum(tf.where(last[:, :, None], y_bar, tf.zeros_like(y_bar)), axis=0)

    def turns(self, trail, walk, theta, y_bar, save_rate):
        """All turns of the loop backwards, one segment after the other.

        Args:
            trail: the `Trail`.
            walk: the `_Walk` at the end.
            theta: the differentiable tensors.
            y_bar: the cotangents of the states at the save points.
            save_rate: those of the save times, or `None`.

        Returns:
            The `_Walk` at the start.
        """
        if isinstance(trail.slots, tuple) and not trail.slots:
            return self._walk_back(trail.ring, trail.turns, walk, theta, y_bar, save_rate)
        last = trail.segments - 1
        positions = tf.range(self.checkpoints + 1) * trail.stride
        top = last // trail.stride

        def more(segment, *_):
            return segment >= 0

        def one_segment(segment, slots, positions, top, ring, turns, walk):
            state = self._restore(trail, segment, last, slots, positions, top, ring, turns, theta)
            slots, positions, top, ring, turns = state
            walk = self._walk_back(ring, turns, walk, theta, y_bar, save_rate)
            return segment - 1, slots, positions, top, ring, turns, walk

        loop = (last, trail.slots, positions, top, trail.ring, trail.turns, walk)
        return tf.while_loop(more, one_segment, loop)[-1]

    def _last_save(self, outcome):
        """Per row, the index of its last save point (NaN pads come after it)."""
        terms = self.terms
        present = tf.math.is_finite(terms.saves + tf.zeros_like(terms.t0))
        if self.plan.happenings is not None:
            # Those at the end are no part of any step.
            present &= terms.direction * terms.saves < terms.direction * outcome.control[T]
        return tf.reduce_sum(tf.cast(present, tf.int32), axis=0) - 1

    def _restore(self, trail, segment, last, slots, positions, top, ring, turns, theta):
        """Puts the records of `segment` into the ring, rerunning from the nearest slot."""
        plan, checkpoints = self.plan, self.checkpoints
        forward = self.turns_of(plan, self.field.bind(theta), self.terms)
        top = _top_slot(positions, top, segment)
        first = tf.where(segment == last, segment + 1, tf.gather(positions, top))
        gap = segment - tf.gather(positions, top)
        spacing = tf.maximum(1, -(-gap // tf.maximum(1, checkpoints - 1 - top)))
        carry = tf.nest.map_structure(lambda buffer: tf.gather(buffer, top), slots)
        origin = tf.gather(positions, top)

        def rerun(current, carry, slots, positions, top, ring, turns):
            offset = current - origin
            keep = (offset > 0) & (offset % spacing == 0) & (top < checkpoints - 1)
            top = top + tf.cast(keep, tf.int32)
            target = tf.where(keep, top, checkpoints)
            slots = tf.nest.map_structure(lambda b, v: write(b, target, v), slots, carry)
            positions = tf.tensor_scatter_nd_update(
                positions, [[target]], [tf.where(keep, current, positions[checkpoints])]
            )
            recorded = current % trail.stride == 0
            bits = tf.gather(trail.decisions, tf.where(recorded, current // trail.stride, 0))
            carry, ring, turns = forward.rerun(carry, ring, recorded, _unpack(bits, plan.segment))
            return current + 1, carry, slots, positions, top, ring, turns

        loop = (first, carry, slots, positions, top, ring, turns)
        _, _, slots, positions, top, ring, turns = tf.while_loop(
            lambda current, *_: current <= segment, rerun, loop
        )
        return slots, positions, top, ring, turns

    def _walk_back(self, ring, turns, walk, theta, y_bar, save_rate):
        """The vector-Jacobian products of one segment, last turn first."""

        def one_turn(turn, walk):
            record = tf.nest.map_structure(lambda buffer: tf.gather(buffer, turn), ring)
            step = self.plan.solver.taken(record.kind)
            times = record.times[0], record.times[-1]
            walk = self.reverse(step, *times, record.y, walk, theta, y_bar, save_rate, record)
            return turn - 1, walk

        return tf.while_loop(lambda turn, walk: turn >= 0, one_turn, (turns - 1, walk))[1]

    def reverse(self, step, t, t_next, y, walk, theta, y_bar, save_rate, record=None):
        """One turn backwards."""
        plan, terms = self.plan, self.terms
        dense_bar = None
        t_extra = t_next_extra = 0.0
        save, direct = walk.save, 0.0
        if plan.saves:
            save, direct, dense_bar, t_extra, t_next_extra = self._gather_saves(
                t, t_next, y, save, y_bar, save_rate
            )
        y1_bar, end_bar, count, more = walk.y_bar, walk.t_bar, walk.count, None
        field = self.field
        if plan.happenings is not None:
            field = field.driven_by(record.noise) if record.noise else field
            more = plan.happenings.reverse(
                plan, self.field, theta, record, walk.y_bar, walk.t_bar, walk.count, self.told
            )
            y1_bar, end_bar, count = more.y1, more.t_next, more.count
            dense_bar = more.dense if dense_bar is None else dense_bar + more.dense
            direct, t_extra = direct + more.y, t_extra + more.t
        t_bar, t_next_bar, y_before, theta_bar, variables_bar = step.step_vjp(
            field, t, t_next, y, theta, y1_bar, dense_bar, self.time_gradient
        )
        y_before += direct
        if more is not None:
            theta_bar = [a + b for a, b in zip(theta_bar, more.theta, strict=True)]
            variables_bar = [a + b for a, b in zip(variables_bar, more.variables, strict=True)]
        new = walk._replace(
            y_bar=y_before,
            save=save,
            count=count,
            theta_bar=[a + b for a, b in zip(walk.theta_bar, theta_bar, strict=True)],
            variables_bar=[a + b for a, b in zip(walk.variables_bar, variables_bar, strict=True)],
        )
        if not self.time_gradient:
            return new
        # The step keeps its size, so what moves its end moves its start, unless it was cut.
        at_end = end_bar + t_next_bar + t_next_extra
        cut = (t_next == terms.t_end) & (t_next != t)
        new = new._replace(t_end_bar=walk.t_end_bar + tf.where(cut, at_end, 0.0))
        if more is not None:
            cut |= record.notes[1] > 0
        return new._replace(t_bar=t_bar + t_extra + tf.where(cut, tf.zeros_like(at_end), at_end))

    def _gather_saves(self, t, t_next, y, save, y_bar, save_rate):
        """Cotangents that the save points inside this step send to its interpolant."""
        terms = self.terms
        degree = self.plan.solver.dense_degree()
        rows = tf.shape(y)[0]
        column = tf.range(rows)
        moved = t_next != t
        h = tf.where(moved, t_next - t, 1.0)
        shared = terms.saves.shape[1] == 1
        flat_saves = tf.reshape(terms.saves, [-1])
        flat_bar = tf.reshape(y_bar, (-1, y_bar.shape[2] or tf.shape(y_bar)[2]))
        flat_rate = None if save_rate is None else tf.reshape(save_rate, [-1])

        def time_of(save):
            index = tf.maximum(save, 0)
            return tf.gather(flat_saves, index if shared else index * rows + column)

        def inside(save):
            s, start = terms.direction * time_of(save), terms.direction * t
            return moved & (save >= 0) & (s > start if self.plan.happenings is None else s >= start)

        def take(save, active, direct, dense, t_extra, t_next_extra):
            theta = tf.where(active, (time_of(save) - t) / h, 0.0)
            flat = tf.maximum(save, 0) * rows + column
            bar = tf.where(active[:, None], tf.gather(flat_bar, flat), 0.0)
            direct += bar
            weighted, parts = bar, []
            for part in tf.split(dense, degree, axis=1):
                weighted = weighted * theta[:, None]
                parts.append(part + weighted)
            if flat_rate is not None:
                rate = tf.where(active, tf.gather(flat_rate, flat), 0.0)
                t_extra += rate * (theta - 1.0)
                t_next_extra -= rate * theta
            save -= tf.cast(active, tf.int32)
            return save, inside(save), direct, tf.concat(parts, 1), t_extra, t_next_extra

        zeros = tf.zeros_like(t)
        wide = tf.zeros_like(tf.tile(y, [1, degree]))
        loop = (save, inside(save), tf.zeros_like(y), wide, zeros, zeros)
        save, _, direct, dense, t_extra, t_next_extra = tf.while_loop(
            lambda save, active, *_: tf.reduce_any(active), take, loop
        )
        return save, direct, dense, t_extra, t_next_extra


class _BackwardAlone(Backward):
    """The same for a trajectory alone: a turn backwards is one kernel, save points included."""

    turns_of = _TurnsAlone

    def _walk_back(self, ring, turns, walk, theta, y_bar, save_rate):
        width = int(walk.y_bar.shape[1])
        alone = passing.Alone(self.plan, self.field.bind(theta), self.terms)
        columns = components.columns_of(self.field, walk.y_bar, theta)
        sent = None
        if self.plan.saves:
            # What the states at the save points, and their times, have sent.
            sent = y_bar[:, 0]
            if self.time_gradient:
                sent = tf.concat([sent, save_rate], axis=1)
            sent = tf.pad(sent, [[0, 1], [0, 0]])
        parts = [walk.y_bar[0], walk.t_bar, walk.t_end_bar, walk.t_next]
        parts += [tf.reshape(leaf, [-1]) for leaf in walk.theta_bar]
        loop = (turns - 1, tf.concat(parts, axis=0))

        def one_turn(turn, block):
            before, after = passing.row_of(ring, turn), passing.row_of(ring, turn + 1)
            numbers = self._reverse_alone(alone, columns, before, after, sent, block, theta)
            return turn - 1, tf.stack(components.together(numbers))

        _, block = tf.while_loop(lambda turn, _: turn >= 0, one_turn, loop)
        y_bar, t_bar, t_end_bar, t_next, totals = tf.split(block, [width, 1, 1, 1, -1])
        return walk._replace(
            y_bar=y_bar[None],
            t_bar=t_bar,
            t_end_bar=t_end_bar,
            t_next=t_next,
            theta_bar=columns.join(tf.unstack(totals)),
        )

    def _reverse_alone(self, alone, columns, before, after, sent, block, theta):
        """One turn backwards, from the records before and after it; all in numbers."""
        width = self.field.size
        t, number, *ys = before
        t_after, number_after, *_ = after
        took, moved = number_after != number, t_after != t
        *y_bar, later, end, step_end = tf.unstack(block[: width + 3])
        # A step that is taken once more ends where the one that moves on does.
        step_end = tf.where(moved, t_after, step_end)
        t_next = tf.where(moved | took, step_end, t)
        zero = tf.zeros_like(t)
        # Where it did not move on, the step was taken for its save points only.
        given, waiting = [tf.where(moved, x, zero) for x in y_bar], tf.where(moved, later, zero)
        direct, dense, times = [a - b for a, b in zip(y_bar, given, strict=True)], [], [zero, zero]
        if self.plan.saves:
            add, dense, times = self._saved_alone(alone, t, t_next, number, took, sent)
            direct = [a + b for a, b in zip(direct, add, strict=True)]
        pulled = self.plan.solver.pull_by_components(
            self.field, columns, t, t_next, ys, columns.parameters(theta), [given, *dense],
            self.time_gradient,
        )  # fmt: skip
        step_times, y_bar, totals = pulled
        y_bar = [a + b for a, b in zip(y_bar, direct, strict=True)]
        totals = [a + b for a, b in zip(tf.unstack(block[width + 3 :]), totals, strict=True)]
        if self.time_gradient:
            # The step keeps its size, so what moves its end moves its start, unless it was cut.
            at_end = waiting + step_times[1] + times[1]
            cut = (t_next == self.terms.t_end[0]) & (t_next != t)
            end += tf.where(cut, at_end, zero)
            later += step_times[0] + times[0] + tf.where(cut, zero, at_end) - waiting
        return [*y_bar, later, end, step_end, *totals]

    def _saved_alone(self, alone, t, t_next, number, took, sent):
        """What a save point sends to its step: to the start, the interpolant, and the times."""
        bar = passing.row_of(sent, tf.cast(number, tf.int32))
        zero = tf.zeros_like(t)
        bar = [tf.where(took, x, zero) for x in bar]
        inverse = 1.0 / tf.where(t_next != t, t_next - t, zero + 1.0)
        fraction = tf.where(took, (alone.time_of(number) - t) * inverse, zero)
        times = [zero, zero]
        if self.time_gradient:
            rate = bar.pop()
            times = [rate * (fraction - 1.0), -rate * fraction]
        dense = [[x * fraction for x in bar]]
        for _ in range(self.plan.solver.dense_degree() - 1):
            dense.append([x * fraction for x in dense[-1]])
        return bar, dense, times


class _Walk(NamedTuple):
    """The cotangents on the way back, and per row the next save point and event to meet.

    `t_next` is where the step after ended, for a trajectory alone.
    """

    y_bar: tf.Tensor
    t_bar: tf.Tensor
    t_end_bar: tf.Tensor
    theta_bar: list
    variables_bar: list
    save: tf.Tensor
    count: tf.Tensor
    t_next: tf.Tensor


def _top_slot(positions, top, segment):
    """The last slot, not above `top`, whose segment is not after `segment`."""
    index = tf.range(positions.shape[0])
    usable = (index <= top) & (positions <= segment)
    return tf.reduce_max(tf.where(usable, index, 0))
