"""Implicit-explicit methods: one part of the field implicit, the other explicit."""

import tensorflow as tf

from keras_neuralde.solvers.base import pull_back
from keras_neuralde.solvers.esdirk import DiagonallyImplicit, StageSlopes
from keras_neuralde.solvers.explicit_rk import combine
from keras_neuralde.solvers.iteration_matrix import LinearSolver, iteration_matrix
from keras_neuralde.solvers.newton import solve_stage
from keras_neuralde.tableaus import ESDIRK, ESDIRKTableau

#: The tables that have an explicit companion.
PAIRS = tuple(name for name, table in ESDIRK.items() if table.explicit)


class ImplicitExplicit(DiagonallyImplicit):
    """An additive Runge-Kutta pair for y' = f_E(t, y) + f_I(t, y): what a `SplitODEProblem` takes.

    The stages treat f_I as the ESDIRK method of the table does and f_E by its explicit companion,
    which shares nodes and weights (Kennedy & Carpenter, Applied Numerical Mathematics 44, 2003):

        Y_i = y + h Σ_(j<i) (a^E_ij f_E(t_j, Y_j) + a_ij f_I(t_j, Y_j)) + h γ f_I(t_i, Y_i),
        y1 = y + h Σ_i b_i (f_E(t_i, Y_i) + f_I(t_i, Y_i)).

    Newton's iterations and Jacobians see f_I alone.

    Args:
        tableau: the name of an ESDIRK table with an explicit companion, or such a table.
        newton_limit: as in `DiagonallyImplicit`.
        linear_solver: likewise.

    Raises:
        ValueError: for a table without an explicit companion.

    Example:

    >>> ImplicitExplicit("kencarp4").order
    4
    """

    carries_slope = False
    splits = True

    def __init__(
        self,
        tableau: str | ESDIRKTableau = "kencarp4",
        newton_limit: int = 10,
        linear_solver: str | dict | LinearSolver = "auto",
    ) -> None:
        super().__init__(tableau, newton_limit, linear_solver)
        if not self.tableau.explicit:
            raise ValueError(
                "a split equation needs a method with an explicit companion, one of "
                f"{list(PAIRS)}. Received: {self.name!r}"
            )

    def init(self, g, t, y):
        # The last stage is not the new state: no slope is handed on.
        return tf.zeros_like(y)

    def _start(self, g, t, y, state):
        return g.implicit_part(t, y)

    def _linearised(self, g):
        return g.implicit_part

    def _stages(self, g, t, t_next, y, k1, matrix):
        table = self.tableau
        h = (t_next - t)[:, None]
        inner, outer = g.implicit_part, g.explicit_part
        limit = self.newton_limit * (5 if inner.implicit.tolerances is None else 1)
        moving = tf.not_equal(t_next, t)
        safe = tf.where(moving[:, None], h, tf.ones_like(h))
        ks, es = [k1], [outer(t, y)]
        converged, count = ~moving | moving, tf.zeros_like(t)
        for i in range(1, table.num_stages):
            node = table.c[i]
            base = y + h * (combine(table.a[i][:-1], ks) + combine(table.explicit[i], es))
            time = t_next if node == 1 else t + float(node) * (t_next - t)
            guess = (self._gamma * h) * ks[-1]
            root = solve_stage(
                inner, time, base, self._gamma * h, matrix, guess, moving & converged, limit
            )
            converged &= root.converged
            count += root.evaluations
            slope = root.z / (self._gamma * safe)
            ks.append(tf.where(moving[:, None], slope, k1))
            es.append(outer(time, base + root.z))
        slopes = [k + e for k, e in zip(ks, es, strict=True)]
        y1 = y + h * combine(table.b, slopes)
        # The first slope is an evaluation of its own.
        return StageSlopes(slopes, y1, converged, count + 1.0, (ks, es))

    def _error(self, h, stages, matrix):
        # What the explicit part adds to the new state is not damped, so neither is its error.
        inner, outer = (h * combine(self.tableau.error, slopes) for slopes in stages.parts)
        return (matrix.solve(inner) if self._filtered else inner) + outer

    def _handed_on(self, slopes, state):
        return state

    def step_vjp(self, field, t, t_next, y, theta, y1_bar, dense_bar, time_gradient):
        """The vector-Jacobian product of a step by the implicit function theorem.

        With w^E_j and w^I_j what y1 and the later stages send to the slopes of stage j, the
        cotangent of its argument is Ȳ = e + J_Iᵀ c with e = J_Eᵀ h w^E and
        (I - h γ J_I)ᵀ c = h (w^I + γ e); c goes through f_I.
        """
        table = self.tableau
        g = field.bind(theta)
        h = (t_next - t)[:, None]
        captures, variables = field.captures, list(field.variables)
        parameters = theta[: len(theta) - len(captures)]
        leaves = [*parameters, *captures, *variables]
        jacobian, _ = self.linear_solver.linearise(g.implicit_part, t, y)
        matrix = iteration_matrix(g.implicit_part, jacobian, self._gamma * h)
        ks, es = self._stages(g, t, t_next, y, g.implicit_part(t, y), matrix).parts

        degree = self.dense_degree()
        given = [y1_bar] if dense_bar is None else [y1_bar, *tf.split(dense_bar, degree, axis=1)]
        zero = tf.zeros_like(t)
        y_bar, h_bar, t_bar, t_next_bar = y1_bar, zero, zero, zero
        later: list = []  # the cotangents of the arguments of the stages behind, last first
        totals: list = []
        for j in reversed(range(table.num_stages)):
            weights = [table.b[j]] if dense_bar is None else [table.b[j], *self._dense[j]]
            direct = combine(weights, given)
            behind = list(reversed(range(j + 1, table.num_stages)))

            def receives(rows, j=j, direct=direct, behind=behind):
                parts = [direct, combine([rows[i][j] for i in behind], later)]
                parts = [part for part in parts if part is not None]
                return tf.add_n(parts) if parts else tf.zeros_like(y)

            w_outer, w_inner = receives(table.explicit), receives(table.a)
            node = table.c[j]
            time = tf.identity(t_next) if node == 1 else t + float(node) * (t_next - t)
            argument = tf.identity(y)
            if j > 0:
                argument += h * (combine(table.a[j], ks) + combine(table.explicit[j], es))
            sources = [time, argument, *leaves]
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                tape.watch([time, argument, *theta, *captures, *variables])
                outer = field.explicit_part(time, argument, theta)
                inner = field.implicit_part(time, argument, theta)
            bars = pull_back(tape, outer, sources, [h * w_outer])
            cotangent = h * w_inner
            if j > 0:
                cotangent += (self._gamma * h) * bars[1]
                here, _ = self.linear_solver.linearise(g.implicit_part, time, argument)
                here = iteration_matrix(g.implicit_part, here, self._gamma * h)
                cotangent = here.solve_transposed(cotangent)
            inner_bars = pull_back(tape, inner, sources, [cotangent])
            bars = [a + b for a, b in zip(bars, inner_bars, strict=True)]
            if j > 0:
                w_inner += self._gamma * bars[1]
            h_bar += tf.reduce_sum(es[j] * w_outer + ks[j] * w_inner, axis=1)
            t_bar += (1.0 - float(node)) * bars[0]
            t_next_bar += float(node) * bars[0]
            later.append(bars[1])
            y_bar += bars[1]
            totals = [a + b for a, b in zip(totals, bars[2:], strict=True)] if totals else bars[2:]
        theta_bar, variables_bar = totals[: len(theta)], totals[len(theta) :]
        if not time_gradient:
            return None, None, y_bar, theta_bar, variables_bar
        return t_bar - h_bar, t_next_bar + h_bar, y_bar, theta_bar, variables_bar
