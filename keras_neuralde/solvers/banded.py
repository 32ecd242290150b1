"""Systems whose unknowns couple to near neighbours only, solved block by block along the line."""

import tensorflow as tf

from keras_neuralde.solvers.factorization import GaussJordan


class BlockTridiagonal:
    """W = I - s J by block elimination along the line, with one refinement a solve.

    Pivots are chosen within the diagonal blocks (Golub & Van Loan, "Matrix Computations", 4th ed.
    2013, section 4.5.1); the refinement makes up for what that costs.

    Args:
        jacobian: a `BandedJacobian`.
        scale: s, `(trajectories, 1)` or `(1, 1)`.
    """

    def __init__(self, jacobian, scale):
        entries, self._band = jacobian
        m, count = self._band.block, self._band.blocks
        blocks = -scale[None, None, :, :, None] * entries
        lower, diagonal, upper = (blocks[:, offset] for offset in range(3))
        diagonal += tf.eye(m, dtype=entries.dtype)
        self._lower, self._diagonal, self._upper = lower, diagonal, upper
        like = tf.zeros_like(diagonal)

        def eliminate(k, inverse, across, before, regular):
            pivot = tf.gather(diagonal, k) - _product(tf.gather(lower, k), before)
            # A pivot block that cancels is as singular as its entries are small beside these.
            factors = GaussJordan(pivot, magnitude=tf.gather(diagonal, k))
            before = _product(factors.inverse, tf.gather(upper, k))
            regular &= factors.regular
            return (
                k + 1, _write(inverse, k, factors.inverse), _write(across, k, before), before,
                regular,
            )  # fmt: skip

        start = (0, like, like, like[0], tf.ones_like(like[0, :, 0, 0], tf.bool))
        _, self._inverse, self._across, _, self.regular = tf.while_loop(
            lambda k, *_: k < count, eliminate, start, maximum_iterations=count
        )

    @property
    def kept(self):
        """The tensors that `solve_with` needs, the trajectories along their second axis."""
        return self._lower, self._inverse, self._across

    @staticmethod
    def solve_with(kept, band, b):
        """x with W x = b, without refinement, from what an earlier object `kept`."""
        return from_blocks(band, _forwards_and_back(kept, to_blocks(band, b)))

    def nearly_solve(self, b):
        """The same as `solve`, without refinement."""
        return self.solve_with(self.kept, self._band, b)

    def solve(self, b):
        """x with W x = b; `(trajectories, n)`."""
        b = to_blocks(self._band, b)
        x = _forwards_and_back(self.kept, b)
        rest = b - multiply((self._lower, self._diagonal, self._upper), x)
        return from_blocks(self._band, x + _forwards_and_back(self.kept, rest))

    def solve_transposed(self, b):
        """x with Wᵀ x = b; `(trajectories, n)`."""
        b = to_blocks(self._band, b)
        x = self._transposed(b)
        turned = [_transpose(part) for part in (self._upper, self._diagonal, self._lower)]
        below, above = _shift(turned[0], 1), _shift(turned[2], -1)
        rest = b - multiply((below, turned[1], above), x)
        return from_blocks(self._band, x + self._transposed(rest))

    def _transposed(self, b):
        across, lower = _shift(_transpose(self._across), 1), _shift(_transpose(self._lower), -1)
        inverse = _transpose(self._inverse)

        def forwards(k, before):
            return tf.gather(b, k) - _apply(tf.gather(across, k), before)

        def back(k, after):
            right = tf.gather(z, k) - _apply(tf.gather(lower, k), after)
            return _apply(tf.gather(inverse, k), right)

        z = _sweep(b, forwards, forward=True)
        return _sweep(b, back, forward=False)


def _forwards_and_back(kept, b):
    """The elimination's two sweeps along the line."""
    lower, inverse, across = kept

    def forwards(k, before):
        right = tf.gather(b, k) - _apply(tf.gather(lower, k), before)
        return _apply(tf.gather(inverse, k), right)

    def back(k, after):
        return tf.gather(y, k) - _apply(tf.gather(across, k), after)

    y = _sweep(b, forwards, forward=True)
    return _sweep(b, back, forward=False)


def _sweep(like, step, forward):
    """The results of `step(k, last)` for all blocks, one after the other."""
    count = like.shape[0]

    def turn(i, found, last):
        k = i if forward else count - 1 - i
        last = step(k, last)
        return i + 1, _write(found, k, last), last

    loop = (0, tf.zeros_like(like), tf.zeros_like(like[0]))
    return tf.while_loop(lambda i, *_: i < count, turn, loop, maximum_iterations=count)[1]


def multiply(blocks, x):
    """The product of a block tridiagonal matrix and a vector, both in blocks."""
    below, on, above = blocks
    return _apply(below, _shift(x, 1)) + _apply(on, x) + _apply(above, _shift(x, -1))


def to_blocks(band, z):
    """`(trajectories, n)` → `(blocks, trajectories, m)`, zeros at the end."""
    n, m, count = len(band.order), band.block, band.blocks
    ordered = tf.pad(tf.gather(z, band.order, axis=1), [[0, 0], [0, count * m - n]])
    return tf.transpose(tf.reshape(ordered, (-1, count, m)), [1, 0, 2])


def from_blocks(band, x):
    """The inverse of `to_blocks`."""
    flat = tf.reshape(tf.transpose(x, [1, 0, 2]), (-1, band.blocks * band.block))
    return tf.gather(flat, band.place, axis=1)


def outer_blocks(band, lefts, rights):
    """Σ_i left_i right_iᵀ, the blocks of a `BandedJacobian`."""
    total = None
    for left, right in zip(lefts, rights, strict=True):
        left, right = to_blocks(band, left), to_blocks(band, right)
        near = tf.stack([_shift(right, 1), right, _shift(right, -1)], axis=1)
        part = left[:, None, :, :, None] * near[:, :, :, None, :]
        total = part if total is None else total + part
    return total


def _shift(x, by):
    """Blocks moved along the line; zeros come in."""
    zero = tf.zeros_like(x[:1])
    return tf.concat([zero, x[:-1]], 0) if by == 1 else tf.concat([x[1:], zero], 0)


def _transpose(blocks):
    return tf.linalg.matrix_transpose(blocks)


def _apply(matrix, x):
    return tf.reduce_sum(matrix * x[..., None, :], axis=-1)


def _product(left, right):
    return tf.reduce_sum(left[..., :, :, None] * right[..., None, :, :], axis=-2)


def _write(buffer, k, value):
    return tf.tensor_scatter_nd_update(buffer, tf.reshape(k, [1, 1]), value[None])
