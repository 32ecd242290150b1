"""ESDIRK methods: one step for every table."""

from typing import Literal, NamedTuple

import tensorflow as tf

from keras_neuralde.checks import check_whole
from keras_neuralde.solution import Status
from keras_neuralde.solvers import algebraic
from keras_neuralde.solvers.base import Solver, Step, pull_back
from keras_neuralde.solvers.explicit_rk import combine
from keras_neuralde.solvers.factorization import UNROLLED
from keras_neuralde.solvers.iteration_matrix import (
    LinearSolver,
    iteration_matrix,
    solve_transposed,
)
from keras_neuralde.solvers.kept_matrix import judge, recall, room
from keras_neuralde.solvers.mass import times_mass
from keras_neuralde.solvers.newton import solve_stage
from keras_neuralde.tableaus import ESDIRK, ESDIRKTableau

#: From this many components on the matrix of a step is used again by default.
REUSE = 32


class Stages(NamedTuple):
    """The stages of a step.

    Attributes:
        ks: the slopes of what is iterated on, each `(rows, width)`.
        es: those of the explicit part, an empty list where the field has none.
        last: the argument of the last stage.
        converged: `(rows,)` booleans: whether every iteration has.
        count: `(rows,)` evaluations of what is iterated on.
    """

    ks: list
    es: list
    last: tf.Tensor
    converged: tf.Tensor
    count: tf.Tensor

    @property
    def slopes(self):
        """The slopes of the field."""
        return [k + e for k, e in zip(self.ks, self.es, strict=True)] if self.es else self.ks


class DiagonallyImplicit(Solver):
    """A singly diagonally implicit method with an explicit first stage, given by its table.

    Each implicit stage solves z_i = h γ f(t + c_i h, y + h Σ_(j<i) a_ij k_j + z_i) by the
    simplified Newton iteration, with one Jacobian and one factored matrix for the step, and
    k_i = z_i / (h γ). Where the embedded formula is no stage of the method, the error estimate is
    multiplied by (I - h γ J)⁻¹, so that stiff components do not spoil it (Hosea & Shampine,
    Applied Numerical Mathematics 20, 1996).

    With a singular mass matrix the stages solve M z_i = h γ f(...), and the slope handed on only
    has to solve M k_1 = f: the new state does not depend on the rest of it. Between the ends of a
    step stands the cubic with the slopes of `algebraic.slope`.

    Args:
        tableau: the name of a table in `keras_neuralde.tableaus.ESDIRK`, or an `ESDIRKTableau` of
            your own.
        newton_limit: the most turns of Newton's iteration; a stage that needs more rejects the
            step. Constant steps, which cannot be retried smaller, allow five times as many.
        linear_solver: `"auto"`, `"dense"`, `"krylov"`, or a `LinearSolver` with settings.
        jacobian_reuse: whether steps go on with the Jacobian and the factors of earlier ones as
            long as Newton's iteration converges well with them. `"auto"`, the default: for one
            trajectory, or a batch with joint steps, of 32 components or more without a banded
            `jac_sparsity`. Never with GMRES, nor for fewer than four components.

    Example:

    >>> solver = DiagonallyImplicit("kvaerno5")
    >>> solver.order
    5
    """

    implicit = True
    singular_mass = True
    carries_slope = True
    counts_evaluations = True
    counts_jacobians = True

    def __init__(
        self,
        tableau: str | ESDIRKTableau = "kvaerno5",
        newton_limit: int = 10,
        linear_solver: str | dict | LinearSolver = "auto",
        jacobian_reuse: Literal["auto"] | bool = "auto",
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
        if not (jacobian_reuse == "auto" or isinstance(jacobian_reuse, bool)):
            raise ValueError(
                f"`jacobian_reuse` must be 'auto', True or False. Received: {jacobian_reuse!r}"
            )
        self.tableau = tableau
        self.newton_limit = check_whole("newton_limit", newton_limit, 2)
        self.jacobian_reuse = jacobian_reuse
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
            "jacobian_reuse": self.jacobian_reuse,
        }

    def dense_degree(self):
        return len(self._dense[0])

    def init(self, g, t, y):
        f = g(t, y)
        return f if g.implicit.mass is None else algebraic.some_slope(g, f)

    def keep(self, g, y):
        inner, _ = self._parts(g)
        if self.jacobian_reuse == "auto":
            # In a batch some row needs a new matrix in most turns, and then all are computed.
            # Blocks along a line are as cheap to make as the turns that they save.
            dense = inner.implicit.band is None
            reuse = inner.size >= REUSE and y.shape[0] == 1 and dense
        else:
            reuse = self.jacobian_reuse and inner.size > UNROLLED
        if not reuse or self.linear_solver.iterates(inner):
            return ()
        return room(inner, self.linear_solver, y)

    def step(self, g, t, t_next, y, state, dense, kept=()):
        h = (t_next - t)[:, None]
        inner, _ = self._parts(g)
        moving = tf.not_equal(t_next, t)
        if kept:
            matrix, fresh, kept = recall(
                inner, self.linear_solver, t, y, self._gamma * h, moving, kept
            )
        else:
            jacobian, _ = self.linear_solver.linearise(inner, t, y)
            matrix, fresh = iteration_matrix(inner, jacobian, self._gamma * h), moving
        # A slope that is not carried over is an evaluation of its own.
        first, cost = (state, 0.0) if self.carries_slope else (inner(t, y), 1.0)
        stages = self.stages(g, t, t_next, y, first, matrix)
        y1 = self._arrival(h, y, stages)
        regular, coefficients = matrix.regular, None
        if dense and inner.implicit.mass is not None:
            if self.dense_degree() != 3:
                raise ValueError(
                    "with a singular mass matrix steps are interpolated by cubics, which the table "
                    f"{self.name!r} must do too: give its `dense` three columns, or none. "
                    f"Received: {self.dense_degree()} columns"
                )
            start, one = algebraic.slope(inner, t, y)
            end, other = algebraic.slope(inner, t_next, y1)
            coefficients = algebraic.cubic(h, y, y1, start, end)
            regular, cost = regular & one & other, cost + 2.0
        elif dense:
            coefficients = self._interpolate(h, stages)
        trouble = tf.where(
            regular,
            tf.constant(float(Status.NEWTON_DIVERGED), y.dtype),
            tf.constant(float(Status.SINGULAR_MATRIX), y.dtype),
        )
        # A row whose field is not finite has no root either, and that is what it is told.
        finite = tf.math.is_finite(tf.reduce_sum(y1 + stages.ks[-1], axis=1))
        again = None
        if kept:
            good = stages.converged & finite
            again = moving & ~fresh & ~good
            kept = judge(
                kept,
                moving,
                fresh,
                good & regular,
                again,
                stages.count,
                self.tableau.num_stages - 1,
            )
        return Step(
            y1,
            self._error(inner, h, stages, matrix),
            coefficients,
            stages.ks[-1] if self.carries_slope else state,
            regular & (stages.converged | ~finite),
            trouble,
            stages.count + cost,
            kept=kept,
            again=again,
            num_jac=tf.cast(fresh, y.dtype),
        )

    def _parts(self, g):
        """What is iterated on, and the explicit part of the field, or `None`."""
        return g, None

    def _arrival(self, h, y, stages):
        """The new state."""
        return stages.last

    def _error(self, inner, h, stages, matrix):
        """The error estimate."""
        error = h * combine(self.tableau.error, stages.ks)
        if self._filtered:
            error = matrix.solve(times_mass(inner, error))
        # What an explicit part adds to the new state is not damped, so neither is its error.
        return error + h * combine(self.tableau.error, stages.es) if stages.es else error

    def advance(self, g, t, t_next, y, dense):
        proposal = self.step(g, t, t_next, y, self.init(g, t, y), dense)
        return proposal.y1, proposal.dense

    def _time(self, i, t, t_next):
        """The time of stage `i`."""
        node = self.tableau.c[i]
        return tf.identity(t_next) if node == 1 else t + float(node) * (t_next - t)

    def _argument(self, i, y, h, ks, es):
        """Where stage `i` evaluates the field, as far as the slopes at hand go."""
        parts = [combine(self.tableau.a[i], ks)]
        if es:
            parts.append(combine(self.tableau.explicit[i], es))
        parts = [part for part in parts if part is not None]
        return y + h * tf.add_n(parts) if parts else tf.identity(y)

    def stage(self, i, t, t_next, y, stages):
        """The time and the argument of stage `i` of a step with the given `Stages`."""
        h = (t_next - t)[:, None]
        return self._time(i, t, t_next), self._argument(i, y, h, stages.ks, stages.es)

    def stages(self, g, t, t_next, y, k1, matrix):
        """All stages, one after the other: `Stages`.

        Args:
            g: the field.
            t: as in `step`.
            t_next: likewise.
            y: likewise.
            k1: the slope of the first stage, `(rows, width)`; with a singular mass matrix any that
                solves M k1 = f.
            matrix: the `IterationMatrix` of the step.
        """
        inner, outer = self._parts(g)
        h = (t_next - t)[:, None]
        limit = self.newton_limit * (5 if inner.implicit.tolerances is None else 1)
        moving = tf.not_equal(t_next, t)
        safe = tf.where(moving[:, None], h, tf.ones_like(h))
        ks, es = [k1], [] if outer is None else [outer(t, y)]
        converged, count = ~moving | moving, tf.zeros_like(t)
        for i in range(1, self.tableau.num_stages):
            time, base = self._time(i, t, t_next), self._argument(i, y, h, ks, es)
            guess = (self._gamma * h) * ks[-1]
            root = solve_stage(
                inner, time, base, self._gamma * h, matrix, guess, moving & converged, limit
            )
            converged &= root.converged
            count += root.evaluations
            slope = root.z / (self._gamma * safe)
            ks.append(tf.where(moving[:, None], slope, k1))
            last = base + root.z
            if outer is not None:
                es.append(outer(time, last))
        return Stages(ks, es, last, converged, count)

    def _interpolate(self, h, stages):
        columns = [combine(column, stages.slopes) for column in zip(*self._dense, strict=True)]
        return tf.concat([h * column for column in columns], axis=1)

    def step_vjp(self, field, t, t_next, y, theta, y1_bar, dense_bar, time_gradient):
        """The vector-Jacobian product of a step by the implicit function theorem.

        The stages are solved once more and then taken for exact. With w_j what y1 and the later
        stages send to k_j = f(t_j, Y_j), the cotangent c of the field at an implicit stage solves
        (I - h γ J_j)ᵀ c = h w_j, with J_j at the stage itself, and c goes through the field as the
        cotangent of an explicit stage would. No iteration is differentiated.

        An explicit part f_E beside the implicit one sends e = J_Eᵀ h w^E to the argument of its
        stage; the right-hand side is h (w_j + γ e) then, and Ȳ_j = e + J_jᵀ c.
        """
        table = self.tableau
        g = field.bind(theta)
        if g.implicit.mass is not None:
            return algebraic.step_vjp(
                self, field, t, t_next, y, theta, y1_bar, dense_bar, time_gradient
            )
        (inner, _), (inner_field, outer_field) = self._parts(g), self._parts(field)
        h = (t_next - t)[:, None]
        captures, variables = field.captures, list(field.variables)
        parameters = theta[: len(theta) - len(captures)]
        leaves = [*parameters, *captures, *variables]
        jacobian, _ = self.linear_solver.linearise(inner, t, y)
        matrix = iteration_matrix(inner, jacobian, self._gamma * h)
        stages = self.stages(g, t, t_next, y, inner(t, y), matrix)
        ks, es = stages.ks, stages.es

        degree = self.dense_degree()
        given = [y1_bar] if dense_bar is None else [y1_bar, *tf.split(dense_bar, degree, axis=1)]
        zero = tf.zeros_like(t)
        y_bar, h_bar, t_bar, t_next_bar = y1_bar, zero, zero, zero
        arguments: list = []  # the cotangents of the arguments of the stages behind, last first
        totals: list = []
        for j in reversed(range(table.num_stages)):
            weights = [table.b[j]] if dense_bar is None else [table.b[j], *self._dense[j]]
            direct = combine(weights, given)
            behind = list(reversed(range(j + 1, table.num_stages)))

            def received(rows, j=j, direct=direct, behind=behind):
                parts = [direct, combine([rows[i][j] for i in behind], arguments)]
                parts = [part for part in parts if part is not None]
                return tf.add_n(parts) if parts else tf.zeros_like(y)

            w = received(table.a)
            time, argument = self.stage(j, t, t_next, y, stages)
            sources = [time, argument, *leaves]
            with tf.GradientTape(persistent=bool(es), watch_accessed_variables=False) as tape:
                tape.watch([time, argument, *theta, *captures, *variables])
                slope = inner_field(time, argument, theta)
                other = outer_field(time, argument, theta) if es else None
            cotangent = h * w
            if es:
                w_outer = received(table.explicit)
                outer_bars = pull_back(tape, other, sources, [h * w_outer])
                h_bar += tf.reduce_sum(es[j] * w_outer, axis=1)
                if j > 0:
                    cotangent += (self._gamma * h) * outer_bars[1]
            if j > 0:
                here, _ = self.linear_solver.linearise(inner, time, argument)
                here = iteration_matrix(inner, here, self._gamma * h)
                at = time, argument
                cotangent = solve_transposed(inner, at, here, self._gamma * h, cotangent)
            bars = pull_back(tape, slope, sources, [cotangent])
            if es:
                bars = [a + b for a, b in zip(bars, outer_bars, strict=True)]
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
