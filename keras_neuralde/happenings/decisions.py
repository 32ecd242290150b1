"""What happens between two steps: the one place that decides.

After an accepted step continuous events are roots of their conditions on the step's interpolant,
and cut the step; preset times and the times of jumps are known beforehand, and steps end there;
other conditions are looked at where a step ends. Then the affects are applied, in the order of the
channels where several happen at one time.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_neuralde.brownian import Increment
from keras_neuralde.events import DISCRETE, PRESET, RATE, ROOT
from keras_neuralde.happenings.affects import Affects, number_of
from keras_neuralde.happenings.draws import Draws
from keras_neuralde.happenings.records import HybridRing, Logbook, Memory
from keras_neuralde.happenings.reverse import Reverse
from keras_neuralde.happenings.roots import Inside, Roots
from keras_neuralde.solution import Status


class Found(NamedTuple):
    """The first roots of a step.

    Attributes:
        theta: `(channels, rows)`, the share of the step where each channel happens; infinite where
            it does not.
        ceased: `(rows,)`, where a condition is not finite any more; infinite where they are.
        piled: `(rows,)` booleans, whether an event happens again at the time where it has just
            happened.
        nearest: `(channels, rows)`, for a root that is known to have happened and is not found: the
            end of the step where its condition is nearer to zero.
    """

    theta: tf.Tensor
    ceased: tf.Tensor
    piled: tf.Tensor
    nearest: tf.Tensor


class Happenings:
    """The channels of a solve.

    Args:
        channels: a list of `Channel`.
        direction: `(rows,)`.
        seed: `(2,)` or `(rows, 2)` int32, or `None` where nothing is random.
        trajectory: `(rows,)` int32.
    """

    def __init__(self, channels, direction, seed=None, trajectory=None):
        self.channels = tuple(channels)
        self.direction = direction
        self._draws = Draws(seed, trajectory)
        self._affects = Affects(self.channels, self._draws)
        self._roots = Roots(self.channels, self._draws)
        self._logbook = Logbook(self.channels)
        self._reverse = Reverse(self.channels, self._affects, self._logbook)
        self.roots = [e for e, c in enumerate(self.channels) if c.kind == ROOT]
        self.stops = [e for e, c in enumerate(self.channels) if c.kind in (PRESET, RATE)]

    @property
    def moves_times(self):
        """Whether times depend on what gradients are asked for."""
        return any(c.kind == ROOT and not c.held for c in self.channels)

    @property
    def functions(self):
        """All lifted functions."""
        return [function for channel in self.channels for function in channel.functions]

    def begin(self, plan, g, terms, carry):
        """What happens at the start, before the first step.

        Returns:
            The carry with its `Memory`, and the `Log`.
        """
        t, y = carry.control[0], carry.y
        fired = self._fired_at_start(terms, t)
        running = carry.control[4] < 0.0
        fired = tf.where(running, fired, tf.zeros_like(fired))
        number = tf.zeros_like(t, tf.int32)
        happened = tf.reduce_any(fired > 0, axis=0)
        y1, before = self._affects.apply(g, t, y, fired, number)
        state = carry.solver_state
        if plan.solver.carries_slope and any(c.kind == PRESET for c in self.channels):
            state = tf.where(happened[:, None], plan.solver.init(g, t, y1), state)
        due, pace, status = self._next_due(g, t, y1, number + 1, carry.control[4])
        status = self._ended(fired, y1, status)
        log = self._logbook.empty(t, y)
        log = self._logbook.write(log, t[None], fired[None], before[None], tf.constant(1))
        control = tf.concat([carry.control[:4], status[None], carry.control[5:]], 0)
        noise = g.begin_noise() if plan.solver.stochastic else ()
        memory = Memory(due, pace, fired, fired, number + 1, noise)
        return carry._replace(y=y1, solver_state=state, control=control, memory=memory), log

    def _fired_at_start(self, terms, t):
        parts = []
        for channel in self.channels:
            now = tf.zeros_like(t, tf.int32)
            if channel.kind == PRESET:
                now += tf.reduce_sum(tf.cast(channel.times == t, tf.int32), axis=0)
                now = tf.minimum(now, 1)
            parts.append(now)
        return tf.stack(parts)

    def clip(self, plan, terms, t, t_next, memory):
        """The end of a proposed step, or the next time that is known if it comes before."""
        if not self.stops:
            return t_next
        due = self.direction * tf.reduce_min(memory.due, axis=0)
        reach = 1.01 if plan.adaptive else 1.0
        near = tf.abs(due - t) <= reach * tf.abs(t_next - t)
        near &= self.direction * due <= self.direction * terms.t_end
        return tf.where(tf.math.is_finite(due) & near, due, t_next)

    def empty_ring(self, plan, carry, size):
        """A ring of zeros."""
        rows, width = tf.unstack(tf.shape(carry.y))
        dtype, n = carry.y.dtype, len(self.channels)
        degree = plan.solver.dense_degree()
        noise = carry.memory.noise
        if noise:
            components = noise.w.shape[0]
            noise = Increment(*(tf.zeros((size, rows, components), dtype) for _ in range(2)))
        return HybridRing(
            tf.zeros((size, 3, rows), dtype),
            tf.zeros((size, rows, width), dtype),
            tf.zeros((size, rows, degree * width), dtype),
            tf.zeros((size, n, rows), tf.int32),
            tf.zeros((size, 3, rows), tf.int32),
            tf.zeros((size, n, rows, width), dtype),
            tf.zeros((size, rows), dtype) if plan.switches else (),
            noise,
        )

    def settle(self, plan, g, terms, before, after, record, forced=None, noise=()):
        """Decides what happened during a turn.

        Args:
            plan: the `Plan`.
            g: the field.
            terms: the `Terms`.
            before: the `Carry` before the turn.
            after: the `Carry` after it, from `integrate.attempt`.
            record: the turn's `Ring`.
            forced: `(known, fired)`: when a recorded turn is repeated, its `(channels, rows)`
                booleans replace the decision what happened where `known`.
            noise: what `HybridRing.noise` is.

        Returns:
            The new carry and the turn's `HybridRing`.
        """
        t, t_next = tf.unstack(record.times)
        moved = t != t_next
        memory = before.memory
        inside = Inside(t, t_next, record.y, record.dense, plan.solver.dense_degree())
        found = self._find(g, inside, moved, memory, after.y)
        if forced is not None:
            found = self._recalled(found, *forced)
        first = tf.reduce_min(found.theta, axis=0)
        happened = moved & (first <= 1.0)
        eps = float(np.finfo(t.dtype.as_numpy_dtype).eps)
        apart = (found.theta - first) * tf.abs(t_next - t)
        together = happened & (apart <= 4.0 * eps * (tf.abs(t_next) + tf.abs(t)))
        stopped = happened & self._any(together, self.stops)
        rooted = happened & ~stopped & self._any(together, self.roots)
        t_stop = tf.where(rooted, inside.time(first), t_next)
        y_stop = tf.where(rooted[:, None], inside.state(first), after.y)
        status = after.control[4]
        together, status = self._thin(g, t_stop, y_stop, together, memory, status)
        if forced is not None:
            known, recorded = forced
            together = tf.where(known, recorded & happened, together)
        one = tf.ones_like(status)
        over = together & (memory.counts >= self._limits)
        together &= ~over
        fired = tf.cast(together, tf.int32)
        number = memory.number

        def act():
            y1, states = self._affects.apply(g, t_stop, y_stop, fired, number)
            state = tf.where(happened[:, None], plan.solver.init(g, t_stop, y1), after.solver_state)
            due, pace, new = self._next_due(g, t_stop, y1, number + 1, status)
            return (
                y1,
                states,
                state,
                tf.where(happened, due, memory.due),
                tf.where(happened, pace, memory.pace),
                tf.where(happened, new, status),
            )

        def rest():
            states = tf.zeros((len(self.channels), *tf.unstack(tf.shape(y_stop))), y_stop.dtype)
            return after.y, states, after.solver_state, memory.due, memory.pace, status

        y1, states, state, due, pace, status = tf.cond(tf.reduce_any(happened), act, rest)
        # A step that was cut has not reached the end.
        cut = rooted & (t_stop != terms.t_end) & (status == float(Status.SUCCESS))
        status = tf.where(cut, -tf.ones_like(status), status)
        status = self._ended(fired, y1, status, happened)
        piled = found.piled | tf.reduce_any(over, axis=0)
        status = tf.where(piled, float(Status.MAX_EVENTS) * one, status)
        # Behind what ended the step it does not matter.
        wrong = moved & (found.ceased <= tf.minimum(first, one))
        status = tf.where(wrong, float(Status.BAD_CONDITION) * one, status)
        # What it ended with is found at that time, and not at the end of the step.
        t_last = tf.where(wrong, inside.time(found.ceased), tf.where(found.piled, t, t_stop))
        control = tf.concat(
            [t_last[None], after.control[1:4], status[None], after.control[5:]], axis=0
        )
        memory = Memory(
            due,
            pace,
            tf.where(moved, fired, memory.fired),
            memory.counts + fired,
            number + tf.cast(happened, tf.int32),
            after.memory.noise,
        )
        root = self._cutter(found.theta, together)
        root = tf.where(rooted & self._any(together, self.roots), root, -tf.ones_like(root))
        pinned = moved & self._at_stop(t_next, before.memory)
        record = HybridRing(
            tf.stack([t, t_stop, t_next]), record.y, record.dense, fired,
            tf.stack([root, tf.cast(pinned, tf.int32), number]), states, record.kind,
            noise,
        )  # fmt: skip
        return after._replace(y=y1, solver_state=state, control=control, memory=memory), record

    def _any(self, flags, channels):
        if not channels:
            return tf.zeros_like(flags[0])
        return tf.reduce_any(tf.gather(flags, channels), axis=0)

    def _at_stop(self, t_next, memory):
        if not self.stops:
            return tf.zeros_like(t_next, tf.bool)
        return tf.reduce_any(self.direction * t_next == memory.due, axis=0)

    def _cutter(self, theta, together):
        """The channel whose root is the time of what happened."""
        if not self.roots:
            return tf.zeros_like(together[0], tf.int32)
        infinity = tf.constant(float("inf"), theta.dtype)
        candidates = tf.gather(tf.where(together, theta, infinity), self.roots)
        return tf.gather(
            tf.constant(self.roots), tf.argmin(candidates, axis=0, output_type=tf.int32)
        )

    @property
    def _limits(self):
        """How often each channel may happen, `(channels, 1)`."""

        def limit(channel):
            endless = channel.kind == PRESET or channel.terminal or channel.max_events is None
            return tf.int32.max if endless else channel.max_events

        return tf.constant([[limit(channel)] for channel in self.channels])

    def _ended(self, fired, y, status, happened=True):
        """The status after what happened: terminal events, bad states."""
        one = tf.ones_like(status)
        for e, channel in enumerate(self.channels):
            now = fired[e] > 0
            if channel.terminal:
                status = tf.where(now & (status < 0.0), float(Status.SUCCESS) * one, status)
        finite = tf.math.is_finite(tf.reduce_sum(y, axis=1))
        wrong = happened & ~finite & (status <= 0.0)
        return tf.where(wrong, float(Status.NON_FINITE) * one, status)

    def _thin(self, g, t, y, together, memory, status):
        """Which candidates of bounded rates are jumps (Lewis & Shedler, 1979).

        Each is kept with the probability rate / bound, the bound that of the candidate's making:
        what a function returns may have changed since.
        """
        kept, one = tf.unstack(together), tf.ones_like(status)
        for e, channel in enumerate(self.channels):
            if channel.kind != RATE or channel.bound is None:
                continue
            rate = number_of(g, channel.rate, t, y)
            bound = memory.pace[self.stops.index(e)]
            wrong = kept[e] & ~((rate >= 0.0) & (rate <= bound * (1.0 + 1e-6)))
            status = tf.where(wrong, float(Status.BAD_RATE) * one, status)
            share = self._draws.uniforms(e, memory.number, 2, t.dtype)[:, 1]
            kept[e] &= share * bound < rate
        return tf.stack(kept), status

    def _next_due(self, g, t, y, number, status):
        """Direction times the next known time of each such channel, and the rate of its making."""
        parts, paces, one = [], [], tf.ones_like(status)
        s = self.direction * t
        infinity = tf.constant(float("inf"), t.dtype)
        for e in self.stops:
            channel = self.channels[e]
            if channel.kind == PRESET:
                ahead = self.direction * channel.times
                ahead = tf.where(ahead > s, ahead, infinity)
                parts.append(tf.reduce_min(ahead, axis=0) + tf.zeros_like(s))
                paces.append(tf.zeros_like(s))
                continue
            rate = number_of(g, channel.bound or channel.rate, t, y)
            wrong = ~((rate >= 0.0) & tf.math.is_finite(rate)) & (status < 0.0)
            status = tf.where(wrong, float(Status.BAD_RATE) * one, status)
            positive = rate > 0.0
            later = self._draws.after(s, tf.where(positive, rate, one), e, number)
            parts.append(tf.where(positive, later, infinity))
            paces.append(rate)
        if not parts:
            none = tf.zeros_like(t)[None]
            return infinity + none, none, status
        found = tf.stack(parts), tf.stack(paces)
        return *map(tf.stop_gradient, found), status

    def _find(self, g, inside, moved, memory, y1):
        """Where in the step each channel happens first."""
        infinity = tf.constant(float("inf"), y1.dtype)
        theta = [infinity + tf.zeros_like(inside.t) for _ in self.channels]
        nearest, ceased, piled = list(theta), theta[0], tf.zeros_like(moved)
        if self.roots:
            crossings = self._roots.first(g, inside, moved, memory)
            ceased, piled = tf.reduce_min(crossings.ceased, axis=0), crossings.piled
            for place, e in enumerate(self.roots):
                theta[e], nearest[e] = crossings.theta[place], crossings.nearest[place]
        for place, e in enumerate(self.stops):
            due = moved & (self.direction * inside.t_next == memory.due[place])
            theta[e] = tf.where(due, tf.ones_like(infinity), infinity)
        for e, channel in enumerate(self.channels):
            if channel.kind == DISCRETE:
                met = g.evaluate(channel.condition, inside.t_next, y1)
                met = moved & tf.reshape(met, [y1.shape[0] or -1])
                theta[e] = tf.where(met, tf.ones_like(infinity), infinity)
        return Found(tf.stack(theta), ceased, piled, tf.stack(nearest))

    def _recalled(self, found, known, fired):
        """What was found, with what happened taken from a record where it is `known`.

        A step that is computed again may differ in the last digits, and then a condition may change
        its sign on the other side of the step's end.
        """
        infinity = tf.constant(float("inf"), found.theta.dtype)
        parts = []
        for e, channel in enumerate(self.channels):
            theta = found.theta[e]
            if channel.kind == ROOT:
                there = tf.where(tf.math.is_finite(theta), theta, found.nearest[e])
            else:
                there = tf.ones_like(theta)
            # Candidates of a bounded rate came at a known time, whether they were jumps or not.
            other = theta if channel.bound is not None else infinity
            parts.append(tf.where(known, tf.where(fired[e], there, other), theta))
        return found._replace(theta=tf.stack(parts))

    def record(self, log, ring, turns):
        """The log with what happened in the first `turns` records of a ring."""
        return self._logbook.write(log, ring.times[:, 1], ring.fired, ring.before, turns)

    def entries_of(self, log, rows, width):
        """See `Logbook.read`."""
        return self._logbook.read(log, rows, width)

    def reverse(self, plan, field, theta, record, y_bar, t_bar, count, told):
        """See `Reverse.turn`."""
        return self._reverse.turn(plan, field, theta, record, y_bar, t_bar, count, told)

    def reverse_start(self, field, theta, terms, y0, y_bar, t_bar, count, told):
        """See `Reverse.start`."""
        t = terms.t0
        fired = tf.where(terms.t_end != t, self._fired_at_start(terms, t), 0)
        return self._reverse.start(field, theta, t, y0, fired, y_bar, t_bar, count, told)
