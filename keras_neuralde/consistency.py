"""Initial states of differential-algebraic equations: whether they are consistent.

In M y' = f(t, y) with a singular M some combinations of the equations hold no time derivative:
those that the projector P onto the left null space of M picks. The state must satisfy P f = 0 from
the start. A correction Δ that leaves M y alone solves (M - P J) Δ = P f: its rows in the image of M
say M Δ = 0, the others P (f + J Δ) = 0.
"""

import tensorflow as tf

from keras_neuralde.solvers.factorization import factor


def correction(g, t, y, constraints):
    """One Newton step towards a consistent state.

    Args:
        g: the bound field, with a mass matrix.
        t: `(rows,)`.
        y: `(rows, width)`.
        constraints: the projector P, `(n, n)`.

    Returns:
        Δ, `(rows, width)`: zero where the state is consistent.
    """
    jacobian, _ = g.linearise(t, y)
    if isinstance(jacobian, list):
        jacobian = tf.stack(jacobian, axis=1)
    matrix = g.implicit.mass - tf.linalg.matmul(constraints, jacobian)
    right = tf.linalg.matmul(g.split(g(t, y)), constraints, transpose_b=True)
    return g.join(factor(matrix).solve(right))


def is_consistent(g, y0, terms, constraints):
    """Whether the state at the start satisfies the algebraic equations within the tolerances.

    Args:
        g: the bound field, with a mass matrix.
        y0: `(rows, width)`.
        terms: the `Terms` of the solve.
        constraints: the projector P, `(n, n)`.

    Returns:
        `(rows,)` booleans; True where the question has no finite answer, which the solve reports
        by itself.
    """
    y0 = tf.stop_gradient(y0)
    change = correction(g, terms.t0, y0, constraints)
    scale = terms.atol + terms.rtol * tf.abs(y0)
    size = tf.reduce_mean(tf.square(change / scale), axis=1)
    return ~(tf.math.is_finite(size) & (size > 1.0))
