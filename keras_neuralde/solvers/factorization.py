"""Linear systems of many small matrices, one for each trajectory, solved by elimination.

`tf.linalg.lu` does not compile under XLA and `tf.linalg.solve` goes through a slow QR there.
What stands here is plain arithmetic on whole batches, the same in compiled and in plain graphs.
"""

import numpy as np
import tensorflow as tf

#: Up to this size the elimination is written out, number by number: XLA makes few kernels of it.
#: From four on it computes shared numbers many times over and takes seconds to compile.
UNROLLED = 3

#: Up to this size a product with the inverse is a sum that XLA fuses with what comes before.
_FUSED = 16

#: From this size on columns are eliminated in blocks of 16, and of 32 from 256 on.
BLOCKED = 24


def factor(matrix):
    """Prepares A x = b for several right-hand sides.

    Args:
        matrix: the A of each trajectory: either a nested list, n rows of n tensors of shape
            `(trajectories,)`, or one tensor `(trajectories, n, n)`.

    Returns:
        An object with `solve(b)` and `solve_transposed(b)` for `b` of shape `(trajectories, n)`,
        `nearly_solve(b)` for iterations that correct themselves, and `regular`,
        `(trajectories,)` booleans: False where a pivot is zero or nothing but rounding errors,
        judged beside the numbers that it is made of or the largest ones of its row and column, so
        that the scales of rows and of columns do not matter.

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
    return GaussJordan(matrix) if n < BLOCKED else BlockGaussJordan(matrix)


def _noise(n, dtype):
    """Below which part of its scale a pivot of n unknowns is taken for a rounding error.

    Of random matrices with a row or column that depends on the others, but for its own rounding,
    n eps finds two thirds or more, sixteen times that all but 1% to 3%. Double precision has the
    digit to spare; in single precision stiff systems come close to the smaller one already.
    """
    eps = float(np.finfo(dtype.as_numpy_dtype).eps)
    return (16 if dtype == tf.float64 else 1) * n * eps


def _exceeds(size, bound):
    """Whether `size` is larger; also where either is NaN, which is no statement.

    Plain graphs simplify the negation of `size <= bound` to `size > bound`, which NaN fails.
    """
    return tf.where(size <= bound, False, True)


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
        small = _noise(n, lu[0][0].dtype)
        for k in range(n):
            for i in range(k + 1, n):
                swap = tf.abs(lu[i][k]) > tf.abs(lu[k][k])
                for j in range(n):
                    lu[k][j], lu[i][j] = (
                        tf.where(swap, lu[i][j], lu[k][j]),
                        tf.where(swap, lu[k][j], lu[i][j]),
                    )
                self._swaps.append((k, i, swap))
            # The pivot is what was left of this sum: as small as its rounding errors, it is one.
            terms = [tf.abs(lu[k][j] * lu[j][k]) for j in range(k)]
            sound = _exceeds(tf.abs(lu[k][k]), small * sum(terms) if terms else 0.0)
            regular = sound if regular is None else regular & sound
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


class _Inverse:
    """The inverse A⁻¹ of each matrix, and one refinement a solve.

    An inverse turns every further solve into products of a matrix and a vector, where two
    triangular systems would take n steps one after another; the refinement
    x ← x + A⁻¹ (b - A x) makes the residual as small as that of an LU solve (Higham, "Accuracy
    and Stability of Numerical Algorithms", 2nd ed. 2002, sections 12.1 and 14.4).

    Args:
        matrix: `(trajectories, n, n)`, n known.
        inverse: A⁻¹ with its columns in the order of the pivots.
        order: `(trajectories, n)`, the row of A in which each column's pivot was found.
        pivots: `(trajectories, n)`, the sizes of the pivots.
        magnitude: a matrix like A whose entries have the sizes of what A's are made of.
    """

    def __init__(self, matrix, inverse, order, pivots, magnitude):
        self._matrix, self._order = matrix, order
        n = matrix.shape[-1]
        self._fused = n <= _FUSED
        self._n = n
        size = tf.abs(matrix if magnitude is None else magnitude)
        rows = tf.reduce_max(size, axis=2)
        rows = tf.where(rows > 0.0, rows, tf.ones_like(rows))
        columns = tf.reduce_max(size / rows[:, :, None], axis=1)
        if self._fused:
            # The rows' order as a matrix, multiplied in once: gathers do not fuse.
            chosen = tf.one_hot(order, n, dtype=matrix.dtype)
            inverse = tf.reduce_sum(inverse[:, :, :, None] * chosen[:, None, :, :], axis=2)
            rows = tf.reduce_sum(chosen * rows[:, None, :], axis=2)
        else:
            self._place = tf.argsort(order, axis=1)
            rows = tf.gather(rows, order, batch_dims=1)
        self._inverse = inverse
        sound = _exceeds(pivots, _noise(n, matrix.dtype) * rows * columns)
        self.regular = tf.reduce_all(sound, axis=1)

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


class GaussJordan(_Inverse):
    """The inverse by Gauss-Jordan elimination with partial pivoting, column by column.

    Args:
        matrix: `(trajectories, n, n)`, n known.
        magnitude: as in `_Inverse`.
    """

    def __init__(self, matrix, magnitude=None):
        n = matrix.shape[-1]
        index = tf.range(n)

        def eliminate(j, a, order, pivots):
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
            pivots = tf.where(here, tf.abs(pivot), pivots)
            pivot_row = tf.where(here, tf.ones_like(row_r), row_r) / pivot
            swapped = tf.where(there[:, :, None], row_j[:, None, :], a)
            factors = tf.where(there, tf.gather(row_j, j, axis=1)[:, None], column)
            rest = tf.where(here[:, None, :], tf.zeros_like(a), swapped)
            updated = rest - factors[:, :, None] * pivot_row[:, None, :]
            a = tf.where(here[:, :, None], pivot_row[:, None, :], updated)
            return j + 1, a, order, pivots

        zeros = tf.zeros_like(matrix[:, 0])
        start = (0, matrix, tf.zeros_like(zeros, tf.int32) + index, zeros)
        _, inverse, order, pivots = tf.while_loop(
            lambda j, *_: j < n, eliminate, start, maximum_iterations=n
        )
        super().__init__(matrix, inverse, order, pivots, magnitude)


class BlockGaussJordan(_Inverse):
    """The same inverse, with the columns eliminated in blocks.

    Column by column n products of a column and a row pass over the whole matrix. Here only the
    columns of a block J are eliminated one by one; where P are the rows of their pivots, that
    leaves G_P = A_PJ⁻¹ and G_i = -A_iJ A_PJ⁻¹ in the other rows, and the remaining columns take one
    product of matrices, A_P ← G_P A_P and A_i ← A_i + G_i A_P. Rows stay where they are; the pivots
    are those of partial pivoting (Golub & Van Loan, "Matrix Computations", 4th ed. 2013, section
    3.2.11, for the LU factors; here rows above the block are eliminated too).

    Args:
        matrix: `(trajectories, n, n)`, n known.
        magnitude: as in `_Inverse`.
    """

    def __init__(self, matrix, magnitude=None):
        n = matrix.shape[-1]
        block = 16 if n < 256 else 32
        count = -(-n // block)
        padded = count * block
        extra = padded - n
        a = tf.pad(matrix, [[0, 0], [0, extra], [0, extra]])
        if extra:
            # Rows and columns of the identity, which are their own pivots.
            a += tf.linalg.diag(tf.constant([0.0] * n + [1.0] * extra, matrix.dtype))
        index, block_index = tf.range(padded), tf.range(block)

        def eliminate_column(j, panel, free, rows, pivots):
            # The columns of the panel lie along its second axis.
            column = tf.gather(panel, j, axis=1)
            size = tf.where(free, tf.abs(column), tf.constant(-1.0, panel.dtype))
            r = tf.argmax(size, axis=1, output_type=tf.int32)[:, None]
            here, there = tf.equal(block_index, j)[None], tf.equal(index, r)
            row = tf.gather(panel, r, axis=2, batch_dims=1)[:, :, 0]
            pivot = tf.gather(row, j, axis=1)[:, None]
            row = tf.where(here, tf.ones_like(row), row) / pivot
            rest = tf.where(here[:, :, None], tf.zeros_like(panel), panel)
            updated = rest - row[:, :, None] * column[:, None, :]
            panel = tf.where(there[:, None, :], row[:, :, None], updated)
            rows = tf.where(here, r, rows)
            pivots = tf.where(here, tf.abs(pivot), pivots)
            return j + 1, panel, free & ~there, rows, pivots

        def eliminate_block(k, a, free, order, pivots):
            blocks = tf.reshape(a, (-1, padded, count, block))
            panel = tf.transpose(tf.gather(blocks, k, axis=2), [0, 2, 1])
            zeros = tf.zeros_like(panel[:, :, 0])
            start = (0, panel, free, tf.zeros_like(zeros, tf.int32), zeros)
            _, panel, left, rows, found = tf.while_loop(
                lambda j, *_: j < block, eliminate_column, start, maximum_iterations=block
            )
            pivot_rows = tf.gather(a, rows, batch_dims=1)
            chosen = tf.not_equal(free, left)
            kept = tf.where(chosen[:, :, None], tf.zeros_like(a), a)
            a = kept + tf.linalg.matmul(panel, pivot_rows, transpose_a=True)
            here = tf.equal(tf.range(count), k)
            blocks = tf.where(
                here[:, None],
                tf.transpose(panel, [0, 2, 1])[:, :, None, :],
                tf.reshape(a, (-1, padded, count, block)),
            )
            order = tf.where(here[:, None], rows[:, None, :], order)
            pivots = tf.where(here[:, None], found[:, None, :], pivots)
            return k + 1, tf.reshape(blocks, (-1, padded, padded)), left, order, pivots

        zeros = tf.reshape(tf.zeros_like(a[:, 0]), (-1, count, block))
        start = (0, a, tf.zeros_like(a[:, 0]) < 1.0, tf.zeros_like(zeros, tf.int32), zeros)
        _, a, _, order, pivots = tf.while_loop(
            lambda k, *_: k < count, eliminate_block, start, maximum_iterations=count
        )
        order, pivots = (tf.reshape(x, (-1, padded))[:, :n] for x in (order, pivots))
        # Where the matrix is singular a column may have found its pivot among the extra rows.
        order = tf.minimum(order, n - 1)
        inverse = tf.gather(a[:, :, :n], order, batch_dims=1)
        super().__init__(matrix, inverse, order, pivots, magnitude)
