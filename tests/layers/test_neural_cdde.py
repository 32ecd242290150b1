"""`NeuralCDDE` as a Keras user meets it."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src import testing

import keras_neuralde as nde

Y0 = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]], np.float32)
TIGHT = {"rtol": 1e-9, "atol": 1e-10}


@keras.saving.register_keras_serializable("tests")
class Mixed(keras.layers.Layer):
    """a y(t) + b y(t - first lag) + c y(t - second lag), with trainable a, b, c."""

    def __init__(self, start=(-0.5, 0.8, -1.2), **keywords):
        super().__init__(**keywords)
        self.start = list(start)

    def build(self, input_shape):
        self.w = self.add_weight(
            shape=(3,), initializer=lambda shape, dtype: tf.constant(self.start, dtype)
        )

    def call(self, states):
        now, first, second = keras.ops.split(states, 3, axis=-1)
        return self.w[0] * now + self.w[1] * first + self.w[2] * second

    def get_config(self):
        return {**super().get_config(), "start": self.start}


@keras.saving.register_keras_serializable("tests")
def waves(t, y0):
    return y0 * tf.cos(t)[:, None]


def layer(history=None, dtype="float64", model=None, lags=(0.3, 0.7), **keywords):
    return nde.NeuralCDDE(
        model or Mixed(dtype=dtype), (0.0, 1.5), list(lags), history=history, dtype=dtype,
        **{**TIGHT, **keywords},
    )  # fmt: skip


def network():
    return keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])


def by_hand(history, y0=Y0, w=(-0.5, 0.8, -1.2), lags=(0.3, 0.7), saveat=None):
    def f(t, y, h, p):
        return w[0] * y + w[1] * h(t - lags[0]) + w[2] * h(t - lags[1])

    y0 = tf.constant(y0, tf.float64)
    problem = nde.DDEProblem(f, y0, lambda t, p: history(t, y0), (0.0, 1.5), lags=list(lags))
    return nde.solve(problem, batch_ndims=1, saveat=saveat, **TIGHT).y


class TestValues:
    def test_order_of_lags_and_pasts(self):
        y0 = Y0.astype("float64")
        times = [0.5, 1.0, 1.5]
        expected = np.transpose(by_hand(waves, saveat=times), [1, 0, 2])
        np.testing.assert_allclose(layer(waves, saveat=times)(y0), expected, atol=1e-8)
        np.testing.assert_allclose(layer()(y0), by_hand(lambda t, y0: y0), atol=1e-8)

        # A dense sample of the same past; the straight lines cost a little accuracy.
        past_times = np.linspace(-0.8, 0.0, 401)
        past = y0[:, None] * np.cos(past_times)[None, :, None]
        sampled = layer("sampled")([y0, past_times, past])
        np.testing.assert_allclose(sampled, expected[:, -1], atol=5e-6)
        own_times = np.repeat(past_times[None], 3, 0)
        at_times = layer("sampled")([y0, own_times, past, np.array(times)])
        np.testing.assert_allclose(at_times, expected, atol=5e-6)

    def test_shapes(self):
        made = nde.NeuralCDDE(network(), (0.0, 1.0), [0.1, 0.2], saveat=[0.5, 1.0])
        assert made(Y0).shape == (3, 2, 2)
        assert made(keras.Input((2,))).shape == (None, 2, 2)
        assert made.compute_output_shape((None, 2)) == (None, 2, 2)
        assert made.count_params() == 6 * 8 + 8 + 8 * 2 + 2
        padded = np.array([[0.5, 1.0], [1.0, np.nan], [np.nan, np.nan]], np.float32)
        y = made([Y0, padded])
        np.testing.assert_array_equal(y[2], 0.0)
        np.testing.assert_array_equal(y._keras_mask, np.isfinite(padded))


class TestTraining:
    def test_gradients_reach_lags_and_weights(self):
        made = layer(waves, trainable_lags=True, rtol=1e-11, atol=1e-12)
        y0 = tf.constant(Y0, tf.float64)

        def loss():
            return tf.reduce_sum(made(y0) ** 2)

        loss()
        variables = [made.log_lags, made.model.w]
        with tf.GradientTape() as tape:
            value = loss()
        bars = tape.gradient(value, [variable.value for variable in variables])
        for variable, bar in zip(variables, bars, strict=True):
            start = variable.numpy()
            for i in range(len(start)):
                sides = []
                for step in (1e-5, -1e-5):
                    variable.assign(start + step * np.eye(len(start))[i])
                    sides.append(loss())
                variable.assign(start)
                np.testing.assert_allclose(bar[i], (sides[0] - sides[1]) / 2e-5, rtol=1e-5)

    def test_gradients_reach_input_and_sampled_past(self):
        made = layer("sampled")
        y0 = tf.constant(Y0, tf.float64)
        past_times = tf.constant(np.linspace(-1.0, 0.0, 5))
        past = tf.random.stateless_normal((3, 5, 2), (1, 2), dtype=tf.float64)

        def loss(y0, past):
            return tf.reduce_sum(made([y0, past_times, past]) ** 2)

        with tf.GradientTape() as tape:
            tape.watch([y0, past])
            value = loss(y0, past)
        bars = tape.gradient(value, [y0, past])
        # The loss is a quadratic function of both, so that wide differences are exact.
        one = tf.scatter_nd([[0, 0]], tf.constant([0.5], tf.float64), y0.shape)
        expected = loss(y0 + one, past) - loss(y0 - one, past)
        np.testing.assert_allclose(bars[0][0, 0], expected, rtol=1e-6)
        one = tf.scatter_nd([[1, 3, 1]], tf.constant([0.5], tf.float64), past.shape)
        expected = loss(y0, past + one) - loss(y0, past - one)
        np.testing.assert_allclose(bars[1][1, 3, 1], expected, rtol=1e-6)

    @pytest.mark.parametrize("jit_compile", [pytest.param(True, marks=pytest.mark.slow), False])
    def test_fit_finds_the_lag(self, jit_compile):
        times = np.linspace(0.25, 3.0, 12)
        true = nde.DDEProblem(
            lambda t, y, h, p: -h(t - 0.8), tf.ones((1, 1)), lambda t, p: tf.ones((1, 1)),
            (0.0, 3.0), lags=[0.8],
        )  # fmt: skip
        target = np.transpose(nde.solve(true, saveat=times, batch_ndims=1).y, [1, 0, 2])

        @keras.saving.register_keras_serializable("tests")
        class Late(keras.layers.Layer):
            def call(self, states):
                return -states[:, 1:]

        made = nde.NeuralCDDE(Late(), (0.0, 3.0), [0.5], saveat=times, trainable_lags=True)
        model = keras.Sequential([keras.Input((1,)), made])
        model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=jit_compile)
        model.fit(np.ones((1, 1)), target, epochs=60, verbose=0)
        np.testing.assert_allclose(np.exp(made.log_lags.numpy()), [0.8], rtol=0.01)


class TestKeras:
    def test_layer_conformance(self):
        class Case(testing.TestCase):
            def runTest(self):  # noqa: N802
                self.run_layer_test(
                    nde.NeuralCDDE,
                    init_kwargs={
                        "model": keras.layers.Dense(2), "t_span": (0.0, 1.0), "lags": [0.4],
                        "trainable_lags": True,
                    },
                    input_shape=(4, 2),
                    expected_output_shape=(4, 2),
                    expected_num_trainable_weights=3,
                    expected_num_non_trainable_weights=0,
                    expected_num_seed_generators=0,
                    expected_num_losses=0,
                    supports_masking=True,
                    run_mixed_precision_check=False,
                )  # fmt: skip

        Case().debug()

    def test_save_load_and_export(self, tmp_path):
        solver = nde.solvers.MethodOfSteps("bosh3")
        made = nde.NeuralCDDE(
            network(), (0.0, 1.0), [0.3, 0.6], solver, history=waves, trainable_lags=True
        )
        model = keras.Sequential([keras.Input((2,)), made])
        made.log_lags.assign([-1.0, -0.2])
        expected = model.predict(Y0, verbose=0)
        json.dumps(made.get_config())
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(loaded.predict(Y0, verbose=0), expected, rtol=1e-6)
        model.export(tmp_path / "model", verbose=False)
        served = tf.saved_model.load(tmp_path / "model")
        for rows in (1, 3):
            np.testing.assert_allclose(served.serve(Y0[:rows]), expected[:rows], rtol=1e-4)

    def test_refusals(self):
        for lags in ([], [0.0], [[0.1]], [0.1, -1.0], [np.nan]):
            with pytest.raises(ValueError, match="list of positive numbers.*Received"):
                nde.NeuralCDDE(network(), (0.0, 1.0), lags)
        with pytest.raises(TypeError, match="`history` must be None, 'sampled' or a function"):
            nde.NeuralCDDE(network(), (0.0, 1.0), [0.1], history=1.0)
        with pytest.raises(ValueError, match="`model` must map .* to the shape of the state"):
            nde.NeuralCDDE(keras.layers.Dense(3), (0.0, 1.0), [0.1])(Y0)
        with pytest.raises(ValueError, match="the input must be .*past_times, past"):
            nde.NeuralCDDE(network(), (0.0, 1.0), [0.1], history="sampled")(Y0)
        sampled = nde.NeuralCDDE(network(), (0.0, 1.0), [0.1], history="sampled")
        times = np.linspace(-0.2, 0.0, 3, dtype="float32")[None].repeat(len(Y0), 0)
        past = np.zeros((len(Y0), 3, *np.shape(Y0)[1:]), "float32")
        for bad in ((times[:, :2], past), (times, past[:, :2]), (times[:1], past[:1])):
            with pytest.raises(ValueError, match="`past_times` must be .*Received shapes"):
                sampled([Y0, *bad])
        with pytest.raises(ValueError, match="ascending"):
            sampled([Y0, times[:, ::-1], past])
        with pytest.raises(ValueError, match="`lags` must differ"):
            nde.NeuralCDDE(network(), (0.0, 1.0), [0.1, 0.1])
        with pytest.raises(ValueError, match="sosri"):
            nde.NeuralCDDE(network(), (0.0, 1.0), [0.1], "sosri")(Y0)

    def test_an_implicit_method(self):
        model = network()
        tolerances = {"rtol": 1e-5, "atol": 1e-6}
        stiff = nde.NeuralCDDE(model, (0.0, 1.0), [0.1], "rosenbrock23", **tolerances)
        plain = nde.NeuralCDDE(model, (0.0, 1.0), [0.1], **tolerances)
        np.testing.assert_allclose(stiff(Y0), plain(Y0), rtol=1e-3, atol=1e-4)
