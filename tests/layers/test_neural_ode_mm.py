"""`NeuralODEMM`: constraints hold whatever the weights; training, saving, refusals.

Keras's `run_layer_test` feeds random rows, which no constraint allows; what it looks at is looked
at one by one here.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde

MASS = [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


@keras.saving.register_keras_serializable(package="tests")
def conserved(y):
    return keras.ops.sum(y, -1, keepdims=True) - 1.0


@keras.saving.register_keras_serializable(package="tests")
class Scaled(keras.layers.Layer):
    """A constraint with a weight of its own: Σ y = total."""

    def build(self, shape):
        self.total = self.add_weight(shape=(), initializer="ones", name="total")

    def call(self, y):
        return keras.ops.sum(y, -1, keepdims=True) - self.total


def make(constraints=conserved, **keywords):
    keras.utils.set_random_seed(0)
    rates = keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])
    return nde.NeuralODEMM(rates, constraints, (0.0, 1.0), MASS, **keywords)


Y0 = np.array([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]], np.float32)


def test_the_constraint_holds_and_the_network_moves_the_rest():
    layer = make(saveat=[0.3, 1.0])
    y = layer(Y0)
    assert y.shape == (2, 2, 3)
    np.testing.assert_allclose(tf.reduce_sum(y, -1), np.ones((2, 2)), atol=1e-5)
    assert np.all(np.abs(y[:, -1] - Y0)[:, :2] > 1e-3)
    plain = nde.NeuralODE(layer.model, (0.0, 1.0), "rodas5p", saveat=[0.3, 1.0])
    assert len(layer.trainable_variables) == len(layer.model.trainable_variables) == 4
    assert plain.compute_output_shape((2, 3)) == layer.compute_output_shape((2, 3)) == (2, 2, 3)


@keras.saving.register_keras_serializable(package="tests")
def curved(y):
    """Two constraints on four components: y2 = y0 y1 and y3 = sin y0 - y2²."""
    a, b, c, d = (y[:, i : i + 1] for i in range(4))
    return keras.ops.concatenate([c - a * b, d - keras.ops.sin(a) + c * c], -1)


def make_curved(**keywords):
    """The layer in float64, and states that satisfy its constraints."""
    keras.utils.set_random_seed(1)
    double = {"dtype": "float64"}
    rates = keras.Sequential(
        [keras.layers.Dense(8, "tanh", **double), keras.layers.Dense(2, **double)]
    )
    mass = np.diag([1.0, 1.0, 0.0, 0.0])
    layer = nde.NeuralODEMM(rates, curved, (0.0, 1.0), mass, **double, **keywords)
    a, b = np.random.default_rng(0).uniform(-1.0, 1.0, (2, 5))
    return layer, np.stack([a, b, a * b, np.sin(a) - (a * b) ** 2], axis=1)


def violation(y):
    """The largest residual of `curved` at any time of any row."""
    return np.abs(curved(np.reshape(y, (-1, 4)))).max()


@pytest.mark.parametrize(
    ("solver", "tolerances"), [("rodas5p", (1e-4, 1e-8)), ("kvaerno3", (1e-6,))]
)
def test_constraints_hold_at_every_save_point(solver, tolerances):
    """The residual stays at the order of the tolerance, and falls with it.

    A component may be wrong by atol + rtol |y|, up to twice the tolerance, a residual adds up to
    four of them, and between the ends of steps stands an interpolant.
    """
    times = np.linspace(0.0, 1.0, 21)
    for tolerance in tolerances:
        keywords = {"saveat": times, "rtol": tolerance, "atol": tolerance}
        layer, y0 = make_curved(solver=solver, **keywords)
        y = layer(y0).numpy()
        assert y.shape == (5, 21, 4) and np.abs(y[:, -1] - y0).max() > 0.1
        assert violation(y) <= 20.0 * tolerance, violation(y)
        ends = violation(y[:, [0, -1]])
        assert ends <= 10.0 * tolerance, ends


def test_gradients_of_the_weights_against_finite_differences():
    """Each weight array along a random direction, through nonlinear constraints and save points."""
    keywords = {"saveat": [0.35, 1.0], "dt0": 0.1, "controller": "constant"}
    layer, y0 = make_curved(**keywords)
    weigh = np.random.default_rng(1).normal(size=(5, 2, 4))

    def loss():
        return tf.reduce_sum(tf.sin(layer(y0)) * weigh)

    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, layer.trainable_variables)
    random = np.random.default_rng(2)
    for weight, gradient in zip(layer.trainable_variables, gradients, strict=True):
        before, direction = weight.numpy(), random.normal(size=weight.shape)
        ends = []
        for step in (1e-5, -1e-5):
            weight.assign(before + step * direction)
            with tf.GradientTape():  # the same program as above
                ends.append(float(loss()))
        weight.assign(before)
        expected = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(np.sum(gradient * direction), expected, rtol=1e-6, atol=1e-8)


def test_training_and_a_start_off_the_constraint():
    """A target that the layer can meet is approached, and the constraint goes on to hold."""
    model = keras.Sequential([keras.Input((3,)), make()])
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=True)
    target = np.array([[0.5, 0.2, 0.3], [0.3, 0.4, 0.3]], np.float32)
    history = model.fit(Y0, target, epochs=60, verbose=0).history["loss"]
    assert history[-1] < 0.05 * history[0], (history[0], history[-1])
    last = model.predict(Y0, verbose=0)
    np.testing.assert_allclose(last.sum(axis=-1), 1.0, atol=1e-5)
    off = model.predict(np.array([[1.0, 0.5, 0.0], Y0[1]], np.float32), verbose=0)
    assert np.all(np.isnan(off[0]))
    np.testing.assert_allclose(off[1], last[1], rtol=1e-6)
    with pytest.raises(nde.SolveError, match="the initial state violates"):
        model.layers[-1](np.array([[1.0, 0.5, 0.0], Y0[1]], np.float32))


def test_a_constraint_with_weights_gets_their_gradient():
    layer = make(Scaled(), rtol=1e-5, atol=1e-7)
    with tf.GradientTape() as tape:
        last = tf.reduce_sum(layer(Y0)[:, 2])
    gradients = tape.gradient(last, layer.trainable_variables)
    assert len(gradients) == 5 and all(g is not None for g in gradients)
    # The third component is what is left of the total; the others see it through the network.
    total = gradients[-1]
    assert total.shape == () and abs(float(total)) > 0.5


def test_saving(tmp_path):
    """A model that was trained a little; a constraint that is a function, and one with weights."""
    for constraints in (conserved, Scaled()):
        model = keras.Sequential([keras.Input((3,)), make(constraints)])
        for weight in model.trainable_variables:
            weight.assign(weight + 0.01)
        if constraints is not conserved:
            constraints.total.assign(1.0)
        expected = model.predict(Y0, verbose=0)
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(again.predict(Y0, verbose=0), expected)
        assert again.layers[-1].get_config()["mass_matrix"] == MASS
        for one, other in zip(again.weights, model.weights, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"solver": "tsit5"}, ValueError, "implicit solver"),
        ({"constraints": 3}, TypeError, "function or Keras layer"),
        ({"constraints": lambda y: y}, ValueError, "must add up to the 3"),
    ],
)
def test_refusals(change, error, words):
    with pytest.raises(error, match=words):
        make(**change)(Y0)


def test_matrices_of_a_wrong_shape():
    with pytest.raises(ValueError, match="square matrix"):
        nde.NeuralODEMM(keras.layers.Dense(2), conserved, (0.0, 1.0), [[1, 0]])
    with pytest.raises(ValueError, match="vector of 2 components"):
        nde.NeuralODEMM(keras.layers.Dense(2), conserved, (0.0, 1.0), [[1, 0], [0, 0]])(Y0)
