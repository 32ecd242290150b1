"""ESDIRK methods: one step for every table."""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_neuralde.checks import check_whole
from keras_neuralde.solution import Status
from keras_neuralde.solvers.base import Solver, Step, pull_back
from keras_neuralde.solvers.explicit_rk import combine
from keras_neuralde.solvers.iteration_matrix import LinearSolver, iteration_matrix
from keras_neuralde.solvers.newton import solve_stage
from keras_neuralde.tableaus import ESDIRK, ESDIRKTableau


class StageSlopes(NamedTuple):
    """The stages of a step.

    Attributes:
        ks: their slopes, each `(rows, width)`.
        y1: the new state.
        converged: `(rows,)` booleans: whether every iteration has.
        count: `(rows,)` evaluations of what is iterated on.
        parts: the slopes of the implicit and of the explicit part, where the field has two.
    """

    ks: list
    y1: tf.Tensor
    converged: tf.Tensor
    count: tf.Tensor
    parts: Any = None


class DiagonallyImplicit(Solver):
    """A singly diagonally implicit method with an explicit first stage, given by its table.

    Each implicit stage solves z_i = h γ f(t + c_i h, y + h Σ_(j<i) a_ij k_j + z_i) by the
    simplified Newton iteration, with one Jacobian and one factored matrix for the step, and
    k_i = z_i / (h γ). Where the embedded formula is no stage of the method, the error estimate is
    multiplied by (I - h γ J)⁻¹, so that stiff components do not spoil it (Hosea & Shampine,
    Applied Numerical Mathematics 20, 1996).

    Args:
        tableau: the name of a table in `keras_neuralde.tableaus.ESDIRK`, or an `ESDIRKTableau` of
            your own.
        newton_limit: the most turns of Newton's iteration; a stage that needs more rejects the
            step. Constant steps, which cannot be retried smaller, allow five times as many.
        linear_solver: `"auto"`, `"dense"`, `"krylov"`, or a `LinearSolver` with settings.

    Example:

    >>> solver = DiagonallyImplicit("kvaerno5")
    >>> solver.order
    5
    """

    implicit = True
    carries_slope = True
    counts_evaluations = True

    def __init__(
        self,
        tableau: str | ESDIRKTableau = "kvaerno5",
        newton_limit: int = 10,
        linear_solver: str | dict | LinearSolver = "auto",
    ) -> None:
        if isinstance(tableau, str):
            if tableau not in ESDIRK:
                raise ValueError(
                    f"`tableau` must name an ESDIRK table, one of {sorted(ESDIRK)}. "
                    f"Received: {tableau!r}"
                )
            tableau = ESDIRK[tableau]
        if not isinstance(tableau, ESDIRKTableau):
            raise TypeError(
                f"`tableau` must be a name or of type ESDIRKTableau. Received: {tableau!r}"
            )
        self.tableau = tableau
        self.newton_limit = check_whole("newton_limit", newton_limit, 2)
        self.linear_solver = LinearSolver.get(linear_solver)
        self.name = tableau.name
        self.order = tableau.order
        self.error_order = tableau.error_order
        self._gamma = float(tableau.gamma)
        self._dense = tableau.interpolant()
        before = (*tableau.a[-2], 0)
        embedded = [b - e for b, e in zip(tableau.b, tableau.error, strict=True)]
        self._filtered = any(abs(x - y) > 1e-12 for x, y in zip(embedded, before, strict=True))

    def get_config(self):
        known = ESDIRK.get(self.tableau.name) is self.tableau
        tableau = self.tableau.name if known else self.tableau
        return {
            "tableau": tableau,
            "newton_limit": self.newton_limit,
            "linear_solver": self.linear_solver.serialize(),
        }

    def dense_degree(self):
        return len(self._dense[0])

    def init(self, g, t, y):
        return g(t, y)

    def step(self, g, t, t_next, y, state, dense):
        h = (t_next - t)[:, None]
        inner = self._linearised(g)
        jacobian, _ = self.linear_solver.linearise(inner, t, y)
        matrix = iteration_matrix(inner, jacobian, self._gamma * h)
        k1 = self._start(g, t, y, state)
        stages = self._stages(g, t, t_next, y, k1, matrix)
        ks, y1, converged, count, _ = stages
        error = self._error(h, stages, matrix)
        regular = matrix.regular
        trouble = tf.where(
            regular,
            tf.constant(float(Status.NEWTON_DIVERGED), y.dtype),
            tf.constant(float(Status.SINGULAR_MATRIX), y.dtype),
        )
        # A row whose field is not finite has no root either, and that is what it is told.
        finite = tf.math.is_finite(tf.reduce_sum(y1 + ks[-1], axis=1))
        ok = regular & (converged | ~finite)
        coefficients = self._interpolate(h, ks) if dense else None
        return Step(y1, error, coefficients, self._handed_on(ks, state), ok, trouble, count)

    def _error(self, h, stages, matrix):
        """The error estimate."""
        error = h * combine(self.tableau.error, stages.ks)
        return matrix.solve(error) if self._filtered else error

    def _start(self, g, t, y, state):
        """The slope of the first stage."""
        return state

    def _handed_on(self, slopes, state):
        """The solver state after the step."""
        return slopes[-1]

    def _linearised(self, g):
        """The part of the field that is iterated on."""
        return g

    def advance(self, g, t, t_next, y, dense):
        proposal = self.step(g, t, t_next, y, self.init(g, t, y), dense)
        return proposal.y1, proposal.dense

    def _stages(self, g, t, t_next, y, k1, matrix):
        """All stages, one after the other."""
        table = self.tableau
        h = (t_next - t)[:, None]
        limit = self.newton_limit * (5 if g.implicit.tolerances is None else 1)
        moving = tf.not_equal(t_next, t)
        safe = tf.where(moving[:, None], h, tf.ones_like(h))
        ks = [k1]
        converged, count = ~moving | moving, tf.zeros_like(t)
        for node, row in zip(table.c[1:], table.a[1:], strict=True):
            increment = combine(row[:-1], ks)
            base = y if increment is None else y + h * increment
            time = t_next if node == 1 else t + float(node) * (t_next - t)
            guess = (self._gamma * h) * ks[-1]
            root = solve_stage(
                g, time, base, self._gamma * h, matrix, guess, moving & converged, limit
            )
            converged &= root.converged
            count += root.evaluations
            slope = root.z / (self._gamma * safe)
            ks.append(tf.where(moving[:, None], slope, k1))
        return StageSlopes(ks, base + root.z, converged, count)

    def _interpolate(self, h, ks):
        columns = [combine(column, ks) for column in zip(*self._dense, strict=True)]
        return tf.concat([h * column for column in columns], axis=1)

    def step_vjp(self, field, t, t_next, y, theta, y1_bar, dense_bar, time_gradient):
        """The vector-Jacobian product of a step by the implicit function theorem.

        The stages are solved once more and then taken for exact: from
        k_i = f(t_i, y + h Σ_(j<=i) a_ij k_j) follows for the cotangent k̄_i of an implicit stage
        that (I - h γ J_i)ᵀ w = k̄_i, with J_i at the stage itself, and w goes through the field as
        the cotangent of an explicit stage would. No iteration is differentiated.
        """
        table = self.tableau
        g = field.bind(theta)
        h = (t_next - t)[:, None]
        captures, variables = field.captures, list(field.variables)
        parameters = theta[: len(theta) - len(captures)]
        leaves = [*parameters, *captures, *variables]
        jacobian, _ = self.linear_solver.linearise(g, t, y)
        matrix = iteration_matrix(g, jacobian, self._gamma * h)
        ks = self._stages(g, t, t_next, y, g(t, y), matrix).ks

        degree = self.dense_degree()
        given = [y1_bar] if dense_bar is None else [y1_bar, *tf.split(dense_bar, degree, axis=1)]
        zero = tf.zeros_like(t)
        y_bar, h_bar, t_bar, t_next_bar = y1_bar, zero, zero, zero
        arguments: list = []  # the cotangents of the arguments of the stages behind, last first
        totals: list = []
        for j in reversed(range(table.num_stages)):
            weights = [table.b[j]] if dense_bar is None else [table.b[j], *self._dense[j]]
            behind = [table.a[i][j] for i in reversed(range(j + 1, table.num_stages))]
            parts = [combine(weights, given), combine(behind, arguments)]
            parts = [part for part in parts if part is not None]
            w = tf.add_n(parts) if parts else tf.zeros_like(y)
            time = (
                tf.identity(t_next) if table.c[j] == 1 else (t + float(table.c[j]) * (t_next - t))
            )
            increment = combine(table.a[j], ks)
            argument = tf.identity(y) if increment is None else y + h * increment
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([time, argument, *theta, *captures, *variables])
                slope = field(time, argument, theta)
            cotangent = h * w
            if j > 0:
                here, _ = self.linear_solver.linearise(g, time, argument)
                here = iteration_matrix(g, here, self._gamma * h)
                cotangent = here.solve_transposed(cotangent)
            bars = pull_back(tape, slope, [time, argument, *leaves], [cotangent])
            share = w if j == 0 else w + self._gamma * bars[1]
            h_bar += tf.reduce_sum(ks[j] * share, axis=1)
            node = float(table.c[j])
            t_bar += (1.0 - node) * bars[0]
            t_next_bar += node * bars[0]
            arguments.append(bars[1])
            y_bar += bars[1]
            totals = [a + b for a, b in zip(totals, bars[2:], strict=True)] if totals else bars[2:]
        theta_bar, variables_bar = totals[: len(theta)], totals[len(theta) :]
        if not time_gradient:
            return None, None, y_bar, theta_bar, variables_bar
        return t_bar - h_bar, t_next_bar + h_bar, y_bar, theta_bar, variables_bar
