"""What happened, backwards.

The derivative of an event is the implicit function theorem on the interpolant. With the state
Y(t), inside the step, the root t* of c(t*, Y(t*), p) = 0 moves by

    dt* = -(c_y · dY + c_p · dp) / ċ,    ċ = c_t + c_y · Y'(t*),

where dY is the change of the interpolant at a fixed time (Rozenvasser, "General sensitivity
equations of discontinuous systems", Automation and Remote Control 28, 1967). The state after the
event is the affect A(t*, Y(t*), p), and the steps that follow start at t*.
"""

from typing import NamedTuple

import tensorflow as tf

from keras_neuralde.events import ROOT
from keras_neuralde.happenings.affects import number_of, rows_of
from keras_neuralde.happenings.roots import Inside
from keras_neuralde.solvers.base import pull_back


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


class Reverse:
    """The vector-Jacobian products of what happened.

    Args:
        channels: the `Channel`s.
        affects: the `Affects`.
        logbook: the `Logbook`.
    """

    def __init__(self, channels, affects, logbook):
        self._channels, self._affects, self._logbook = channels, affects, logbook
        self._roots = [e for e, c in enumerate(channels) if c.kind == ROOT]

    def turn(self, plan, field, theta, record, y_bar, t_bar, count, told):
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
        inside = Inside(t, t_next, record.y, record.dense, plan.solver.dense_degree())
        root, _, number = tf.unstack(record.notes)
        rooted = root >= 0
        share = tf.where(rooted, (t_stop - t) / inside.length, tf.ones_like(t))
        happened = tf.reduce_any(record.fired > 0, axis=0)[:, None]
        # A step that was rejected may have no numbers inside.
        y_stop = tf.where(happened, inside.state(share), record.y)
        slope = tf.where(happened, inside.slope(share), tf.zeros_like(record.y))
        before_bar, told_bar, count = self._logbook.read_back(record.fired, count, told)

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

    def start(self, field, theta, t, y0, fired, y_bar, t_bar, count, told):
        """The same for what happened at the start: `(y_bar, t_bar, theta_bar, variables_bar)`.

        Args:
            field: the `Field`.
            theta: the differentiable tensors that it reads.
            t: `(rows,)`, the start.
            y0: `(rows, width)`, the state before.
            fired: `(channels, rows)` int32.
            y_bar: cotangent of the state after.
            t_bar: cotangent of the time after.
            count: the log's entries that were written there.
            told: as in `turn`.
        """
        before_bar, told_bar, _ = self._logbook.read_back(fired, count, told)
        number = tf.zeros_like(t, tf.int32)
        none = tf.fill(tf.shape(t), -1)
        stop_bar, y_bar, *totals = self._reverse_affects(
            field, theta, t, y0, fired, number, y_bar, before_bar, t_bar + told_bar, none, None
        )
        return y_bar, stop_bar, totals[: len(theta)], totals[len(theta) :]

    def _reverse_affects(
        self, field, theta, t, y, fired, number, y_bar, before_bar, t_bar, root, slope
    ):
        """Cotangents of the time and the state of what happened, and of what the field reads."""
        captures, variables = field.captures, list(field.variables)
        parameters = theta[: len(theta) - len(captures)]
        bound = field.bind(theta)
        _, states = self._affects.apply(bound, t, y, fired, number)
        totals = [tf.zeros_like(x) for x in [*theta, *variables]]
        for e in reversed(range(len(self._channels))):
            if self._channels[e].affect is not None:
                now = fired[e] > 0
                at = rows_of(now)
                here, before = tf.gather(t, at), tf.gather(states[e], at)
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch([here, before, *theta, *captures, *variables])
                    changed = self._affects.changed(bound, e, here, before, number)
                sources = [here, before, *parameters, *captures, *variables]
                given = tf.where(now[:, None], y_bar, tf.zeros_like(y_bar))
                own, state_bar, *bars = pull_back(tape, changed, sources, [given])
                t_bar += tf.where(now, own, tf.zeros_like(own))
                y_bar = tf.where(now[:, None], state_bar, y_bar)
                totals = self._added(totals, bars, now)
            y_bar += before_bar[e]
        y_stop_bar = y_bar
        if slope is None:
            return t_bar, y_stop_bar, *totals
        moved = t_bar + tf.reduce_sum(y_stop_bar * slope, axis=1)
        for e in self._roots:
            if self._channels[e].held:
                continue
            now = root == e
            at = rows_of(now)
            here, there = tf.gather(t, at), tf.gather(y, at)
            sources = [here, there, *parameters, *captures, *variables]
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                tape.watch(sources + theta)
                value = number_of(bound, self._channels[e].condition, here, there)
            by_t, by_y = pull_back(tape, value, [here, there], [tf.ones_like(value)])
            rate = by_t + tf.reduce_sum(by_y * tf.gather(slope, at), axis=1)
            weight = tf.where(now, -moved, tf.zeros_like(moved))
            weight = tf.math.divide_no_nan(weight, rate)
            _, state_bar, *bars = pull_back(tape, value, sources, [weight])
            y_stop_bar += tf.where(now[:, None], state_bar, tf.zeros_like(state_bar))
            totals = self._added(totals, bars, now)
        return t_bar, y_stop_bar, *totals

    def _added(self, totals, bars, now):
        """The sums; where something happened nowhere, it may have no derivative anywhere."""
        any_now = tf.reduce_any(now)
        bars = [tf.where(any_now, bar, tf.zeros_like(bar)) for bar in bars]
        return [a + b for a, b in zip(totals, bars, strict=True)]
