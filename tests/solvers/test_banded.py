"""Block elimination of banded systems against dense ones."""

import numpy as np
import pytest
import tensorflow as tf

from keras_neuralde.solvers.banded import (
    BlockTridiagonal,
    from_blocks,
    multiply,
    outer_blocks,
    to_blocks,
)
from keras_neuralde.sparsity import BandedJacobian, find_band


def random_band(n, seed, ring=False):
    """A pattern of near neighbours in a shuffled order, and three matrices with it."""
    random = np.random.default_rng(seed)
    near = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    near = np.minimum(near, n - near) if ring else near
    shuffled = random.permutation(n)
    pattern = (near <= 2)[np.ix_(shuffled, shuffled)]
    return pattern, random.normal(size=(3, n, n)) * pattern


def blocks_of(matrices, band):
    picked = matrices[:, band.rows, band.columns] * band.mask
    return tf.constant(picked.transpose(1, 2, 0, 3, 4))


@pytest.mark.parametrize(("n", "ring"), [(40, False), (45, True)])
@pytest.mark.parametrize("jit", [False, True])
def test_solves_and_products(n, ring, jit):
    pattern, matrices = random_band(n, 0, ring)
    band = find_band(pattern)
    assert band.mask.sum() == pattern.sum(), "every entry of the pattern has its place"
    entries = blocks_of(matrices, band)
    scale = np.array([[0.3], [-2.0], [0.0]])
    b = np.random.default_rng(1).normal(size=(3, n))

    @tf.function(jit_compile=jit, autograph=False)
    def run(entries, scale, b):
        matrix = BlockTridiagonal(BandedJacobian(entries, band), scale)
        product = from_blocks(band, multiply(tf.unstack(entries, axis=1), to_blocks(band, b)))
        return matrix.solve(b), matrix.solve_transposed(b), product, matrix.regular

    x, transposed, product, regular = run(entries, tf.constant(scale), tf.constant(b))
    full = np.eye(n) - scale[:, :, None] * matrices
    for found, a in ((x, full), (transposed, full.transpose(0, 2, 1))):
        expected = np.linalg.solve(a, b[..., None])[..., 0]
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())
    np.testing.assert_allclose(product, np.einsum("kij,kj->ki", matrices, b), atol=1e-12)
    assert np.all(regular)


def test_outer_products_in_blocks():
    pattern, _ = random_band(40, 2)
    band = find_band(pattern)
    left, right = np.random.default_rng(3).normal(size=(2, 1, 40))
    found = (
        outer_blocks(band, [tf.constant(left)], [tf.constant(right)]).numpy()
        * (band.mask[:, :, None])
    )
    expected = blocks_of(np.einsum("ki,kj->kij", left, right), band)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_singular_block_is_told():
    pattern, matrices = random_band(40, 4)
    band = find_band(pattern)
    zero = np.zeros((1, 40, 40))
    zero[0, 7, 7] = 1.0  # I - 1 · J has a zero row
    matrix = BlockTridiagonal(
        BandedJacobian(blocks_of(zero, band), band), tf.ones((1, 1), tf.float64)
    )
    assert not matrix.regular[0]


def test_when_blocks_would_not_pay():
    assert find_band(np.ones((60, 60), bool)) is None
    assert find_band(np.eye(12, dtype=bool)) is None


def test_singular_up_to_rounding():
    """W = -s L of a ring, whose rows add up to zero but for rounding, beside I - s L."""
    n = 45
    ring = np.eye(n)
    ring = np.roll(ring, 1, 0) - 2.0 * ring + np.roll(ring, -1, 0)
    band = find_band(ring != 0.0)
    scale = np.array([[0.3], [0.3], [3e4], [3e4]])
    shift = np.array([1.0, 0.0, 1.0, 0.0])[:, None, None] * np.eye(n) / scale[:, :, None]
    entries = blocks_of(3.7 * ring + shift, band)
    matrix = BlockTridiagonal(BandedJacobian(entries, band), tf.constant(scale))
    assert matrix.regular.numpy().tolist() == [False, True, False, True]
