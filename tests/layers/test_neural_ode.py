"""`NeuralODE` as a Keras user meets it."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src import testing

import keras_neuralde as nde


@keras.saving.register_keras_serializable("tests")
class Linear(keras.layers.Layer):
    """y' = a y with a trainable scalar `a`; the solution is y0 exp(a t)."""

    def __init__(self, start=-1.0, **keywords):
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
class Seasonal(keras.layers.Layer):
    """y' = y cos t, called as model([t, y])."""

    def call(self, inputs):
        t, y = inputs
        assert t.shape[-1] == 1 and len(t.shape) == 2
        return y * keras.ops.cos(t)


def network(width=2, dtype=None, dropout=0.0):
    layers = [keras.layers.Dense(8, "tanh", dtype=dtype)]
    if dropout:
        layers.append(keras.layers.Dropout(dropout, seed=1, dtype=dtype))
    return keras.Sequential([*layers, keras.layers.Dense(width, dtype=dtype)])


def exact(times, y0, a=-1.0):
    return y0[:, None, :] * np.exp(a * np.asarray(times))[None, :, None]


Y0 = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]], np.float32)
TIGHT = {"rtol": 1e-6, "atol": 1e-7}


class TestValues:
    def test_final_state(self):
        y = nde.NeuralODE(Linear(), (0.0, 1.0), **TIGHT)(Y0)
        np.testing.assert_allclose(y, Y0 * np.exp(-1), rtol=1e-5)

    def test_save_times_are_batch_major(self):
        times = [0.0, 0.25, 1.0]
        y = nde.NeuralODE(Linear(), (0.0, 1.0), saveat=times, **TIGHT)(Y0)
        np.testing.assert_allclose(y, exact(times, Y0), rtol=1e-5)

    def test_a_scalar_save_time_keeps_the_time_axis(self):
        y = nde.NeuralODE(Linear(), (0.0, 1.0), saveat=0.5, **TIGHT)(Y0)
        np.testing.assert_allclose(y, exact([0.5], Y0), rtol=1e-5)

    def test_times_at_call_shared_and_beyond_the_span(self):
        times = np.array([0.5, 2.0], np.float32)
        layer = nde.NeuralODE(Linear(), (0.0, 1.0), saveat=[0.1], **TIGHT)
        np.testing.assert_allclose(layer([Y0, times]), exact(times, Y0), rtol=1e-5)

    def test_times_at_call_per_sample_padded_and_masked(self):
        times = np.array([[0.5, 1.0], [0.2, np.nan], [np.nan, np.nan]], np.float32)
        y = nde.NeuralODE(Linear(), (0.0, 1.0), **TIGHT)([Y0, times])
        expected = np.nan_to_num(Y0[:, None, :] * np.exp(-times)[:, :, None])
        np.testing.assert_allclose(y, expected, rtol=1e-5)
        np.testing.assert_array_equal(y._keras_mask, np.isfinite(times))

    def test_masked_times_in_a_model_give_finite_losses_and_gradients(self):
        y0, times = keras.Input((2,)), keras.Input((None,))
        model = keras.Model([y0, times], nde.NeuralODE(network(), (0.0, 1.0))([y0, times]))
        model.compile("sgd", "mse")
        padded = np.array([[0.5, 1.0], [0.2, np.nan], [0.1, np.nan]], np.float32)
        history = model.fit([Y0, padded], np.zeros((3, 2, 2)), epochs=3, verbose=0)
        assert np.all(np.isfinite(history.history["loss"]))
        assert np.all([np.all(np.isfinite(w)) for w in model.get_weights()])

    def test_time_dependent_and_backwards(self):
        layer = nde.NeuralODE(
            Seasonal(), (1.0, -1.0), saveat=[0.5, -1.0], time_dependent=True, **TIGHT
        )
        expected = Y0[:, None] * np.exp(np.sin([0.5, -1.0]) - np.sin(1.0))[None, :, None]
        np.testing.assert_allclose(layer(Y0), expected, rtol=1e-5)

    def test_images_through_a_convolution(self):
        field = keras.Sequential([keras.layers.Conv2D(3, 3, padding="same", activation="tanh")])
        y = nde.NeuralODE(field, (0.0, 1.0), saveat=[0.5, 1.0])(np.ones((2, 4, 4, 3), np.float32))
        assert y.shape == (2, 2, 4, 4, 3)

    def test_functional_and_subclassed_inner_models(self):
        inputs = keras.Input((2,))
        functional = keras.Model(inputs, keras.layers.Dense(2)(inputs))

        class Sub(keras.Model):
            def __init__(self):
                super().__init__()
                self.dense = keras.layers.Dense(2)

            def call(self, y):
                return self.dense(y)

        for inner in (functional, Sub()):
            layer = nde.NeuralODE(inner, (0.0, 1.0))
            assert layer(Y0).shape == (3, 2) and len(layer.trainable_variables) == 2

    def test_rows_do_not_see_each_other(self):
        layer = nde.NeuralODE(network(dtype="float64"), (0.0, 2.0), dtype="float64")
        y0 = np.random.default_rng(0).normal(size=(5, 2)) * np.array([[1.0]] * 4 + [[100.0]])
        np.testing.assert_allclose(layer(y0)[:2], layer(y0[:2]), rtol=1e-12)


class TestTraining:
    @pytest.mark.parametrize("jit_compile", [True, False])
    def test_fit_finds_the_rate(self, jit_compile):
        times = np.linspace(0.1, 1.0, 5)
        model = keras.Sequential(
            [keras.Input((2,)), nde.NeuralODE(Linear(0.3), (0.0, 1.0), saveat=times.tolist())]
        )
        model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=jit_compile)
        model.fit(np.tile(Y0, (4, 1)), np.tile(exact(times, Y0), (4, 1, 1)), epochs=120, verbose=0)
        np.testing.assert_allclose(model.get_weights()[0], -1.0, atol=1e-2)

    def test_steps_per_execution(self):
        model = keras.Sequential([keras.Input((2,)), nde.NeuralODE(network(), (0.0, 1.0))])
        model.compile("adam", "mse", steps_per_execution=2, jit_compile=True)
        history = model.fit(np.tile(Y0, (4, 1)), np.tile(Y0, (4, 1)), 3, epochs=2, verbose=0)
        assert len(history.history["loss"]) == 2

    def test_gradient_with_respect_to_input_and_weights(self):
        layer = nde.NeuralODE(
            Linear(dtype="float64"), (0.0, 1.0), dtype="float64", rtol=1e-9, atol=1e-10
        )
        y0 = tf.constant(Y0, tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(y0)
            loss = tf.reduce_sum(layer(y0))
        by_y0, by_a = tape.gradient(loss, [y0, layer.model.a.value])
        np.testing.assert_allclose(by_y0, np.full((3, 2), np.exp(-1)), rtol=1e-7)
        np.testing.assert_allclose(by_a, Y0.sum() * np.exp(-1), rtol=1e-6)

    def test_frozen_inner_models_stay(self):
        inner = network()
        inner.trainable = False
        model = keras.Sequential(
            [keras.Input((2,)), nde.NeuralODE(inner, (0.0, 1.0)), keras.layers.Dense(1)]
        )
        before = [w.copy() for w in inner.get_weights()]
        model.compile("adam", "mse")
        model.fit(Y0, Y0[:, :1], verbose=0)
        for old, new in zip(before, inner.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)


class TestState:
    def test_dropout_keeps_one_mask_per_solve_and_draws_anew(self):
        class Noise(keras.layers.Layer):
            """y' = dropout(1): straight lines when the mask stays, at rest in inference."""

            def __init__(self):
                super().__init__()
                self.dropout = keras.layers.Dropout(0.5, seed=3)

            def call(self, y, training=None):
                return self.dropout(keras.ops.ones_like(y), training=training)

        layer = nde.NeuralODE(Noise(), (0.0, 1.0), saveat=[0.5, 1.0])
        y0 = np.zeros((6, 8), np.float32)
        first, second = layer(y0, training=True).numpy(), layer(y0, training=True).numpy()
        np.testing.assert_allclose(first[:, 1], 2 * first[:, 0], rtol=1e-5)
        assert set(np.round(first[:, 1].ravel(), 4)) == {0.0, 2.0}
        assert np.any(first != second)
        np.testing.assert_allclose(layer(y0)[:, 1], np.ones((6, 8)), rtol=1e-6)

    def test_batch_normalization_is_refused(self):
        inner = keras.Sequential([keras.layers.Dense(2), keras.layers.BatchNormalization()])
        with pytest.raises(ValueError, match="BatchNormalization.*couple trajectories"):
            nde.NeuralODE(inner, (0.0, 1.0))(Y0)

    @pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
    def test_low_precision_fields_keep_a_float32_state(self, policy):
        seen = []

        class Watch(keras.layers.Layer):
            def call(self, y):
                seen.append(y.dtype)
                return -y

        layer = nde.NeuralODE(Watch(dtype=policy), (0.0, 1.0), dtype=policy, **TIGHT)
        y = layer(Y0)
        assert y.dtype == layer.compute_dtype and layer.state_dtype == "float32"
        assert all(dtype == layer.compute_dtype for dtype in seen if isinstance(dtype, tf.DType))
        np.testing.assert_allclose(tf.cast(y, tf.float32), Y0 * np.exp(-1), rtol=2e-2)

    def test_float64_solver_over_a_float32_network(self):
        assert nde.NeuralODE(network(), (0.0, 1.0), dtype="float64")(Y0).dtype == tf.float64


class TestConformance(testing.TestCase):
    def test_keras_own_layer_test(self):
        for keywords, dropout, shape in (
            ({}, 0.0, (4, 3)),
            ({"saveat": [0.2, 1.0], "rtol": 1e-4}, 0.2, (4, 2, 3)),
        ):
            self.run_layer_test(
                nde.NeuralODE,
                init_kwargs={
                    "model": network(3, dropout=dropout),
                    "t_span": (0.0, 1.0),
                    **keywords,
                },
                input_shape=(4, 3),
                expected_output_shape=shape,
                expected_num_trainable_weights=4,
                expected_num_non_trainable_weights=0,
                expected_num_seed_generators=int(dropout > 0),
                expected_num_losses=0,
                supports_masking=True,
            )


class TestSaving:
    @staticmethod
    def model():
        return keras.Sequential(
            [
                keras.Input((2,)),
                nde.NeuralODE(
                    network(),
                    (0.0, 1.0),
                    nde.solvers.ExplicitRungeKutta("dopri5"),
                    saveat=np.linspace(0.0, 1.0, 3),
                    rtol=1e-5,
                    controller=nde.controllers.PID(P=0.2, I=0.4),
                    max_steps=500,
                ),
            ]
        )

    def test_config_is_plain_json_and_makes_an_equal_layer(self):
        layer = self.model().layers[0]
        config = json.loads(json.dumps(layer.get_config()))
        twin = nde.NeuralODE.from_config(config)
        assert json.loads(json.dumps(twin.get_config())) == config
        assert twin.solve_keywords["max_steps"] == 500 and twin._solver == layer._solver

    def test_keras_file(self, tmp_path):
        model = self.model()
        model.save(tmp_path / "model.keras")
        twin = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(twin.predict(Y0, verbose=0), model.predict(Y0, verbose=0))

    def test_export_runs_where_the_package_is_not_importable(self, tmp_path):
        model = self.model()
        expected = model.predict(Y0, verbose=0)
        model.export(tmp_path / "export", verbose=False)
        np.save(tmp_path / "y0.npy", Y0)
        script = (
            "import sys, numpy as np, tensorflow as tf\n"
            "sys.modules['keras_neuralde'] = None\n"
            "loaded = tf.saved_model.load(sys.argv[1])\n"
            "y0 = np.load(sys.argv[2])\n"
            "serve = loaded.signatures['serving_default']\n"
            "one, = serve(tf.constant(y0[:1])).values()\n"
            "all_, = serve(tf.constant(y0)).values()\n"
            "np.testing.assert_allclose(one, all_[:1], rtol=1e-5)\n"
            "np.save(sys.argv[3], all_)\n"
        )
        paths = [str(tmp_path / name) for name in ("export", "y0.npy", "out.npy")]
        run = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-2000:]
        np.testing.assert_allclose(np.load(paths[2]), expected, rtol=1e-5)

    def test_summary_and_symbolic_shapes(self):
        layer = nde.NeuralODE(network(), (0.0, 1.0), saveat=[0.5, 1.0])
        assert layer(keras.Input((2,))).shape == (None, 2, 2)
        assert layer([keras.Input((2,)), keras.Input((None,))]).shape == (None, None, 2)
        assert self.model().count_params() == 42


# "reversible" belongs to stochastic equations with reversible_heun.
@pytest.mark.parametrize("name", [n for n in nde.adjoints.names() if n != "reversible"])
def test_every_adjoint_trains_the_weights(name):
    keras.utils.set_random_seed(0)
    adjoint = nde.adjoints.get(name)
    layer = nde.NeuralODE(network(), (0.0, 1.0), rtol=1e-6, atol=1e-6, adjoint=adjoint)
    twin = nde.NeuralODE.from_config(json.loads(json.dumps(layer.get_config())))
    assert nde.adjoints.get(twin.solve_keywords["adjoint"]) == adjoint
    layer(Y0)
    exact = nde.NeuralODE(layer.model, (0.0, 1.0), rtol=1e-6, atol=1e-6)
    gradients = []
    for each in (layer, exact):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(each(Y0) ** 2)
        gradients.append(tape.gradient(loss, layer.trainable_variables))
    for found, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


class TestDoor:
    @pytest.mark.parametrize(
        ("keywords", "error", "words"),
        [
            ({"t_span": (0.0, 1.0, 2.0)}, ValueError, "pair"),
            ({"t_span": "long"}, TypeError, "two numbers"),
            ({"saveat": [0.5, 2.0]}, ValueError, "within t_span"),
            ({"saveat": [0.5, 0.1]}, ValueError, "sorted"),
            ({"solver": "tsit"}, ValueError, "Did you mean"),
            ({"model": lambda y: y}, TypeError, "Keras layer"),
            ({"batch_ndims": 2}, TypeError, "set by the layer"),
            ({"rtoll": 1e-3}, (TypeError, ValueError), "rtoll"),
            ({"controller": "H0"}, ValueError, "`controller` must be one of"),
            ({"adjoint": "H0"}, ValueError, "`adjoint` must be one of"),
        ],
    )
    def test_construction(self, keywords, error, words):
        with pytest.raises(error, match=words):
            nde.NeuralODE(**{"model": network(), "t_span": (0.0, 1.0), **keywords})

    def test_model_of_another_output_shape(self):
        with pytest.raises(ValueError, match="must return the shape of its input"):
            nde.NeuralODE(network(3), (0.0, 1.0))(Y0)

    def test_eager_failure_raises_with_the_repair(self):
        with pytest.raises(nde.SolveError, match="max_steps"):
            nde.NeuralODE(Linear(), (0.0, 1.0), max_steps=1, rtol=1e-6)(Y0)


@pytest.mark.parametrize("saveat", [None, [0.5, 1.0]])
def test_one_component_and_a_free_batch_axis(saveat):
    """A width of 1 stays known in the loop's shapes; y' = ky, so that the answer is exact."""
    decay = keras.layers.Dense(
        1, use_bias=False, kernel_initializer=keras.initializers.Constant(-1)
    )
    layer = nde.NeuralODE(decay, (0.0, 1.0), saveat=saveat, rtol=1e-5)
    model = keras.Sequential([keras.Input((1,)), layer])
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=True)
    x = np.array([[1.0], [2.0], [3.0]], np.float32)
    exact = x * np.exp(-1.0) if saveat is None else x[:, :, None] * np.exp([[-0.5], [-1.0]])
    history = model.fit(x, exact, batch_size=2, verbose=0).history
    assert history["loss"][0] < 1e-8
    np.testing.assert_allclose(model.predict(x, verbose=0), exact, rtol=1e-4)
