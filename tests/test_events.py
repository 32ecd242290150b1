"""Events: where they are found, what is saved there, and the gradient through them."""

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde

G = 9.8
TIMES = [0.0, 0.5, 1.0, 2.5, 3.3, 4.7, 5.0]


def fall(t, y, p):
    """A falling body: height and velocity."""
    return tf.stack([y[..., 1], -G + 0.0 * y[..., 0]], -1)


def height(t, y, p):
    return y[..., 0]


def bounce(t, y, p):
    return tf.stack([y[..., 0], -p * y[..., 1]], -1)


GROUND = nde.ContinuousEvent(height, bounce, direction=-1)


def in_graph(function):
    """`function` as a plain graph, without XLA: quick to build."""
    return tf.function(function, jit_compile=False, autograph=False)


def bounces(y0, e, t1, **keywords):
    """Times and heights by hand, for a ball dropped from `y0`: the bounces, and h(t1)."""
    t, v, times = np.sqrt(2 * y0 / G), np.sqrt(2 * y0 * G), []
    while t <= t1:
        times.append(t)
        v *= e
        t += 2 * v / G
    since = t1 - times[-1]
    return np.array(times), v * since - G * since**2 / 2


def test_the_time_of_a_fall_and_its_derivative_compiled():
    y0 = tf.constant([50.0, 0.0], tf.float64)
    landing = nde.ContinuousEvent(height, terminal=True)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        sol = nde.solve(nde.ODEProblem(fall, y0, (0.0, 9.0)), events=landing)
        time = sol.event_times[0]
    exact = np.sqrt(2 * 50.0 / G)
    np.testing.assert_allclose(time, exact, rtol=1e-14)
    np.testing.assert_allclose(sol.t, exact, rtol=1e-14)
    np.testing.assert_allclose(sol.y, [0.0, -G * exact], atol=1e-12)
    np.testing.assert_allclose(tape.gradient(time, y0)[0], exact / 100.0, rtol=1e-12)
    assert sol.event_times.shape == (1,) and int(sol.num_events) == 1 and sol.success


def test_the_bouncing_ball_and_its_derivative_compiled():
    """Values computed independently; each row of the batch has its own number of bounces."""
    e = tf.constant(0.8, tf.float64)
    y0 = tf.constant([[50.0, 0.0], [20.0, 0.0], [3.0, 0.0]], tf.float64)
    spans = tf.zeros(3, tf.float64), tf.constant([15.0, 9.0, 3.0], tf.float64)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([e, y0])
        sol = nde.solve(nde.ODEProblem(fall, y0, spans, e), batch_ndims=1, events=[GROUND])
        h = sol.y[0, 0]
    np.testing.assert_allclose(h, 8.49421700760603, rtol=1e-12)
    np.testing.assert_allclose(tape.gradient(h, e), 314.568839958, rtol=1e-10)
    assert sol.event_times.shape == (3, 100) and sol.event_states.shape == (3, 100, 2)
    for row in range(3):
        times, last = bounces(float(y0[row, 0]), 0.8, float(spans[1][row]))
        n = len(times)
        assert int(sol.num_events[row]) == n
        np.testing.assert_allclose(sol.event_times[row, :n], times, rtol=1e-13)
        assert np.all(np.isnan(sol.event_times[row, n:]))
        assert np.all(sol.event_index[row].numpy() == np.where(np.arange(100) < n, 0, -1))
        np.testing.assert_allclose(sol.y[row, 0], last, rtol=1e-11)
        # Before the affect: falling.
        assert np.all(sol.event_states[row, :n, 1].numpy() < 0.0)
    assert len(set(sol.num_events.numpy().tolist())) > 1
    # Rows do not mix.
    bars = tape.gradient(h, y0).numpy()
    assert np.all(bars[1:] == 0.0) and bars[0, 0] != 0.0


def driven(t, y, p):
    """A van der Pol oscillator with a force."""
    x, v = y[..., 0], y[..., 1]
    return tf.stack([v, p[0] * (1 - x**2) * v - x + 0.3 * tf.sin(t)], -1)


EVENTS = [
    nde.ContinuousEvent(
        lambda t, y, p: y[..., 0] - p[1] * (1 + 0.1 * t),
        lambda t, y, p: tf.stack([y[..., 0] - 0.1 * p[2] * t, p[2] * y[..., 1]], -1),
        direction=1,
    ),
    nde.PresetTimeEvent(
        [1.0, 2.5, 4.0],
        lambda t, y, p: y + p[3] * tf.stack([y[..., 1], tf.ones_like(t)], -1),
    ),
    nde.ContinuousEvent(lambda t, y, p: y[..., 1] + p[1]),
    nde.DiscreteEvent(
        lambda t, y, p: (t > 3.02) & (t < 3.12), lambda t, y, p: y * (1.0 - 0.1 * p[3])
    ),
]


@pytest.mark.parametrize("saveat, solver", [(None, "tsit5"), (TIMES, "tsit5"), (TIMES, "kvaerno3")])
def test_gradients_agree_with_finite_differences(saveat, solver):
    """Equal steps after each event, so that what is computed is a smooth function."""
    checkpoints = 8 if saveat else 64
    weights = tf.constant(np.cos(np.arange(7.0)))[:, None, None]

    def loss(x):
        y0, p, t1 = tf.reshape(x[:6], (3, 2)), x[6:10], x[10]
        sol = nde.solve(
            nde.ODEProblem(driven, y0, (0.0 * t1, t1), p), solver, saveat=saveat, batch_ndims=1,
            dt0=0.1, controller="constant", events=EVENTS, checkpoints=checkpoints,
        )  # fmt: skip
        total = tf.reduce_sum(tf.sin(sol.y) * (weights if saveat else 1.0))
        here = tf.range(sol.event_times.shape[1]) < sol.num_events[:, None]
        times = tf.where(here, sol.event_times, tf.zeros_like(sol.event_times))
        states = tf.where(here[..., None], sol.event_states, tf.zeros_like(sol.event_states))
        total += tf.reduce_sum(times**2) + tf.reduce_sum(tf.sin(states))
        return total, sol.num_events

    @in_graph
    def value(x):
        return loss(x)[0]

    @in_graph
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total, counts = loss(x)
        return tape.gradient(total, x), counts

    x = np.array([0.1, 1.0, 1.0, -0.5, -1.0, 2.0, 0.8, 0.9, 0.5, 0.2, 5.0])
    found, counts = gradient(tf.constant(x))
    assert len(set(counts.numpy().tolist())) == 3, counts
    free = range(11 if saveat is None else 10)
    differences = []
    for k in free:
        h = 1e-5 * np.eye(11)[k]
        sides = [value(tf.constant(x + s * h)) for s in (1, -1)]
        differences.append((sides[0] - sides[1]) / 2e-5)
    np.testing.assert_allclose(found.numpy()[list(free)], differences, rtol=2e-7, atol=2e-7)
