"""GMRES: linear systems of implicit methods by products with the Jacobian alone."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_neuralde.solvers.mass import times_mass
from keras_neuralde.solvers.newton import stopping_scale


class KrylovJacobian(NamedTuple):
    """The point at which products with the Jacobian are taken; stands for its matrix.

    Attributes:
        t: `(rows,)`.
        y: `(rows, width)`.
        size: how many directions are kept before a restart.
        restarts: the most restarts.
        preconditioner: as in `LinearSolver`.
    """

    t: tf.Tensor
    y: tf.Tensor
    size: int
    restarts: int
    preconditioner: Callable | None = None


class KrylovMatrix:
    """W = M - s J, known by its products, and solved with by restarted GMRES.

    A solution is good enough when the residual is below one in the unit of Newton's increments,
    `newton.stopping_scale`; that of the transposed system, which gradients need, when it is 1e-10
    of the right-hand side (in float32 1e-5). A preconditioner P stands on the right, W P z = b and
    x = P z, so that these residuals stay those of W.

    Args:
        g: the bound field.
        jacobian: a `KrylovJacobian`.
        scale: s, `(rows, 1)`.
    """

    def __init__(self, g, jacobian, scale):
        self._g, self._at, self._scale = g, jacobian, scale
        self._unit = stopping_scale(g, jacobian.y)

    @property
    def regular(self):
        """Nothing is known beforehand: `solve_checked` says whether a solve succeeded."""
        return tf.ones_like(self._at.t, tf.bool)

    def solve(self, b):
        """x with W x = b, as far as GMRES gets; `(rows, width)`."""
        return self.solve_checked(b)[0]

    nearly_solve = solve

    def solve_checked(self, b):
        """x with W x = b, and `(rows,)` booleans: whether the residual is small enough."""
        unit = self._unit

        def apply(z):
            x = self._precondition(unit * z)
            pushed = self._g.push(self._at.t, self._at.y, x)
            return (times_mass(self._g, x) - self._scale * pushed) / unit

        limit = tf.sqrt(tf.cast(tf.shape(b)[1], b.dtype)) * tf.ones_like(b[:, 0])
        z, ok = gmres(apply, b / unit, limit, self._at.size, self._at.restarts)
        return self._precondition(unit * z), ok

    def solve_transposed(self, b):
        """x with Wᵀ x = b; `(rows, width)`, NaN in the rows where GMRES does not get there."""

        def apply(z):
            x = self._precondition_transposed(z)
            pulled = self._g.pull(self._at.t, self._at.y, self._scale * x)
            return times_mass(self._g, x, transpose=True) - pulled

        small = 1e-10 if b.dtype == tf.float64 else 1e-5
        z, ok = gmres(apply, b, small * norm(b), self._at.size, 4 * self._at.restarts)
        # Of very stiff systems rounding leaves more than that.
        ok |= norm(b - apply(z)) <= 1e4 * small * norm(b)
        x = self._precondition_transposed(z)
        return tf.where(ok[:, None], x, tf.constant(float("nan"), x.dtype))

    def _precondition(self, x):
        if self._at.preconditioner is None:
            return x
        return _nearly_solved(self._g, self._at, self._scale, x)

    def _precondition_transposed(self, x):
        if self._at.preconditioner is None:
            return x
        return _nearly_solved_transposed(self._g, self._at, self._scale, x)


class GivenSolution(NamedTuple):
    """The point of linearisation, and the user's function that solves there.

    Attributes:
        t: `(rows,)`.
        y: `(rows, width)`.
        preconditioner: as in `LinearSolver`; exact.
    """

    t: tf.Tensor
    y: tf.Tensor
    preconditioner: Callable


class GivenMatrix:
    """W = M - s J that the user knows how to solve with.

    Args:
        g: the bound field.
        jacobian: a `GivenSolution`.
        scale: s, `(rows, 1)`.
    """

    def __init__(self, g, jacobian, scale):
        self._arguments = g, jacobian, scale
        self.regular = tf.ones_like(jacobian.t, tf.bool)

    def solve(self, b):
        """x with W x = b; `(rows, width)`."""
        return _nearly_solved(*self._arguments, b)

    nearly_solve = solve

    def solve_checked(self, b):
        """The same, and `(rows,)` booleans: True."""
        return self.solve(b), self.regular

    def solve_transposed(self, b):
        """x with Wᵀ x = b; `(rows, width)`."""
        return _nearly_solved_transposed(*self._arguments, b)


def _nearly_solved(g, at, scale, b):
    """What the user's function makes of b."""
    return g.precondition(at.preconditioner, at.t, at.y, scale[:, 0], b)


def _nearly_solved_transposed(g, at, scale, b):
    """The transpose of a linear function is its vector-Jacobian product."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        source = tf.zeros_like(b)
        tape.watch(source)
        out = _nearly_solved(g, at, scale, source)
    return tf.convert_to_tensor(tape.gradient(out, source, output_gradients=b))


def gmres(apply, b, limit, size, restarts):
    """Restarted GMRES on all rows at once (Saad & Schultz, SIAM J. Sci. Stat. Comput. 7, 1986).

    Args:
        apply: `apply(x)` → A x, for `x` of shape `(rows, n)`, each row its own system.
        b: `(rows, n)`.
        limit: `(rows,)`, the norm of the residual to reach.
        size: how many directions are kept before a restart.
        restarts: the most cycles.

    Returns:
        `(x, ok)`: `(rows, n)`, and `(rows,)` booleans: whether the limit was reached.

    Example:

    >>> import tensorflow as tf
    >>> x, ok = gmres(lambda x: 2.0 * x, tf.constant([[2.0, 4.0]]), tf.constant([1e-6]), 2, 3)
    >>> x.numpy().tolist(), ok.numpy().tolist()
    ([[1.0, 2.0]], [True])
    """
    # More directions than unknowns there are none.
    if b.shape[1] is not None:
        size = min(size, b.shape[1])

    def more(cycle, x, residual):
        return (cycle < restarts) & tf.reduce_any(norm(residual) > limit)

    def one_cycle(cycle, x, residual):
        x += _cycle(apply, residual, limit, size)
        return cycle + 1, x, b - apply(x)

    loop = (0, tf.zeros_like(b), b)
    _, x, residual = tf.while_loop(more, one_cycle, loop, maximum_iterations=restarts)
    return x, norm(residual) <= limit


def _cycle(apply, residual, limit, size):
    """The correction that minimises the residual over one Krylov space."""
    tiny = tf.constant(np.finfo(residual.dtype.as_numpy_dtype).tiny, residual.dtype)
    shape = tf.shape(residual)
    rows, n = (residual.shape[axis] or shape[axis] for axis in (0, 1))
    beta = norm(residual)
    zeros = tf.zeros((rows, size), residual.dtype)
    basis = tf.concat(
        [
            (residual / tf.maximum(beta, tiny)[:, None])[:, None, :],
            tf.zeros((rows, size, n), residual.dtype),
        ],
        axis=1,
    )
    # The Hessenberg matrix is made triangular on the way by rotations (c, s); `rest` is the
    # right-hand side βe₁, rotated likewise, whose last entry is the norm of the residual.
    triangle = tf.eye(size, batch_shape=[rows], dtype=residual.dtype)
    rest = tf.concat([beta[:, None], zeros], axis=1)
    index = tf.range(size)

    def more(k, basis, triangle, cosines, sines, rest):
        left = tf.abs(tf.gather(rest, k, axis=1))
        return (k < size) & tf.reduce_any(left > 0.5 * limit)

    def expand(k, basis, triangle, cosines, sines, rest):
        w = apply(tf.gather(basis, k, axis=1))
        h = tf.zeros((rows, size + 1), residual.dtype)
        for _ in range(2):  # once more: rounding errors spoil the first
            part = tf.linalg.matvec(basis, w)
            w -= tf.linalg.matvec(basis, part, transpose_a=True)
            h += part
        size_w = norm(w)
        # A space that is exhausted gets no further direction: what comes after stays zero.
        fresh = size_w > 1e-14 * tf.maximum(norm(h), tiny)
        direction = tf.where(fresh[:, None], w / tf.maximum(size_w, tiny)[:, None], 0.0)
        basis = tf.where(
            tf.equal(tf.range(size + 1), k + 1)[None, :, None], direction[:, None, :], basis
        )

        def rotate(j, h):
            c, s = tf.gather(cosines, j, axis=1), tf.gather(sines, j, axis=1)
            upper, lower = tf.gather(h, j, axis=1), tf.gather(h, j + 1, axis=1)
            h = _set(h, j, c * upper + s * lower)
            return j + 1, _set(h, j + 1, c * lower - s * upper)

        _, h = tf.while_loop(lambda j, h: j < k, rotate, (0, h), maximum_iterations=size)
        upper, lower = tf.gather(h, k, axis=1), tf.where(fresh, size_w, tf.zeros_like(size_w))
        radius = tf.sqrt(upper * upper + lower * lower)
        flat = radius <= tiny
        c = tf.where(flat, tf.ones_like(upper), upper / tf.maximum(radius, tiny))
        s = lower / tf.maximum(radius, tiny)
        h = _set(h, k, tf.where(flat, tf.ones_like(radius), radius))
        column = tf.where(index <= k, h[:, :size], tf.zeros_like(zeros))
        triangle = tf.where(tf.equal(index, k)[None, None, :], column[:, :, None], triangle)
        here = tf.gather(rest, k, axis=1)
        rest = _set(_set(rest, k, c * here), k + 1, -s * here)
        return k + 1, basis, triangle, _set(cosines, k, c), _set(sines, k, s), rest

    loop = (0, basis, triangle, zeros, zeros, rest)
    k, basis, triangle, _, _, rest = tf.while_loop(more, expand, loop, maximum_iterations=size)
    right = tf.where(index < k, rest[:, :size], tf.zeros_like(zeros))
    weights = tf.linalg.triangular_solve(triangle, right[:, :, None], lower=False)[:, :, 0]
    return tf.linalg.matvec(basis[:, :size], weights, transpose_a=True)


def norm(x):
    """The norm of every row, `(rows,)`."""
    return tf.sqrt(tf.reduce_sum(x * x, axis=1))


def _set(x, k, value):
    """`x` with column `k` replaced."""
    return tf.where(tf.equal(tf.range(x.shape[1]), k)[None], value[:, None], x)
