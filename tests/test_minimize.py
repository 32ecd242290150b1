"""`minimize`: what it finds, what it tells, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde.optimizers import BFGS, LBFGS

START = np.array([-1.2, 1.0] * 5)


def rosenbrock(p):
    return tf.reduce_sum(100.0 * (p[1:] - p[:-1] ** 2) ** 2 + (1.0 - p[:-1]) ** 2)


def parabola(p):
    return tf.reduce_sum((p - tf.constant([1.0, -2.0], p.dtype)) ** 2)


def vector():
    return tf.constant([3.0, 4.0], tf.float64)


def plain(loss, params, optimizer, **keywords):
    """Without XLA, which small functions do not need."""
    return nde.minimize(loss, params, optimizer, jit_compile=False, **keywords)


class TestQuasiNewton:
    @pytest.mark.parametrize("make", [BFGS, LBFGS])
    @pytest.mark.parametrize("engine", ["native", "tfp"])
    def test_rosenbrock_in_ten_dimensions(self, make, engine):
        optimizer = make(initial_step_norm=0.01, engine=engine)
        result = plain(rosenbrock, tf.constant(START), optimizer)
        np.testing.assert_allclose(result.minimizer, np.ones(10), atol=1e-6)
        assert result.iterations < 200 and result.minimum < 1e-12
        assert result.minimum == min(result.history)

    def test_bfgs_ends_exactly_on_a_parabola(self):
        result = plain(parabola, vector(), BFGS(initial_step_norm=0.1))
        assert result.success and result.status == 0 and "converged" in result.message
        np.testing.assert_allclose(result.minimizer, [1.0, -2.0], atol=1e-8)

    def test_the_inverse_hessian_is_learned(self):
        scales = tf.constant([1.0, 10.0, 100.0], tf.float64)
        bfgs = BFGS(initial_step_norm=0.1)
        plain(lambda p: 0.5 * tf.reduce_sum(scales * p**2), tf.ones(3, tf.float64), bfgs)
        np.testing.assert_allclose(bfgs.memory()[0], np.diag(1 / scales), rtol=0.05, atol=1e-3)

    def test_the_first_step_has_the_norm_that_was_asked_for(self):
        steps = []
        plain(
            lambda p: 1e8 * parabola(p),
            vector(),
            BFGS(initial_step_norm=1e-3),
            max_iters=1,
            callback=lambda p, loss: steps.append(p.numpy()),
        )
        assert np.abs(steps[0] - vector()).max() >= 1e-3 * (1 - 1e-9)
        # The search may double the first step, never start with a longer one.
        ratio = np.abs(steps[0] - vector()).max() / 1e-3
        assert np.isclose(2 ** np.round(np.log2(ratio)), ratio)

    def test_bfgs_in_fit(self):
        x = np.random.default_rng(0).normal(size=(24, 2))
        inputs = keras.Input((2,), dtype="float64")
        model = nde.Model(inputs, keras.layers.Dense(1, dtype="float64")(inputs))
        model.compile(BFGS(initial_step_norm=0.01), "mse", jit_compile=False)
        losses = model.fit(x, x @ [[1.0], [2.0]], epochs=60, verbose=0).history["loss"]
        assert losses[-1] < 1e-10
        again = BFGS.from_config(model.optimizer.get_config())
        assert again.initial_step_norm == 0.01 and isinstance(again, BFGS)

    def test_an_optimizer_can_be_used_again(self):
        bfgs = BFGS(initial_step_norm=0.01)
        first = plain(rosenbrock, tf.constant(START), bfgs)
        again = plain(rosenbrock, tf.constant(START), bfgs)
        assert first.history == again.history
        assert plain(parabola, vector(), bfgs).success

    def test_a_line_search_that_gives_up_begins_again_and_says_so(self):
        # |x| has a kink at its minimum: every direction fails in the end.
        result = plain(lambda p: tf.reduce_sum(tf.abs(p)), vector(), BFGS(), restarts=2)
        assert result.restarts == 2 and result.status == nde.MinimizeStatus.STALLED
        assert "line search" in result.message and result.minimum < 1e-3


class TestFirstOrder:
    def test_adam_returns_the_best_point_it_saw(self):
        seen = []
        result = plain(
            parabola,
            vector(),
            keras.optimizers.Adam(0.5),
            max_iters=60,
            callback=lambda p, loss: seen.append((p.numpy(), loss)),
        )
        assert result.iterations == 60 and len(seen) == 60 and result.evaluations == 61
        for p, loss in seen:
            assert loss == pytest.approx(np.sum((p - [1.0, -2.0]) ** 2))
        assert result.minimum <= min(loss for _, loss in seen)
        assert result.minimum == pytest.approx(float(parabola(result.minimizer)))
        assert result.status == nde.MinimizeStatus.MAX_ITERATIONS

    def test_stages(self):
        result = plain(
            rosenbrock,
            tf.constant(START),
            [(keras.optimizers.Adam(0.05), 20), (BFGS(initial_step_norm=0.01), None)],
        )
        assert result.success or result.status == nde.MinimizeStatus.STALLED
        np.testing.assert_allclose(result.minimizer, np.ones(10), atol=1e-6)

    def test_batches_are_used_in_turn(self):
        batches = [(np.full(3, 1.0),), (np.full(3, 3.0),)]
        used = []

        def loss(p, data):
            return tf.reduce_mean((p - data) ** 2), data[0]

        result = plain(
            loss,
            np.array([0.0]),
            keras.optimizers.SGD(0.1),
            batches=batches,
            max_iters=5,
            callback=lambda p, value, data: used.append(float(data)),
        )
        assert used == [1.0, 3.0, 1.0, 3.0, 1.0] and result.iterations == 5
        one_pass = plain(loss, np.array([0.0]), keras.optimizers.SGD(0.1), batches=batches)
        # p: 0 -> 0.2 -> 0.76
        np.testing.assert_allclose(one_pass.minimizer, [0.76])
        two = [(keras.optimizers.SGD(0.1), None), (keras.optimizers.SGD(0.1), None)]
        assert plain(loss, np.array([0.0]), two, batches=batches).iterations == 4

    def test_a_loss_that_overflows_is_survived(self):
        def loss(p):
            nan = tf.constant([float("nan")], p.dtype)
            return tf.reduce_sum(tf.where(p < 0.0, nan, (p - 0.1) ** 2))

        result = plain(loss, np.array([1.0]), keras.optimizers.SGD(0.9), max_iters=40)
        assert result.non_finite > 0 and np.isfinite(result.minimum)
        np.testing.assert_allclose(result.minimizer, [0.1], atol=0.05)


class TestForms:
    def test_a_nest(self):
        p = {"a": np.array(3.0), "b": (np.ones((2, 2)), np.zeros(3))}
        result = plain(
            lambda p: (p["a"] - 1.0) ** 2 + tf.reduce_sum(p["b"][0] ** 2 + p["a"] ** 2)
            + tf.reduce_sum((p["b"][1] - 2.0) ** 2),
            p,
            BFGS(),
        )  # fmt: skip
        # 5 a = 1
        np.testing.assert_allclose(result.minimizer["a"], 0.2, atol=1e-7)
        np.testing.assert_allclose(result.minimizer["b"][1], [2.0] * 3, atol=1e-7)

    def test_plain_numbers(self):
        result = plain(parabola, [3.0, 4.0], BFGS())
        assert result.minimizer.dtype == keras.config.floatx()

    @pytest.mark.parametrize("as_model", [True, False])
    def test_a_model_and_its_variables(self, as_model):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        x = tf.constant(np.random.default_rng(0).normal(size=(20, 2)), tf.float32)
        y = x @ tf.constant([[1.0], [2.0]])

        def loss(p):
            network = p if as_model else model  # the variables take the candidate values
            return tf.reduce_mean((network(x) - y) ** 2)

        given = model if as_model else model.trainable_variables
        result = plain(loss, given, LBFGS())
        np.testing.assert_allclose(model.get_weights()[0], [[1.0], [2.0]], atol=1e-3)
        assert float(loss(model)) == pytest.approx(result.minimum, abs=1e-7)
        assert (result.minimizer is model) == as_model

    def test_flatten_parameters(self):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(1)])
        p, apply = nde.flatten_parameters(model)
        x = tf.ones((4, 2))
        np.testing.assert_allclose(apply(p, x), model(x))
        expected = np.concatenate([w.ravel() for w in model.get_weights()])
        np.testing.assert_array_equal(p, expected)
        with tf.GradientTape() as tape:
            tape.watch(p)
            y = tf.reduce_sum(apply(p, x))
        assert np.all(tape.gradient(y, p)[-1:] == 4.0)
        with pytest.raises(ValueError, match="vector of 13 parameters"):
            apply(p[:5], x)


class TestBounds:
    def test_an_active_bound(self):
        result = plain(parabola, vector(), BFGS(), bounds=([2.0, -5.0], [5.0, 5.0]))
        np.testing.assert_allclose(result.minimizer, [2.0, -2.0], atol=1e-6)

    def test_one_sided_bounds_and_a_number(self):
        result = plain(parabola, vector(), BFGS(), bounds=(-1.0, None))
        np.testing.assert_allclose(result.minimizer, [1.0, -1.0], atol=1e-6)
        result = plain(parabola, -vector(), BFGS(), bounds=(None, 0.0))
        np.testing.assert_allclose(result.minimizer, [0.0, -2.0], atol=1e-6)

    def test_every_point_lies_inside(self):
        points = []
        plain(
            parabola,
            vector(),
            keras.optimizers.Adam(1.0),
            max_iters=30,
            bounds=(2.0, 5.0),
            callback=lambda p, loss: points.append(p.numpy()),
        )
        assert np.min(points) >= 2.0 and np.max(points) <= 5.0


class TestTalk:
    def test_extras_belong_to_the_accepted_point(self):
        seen = []
        plain(
            lambda p: (parabola(p), 2.0 * p),
            vector(),
            BFGS(),
            callback=lambda p, loss, twice: seen.append((p, twice)),
        )
        for p, twice in seen:
            np.testing.assert_allclose(twice, 2 * p)

    def test_true_halts(self):
        result = plain(rosenbrock, tf.constant(START), BFGS(), callback=lambda p, loss: True)
        assert result.iterations == 1 and result.status == nde.MinimizeStatus.HALTED

    def test_two_separate_limits(self):
        few = plain(rosenbrock, tf.constant(START), BFGS(), max_iters=4)
        assert few.iterations == 4 and few.status == nde.MinimizeStatus.MAX_ITERATIONS
        few = plain(rosenbrock, tf.constant(START), BFGS(), max_evaluations=10)
        assert 10 <= few.evaluations < 40
        assert few.status == nde.MinimizeStatus.MAX_EVALUATIONS

    def test_the_report(self):
        text = repr(plain(parabola, vector(), BFGS()))
        for word in ("status", "minimum", "iterations", "evaluations", "gradient", "seconds"):
            assert word in text

    def test_noise_is_said_once(self):
        def noisy(p):
            return parabola(p) + tf.random.normal((), dtype=tf.float64)

        with pytest.warns(UserWarning, match="stochastic.*Adam"):
            plain(noisy, vector(), BFGS(), max_iters=2)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"loss": lambda p: p["a"]}, ValueError, "floating scalar"),
        ({"loss": lambda p: tf.reduce_sum(p["a"])}, ValueError, r"not depend .*\['b'\]"),
        ({"callback": lambda p, loss: 1}, TypeError, "True to halt"),
        ({"bounds": (np.zeros(3), None)}, ValueError, "parameters' shapes"),
        ({"bounds": (1.0, 0.0)}, ValueError, "below the upper"),
        ({"bounds": (5.0, None)}, ValueError, "within `bounds`"),
        ({"bounds": 1.0}, ValueError, "pair"),
        ({"optimizer": keras.optimizers.Adam()}, ValueError, "never ends by itself"),
        ({"optimizer": 3}, TypeError, "Keras optimizer"),
        ({"optimizer": [BFGS()]}, TypeError, "a stage must be a pair"),
        ({"optimizer": "L-BFGS"}, ValueError, "are given as objects. Received: 'L-BFGS'"),
        ({"optimizer": []}, ValueError, "at least one stage"),
        ({"max_iters": 0}, ValueError, "max_iters"),
        ({"max_evaluations": 0.5}, ValueError, "max_evaluations"),
        ({"restarts": -1}, ValueError, "restarts"),
        ({"params": {}}, ValueError, "no parameters"),
        ({"params": np.array([1, 2])}, TypeError, "floating dtype"),
    ],
)
def test_bad_input(change, error, match):
    params = {"a": vector(), "b": vector()}
    keywords = {
        "loss": lambda p: parabola(p["a"]) + parabola(p["b"]),
        "params": params,
        "optimizer": "adam" if "callback" in change else BFGS(),
        "max_iters": 3,
        **change,
    }
    if isinstance(change.get("optimizer"), keras.optimizers.Adam):
        del keywords["max_iters"]
    with pytest.raises(error, match=match):
        plain(**keywords)


def test_a_start_without_a_finite_loss_has_a_status():
    for optimizer in (BFGS(), keras.optimizers.SGD(0.1)):
        result = plain(lambda p: tf.reduce_sum(tf.math.log(p)), -vector(), optimizer, max_iters=5)
        assert result.status == nde.MinimizeStatus.NON_FINITE
