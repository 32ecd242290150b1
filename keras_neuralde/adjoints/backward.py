"""The backward pass of the discrete adjoint: from cotangents to cotangents.

Steps are walked backwards one turn of the loop at a time, all rows together; a rejected or resting
turn has length zero, so that its vector-Jacobian product is the identity and no masks are needed.
One segment at a time is rerun from the nearest slot of the trail, leaving further carries in the
slots that have become free. Where all turns are known to fit into one segment there is nothing to
rerun, and no slots are kept.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_neuralde.adjoints.trail import Turns, unpack
from keras_neuralde.integrate import T
from keras_neuralde.save_points import at_start, write_all


class Backward:
    """The backward pass, as one callable from cotangents to cotangents."""

    turns_of: Any = Turns

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
                # Slopes where a trajectory has failed may be anything.
                save_rate = tf.reduce_sum(tf.math.multiply_no_nan(outcome.slopes, y_bar), axis=-1)
                saves_bar = save_rate
                if terms.saves.shape[1] == 1 and y_bar.shape[1] != 1:
                    saves_bar = tf.reduce_sum(saves_bar, axis=1, keepdims=True)
        zeros = tf.zeros_like(terms.t0)
        walk = Walk(
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
            walk: the `Walk` at the end.
            theta: the differentiable tensors.
            y_bar: the cotangents of the states at the save points.
            save_rate: those of the save times, or `None`.

        Returns:
            The `Walk` at the start.
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
        top = top_slot(positions, top, segment)
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
            slots = write_all(slots, target, carry)
            positions = tf.tensor_scatter_nd_update(
                positions, [[target]], [tf.where(keep, current, positions[checkpoints])]
            )
            recorded = current % trail.stride == 0
            bits = tf.gather(trail.decisions, tf.where(recorded, current // trail.stride, 0))
            carry, ring, turns = forward.rerun(carry, ring, recorded, unpack(bits, plan.segment))
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


class Walk(NamedTuple):
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


def top_slot(positions, top, segment):
    """The last slot, not above `top`, whose segment is not after `segment`."""
    index = tf.range(positions.shape[0])
    usable = (index <= top) & (positions <= segment)
    return tf.reduce_max(tf.where(usable, index, 0))
