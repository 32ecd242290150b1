"""Initial states of differential-algebraic equations: whether they are consistent.

In M y' = f(t, y) with a singular M some combinations of the equations hold no time derivative:
those that the projector P onto the left null space of M picks. The state must satisfy P f = 0 from
the start. A correction Δ that leaves M y alone solves (M - P J) Δ = P f: its rows in the image of M
say M Δ = 0, the others P (f + J Δ) = 0.
"""

import tensorflow as tf

from keras_neuralde.solvers.algebraic import algebraic_part, constraint_matrix


def correction(g, t, y):
    """One Newton step towards a consistent state.

    Args:
        g: the bound field, with a singular mass matrix.
        t: `(rows,)`.
        y: `(rows, width)`.

    Returns:
        Δ, `(rows, width)`: zero where the state is consistent.
    """
    matrix, _ = constraint_matrix(g, t, y)
    return g.join(matrix.solve(g.split(algebraic_part(g, g(t, y)))))


def is_consistent(g, y0, terms):
    """Whether the state at the start satisfies the algebraic equations within the tolerances.

    Args:
        g: the bound field, with a singular mass matrix.
        y0: `(rows, width)`.
        terms: the `Terms` of the solve.

    Returns:
        `(rows,)` booleans; True where the question has no finite answer, which the solve reports
        by itself.
    """
    y0 = tf.stop_gradient(y0)
    change = correction(g, terms.t0, y0)
    scale = terms.atol + terms.rtol * tf.abs(y0)
    size = tf.reduce_mean(tf.square(change / scale), axis=1)
    return ~(tf.math.is_finite(size) & (size > 1.0))
