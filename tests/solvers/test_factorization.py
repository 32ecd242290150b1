"""The eliminations against NumPy, in compiled and in plain graphs."""

import numpy as np
import pytest
import tensorflow as tf

from keras_neuralde.solvers.factorization import GaussJordan, UnrolledLU, factor


def solve_both_ways(matrix, b):
    factors = factor(matrix)
    return factors.solve(b), factors.solve_transposed(b), factors.regular


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("n", [2, 3, 4, 16, 17, 40])
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


@pytest.mark.parametrize("n", [2, 3, 4, 9])
def test_singular_matrices_are_told_apart_from_nan(n):
    matrix = np.stack([np.eye(n), np.ones((n, n)), np.zeros((n, n)), np.full((n, n), np.nan)])
    assert factor(tf.constant(matrix)).regular.numpy().tolist() == [True, False, False, True]


def test_which_elimination_is_taken():
    assert isinstance(factor(tf.eye(3, batch_shape=[2])), UnrolledLU)
    assert isinstance(factor(tf.eye(4, batch_shape=[2])), GaussJordan)
