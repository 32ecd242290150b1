"""`NeuralDSDE` and `NeuralSDE` as a Keras user meets them."""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src import testing

import keras_neuralde as nde

Y0 = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.25]], np.float32)
FIXED = {"dt0": 0.125, "controller": "constant"}


@keras.saving.register_keras_serializable("tests")
class Scale(keras.layers.Layer):
    """a y with a trainable scalar a."""

    def __init__(self, start=1.0, **keywords):
        super().__init__(**keywords)
        self.start = start

    def build(self, input_shape):
        self.a = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(self.start), name="a"
        )

    def call(self, y):
        return self.a * y

    def get_config(self):
        return {**super().get_config(), "start": self.start}


@keras.saving.register_keras_serializable("tests")
class Pair(Scale):
    """The matrix [a y, a y] / √2: the law of the diagonal noise a y with one motion for all."""

    def call(self, y):
        return keras.ops.stack([super().call(y)] * 2, -1) / 2**0.5


def geometric(trajectories=None, **keywords):
    """dy = 0.5 y dt + 0.3 y dW."""
    settings = {**FIXED, "seed": 3, **keywords}
    return nde.NeuralDSDE(
        Scale(0.5), Scale(0.3), (0.0, 1.0), "milstein", trajectories=trajectories, **settings
    )


def network(**keywords):
    def dense():
        return keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])

    return nde.NeuralDSDE(dense(), dense(), (0.0, 1.0), "euler_maruyama", **FIXED, **keywords)


class TestValues:
    def test_shapes(self):
        times = [0.25, 0.5, 1.0]
        for n, leading in ((None, (3,)), (4, (3, 4))):
            assert geometric(n)(Y0).shape == (*leading, 2)
            assert geometric(n, saveat=times)(Y0).shape == (*leading, 3, 2)
            assert geometric(n, saveat=0.5)(Y0).shape == (*leading, 1, 2)
            for saveat in (None, times, 0.5):
                layer = geometric(n, saveat=saveat)
                assert layer.compute_output_shape((None, 2))[1:] == layer(Y0).shape[1:]

    def test_moments_of_many_trajectories(self):
        n = 4000
        y = geometric(n)(Y0).numpy()
        mean = Y0 * np.exp(0.5)
        spread = np.abs(mean) * np.sqrt(np.exp(0.09) - 1)
        assert np.all(np.abs(y.mean(1) - mean) < 4.5 * spread / np.sqrt(n) + 0.01 * np.abs(mean))
        np.testing.assert_allclose(y.std(1), spread, rtol=0.1)

    def test_general_noise(self):
        n = 4000
        layer = nde.NeuralSDE(
            Scale(0.5), Pair(0.3), (0.0, 1.0), 2, "euler_maruyama", trajectories=n, seed=1, **FIXED
        )
        y = layer(Y0).numpy()
        mean = Y0 * 1.0625**8
        np.testing.assert_allclose(y.mean(1), mean, rtol=0.03)
        np.testing.assert_allclose(y.std(1), np.abs(mean) * np.sqrt(np.exp(0.09) - 1), rtol=0.1)
        # Both components hear the same noise: their ratio stays.
        np.testing.assert_allclose(y[0, :, 1], 2 * y[0, :, 0], rtol=1e-4)

    def test_times_at_call_and_their_mask(self):
        layer = geometric(2)
        shared = layer([Y0, np.array([0.5, 1.0], np.float32)])
        assert shared.shape == (3, 2, 2, 2)
        times = np.array([[0.5, 1.0], [1.0, np.nan], [np.nan, np.nan]], np.float32)
        y = layer([Y0, times])
        np.testing.assert_allclose(y[0], shared[0], rtol=1e-5)
        np.testing.assert_array_equal(y[2], 0.0)
        np.testing.assert_array_equal(y._keras_mask[:, 0], np.isfinite(times))

    def test_drift_and_diffusion_use_their_own_weights(self):
        layer = geometric(500)
        before = layer(Y0).numpy()
        layer.diffusion.a.assign(0.0)
        still = layer(Y0).numpy()
        # Without noise all trajectories are the ordinary solution of the drift alone.
        np.testing.assert_allclose(still, np.repeat((Y0 * 1.0625**8)[:, None], 500, 1), rtol=1e-4)
        layer.diffusion.a.assign(0.3)
        layer.drift.a.assign(0.0)
        np.testing.assert_allclose(layer(Y0).numpy().mean(1), Y0, rtol=0.06)
        assert before.std() > 0 and len(layer.trainable_variables) == 2

    def test_time_dependent_models(self):
        inputs = [keras.Input((1,)), keras.Input((2,))]
        drift = keras.Model(inputs, inputs[1] * 0.0 + keras.ops.cos(inputs[0]))
        noise = keras.Model(inputs, inputs[1] * 0.0)
        layer = nde.NeuralDSDE(
            drift, noise, (0.0, 1.0), "euler_maruyama", dt0=0.01, controller="constant",
            time_dependent=True,
        )  # fmt: skip
        np.testing.assert_allclose(layer(Y0), Y0 + np.sin(1.0), atol=0.01)


class TestSeeds:
    def test_evaluation_repeats_and_training_does_not(self):
        layer = geometric(2)
        np.testing.assert_array_equal(layer(Y0), layer(Y0))
        first, second = layer(Y0, training=True), layer(Y0, training=True)
        assert np.all(np.abs(first - second) > 1e-6)
        np.testing.assert_array_equal(layer(Y0), layer(Y0))
        assert np.all(np.abs(geometric(2, seed=4)(Y0) - layer(Y0)) > 1e-6)

    def test_a_seed_at_call(self):
        layer = geometric(2)
        np.testing.assert_array_equal(layer(Y0, seed=9), layer(Y0, seed=9))
        assert np.all(np.abs(layer(Y0, seed=9) - layer(Y0, seed=10)) > 1e-6)
        np.testing.assert_allclose(layer(Y0, seed=3), layer(Y0), rtol=1e-6)

    def test_keras_decides_what_an_own_seed_is(self):
        layers = []
        for seed in (1, 1, 2):
            keras.utils.set_random_seed(seed)
            layers.append(geometric(seed=None).seed)
        assert layers[0] == layers[1] != layers[2]

    def test_training_is_reproducible_and_the_generator_is_tracked(self):
        runs = []
        for _ in range(2):
            layer = geometric(2)
            runs.append([layer(Y0, training=True).numpy() for _ in range(2)])
        np.testing.assert_array_equal(*runs)
        assert any("seed" in v.path for v in layer.non_trainable_variables)

    @pytest.mark.parametrize("jit_compile", [True, False])
    def test_fresh_paths_inside_compiled_functions(self, jit_compile):
        layer = geometric(2)
        layer(Y0)
        step = tf.function(lambda: layer(Y0, training=True), jit_compile=jit_compile)
        assert np.all(np.abs(step() - step()) > 1e-6)


class TestTraining:
    @pytest.mark.parametrize("jit_compile", [True, False])
    def test_fit_finds_drift_and_noise(self, jit_compile):
        """From the mean and the variance of many trajectories."""
        inputs = keras.Input((1,))
        paths = nde.NeuralDSDE(
            Scale(0.0), Scale(0.6), (0.0, 1.0), "milstein", trajectories=200, seed=5, **FIXED
        )(inputs)
        mean = keras.ops.mean(paths, axis=1)
        spread = keras.ops.std(paths, axis=1)
        model = keras.Model(inputs, keras.layers.Concatenate()([mean, spread]))
        model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=jit_compile)
        target = [np.exp(0.5), np.exp(0.5) * np.sqrt(np.exp(0.09) - 1)]
        x = np.ones((8, 1), np.float32)
        model.fit(x, np.tile(target, (8, 1)), epochs=150, verbose=0)
        np.testing.assert_allclose([abs(w) for w in model.get_weights()[:2]], [0.5, 0.3], atol=0.05)

    def test_gradients_reach_both_models_and_the_input(self):
        layer = nde.NeuralDSDE(
            Scale(0.5, dtype="float64"), Scale(0.3, dtype="float64"), (0.0, 1.0), "milstein",
            seed=3, dtype="float64", **FIXED,
        )  # fmt: skip
        y0 = tf.constant(Y0, tf.float64)
        layer(y0)
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = layer(y0)
            loss = tf.reduce_sum(y)
        bars = tape.gradient(loss, [y0, *layer.trainable_variables])
        assert all(bar is not None and np.all(np.abs(bar) > 1e-6) for bar in bars)
        # The solution is linear in y0.
        np.testing.assert_allclose(bars[0], y / y0, rtol=1e-9)

    @pytest.mark.parametrize("noise", ["diagonal", "general"])
    def test_weight_gradients_are_those_of_the_paths(self, noise):
        """Against central differences along the same paths, weight by weight."""
        keras.utils.set_random_seed(7)

        def network(outputs):
            dense = functools.partial(keras.layers.Dense, dtype="float64")
            return [dense(5, "tanh"), dense(outputs)]

        common = {"trajectories": 3, "seed": 3, "saveat": [0.5, 1.0], "dtype": "float64", **FIXED}
        drift = keras.Sequential(network(2))
        if noise == "diagonal":
            diffusion = keras.Sequential(network(2))
            layer = nde.NeuralDSDE(drift, diffusion, (0.0, 1.0), "milstein", **common)
        else:
            matrix = keras.layers.Reshape((2, 3), dtype="float64")
            diffusion = keras.Sequential([*network(6), matrix])
            layer = nde.NeuralSDE(drift, diffusion, (0.0, 1.0), 3, "lamba_em", **common)
        y0 = tf.constant(Y0, tf.float64)
        layer(y0)
        weights = layer.trainable_variables
        random = np.random.default_rng(1)
        # Biases are 0 until somebody trains them.
        for weight in weights:
            weight.assign_add(0.2 * random.normal(size=weight.shape))
        scale = random.normal(size=layer(y0).shape)

        @tf.function(jit_compile=True)
        def loss():
            return tf.reduce_sum(scale * layer(y0) ** 2)

        with tf.GradientTape() as tape:
            value = tf.reduce_sum(scale * layer(y0) ** 2)
        bars = tape.gradient(value, weights)
        assert len(bars) == 8
        np.testing.assert_allclose(value, loss(), rtol=1e-12)
        for weight, bar in zip(weights, bars, strict=True):
            at, direction, eps = weight.numpy(), random.normal(size=weight.shape), 1e-5
            values = []
            for sign in (1, -1):
                weight.assign(at + sign * eps * direction)
                values.append(float(loss()))
            weight.assign(at)
            slope = (values[0] - values[1]) / (2 * eps)
            np.testing.assert_allclose(np.sum(bar * direction), slope, rtol=1e-7)


class TestKeras:
    def test_layer_conformance(self):
        class Case(testing.TestCase):
            def runTest(self):  # noqa: N802
                for layer_class, extra in (
                    (nde.NeuralDSDE, {"diffusion": keras.layers.Dense(2)}),
                    (nde.NeuralSDE, {"diffusion": matrix(), "noise_dim": 3}),
                ):
                    self.run_layer_test(
                        layer_class,
                        init_kwargs={
                            "drift": keras.layers.Dense(2), "t_span": (0.0, 1.0), "seed": 1,
                            "solver": "euler_maruyama", "trajectories": 3, **FIXED, **extra,
                        },
                        input_shape=(4, 2),
                        expected_output_shape=(4, 3, 2),
                        expected_num_seed_generators=1,
                        expected_num_trainable_weights=4,
                        expected_num_non_trainable_variables=1,
                        supports_masking=True,
                        run_mixed_precision_check=False,
                    )  # fmt: skip

        Case().debug()

    def test_save_and_load(self, tmp_path):
        model = keras.Sequential([keras.Input((2,)), network(trajectories=2, saveat=[0.5, 1.0])])
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(model.predict(Y0, verbose=0), loaded.predict(Y0, verbose=0))
        json.dumps(model.layers[0].get_config())

    def test_export_runs_without_python(self, tmp_path):
        model = keras.Sequential([keras.Input((2,)), network(trajectories=2)])
        model.export(tmp_path / "model", verbose=False)
        served = tf.saved_model.load(tmp_path / "model")
        for rows in (1, 3):
            np.testing.assert_allclose(
                served.serve(Y0[:rows]), model.predict(Y0[:rows], verbose=0), rtol=1e-4, atol=1e-5
            )

    def test_export_with_times_at_call(self, tmp_path):
        """Keras saves gradients too, among them that of the times, which is refused."""
        inputs = keras.Input((2,)), keras.Input((2,))
        model = keras.Model(inputs, geometric()(inputs))
        model.export(tmp_path / "model", verbose=False)
        served = tf.saved_model.load(tmp_path / "model")
        times = np.array([[0.5, 1.0]] * 3, np.float32)
        np.testing.assert_allclose(served.serve((Y0, times)), model([Y0, times]), rtol=1e-5)


def matrix(columns=3):
    return keras.Sequential([keras.layers.Dense(2 * columns), keras.layers.Reshape((2, columns))])


def test_refusals():
    dense = keras.layers.Dense
    with pytest.raises(TypeError, match="`diffusion`"):
        nde.NeuralDSDE(dense(2), lambda y: y, (0.0, 1.0))
    with pytest.raises(ValueError, match="diagonal noise"):
        nde.NeuralDSDE(dense(2), dense(2), (0.0, 1.0), "tsit5")
    with pytest.raises(ValueError, match="general noise"):
        nde.NeuralSDE(dense(2), matrix(), (0.0, 1.0), 3, "sosri")
    with pytest.raises(ValueError, match="`diffusion` must return"):
        nde.NeuralSDE(dense(2), matrix(), (0.0, 1.0), 2)(Y0)
    with pytest.raises(ValueError, match="`drift` must return"):
        nde.NeuralDSDE(dense(3), dense(2), (0.0, 1.0))(Y0)
    with pytest.raises(ValueError, match="`trajectories`"):
        nde.NeuralDSDE(dense(2), dense(2), (0.0, 1.0), trajectories=0)
    with pytest.raises(TypeError, match="`seed`"):
        nde.NeuralDSDE(dense(2), dense(2), (0.0, 1.0), seed="x")
    with pytest.raises(ValueError, match="`noise_dim`"):
        nde.NeuralSDE(dense(2), matrix(), (0.0, 1.0), 0)
