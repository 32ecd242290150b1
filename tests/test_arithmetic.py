"""Graphs evaluated number by number: what TensorFlow computes, of every operation that is known."""

import numpy as np
import pytest
import tensorflow as tf

from keras_neuralde import arithmetic

X = np.array([[1.5, -2.0, 0.5], [0.25, 3.0, -1.0]])


def evaluated(function, *inputs):
    specs = [tf.TensorSpec(x.shape, x.dtype) for x in inputs]
    graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph
    assert arithmetic.is_arithmetic(graph)
    assert arithmetic.comes_apart(graph)

    @tf.function(autograph=False)
    def run(*inputs):
        """While a graph is built, where tensors have no values."""
        found = arithmetic.evaluate(graph, [arithmetic.numbers(one) for one in inputs])
        leaves = [[tf.convert_to_tensor(one) for one in leaf.flat] for leaf in found]
        return [tf.reshape(tf.stack(a), b.shape) for a, b in zip(leaves, found, strict=True)]

    return [one.numpy() for one in run(*inputs)]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.abs(x) + tf.add_n([x, x, 2.0 * x]),
        lambda x: tf.cast(tf.cast(x, tf.float32), tf.float64) - tf.negative(x),
        lambda x: tf.where(x > 0.0, x, tf.square(x)) + tf.maximum(x, 0.1) * tf.minimum(x, 0.2),
        lambda x: tf.where((x >= 0.25) & ~(x < 0.3) | (x <= -2.0), x**2, x**3),
        lambda x: tf.where(tf.equal(x, 3.0) | tf.not_equal(x, 0.5), x, tf.zeros_like(x)),
        lambda x: tf.concat([x[:, ::-1], -x[:, :1], tf.ones_like(x)], axis=1),
        lambda x: tf.stack([x[0], x[-1], x[..., 1, :]], axis=-1),
        lambda x: tf.stack([x[0, 0], -9.81, tf.ones_like(x[0, 0])]),
        lambda x: x[:, None, 1:, tf.newaxis] * tf.reshape(x, [3, 2])[:2],
        lambda x: tf.unstack(x, axis=1) + tf.split(x, 2, axis=0) + tf.split(x, [1, 2], axis=-1),
        lambda x: 2.0 * tf.stack(tf.unstack(x[0]) + tf.unstack(x[1, 1:])) + x[1, 2],
        lambda x: tf.squeeze(tf.expand_dims(x, 1), 1) + tf.broadcast_to(x[:1], [2, 3]),
        lambda x: tf.fill([2, 2], x[0, 0]) + tf.constant([[1.0, 2.0], [3.0, 4.0]], tf.float64),
    ],
)
def test_the_numbers_of_tensorflow(function):
    expected = tf.nest.flatten(function(tf.constant(X)))
    for one, other in zip(evaluated(function, X), expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype.as_numpy_dtype
        np.testing.assert_allclose(one, other, rtol=1e-15)


def test_several_inputs_and_numbers():
    function = lambda t, y, p: p[0] * y + t * p[1]  # noqa: E731
    time, state, p = np.array(0.5), X[0], np.array([2.0, 3.0])
    (found,) = evaluated(function, time, state, p)
    np.testing.assert_allclose(found, 2.0 * X[0] + 1.5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.exp(x),
        lambda x: x / 3.0,
        lambda x: tf.linalg.matmul(x, x, transpose_b=True),
        lambda x: tf.gather(x, [0]),
    ],
)
def test_what_is_no_arithmetic(function):
    spec = tf.TensorSpec([2, 3], tf.float64)
    assert not arithmetic.is_arithmetic(tf.function(function).get_concrete_function(spec).graph)


def test_what_does_not_come_apart():
    """Unknown shapes, variables, and more numbers than a kernel should have."""
    variable = tf.Variable(2.0)

    def comes_apart(function, shape):
        spec = tf.TensorSpec(shape, tf.float32)
        graph = tf.function(function).get_concrete_function(spec).graph
        assert arithmetic.is_arithmetic(graph)
        return arithmetic.comes_apart(graph)

    assert comes_apart(lambda x: 2.0 * x, [3])
    assert not comes_apart(lambda x: 2.0 * x, [None])
    assert not comes_apart(lambda x: variable * x, [3])
    assert not comes_apart(lambda x: 2.0 * x, [5000])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda y, p: y * tf.stack(tf.unstack(p, axis=-1)[:3], axis=-1), True),
        (lambda y, p: y * p[:, 1:2] - p[:, :1], True),
        (lambda y, p: y * tf.split(p, [1, 3], axis=-1)[0], True),
        (lambda y, p: y * p[:, :1] + tf.abs(p)[:, 1:], False),
        (lambda y, p: p[:1] * 2.0, False),
        (lambda y, p: 2.0 * y, False),
    ],
)
def test_which_parameters_are_read_by_columns(function, expected):
    specs = [tf.TensorSpec((2, 3), tf.float64), tf.TensorSpec((2, 4), tf.float64)]
    graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph
    assert arithmetic.is_arithmetic(graph)
    assert arithmetic.reads_parts(graph, graph.inputs[1]) == expected


def test_what_no_output_depends_on_does_not_count():
    """A function mapped over rows leaves that of one row behind."""

    def function(x):
        tf.math.erf(x)
        return tf.vectorized_map(lambda one: tf.stack([2.0 * one[0], one[1] + one[2]]), x)

    (found,) = evaluated(function, X)
    np.testing.assert_allclose(found, np.stack([2.0 * X[:, 0], X[:, 1] + X[:, 2]], 1), rtol=1e-15)
    spec = tf.TensorSpec(X.shape, tf.float64)
    graph = tf.function(tf.math.erf, autograph=False).get_concrete_function(spec).graph
    assert not arithmetic.is_arithmetic(graph)


def test_effects_count():
    def function(x):
        tf.print(x)
        return 2.0 * x

    spec = tf.TensorSpec(X.shape, tf.float64)
    graph = tf.function(function, autograph=False).get_concrete_function(spec).graph
    assert not arithmetic.is_arithmetic(graph)


@pytest.mark.parametrize("shape", [(60_000,), (None,)])
def test_what_is_not_read_is_taken_apart_too(shape):
    """So it must be small, or the graph stays whole."""
    specs = [tf.TensorSpec(X.shape, tf.float64), tf.TensorSpec(shape, tf.float64)]
    function = tf.function(lambda x, unread: 2.0 * x, autograph=False)
    graph = function.get_concrete_function(*specs).graph
    assert arithmetic.is_arithmetic(graph)
    assert not arithmetic.comes_apart(graph)


def test_variables_stay_whole():
    variable = tf.Variable(2.0, dtype=tf.float64)
    spec = tf.TensorSpec(X.shape, tf.float64)
    for function in (lambda x: variable * x, lambda x: (variable + 1.0, 2.0 * x)[1]):
        graph = tf.function(function, autograph=False).get_concrete_function(spec).graph
        assert not arithmetic.comes_apart(graph)
