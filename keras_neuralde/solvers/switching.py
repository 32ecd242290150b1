"""A method that is explicit until the equation turns stiff, and explicit again afterwards."""

import tensorflow as tf

from keras_neuralde.solvers.base import Solver, Step
from keras_neuralde.solvers.explicit_rk import ExplicitRungeKutta, combine
from keras_neuralde.solvers.iteration_matrix import LinearSolver, largest_row_sum
from keras_neuralde.solvers.rosenbrock import Rosenbrock

#: Where the stability region of Tsit5 ends on the negative real axis.
STABILITY = 3.5068
# A step is a sign of stiffness from nine tenths of the limit on.
_LIMIT = 0.9 * STABILITY
#: How many signs of stiffness end the explicit phase, and how many of ease the implicit one.
SIGNS_OF_STIFFNESS, SIGNS_OF_EASE = 10.0, 3.0
#: What an explicit step without a sign takes back: near the limit signs come and go.
FORGETTING = 0.2
#: How the step changes at a switch to the implicit method; at a switch back, its inverse.
GROWTH = 2.0


class Switching(Solver):
    """Tsit5 where the equation is not stiff and Rodas5P where it is, for each trajectory by itself.

    An explicit step measures the largest eigenvalue that it met by its last two stages, both at
    the end of the step: ρ = ‖k_7 - k_6‖ / ‖Y_7 - Y_6‖ (Hairer & Wanner, "Solving Ordinary
    Differential Equations II", section IV.2), in units of the tolerances: a component that is
    stiff may be decades smaller than others, whose differences would hide it. Where h ρ comes to
    nine tenths of the stability limit step after step, stability and not accuracy limits the step:
    the row goes on with the implicit method. That one knows the Jacobian; when h ‖J‖ falls below
    the same limit for some steps, the row returns.

    Both methods are of order 5 with an estimate of order 4, so that one controller serves them.

    Args:
        linear_solver: that of the implicit method.

    Example:

    >>> Switching().order
    5
    """

    name = "auto"
    implicit = True
    watches = 4
    switches = True
    carries_slope = True
    counts_evaluations = True

    def __init__(self, linear_solver: str | dict | LinearSolver = "auto") -> None:
        self.explicit = ExplicitRungeKutta("tsit5")
        self.stiff = Rosenbrock("rodas5p", LinearSolver.get(linear_solver))
        self.order, self.error_order = self.explicit.order, self.explicit.error_order

    def get_config(self):
        return {"linear_solver": self.stiff.linear_solver.serialize()}

    def dense_degree(self):
        # Both methods interpolate by polynomials of degree 4.
        return self.explicit.dense_degree()

    def init(self, g, t, y):
        return g(t, y)

    def step(self, g, t, t_next, y, state, dense, kind=None):
        """A step of either kind; `kind` is 1 in the rows that take an implicit one."""
        stiff = kind > 0.0
        moving = tf.not_equal(t_next, t)
        easy_end, stiff_end = tf.where(stiff, t, t_next), tf.where(stiff, t_next, t)
        wide = tf.tile(tf.zeros_like(y), [1, self.dense_degree()]) if dense else ()
        never = tf.not_equal(t, t)
        rest = (y, tf.zeros_like(y), state, never, wide)
        easy = tf.cond(
            tf.reduce_any(moving & ~stiff),
            lambda: self._explicit_step(g, t, easy_end, y, state, dense),
            lambda: rest,
        )
        hard = tf.cond(
            tf.reduce_any(moving & stiff),
            lambda: self._implicit_step(g, t, stiff_end, y, state, dense),
            lambda: (*rest, ~never),
        )
        *hard, ok = hard
        y1, error, slope, high, coefficients = tf.nest.map_structure(
            lambda ours, theirs: tf.where(_column(stiff, ours), theirs, ours), easy, tuple(hard)
        )
        easy_cost, stiff_cost = self.explicit.evaluations(dense), self.stiff.evaluations(dense)
        return Step(
            y1,
            error,
            coefficients if dense else None,
            slope,
            ok | ~stiff,
            self.stiff.trouble(g),
            easy_cost + (stiff_cost - easy_cost) * kind,
            high,
        )

    def watching(self):
        """The first try: the same explicit steps, which end where the implicit ones would begin."""
        return Watching()

    def _explicit_step(self, g, t, t_next, y, state, dense):
        method = self.explicit
        table = method.tableau
        h = (t_next - t)[:, None]
        ks, y1 = method.stages(g, t, t_next, h, y, [state], table.c[1:], table.a[1:])
        before = y + h * combine(table.a[-2], ks)
        # h ‖k_7 - k_6‖ against the limit times ‖Y_7 - Y_6‖, in one sum.
        excess = tf.square(h * (ks[-1] - ks[-2])) - _LIMIT**2 * tf.square(y1 - before)
        if g.implicit.tolerances is not None:
            rtol, atol = g.implicit.tolerances
            excess /= tf.square(atol + rtol * tf.maximum(tf.abs(y), tf.abs(y1)))
        high = tf.reduce_sum(excess, axis=1) > 0.0
        coefficients = method.polynomial(h, ks) if dense else ()
        return y1, method.error_estimate(h, ks), ks[-1], high, coefficients

    def _implicit_step(self, g, t, t_next, y, state, dense):
        method = self.stiff
        linear = method.linear_solver.linearise(g, t, y)
        step = method.take(g, t, t_next, y, linear, state, dense)
        high = tf.abs(t_next - t) * largest_row_sum(g, linear[0]) > _LIMIT
        coefficients = step.dense if dense else ()
        return step.y1, step.error, g(t_next, step.y1), high, coefficients, step.ok

    def switch(self, modes, high, accept, h):
        """Who goes on with which method.

        Args:
            modes: `(kind, signs, implicit steps, switches)`, each `(rows,)`.
            high: `(rows,)` booleans: whether an explicit step of this size meets its limit.
            accept: `(rows,)` booleans.
            h: `(rows,)`, the next step.

        Returns:
            The new modes and the next step.
        """
        kind, signs, taken, switches = modes
        stiff = kind > 0.0
        zero = tf.zeros_like(h)
        at_ease = tf.where(high, zero, signs + 1.0)
        counted = tf.where(stiff, at_ease, _signs_of_stiffness(signs, high))
        enough = SIGNS_OF_STIFFNESS + (SIGNS_OF_EASE - SIGNS_OF_STIFFNESS) * kind
        leave = accept & (counted > enough)
        taken += tf.where(accept & stiff, zero + 1.0, zero)
        switches += tf.where(leave, zero + 1.0, zero)
        h = tf.where(leave, tf.where(stiff, h / GROWTH, h * GROWTH), h)
        kind = tf.where(leave, 1.0 - kind, kind)
        signs = tf.where(accept, tf.where(leave, zero, counted), signs)
        return [kind, signs, taken, switches], h

    def taken(self, kind):
        return _Taken(self, kind)


class Watching(Switching):
    """The explicit half of `Switching`, which ends with a status where the equation turns stiff.

    Its program is that of Tsit5 and compiles as fast: most equations never need the other half.
    """

    implicit = False
    watches = 1
    switches = False
    counts_evaluations = False

    def get_config(self):
        return {}

    def evaluations(self, dense):
        return self.explicit.evaluations(dense)

    def step(self, g, t, t_next, y, state, dense, kind=None):
        y1, error, slope, high, coefficients = self._explicit_step(g, t, t_next, y, state, dense)
        return Step(y1, error, coefficients if dense else None, slope, stiff=high)

    def switch(self, modes, high, accept, h):
        """The one mode is the signs of stiffness."""
        (signs,) = modes
        return [tf.where(accept, _signs_of_stiffness(signs, high), signs)], h

    def gives_up(self, modes):
        """`(rows,)` booleans: where the equation is stiff."""
        return modes[0] > SIGNS_OF_STIFFNESS

    def step_vjp(self, *arguments):
        return self.explicit.step_vjp(*arguments)

    def taken(self, kind):
        return self.explicit


class _Taken:
    """The steps of one turn, each row's of its own kind."""

    def __init__(self, solver, kind):
        self._solver, self._stiff = solver, kind > 0.0

    def step_vjp(self, field, t, t_next, y, theta, y1_bar, dense_bar, time_gradient):
        """As `Solver.step_vjp`; a row hands its cotangent on where the other method stepped."""
        bars: tuple = (
            [tf.zeros_like(t)] * 2 if time_gradient else [],
            y1_bar,
            [tf.zeros_like(tensor) for tensor in theta],
            [tf.zeros_like(variable) for variable in field.variables],
        )
        kinds = ((self._solver.explicit, ~self._stiff), (self._solver.stiff, self._stiff))
        for method, mine in kinds:
            end = tf.where(mine, t_next, t)
            read = None if dense_bar is None else tf.where(mine[:, None], dense_bar, 0.0)

            def pull(method=method, mine=mine, end=end, read=read, bars=bars):
                times, y_bar, theta_bar, variables_bar = bars
                *step_times, y_bar, step_theta, step_variables = method.step_vjp(
                    field, t, end, y, theta, y_bar, read, time_gradient
                )
                # A row that rests sends equal and opposite cotangents to the ends of no step.
                step_times = [tf.where(mine, bar, 0.0) for bar in step_times if time_gradient]
                return (
                    _sums(times, step_times),
                    y_bar,
                    _sums(theta_bar, step_theta),
                    _sums(variables_bar, step_variables),
                )

            took_part = tf.reduce_any(tf.not_equal(end, t))
            bars = tf.cond(
                took_part, pull, lambda bars=bars: tf.nest.map_structure(tf.identity, bars)
            )
        times, y_bar, theta_bar, variables_bar = bars
        t_bar, t_next_bar = times if time_gradient else (None, None)
        return t_bar, t_next_bar, y_bar, theta_bar, variables_bar


def _signs_of_stiffness(signs, high):
    return tf.where(high, signs + 1.0, tf.maximum(signs - FORGETTING, 0.0))


def _sums(totals, parts):
    return [total + part for total, part in zip(totals, parts, strict=True)]


def _column(rows, like):
    return rows if like.shape.rank == 1 else rows[:, None]
