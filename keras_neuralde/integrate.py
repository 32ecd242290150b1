"""The loop: attempts of a step, repeated until every trajectory has ended.

One turn of the loop attempts one step in every row that still runs; each row has its own time,
step size, error and status. Turns are grouped into segments of a fixed number. A segment leaves a
record of its steps in a ring buffer, from which the save points are interpolated once each, and
which the discrete adjoint walks backwards. Where a turn is one kernel (see `components`), save
points are written in passing instead. Nothing here knows that gradients exist.
"""

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from keras_neuralde import components, controllers
from keras_neuralde.brownian import resolution
from keras_neuralde.save_points import (
    collect,
    first_outputs,
    put_together,
    taken_apart,
    write,
    write_all,
)
from keras_neuralde.solution import Status

# Rows of the packed control block; one column per trajectory. The last two are there only when the
# controller looks back. A solver that watches for stiffness has rows of its own after them, and
# one that counts its evaluations does so in one more at the end, before it those of Jacobians where
# it counts them too.
T, H, ACCEPTED, REJECTED, STATUS, ERROR, ERROR_BEFORE = range(7)
# What STATUS holds, besides the codes of `Status`, while a row has steps to take: whether the last
# attempt was accepted or rejected.
RUNNING, RETRYING = -1.0, -2.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed when a solve is traced.

    Args:
        solver: the one-step method.
        controller: `controllers.Constant`, `controllers.Replay` or `controllers.PID`.
        norm: "rms" or "max", over the components of a row.
        max_steps: attempted steps per row before it ends with a status.
        segment: turns of the loop between two looks at the save points.
        saves: whether there are save points.
        save_slopes: whether to return the time derivative at the save points too.
        first_step: whether the first step is chosen automatically.
        stops: whether steps end on the save points: those of a method that cannot interpolate, or,
            in their place, the discontinuities of a delay equation.
        happenings: `happenings.Happenings`, events and jumps, or `None`.
        repeats: whether save points are computed from their steps, taken once more or in passing,
            instead of from coefficients that every step leaves behind.
    """

    solver: Any
    controller: Any
    norm: str
    max_steps: int
    segment: int
    saves: bool
    save_slopes: bool = False
    first_step: bool = True
    stops: bool = False
    happenings: Any = None
    repeats: bool = False

    @property
    def dense(self):
        """Whether steps leave their interpolants behind."""
        return (self.saves and not self.repeats) or self.happenings is not None

    @property
    def adaptive(self):
        return isinstance(self.controller, controllers.PID)

    @property
    def replays(self):
        return isinstance(self.controller, controllers.Replay)

    @property
    def looks_back(self):
        return self.adaptive and self.controller.looks_back

    @property
    def watches(self):
        return self.solver.watches

    @property
    def switches(self):
        return self.solver.switches

    @property
    def counts(self):
        return self.solver.counts_evaluations

    @property
    def counts_jacobians(self):
        return self.solver.counts_jacobians


class Terms(NamedTuple):
    """The tensors that the loop reads and never changes; all `(rows,)` unless said otherwise.

    Attributes:
        t0: the start.
        t_end: the end.
        direction: +1 forwards, -1 backwards in time.
        rtol: scalar, `(width,)` or `(rows, width)`.
        atol: the same.
        dt0: scalar, the first or constant step; not read when it is chosen automatically.
        dt_min: scalar.
        saves: `(num_times, rows)` or `(num_times, 1)`; `None` without save points.
        steps: times of the steps to replay, the same shapes, NaN after the last; `None` unless
            the plan replays.
    """

    t0: tf.Tensor
    t_end: tf.Tensor
    direction: tf.Tensor
    rtol: tf.Tensor
    atol: tf.Tensor
    dt0: tf.Tensor
    dt_min: tf.Tensor
    saves: tf.Tensor | None
    steps: tf.Tensor | None = None


class Carry(NamedTuple):
    """What one turn hands to the next: packed control block, state, solver state, what happened.

    Within a segment the solver may keep something besides (see `Solver.keep`).
    """

    y: tf.Tensor
    solver_state: tf.Tensor
    control: tf.Tensor
    memory: Any = ()
    kept: Any = ()


class Ring(NamedTuple):
    """The records of one segment: `[t, t_next]`, the state before, interpolation coefficients.

    A rejected or resting turn has `t_next == t`. `dense` is an empty tuple without save points,
    `kind` one unless the solver switches between kinds of steps.
    """

    times: tf.Tensor
    y: tf.Tensor
    dense: tf.Tensor | tuple
    kind: tf.Tensor | tuple = ()


class Outcome(NamedTuple):
    """The result of a whole integration."""

    y: tf.Tensor
    slopes: tf.Tensor | tuple
    control: tf.Tensor
    log: Any = ()


def start(plan, g, y0, terms):
    """The carry before the first turn."""
    dtype = y0.dtype
    rows = tf.ones_like(terms.t0)
    state = plan.solver.init(g, terms.t0, y0)
    k1 = state if plan.solver.carries_slope or not plan.first_step else g(terms.t0, y0)
    h = terms.dt0 * rows
    if plan.first_step:
        order = plan.solver.error_order + 1
        scale = terms.atol + terms.rtol * tf.abs(y0)
        rule = plan.solver.initial_step or controllers.initial_step
        h = rule(g, terms.t0, terms.t_end, y0, k1, terms.direction, scale, order)
    finite = tf.math.is_finite(tf.reduce_sum(k1 + y0, axis=1))
    span = tf.abs(terms.t_end - terms.t0)
    status = tf.where(finite, RUNNING * rows, float(Status.NON_FINITE))
    status = tf.where(span > 0, status, tf.cast(Status.SUCCESS, dtype))
    zero = tf.zeros_like(rows)
    control = [terms.t0, h, zero, zero, status]
    control += [rows, rows] if plan.looks_back else []
    control += plan.watches * [zero]
    control += [zero] if plan.counts_jacobians else []
    control += [zero] if plan.counts else []
    return Carry(y0, state, tf.stack(control))


def empty_ring(plan, carry, size):
    """A ring of `size` records of zeros."""
    if plan.happenings is not None:
        return plan.happenings.empty_ring(plan, carry, size)
    rows, width = tf.unstack(tf.shape(carry.y))
    degree = plan.solver.dense_degree() if plan.dense else 0
    dtype = carry.y.dtype
    return Ring(
        tf.zeros((size, 2, rows), dtype),
        tf.zeros((size, rows, width), dtype),
        tf.zeros((size, rows, degree * width), dtype) if plan.dense else (),
        tf.zeros((size, rows), dtype) if plan.switches else (),
    )


class Due(NamedTuple):
    """The next save point of each row.

    Attributes:
        number: `(rows,)`, which it is; a whole number of the state's dtype.
        time: `(rows,)`, when; NaN where there is none. `None` where there are no save points.
        later: `(rows,)`, when the one after it is, likewise.
        t_next: `(rows,)`, where the step ends, if the turn before has told; `None` otherwise.
        along: what else the turn's kernel is to hand on, a list of `(rows,)`.
        forced: `(known, moved, passed)`: when a recorded turn is repeated, whether its decisions
            are on record, and they, `(rows,)` booleans: whether the row went on, and whether it
            passed the save point. `None` otherwise.
    """

    number: tf.Tensor
    time: tf.Tensor | None
    later: tf.Tensor | None
    t_next: tf.Tensor | None = None
    along: Any = ()
    forced: Any = None


class Passed(NamedTuple):
    """What a turn with a `Due` leaves behind, besides the new carry.

    Attributes:
        number: `(rows,)`, the number of the next save point.
        time: `(rows,)`, when that is; with `Due.t_next`, where the next step ends.
        along: `Due.along`.
        value: the state at the save point, if it was passed, a list of components, and behind
            them those of its slope where slopes are saved.
    """

    number: tf.Tensor
    time: tf.Tensor
    along: list
    value: list


def attempt(plan, g, terms, carry, forced=None, due=None):
    """One turn: every running row proposes a step and keeps or rejects it.

    Args:
        plan: the `Plan`.
        g: the field, `g(t, y)`.
        terms: the `Terms`.
        carry: the `Carry`.
        forced: `(known, decision, kind, fired)`: when a recorded turn is repeated, its `(rows,)`
            booleans replace the decision where `known`, the kind of step where the solver switches,
            and `(channels, rows)` booleans what happened.
        due: a `Due`, where the state at save points is computed with the step that passes them. A
            step that passes several is taken as often, and the row moves on with the last of them.

    Returns:
        The new carry and the `Ring` entries of the turn; with `due`, `Passed` in their place.
    """
    t, h, accepted, rejected, status, *errors = tf.unstack(carry.control)
    counted = [errors.pop() for _ in range(plan.counts_jacobians + plan.counts)][::-1]
    modes = [errors.pop() for _ in range(plan.watches)][::-1]
    if forced is not None and plan.switches:
        modes[0] = tf.where(forced[0], tf.cast(forced[2], t.dtype), modes[0])
    kind = modes[:1] if plan.switches else []
    running = status < 0.0
    told = None if due is None else due.t_next
    t_next = _next_time(plan, g, terms, t, h, accepted) if told is None else told
    if plan.happenings is not None:
        t_next = plan.happenings.clip(plan, terms, t, t_next, carry.memory)
    t_next = t_next if told is not None else tf.where(running, t_next, t)
    kept = {"kept": carry.kept} if carry.kept else {}
    memory, noise, driven = carry.memory, (), g
    if plan.happenings is not None and memory.noise:
        driven, noise, left = g.draw_noise(t, t_next, memory.noise)
        memory = memory._replace(noise=left)
    if due is not None or apart(plan, g, carry.y):
        theta = inverse = None
        if due is not None and due.time is not None:
            inverse = 1.0 / tf.where(running, t_next - t, 1.0)
            theta = (due.time - t) * inverse
        step, value = plan.solver.step_together(
            g, t, t_next, carry.y, carry.solver_state, theta, plan.save_slopes
        )
        if plan.save_slopes:
            width = carry.y.shape[1]
            value = [*value[:width], *(slope * inverse for slope in value[width:])]
    else:
        step = plan.solver.step(
            driven, t, t_next, carry.y, carry.solver_state, plan.dense, *kind, **kept
        )

    if plan.adaptive:
        # Once decided, also on a way back that is traced where XLA is out of sight.
        by_components = due is not None or apart(plan, g, carry.y)
        error = _scaled_square(plan, by_components, terms, carry.y, step)
        finite = tf.math.is_finite(error)
        good = finite & (error <= 1.0)
    else:
        finite = good = tf.math.is_finite(_sum(step.y1 + step.state))
    if step.ok is not None:
        good &= step.ok
        finite &= step.ok
    if forced is not None:
        known, decision, *_ = forced
        good = tf.where(known, decision, good)
    if due is not None and due.forced is not None:
        known, moved, passed = due.forced
        good = tf.where(known, moved | passed, good)
    accept = running & good

    t_new = tf.where(accept, t_next, t)
    if plan.adaptive:
        used = tf.abs(t_next - t)
        factor = plan.controller.factor(error, errors, plan.solver.error_order + 1)
        factor = tf.where(finite, factor, plan.controller.factor_min)
        grow = accept & (status != RETRYING)
        factor = tf.where(grow, factor, tf.minimum(factor, 1.0))
        if step.again is not None:
            factor = tf.where(step.again, tf.ones_like(factor), factor)
        smallest = _smallest_step(terms, t)
        hopeless = (tf.minimum(h, used) <= 1.5 * smallest) | tf.math.is_nan(used)
        hopeless &= ~accept
        proposed = tf.maximum(used * factor, smallest)
        if plan.stops or plan.happenings is not None:
            # A step that was cut short says little about the next one. Less than a hundredth is
            # rounding, and no cut.
            proposed = tf.where(accept & (used < 0.99 * h), tf.maximum(proposed, h), proposed)
        h = tf.where(running, proposed, h)
    else:
        hopeless = ~accept
    if step.again is not None:
        hopeless &= ~step.again
    one = tf.ones_like(t)
    accepted += tf.where(accept, one, 0.0)
    rejected += tf.where(running & ~accept, one, 0.0)
    failure = tf.where(finite, float(Status.STEP_TOO_SMALL) * one, float(Status.NON_FINITE))
    if step.ok is not None:
        failure = tf.where(step.ok, failure, step.trouble * one)
    outcome = tf.where(accept, RUNNING * one, RETRYING)
    exhausted = accepted + rejected >= plan.max_steps
    outcome = tf.where(exhausted, float(Status.MAX_STEPS) * one, outcome)
    outcome = tf.where(hopeless, failure, outcome)
    outcome = tf.where(accept & (t_next == terms.t_end), float(Status.SUCCESS) * one, outcome)
    status = tf.where(running, outcome, status)
    if plan.looks_back:
        errors = [tf.where(accept, error, errors[0]), tf.where(accept, *errors)]
    if plan.watches:
        modes, h = plan.solver.switch(modes, step.stiff, accept, h)
    if plan.watches and not plan.switches:
        stiff = plan.solver.gives_up(modes) & (status < 0.0)
        status = tf.where(stiff, float(Status.STIFF) * one, status)
    if plan.counts:
        found = [step.num_jac, step.num_f] if plan.counts_jacobians else [step.num_f]
        pairs = zip(counted, found, strict=True)
        counted = [total + tf.where(running, number, 0.0) for total, number in pairs]
    control = [t_new, h, accepted, rejected, status, *errors, *modes, *counted]
    if due is not None:
        return _pass_by(plan, terms, carry, step, control, accept, t_next, due, value)
    if apart(plan, g, carry.y):
        new, _ = _chosen_together(accept, step, carry, control)
    else:
        column = accept[:, None]
        new = Carry(
            tf.where(column, step.y1, carry.y),
            tf.where(column, step.state, carry.solver_state),
            tf.stack(control),
            memory,
            step.kept,
        )
    times, dense = tf.stack([t, t_new]), step.dense if plan.dense else ()
    record = Ring(times, carry.y, dense, kind[0] if kind else ())
    if plan.happenings is None:
        return new, record
    recalled = None if forced is None else (forced[0], forced[3])
    return plan.happenings.settle(plan, g, terms, carry, new, record, recalled, noise)


def _pass_by(plan, terms, carry, step, control, accept, t_next, due, value):
    """The end of a turn that may pass a save point: the new carry and `Passed`."""
    number, time = due.number, due.time
    once_more = accept & False
    if time is not None:
        passes, again = (
            accept & (terms.direction * one <= terms.direction * t_next)
            for one in (time, due.later)
        )
        once_more = passes & again
        if due.forced is not None:
            known, moved, passed = due.forced
            passes = tf.where(known, passed, passes)
            once_more = tf.where(known, accept & ~moved, once_more)
        number += tf.where(passes, tf.ones_like(number), tf.zeros_like(number))
        time = tf.where(passes, due.later, time)
        before = tf.unstack(carry.control)
        control = [tf.where(once_more, a, b) for a, b in zip(before, control, strict=True)]
    if due.t_next is not None:
        time = following(plan, None, terms, control)
    told = [number, time, *due.along]
    new, told = _chosen_together(accept & ~once_more, step, carry, control, told)
    number, time, *along = told
    return new, Passed(number, time, along, value)


def following(plan, g, terms, control):
    """Where the next step ends, or the time of a row that has ended; from the control block."""
    t, h, accepted, _, status = control[:5]
    return tf.where(status < 0.0, _next_time(plan, g, terms, t, h, accepted), t)


def apart(plan, g, y):
    """Whether a turn is computed by components, all of it in one kernel."""
    simple = plan.happenings is None and not plan.dense
    return simple and plan.solver.by_components and components.pays(g, y)


def _chosen_together(accept, step, carry, control, others=()):
    """The new carry, and other numbers with it, computed by one kernel."""
    width = int(carry.y.shape[1])
    pairs = [(step.y1, carry.y), (step.state, carry.solver_state)]
    chosen = [
        tf.where(accept, new, old)
        for pair in pairs
        for new, old in zip(*map(components.split, pair), strict=True)
    ]
    found = components.together([*others, *control, *chosen])
    return unpacked(found[len(others) :], width, carry), found[: len(others)]


def _sum(y):
    """Over the components, one after the other: what XLA melts into what reads it."""
    few = y.shape[1] is not None and y.shape[1] <= components.MOST
    return tf.add_n(components.split(y)) if few else tf.reduce_sum(y, axis=1)


def packed(carry):
    """The control block, the state and the solver's state as a list of `(rows,)`."""
    parts = [*tf.unstack(carry.control)]
    return [*parts, *components.split(carry.y), *components.split(carry.solver_state)]


def unpacked(parts, width, carry):
    """The inverse of `packed`; the rest as in `carry`."""
    y, state = (components.join(some) for some in (parts[-2 * width : -width], parts[-width:]))
    return carry._replace(y=y, solver_state=state, control=tf.stack(parts[: -2 * width]))


def _repeated(plan, g, carry, more, turn_once, others):
    """Turns in a loop.

    Args:
        plan: the `Plan`.
        g: the field.
        carry: the `Carry` at its start.
        more: `more(turn, carry)`, whether there is another turn.
        turn_once: `turn_once(turn, carry, *others)`, which returns the carry and the others.
        others: a tuple of whatever else the loop carries.

    Returns:
        The number of turns, the carry and the others.
    """
    carry = keeping(plan, g, carry)
    packs = apart(plan, g, carry.y)

    # Few arrays: the kernels that make them are all that is left beside the turn's.
    def unpack(carried):
        if not packs:
            return carried
        return unpacked(components.loosened(carried), int(carry.y.shape[1]), carry)

    def once(turn, carried, *others):
        carried, *others = turn_once(turn, unpack(carried), *others)
        return turn + 1, components.bundled(packed(carried)) if packs else carried, *others

    turns, carried, *others = tf.while_loop(
        lambda turn, carried, *_: more(turn, unpack(carried)),
        once,
        (tf.constant(0), components.bundled(packed(carry)) if packs else carry, *others),
    )
    return turns, unpack(carried)._replace(kept=()), *others


def _next_time(plan, g, terms, t, h, accepted):
    """Where the proposed step ends; exactly on the end when it comes that near."""
    if plan.adaptive:
        end = next_stop(terms, t)[0] if plan.stops else terms.t_end
        last = h * 1.01 >= tf.abs(end - t)
        proposed = t + terms.direction * h
        if plan.solver.stochastic:
            proposed = g.align(t, proposed)
        return tf.where(last, end, proposed)
    if plan.replays:
        return _next_recorded(terms, t, accepted)
    if plan.stops or (plan.happenings is not None and plan.solver.stochastic):
        # The grid of equal steps, refined by the save points and by what happens.
        elapsed = tf.abs(t - terms.t0) + resolution(t, terms.t0)
        elapsed = (tf.floor(elapsed / h) + 1.0) * h
        last = elapsed + 1e-3 * h >= tf.abs(terms.t_end - terms.t0)
        grid = tf.where(last, terms.t_end, terms.t0 + terms.direction * elapsed)
        if not plan.stops:
            return grid
        stop, _ = next_stop(terms, t)
        return tf.where(terms.direction * stop < terms.direction * grid, stop, grid)
    if plan.happenings is not None:
        # Equal steps begin anew after an event.
        last = h * 1.001 >= tf.abs(terms.t_end - t)
        return tf.where(last, terms.t_end, t + terms.direction * h)
    # Counting instead of adding keeps a million equal steps on their grid.
    elapsed = (accepted + 1.0) * h
    last = elapsed + 1e-3 * h >= tf.abs(terms.t_end - terms.t0)
    return tf.where(last, terms.t_end, terms.t0 + terms.direction * elapsed)


def _next_recorded(terms, t, accepted):
    """Where the replayed step ends: a step keeps its size, the last one ends on the end."""
    count = tf.shape(terms.steps)[0]
    column = tf.range(tf.shape(t)[0]) if terms.steps.shape[1] != 1 else 0
    flat, stride = tf.reshape(terms.steps, [-1]), tf.shape(terms.steps)[1]
    number = tf.cast(accepted, tf.int32)

    def time(later):
        return tf.gather(flat, tf.minimum(number + later, count - 1) * stride + column)

    h = tf.abs(time(1) - time(0))
    last = (number + 2 >= count) | tf.math.is_nan(time(2))
    last |= ~(h < tf.abs(terms.t_end - t))
    return tf.where(last, terms.t_end, t + terms.direction * h)


def next_stop(terms, t):
    """The first save point after `t` in each row, by bisection; the end where there is none.

    Returns:
        The time and the index of the save point, both `(rows,)`.
    """
    count = tf.shape(terms.saves)[0]
    rows = tf.shape(t)[0]
    shared = terms.saves.shape[1] == 1
    flat = tf.reshape(terms.saves, [-1])

    def later(index):
        at = tf.gather(flat, index if shared else index * rows + tf.range(rows))
        # Not `~(at <= t)`: outside XLA that is simplified to `at > t`, which differs for NaN.
        return at, (terms.direction * at > terms.direction * t) | tf.math.is_nan(at)

    def halve(low, high):
        # The answer lies in [low, high]; pads are later than everything.
        middle = (low + high) // 2
        after = later(middle)[1] | (middle >= high)
        return tf.where(after, low, middle + 1), tf.where(after, middle, high)

    low = tf.zeros_like(t, tf.int32)
    low, _ = tf.while_loop(
        lambda low, high: tf.reduce_any(low < high), halve, (low, low + (count - 1))
    )
    stop, after = later(low)
    return tf.where(after & tf.math.is_finite(stop), stop, terms.t_end), low


def _smallest_step(terms, t):
    resolution = 4.0 * tf.experimental.numpy.finfo(t.dtype.as_numpy_dtype).eps
    span = tf.abs(terms.t_end - terms.t0)
    return tf.maximum(tf.maximum(terms.dt_min, float(resolution) * tf.abs(t)), 1e-20 * span)


def _scaled_square(plan, by_components, terms, y, step):
    """The squared norm of the error estimate, in units of the tolerance; `(rows,)`.

    It is not finite when the new state, the solver's state or the estimate is not.
    """
    if plan.norm == "rms" and by_components:
        return _square_by_components(terms, y, step)
    size = tf.abs(y) if plan.solver.previsible else tf.maximum(tf.abs(y), tf.abs(step.y1))
    scale = terms.atol + terms.rtol * size
    square = tf.square(step.error / scale)
    kept = square + 0.0 * (step.y1 + step.state)
    if plan.norm == "max":
        # A maximum may drop NaN; adding the vanishing mean keeps it.
        return tf.reduce_max(square, axis=1) + 0.0 * tf.reduce_mean(kept, axis=1)
    return tf.reduce_mean(kept, axis=1)


def _square_by_components(terms, y, step):
    """The same sum in the same order, for `components`."""
    total: Any = None
    width = int(y.shape[1])
    parts = [components.split(x) for x in (y, step.y1, step.error, step.state)]
    rtol, atol = (_columns(x, width) for x in (terms.rtol, terms.atol))
    pairs = zip(*parts[:2], rtol, atol, strict=True)
    scales = [a + r * tf.maximum(tf.abs(old), tf.abs(new)) for old, new, r, a in pairs]
    if y.shape[0] == 1:
        # Numbers in a row are divided by one kernel.
        ratios = tf.unstack(tf.concat(parts[2], 0) / tf.concat(scales, 0))
        ratios = [ratio[None] for ratio in ratios]
    else:
        ratios = [error / scale for error, scale in zip(parts[2], scales, strict=True)]
    for ratio, new, state in zip(ratios, parts[1], parts[3], strict=True):
        term = tf.square(ratio) + 0.0 * (new + state)
        total = term if total is None else total + term
    return total * (1.0 / width)


def _columns(tolerance, width):
    """A tolerance as one for each component."""
    return [tolerance] * width if tolerance.shape.rank == 0 else tf.unstack(tolerance, axis=-1)


def any_running(control):
    """Whether a row still has steps to take."""
    return tf.reduce_any(tf.unstack(control)[STATUS] < 0.0)


def run_segment(plan, g, terms, carry, ring, forced=None):
    """Turns until the ring is full or every row has ended.

    Args:
        plan: the `Plan`.
        g: the field.
        terms: the `Terms`.
        carry: the `Carry` at the start of the segment.
        ring: the `Ring` to fill.
        forced: `(known, decisions, kinds, fired)`: whether the decisions of this segment are on
            record, and they, `(segment, rows)` booleans; the kinds are an empty tuple unless the
            solver switches, what happened, `(segment, channels, rows)`, unless something may.

    Returns:
        The carry, the ring and the number of turns.
    """
    size = plan.segment
    remembers = plan.solver.remembers

    def more(turn, carry):
        return (turn < size) & any_running(carry.control)

    def turn_once(turn, carry, ring):
        decision = None
        if forced is not None:
            recorded = tf.nest.map_structure(lambda flags: tf.gather(flags, turn), forced[1:])
            decision = (forced[0], *recorded)
        seen = g.recalling(ring, turn) if remembers else g
        carry, record = attempt(plan, seen, terms, carry, decision)
        return carry, write_all(ring, turn, record)

    turns, carry, ring = _repeated(plan, g, carry, more, turn_once, (ring,))
    return carry, ring, turns


def keeping(plan, g, carry):
    """The carry at the beginning of a segment: with what the solver keeps, still empty."""
    return carry._replace(kept=plan.solver.keep(g, carry.y))


def begin(plan, g, y0, terms):
    """The carry and the outputs before the first turn: the save points and what happened."""
    carry = start(plan, g, y0, terms)
    if plan.happenings is None:
        return carry, first_outputs(plan, g, y0, terms) if plan.saves else ()
    carry, log = plan.happenings.begin(plan, g, terms, carry)
    return carry, (first_outputs(plan, g, carry.y, terms) if plan.saves else (), log)


def advance(plan, g, terms, carry, outputs, limit=None):
    """Turns until every row has ended.

    Args:
        plan: the `Plan`.
        g: the field.
        terms: the `Terms`.
        carry: the `Carry`.
        outputs: the save points so far.
        limit: turns after which to come back, as soon as a segment is complete; `None` for never.

    Returns:
        The carry and the outputs.
    """

    def more(turn, carry):
        running = any_running(carry.control)
        return running if limit is None else running & (turn < limit)

    if not (plan.saves or plan.happenings is not None):
        _, carry = _repeated(
            plan, g, carry, more, lambda turn, carry: attempt(plan, g, terms, carry)[:1], ()
        )
        return carry, ()

    def turn_segment(turn, carry, ring, outputs):
        carry, ring, turns = run_segment(plan, g, terms, carry, ring)
        return turn + turns, carry, ring, collect(plan, g, terms, ring, turns, outputs)

    separate = plan.repeats and components.pays(g, carry.y)
    outputs = taken_apart(outputs) if separate else outputs
    loop = (tf.constant(0), carry, empty_ring(plan, carry, plan.segment), outputs)
    _, carry, _, outputs = tf.while_loop(
        lambda turn, carry, *_: more(turn, carry), turn_segment, loop
    )
    return carry, put_together(outputs) if separate else outputs


def integrate_recorded(plan, g, y0, terms):
    """The whole integration in one segment, which keeps every attempt.

    Returns:
        The last `Carry` and the `Ring`. A row that needs more attempts than the ring holds ends
        with a status.
    """
    carry = start(plan, g, y0, terms)
    ring = empty_ring(plan, carry, plan.segment)
    # So that the record of no turns at all, of a span of length zero, stands at the start.
    ring = ring._replace(times=ring.times + terms.t0, y=write(ring.y, tf.constant(0), y0))
    carry, ring, _ = run_segment(plan, g, terms, carry, ring)
    return carry._replace(control=_end_running(carry.control)), ring


def attempts(control):
    """How many turns of the loop there were: no row rests before it has ended."""
    turns = tf.reduce_max(control[ACCEPTED] + control[REJECTED])
    return tf.cast(tf.maximum(turns, 0.0), tf.int32)


def integrate_times(plan, g, y0, terms):
    """The whole integration, of which only the ends of the steps are kept.

    Returns:
        `(segment + 1, rows)`: the start and the end of every accepted step in order, then NaN. A
        row with more attempts than `plan.segment` is NaN.
    """
    carry = start(plan, g, y0, terms)
    ends = tf.zeros((plan.segment, 2, tf.shape(y0)[0]), y0.dtype)

    def more(turn, carry, ends):
        return (turn < plan.segment) & any_running(carry.control)

    def turn_once(turn, carry, ends):
        carry, record = attempt(plan, g, terms, carry)
        return turn + 1, carry, write(ends, turn, record.times)

    loop = (tf.constant(0), keeping(plan, g, carry), ends)
    _, carry, ends = tf.while_loop(more, turn_once, loop)
    return step_times(terms, ends, _end_running(carry.control))


def step_times(terms, times, control):
    """The accepted steps among records `times`, `(size, 2, rows)`; see `integrate_times`."""
    t, t_next = times[:, 0], times[:, 1]
    accepted = (t != t_next) & (tf.range(times.shape[0])[:, None] < attempts(control))
    full = control[STATUS] == float(Status.RECORD_FULL)
    infinity = tf.constant(float("inf"), times.dtype)
    ends = tf.sort(tf.where(accepted & ~full, terms.direction * t_next, infinity), axis=0)
    nan = tf.constant(float("nan"), times.dtype)
    ends = tf.where(tf.math.is_finite(ends), terms.direction * ends, nan)
    first = tf.where(full, nan, terms.t0)
    return tf.stop_gradient(tf.concat([first[None], ends], axis=0))


def _end_running(control):
    """The control block of rows that still run when the record is full."""
    full = tf.constant(float(Status.RECORD_FULL), control.dtype)
    status = tf.where(control[STATUS] < 0.0, full, control[STATUS])
    return tf.concat([control[:STATUS], status[None], control[STATUS + 1 :]], axis=0)


def finish(plan, carry, outputs, terms=None):
    """The outcome; failed rows are NaN."""
    if plan.happenings is not None:
        return _finish_hybrid(plan, terms, carry, *outputs)
    if not plan.saves:
        return Outcome(nan_where_failed(carry.y, carry.control), (), carry.control)
    y, slopes = outputs
    return Outcome(nan_where_failed(y, carry.control), slopes, carry.control)


def outputs_of(outcome):
    """The outcome as a flat tuple: the states, what happened, and the control block last."""
    if not outcome.log:
        return outcome.y, outcome.control
    times, states, index, count = outcome.log
    notes = tf.cast(tf.concat([index, count[None]], axis=0), times.dtype)
    return outcome.y, times, states, notes, outcome.control


def _finish_hybrid(plan, terms, carry, saved, log):
    """The outcome where something may have happened; a save point at the end is the state there."""
    rows, width = tf.unstack(tf.shape(carry.y))
    entries = plan.happenings.entries_of(log, rows, width)
    if not plan.saves:
        y = nan_where_failed(carry.y, carry.control)
        return Outcome(y, (), carry.control, entries)
    y, slopes = saved
    last = (terms.saves == carry.control[T])[:, :, None]
    y = nan_where_failed(tf.where(last, carry.y, y), carry.control)
    slopes = tf.where(last, tf.zeros_like(slopes), slopes) if plan.save_slopes else ()
    return Outcome(y, slopes, carry.control, entries)


def nan_where_failed(y, control):
    """`y`, `(..., rows, width)`, with NaN in the rows that did not reach the end."""
    failed = control[STATUS] != float(Status.SUCCESS)
    return tf.where(failed[:, None], tf.constant(float("nan"), y.dtype), y)
