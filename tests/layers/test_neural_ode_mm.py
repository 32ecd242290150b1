"""`NeuralODEMM`: constraints hold whatever the weights; training, saving, refusals."""

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


def test_training_and_a_start_off_the_constraint():
    model = keras.Sequential([keras.Input((3,)), make()])
    model.compile("adam", "mse", jit_compile=True)
    target = np.array([[0.5, 0.2, 0.3]] * 2, np.float32)
    history = model.fit(Y0, target, epochs=5, verbose=0).history["loss"]
    assert history[-1] < history[0]
    off = model.predict(np.array([[1.0, 0.5, 0.0]], np.float32), verbose=0)
    assert np.all(np.isnan(off))


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
    model = keras.Sequential([keras.Input((3,)), make()])
    expected = model.predict(Y0, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(Y0, verbose=0), expected, rtol=1e-5)


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
