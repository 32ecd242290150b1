"""What happens between two steps: roots, preset times, conditions and jumps, and their affects.

After an accepted step one place decides. Continuous events are roots of their conditions on the
step's interpolant, and cut the step; preset times and the times of jumps are known beforehand, and
steps end there; other conditions are looked at where a step ends. Then the affects are applied, in
the order of the channels where several happen at one time.

The derivative of an event is the implicit function theorem on the interpolant. With the state
Y(t), inside the step, the root t* of c(t*, Y(t*), p) = 0 moves by

    dt* = -(c_y · dY + c_p · dp) / ċ,    ċ = c_t + c_y · Y'(t*),

where dY is the change of the interpolant at a fixed time (Rozenvasser, "General sensitivity
equations of discontinuous systems", Automation and Remote Control 28, 1967). The state after the
event is the affect A(t*, Y(t*), p), and the steps that follow start at t*.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_neuralde.brownian import philox
from keras_neuralde.events import DISCRETE, PRESET, RATE, ROOT
from keras_neuralde.interpolation import horner
from keras_neuralde.solution import Status
from keras_neuralde.solvers.base import pull_back

# Points of a step at which the conditions are looked at.
_PROBES = 8
_MOST_HALVINGS = 60
_MOST_REFINEMENTS = 200
# In the counters of random numbers this word stands where Brownian paths have a component.
_WORD = 0xFFFFFFFF


@dataclasses.dataclass(frozen=True)
class Channel:
    """One thing that can happen, with its traced functions.

    Attributes:
        kind: one of the kinds of `events`.
        affect: `captures.LiftedFunction` of `affect(t, y, p)`, or `affect(t, y, u, p)` with uniform
            numbers u where `uniforms` is positive; `None` leaves the state as it is.
        condition: the same of the condition of a root or a discrete event.
        times: `(n, rows)` or `(n, 1)`, of a preset event; NaN pads.
        rate: the lifted rate of a jump whose times are drawn.
        bound: the lifted bound of a rate that changes between jumps; `None` for a rate that does
            not.
        direction: of the crossings that count: -1, 0 or +1.
        terminal: whether the trajectory ends here.
        max_events: how often it may happen.
        uniforms: how many uniform numbers the affect reads.
        held: whether the time of a root is a constant in gradients.
        recorded: whether it is one of the user's events.
        waits: whether the root is where the condition reaches an exponential random number.
    """

    kind: str
    affect: Any = None
    condition: Any = None
    times: Any = None
    rate: Any = None
    bound: Any = None
    direction: int = 0
    terminal: bool = False
    max_events: int | None = None
    uniforms: int = 0
    held: bool = False
    recorded: bool = True
    waits: bool = False

    @property
    def functions(self):
        """The lifted functions."""
        return [f for f in (self.affect, self.condition, self.rate, self.bound) if f is not None]


class Memory(NamedTuple):
    """What one turn hands to the next about what happened.

    Attributes:
        due: `(stops, rows)`, direction times the next time of the channels whose times are known.
        fired: `(channels, rows)` int32, which channels happened at the end of the last step.
        counts: the same, how often each happened.
        number: `(rows,)` int32, how often anything did: the counter of random numbers.
    """

    due: tf.Tensor
    fired: tf.Tensor
    counts: tf.Tensor
    number: tf.Tensor


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
        kind: an empty tuple: all steps are of one kind.
    """

    times: tf.Tensor
    y: tf.Tensor
    dense: tf.Tensor
    fired: tf.Tensor
    notes: tf.Tensor
    before: tf.Tensor
    kind: tuple = ()


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


class Found(NamedTuple):
    """The first roots of a step.

    Attributes:
        theta: `(channels, rows)`, the share of the step where each channel happens; infinite where
            it does not.
        finite: `(rows,)` booleans, whether the conditions were.
        piled: `(rows,)` booleans, whether an event happens again at the time where it has just
            happened.
    """

    theta: tf.Tensor
    finite: tf.Tensor
    piled: tf.Tensor


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
        self._seed, self._trajectory = seed, trajectory
        self.roots = [e for e, c in enumerate(self.channels) if c.kind == ROOT]
        self.stops = [e for e, c in enumerate(self.channels) if c.kind in (PRESET, RATE)]
        self.entries = max(1, sum(c.max_events for c in self.channels if c.recorded))

    @property
    def moves_times(self):
        """Whether times depend on what gradients are asked for."""
        return any(c.kind == ROOT and not c.held for c in self.channels)

    @property
    def functions(self):
        """All lifted functions."""
        return [function for channel in self.channels for function in channel.functions]

    # --- random numbers -----------------------------------------------------------------------

    def uniforms(self, channel, number, count, dtype):
        """Uniform numbers of a channel, `(rows, count)`, each row's from its own counter."""
        seed = tf.transpose(tf.bitcast(tf.reshape(self._seed, (-1, 2)), tf.uint32))
        number, trajectory = (tf.bitcast(x, tf.uint32) for x in (number, self._trajectory))
        zero = tf.zeros_like(number)
        key = seed[0] + zero, seed[1] + zero
        words: list = []
        for block in range(-(-count // 2)):
            place = zero + np.uint32(4096 * channel + block)
            counter = (
                number,
                place,
                zero + np.uint32(_WORD),
                tf.bitcast(self._trajectory, tf.uint32),
            )
            key = seed[0] + zero, seed[1] + zero
            bits = philox(key, counter)
            words += [_uniform(bits[0], bits[1], dtype), _uniform(bits[2], bits[3], dtype)]
        return tf.stop_gradient(tf.stack(words[:count], axis=1))

    # --- going forwards -----------------------------------------------------------------------

    def begin(self, plan, g, terms, carry):
        """What happens at the start, before the first step.

        Returns:
            The carry with its `Memory`, and the `Log`.
        """
        t, y = carry.control[0], carry.y
        rows, width = tf.unstack(tf.shape(y))
        none = tf.zeros((len(self.channels), rows), tf.int32)
        fired = self._fired_at_start(terms, t)
        running = carry.control[4] < 0.0
        fired = tf.where(running, fired, none)
        number = tf.zeros_like(t, tf.int32)
        happened = tf.reduce_any(fired > 0, axis=0)
        y1, before = self.apply(g, t, y, fired, number)
        state = carry.solver_state
        if plan.solver.carries_slope and any(c.kind == PRESET for c in self.channels):
            state = tf.where(happened[:, None], plan.solver.init(g, t, y1), state)
        due, status = self._next_due(g, t, y1, number + 1, carry.control[4])
        status = self._ended(fired, fired, y1, status)
        size = self.entries + 1
        nan = tf.constant(float("nan"), y.dtype)
        log = Log(
            tf.fill([size * rows], nan), tf.fill([size * rows, width], nan),
            tf.fill([size * rows], -1), tf.zeros_like(number),
        )  # fmt: skip
        log = self._write(log, t[None], fired[None], before[None], tf.constant(1))
        control = tf.concat([carry.control[:4], status[None], carry.control[5:]], 0)
        memory = Memory(due, fired, fired, number + 1)
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
        return HybridRing(
            tf.zeros((size, 3, rows), dtype),
            tf.zeros((size, rows, width), dtype),
            tf.zeros((size, rows, degree * width), dtype),
            tf.zeros((size, n, rows), tf.int32),
            tf.zeros((size, 3, rows), tf.int32),
            tf.zeros((size, n, rows, width), dtype),
        )

    def settle(self, plan, g, terms, before, after, record):
        """Decides what happened during a turn.

        Args:
            plan: the `Plan`.
            g: the field.
            terms: the `Terms`.
            before: the `Carry` before the turn.
            after: the `Carry` after it, from `integrate.attempt`.
            record: the turn's `Ring`.

        Returns:
            The new carry and the turn's `HybridRing`.
        """
        t, t_next = tf.unstack(record.times)
        moved = t != t_next
        memory = before.memory
        inside = _Inside(t, t_next, record.y, record.dense, plan.solver.dense_degree())
        found = self._find(g, inside, moved, memory, after.y)
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
        together, status = self._thin(g, t_stop, y_stop, together, memory.number, status)
        fired = tf.cast(together, tf.int32)
        number = memory.number

        def act():
            y1, states = self.apply(g, t_stop, y_stop, fired, number)
            state = tf.where(happened[:, None], plan.solver.init(g, t_stop, y1), after.solver_state)
            due, new = self._next_due(g, t_stop, y1, number + 1, status)
            return (
                y1,
                states,
                state,
                tf.where(happened, due, memory.due),
                tf.where(happened, new, status),
            )

        def rest():
            states = tf.zeros((len(self.channels), *tf.unstack(tf.shape(y_stop))), y_stop.dtype)
            return after.y, states, after.solver_state, memory.due, status

        y1, states, state, due, status = tf.cond(tf.reduce_any(happened), act, rest)
        counts = memory.counts + fired
        # A step that was cut has not reached the end.
        cut = rooted & (t_stop != terms.t_end) & (status == float(Status.SUCCESS))
        status = tf.where(cut, -tf.ones_like(status), status)
        status = self._ended(fired, counts, y1, status, happened)
        wrong = moved & ~found.finite
        one = tf.ones_like(status)
        status = tf.where(found.piled, float(Status.MAX_EVENTS) * one, status)
        status = tf.where(wrong, float(Status.BAD_CONDITION) * one, status)
        control = tf.concat(
            [t_stop[None], after.control[1:4], status[None], after.control[5:]], axis=0
        )
        memory = Memory(
            due,
            tf.where(moved, fired, memory.fired),
            counts,
            number + tf.cast(happened, tf.int32),
        )
        root = self._cutter(found.theta, together)
        root = tf.where(rooted, root, -tf.ones_like(root))
        pinned = moved & self._at_stop(t_next, before.memory)
        record = HybridRing(
            tf.stack([t, t_stop, t_next]), record.y, record.dense, fired,
            tf.stack([root, tf.cast(pinned, tf.int32), number]), states,
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

    def _ended(self, fired, counts, y, status, happened=True):
        """The status after what happened: terminal events, too many of them, bad states."""
        one = tf.ones_like(status)
        for e, channel in enumerate(self.channels):
            now = fired[e] > 0
            if channel.terminal:
                status = tf.where(now & (status < 0.0), float(Status.SUCCESS) * one, status)
            elif channel.max_events is not None and channel.kind != PRESET:
                over = now & (counts[e] > channel.max_events)
                status = tf.where(over, float(Status.MAX_EVENTS) * one, status)
        finite = tf.math.is_finite(tf.reduce_sum(y, axis=1))
        wrong = happened & ~finite & (status <= 0.0)
        return tf.where(wrong, float(Status.NON_FINITE) * one, status)

    def _thin(self, g, t, y, together, number, status):
        """Which candidates of bounded rates are jumps (Lewis & Shedler, 1979)."""
        kept, one = tf.unstack(together), tf.ones_like(status)
        for e, channel in enumerate(self.channels):
            if channel.kind != RATE or channel.bound is None:
                continue
            rate = self._number(g, channel.rate, t, y)
            bound = self._number(g, channel.bound, t, y)
            wrong = kept[e] & ~((rate >= 0.0) & (rate <= bound * (1.0 + 1e-6)))
            status = tf.where(wrong, float(Status.BAD_RATE) * one, status)
            share = self.uniforms(e, number, 2, t.dtype)[:, 1]
            kept[e] &= share * bound < rate
        return tf.stack(kept), status

    def _next_due(self, g, t, y, number, status):
        """Direction times the next known time of each such channel."""
        parts, one = [], tf.ones_like(status)
        s = self.direction * t
        infinity = tf.constant(float("inf"), t.dtype)
        for e in self.stops:
            channel = self.channels[e]
            if channel.kind == PRESET:
                ahead = self.direction * channel.times
                ahead = tf.where(ahead > s, ahead, infinity)
                parts.append(tf.reduce_min(ahead, axis=0) + tf.zeros_like(s))
                continue
            rate = self._number(g, channel.bound or channel.rate, t, y)
            wrong = ~((rate >= 0.0) & tf.math.is_finite(rate)) & (status < 0.0)
            status = tf.where(wrong, float(Status.BAD_RATE) * one, status)
            positive = rate > 0.0
            later = self._after(s, tf.where(positive, rate, one), e, number)
            parts.append(tf.where(positive, later, infinity))
        if not parts:
            return (infinity + tf.zeros_like(t))[None], status
        return tf.stop_gradient(tf.stack(parts)), status

    def _after(self, s, rate, channel, number):
        """Direction times the time of the next event of a Poisson process, `(rows,)`.

        In double precision up to the end: the logarithms of two compilers differ in the last bit,
        and a Brownian path at a time that is later by one bit of a float32, 6e-8, is elsewhere by
        its root, 2e-4.
        """
        wide = tf.float64
        wait = -tf.math.log(tf.cast(self.uniforms(channel, number, 1, s.dtype)[:, 0], wide))
        # Not at the very time of the last: a step must have a length.
        least = 4.0 * float(np.finfo(s.dtype.as_numpy_dtype).eps) * tf.abs(tf.cast(s, wide))
        later = tf.cast(s, wide) + tf.maximum(wait / tf.cast(rate, wide), least)
        return tf.cast(later, s.dtype)

    def _number(self, g, function, t, y):
        """What a scalar function of a trajectory returns, `(rows,)`."""
        return tf.reshape(g.evaluate(function, t, y), [y.shape[0] or -1])

    def apply(self, g, t, y, fired, number):
        """The affects of what happened, one after the other.

        Args:
            g: the field, whose `evaluate` calls lifted functions.
            t: `(rows,)`.
            y: `(rows, width)`.
            fired: `(channels, rows)` int32.
            number: `(rows,)`, the counter of random numbers.

        Returns:
            The state after, and the states before each channel's affect, `(channels, rows,
            width)`.
        """
        states = []
        for e, channel in enumerate(self.channels):
            states.append(y)
            if channel.affect is not None:
                now = fired[e] > 0
                at = self._rows_of(now)
                changed = self._changed(g, e, tf.gather(t, at), tf.gather(y, at), number)
                y = tf.where(now[:, None], changed, y)
        return y, tf.stack(states)

    def _changed(self, g, e, t, y, number):
        """The states after the affect of channel `e`."""
        channel, extra = self.channels[e], []
        if channel.uniforms:
            # The first two numbers decide when, the others what.
            extra = [self.uniforms(e, number, 2 + channel.uniforms, t.dtype)[:, 2:]]
        return g.pack(g.evaluate(channel.affect, t, y, *extra))

    def _rows_of(self, now):
        """For each row the row whose state an affect sees.

        Rows in which it does not happen take the place of one in which it does: an affect may have
        no derivative elsewhere.
        """
        row = tf.argmax(tf.cast(now, tf.int32), output_type=tf.int32)
        return tf.where(now | ~tf.reduce_any(now), tf.range(tf.shape(now)[0]), row)

    # --- finding roots ------------------------------------------------------------------------

    def _find(self, g, inside, moved, memory, y1):
        """Where in the step each channel happens first."""
        infinity = tf.constant(float("inf"), y1.dtype)
        theta = [infinity + tf.zeros_like(inside.t) for _ in self.channels]
        finite, piled = tf.ones_like(moved), tf.zeros_like(moved)
        if self.roots:
            inside.levels = self._levels(memory.counts, y1.dtype)
            roots, finite, piled = self._roots(g, inside, moved, memory.fired)
            for place, e in enumerate(self.roots):
                theta[e] = roots[place]
        for place, e in enumerate(self.stops):
            due = moved & (self.direction * inside.t_next == memory.due[place])
            theta[e] = tf.where(due, tf.ones_like(infinity), infinity)
        for e, channel in enumerate(self.channels):
            if channel.kind == DISCRETE:
                met = g.evaluate(channel.condition, inside.t_next, y1)
                met = moved & tf.reshape(met, [y1.shape[0] or -1])
                theta[e] = tf.where(met, tf.ones_like(infinity), infinity)
        return Found(tf.stack(theta), finite, piled)

    def _levels(self, counts, dtype):
        """What the condition of each root is compared with: zero, or a random number."""
        levels = []
        for e in self.roots:
            if self.channels[e].waits:
                levels.append(-tf.math.log(self.uniforms(e, counts[e], 1, dtype)[:, 0]))
            else:
                levels.append(tf.zeros_like(counts[e], dtype))
        return levels

    def _conditions(self, g, inside, times, states):
        """The conditions of all roots, each at a time of its own; `(roots, rows)`."""
        found = zip(self.roots, times, states, inside.levels, strict=True)
        return tf.stack(
            [self._number(g, self.channels[e].condition, t, y) - level for e, t, y, level in found]
        )

    def _at(self, g, inside, theta):
        """The conditions at shares `theta`, `(roots, rows)`, of the step."""
        shares = tf.unstack(theta, num=len(self.roots))
        times = [inside.time(share) for share in shares]
        return self._conditions(g, inside, times, [inside.state(share) for share in shares])

    def _roots(self, g, inside, moved, fired):
        """The first crossing of each condition, `(roots, rows)`; see `Found`."""
        just_fired = tf.gather(fired, self.roots)
        side, value, left_zero = self._sides(g, inside, just_fired)
        zero = tf.zeros_like(value)
        wanted = tf.constant([[float(self.channels[e].direction)] for e in self.roots], value.dtype)
        finite = tf.reduce_all(tf.math.is_finite(value), axis=0)
        missing = tf.logical_and(moved, tf.ones_like(value, tf.bool))

        def probe(j, missing, side, value, low, high, at_low, at_high, first, finite):
            theta = zero + tf.cast(j, value.dtype) / _PROBES
            there = self._at(g, inside, theta)
            finite &= tf.reduce_all(tf.math.is_finite(there), axis=0)
            reached = missing & (side * there <= 0.0) & (side != 0.0)
            counts = reached & ((wanted == 0.0) | (wanted == -side))
            low = tf.where(counts, theta - 1.0 / _PROBES, low)
            high = tf.where(counts, theta, high)
            at_low, at_high = tf.where(counts, value, at_low), tf.where(counts, there, at_high)
            first = tf.where(counts, side, first)
            turned = (side == 0.0) | (side * there < 0.0)
            side = tf.where(missing & turned, tf.sign(there), side)
            return j + 1, missing & ~counts, side, there, low, high, at_low, at_high, first, finite

        loop = (tf.constant(1), missing, side, value, zero, zero, zero, zero, zero, finite)
        walked = tf.while_loop(lambda j, *_: j <= _PROBES, probe, loop)
        _, missing, _, _, low, high, at_low, at_high, side, finite = walked
        hit = moved & ~missing
        # A condition that begins at zero has no sign there: the search starts without a low end.
        blind = hit & left_zero & (low == 0.0)
        root, lost = self._refine(g, inside, hit, side, low, high, at_low, at_high, blind)
        root = tf.where(hit & ~lost, root, tf.constant(float("inf"), root.dtype))
        return root, finite, tf.reduce_any(lost & (just_fired > 0), axis=0)

    def _sides(self, g, inside, fired):
        """On which side of zero each condition begins, and whether it begins at zero.

        A condition that has just fired, or starts at zero, is on the side to which it moves.
        """
        eps = float(np.finfo(inside.t.dtype.as_numpy_dtype).eps)
        step = (inside.t_next - inside.t)[:, None]
        sides, values, zeros = [], [], []
        for place, e in enumerate(self.roots):
            t, y = tf.identity(inside.t), tf.identity(inside.y)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([t, y])
                value = self._number(g, self.channels[e].condition, t, y) - inside.levels[place]
            by_t, by_y = pull_back(tape, value, [t, y], [tf.ones_like(value)])
            moving = by_t * step[:, 0] + tf.reduce_sum(by_y * inside.slope_at_start, axis=1)
            size = tf.abs(by_t) * (tf.abs(t) + tf.abs(step[:, 0]))
            size += tf.reduce_sum(tf.abs(by_y) * (tf.abs(y) + inside.change), axis=1)
            # The state was computed at a time that is only known to its rounding.
            size += tf.abs(moving) / tf.abs(inside.length) * tf.abs(t)
            at_zero = (fired[place] > 0) & (tf.abs(value) <= 64.0 * eps * size)
            at_zero |= value == 0.0
            sides.append(tf.where(at_zero, tf.sign(moving), tf.sign(value)))
            values.append(value)
            zeros.append(at_zero)
        return tf.stack(sides), tf.stack(values), tf.stack(zeros)

    def _refine(self, g, inside, hit, side, low, high, at_low, at_high, blind):
        """Narrows brackets by the Illinois method, with a bisection in every third turn.

        (Dowell & Jarratt, "A modified regula falsi method for computing the root of an equation",
        BIT 11, 1971.) Where the low end is not known, the high end is halved until a point before
        the crossing is found.

        Returns:
            The ends behind the crossings, and whether no point before one was found: it follows
            the last within the resolution of numbers.
        """
        eps = float(np.finfo(low.dtype.as_numpy_dtype).eps)
        step = tf.abs(inside.t_next - inside.t)
        resolution = tf.abs(inside.t) + tf.abs(inside.t_next)
        resolution = 0.25 * eps * resolution / tf.where(step > 0.0, step, tf.ones_like(step))

        def unsettled(low, high, at_high, blind):
            wide = high - low > tf.maximum(resolution, eps * high)
            return hit & (wide | blind) & (at_high != 0.0)

        def turn(k, low, high, at_low, at_high, last, blind):
            going = unsettled(low, high, at_high, blind)
            secant = high - at_high * tf.math.divide_no_nan(high - low, at_high - at_low)
            good = going & ~blind & (secant > low) & (secant < high) & (k % 3 != 2)
            point = tf.where(good, secant, 0.5 * (low + high))
            there = self._at(g, inside, point)
            behind = side * there <= 0.0
            up, down = going & ~behind, going & behind
            # The value at an end that stays twice is halved, so that the other end moves too.
            at_high = tf.where(up & (last > 0), 0.5 * at_high, at_high)
            at_low = tf.where(down & (last < 0), 0.5 * at_low, at_low)
            low, at_low = tf.where(up, point, low), tf.where(up, there, at_low)
            high, at_high = tf.where(down, point, high), tf.where(down, there, at_high)
            last = tf.where(up, 1, tf.where(down, -1, last))
            return k + 1, low, high, at_low, at_high, last, blind & ~up & (high > tiny)

        tiny = 2.0**-_MOST_HALVINGS
        loop = (tf.constant(0), low, high, at_low, at_high, tf.zeros_like(low, tf.int32), blind)
        walked = tf.while_loop(
            lambda k, low, high, at_low, at_high, last, blind: (
                (k < _MOST_REFINEMENTS) & tf.reduce_any(unsettled(low, high, at_high, blind))
            ),
            turn,
            loop,
        )
        _, low, high, *_ = walked
        return high, hit & blind & (low == 0.0) & (high <= tiny)

    # --- what comes out -----------------------------------------------------------------------

    def record(self, log, ring, turns):
        """The log with what happened in the first `turns` records of a ring."""
        return self._write(log, ring.times[:, 1], ring.fired, ring.before, turns)

    def _write(self, log, times, fired, before, turns):
        told = self._told
        if not told:
            return log
        size, rows = tf.shape(times)[0], tf.shape(times)[1]
        width = before.shape[3] or tf.shape(before)[3]
        valid = tf.range(size)[:, None, None] < turns
        flags = (tf.gather(fired, told, axis=1) > 0) & valid
        flags = tf.cast(tf.reshape(flags, (-1, rows)), tf.int32)
        place = log.count + tf.cumsum(flags, axis=0, exclusive=True)
        place = tf.where((flags > 0) & (place < self.entries), place, self.entries)
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

    @property
    def _told(self):
        """The channels that the log tells of."""
        return [e for e, channel in enumerate(self.channels) if channel.recorded]

    def entries_of(self, log, rows, width):
        """Times, states before and indices, `(entries, rows, ...)`, and how many there are."""
        n = self.entries
        return (
            tf.reshape(log.times, (n + 1, rows))[:n],
            tf.reshape(log.states, (n + 1, rows, width))[:n],
            tf.reshape(log.index, (n + 1, rows))[:n],
            log.count,
        )

    # --- going backwards ----------------------------------------------------------------------

    def reverse(self, plan, field, theta, record, y_bar, t_bar, count, told):
        """The vector-Jacobian product of what happened in a turn.

        Args:
            plan: the `Plan`.
            field: the `Field`.
            theta: the differentiable tensors that it reads.
            record: one turn's `HybridRing`.
            y_bar: cotangent of the state after.
            t_bar: cotangent of the time after.
            count: `(rows,)` int32, the log's entries up to and with this turn.
            told: cotangents of the log's times and states, `(entries, rows, ...)`.

        Returns:
            A `Reversed`.
        """
        t, t_stop, t_next = tf.unstack(record.times)
        inside = _Inside(t, t_next, record.y, record.dense, plan.solver.dense_degree())
        root, _, number = tf.unstack(record.notes)
        rooted = root >= 0
        share = tf.where(rooted, (t_stop - t) / inside.length, tf.ones_like(t))
        happened = tf.reduce_any(record.fired > 0, axis=0)[:, None]
        # A step that was rejected may have no numbers inside.
        y_stop = tf.where(happened, inside.state(share), record.y)
        slope = tf.where(happened, inside.slope(share), tf.zeros_like(record.y))
        before_bar, told_bar, count = self._read_back(record.fired, count, told)

        def act():
            return self._reverse_affects(
                field, theta, t_stop, y_stop, record.fired, number, y_bar, before_bar,
                t_bar + told_bar, root, slope,
            )  # fmt: skip

        def rest():
            nothing = [tf.zeros_like(x) for x in [*theta, *field.variables]]
            return t_bar, y_bar, *nothing

        stop_bar, y_stop_bar, *totals = tf.cond(tf.reduce_any(happened), act, rest)
        cut_bar = tf.where(rooted[:, None], y_stop_bar, tf.zeros_like(y_stop_bar))
        parts, weighted = [], cut_bar
        for _ in range(plan.solver.dense_degree()):
            weighted = weighted * share[:, None]
            parts.append(weighted)
        rate = tf.reduce_sum(cut_bar * slope, axis=1)
        return Reversed(
            tf.where(rooted[:, None], tf.zeros_like(y_stop_bar), y_stop_bar),
            tf.concat(parts, axis=1),
            cut_bar,
            rate * (share - 1.0),
            tf.where(rooted, tf.zeros_like(stop_bar), stop_bar) - rate * share,
            totals[: len(theta)],
            totals[len(theta) :],
            count,
        )

    def reverse_start(self, field, theta, terms, y0, y_bar, t_bar, count, told):
        """The same for what happened at the start: `(y_bar, t_bar, theta_bar, variables_bar)`."""
        t = terms.t0
        fired = tf.where(terms.t_end != t, self._fired_at_start(terms, t), 0)
        before_bar, told_bar, _ = self._read_back(fired, count, told)
        number = tf.zeros_like(t, tf.int32)
        none = tf.fill(tf.shape(t), -1)
        stop_bar, y_bar, *totals = self._reverse_affects(
            field, theta, t, y0, fired, number, y_bar, before_bar, t_bar + told_bar, none, None
        )
        return y_bar, stop_bar, totals[: len(theta)], totals[len(theta) :]

    def _read_back(self, fired, count, told):
        """Cotangents that the log's entries of one turn send to states and to the time."""
        times_bar, states_bar = told
        rows = tf.shape(fired)[1]
        width = states_bar.shape[2] or tf.shape(states_bar)[2]
        column = tf.range(rows)
        flat_times = tf.reshape(times_bar, [-1])
        flat_states = tf.reshape(states_bar, (-1, width))
        total = tf.zeros((rows,), times_bar.dtype)
        parts = [tf.zeros((rows, width), times_bar.dtype) for _ in self.channels]
        for e in reversed(self._told):
            now = fired[e] > 0
            count -= fired[e]
            at = tf.clip_by_value(count, 0, self.entries - 1) * rows + column
            total += tf.where(now, tf.gather(flat_times, at), tf.zeros_like(total))
            parts[e] = tf.where(now[:, None], tf.gather(flat_states, at), parts[e])
        return tf.stack(parts), total, count

    def _reverse_affects(
        self, field, theta, t, y, fired, number, y_bar, before_bar, t_bar, root, slope
    ):
        """Cotangents of the time and the state of what happened, and of what the field reads."""
        captures, variables = field.captures, list(field.variables)
        parameters = theta[: len(theta) - len(captures)]
        bound = field.bind(theta)
        _, states = self.apply(bound, t, y, fired, number)
        totals = [tf.zeros_like(x) for x in [*theta, *variables]]
        for e in reversed(range(len(self.channels))):
            if self.channels[e].affect is not None:
                now = fired[e] > 0
                at = self._rows_of(now)
                here, before = tf.gather(t, at), tf.gather(states[e], at)
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch([here, before, *theta, *captures, *variables])
                    changed = self._changed(bound, e, here, before, number)
                sources = [here, before, *parameters, *captures, *variables]
                given = tf.where(now[:, None], y_bar, tf.zeros_like(y_bar))
                own, state_bar, *bars = pull_back(tape, changed, sources, [given])
                t_bar += tf.where(now, own, tf.zeros_like(own))
                y_bar = tf.where(now[:, None], state_bar, y_bar)
                # Where it happened nowhere, the affect may have no derivative anywhere.
                any_now = tf.reduce_any(now)
                bars = [tf.where(any_now, bar, tf.zeros_like(bar)) for bar in bars]
                totals = [a + b for a, b in zip(totals, bars, strict=True)]
            y_bar += before_bar[e]
        y_stop_bar = y_bar
        t, y = tf.identity(t), tf.identity(y)
        sources = [t, y, *parameters, *captures, *variables]
        if slope is None:
            return t_bar, y_stop_bar, *totals
        moved = t_bar + tf.reduce_sum(y_stop_bar * slope, axis=1)
        for e in self.roots:
            if self.channels[e].held:
                continue
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                tape.watch(sources + theta)
                value = self._number(bound, self.channels[e].condition, t, y)
            by_t, by_y = pull_back(tape, value, [t, y], [tf.ones_like(value)])
            rate = by_t + tf.reduce_sum(by_y * slope, axis=1)
            weight = tf.where(root == e, -moved, tf.zeros_like(moved))
            weight = tf.math.divide_no_nan(weight, rate)
            bars = pull_back(tape, value, sources, [weight])
            y_stop_bar += bars[1]
            totals = [a + b for a, b in zip(totals, bars[2:], strict=True)]
        return t_bar, y_stop_bar, *totals


class Reversed(NamedTuple):
    """Cotangents that what happened in a turn sends to the step of that turn.

    Attributes:
        y1: of the state at the step's end.
        dense: of its interpolation coefficients.
        y: of the state at its start.
        t: of the time there.
        t_next: of the time at its end.
        theta: of the differentiable tensors.
        variables: of the variables.
        count: the log's entries before the turn.
    """

    y1: tf.Tensor
    dense: tf.Tensor
    y: tf.Tensor
    t: tf.Tensor
    t_next: tf.Tensor
    theta: list
    variables: list
    count: tf.Tensor


class _Inside:
    """The interpolant of one step of each row, by the share of the step."""

    def __init__(self, t, t_next, y, dense, degree):
        self.t, self.t_next, self.y = t, t_next, y
        self._parts = tf.split(dense, degree, axis=1)
        self.length = tf.where(t_next != t, t_next - t, tf.ones_like(t))
        self.slope_at_start = self._parts[0]
        self.change = tf.abs(tf.add_n(self._parts))

    def time(self, theta):
        """`(rows,)`, the end exactly for 1."""
        return tf.where(theta == 1.0, self.t_next, self.t + theta * (self.t_next - self.t))

    def state(self, theta):
        """`(rows, width)`."""
        return horner(self.y, self._parts, theta[:, None])[0]

    def slope(self, theta):
        """The time derivative of `state`."""
        return horner(self.y, self._parts, theta[:, None])[1] / self.length[:, None]


def _uniform(high, low, dtype):
    """Uniform numbers in (0, 1) from two words of random bits."""
    if dtype == tf.float64:
        return (tf.cast(high, dtype) + (tf.cast(low, dtype) + 0.5) * 2.0**-32) * 2.0**-32
    # One bit less than a float32 holds, so that the half is not rounded up to one.
    bits = tf.bitwise.right_shift(high, tf.constant(9, tf.uint32))
    return (tf.cast(bits, dtype) + 0.5) * 2.0**-23
