"""Equations with known solutions, shared by the tests."""

import numpy as np
import tensorflow as tf


def lotka_volterra(t, y, p):
    """x' = αx - βxy, y' = -δy + γxy with p = (α, β, δ, γ)."""
    alpha, beta, delta, gamma = tf.unstack(p)
    x, z = y[..., 0], y[..., 1]
    return tf.stack([alpha * x - beta * x * z, -delta * z + gamma * x * z], -1)


LOTKA_VOLTERRA_P = np.array([1.5, 1.0, 3.0, 1.0])


def decay(t, y, p):
    """y' = -p y, solved by y0 exp(-p t)."""
    return -p * y


def harmonic(t, y, p):
    """A rotation: (cos t, -sin t) from (1, 0)."""
    return tf.stack([y[..., 1], -y[..., 0]], -1)


def seasonal(t, y, p):
    """y' = y cos t, solved by y0 exp(sin t - sin t0)."""
    return y * tf.reshape(tf.cos(t), tf.concat([tf.shape(t), [1]], 0))
