"""The eliminations against NumPy, in compiled and in plain graphs."""

import numpy as np
import pytest
import tensorflow as tf

from keras_neuralde.solvers.factorization import (
    BlockGaussJordan,
    GaussJordan,
    UnrolledLU,
    factor,
)


def solve_both_ways(matrix, b):
    factors = factor(matrix)
    return factors.solve(b), factors.solve_transposed(b), factors.regular


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("n", [2, 3, 4, 16, 17, 24, 130, 260])
def test_solves(n, jit):
    random = np.random.default_rng(n)
    matrix, b = random.normal(size=(5, n, n)), random.normal(size=(5, n))
    matrix[0, 0, 0] = 0.0  # needs pivoting
    matrix[1] *= 1e-9
    matrix[2] *= 10.0 ** random.uniform(-8, 8, (n, 1))  # badly scaled rows
    function = tf.function(solve_both_ways, jit_compile=jit)
    x, transposed, regular = function(tf.constant(matrix), tf.constant(b))
    for found, a in ((x, matrix), (transposed, matrix.transpose(0, 2, 1))):
        expected = np.linalg.solve(a, b[..., None])[..., 0]
        size = np.abs(expected).max(axis=1, keepdims=True)
        np.testing.assert_allclose(found / size, expected / size, atol=1e-9)
        residual = np.einsum("kij,kj->ki", a, found) - b
        scale = np.einsum("kij,kj->ki", np.abs(a), np.abs(found)) + np.abs(b)
        assert np.all(np.abs(residual) < 1e-13 * n * scale) or found is transposed
    assert np.all(regular)


SIZES = pytest.mark.parametrize("n", [2, 3, 4, 9, 40])


@pytest.mark.parametrize("jit", [False, True])
@SIZES
def test_singular_matrices_are_told_apart_from_nan(n, jit):
    matrix = np.stack([np.eye(n), np.ones((n, n)), np.zeros((n, n)), np.full((n, n), np.nan)])
    regular = tf.function(lambda a: factor(a).regular, jit_compile=jit)(tf.constant(matrix))
    assert regular.numpy().tolist() == [True, False, False, True]


@pytest.mark.parametrize("jit", [False, True])
@SIZES
def test_singular_up_to_rounding(n, jit):
    """A row and a column that depend on the others, exactly but for rounding, at any scale."""
    random = np.random.default_rng(n)
    matrix = random.normal(size=(40, n, n))
    share = random.normal(size=(40, n - 1))
    matrix[:20, 1 % n] = matrix[:20, 0] / 3.0
    if n > 2:
        matrix[:20, -1] = np.einsum("ki,kij->kj", share[:20], matrix[:20, :-1])
        matrix[20:, :, 0] = np.einsum("ki,kji->kj", share[20:], matrix[20:, :, 1:])
    else:
        matrix[20:, :, 0] = matrix[20:, :, 1] / 7.0
    scales = 10.0 ** random.uniform(-2, 2, (2, 40, n))
    scaled = matrix * scales[0][:, :, None] * scales[1][:, None, :]
    regular = random.normal(size=(40, n, n))
    b = random.normal(size=(120, n))
    function = tf.function(solve_both_ways, jit_compile=jit)
    both = np.concatenate([matrix, scaled, regular])
    x, _, found = function(tf.constant(both), tf.constant(b))
    # What is left of the pivot is random: it may look a little larger than its own errors.
    assert np.mean(found[:80]) <= 0.05
    assert np.all(found[80:])
    # Others in the batch do not notice.
    expected = np.linalg.solve(both[80:], b[80:, :, None])[..., 0]
    np.testing.assert_allclose(x[80:], expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())


@SIZES
def test_bad_scales_do_not_make_a_matrix_singular(n):
    """Rows and columns in units apart by forty decades; one by one and together."""
    random = np.random.default_rng(n)
    plain = random.normal(size=(20, n, n)) + 3.0 * np.eye(n)
    rows, columns = 10.0 ** random.uniform(-20, 20, (2, 20, n))
    small = np.diag(10.0 ** -np.linspace(0.0, 300.0, n))
    rotation = np.linalg.qr(random.normal(size=(n, n)))[0]
    matrices = [
        *(plain * rows[:, :, None]),
        *(plain * columns[:, None, :]),
        *(plain * rows[:, :, None] * columns[:, None, :]),
        *(1e-200 * plain),
        small,
        small[::-1],
        # Ill-conditioned, 1e12, but not singular.
        rotation * np.logspace(0.0, -12.0, n) @ rotation.T,
    ]
    assert np.all(factor(tf.constant(np.stack(matrices))).regular)


def test_hilbert_matrices():
    """Their condition number passes 1 / eps between 12 and 13 rows; small ones can be solved."""
    for n, regular in ((4, True), (8, True), (24, False), (48, False)):
        index = np.arange(n)
        hilbert = 1.0 / (index[:, None] + index + 1.0)
        factors = factor(tf.constant(hilbert[None]))
        assert bool(factors.regular[0]) == regular
        if regular:
            b = hilbert.sum(axis=1)[None]
            x = factors.solve(tf.constant(b)).numpy()[0]
            assert np.abs(hilbert @ x - b[0]).max() < 1e-14 * n


def test_rows_that_all_have_to_move():
    """A permutation: every leading pivot but the last is zero."""
    n = 50
    order = np.random.default_rng(0).permutation(n)
    matrix = np.eye(n)[order] * np.arange(1.0, n + 1.0)
    b = np.random.default_rng(1).normal(size=(1, n))
    factors = factor(tf.constant(matrix[None]))
    assert factors.regular[0]
    np.testing.assert_allclose(factors.solve(tf.constant(b))[0], np.linalg.solve(matrix, b[0]))


@pytest.mark.parametrize("n", [17, 33, 258])
def test_blocks_and_single_columns_choose_the_same_pivots(n):
    matrix = tf.constant(np.random.default_rng(n).normal(size=(3, n, n)))
    b = tf.constant(np.random.default_rng(0).normal(size=(3, n)))
    one, other = GaussJordan(matrix), BlockGaussJordan(matrix)
    for left, right in zip(one.kept, other.kept, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-8, atol=1e-10)
    x = BlockGaussJordan.solve_with(other.kept, b)
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b[..., None])[..., 0], rtol=1e-8)


def test_single_precision():
    random = np.random.default_rng(0)
    matrix, b = random.normal(size=(2, 40, 40)), random.normal(size=(2, 40))
    matrix[1, 7] = matrix[1, 3] / 3.0
    matrix, b = matrix.astype(np.float32), b.astype(np.float32)
    factors = factor(tf.constant(matrix))
    assert factors.regular.numpy().tolist() == [True, False]
    x = factors.solve(tf.constant(b))[0]
    np.testing.assert_allclose(matrix[0] @ x.numpy(), b[0], atol=1e-4)


def test_which_elimination_is_taken():
    assert isinstance(factor(tf.eye(3, batch_shape=[2])), UnrolledLU)
    assert isinstance(factor(tf.eye(4, batch_shape=[2])), GaussJordan)
    assert isinstance(factor(tf.eye(23, batch_shape=[2])), GaussJordan)
    assert isinstance(factor(tf.eye(24, batch_shape=[2])), BlockGaussJordan)
