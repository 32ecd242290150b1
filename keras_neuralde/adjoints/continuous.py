"""The continuous adjoint: λ' = -λ ∂f/∂y, integrated backwards between the save points.

The gradient of the exact solution, computed to the tolerance of the backward solve (Pontryagin;
Chen et al., "Neural Ordinary Differential Equations", 2018). At a save point λ jumps by the
cotangent that arrives there. Every trajectory chooses its own steps. The gradient of the
parameters, ∫ λ ∂f/∂p dt, is taken step by step with Gauss-Legendre points inside the step's
interpolant, so that it is no part of the state and takes no part in the choice of steps.

What differs between the three adjoints of this family is where y comes from on the way back, and
when the integral is taken; see `Backsolve`, `Interpolating` and `Quadrature`.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from keras_neuralde import controllers
from keras_neuralde.adjoints.base import Adjoint
from keras_neuralde.checks import check_not_negative, check_whole
from keras_neuralde.integrate import STATUS, H, Terms, any_running, attempt, start
from keras_neuralde.interpolation import horner
from keras_neuralde.solution import Status
from keras_neuralde.solvers.base import pull_back


@dataclasses.dataclass(frozen=True)
class ContinuousAdjoint(Adjoint):
    """Base of the adjoints that solve an equation of their own.

    Args:
        rtol: relative tolerance of the backward solve; that of the forward one by default.
        atol: absolute tolerance likewise.
        nodes: Gauss-Legendre points per step for the integral over the parameters; by default as
            many as the method's order asks for.
    """

    rtol: float | None = None
    atol: float | None = None
    nodes: int | None = None

    def __post_init__(self):
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None:
                check_not_negative(name, value)
        if self.nodes is not None:
            check_whole("nodes", self.nodes)


def field_vjp(field, t, y, theta, bar, parameters):
    """The field and its vector-Jacobian product.

    Args:
        field: the `Field`.
        t: `(rows,)`.
        y: `(rows, width)`.
        theta: the differentiable tensors of the field.
        bar: `(rows, width)`, the cotangent.
        parameters: whether to go on to the parameters instead of the state.

    Returns:
        `(dy, y_bar)`, or `(theta_bar, variables_bar)` with `parameters`.
    """
    captures = field.captures if parameters else []
    variables = list(field.variables) if parameters else []
    own = list(theta[: len(theta) - len(field.captures)]) if parameters else []
    # A new tensor, so that a tape can tell it from the caller's.
    y = tf.identity(y)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([*own, *captures, *variables] if parameters else y)
        dy = field(t, y, theta)
    if not parameters:
        return dy, pull_back(tape, dy, [y], bar)[0]
    bars = pull_back(tape, dy, [*own, *captures, *variables], bar)
    return bars[: len(theta)], bars[len(theta) :]


class Sweep:
    """The backward solve from the last save point to the start.

    Args:
        settings: a `ContinuousAdjoint`.
        task: the `Task`.
        field: the `Field`.
        terms: the `Terms` of the forward solve.
        theta: the differentiable tensors of the field.
        outcome: `(y, control)` of the forward solve.
        y0: `(rows, width)`.
        y_at: `y_at(t)` → `(rows, width)`, where y comes from on the way back; `None` to solve for
            it together with λ.
    """

    def __init__(self, settings, task, field, terms, theta, outcome, y0, y_at=None):
        self.field, self.terms, self.theta, self.y0 = field, terms, theta, y0
        y, control = outcome
        self.failed = control[STATUS] != float(Status.SUCCESS)
        self.y = y if task.plan.saves else y[None]
        self.y_at = None
        if y_at is not None:
            self.y_at = lambda t: tf.where(self.failed[:, None], y0, y_at(t))
        self.time_gradient = task.time_gradient
        solver = task.plan.solver
        self.plan = dataclasses.replace(
            task.plan, controller=_own_steps(settings, task.plan), saves=True, save_slopes=False,
            first_step=False,
        )  # fmt: skip
        self.chooses_first = task.plan.first_step or task.plan.replays
        count = settings.nodes or solver.order // 2 + 1
        nodes, weights = np.polynomial.legendre.leggauss(count)
        self.nodes, self.weights = (nodes + 1.0) / 2.0, weights / 2.0
        self.rtol = self._tolerance(settings.rtol, terms.rtol)
        self.atol = self._tolerance(settings.atol, terms.atol)

    def _tolerance(self, own, given):
        if own is not None:
            return tf.constant(own, self.terms.t0.dtype)
        if given.shape.rank == 0 or self.y_at is not None:
            return given
        return tf.concat([given, given], axis=-1)

    def g(self, t, z):
        """The right-hand side for z = λ, or z = (y, λ) when y is solved for too."""
        y, adjoint = self._split(t, z)
        dy, y_bar = field_vjp(self.field, t, y, self.theta, adjoint, parameters=False)
        return -y_bar if self.y_at is not None else tf.concat([dy, -y_bar], axis=1)

    def _split(self, t, z):
        if self.y_at is not None:
            return self.y_at(t), z
        return tf.split(z, 2, axis=1)

    def run(self, y_bar, listener, memory):
        """Integrates backwards.

        Args:
            y_bar: the cotangents of the states at the save points, `(num_times, rows, width)`.
            listener: `listener(memory, times, z, dense)` → `memory`, told of every turn.
            memory: a nest of tensors.

        Returns:
            `(adjoint, memory)`, the former NaN in rows where the backward solve failed.
        """
        saves, terms = self._times(), self.terms
        count = tf.shape(saves)[0]
        z = tf.zeros_like(self.y0)
        z = z if self.y_at is not None else tf.concat([self.y0, z], axis=1)
        h = terms.dt0 * tf.ones_like(terms.t0)
        if self.chooses_first:
            jump = self._jump(z, y_bar, count - 1)
            plan = dataclasses.replace(self.plan, first_step=True)
            whole = self._span(saves[count - 1], terms.t0, h)
            h = start(plan, self.g, jump, whole).control[H]

        def interval(k, z, h, memory):
            z = self._jump(z, y_bar, k)
            low = tf.where(k > 0, saves[tf.maximum(k - 1, 0)], terms.t0)
            span = self._span(saves[k], low, h)
            carry = start(self.plan, self.g, z, span)

            def turn(carry, memory):
                carry, record = attempt(self.plan, self.g, span, carry)
                return carry, listener(memory, record.times, record.y, record.dense)

            carry, memory = tf.while_loop(
                lambda carry, memory: any_running(carry.control), turn, (carry, memory)
            )
            failed = carry.control[STATUS] != float(Status.SUCCESS)
            nan = tf.constant(float("nan"), z.dtype)
            moved = tf.abs(span.t_end - span.t0) > 0.0
            h = tf.where(moved & ~failed, carry.control[H], h)
            return k - 1, tf.where(failed[:, None], nan, carry.y), h, memory

        _, z, _, memory = tf.while_loop(lambda k, *_: k >= 0, interval, (count - 1, z, h, memory))
        return z if self.y_at is not None else tf.split(z, 2, axis=1)[1], memory

    def integrate_on_the_way(self, y_bar):
        """The gradient, with the integral over the parameters taken as the steps are."""

        def listener(totals, times, z, dense):
            return tf.nest.map_structure(tf.add, totals, self.integral(times, z, dense))

        adjoint, totals = self.run(y_bar, listener, self.zeros())
        return self.gradient(adjoint, y_bar, totals)

    def cotangents(self, y_bar):
        """The cotangents that arrive, with a time axis; none in rows that failed, or at pads."""
        y_bar = y_bar if self.terms.saves is not None else y_bar[None]
        return tf.where(tf.math.is_finite(self.y), y_bar, tf.zeros_like(y_bar))

    def _times(self):
        """Save times `(num_times, rows)`; pads rest on the end, failed rows on the start."""
        terms = self.terms
        full = terms.t_end[None] if terms.saves is None else terms.saves + tf.zeros_like(terms.t0)
        full = tf.where(tf.math.is_finite(full), full, terms.t_end)
        return tf.where(self.failed, terms.t0, full)

    def _jump(self, z, y_bar, k):
        """λ takes up the cotangent of save point `k`, and y its saved value."""
        bar = tf.gather(y_bar, k)
        if self.y_at is not None:
            return z + bar
        saved = tf.gather(self.y, k)
        state, adjoint = tf.split(z, 2, axis=1)
        return tf.concat([tf.where(tf.math.is_finite(saved), saved, state), adjoint + bar], axis=1)

    def _span(self, high, low, h):
        terms = self.terms
        return Terms(high, low, -terms.direction, self.rtol, self.atol, h, terms.dt_min, None)

    def integral(self, times, z, dense):
        """-∫ λ ∂f/∂p dt over one backward step: `(theta_bar, variables_bar)`.

        Args:
            times: `(2, rows)`, where the step begins and ends; equal where it was rejected.
            z: the state before it.
            dense: its interpolation coefficients.
        """
        t, t_next = times[0], times[1]
        moved = (t != t_next)[:, None]
        h = t_next - t
        coefficients = tf.split(dense, self.plan.solver.dense_degree(), axis=1)
        totals = None
        for node, weight in zip(self.nodes, self.weights, strict=True):
            theta = tf.constant(node, z.dtype)
            inside = tf.where(moved, horner(z, coefficients, theta)[0], z)
            time = t + theta * h
            y, adjoint = self._split(time, inside)
            bar = tf.where(moved, -(float(weight) * h)[:, None] * adjoint, tf.zeros_like(adjoint))
            part = field_vjp(self.field, time, y, self.theta, bar, parameters=True)
            totals = part if totals is None else tf.nest.map_structure(tf.add, totals, part)
        return totals

    def zeros(self):
        """The totals of `integral` before the first step."""
        return (
            [tf.zeros_like(tensor) for tensor in self.theta],
            [tf.zeros_like(variable) for variable in self.field.variables],
        )

    def gradient(self, adjoint, y_bar, totals):
        """All cotangents, as `differentiable` wants them.

        Args:
            adjoint: λ at the start, `(rows, width)`.
            y_bar: the cotangents at the save points.
            totals: `(theta_bar, variables_bar)`.
        """
        terms, saves = self.terms, self.terms.saves
        t0_bar = t_end_bar = tf.zeros_like(terms.t0)
        saves_bar = tf.zeros((0, 1), adjoint.dtype) if saves is None else tf.zeros_like(saves)
        if self.time_gradient:
            # A later start leaves out f dt; a later save point adds it.
            t0_bar = -self._rate(adjoint, terms.t0, self.y0)
            rates = self._rates(y_bar)
            if saves is None:
                t_end_bar = rates[0]
            else:
                shared = saves.shape[1] == 1 and rates.shape[1] != 1
                saves_bar = tf.reduce_sum(rates, axis=1, keepdims=True) if shared else rates
        # A row that failed on the way back must not pass for one that has nothing to add.
        poison = 0.0 * tf.reduce_sum(adjoint)
        theta_bar, variables_bar = tf.nest.map_structure(lambda bar: bar + poison, totals)
        return t0_bar, t_end_bar, saves_bar, adjoint, list(theta_bar), list(variables_bar)

    def _rate(self, bar, t, y):
        return tf.reduce_sum(bar * self.field(t, y, self.theta), axis=1)

    def _rates(self, y_bar):
        """What a later save point is worth, `(num_times, rows)`."""
        times = self._times()

        def rate(k):
            y = tf.gather(self.y, k)
            y = tf.where(tf.math.is_finite(y), y, self.y0)
            return self._rate(tf.gather(y_bar, k), tf.gather(times, k), y)

        return tf.map_fn(rate, tf.range(tf.shape(times)[0]), fn_output_signature=y_bar.dtype)


def _own_steps(settings, plan):
    """The step control of the backward solve."""
    if not plan.replays:
        return plan.controller
    if not plan.solver.adaptive:
        raise ValueError(
            f"adjoint={settings.name!r} cannot go backwards over replayed steps, and solver "
            f"{plan.solver.name!r} cannot choose its own: use adjoint='discrete'."
        )
    return controllers.get("I")
