"""Gradients of products with few columns: TensorFlow's numbers, where XLA compiles them."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import ops

import keras_neuralde as nde
from keras_neuralde import narrow_products


def matrices(columns, dtype="float64"):
    random = np.random.default_rng(columns)
    shapes = (7, 5), (5, columns), (7, columns)
    return [tf.constant(random.normal(size=shape), dtype) for shape in shapes]


def gradients(a, b, bar, scope):
    with tf.GradientTape() as tape:
        tape.watch([a, b])
        c = tf.matmul(a, b)
    with narrow_products.quick(scope):
        return tape.gradient(c, [a, b], output_gradients=bar)


def products(function):
    graph = function.graph.as_graph_def()
    return sum(node.op == "MatMul" for node in graph.node)


def test_tensorflow_knows_them():
    """The one private attribute that is used is still where it was."""
    assert ops.gradient_registry.lookup("MatMul") is narrow_products._gradient


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_numbers(columns, dtype):
    arguments = matrices(columns, dtype)
    plain, quick = (
        tf.function(lambda *three, scope=scope: gradients(*three, scope), jit_compile=True)
        for scope in (False, True)
    )
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    for one, other in zip(plain(*arguments), quick(*arguments), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
    narrow = 1 < columns <= narrow_products.MOST
    # The product itself and its two gradients, or only the one that has long rows.
    assert products(plain.get_concrete_function(*arguments)) == 3
    assert products(quick.get_concrete_function(*arguments)) == (2 if narrow else 3)


@pytest.mark.parametrize(
    "product",
    [
        lambda a, b: tf.matmul(a, tf.transpose(b), transpose_b=True),
        lambda a, b: tf.matmul(tf.transpose(a), b, transpose_a=True),
    ],
)
def test_transposed_products_are_left_alone(product):
    a, b, bar = matrices(2)
    with tf.GradientTape() as tape:
        tape.watch([a, b])
        c = product(a, b)
    with narrow_products.quick():
        bars = tape.gradient(c, [a, b], output_gradients=bar)
    np.testing.assert_allclose(bars[0], bar @ tf.transpose(b), rtol=1e-12)
    np.testing.assert_allclose(bars[1], tf.transpose(a) @ bar, rtol=1e-12)


def test_the_gradient_of_a_compiled_solve():
    """Against central differences, and the gradient of a plain graph."""
    weights, y0 = matrices(2)[1], tf.ones((3, 2), tf.float64)

    def loss(weights):
        problem = nde.ODEProblem(
            lambda t, y, p: tf.tanh(tf.concat([y, y, y[:, :1]], 1)) @ p, y0, (0.0, 1.0), weights
        )
        sol = nde.solve(problem, "heun", dt0=0.25, controller="constant", batch_ndims=1)
        return tf.reduce_sum(sol.y**2)

    def gradient(weights):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            value = loss(weights)
        return tape.gradient(value, weights)

    plain, compiled = (
        tf.function(gradient, autograph=False, jit_compile=jit)(weights) for jit in (False, True)
    )
    np.testing.assert_allclose(plain, compiled, rtol=1e-12)
    value = tf.function(loss, autograph=False, jit_compile=True)
    slope = (float(value(weights + 1e-6)) - float(value(weights - 1e-6))) / 2e-6
    np.testing.assert_allclose(np.sum(compiled), slope, rtol=1e-7)
