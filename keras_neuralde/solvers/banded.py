"""Systems whose unknowns couple to near neighbours only, solved block by block along the line."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_neuralde.solvers.factorization import GaussJordan

_BLOCK = 8


class Band(NamedTuple):
    """An order of the unknowns in which a pattern is block tridiagonal.

    Attributes:
        order: `(n,)`, the unknown at each place.
        place: `(n,)`, the place of each unknown.
        block: the size m of a block.
        rows: `(blocks, 3, m, m)`, the unknown of each row, where the entry is in the pattern.
        columns: the same of each column.
        mask: the same shape, whether the entry is in the pattern.
    """

    order: np.ndarray
    place: np.ndarray
    block: int
    rows: np.ndarray
    columns: np.ndarray
    mask: np.ndarray

    @property
    def blocks(self):
        """The number of diagonal blocks."""
        return self.mask.shape[0]


class BandedJacobian(NamedTuple):
    """A Jacobian by its blocks.

    Attributes:
        entries: `(blocks, 3, trajectories, m, m)`: below, on and above the diagonal.
        band: the `Band`.
    """

    entries: tf.Tensor
    band: Band


def find_band(sparsity):
    """The `Band` of a pattern, or `None` when blocks would not pay.

    Args:
        sparsity: `(n, n)` booleans.

    Returns:
        A `Band`.

    Example:

    >>> import numpy as np
    >>> ring = np.eye(60) + np.roll(np.eye(60), 1, 0) + np.roll(np.eye(60), -1, 0)
    >>> find_band(ring != 0).blocks
    8
    """
    n = len(sparsity)
    order = _cuthill_mckee(sparsity | sparsity.T)
    i, j = np.nonzero(sparsity[np.ix_(order, order)])
    width = int(np.abs(i - j).max(initial=0))
    m = max(width, _BLOCK)
    if m > 16 or n < 4 * m:
        return None
    count = -(-n // m)
    padded = np.concatenate([order, np.full(count * m - n, -1)])
    rows = np.full((count, 3, m, m), -1)
    columns = np.full((count, 3, m, m), -1)
    for k in range(count):
        for offset in range(3):
            if 0 <= k + offset - 1 < count:
                there = k + offset - 1
                rows[k, offset] = padded[k * m : (k + 1) * m, None]
                columns[k, offset] = padded[None, there * m : (there + 1) * m]
    mask = (rows >= 0) & (columns >= 0)
    rows, columns = np.where(mask, rows, 0), np.where(mask, columns, 0)
    mask &= sparsity[rows, columns]
    return Band(order, np.argsort(order), m, rows, columns, mask)


def _cuthill_mckee(pattern):
    """An order with neighbours near each other (Cuthill & McKee 1969): breadth first from an end.

    Args:
        pattern: `(n, n)` symmetric booleans.
    """
    degree = pattern.sum(axis=1)
    order: list = []
    left = set(range(len(pattern)))
    while left:
        start = min(left, key=lambda i: degree[i])
        # The last one reached from anywhere lies at an end.
        start = _breadth_first(pattern, degree, start, left)[-1]
        found = _breadth_first(pattern, degree, start, left)
        order += found
        left -= set(found)
    return np.array(order)


def _breadth_first(pattern, degree, start, allowed):
    seen, queue = {start}, [start]
    for node in queue:
        near = [j for j in np.flatnonzero(pattern[node]) if j in allowed and j not in seen]
        near.sort(key=lambda j: degree[j])
        seen.update(near)
        queue += near
    return [int(node) for node in queue]


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
            factors = GaussJordan(pivot)
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

    def solve(self, b):
        """x with W x = b; `(trajectories, n)`."""
        b = to_blocks(self._band, b)
        x = self._forwards_and_back(b)
        rest = b - multiply((self._lower, self._diagonal, self._upper), x)
        return from_blocks(self._band, x + self._forwards_and_back(rest))

    def solve_transposed(self, b):
        """x with Wᵀ x = b; `(trajectories, n)`."""
        b = to_blocks(self._band, b)
        x = self._transposed(b)
        turned = [_transpose(part) for part in (self._upper, self._diagonal, self._lower)]
        below, above = _shift(turned[0], 1), _shift(turned[2], -1)
        rest = b - multiply((below, turned[1], above), x)
        return from_blocks(self._band, x + self._transposed(rest))

    def _forwards_and_back(self, b):
        def forwards(k, before):
            right = tf.gather(b, k) - _apply(tf.gather(self._lower, k), before)
            return _apply(tf.gather(self._inverse, k), right)

        def back(k, after):
            return tf.gather(y, k) - _apply(tf.gather(self._across, k), after)

        y = self._sweep(b, forwards, forward=True)
        return self._sweep(b, back, forward=False)

    def _transposed(self, b):
        across, lower = _shift(_transpose(self._across), 1), _shift(_transpose(self._lower), -1)
        inverse = _transpose(self._inverse)

        def forwards(k, before):
            return tf.gather(b, k) - _apply(tf.gather(across, k), before)

        def back(k, after):
            right = tf.gather(z, k) - _apply(tf.gather(lower, k), after)
            return _apply(tf.gather(inverse, k), right)

        z = self._sweep(b, forwards, forward=True)
        return self._sweep(b, back, forward=False)

    def _sweep(self, like, step, forward):
        """The results of `step(k, last)` for all blocks, one after the other."""
        count = self._band.blocks

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
