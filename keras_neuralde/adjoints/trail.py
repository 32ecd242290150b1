"""The forward pass of the discrete adjoint: the integration, and the trail that it leaves.

Memory is bounded. The carry at the start of segments is kept in `checkpoints` slots; when they are
full, every second one is dropped and the spacing doubles. What was decided (accept or reject, what
happened) is kept as bits, so that a segment can be rerun as it was.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_neuralde import components
from keras_neuralde.integrate import any_running, begin, empty_ring, finish, run_segment
from keras_neuralde.save_points import collect, put_together, taken_apart, write, write_all

_BITS = 16


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


class Turns:
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
        times = tf.unstack(ring.times, axis=1)
        accepted = tf.not_equal(times[0], times[-1])
        flags = [accepted & tf.expand_dims(tf.range(self.plan.segment) < turns, 1)]
        if self.plan.switches:
            flags.append(ring.kind > 0.0)
        if self.plan.happenings is not None:
            flags += tf.unstack(ring.fired > 0, num=len(self.plan.happenings.channels), axis=1)
        return flags


def forward(turns, y0, checkpoints):
    """The integration, leaving a `Trail`.

    Args:
        turns: the `Turns`.
        y0: `(rows, width)`.
        checkpoints: how many carries are kept.
    """
    carry, ring, outputs = turns.start(y0)
    slots = tf.nest.map_structure(
        lambda leaf: tf.zeros(tf.concat([[checkpoints + 1], tf.shape(leaf)], 0), leaf.dtype), carry
    )
    zero = tf.constant(0)
    words = pack(turns.flags(ring, zero))
    decisions = tf.zeros(tf.concat([[checkpoints + 1], tf.shape(words)], 0), tf.int32)
    trail = Trail(ring, zero, zero, slots, decisions, tf.constant(1))

    def turn_segment(carry, trail, outputs):
        trail = _make_room(trail, checkpoints)
        due = trail.segments % trail.stride == 0
        slot = tf.where(due, trail.segments // trail.stride, checkpoints)
        slots = write_all(trail.slots, slot, carry)
        carry, ring, count, outputs = turns.run(carry, trail.ring, outputs)
        decisions = write(trail.decisions, slot, pack(turns.flags(ring, count)))
        trail = Trail(ring, count, trail.segments + 1, slots, decisions, trail.stride)
        return carry, trail, outputs

    carry, trail, outputs = tf.while_loop(
        lambda carry, *_: turns.is_running(carry), turn_segment, (carry, trail, outputs)
    )
    return turns.end(carry, outputs), trail


def forward_at_once(turns, y0, checkpoints):
    """`forward` for a number of turns that is known to fit into one segment."""
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


def pack(flags):
    """A list of `(size, rows)` booleans as bits, `(len(flags) * words, rows)`."""
    size = flags[0].shape[0]
    words = -(-size // _BITS)
    flags = tf.cast(tf.stack(flags), tf.int32)
    flags = tf.pad(flags, [[0, 0], [0, words * _BITS - size], [0, 0]])
    bits = tf.reshape(flags, (flags.shape[0] * words, _BITS, -1)) * (2 ** tf.range(_BITS))[:, None]
    return tf.reduce_sum(bits, axis=1)


def unpack(bits, size):
    """The inverse of `pack`."""
    shifted = bits[:, None, :] // (2 ** tf.range(_BITS))[:, None]
    words = -(-size // _BITS)
    flags = tf.reshape(shifted % 2, (bits.shape[0] // words, words * _BITS, -1))
    return tf.unstack(tf.equal(flags[:, :size], 1))
