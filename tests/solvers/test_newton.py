"""Newton's iteration alone: when it stops, and what it says."""

import numpy as np
import pytest
import tensorflow as tf

from keras_neuralde.fields import Implicit
from keras_neuralde.solvers.newton import KAPPA, solve_stage


class Cubic:
    """f = -y³ - y, with tolerances or without."""

    def __init__(self, tolerances):
        self.implicit = Implicit(tolerances=tolerances)

    def __call__(self, t, y):
        return -(y**3) - y


class Slope:
    """1 - s J for a J at hand."""

    def __init__(self, scale, jacobian):
        self.w = 1.0 - scale * tf.constant(jacobian, tf.float64)[:, None]

    def nearly_solve(self, b):
        return b / self.w


def exact(base, scale):
    """The root of z = s f(base + z) by bisection."""
    low, high = np.full_like(base, -10.0), np.full_like(base, 10.0)
    for _ in range(200):
        middle = (low + high) / 2.0
        left = middle - scale * (-((base + middle) ** 3) - (base + middle)) < 0.0
        low, high = np.where(left, middle, low), np.where(left, high, middle)
    return (low + high) / 2.0


def iterate(tolerances, jacobian, limit, active=(True, True, True)):
    base, scale = np.array([[1.0], [2.0], [0.5]]), 0.3
    zero = tf.zeros(3, tf.float64)
    scales = tf.fill([3, 1], tf.constant(scale, tf.float64))
    root = solve_stage(
        Cubic(tolerances), zero, tf.constant(base), scales, Slope(scale, jacobian),
        tf.zeros((3, 1), tf.float64), tf.constant(active), limit,
    )  # fmt: skip
    return root, exact(base, scale), base


JACOBIANS = [-1.0 - 3.0 * 1.0, -1.0 - 3.0 * 4.0, -1.0 - 3.0 * 0.25]  # at the bases


@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-9])
def test_what_is_left_is_a_small_part_of_the_tolerance(rtol):
    root, z, base = iterate((rtol, rtol), JACOBIANS, 40)
    assert np.all(root.converged)
    assert np.all(np.abs(root.z - z) <= 1.1 * KAPPA * (rtol + rtol * np.abs(base + z)))
    assert root.evaluations[2] < root.evaluations[1]


def test_without_tolerances_stages_are_exact():
    root, z, _ = iterate(None, JACOBIANS, 60)
    assert np.all(root.converged)
    np.testing.assert_allclose(root.z, z, rtol=1e-13)


def test_rows_that_diverge_run_out_of_turns_or_rest():
    wrong = [JACOBIANS[0], 3.0, JACOBIANS[2]]
    root, z, _ = iterate((1e-6, 1e-6), wrong, 40, active=(True, True, False))
    assert root.converged.numpy().tolist() == [True, False, True]
    np.testing.assert_allclose(root.z[0], z[0], rtol=1e-7)
    # Two turns tell; a row that rests keeps its guess.
    assert root.evaluations.numpy()[1] <= 4 and root.evaluations.numpy()[2] == 0
    assert root.z[2] == 0.0
    short, _, _ = iterate((1e-12, 1e-12), JACOBIANS, 3)
    assert not np.any(short.converged) and np.all(short.evaluations <= 3)
