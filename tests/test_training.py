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
    # Compiled runs agree with graphs (tested below); graphs are quicker to make.
    model.compile(optimizer, "mse", **{"jit_compile": False, **compile_keywords})
    return model


def linear(optimizer, **layer_keywords):
    """A model whose least-squares problem L-BFGS solves in a few steps."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((2,))
    model = nde.Model(inputs, keras.layers.Dense(1, **layer_keywords)(inputs))
    model.compile(optimizer, "mse", jit_compile=False)
    return model


class FailAt(keras.callbacks.Callback):
    """Ends a run in the middle, as a crash would."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise RuntimeError("crash")


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

    def test_a_step_too_short_to_change_a_float32_loss_is_no_convergence(self):
        def loss(_, y):  # constant, although the gradient promises a descent
            x = y[0, 0]
            return 10.0 + x - tf.stop_gradient(x)

        model = vector_model([1.0], loss, LBFGS(), dtype="float32")
        with pytest.warns(UserWarning, match="lower rtol and atol"):
            model.fit(ONE, ONE, epochs=5, verbose=0)
        assert model.optimizer.progress is Progress.STALLED

    def test_a_float32_minimum_at_the_limit_of_rounding_is_convergence(self):
        model = vector_model(
            [3.0], lambda _, y: 1.0 + (y[0, 0] - 1.0) ** 2, LBFGS(gradient_tolerance=0.0), "float32"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            history = model.fit(ONE, ONE, epochs=50, verbose=0)
        assert len(history.epoch) < 50
        np.testing.assert_allclose(model.get_weights()[0], [1.0], atol=1e-3)

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
    def chain(first=5, adam=None):
        adam = adam or keras.optimizers.Adam(0.05)
        return Chain([adam, LBFGS(history_size=4)], steps=[first])

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

    @pytest.mark.parametrize("stop", [3, 8])
    def test_a_run_that_crashed_goes_on_from_its_backup(self, stop, tmp_path):
        x, y = data()
        expected = network(self.chain()).fit(x, y, epochs=12, verbose=0).history["loss"]
        backup = tmp_path / "backup"
        with pytest.raises(RuntimeError, match="crash"):
            network(self.chain()).fit(
                x,
                y,
                epochs=12,
                verbose=0,
                callbacks=[keras.callbacks.BackupAndRestore(backup), FailAt(stop)],
            )
        again = network(self.chain()).fit(
            x, y, epochs=12, verbose=0, callbacks=[keras.callbacks.BackupAndRestore(backup)]
        )
        assert again.epoch == list(range(stop, 12))
        np.testing.assert_allclose(again.history["loss"], expected[stop:], rtol=1e-9)

    @pytest.mark.parametrize("stop", [3, 8])
    def test_a_checkpoint_restores_either_stage(self, stop, tmp_path):
        x, y = data()
        expected = network(self.chain()).fit(x, y, epochs=10, verbose=0).history["loss"]
        half = network(self.chain())
        half.fit(x, y, epochs=stop, verbose=0)
        path = tf.train.Checkpoint(model=half, optimizer=half.optimizer).save(tmp_path / "half")
        twin = network(self.chain())
        twin.optimizer.build(twin.trainable_variables)
        status = tf.train.Checkpoint(model=twin, optimizer=twin.optimizer).restore(path)
        status.assert_consumed()
        rest = twin.fit(x, y, epochs=10, initial_epoch=stop, verbose=0).history["loss"]
        np.testing.assert_allclose(rest, expected[stop:], rtol=1e-9)

    def test_steps_per_execution_and_validation(self):
        x, y = data()
        packed = network(self.chain(4), steps_per_execution=3, jit_compile=True)
        with pytest.warns(UserWarning, match="3 batches"):
            history = packed.fit(
                x, y, batch_size=8, epochs=2, verbose=0, shuffle=False, validation_data=(x, y)
            )
        assert set(history.history) == {"loss", "val_loss"}
        assert int(packed.optimizer.iterations) == 6 and packed.optimizer.stage == 1
        np.testing.assert_allclose(
            history.history["val_loss"][-1], packed.evaluate(x, y, verbose=0), rtol=1e-9
        )

    def test_steps_per_execution_takes_no_more_than_an_epoch(self):
        x, y = data()
        packed = network(self.chain(2), steps_per_execution=5)
        losses = packed.fit(x, y, epochs=4, verbose=0).history["loss"]
        assert int(packed.optimizer.iterations) == 4
        plain = network(self.chain(2)).fit(x, y, epochs=4, verbose=0).history["loss"]
        np.testing.assert_allclose(losses, plain, rtol=1e-9)

    def test_a_first_order_stage_logs_and_keeps_what_keras_does(self):
        def model(optimizer):
            return network(
                optimizer,
                hidden=[keras.layers.Dropout(0.3, seed=2), keras.layers.BatchNormalization()],
                metrics=["mae"],
            )

        x, y = data()

        def adamw():
            return keras.optimizers.AdamW(0.05, weight_decay=0.1, clipnorm=0.1)

        ours, theirs = model(self.chain(9, adamw())), model(adamw())
        ours.fit(x, y, epochs=4, verbose=0)
        theirs.fit(x, y, epochs=4, verbose=0)
        for name, values in theirs.history.history.items():
            np.testing.assert_allclose(ours.history.history[name], values, rtol=1e-9)
        for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-14)

    def test_gradient_accumulation_within_a_stage(self):
        def adam():
            return keras.optimizers.Adam(0.05, gradient_accumulation_steps=2)

        x, y = data()
        ours = network(self.chain(9, adam())).fit(x, y, epochs=5, verbose=0).history["loss"]
        theirs = network(adam()).fit(x, y, epochs=5, verbose=0).history["loss"]
        assert ours[0] == ours[1] and ours[2] < ours[1]
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)

    def test_the_closure_optimizer_may_stand_anywhere(self):
        x, y = data()
        chain = Chain([keras.optimizers.Adam(0.05), LBFGS(), "sgd"], steps=[3, 4])
        model = network(chain)
        losses = model.fit(x, y, epochs=10, verbose=0).history["loss"]
        assert chain.stage == 2
        two = network(self.chain(3)).fit(x, y, epochs=7, verbose=0)
        np.testing.assert_allclose(losses[:7], two.history["loss"], rtol=1e-6)
        # The first loss of SGD is that of the last point of L-BFGS; its steps descend further.
        np.testing.assert_allclose(losses[7], losses[6], rtol=1e-12)
        alone = network(keras.optimizers.SGD(0.01))
        alone.set_weights(two.model.get_weights())
        rest = alone.fit(x, y, epochs=3, verbose=0).history["loss"]
        np.testing.assert_allclose(losses[7:], rest, rtol=1e-6)

    def test_a_stage_that_has_converged_hands_over(self):
        x, y = data()
        chain = Chain([LBFGS(), keras.optimizers.SGD(0.0)], steps=[1000])
        history = linear(chain).fit(x, y, epochs=40, verbose=0)
        assert len(history.epoch) == 40  # a first-order stage has no end of its own
        assert chain.optimizers[0].progress is Progress.GRADIENT_CONVERGED
        assert chain.stage == 1 and chain.optimizers[0].num_evaluations < 100

    def test_a_learning_rate_schedule_reaches_the_first_order_stage_alone(self):
        x, y = data()
        model = network(self.chain(3))
        halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5 * rate)
        with pytest.warns(UserWarning, match="LBFGS has no learning rate") as caught:
            model.fit(x, y, epochs=5, verbose=0, callbacks=[halve])
        assert sum("no learning rate" in str(w.message) for w in caught) == 1
        adam, lbfgs = model.optimizer.optimizers
        assert float(adam.learning_rate) == pytest.approx(0.05 / 2**5)
        assert float(lbfgs.learning_rate) == 1.0

    def test_the_learning_rate_is_that_of_the_stage(self):
        chain = self.chain(3)
        chain.learning_rate = 0.02
        assert float(chain.optimizers[0].learning_rate) == pytest.approx(0.02)
        chain.iterations.assign(3)
        assert float(chain.learning_rate) == 1.0

    def test_learning_rates_of_the_stages_are_visible(self):
        chain = self.chain()
        assert float(chain.optimizers[0].learning_rate) == pytest.approx(0.05)

    @pytest.mark.parametrize(
        ("make", "error", "match"),
        [
            (lambda: Chain(["adam", LBFGS()], steps=[]), ValueError, "`steps` must hold"),
            (lambda: Chain(["adam", LBFGS()], steps=[2.5]), ValueError, "`steps` must hold"),
            (lambda: Chain(["adam", LBFGS()], steps=None), ValueError, "`steps` must hold"),
            (lambda: Chain([LBFGS(), LBFGS()], steps=[3]), ValueError, "at most one stage"),
            (lambda: Chain([3, LBFGS()], steps=[3]), TypeError, "must be a Keras optimizer"),
            (
                lambda: Chain([Chain(["adam", LBFGS()], [3]), "sgd"], steps=[9]),
                ValueError,
                "into one Chain",
            ),
            (
                lambda: Chain([keras.optimizers.Adam(use_ema=True), LBFGS()], steps=[3]),
                ValueError,
                "use_ema",
            ),
            (
                lambda: Chain(
                    [keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), "sgd"], [3]
                ),
                ValueError,
                "scale the loss",
            ),
            (lambda: Chain(["adam", LBFGS()], [3], clipnorm=1.0), ValueError, "clipnorm"),
            (lambda: Chain(["adam", LBFGS()], [3], learning_rate=1.0), ValueError, "its stages"),
        ],
    )
    def test_bad_stages(self, make, error, match):
        with pytest.raises(error, match=match):
            make()

    def test_one_object_for_two_stages_is_refused(self):
        adam = keras.optimizers.Adam()
        with pytest.raises(ValueError, match="object of its own"):
            Chain([adam, adam], steps=[3])


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
        with pytest.warns(UserWarning, match="4 batches .* batch_size=len"):
            losses = model.fit(x, y, batch_size=16, epochs=4, verbose=0).history["loss"]
        assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]

    def test_a_batch_that_is_solved_does_not_stop_the_others(self):
        # The first batch is fitted exactly by the start; the second is not.
        x = np.concatenate([np.zeros((8, 2)), data(8)[0]])
        model = linear(LBFGS())
        with pytest.warns(UserWarning, match="2 batches"):
            losses = model.fit(
                x, x @ [[1.0], [2.0]], batch_size=8, shuffle=False, epochs=12, verbose=0
            ).history["loss"]
        assert losses[-1] < 1e-6 * losses[0]

    def test_training_on_one_batch_by_hand_trusts_no_earlier_loss(self):
        x, y = data()
        model = linear(LBFGS())
        model.fit(x, y, epochs=30, verbose=0)
        assert model.optimizer.progress is Progress.GRADIENT_CONVERGED
        loss = model.train_on_batch(x, y + 5.0)
        assert loss < 24 and loss == pytest.approx(model.evaluate(x, y + 5.0, verbose=0))

    def test_a_data_set_of_one_batch_ends_when_converged(self):
        x, y = data()
        model = linear(LBFGS())
        batch = tf.data.Dataset.from_tensors((x, y))
        history = model.fit(batch, epochs=100, verbose=0, shuffle=False)
        assert len(history.epoch) < 40
        assert model.optimizer.progress is Progress.GRADIENT_CONVERGED

    def test_dictionaries_of_inputs_outputs_and_losses(self):
        a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
        hidden = keras.layers.Concatenate()([a, b])
        heads = {name: keras.layers.Dense(1, name=name)(hidden) for name in ("p", "q")}
        model = nde.Model({"a": a, "b": b}, heads)
        model.compile(
            LBFGS(),
            {"p": "mse", "q": "mae"},
            loss_weights={"p": 1.0, "q": 0.5},
            metrics={"p": "mae"},
            jit_compile=False,
        )
        x, y = data()
        inputs, targets = {"a": x, "b": -x[::-1]}, {"p": y, "q": 2 * y}
        logs = model.fit(inputs, targets, epochs=3, verbose=0).history
        for name, value in model.evaluate(inputs, targets, verbose=0, return_dict=True).items():
            np.testing.assert_allclose(logs[name][-1], value, rtol=1e-9)
        np.testing.assert_allclose(
            logs["loss"], np.array(logs["p_loss"]) + 0.5 * np.array(logs["q_loss"]), rtol=1e-9
        )

    def test_lists_of_inputs_and_outputs(self):
        a, b = keras.Input((2,)), keras.Input((1,))
        outputs = [keras.layers.Dense(1)(a), keras.layers.Dense(1)(b)]
        model = nde.Model([a, b], outputs)
        model.compile(LBFGS(), ["mse", "mse"], jit_compile=False)
        x, _ = data()
        targets = [x @ [[1.0], [2.0]], 3 * x[:, :1]]
        weights = np.linspace(1.0, 2.0, len(x))
        model.fit([x, x[:, :1]], targets, sample_weight=weights, epochs=60, verbose=0)
        np.testing.assert_allclose(model.get_weights()[0], [[1.0], [2.0]], atol=1e-5)
        np.testing.assert_allclose(model.get_weights()[2], [[3.0]], atol=1e-5)

    def test_validation_by_a_split_or_arrays_is_kerass(self):
        x, y = data(40)
        keywords = {"epochs": 2, "verbose": 0, "shuffle": False}
        ours = network(keras.optimizers.Adam(0.1), metrics=["mae"])
        ours.fit(x, y, batch_size=64, validation_split=0.25, **keywords)
        theirs = network(keras.optimizers.Adam(0.1), metrics=["mae"])
        validation = tf.data.Dataset.from_tensor_slices((x[30:], y[30:])).batch(4)
        theirs.fit(x[:30], y[:30], validation_data=validation, **keywords)
        for name, values in theirs.history.history.items():
            np.testing.assert_allclose(ours.history.history[name], values, rtol=1e-9)

    def test_class_weights(self):
        x, y = data()
        labels = (y > 0.5).astype("int64")
        model = linear(LBFGS(), activation="sigmoid")
        model.fit(x, labels, class_weight={0: 1.0, 1: 3.0}, epochs=5, shuffle=False, verbose=0)
        weights = np.where(labels[:, 0] == 1, 3.0, 1.0)
        expected = model.evaluate(x, labels, sample_weight=weights, verbose=0)
        assert model.history.history["loss"][-1] == pytest.approx(expected)

    def test_losses_that_layers_add_are_minimized(self):
        x, y = data()
        model = linear(LBFGS(), activity_regularizer=keras.regularizers.L2(0.5))
        losses = model.fit(x, y, epochs=60, verbose=0).history["loss"]
        # mean (y - f)^2 + 0.5 mean f^2 (Keras divides activity penalties by the batch size).
        design = np.hstack([x, np.ones((len(x), 1))])
        expected = np.linalg.solve(1.5 * design.T @ design, design.T @ y)
        np.testing.assert_allclose(np.vstack(model.get_weights()[:1]), expected[:2], atol=1e-6)
        assert losses[-1] == pytest.approx(model.evaluate(x, y, verbose=0))

    def test_eager_runs_agree_with_graphs(self):
        x, y = data()
        found = [
            network(LBFGS(history_size=4), run_eagerly=eagerly)
            .fit(x, y, epochs=5, verbose=0)
            .history["loss"]
            for eagerly in (True, False)
        ]
        np.testing.assert_allclose(*found, rtol=1e-9)

    def test_keras_callbacks(self, tmp_path):
        x, y = data()
        model = network(LBFGS())
        best, log = tmp_path / "best.keras", tmp_path / "log.csv"
        callbacks = [
            keras.callbacks.ModelCheckpoint(best, monitor="loss", save_best_only=True),
            keras.callbacks.EarlyStopping("loss", min_delta=100.0, patience=4),
            keras.callbacks.CSVLogger(log),
            keras.callbacks.TerminateOnNaN(),
        ]
        losses = model.fit(x, y, epochs=50, verbose=0, callbacks=callbacks).history["loss"]
        assert len(losses) == 5 and len(log.read_text().splitlines()) == 6
        loaded = keras.models.load_model(best)
        assert loaded.evaluate(x, y, verbose=0) == pytest.approx(losses[-1])

    def test_a_callback_list_made_by_the_user(self):
        x, y = data()
        model = linear(LBFGS())
        callbacks = keras.callbacks.CallbackList(add_history=True, model=model, epochs=100)
        for _ in range(2):
            history = model.fit(x, y, epochs=100, verbose=0, callbacks=callbacks)
            assert len(history.epoch) < 100
        assert len(callbacks.callbacks) == 2

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
        assert network("adam", jit_compile="auto").jit_compile is True
        assert network("adam", jit_compile=False).jit_compile is False

    def test_a_plain_keras_model_is_told_what_to_use(self):
        inputs = keras.Input((2,))
        model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
        model.compile(LBFGS(), "mse")
        with pytest.raises(ValueError, match="keras_neuralde.Model"):
            model.fit(*data(), verbose=0)

    def test_a_plain_keras_model_with_a_chain_is_told_too(self):
        inputs = keras.Input((2,))
        model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
        model.compile(Chain(["adam", LBFGS()], steps=[3]), "mse")
        with pytest.raises(ValueError, match="keras_neuralde.Model"):
            model.fit(*data(), verbose=0)

    def test_float16_is_refused(self):
        keras.config.set_dtype_policy("mixed_float16")
        model = linear(LBFGS())
        with pytest.raises(ValueError, match="float16.*too coarse"):
            model.fit(*data(), verbose=0)

    def test_constraints_are_refused(self):
        model = linear(LBFGS(), kernel_constraint="non_neg")
        with pytest.raises(ValueError, match="constraints of .*kernel"):
            model.fit(*data(), verbose=0)

    def test_a_model_without_trainable_variables_is_refused(self):
        model = linear(LBFGS())
        model.trainable = False
        model.compile(LBFGS(), "mse")
        with pytest.raises(ValueError, match="without trainable variables"):
            model.fit(*data(), verbose=0)

    def test_an_optimizer_of_other_variables_is_refused(self):
        x, y = data()
        model = network(LBFGS())
        model.fit(x, y, verbose=0)
        model.layers[1].trainable = False
        model.compile(model.optimizer, "mse")
        with pytest.raises(ValueError, match="built for 4 .* given others \\(2\\)"):
            model.fit(x, y, verbose=0)

    def test_a_loss_without_gradients_is_no_convergence(self):
        model = linear(LBFGS())
        model.compile(LBFGS(), lambda y, f: tf.reduce_mean(tf.stop_gradient(f) - y) ** 2)
        with pytest.raises(ValueError, match="does not depend on any trainable variable"):
            model.fit(*data(), verbose=0)

    def test_a_variable_without_gradient_is_named(self):
        inputs = keras.Input((2,))
        outputs = [keras.layers.Dense(1)(inputs), keras.layers.Dense(1, name="idle")(inputs)]
        model = nde.Model(inputs, outputs)
        model.compile(LBFGS(), ["mse", None], jit_compile=False)
        x, y = data()
        with pytest.warns(UserWarning, match="does not depend on .*idle/kernel"):
            losses = model.fit(x, [y, y], epochs=3, verbose=0).history["loss"]
        assert losses[-1] < losses[0]

    def test_fit_before_compile_gets_kerass_sentence(self):
        inputs = keras.Input((2,))
        model = nde.Model(inputs, keras.layers.Dense(1)(inputs))
        with pytest.raises(ValueError, match="call `compile"):
            model.fit(*data())

    def test_subclasses_that_are_functional(self):
        class Mine(nde.Model):
            def __init__(self):
                inputs = keras.Input((2,))
                super().__init__(inputs, keras.layers.Dense(1)(inputs))

        x, _ = data()
        model = Mine()
        model.compile(LBFGS(), "mse", jit_compile=False)
        losses = model.fit(x, x @ [[1.0], [2.0]], epochs=40, verbose=0).history["loss"]
        assert losses[-1] < 1e-12
        assert isinstance(keras.models.clone_model(linear("adam")), nde.Model)

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
        {"clipnorm": 1.0},
        {"use_ema": True},
        {"gradient_accumulation_steps": 2},
        {"learning_rate": 0.1},
    ],
)
def test_bad_settings(keywords):
    with pytest.raises(ValueError, match=next(iter(keywords))):
        LBFGS(**keywords)


def test_the_first_step_is_traced_once():
    """Optimizers make their variables before it: those made inside a step have it traced twice."""
    traces = []

    class Counting(nde.Model):
        def train_step(self, data):
            traces.append(1)
            return super().train_step(data)

    inputs = keras.Input((2,))
    model = Counting(inputs, keras.layers.Dense(1)(inputs))
    model.compile(keras.optimizers.Adam(0.1), "mse")
    x = np.ones((4, 2), "float32")
    first = model.fit(x, x[:, :1], epochs=3, verbose=0).history["loss"]
    assert len(traces) == 1
    assert first[-1] < first[0]
