"""`nde.Model` and the closure optimizers under `fit`."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import keras_neuralde as nde
from keras_neuralde.optimizers import LBFGS, Chain, Progress


@keras.saving.register_keras_serializable("tests")
class Vector(keras.layers.Layer):
    """A layer that returns its weight vector, whatever its input."""

    def __init__(self, start, **keywords):
        super().__init__(**keywords)
        self.start = list(start)

    def build(self, input_shape):
        self.vector = self.add_weight(shape=(len(self.start),), name="vector")
        self.vector.assign(self.start)

    def call(self, inputs):
        return 0 * inputs[:, :1] + self.vector[None]

    def get_config(self):
        return {**super().get_config(), "start": self.start}


def rosenbrock(_, y_pred):
    x = y_pred[0]
    return tf.reduce_sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


ROSENBROCK_START = [-1.2] + [1.0] * 9
ONE = np.ones((1, 1))


def vector_model(start, loss, optimizer, dtype="float64", **keywords):
    inputs = keras.Input((1,), dtype=dtype)
    model = nde.Model(inputs, Vector(start, dtype=dtype)(inputs))
    model.compile(optimizer, loss, **keywords)
    return model


@pytest.fixture(autouse=True)
def float64():
    # Keras remembers the policy that it first made of floatx: set both.
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def data(n=24):
    x = np.random.default_rng(0).normal(size=(n, 2))
    return x, np.sin(x[:, :1]) + x[:, 1:] ** 2


def network(optimizer, hidden=(), **compile_keywords):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((2,))
    y = keras.layers.Dense(8, "tanh")(inputs)
    for layer in hidden:
        y = layer(y)
    model = nde.Model(inputs, keras.layers.Dense(1)(y))
    model.compile(optimizer, "mse", **compile_keywords)
    return model


class TestRosenbrock:
    @pytest.mark.parametrize("engine", ["native", "tfp"])
    def test_both_engines_reach_the_minimizer_of_tfp(self, engine):
        reference = tfp.optimizer.lbfgs_minimize(
            lambda x: tfp.math.value_and_gradient(lambda x: rosenbrock(None, x[None]), x),
            initial_position=tf.constant(ROSENBROCK_START, tf.float64),
            max_iterations=500,
        )
        model = vector_model(ROSENBROCK_START, rosenbrock, LBFGS(engine=engine))
        history = model.fit(ONE, ONE, epochs=500, verbose=0)
        assert bool(reference.converged) and len(history.epoch) < 200
        np.testing.assert_allclose(model.get_weights()[0], reference.position, atol=1e-6)

    def test_evaluations_stay_few(self):
        model = vector_model(ROSENBROCK_START, rosenbrock, LBFGS())
        history = model.fit(ONE, ONE, epochs=500, verbose=0)
        assert model.optimizer.num_evaluations < 3 * len(history.epoch)

    def test_the_logged_loss_belongs_to_the_accepted_point_and_never_rises(self):
        model = vector_model(ROSENBROCK_START, rosenbrock, LBFGS())
        history = model.fit(ONE, ONE, epochs=12, verbose=0)
        losses = history.history["loss"]
        assert np.all(np.diff(losses) < 0)
        np.testing.assert_allclose(losses[-1], rosenbrock(None, model(ONE)), rtol=1e-12)

    def test_graph_and_compiled_runs_agree(self):
        found = []
        for jit_compile in (True, False):
            model = vector_model(ROSENBROCK_START, rosenbrock, LBFGS(), jit_compile=jit_compile)
            found.append(model.fit(ONE, ONE, epochs=8, verbose=0).history["loss"])
        np.testing.assert_allclose(*found, rtol=1e-9)


class TestLineSearch:
    def test_an_ill_conditioned_quadratic(self):
        scales = tf.constant(np.logspace(0, 5, 6))
        model = vector_model(
            np.ones(6), lambda _, y: tf.reduce_sum(scales * y[0] ** 2), LBFGS(loss_tolerance=0.0)
        )
        history = model.fit(ONE, ONE, epochs=100, verbose=0)
        assert history.history["loss"][-1] < 1e-12
        assert model.optimizer.progress is Progress.GRADIENT_CONVERGED

    def test_regions_without_a_finite_loss_are_backed_out_of(self):
        def loss(_, y):  # the minimum at 1e-3 lies beside a cliff of NaN
            x = y[0, 0]
            return tf.where(x > 0, x - 1e-3 * tf.math.log(x), np.nan)

        model = vector_model([5.0], loss, LBFGS(initial_step_norm=100.0))
        model.fit(ONE, ONE, epochs=60, verbose=0)
        np.testing.assert_allclose(model.get_weights()[0], [1e-3], rtol=1e-4)

    def test_a_nan_start_ends_with_a_sentence(self):
        model = vector_model([-1.0], lambda _, y: tf.math.log(y[0, 0]), LBFGS())
        with pytest.warns(UserWarning, match="NaN or infinite at the starting point"):
            history = model.fit(ONE, ONE, epochs=5, verbose=0)
        assert len(history.epoch) == 1 and model.get_weights()[0] == [-1.0]

    def test_a_stall_on_a_rough_loss_names_the_cure(self):
        def loss(_, y):  # the gradient promises a descent that the value does not keep
            x = y[0, 0]
            return tf.stop_gradient(10.0 + tf.abs(x - 1.0)) + x - tf.stop_gradient(x)

        model = vector_model([1.0], loss, LBFGS())
        with pytest.warns(UserWarning, match="lower rtol and atol"):
            model.fit(ONE, ONE, epochs=5, verbose=0)
        assert model.optimizer.progress is Progress.STALLED
        assert model.get_weights()[0] == [1.0]

    def test_float32(self):
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
        model = vector_model([1.2] * 10, rosenbrock, LBFGS(), dtype="float32")
        with warnings.catch_warnings():  # float32 may end in a stall
            warnings.simplefilter("ignore")
            model.fit(ONE, ONE, epochs=200, verbose=0)
        np.testing.assert_allclose(model.get_weights()[0], np.ones(10), atol=5e-2)


class TestChain:
    @staticmethod
    def chain(first=5):
        return Chain([keras.optimizers.Adam(0.05), LBFGS()], steps=[first])

    def test_the_first_stage_is_plain_adam_and_the_second_improves_on_it(self):
        x, y = data()
        adam, both = network(keras.optimizers.Adam(0.05)), network(self.chain())
        alone = adam.fit(x, y, epochs=5, verbose=0).history["loss"]
        chained = both.fit(x, y, epochs=30, verbose=0).history["loss"]
        np.testing.assert_allclose(chained[:5], alone, rtol=1e-10)
        assert both.optimizer.stage == 1 and chained[-1] < 0.1 * chained[5]

    def test_one_program_serves_both_stages(self):
        traces = []

        def loss(y_true, y_pred):
            traces.append(1)
            return tf.reduce_mean((y_true - y_pred) ** 2)

        x, y = data()
        model = network(self.chain())
        model.compile(self.chain(), loss)
        model.fit(x, y, epochs=3, verbose=0)
        before = len(traces)
        model.fit(x, y, epochs=10, initial_epoch=3, verbose=0)
        assert len(traces) == before

    @pytest.mark.parametrize("stop", [3, 8])
    def test_saved_in_the_middle_of_a_stage_and_resumed(self, stop, tmp_path):
        x, y = data()
        whole = network(self.chain())
        expected = whole.fit(x, y, epochs=12, verbose=0).history["loss"]
        half = network(self.chain())
        half.fit(x, y, epochs=stop, verbose=0)
        half.save(tmp_path / "half.keras")
        resumed = keras.models.load_model(tmp_path / "half.keras")
        assert int(resumed.optimizer.iterations) == stop
        rest = resumed.fit(x, y, epochs=12, initial_epoch=stop, verbose=0).history["loss"]
        np.testing.assert_allclose(rest, expected[stop:], rtol=1e-9)

    def test_steps_per_execution_and_validation(self):
        x, y = data()
        plain, packed = network(self.chain()), network(self.chain(), steps_per_execution=3)
        plain.fit(x, y, epochs=12, verbose=0)
        history = packed.fit(
            x, y, batch_size=8, epochs=2, verbose=0, shuffle=False, validation_data=(x, y)
        )
        assert set(history.history) == {"loss", "val_loss"}
        assert int(packed.optimizer.iterations) == 6

    def test_learning_rates_of_the_stages_are_visible(self):
        chain = self.chain()
        assert float(chain.optimizers[0].learning_rate) == pytest.approx(0.05)

    def test_bad_stages(self):
        with pytest.raises(ValueError, match="`steps` must hold"):
            Chain([keras.optimizers.Adam(), LBFGS()], steps=[])
        with pytest.raises(ValueError, match="last stage"):
            Chain([LBFGS(), keras.optimizers.Adam()], steps=[3])


class TestFit:
    def test_ends_when_converged(self):
        model = vector_model([3.0], lambda _, y: (y[0, 0] - 1.0) ** 2, LBFGS())
        history = model.fit(ONE, ONE, epochs=100, verbose=0)
        assert len(history.epoch) < 20
        assert model.optimizer.progress is Progress.GRADIENT_CONVERGED
        assert "converged" in model.optimizer.message

    def test_a_second_fit_on_other_data_starts_afresh(self):
        x, y = data()
        model = network(LBFGS())
        model.fit(x, y, epochs=5, verbose=0)
        before = model.evaluate(x, -y, verbose=0)
        after = model.fit(x, -y, epochs=5, verbose=0).history["loss"][0]
        assert after < before

    def test_batches_are_seen_as_different_functions(self):
        x, y = data(64)
        model = network(LBFGS())
        losses = model.fit(x, y, batch_size=16, epochs=4, verbose=0).history["loss"]
        assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]

    def test_regularization_sample_weights_and_metrics(self):
        x, y = data()
        keras.utils.set_random_seed(1)
        inputs = keras.Input((2,))
        outputs = keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.1))(inputs)
        model = nde.Model(inputs, outputs)
        model.compile(LBFGS(), "mse", metrics=["mae"])
        weights = np.linspace(0.1, 1.0, len(x))
        history = model.fit(x, y, sample_weight=weights, epochs=60, verbose=0)
        kernel, bias = model.get_weights()
        # The ridge solution: normal equations of the weighted, penalised problem.
        design = np.hstack([x, np.ones((len(x), 1))])
        penalty = np.diag([0.1, 0.1, 0.0])
        normal = design.T @ (weights[:, None] * design) / len(x) + penalty
        expected = np.linalg.solve(normal, design.T @ (weights[:, None] * y) / len(x))
        np.testing.assert_allclose(np.vstack([kernel, bias]), expected, atol=1e-6)
        assert "mae" in history.history

    def test_dropout_keeps_its_mask_during_a_line_search(self):
        x, y = data()
        model = network(LBFGS(), hidden=[keras.layers.Dropout(0.3, seed=2)])
        losses = model.fit(x, y, epochs=6, verbose=0).history["loss"]
        assert np.all(np.isfinite(losses))
        assert model.optimizer.progress is Progress.RUNNING

    def test_batch_normalization_is_updated_once_per_iteration(self):
        x, y = data()
        layer = keras.layers.BatchNormalization(momentum=0.5)
        model = network(LBFGS(), hidden=[layer])
        model.fit(x, y, epochs=1, verbose=0)
        # One update with momentum one half: halfway from 1 to the variance of the batch.
        hidden = keras.Model(model.inputs, layer.input)(x)
        np.testing.assert_allclose(
            layer.moving_variance, 0.5 + 0.5 * np.var(hidden, axis=0), rtol=1e-6
        )

    def test_frozen_layers_stay(self):
        x, y = data()
        model = network(LBFGS())
        model.layers[1].trainable = False
        before = model.layers[1].get_weights()
        model.compile(LBFGS(), "mse")
        model.fit(x, y, epochs=3, verbose=0)
        for old, new in zip(before, model.layers[1].get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)

    def test_first_order_optimizers_are_kerass_own(self):
        x, y = data()
        ours = network(keras.optimizers.SGD(0.1, clipnorm=0.5))
        theirs = keras.Model(ours.inputs, ours.outputs)
        start = ours.get_weights()
        losses = ours.fit(x, y, epochs=5, verbose=0).history["loss"]
        theirs.set_weights(start)
        theirs.compile(keras.optimizers.SGD(0.1, clipnorm=0.5), "mse")
        np.testing.assert_allclose(
            losses, theirs.fit(x, y, epochs=5, verbose=0).history["loss"], rtol=1e-10
        )

    def test_auto_means_compiled(self):
        assert network("adam").jit_compile is True
        assert network("adam", jit_compile=False).jit_compile is False

    def test_a_plain_keras_model_is_told_what_to_use(self):
        inputs = keras.Input((2,))
        model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
        model.compile(LBFGS(), "mse")
        with pytest.raises(ValueError, match="keras_neuralde.Model"):
            model.fit(*data(), verbose=0)

    def test_subclassed_models_and_the_mixin(self):
        class Mine(nde.ClosureTrainer, keras.Model):
            def __init__(self):
                super().__init__()
                self.dense = keras.layers.Dense(1)

            def call(self, x):
                return self.dense(x)

        model = Mine()
        model.compile(LBFGS(), "mse")
        x, _ = data()
        history = model.fit(x, x @ np.array([[1.0], [2.0]]) + 3.0, epochs=40, verbose=0)
        assert history.history["loss"][-1] < 1e-12

    def test_saving_a_functional_model(self, tmp_path):
        x, y = data()
        model = network(LBFGS(engine="tfp", history_size=4))
        model.fit(x, y, epochs=3, verbose=0)
        model.save(tmp_path / "model.keras")
        twin = keras.models.load_model(tmp_path / "model.keras")
        assert (
            isinstance(twin, nde.Model)
            and twin.optimizer.get_config() == model.optimizer.get_config()
        )
        np.testing.assert_array_equal(twin.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize(
    "keywords",
    [
        {"history_size": 0},
        {"initial_step_norm": -1.0},
        {"engine": "scipy"},
        {"gradient_tolerance": -1.0},
        {"max_evaluations": 0},
    ],
)
def test_bad_settings(keywords):
    with pytest.raises(ValueError, match=next(iter(keywords))):
        LBFGS(**keywords)
