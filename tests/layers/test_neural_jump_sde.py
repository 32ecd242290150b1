"""`NeuralJumpSDE`, and events in `NeuralODE`, as a Keras user meets them."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src import testing

import keras_neuralde as nde
from tests.layers.test_neural_sde import Scale

Y0 = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.25]], np.float32)
FIXED = {"dt0": 0.125, "controller": "constant"}


@keras.saving.register_keras_serializable("tests")
class Level(keras.layers.Layer):
    """A trainable number, softplus of a weight."""

    def build(self, input_shape):
        self.w = self.add_weight(shape=(), initializer="ones", name="w")

    def call(self, y):
        return tf.nn.softplus(self.w) * tf.ones_like(y[..., :1])


def halving(trajectories=None, rate=2.0, **keywords):
    """dy = 0.5 y dt + 0.2 y dW, halved at the given rate."""
    return nde.NeuralJumpSDE(
        Scale(0.5), Scale(0.2), Scale(0.5), rate, (0.0, 1.0), "euler_maruyama",
        trajectories=trajectories, seed=3, **{**FIXED, **keywords},
    )  # fmt: skip


def network(**keywords):
    def dense():
        return keras.Sequential([keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)])

    return nde.NeuralJumpSDE(
        dense(), dense(), dense(), 2.0, (0.0, 1.0), "euler_maruyama", **FIXED, **keywords
    )


def test_shapes():
    times = [0.25, 0.5, 1.0]
    for n, leading in ((None, (3,)), (4, (3, 4))):
        for saveat, middle in ((None, ()), (times, (3,))):
            layer = halving(n, saveat=saveat, log_likelihood=True)
            y, likelihood = layer(Y0)
            assert y.shape == (*leading, *middle, 2) and likelihood.shape == (*leading, *middle)
            shapes = layer.compute_output_shape((None, 2))
            assert shapes[0][1:] == y.shape[1:] and shapes[1][1:] == likelihood.shape[1:]


@pytest.mark.slow
def test_the_mean_and_its_gradients():
    """E y = y0 exp((a - λ/2) t): with respect to a and, through the likelihood, to λ."""
    n = 4000
    layer = halving(n, Level(), rate_bound=2.0, log_likelihood=True, dt0=1.0 / 64.0)
    y0 = Y0[:1, :1]
    with tf.GradientTape() as tape:
        y, likelihood = layer(y0)
        mean = nde.expectation(y[0], likelihood[0])[0]
    rate = np.log1p(np.e)
    exact = np.exp(0.5 - 0.5 * rate)
    np.testing.assert_allclose(mean, exact, rtol=0.035)
    drift_bar, rate_bar = tape.gradient(mean, [layer.drift.a, layer.rate.w])
    np.testing.assert_allclose(drift_bar, exact, rtol=0.05)
    slope = 1.0 / (1.0 + np.exp(-1.0))
    np.testing.assert_allclose(rate_bar, -0.5 * exact * slope, rtol=0.16)


def test_the_rate_has_no_gradient_without_the_likelihood():
    layer = halving(2, Level(), rate_bound=2.0)
    for trainable in (True, False):
        layer.rate.trainable = trainable
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(layer(Y0))
        if trainable:
            with pytest.raises(ValueError, match="no gradient with respect to `rate"):
                tape.gradient(total, layer.jump.a)
        else:
            assert float(tape.gradient(total, layer.jump.a)) != 0.0
    # With it, the paths alone do not have one either.
    layer = halving(2, Level(), rate_bound=2.0, log_likelihood=True)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(Y0)[0])
    with pytest.raises(ValueError, match="keras_neuralde.expectation"):
        tape.gradient(total, layer.rate.w)


@pytest.mark.slow
def test_the_layer_test_of_keras():
    class Case(testing.TestCase):
        def runTest(self):  # noqa: N802
            with keras.device("cpu:0"):
                self.run_layer_test(
                    nde.NeuralJumpSDE,
                    init_kwargs={
                        "drift": keras.layers.Dense(2), "diffusion": keras.layers.Dense(2),
                        "jump": keras.layers.Dense(2), "rate": 2.0, "t_span": (0.0, 1.0),
                        "seed": 1, "solver": "euler_maruyama", "trajectories": 3, **FIXED,
                    },
                    input_shape=(4, 2),
                    expected_output_shape=(4, 3, 2),
                    expected_num_seed_generators=1,
                    expected_num_trainable_weights=6,
                    expected_num_non_trainable_variables=1,
                    supports_masking=True,
                    run_mixed_precision_check=False,
                )  # fmt: skip

    Case().debug()


@pytest.mark.slow
def test_fit_save_and_load(tmp_path):
    model = keras.Sequential([keras.Input((2,)), network(trajectories=2, saveat=[0.5, 1.0])])
    model.compile("adam", "mse", jit_compile=False)
    model.fit(Y0, np.zeros((3, 2, 2, 2), np.float32), epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(model.predict(Y0, verbose=0), loaded.predict(Y0, verbose=0))
    json.dumps(model.layers[0].get_config())


@pytest.mark.slow
def test_export_runs_without_python(tmp_path):
    model = keras.Sequential([keras.Input((2,)), network(trajectories=2)])
    model.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(tmp_path / "model")
    for rows in (1, 3):
        expected = model.predict(Y0[:rows], verbose=0)
        np.testing.assert_allclose(served.serve(Y0[:rows]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("log_likelihood", [False, True])
def test_export_of_a_model_as_rate(tmp_path, log_likelihood):
    """Keras saves gradients too, among them those that are refused."""
    layer = halving(2, Level(), rate_bound=2.0, log_likelihood=log_likelihood)
    inputs = keras.Input((2,))
    model = keras.Model(inputs, layer(inputs))
    model.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(tmp_path / "model")
    answers, expected = (tf.nest.flatten(f(Y0)) for f in (served.serve, model))
    assert len(answers) == 1 + log_likelihood
    for found, wanted in zip(answers, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_refusals():
    dense = keras.layers.Dense

    def make(jump=None, rate=1.0, **keywords):
        return nde.NeuralJumpSDE(dense(2), dense(2), jump or dense(2), rate, (0.0, 1.0), **keywords)

    with pytest.raises(TypeError, match="`jump`"):
        make(lambda y: y)
    with pytest.raises(TypeError, match="`rate`"):
        make(rate="often")
    with pytest.raises(ValueError, match="`rate` must not be negative"):
        make(rate=-1.0)
    with pytest.raises(ValueError, match="`rate_bound` must be a number"):
        make(rate=dense(1), rate_bound="much")
    with pytest.raises(ValueError, match="needs `rate_bound`"):
        make(rate=dense(1))
    with pytest.raises(ValueError, match="`jump` must return"):
        make(dense(3))(Y0)
    with pytest.raises(ValueError, match="`rate` must return"):
        make(rate=dense(2), rate_bound=1.0)(Y0)


@keras.saving.register_keras_serializable("tests")
def add_one(t, y, p):
    return y + 1.0


@keras.saving.register_keras_serializable("tests")
def above_two(t, y, p):
    return y[..., 0] - 2.0


def test_events_in_a_layer_are_saved_and_exported(tmp_path):
    """y' = 0.5 y, plus one at t = 1, and plus one where the first component crosses two."""
    events = [nde.PresetTimeEvent([1.0], add_one), nde.ContinuousEvent(above_two, add_one)]
    layer = nde.NeuralODE(Scale(0.5), (0.0, 2.0), saveat=[0.5, 1.0, 2.0], events=events, rtol=1e-6)
    model = keras.Sequential([keras.Input((2,)), layer])
    y = model(Y0).numpy()
    # The first row crosses two at t = 1, by the dose: that is no crossing; the third later.
    np.testing.assert_allclose(y[1, :, 0], 3.0 * np.exp([0.25, 0.5, 1.0]) + [0, 1, np.exp(0.5)],
                               rtol=1e-5)  # fmt: skip
    third = 0.5 * np.exp(0.5) + 1.0
    crossing = 1.0 + 2.0 * np.log(2.0 / third)
    np.testing.assert_allclose(y[2, 2, 0], 3.0 * np.exp(0.5 * (2.0 - crossing)), rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(Y0, verbose=0), y, rtol=1e-5)
    json.dumps(layer.get_config())
    model.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(tmp_path / "model")
    np.testing.assert_allclose(served.serve(Y0), y, rtol=1e-5)


def test_a_function_that_could_not_be_found_again_is_refused():
    dose = nde.PresetTimeEvent([1.0], lambda t, y, p: y)
    layer = nde.NeuralODE(Scale(0.5), (0.0, 2.0), events=[dose])
    with pytest.raises(ValueError, match="register_keras_serializable"):
        layer.get_config()
