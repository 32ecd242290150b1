"""Linear systems of many small matrices, one for each trajectory, solved by elimination.

`tf.linalg.lu` does not compile under XLA and `tf.linalg.solve` goes through a slow QR there.
What stands here is plain arithmetic on whole batches, the same in compiled and in plain graphs.
"""

import tensorflow as tf

#: Up to this size the elimination is written out, number by number: XLA makes few kernels of it.
#: From four on it computes shared numbers many times over and takes seconds to compile.
UNROLLED = 3

#: Up to this size a product with the inverse is a sum that XLA fuses with what comes before.
_FUSED = 16


def factor(matrix):
    """Prepares A x = b for several right-hand sides.

    Args:
        matrix: the A of each trajectory: either a nested list, n rows of n tensors of shape
            `(trajectories,)`, or one tensor `(trajectories, n, n)`.

    Returns:
        An object with `solve(b)` and `solve_transposed(b)` for `b` of shape `(trajectories, n)`,
        `nearly_solve(b)` for iterations that correct themselves, and `regular`,
        `(trajectories,)` booleans: False where a pivot is zero.

    Example:

    >>> import tensorflow as tf
    >>> lu = factor(tf.constant([[[0.0, 2.0], [1.0, 1.0]]]))
    >>> lu.solve(tf.constant([[4.0, 3.0]])).numpy().tolist()
    [[1.0, 2.0]]
    """
    if isinstance(matrix, (list, tuple)):
        return UnrolledLU(matrix)
    n = matrix.shape[-1]
    if n <= UNROLLED:
        return UnrolledLU([tf.unstack(row, axis=1) for row in tf.unstack(matrix, axis=1)])
    return GaussJordan(matrix)


class UnrolledLU:
    """LU factors with partial pivoting, every number a `(trajectories,)` tensor of its own.

    Args:
        rows: n rows of n tensors of shape `(trajectories,)`.
    """

    def __init__(self, rows):
        lu = [list(row) for row in rows]
        n = len(lu)
        self._n = n
        self._swaps: list = []
        self._inverse: list = []
        regular = None
        for k in range(n):
            for i in range(k + 1, n):
                swap = tf.abs(lu[i][k]) > tf.abs(lu[k][k])
                for j in range(n):
                    lu[k][j], lu[i][j] = (
                        tf.where(swap, lu[i][j], lu[k][j]),
                        tf.where(swap, lu[k][j], lu[i][j]),
                    )
                self._swaps.append((k, i, swap))
            nonzero = tf.not_equal(lu[k][k], 0.0)
            regular = nonzero if regular is None else regular & nonzero
            self._inverse.append(1.0 / lu[k][k])
            for i in range(k + 1, n):
                lu[i][k] = lu[i][k] * self._inverse[k]
                for j in range(k + 1, n):
                    lu[i][j] = lu[i][j] - lu[i][k] * lu[k][j]
        self._lu = lu
        self.regular = regular

    def solve(self, b):
        """x with A x = b; `(trajectories, n)`."""
        x = tf.unstack(b, num=self._n, axis=1)
        for k, i, swap in self._swaps:
            x[k], x[i] = tf.where(swap, x[i], x[k]), tf.where(swap, x[k], x[i])
        for i in range(self._n):
            for j in range(i):
                x[i] = x[i] - self._lu[i][j] * x[j]
        for i in reversed(range(self._n)):
            for j in range(i + 1, self._n):
                x[i] = x[i] - self._lu[i][j] * x[j]
            x[i] = x[i] * self._inverse[i]
        return tf.stack(x, axis=1)

    nearly_solve = solve

    def solve_transposed(self, b):
        """x with Aᵀ x = b; `(trajectories, n)`."""
        x = tf.unstack(b, num=self._n, axis=1)
        for i in range(self._n):
            for j in range(i):
                x[i] = x[i] - self._lu[j][i] * x[j]
            x[i] = x[i] * self._inverse[i]
        for i in reversed(range(self._n)):
            for j in range(i + 1, self._n):
                x[i] = x[i] - self._lu[j][i] * x[j]
        for k, i, swap in reversed(self._swaps):
            x[k], x[i] = tf.where(swap, x[i], x[k]), tf.where(swap, x[k], x[i])
        return tf.stack(x, axis=1)


class GaussJordan:
    """The inverse by Gauss-Jordan elimination with partial pivoting, and one refinement a solve.

    An inverse turns every further solve into products of a matrix and a vector, where two
    triangular systems would take n steps one after another; the refinement
    x ← x + A⁻¹ (b - A x) makes the residual as small as that of an LU solve (Higham, "Accuracy
    and Stability of Numerical Algorithms", 2nd ed. 2002, sections 12.1 and 14.4).

    Args:
        matrix: `(trajectories, n, n)`, n known.
    """

    def __init__(self, matrix):
        self._matrix = matrix
        n = matrix.shape[-1]
        self._fused = n <= _FUSED
        index = tf.range(n)
        regular = tf.ones_like(matrix[:, 0, 0], tf.bool)

        def eliminate(j, a, order, regular):
            column = tf.gather(a, j, axis=2)
            size = tf.where(index >= j, tf.abs(column), tf.constant(-1.0, a.dtype))
            r = tf.argmax(size, axis=1, output_type=tf.int32)[:, None]
            here, there = tf.equal(index, j)[None], tf.equal(index, r)
            row_j = tf.gather(a, j, axis=1)
            row_r = tf.reduce_sum(tf.where(there[:, :, None], a, tf.zeros_like(a)), axis=1)
            order_r = tf.reduce_sum(tf.where(there, order, 0), axis=1, keepdims=True)
            order_j = tf.gather(order, j, axis=1)[:, None]
            order = tf.where(here, order_r, tf.where(there, order_j, order))
            pivot = tf.gather(row_r, j, axis=1)[:, None]
            # Zero makes a matrix singular; NaN is no statement about it.
            regular &= tf.not_equal(pivot[:, 0], 0.0)
            pivot_row = tf.where(here, tf.ones_like(row_r), row_r) / pivot
            swapped = tf.where(there[:, :, None], row_j[:, None, :], a)
            factors = tf.where(there, tf.gather(row_j, j, axis=1)[:, None], column)
            rest = tf.where(here[:, None, :], tf.zeros_like(a), swapped)
            updated = rest - factors[:, :, None] * pivot_row[:, None, :]
            a = tf.where(here[:, :, None], pivot_row[:, None, :], updated)
            return j + 1, a, order, regular

        start = (0, matrix, tf.zeros_like(matrix[:, 0], tf.int32) + index, regular)
        _, self._inverse, self._order, self.regular = tf.while_loop(
            lambda j, *_: j < n, eliminate, start, maximum_iterations=n
        )
        if self._fused:
            # The rows' order as a matrix, multiplied in once: gathers do not fuse.
            order = tf.one_hot(self._order, n, dtype=matrix.dtype)
            columns = self._inverse[:, :, :, None] * order[:, None, :, :]
            self._inverse = tf.reduce_sum(columns, axis=2)
        else:
            self._place = tf.argsort(self._order, axis=1)

    @property
    def kept(self):
        """The tensors that `solve_with` needs, the trajectories along their first axis."""
        return (self._inverse,) if self._fused else (self._inverse, self._order)

    @staticmethod
    def solve_with(kept, b):
        """x with A x = b, without refinement, from what an earlier object `kept`."""
        inverse, *order = kept
        if order:
            return tf.linalg.matvec(inverse, tf.gather(b, order[0], batch_dims=1))
        return tf.reduce_sum(inverse * b[:, None, :], axis=2)

    def nearly_solve(self, b):
        """The same as `solve`, without refinement."""
        return self._apply(b)

    def solve(self, b):
        """x with A x = b; `(trajectories, n)`."""
        x = self._apply(b)
        return x + self._apply(b - self._times(self._matrix, x))

    def solve_transposed(self, b):
        """x with Aᵀ x = b; `(trajectories, n)`."""
        x = self._apply_transposed(b)
        return x + self._apply_transposed(b - self._times(self._matrix, x, transpose=True))

    @property
    def inverse(self):
        """A⁻¹ itself, for matrices of up to 16 unknowns."""
        if not self._fused:
            raise ValueError("the inverse of a larger matrix is kept in another order")
        return self._inverse

    def _apply(self, b):
        if self._fused:
            return self._times(self._inverse, b)
        return self._times(self._inverse, tf.gather(b, self._order, batch_dims=1))

    def _apply_transposed(self, b):
        x = self._times(self._inverse, b, transpose=True)
        return x if self._fused else tf.gather(x, self._place, batch_dims=1)

    def _times(self, matrix, x, transpose=False):
        if not self._fused:
            return tf.linalg.matvec(matrix, x, transpose_a=transpose)
        if transpose:
            return tf.reduce_sum(matrix * x[:, :, None], axis=1)
        return tf.reduce_sum(matrix * x[:, None, :], axis=2)
