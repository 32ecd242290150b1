"""Step-size control: the factor of a step against its formula."""

import numpy as np
import pytest
import tensorflow as tf

from keras_neuralde import controllers

ERRORS = np.exp(np.linspace(-60.0, 20.0, 4001))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", [2, 3, 5, 8])
def test_the_classical_factor(order, dtype):
    controller = controllers.PID(factor_min=1e-30, factor_max=1e30)
    errors = tf.constant(ERRORS, dtype)
    expected = 0.9 * np.maximum(ERRORS, 1e-30) ** (-0.5 / order)
    np.testing.assert_allclose(controller.factor(errors, [], order), expected, rtol=2e-3)


def test_the_factor_is_continuous_and_falls_with_the_error():
    factor = controllers.PID(factor_min=0.0, factor_max=1e30).factor
    values = factor(tf.constant(ERRORS), [], 5).numpy()
    assert np.all(np.diff(values) < 0)
    assert np.all(values[:-1] / values[1:] < (ERRORS[1] / ERRORS[0]) ** 0.1 * 1.002)


def test_earlier_errors_enter_a_pid_controller():
    p, i, d = 0.3, 0.4, 0.02
    e = np.array([[0.5], [0.8], [1.2]])
    controller = controllers.PID(p, i, d, factor_min=0.0)
    found = controller.factor(tf.constant(e[0]), [tf.constant(e[1]), tf.constant(e[2])], 5)
    powers = np.array([[p + i + d], [-(p + 2 * d)], [d]]) * (-0.5 / 5)
    np.testing.assert_allclose(found, 0.9 * np.prod(e**powers, axis=0), rtol=2e-3)


def test_limits():
    factor = controllers.PID().factor(tf.constant([0.0, 1e-30, 1.0, 1e30]), [], 5)
    np.testing.assert_allclose(factor, [10.0, 10.0, 0.9, 0.2], rtol=1e-6)
