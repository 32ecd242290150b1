"""Rosenbrock methods: one step for every table."""

import tensorflow as tf

from keras_neuralde.solution import Status
from keras_neuralde.solvers.base import Solver, Step, pull_back
from keras_neuralde.solvers.explicit_rk import combine
from keras_neuralde.solvers.iteration_matrix import (
    LinearSolver,
    entries_of,
    iteration_matrix,
    jacobian_times,
    outer_sum,
)
from keras_neuralde.solvers.mass import times_mass
from keras_neuralde.tableaus import ROSENBROCK, RosenbrockTableau


class Rosenbrock(Solver):
    """A Rosenbrock method given by its table: linearly implicit, for stiff problems and DAEs.

    One step evaluates the Jacobian once, solves one linear system for each stage with the same
    matrix, and iterates nothing:

        (M - h γ J) u_i = γ (h f(t + α_i h, y + Σ_j a_ij u_j) + M Σ_j c_ij u_j + h² d_i f_t),
        y1 = y + Σ_i m_i u_i.

    Args:
        tableau: the name of a table in `keras_neuralde.tableaus.ROSENBROCK`, or a
            `RosenbrockTableau` of your own.
        linear_solver: `"auto"`, `"dense"`, `"krylov"`, or a `LinearSolver` with settings.

    Example:

    >>> solver = Rosenbrock("rodas5p")
    >>> solver.order
    5
    """

    implicit = True
    singular_mass = True
    inverts_mass = False

    def __init__(
        self,
        tableau: str | RosenbrockTableau = "rodas5p",
        linear_solver: str | dict | LinearSolver = "auto",
    ) -> None:
        if isinstance(tableau, str):
            if tableau not in ROSENBROCK:
                raise ValueError(
                    f"`tableau` must name a Rosenbrock table, one of {sorted(ROSENBROCK)}. "
                    f"Received: {tableau!r}"
                )
            tableau = ROSENBROCK[tableau]
        if not isinstance(tableau, RosenbrockTableau):
            raise TypeError(
                f"`tableau` must be a name or of type RosenbrockTableau. Received: {tableau!r}"
            )
        self.tableau = tableau
        self.linear_solver = LinearSolver.get(linear_solver)
        self.name = tableau.name
        self.order = tableau.order
        self.error_order = tableau.error_order
        self.carries_slope = tableau.first_same_as_last

    def get_config(self):
        known = ROSENBROCK.get(self.tableau.name) is self.tableau
        tableau = self.tableau.name if known else self.tableau
        return {"tableau": tableau, "linear_solver": self.linear_solver.serialize()}

    def dense_degree(self):
        return len(self.tableau.dense[0])

    def evaluations(self, dense):
        return self.tableau.num_stages - self.tableau.first_same_as_last

    def init(self, g, t, y):
        return g(t, y) if self.carries_slope else tf.zeros_like(y)

    def step(self, g, t, t_next, y, state, dense):
        linear = self.linear_solver.linearise(g, t, y)
        step = self.take(g, t, t_next, y, linear, state if self.carries_slope else None, dense)
        return step if self.carries_slope else step._replace(state=state)

    def take(self, g, t, t_next, y, linear, slope, dense):
        """The step for a Jacobian at hand.

        Args:
            g: the field.
            t: as in `step`.
            t_next: likewise.
            y: likewise.
            linear: what `LinearSolver.linearise` returned for the start.
            slope: the field at the start, or `None`, which evaluates it.
            dense: as in `step`.

        Returns:
            A `Step` whose state is the slope of the last stage.
        """
        table = self.tableau
        h = (t_next - t)[:, None]
        jacobian, rate = linear
        matrix = iteration_matrix(g, jacobian, table.gamma * h)
        ok = matrix.regular
        us: list = []
        for i in range(table.num_stages):
            if i > 0 or slope is None:
                slope = g(*self._stage(i, t, t_next, y, us))
            u, solved = matrix.solve_checked(self._right_side(i, g, h, slope, rate, us))
            us.append(u)
            ok &= solved
        coefficients = None
        if dense:
            columns = [combine(column, us) for column in zip(*table.dense, strict=True)]
            coefficients = tf.concat(columns, axis=1)
        y1 = y + combine(table.m, us)
        error = combine(table.error, us)
        return Step(y1, error, coefficients, slope, ok=ok, trouble=self.trouble(g))

    def trouble(self, g):
        """The `Status` code of a step that is not ok."""
        iterates = self.linear_solver.iterates(g)
        return float(Status.GMRES_STALLED if iterates else Status.SINGULAR_MATRIX)

    def _stage(self, i, t, t_next, y, us):
        """Where stage `i` evaluates the field."""
        table = self.tableau
        increment = combine(table.a[i], us)
        alpha = table.alpha[i]
        # New tensors, so that a tape can tell them from the caller's.
        time = tf.identity(t_next) if alpha == 1 else t + alpha * (t_next - t)
        return time, tf.identity(y) if increment is None else y + increment

    def _right_side(self, i, g, h, slope, rate, us):
        table = self.tableau
        right = (table.gamma * h) * slope
        if rate is not None and table.d[i] != 0:
            right += (table.gamma * table.d[i]) * (h * h) * rate
        earlier = combine([table.gamma * c for c in table.c[i]], us)
        return right if earlier is None else right + times_mass(g, earlier)

    def step_vjp(self, field, t, t_next, y, theta, y1_bar, dense_bar, time_gradient):
        """The vector-Jacobian product of a step, written out.

        The stages are walked backwards. With ū_i the cotangent of u_i, r̄_i = W⁻ᵀ ū_i that of its
        right-hand side and λ that of y1: stage i sends h γ r̄_i through the field, and the matrix
        W = M - h γ J receives -Σ_i r̄_i u_iᵀ, which goes on through the derivatives of J.
        """
        table = self.tableau
        g = field.bind(theta)
        h = (t_next - t)[:, None]
        captures, variables = field.captures, list(field.variables)
        parameters = theta[: len(theta) - len(captures)]
        leaves = [*parameters, *captures, *variables]
        start = (tf.identity(t), tf.identity(y))
        with tf.GradientTape(watch_accessed_variables=False) as start_tape:
            start_tape.watch([*start, *theta, *captures, *variables])
            jacobian, rate = self.linear_solver.linearise(g, *start)
        iterates = self.linear_solver.iterates(g)
        matrix = iteration_matrix(g, jacobian, table.gamma * h)
        count = self._stages_that_count(dense_bar is not None)
        us: list = []
        stages = []
        for i in range(count):
            time, argument = self._stage(i, t, t_next, y, us)
            time, argument = tf.identity(time), tf.identity(argument)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([time, argument, *theta, *captures, *variables])
                slope = field(time, argument, theta)
            stages.append((tape, time, argument, slope))
            us.append(matrix.solve(self._right_side(i, g, h, slope, rate, us)))

        degree = self.dense_degree()
        given = [y1_bar] if dense_bar is None else [y1_bar, *tf.split(dense_bar, degree, axis=1)]
        zero = tf.zeros_like(t)
        y_bar, h_bar, t_bar, t_next_bar = y1_bar, zero, zero, zero
        rs: list = [None] * count
        arguments: list = [None] * count
        rate_bar = None
        totals: list = []
        for i in reversed(range(count)):
            later = range(i + 1, count)
            weights = (table.m[i], *table.dense[i]) if dense_bar is not None else (table.m[i],)
            parts = [
                combine(weights, given),
                combine([table.a[j][i] for j in later], [arguments[j] for j in later]),
            ]
            pulled = combine([table.gamma * table.c[j][i] for j in later], [rs[j] for j in later])
            if pulled is not None:
                parts.append(times_mass(g, pulled, transpose=True))
            u_bar = tf.add_n([part for part in parts if part is not None])
            rs[i] = matrix.solve_transposed(u_bar)
            tape, time, argument, slope = stages[i]
            sources = [time, argument, *leaves]
            bars = pull_back(tape, slope, sources, [(table.gamma * h) * rs[i]])
            arguments[i] = bars[1]
            y_bar += bars[1]
            alpha = table.alpha[i]
            t_bar += (1.0 - alpha) * bars[0]
            t_next_bar += alpha * bars[0]
            h_rate = table.gamma * slope
            if rate is not None and table.d[i] != 0:
                factor = table.gamma * table.d[i]
                h_rate += (2.0 * factor) * h * rate
                part = factor * (h * h) * rs[i]
                rate_bar = part if rate_bar is None else rate_bar + part
            h_bar += tf.reduce_sum(rs[i] * h_rate, axis=1)
            totals = [a + b for a, b in zip(totals, bars[2:], strict=True)] if totals else bars[2:]

        if time_gradient:
            # W = M - h γ J moves with h.
            pushed = [jacobian_times(g, jacobian, u) for u in us]
            inner = tf.add_n([r * x for r, x in zip(rs, pushed, strict=True)])
            h_bar += table.gamma * tf.reduce_sum(inner, axis=1)
        scaled = [(table.gamma * h) * r for r in rs]
        if iterates:
            # Without a matrix: Σ_i r̄_i · (J u_i), each product differentiated by itself.
            with tf.GradientTape(watch_accessed_variables=False) as start_tape:
                start_tape.watch([*start, *theta, *captures, *variables])
                linear = [g.push(*start, u) for u in us]
                rate = g.rate(*start)
            cotangents = scaled
        else:
            linear = entries_of(jacobian)
            bar = outer_sum(g, scaled, us, jacobian)
            cotangents = [*(bar if isinstance(bar, list) else [bar])]
        linear += [] if rate is None else [rate]
        if rate is not None:
            cotangents.append(tf.zeros_like(rate) if rate_bar is None else rate_bar)
        bars = pull_back(start_tape, linear, [*start, *leaves], cotangents)
        t_bar += bars[0]
        y_bar += bars[1]
        totals = [a + b for a, b in zip(totals, bars[2:], strict=True)]
        theta_bar, variables_bar = totals[: len(theta)], totals[len(theta) :]
        if not time_gradient:
            return None, None, y_bar, theta_bar, variables_bar
        return t_bar - h_bar, t_next_bar + h_bar, y_bar, theta_bar, variables_bar

    def _stages_that_count(self, dense):
        """The number of leading stages with a share in y1 or in the interpolant."""
        table = self.tableau
        shares = [
            bool(m) or (dense and any(row)) for m, row in zip(table.m, table.dense, strict=True)
        ]
        return max(i for i, share in enumerate(shares) if share) + 1
