"""A trajectory alone under XLA: the same numbers and gradients as row by row, and exact ones."""

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde.adjoints.alone import BackwardAlone

SAVES = np.sort(np.r_[0.0, 0.0, 0.5, 0.5, np.linspace(0.1, 0.11, 9), 1.0, 2.0])


@pytest.fixture
def turned(monkeypatch):
    """How often the turns of a trajectory alone were traced backwards."""
    found = []
    reverse = BackwardAlone._reverse_alone

    def noted(*args):
        found.append(True)
        return reverse(*args)

    monkeypatch.setattr(BackwardAlone, "_reverse_alone", noted)
    return found


def driven(t, y, p):
    """Reads a nest of parameters and the time, and its state backwards."""
    first, second = y[..., 0], y[..., 1]
    rates = tf.stack([first * second, tf.maximum(first, second) ** 2], -1)
    return p["a"][0] * y[..., ::-1] - p["a"][1] * rates + tf.stack([p["b"], -p["b"]], -1) * t


def state_and_gradients(y0, p, t_span, saves, **options):
    watched = [y0, p, t_span, *([] if saves is None else [saves])]
    with tf.GradientTape() as tape:
        tape.watch(watched)
        problem = nde.ODEProblem(driven, y0, (t_span[0], t_span[1]), p)
        y = nde.solve(problem, rtol=1e-8, atol=1e-8, saveat=saves, throw=False, **options).y
        weights = tf.cast(tf.range(1, tf.size(y) + 1), y.dtype)
        loss = tf.reduce_sum(tf.reshape(y, [-1]) * weights)
    return y, tape.gradient(loss, watched)


@pytest.mark.parametrize(
    ("batched", "saves", "t_span", "options"),
    [
        (False, SAVES, [0.0, 2.0], {"solver": "tsit5"}),
        (True, SAVES, [0.0, 2.0], {"solver": "tsit5", "checkpoints": 3}),
        (False, None, [0.0, 2.0], {"solver": "bosh3", "checkpoints": 1}),
        (True, None, [1.0, -0.5], {"solver": "tsit5"}),
        (False, [0.8, 0.1, -0.5], [1.0, -0.5], {"solver": "tsit5", "controller": "PI"}),
        (False, [0.3, 1.0], [0.0, 2.0], {"solver": "tsit5", "controller": "constant", "dt0": 0.1}),
        (False, [0.3, 1.0], [0.0, 2.0], {"solver": "tsit5", "steps": np.linspace(0, 2, 30)}),
    ],
)
def test_gradients_as_row_by_row(turned, batched, saves, t_span, options):
    """With respect to the state, the parameters, the ends and the save points."""
    y0 = tf.constant([[0.9, 0.4]] if batched else [0.9, 0.4], tf.float64)
    p = {"a": tf.constant([1.0, 0.7], tf.float64), "b": tf.constant(0.3, tf.float64)}
    saves = None if saves is None else tf.constant(saves, tf.float64)
    given = (y0, p, tf.constant(t_span, tf.float64), saves)

    def run(*given):
        return state_and_gradients(*given, batch_ndims=int(batched), **options)

    found = tf.nest.flatten(tf.function(run, jit_compile=True)(*given))
    assert turned
    expected = tf.nest.flatten(tf.function(run)(*given))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-9)
    assert all(np.isfinite(one).all() for one in found)


def logistic(t, rate, first):
    grown = np.exp(rate * t)
    return first * grown / (1.0 + first * (grown - 1.0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact_gradients_with_a_captured_tensor(turned, dtype):
    """Of a logistic equation, whose rate the field closes over, at save points of one step."""
    tight, loose = (1e-5, 2e-3) if dtype == "float32" else (1e-11, 1e-7)
    times = np.linspace(0.0, 3.0, 31).astype(dtype)

    @tf.function(jit_compile=True)
    def run(y0, rate):
        with tf.GradientTape() as tape:
            tape.watch([y0, rate])
            problem = nde.ODEProblem(lambda t, y, p: rate * y * (1.0 - y), y0, (0.0, 3.0))
            y = nde.solve(problem, "tsit5", saveat=times, rtol=tight, atol=tight).y
            loss = tf.reduce_sum(y)
        return y[:, 0], *tape.gradient(loss, [y0, rate])

    y, by_y0, by_rate = run(tf.constant([0.1], dtype), tf.constant(1.5, dtype))
    assert turned
    np.testing.assert_allclose(y, logistic(times, 1.5, 0.1), rtol=10 * tight)
    step = 1e-6
    times = times.astype("float64")

    def difference(rate, first):
        ends = [logistic(times, 1.5 + s * rate, 0.1 + s * first).sum() for s in (step, -step)]
        return (ends[0] - ends[1]) / (2 * step)

    np.testing.assert_allclose(by_y0[0], difference(0.0, 1.0), rtol=loose)
    np.testing.assert_allclose(by_rate, difference(1.0, 0.0), rtol=loose)


def test_a_trajectory_that_fails_has_no_gradient(turned):
    """Here one that needs more steps than it may take."""

    @tf.function(jit_compile=True)
    def run(y0, end):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            problem = nde.ODEProblem(lambda t, y, p: y * y, y0, (0.0, end))
            sol = nde.solve(
                problem,
                "tsit5",
                saveat=tf.stack([0.0 * end, end]),
                rtol=1e-7,
                max_steps=8,
                throw=False,
            )
            loss = tf.reduce_sum(sol.y)
        return sol.y, sol.status, tape.gradient(loss, y0)

    y, status, gradient = run(tf.constant([1.0], tf.float64), tf.constant(0.9999, tf.float64))
    assert int(status) == int(nde.Status.MAX_STEPS)
    assert np.isnan(y).all() and not np.any(gradient)
    y, status, gradient = run(tf.constant([0.5], tf.float64), tf.constant(0.5, tf.float64))
    assert turned and int(status) == int(nde.Status.SUCCESS)
    np.testing.assert_allclose(y[:, 0], [0.5, 0.5 / 0.75], rtol=1e-6)
    np.testing.assert_allclose(gradient, [1.0 + 1.0 / 0.75**2], rtol=1e-6)


def falling(t, y, p):
    """A nest of states, a constant slope, and numbers of another dtype."""
    push = p["half"] * tf.cast(p["count"], tf.float64)
    high = tf.unstack(y["ball"], axis=-1)
    return {"ball": tf.stack([high[1], -9.81 * tf.ones_like(t)], -1), "tank": -push * y["tank"]}


@pytest.mark.parametrize("axes", [0, 2])
def test_nests_constants_and_other_dtypes(axes):
    ones = [1] * axes
    y0 = {
        "ball": tf.reshape(tf.constant([2.0, 3.0], tf.float64), [*ones, 2]),
        "tank": tf.ones([*ones, 1], tf.float64),
    }
    p = {"half": tf.constant(0.5, tf.float64), "count": tf.constant(3)}

    def run(y0):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            problem = nde.ODEProblem(falling, y0, (0.0, 1.0), p)
            y = nde.solve(problem, "tsit5", rtol=1e-9, atol=1e-9, batch_ndims=axes).y
            loss = tf.reduce_sum(y["ball"]) + 2.0 * tf.reduce_sum(y["tank"])
        return y, tape.gradient(loss, y0)

    y, gradient = tf.function(run, jit_compile=True)(y0)
    np.testing.assert_allclose(np.ravel(y["ball"]), [5.0 - 4.905, 3.0 - 9.81], rtol=1e-9)
    np.testing.assert_allclose(np.ravel(y["tank"]), [np.exp(-1.5)], rtol=1e-7)
    np.testing.assert_allclose(np.ravel(gradient["ball"]), [1.0, 2.0], rtol=1e-9)
    np.testing.assert_allclose(np.ravel(gradient["tank"]), [2.0 * np.exp(-1.5)], rtol=1e-7)


@pytest.mark.parametrize("checkpoints", [64, 1])
def test_a_gradient_that_is_traced_where_xla_is_out_of_sight(turned, checkpoints):
    """A tape around a compiled function: the way back is built when nothing says so."""
    times = np.linspace(0.0, 3.0, 31)

    @tf.function(jit_compile=True)
    def states(y0, rate):
        problem = nde.ODEProblem(lambda t, y, p: p * y * (1.0 - y), y0, (0.0, 3.0), rate)
        options = {"rtol": 1e-9, "atol": 1e-9, "checkpoints": checkpoints}
        return nde.solve(problem, "tsit5", saveat=times, **options).y

    @tf.function
    def gradient(y0, rate):
        with tf.GradientTape() as tape:
            tape.watch(rate)
            loss = tf.reduce_sum(states(y0, rate))
        return tape.gradient(loss, rate)

    found = gradient(tf.constant([0.1], tf.float64), tf.constant(1.5, tf.float64))
    assert turned
    ends = [logistic(times, 1.5 + s, 0.1).sum() for s in (1e-6, -1e-6)]
    np.testing.assert_allclose(found, (ends[0] - ends[1]) / 2e-6, rtol=1e-6)


def test_an_event_that_closes_over_a_tensor():
    """The field's parameters stand before the event's."""

    @tf.function(jit_compile=True)
    def run(rate, level):
        with tf.GradientTape() as tape:
            tape.watch([rate, level])
            event = nde.ContinuousEvent(lambda t, y, p: y[0] - level, terminal=True)
            problem = nde.ODEProblem(
                lambda t, y, p: -rate * y, tf.ones([1], tf.float64), (0.0, 9.0)
            )
            sol = nde.solve(problem, "tsit5", rtol=1e-10, atol=1e-10, events=[event])
            time = sol.t
        return time, *tape.gradient(time, [rate, level])

    rate, level = 2.0, 0.5
    found = run(tf.constant(rate, tf.float64), tf.constant(level, tf.float64))
    time = np.log(1.0 / level) / rate
    np.testing.assert_allclose(found, [time, -time / rate, -1.0 / (rate * level)], rtol=1e-7)


def test_save_times_have_no_gradient_where_a_trajectory_fails():
    @tf.function(jit_compile=True)
    def run(y0, saves, p):
        with tf.GradientTape() as tape:
            tape.watch([y0, saves, p])

            def field(t, y, p):
                return tf.where(t > 1.0, tf.constant(float("nan"), y.dtype), 0.0) - p * y

            problem = nde.ODEProblem(field, y0, (0.0, 2.0), p)
            sol = nde.solve(problem, "tsit5", saveat=saves, throw=False)
            loss = tf.reduce_sum(sol.y)
        return sol.status, *tape.gradient(loss, [y0, saves, p])

    given = (tf.ones([2], tf.float64), tf.constant([0.5, 2.0], tf.float64))
    status, *gradients = run(*given, tf.constant(1.0, tf.float64))
    assert int(status) != int(nde.Status.SUCCESS)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize("shape", [(), (1,), (2,)])
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_small_tensors_that_a_field_closes_over(shape, compiled):
    """They stand in the field's graph as constants."""
    p = tf.constant(2.0, tf.float64)
    rate = tf.constant(np.full(shape, 0.5))
    y0 = tf.constant([1.0, 3.0], tf.float64)

    def decay(t, y, p):
        # Stacked and reshaped, it could still be told in advance.
        rates = tf.reshape(tf.stack([rate, rate]), [2, -1])
        return -p * rates[0] * y

    def gradients():
        with tf.GradientTape() as tape:
            tape.watch([p, rate])
            problem = nde.ODEProblem(decay, y0, (0.0, 1.0), p)
            y = nde.solve(problem, "tsit5", rtol=1e-10, atol=1e-10).y
        return tape.gradient(y, [p, rate])

    run = tf.function(gradients, jit_compile=True) if compiled else gradients
    by_p, by_rate = run()
    each = -np.exp(-1.0) * np.array([1.0, 3.0])
    np.testing.assert_allclose(by_p, 0.5 * each.sum(), rtol=1e-8)
    expected = 2.0 * (each if shape == (2,) else each.sum(keepdims=bool(shape)))
    np.testing.assert_allclose(by_rate, expected, rtol=1e-8)
