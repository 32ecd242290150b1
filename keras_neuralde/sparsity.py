"""Sparsity patterns of Jacobians: bands of blocks, found by reordering the unknowns."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

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
