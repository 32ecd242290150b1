"""Equations M y' = f(t, y) with a singular M: slopes, and the gradient of an ESDIRK step.

Some combinations of such equations hold no time derivative: those that the projector P onto the
left null space of M picks. They determine what M y says nothing about, as long as M - P J can be
inverted, with J = ∂f/∂y (index 1).
"""

import tensorflow as tf

from keras_neuralde.solvers.base import pull_back
from keras_neuralde.solvers.explicit_rk import combine
from keras_neuralde.solvers.factorization import factor
from keras_neuralde.solvers.iteration_matrix import iteration_matrix, solve_transposed
from keras_neuralde.solvers.mass import times_mass


def algebraic_part(g, x):
    """P x for every trajectory; `(rows, width)`."""
    return g.join(tf.linalg.matmul(g.split(x), g.implicit.constraints, transpose_b=True))


def constraint_matrix(g, t, y):
    """M - P J, factored; and ∂f/∂t, `(rows, width)` or `None`."""
    jacobian, rate = g.linearise(t, y)
    if isinstance(jacobian, list):
        jacobian = tf.stack(jacobian, axis=1)
    return factor(g.implicit.mass - tf.linalg.matmul(g.implicit.constraints, jacobian)), rate


def some_slope(g, f):
    """A solution of M x = (1 - P) f, the shortest; `(rows, width)`."""
    return g.join(tf.linalg.matmul(g.split(f), g.implicit.pseudoinverse, transpose_b=True))


def slope(g, t, y):
    """y' at a consistent state, and `(rows,)` booleans: whether there is only one.

    M y' = f says nothing about some of it. What the algebraic equations say, that they go on
    holding, P (J y' + f_t) = 0, makes up for that: (M - P J) y' = (1 - P) f + P f_t.
    """
    factors, rate = constraint_matrix(g, t, y)
    f = g(t, y)
    right = f - algebraic_part(g, f if rate is None else f - rate)
    regular = factors.regular
    if g.joint:
        regular = tf.reduce_all(regular, keepdims=True)
    return g.join(factors.solve(g.split(right))), regular


def pull_slope(field, theta, leaves, t, y, x, x_bar):
    """The cotangents of t, y and `leaves` that a cotangent of x = `slope` sends.

    With (M - P J)ᵀ r = x̄, they are those of rᵀ ((1 - P) f + P (J x + f_t)), x held fixed.
    """
    g = field.bind(theta)
    factors, _ = constraint_matrix(g, t, y)
    r = g.join(factors.solve_transposed(g.split(x_bar)))
    inside = algebraic_part(g, r)
    outside = r - inside
    t, y = tf.identity(t), tf.identity(y)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([t, y, *theta, *leaves])
        targets = [g(t, y), g.push(t, y, x), g.rate(t, y)]
    cotangents = [outside, inside, inside]
    if targets[-1] is None:
        targets, cotangents = targets[:-1], cotangents[:-1]
    return pull_back(tape, targets, [t, y, *leaves], cotangents)


def cubic(h, y, y1, start, end):
    """The coefficients of the cubic through both ends of a step and the slopes there."""
    move = y1 - y
    second = 3.0 * move - h * (2.0 * start + end)
    third = h * (start + end) - 2.0 * move
    return tf.concat([h * start, second, third], axis=1)


def step_vjp(solver, field, t, t_next, y, theta, y1_bar, dense_bar, time_gradient):
    """The vector-Jacobian product of a step of `DiagonallyImplicit` with a singular M.

    The stages solve M (Y_i - y) = h Σ_(j<=i) a_ij f_j with f_j = f(t_j, Y_j), of which the first
    one takes (1 - P) f_1. With d_i what reaches Y_i directly and w_i = Σ_(l>i) a_li λ_l what the
    later stages send to f_i, the cotangent c_i of f_i solves

        (M - h γ J_i)ᵀ c_i = h Mᵀ w_i + h γ d_i;

    λ_i = (c_i - h w_i) / (h γ), and Mᵀ λ_i = d_i + J_iᵀ c_i goes on to y.
    """
    table = solver.tableau
    g = field.bind(theta)
    h = (t_next - t)[:, None]
    gamma = float(table.gamma)
    safe = tf.where(tf.equal(h, 0.0), tf.ones_like(h), h)
    captures, variables = field.captures, list(field.variables)
    parameters = theta[: len(theta) - len(captures)]
    leaves = [*parameters, *captures, *variables]
    jacobian, _ = solver.linear_solver.linearise(g, t, y)
    matrix = iteration_matrix(g, jacobian, gamma * h)
    stages = solver.stages(g, t, t_next, y, some_slope(g, g(t, y)), matrix)

    zero = tf.zeros_like(t)
    direct, y_bar, h_bar, t_bar, t_next_bar = y1_bar, tf.zeros_like(y), zero, zero, zero
    totals = [tf.zeros_like(leaf) for leaf in leaves]
    if dense_bar is not None:
        first, second, third = tf.split(dense_bar, 3, axis=1)
        of_start, of_end = first - 2.0 * second + third, third - second
        start, end = slope(g, t, y)[0], slope(g, t_next, stages.last)[0]
        move_bar = 3.0 * second - 2.0 * third
        at_start = pull_slope(field, theta, leaves, t, y, start, h * of_start)
        at_end = pull_slope(field, theta, leaves, t_next, stages.last, end, h * of_end)
        direct += move_bar + at_end[1]
        y_bar += at_start[1] - move_bar
        t_bar += at_start[0]
        t_next_bar += at_end[0]
        h_bar += tf.reduce_sum(start * of_start + end * of_end, axis=1)
        totals = [sum(bars) for bars in zip(totals, at_start[2:], at_end[2:], strict=True)]
    multipliers: list = []  # the λ of the stages behind, last first
    for j in reversed(range(table.num_stages)):
        behind = [table.a[i][j] for i in reversed(range(j + 1, table.num_stages))]
        w = combine(behind, multipliers)
        w = tf.zeros_like(y) if w is None else w
        time, argument = solver.stage(j, t, t_next, y, stages)
        sources = [time, argument, *leaves]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*sources, *theta])
            f = field(time, argument, theta)
        share = w if j > 0 else w - algebraic_part(g, w)
        cotangent = h * share
        if j > 0:
            here, _ = solver.linear_solver.linearise(g, time, argument)
            here = iteration_matrix(g, here, gamma * h)
            right = h * times_mass(g, w, transpose=True) + (gamma * h) * direct
            cotangent = solve_transposed(g, (time, argument), here, gamma * h, right)
        bars = pull_back(tape, f, sources, [cotangent])
        if j > 0:
            multipliers.append((cotangent - h * w) / (gamma * safe))
            share += gamma * multipliers[-1]
        h_bar += tf.reduce_sum(f * share, axis=1)
        y_bar += direct + bars[1]
        direct = tf.zeros_like(y)
        node = float(table.c[j])
        t_bar += (1.0 - node) * bars[0]
        t_next_bar += node * bars[0]
        totals = [a + b for a, b in zip(totals, bars[2:], strict=True)]
    theta_bar, variables_bar = totals[: len(theta)], totals[len(theta) :]
    if not time_gradient:
        return None, None, y_bar, theta_bar, variables_bar
    return t_bar - h_bar, t_next_bar + h_bar, y_bar, theta_bar, variables_bar
