"""Explicit Runge-Kutta methods: one step for every table."""

import functools
import operator

import tensorflow as tf

from keras_neuralde import components
from keras_neuralde.interpolation import horner
from keras_neuralde.solvers.base import Solver, Step, pull_back
from keras_neuralde.tableaus import EXPLICIT, ButcherTableau


def combine(weights, vectors):
    """Σ w_i v_i over the nonzero weights; `None` when all are zero."""
    pairs = [(w, v) for w, v in zip(weights, vectors, strict=False) if w != 0]
    if not pairs:
        return None
    # All numbers as one constant: a constant each would be a fifth of what there is to trace.
    numbers = tf.unstack(tf.constant([float(w) for w, _ in pairs], pairs[0][1].dtype))
    terms = [v if w == 1 else number * v for number, (w, v) in zip(numbers, pairs, strict=True)]
    return functools.reduce(operator.add, terms)


def _moved(ys, h, row, ks):
    """y + h Σ_j a_ij k_j, of lists of parts."""
    sums = [combine(row, column) for column in zip(*ks, strict=True)] if any(row) else []
    return [y + h * total for y, total in zip(ys, sums, strict=True)] if sums else ys


class ExplicitRungeKutta(Solver):
    """An explicit Runge-Kutta method given by its table.

    One step is (Hairer, Nørsett & Wanner, "Solving Ordinary Differential Equations I", II.1.8):

        k_i = f(t + c_i h, y + h Σ_j a_ij k_j),    y1 = y + h Σ_i b_i k_i,

    with the error estimate h Σ_i (b_i - b̂_i) k_i where the table has one.

    Args:
        tableau: the name of a table in `keras_neuralde.tableaus.EXPLICIT`, or a `ButcherTableau`
            of your own.

    Example:

    >>> solver = ExplicitRungeKutta("tsit5")
    >>> solver.order
    5
    """

    by_components = True

    def __init__(self, tableau: str | ButcherTableau = "tsit5") -> None:
        if isinstance(tableau, str):
            if tableau not in EXPLICIT:
                raise ValueError(
                    f"`tableau` must name an explicit table, one of {sorted(EXPLICIT)}. "
                    f"Received: {tableau!r}"
                )
            tableau = EXPLICIT[tableau]
        if not isinstance(tableau, ButcherTableau):
            raise TypeError(
                f"`tableau` must be a name or of type ButcherTableau. Received: {tableau!r}"
            )
        self.tableau = tableau
        self.name = tableau.name
        self.order = tableau.order
        self.error_order = tableau.error_order if tableau.has_error else None
        self.carries_slope = tableau.first_same_as_last
        self._c_extra, self._a_extra, self._dense = tableau.interpolant()
        self.repeatable = not self._c_extra

    def get_config(self):
        known = EXPLICIT.get(self.tableau.name) is self.tableau
        return {"tableau": self.tableau.name if known else self.tableau}

    def dense_degree(self):
        return len(self._dense[0])

    def evaluations(self, dense):
        stages = self.tableau.num_stages - self.tableau.first_same_as_last
        return stages + (len(self._c_extra) if dense else 0)

    def init(self, g, t, y):
        # Methods whose last stage is not the next first one evaluate it at the start of each step.
        return g(t, y) if self.tableau.first_same_as_last else tf.zeros_like(y)

    def step(self, g, t, t_next, y, state, dense):
        table = self.tableau
        k1 = state if table.first_same_as_last else g(t, y)
        h = (t_next - t)[:, None]
        ks, y_last = self.stages(g, t, t_next, h, y, [k1], table.c[1:], table.a[1:])
        y1 = y_last if table.first_same_as_last else y + h * combine(table.b, ks)
        error = self.error_estimate(h, ks)
        k_last = ks[-1] if table.first_same_as_last else state
        coefficients = self._interpolate(g, t, t_next, h, y, ks) if dense else None
        return Step(y1, error, coefficients, k_last)

    def step_together(self, g, t, t_next, y, state, theta=None, slope=False):
        """The same step, of the same sums in the same order, for `components`; without a gradient.

        Args:
            g: the field.
            t: `(rows,)`, where the step starts.
            t_next: `(rows,)`, where it ends.
            y: `(rows, width)`, the state at `t`.
            state: `(rows, width)`, the solver's state.
            theta: `(rows,)`, where the state inside the step is wanted, from 0 at its start to 1 at
                its end; `None` for nowhere.
            slope: whether the derivative with respect to `theta` is wanted too.

        Returns:
            The `Step`, and the components of the state at `theta`, behind them those of the
            derivative.
        """
        table, width = self.tableau, int(y.shape[1])
        last_first = table.first_same_as_last
        ys, k1 = (components.numbers(g, components.split(x)) for x in (y, state))
        t, t_next = components.numbers(g, [t, t_next])
        h = t_next - t
        k1 = k1 if last_first else g.by_components(t, ys)
        ks, y1 = self._stages_by_components(g, t, t_next, ys, k1)
        errors, value = [], []
        if table.has_error:
            errors = [self.error_estimate(h, column) for column in zip(*ks, strict=True)]
        if theta is not None:
            values, slopes = self._inside(h, ys, ks, *components.numbers(g, [theta]))
            value = [*values, *(slopes if slope else ())]
        # Before the error is divided by the tolerance: XLA:CPU takes a division for so dear that it
        # does not let it melt into `together`.
        found = components.together([*value, *y1, *(ks[-1] if last_first else ()), *errors])
        found = components.arrays(found)
        value, found = found[: len(value)], found[len(value) :]
        error = components.join(found[-width:]) if errors else None
        k_last = components.join(found[width : 2 * width]) if last_first else state
        return Step(components.join(found[:width]), error, None, k_last), value

    def _inside(self, h, ys, ks, theta):
        """The components of the state at `theta` of a step, and of its derivative."""
        pairs = zip(ys, zip(*ks, strict=True), strict=True)
        found = [horner(part, self._coefficients(h, column), theta) for part, column in pairs]
        return zip(*found, strict=True)

    def _stages_by_components(self, g, t, t_next, ys, k1):
        """All stages, and the state at the end; lists of parts."""
        table, h = self.tableau, t_next - t

        ks, y1 = [k1], ys
        for c, row in zip(table.c[1:], table.a[1:], strict=True):
            y1 = _moved(ys, h, row, ks)
            time = t_next if c == 1 else t + float(c) * h
            ks.append(g.by_components(time, y1))
        if not table.first_same_as_last:
            y1 = _moved(ys, h, table.b, ks)
        return ks, y1

    def inside(self, g, t, t_next, y, theta):
        if not components.pays(g, y):
            return super().inside(g, t, t_next, y, theta)
        t, t_next, theta = components.numbers(g, [t, t_next, theta])
        h, ys = t_next - t, components.numbers(g, components.split(y))
        ks, _ = self._stages_by_components(g, t, t_next, ys, g.by_components(t, ys))
        value, slope = self._inside(h, ys, ks, theta)
        found = components.arrays(components.together([*value, *slope]))
        return components.join(found[: len(ys)]), components.join(found[len(ys) :])

    def step_vjp(self, field, t, t_next, y, theta, y1_bar, dense_bar, time_gradient):
        """The vector-Jacobian product of a step, written out.

        With w_j = b_j λ + Σ_i a_ij Ȳ_i, Ȳ_i the cotangent of the argument of stage i and λ that of
        y1, the stages are walked backwards: k̄_j = h w_j, Ȳ_j = k̄_j ∂f/∂y, ȳ = λ + Σ_i Ȳ_i, and the
        step size collects h̄ = Σ_j k_j · w_j (Hager, "Runge-Kutta methods in optimal control and
        the transformed adjoint system", Numerische Mathematik 87, 2000).
        """
        columns = components.columns_of(field, y, theta)
        given = [y1_bar]
        if dense_bar is not None:
            given += tf.split(dense_bar, self.dense_degree(), axis=1)
        if columns is not None:
            t, t_next = components.numbers(field, [t, t_next])
            ys, *given = (components.numbers(field, components.split(x)) for x in (y, *given))
            times, y_bar, totals = self.pull_by_components(
                field, columns, t, t_next, ys, columns.parameters(theta), given, time_gradient
            )
            found = components.together([*times, *y_bar, *totals])
            times, found = components.arrays(found[: len(times)]), found[len(times) :]
            y_bar = components.join(components.arrays(found[: len(ys)]))
            return *(times or [None, None]), y_bar, columns.join(found[len(ys) :]), []

        def evaluate(t, parts):
            return [field(t, parts[0], theta)]

        captures, variables = field.captures, list(field.variables)
        watched = [*theta[: len(theta) - len(captures)], *captures, *variables]
        h, given = (t_next - t)[:, None], [[part] for part in given]
        found = self._pull(evaluate, t, t_next, h, [y], watched, given, time_gradient)
        times, (y_bar,), bars = found
        return *(times or [None, None]), y_bar, bars[: len(theta)], bars[len(theta) :]

    def pull_by_components(self, field, columns, t, t_next, ys, parameters, given, time_gradient):
        """The same for a state that is a list of its components.

        Args:
            field: the `Field`.
            columns: the `components.Columns` of its parameters.
            t: `(rows,)`; here and below, numbers for a trajectory alone.
            t_next: `(rows,)`.
            ys: the components of the state at `t`.
            parameters: those of `columns`.
            given: the cotangents of y1 and of the interpolant's coefficients, lists of components;
                the latter may be missing.
            time_gradient: whether cotangents of the times are wanted.

        Returns:
            The cotangents of `t` and `t_next`, or none, of the components, and of the parameters as
            `columns` joins them; lists.
        """

        def evaluate(t, parts):
            return field.by_components(t, parts, parameters)

        watched = columns.sources(parameters, field.captures)
        found = self._pull(evaluate, t, t_next, t_next - t, ys, watched, given, time_gradient)
        times, y_bar, bars = found
        return times, y_bar, columns.split(bars)

    def _pull(self, evaluate, t, t_next, h, ys, watched, given, time_gradient):
        """The arithmetic of a vector-Jacobian product.

        It is that of lists: of components, or of the one matrix of all of them.
        """
        nodes, rows, outputs = self._reverse_table(len(given) > 1)
        ks: list = []
        tapes, arguments = [], []
        length = t_next - t
        matrices = ys[0].shape.rank == 2 and components.is_compiled()

        def once(parts):
            return components.once(parts, h) if matrices else parts

        for c, row in zip(nodes, rows, strict=True):
            # New tensors, so that a tape can tell them from the caller's.
            argument = [tf.identity(part) for part in once(_moved(ys, h, row, ks))]
            time = tf.identity(t_next) if c == 1 else t + float(c) * length
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([time, *argument, *watched])
                slope = evaluate(time, argument)
            ks.append(slope)
            tapes.append((tape, slope))
            arguments.append((time, argument))

        zero = tf.zeros_like(t)
        y_bar, h_bar, t_bar, t_next_bar = given[0], zero, zero, zero
        later: list = []  # Ȳ of the stages behind, last one first
        totals: list = []
        for j in reversed(range(len(nodes))):
            weights = [*outputs[j], *(rows[i][j] for i in reversed(range(j + 1, len(nodes))))]
            w = [combine(weights, parts) for parts in zip(*given, *later, strict=True)]
            time, argument = arguments[j]
            sources = [*argument, *watched]
            if time_gradient:
                sources.insert(0, time)
                moved = tf.add_n([k * part for k, part in zip(ks[j], w, strict=True)])
                h_bar += moved if moved.shape.rank == t.shape.rank else tf.reduce_sum(moved, axis=1)
            tape, slope = tapes[j]
            bars = pull_back(tape, slope, sources, once([h * part for part in w]))
            if time_gradient:
                stage_bar = bars.pop(0)
                t_bar += (1.0 - float(nodes[j])) * stage_bar
                t_next_bar += float(nodes[j]) * stage_bar
            later.append(bars[: len(ys)])
            y_bar = [a + b for a, b in zip(y_bar, later[-1], strict=True)]
            rest = bars[len(ys) :]
            totals = [a + b for a, b in zip(totals, rest, strict=True)] if totals else rest
        times = [t_bar - h_bar, t_next_bar + h_bar] if time_gradient else []
        return times, y_bar, totals

    def _reverse_table(self, dense):
        """Nodes and rows of the stages that count, and their weights in y1 and Q_1, Q_2, ..."""
        table = self.tableau
        nodes, rows, outputs = table.c, table.a, [(b,) for b in table.b]
        if dense:
            nodes, rows = (*nodes, *self._c_extra), (*rows, *self._a_extra)
            weights = (*table.b, *[0] * len(self._c_extra))
            outputs = [(b, *row) for b, row in zip(weights, self._dense, strict=True)]
        # Stages that only the error estimate sees have no share in the result.
        count: list = []
        for j in reversed(range(len(nodes))):
            if any(outputs[j]) or any(rows[i][j] for i in count):
                count.insert(0, j)
        return (
            [nodes[i] for i in count],
            [[rows[i][j] for j in count if j < i] for i in count],
            [outputs[i] for i in count],
        )

    def stages(self, g, t, t_next, h, y, ks, nodes, rows):
        """Appends the stages of `nodes` and `rows` to `ks`; also returns the last argument."""
        argument, length = y, t_next - t
        for c, row in zip(nodes, rows, strict=True):
            increment = combine(row, ks)
            argument = y if increment is None else y + h * increment
            time = t_next if c == 1 else t + float(c) * length
            ks = [*ks, g(time, argument)]
        return ks, argument

    def error_estimate(self, h, ks):
        """The local error, `(rows, width)`, from the steps `(rows, 1)` and the stages."""
        table = self.tableau
        if not table.has_error:
            return None
        error = h * combine(table.error, ks)
        if table.error_damping:
            # Hairer's mix of a fifth- and a third-order estimate (DOP853), by component.
            coarse = 0.1 * h * combine(table.error_damping, ks)
            norm = tf.sqrt(error * error + coarse * coarse)
            error = tf.math.divide_no_nan(error * error, norm)
        return error

    def _interpolate(self, g, t, t_next, h, y, ks):
        ks, _ = self.stages(g, t, t_next, h, y, ks, self._c_extra, self._a_extra)
        return self.polynomial(h, ks)

    def polynomial(self, h, ks):
        """The interpolation coefficients, `(rows, degree * width)`, from all stages."""
        return tf.concat(self._coefficients(h, ks), axis=1)

    def _coefficients(self, h, ks):
        """The polynomial's coefficients of θ, θ², ... as a list."""
        # Σ_i b_i(θ) = θ, so only differences of stages meet the large coefficients of the table:
        # in float32 that is the difference between five digits and seven.
        differences = [k - ks[0] for k in ks[1:]]
        columns = [combine(column[1:], differences) for column in zip(*self._dense, strict=True)]
        columns = [tf.zeros_like(ks[0]) if column is None else column for column in columns]
        columns[0] += ks[0]
        return [h * column for column in columns]
