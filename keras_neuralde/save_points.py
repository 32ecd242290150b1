"""Save points: the states there, from the records of steps or from the steps themselves.

Nothing here knows how steps are chosen; save points that are written while they are have no need of
it (see `passing`). A segment of the loop leaves its records in a ring; what it
adds to the outputs is interpolated from these, or computed by taking the steps once more.
"""

import dataclasses
import math

import tensorflow as tf

from keras_neuralde import components
from keras_neuralde.interpolation import Interpolant

# Save points that are interpolated in one piece.
PIECE = 32
# The largest array, in bytes, of a loop body whose kernels XLA runs one after the other, at half
# the cost of finding out which of them could run side by side.
_SEQUENTIAL = 512
# What the records of a segment may take.
_RING_BYTES = 1 << 25


def write(buffer, index, value):
    """`buffer` with row `index`, a scalar or `(1, 1)`, replaced."""
    if 0 in value.shape.as_list():
        return buffer
    place = index if index.shape.rank == 2 else tf.reshape(index, [1, 1])
    return tf.tensor_scatter_nd_update(buffer, place, tf.expand_dims(value, 0))


def write_all(buffers, index, values):
    """`write` for nests of buffers and values."""
    place = tf.reshape(index, [1, 1])
    return tf.nest.map_structure(lambda buffer, value: write(buffer, place, value), buffers, values)


def at_start(terms):
    """Which save points are the start itself, `(num_times, rows)` booleans."""
    return terms.direction * terms.saves <= terms.direction * terms.t0


def first_outputs(plan, g, y0, terms):
    """The save points before the first step: the start where it is listed, NaN elsewhere."""
    start = at_start(terms)[:, :, None]
    y = tf.where(start, y0, tf.constant(float("nan"), y0.dtype))
    if not plan.save_slopes:
        return y, ()
    return y, tf.where(start, g(terms.t0, y0), tf.zeros_like(y))


def read_saves(plan, terms, y0, ring, turns):
    """The states at the save points, `(num_times, rows, width)`, from the record of all steps."""
    steps = Interpolant(ring, turns, terms.direction, plan.solver.dense_degree())
    s = terms.direction * terms.saves
    inside = (s >= steps.start) & (s <= steps.end) & (steps.end > steps.start)
    value, _ = steps(terms.saves, inside, from_start=True)
    resting = tf.where(at_start(terms)[:, :, None], y0, tf.constant(float("nan"), y0.dtype))
    return tf.where(inside[:, :, None], value, resting)


def collect(plan, g, terms, ring, turns, outputs):
    """The outputs with what a segment adds: save points, and what happened."""
    if plan.repeats:
        return _repeat(plan, g, terms, ring, turns, outputs)
    if plan.happenings is None:
        return flush(plan, terms, ring, turns, outputs) if plan.saves else outputs
    saved, log = outputs
    saved = flush(plan, terms, ring, turns, saved) if plan.saves else saved
    return saved, plan.happenings.record(log, ring, turns)


def flush(plan, terms, ring, turns, outputs):
    """Interpolates the save points that the ring's steps cover.

    Args:
        plan: the `Plan`.
        terms: the `Terms`.
        ring: the segment's records.
        turns: how many of them are valid.
        outputs: `(y, slopes)` so far, `(num_times, rows, width)`.

    Returns:
        The outputs with the covered save points filled in.
    """
    count = terms.saves.shape[0]
    # Where the state may jump, a save point belongs to the step that starts there.
    right = plan.happenings is not None
    steps = Interpolant(ring, turns, terms.direction, plan.solver.dense_degree(), right)
    if count is None or count <= PIECE:
        return _fill(plan, steps, terms.saves, outputs)
    # Only the chunks that some row has reached and not every row has left behind.
    s = terms.direction * terms.saves
    left = tf.reduce_all(s < steps.start if right else s <= steps.start, axis=1)
    reached = tf.reduce_any(s <= steps.end, axis=1)
    first = tf.reduce_sum(tf.cast(left, tf.int32)) // PIECE
    last = -(-tf.reduce_sum(tf.cast(reached, tf.int32)) // PIECE)

    def one_chunk(chunk, outputs):
        # The last chunk reaches back over points already done rather than past the end.
        begin = tf.minimum(chunk * PIECE, count - PIECE)
        at = begin + tf.range(PIECE)
        part = tf.nest.map_structure(lambda full: tf.gather(full, at), outputs)
        part = _fill(plan, steps, tf.gather(terms.saves, at), part)
        outputs = tf.nest.map_structure(
            lambda full, piece: tf.tensor_scatter_nd_update(full, at[:, None], piece), outputs, part
        )
        return chunk + 1, outputs

    loop = (first, outputs)
    return tf.while_loop(lambda chunk, _: chunk < last, one_chunk, loop)[1]


def repeating(plan, field, y0, saves):
    """The plan, with the steps to save points taken once more where that costs least.

    Coefficients of an interpolant are a multiple of the state to write and to read, for every
    step; where the field is cheap arithmetic and XLA makes one kernel of a step, doing it again
    costs less, and steps without a save point inside leave nothing but their start.

    Args:
        plan: the `Plan`.
        field: the field.
        y0: `(rows, width)`.
        saves: the save points, `(num_times, rows)` or `(num_times, 1)`.
    """
    if not plan.saves or plan.happenings is not None or not plan.solver.repeatable:
        return plan
    if not getattr(field, "is_arithmetic", False) or not components.is_compiled():
        return plan
    # A row alone that cannot write them in passing is interpolated faster at many points at once.
    if y0.shape[0] == 1 and not (saves.shape[0] and saves.shape[0] <= PIECE):
        return plan
    return dataclasses.replace(plan, repeats=True, segment=segment_of_memory(y0, 0))


def segment_of_memory(y0, degree):
    """Turns per segment of a solve without a trail, a power of two: what memory allows.

    Args:
        y0: `(rows, width)`.
        degree: how many interpolation coefficients of the size of a state a turn leaves behind.
    """
    rows, width = y0.shape
    if rows and width:
        fitting = _SEQUENTIAL // (rows * width * max(1, degree) * y0.dtype.size)
        if fitting >= 4:
            return 1 << int(math.log2(min(fitting, 16)))
    row_bytes = (rows or 256) * (2 + (width or 256) * (1 + degree)) * 8
    return 1 << max(4, min(10, int(math.log2(max(1, _RING_BYTES // row_bytes)))))


def taken_apart(outputs):
    """Outputs as arrays of one component each, into which XLA writes without mixing them."""
    return tf.nest.map_structure(lambda full: tuple(components.split(full)), outputs)


def put_together(outputs):
    """The inverse of `taken_apart`."""
    return tuple(components.join(parts) if parts else () for parts in outputs)


def _repeat(plan, g, terms, ring, turns, outputs):
    """`flush` for a plan that repeats steps: one save point after the other."""
    steps = Interpolant(ring, turns, terms.direction, plan.solver.dense_degree())
    s = terms.direction * terms.saves
    left = tf.reduce_all(s <= steps.start, axis=1)
    reached = tf.reduce_any(s <= steps.end, axis=1)
    first, last = (tf.reduce_sum(tf.cast(flags, tf.int32)) for flags in (left, reached))
    separate = isinstance(outputs[0], tuple)

    def find(index):
        return steps.find(tf.gather(terms.saves, tf.minimum(index, tf.shape(s)[0] - 1)))

    # The place of the next step is found a turn before: what is read from it three times is then
    # searched once.
    def one_save(index, place, outputs):
        time = tf.gather(terms.saves, index)
        covered = steps.covers(time)
        t, t_next, y = steps.step_at(place)
        t_next = tf.where(covered, t_next, t)
        h = tf.where(covered, t_next - t, 1.0)
        value, slope = plan.solver.inside(g, t, t_next, y, tf.where(covered, time - t, 0.0) / h)
        found = (value, slope / h[:, None] if plan.save_slopes else ())
        found = taken_apart(found) if separate else found
        column = covered if separate else covered[:, None]
        outputs = tf.nest.map_structure(
            lambda full, new: write(full, index, tf.where(column, new, tf.gather(full, index))),
            outputs, found,
        )  # fmt: skip
        return index + 1, find(index + 1), outputs

    loop = (first, find(first), outputs)
    return tf.while_loop(lambda index, *_: index < last, one_save, loop)[2]


def _fill(plan, steps, saves, outputs):
    """`outputs` with the states at `saves` where the steps cover them."""
    covered = steps.covers(saves)
    value, slope = steps(saves, covered)
    covered = covered[:, :, None]
    slopes = tf.where(covered, slope, outputs[1]) if plan.save_slopes else ()
    return tf.where(covered, value, outputs[0]), slopes
