"""The matrix W = M - s J of implicit methods, made once for a step and solved with many times."""

import tensorflow as tf

from keras_neuralde.solvers.factorization import UNROLLED, factor


class IterationMatrix:
    """W = M - s J of every trajectory, with J = ∂f/∂y at one point.

    Args:
        g: the bound field.
        jacobian: what `g.linearise` returned: n rows of `(trajectories, n)`, or one
            `(trajectories, n, n)` tensor.
        scale: s, `(rows, 1)`: the step size times γ.
    """

    def __init__(self, g, jacobian, scale):
        self._g = g
        mass = g.implicit.mass
        if mass is not None:
            # A row that rests has s = 0; there M alone may be singular, and nothing is solved.
            scale = tf.where(tf.equal(scale, 0.0), tf.ones_like(scale), scale)
        n = len(jacobian) if isinstance(jacobian, list) else jacobian.shape[-1]
        if mass is None:
            mass = tf.eye(n, dtype=scale.dtype)
        if isinstance(jacobian, list) and n <= UNROLLED:
            s = scale[:, 0]
            matrix = [[mass[i, j] - s * jacobian[i][:, j] for j in range(n)] for i in range(n)]
        else:
            stacked = tf.stack(jacobian, axis=1) if isinstance(jacobian, list) else jacobian
            matrix = mass - scale[:, :, None] * stacked
        self._factors = factor(matrix)

    @property
    def regular(self):
        """`(rows,)` booleans, or one for a joint row: whether W can be inverted."""
        regular = self._factors.regular
        if self._g.joint:
            return tf.reduce_all(regular, keepdims=True)
        return regular

    def solve(self, b):
        """x with W x = b; `(rows, width)`."""
        return self._g.join(self._factors.solve(self._g.split(b)))

    def solve_transposed(self, b):
        """x with Wᵀ x = b; `(rows, width)`."""
        return self._g.join(self._factors.solve_transposed(self._g.split(b)))


def times_mass(g, x, transpose=False):
    """M x for every trajectory; `(rows, width)`."""
    mass = g.implicit.mass
    if mass is None:
        return x
    return g.join(tf.linalg.matmul(g.split(x), mass, transpose_b=not transpose))


def jacobian_times(g, jacobian, x):
    """J x for every trajectory; `(rows, width)`."""
    z = g.split(x)
    if isinstance(jacobian, list):
        return g.join(tf.stack([tf.reduce_sum(row * z, axis=1) for row in jacobian], axis=1))
    return g.join(tf.linalg.matvec(jacobian, z))


def outer_sum(g, lefts, rights, like):
    """Σ_i left_i right_iᵀ for every trajectory, in the form of the Jacobian `like`."""
    pairs = [(g.split(left), g.split(right)) for left, right in zip(lefts, rights, strict=True)]
    if isinstance(like, list):
        return [
            tf.add_n([left[:, i : i + 1] * right for left, right in pairs])
            for i in range(len(like))
        ]
    left, right = (tf.stack(side, axis=1) for side in zip(*pairs, strict=True))
    return tf.linalg.matmul(left, right, transpose_a=True)
