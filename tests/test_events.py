"""Events: where they are found, what is saved there, and the gradient through them."""

import os
import types

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


FIELDS = ("t", "y", "status", "event_times", "event_states", "event_index", "num_events")


def solved(f, y0, t_span, p=None, **keywords):
    """A solve as a plain graph; nothing is raised."""

    @in_graph
    def run():
        sol = nde.solve(nde.ODEProblem(f, y0, t_span, p), **keywords)
        found = {name: getattr(sol, name) for name in FIELDS if getattr(sol, name) is not None}
        # What a sentence tells of where a trajectory stopped.
        return found | {"steps": sol.stats.num_steps, "stopped": sol._control[0]}

    return types.SimpleNamespace(**run())


def rest(t, y, p):
    return 0.0 * y


def clock(t, y, p):
    return 1.0 + 0.0 * y


def test_preset_times_at_the_ends_and_at_save_points():
    """A save point at a dose is the state after it; the start and the end count, others do not."""
    dose = nde.PresetTimeEvent([-1.0, 0.0, 1.0, 3.0, 4.0], lambda t, y, p: y + 1.0)
    times = [0.0, 0.5, 1.0, 2.0, 3.0]
    y0 = tf.zeros([], tf.float64)
    plain = solved(rest, y0, (0.0, 3.0), saveat=times, events=[dose])
    compiled = nde.solve(nde.ODEProblem(rest, y0, (0.0, 3.0)), saveat=times, events=[dose])
    for sol in (plain, compiled):
        assert sol.y.numpy().tolist() == [1.0, 1.0, 2.0, 2.0, 3.0]
        assert sol.event_times.numpy()[:3].tolist() == [0.0, 1.0, 3.0]
        assert int(sol.num_events) == 3 and sol.event_states.numpy()[:3].tolist() == [0.0, 1.0, 2.0]
    last = solved(rest, 0.0, (0.0, 3.0), events=[dose])
    assert float(last.y) == 3.0
    backwards = solved(rest, 0.0, (3.0, 0.5), events=[nde.PresetTimeEvent([2.0, 1.0], bigger)])
    assert float(backwards.y) == 2.0


def bigger(t, y, p):
    return y + 1.0


def test_preset_times_of_each_trajectory():
    times = np.array([[1.0, 2.0, np.nan], [0.5, np.nan, np.nan]])
    sol = solved(
        rest, tf.zeros(2), (0.0, 3.0), batch_ndims=1, saveat=[0.75, 1.5, 3.0],
        events=[nde.PresetTimeEvent(times, bigger)],
    )  # fmt: skip
    assert sol.y.numpy().T.tolist() == [[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]]
    assert sol.num_events.numpy().tolist() == [2, 1]


def test_what_is_zero_at_the_start_happens_only_when_it_crosses():
    """A ball thrown up from the ground lands after 2 v / g, once."""
    landing = nde.ContinuousEvent(height, terminal=True)
    sol = solved(fall, tf.constant([0.0, 4.9], tf.float64), (0.0, 9.0), events=[landing])
    np.testing.assert_allclose(sol.event_times[0], 1.0, rtol=1e-13)
    assert int(sol.num_events) == 1


def test_the_same_root_does_not_happen_again():
    """No affect, and one that does not move the condition: a crossing each, at the zeros of sin."""
    wave = lambda t, y, p: tf.sin(t)  # noqa: E731
    for affect in (None, lambda t, y, p: y + 1.0):
        sol = solved(
            rest, tf.zeros([], tf.float64), (0.5, 10.0), dt0=0.1, controller="constant",
            events=[nde.ContinuousEvent(wave, affect)],
        )  # fmt: skip
        assert int(sol.num_events) == 3
        np.testing.assert_allclose(sol.event_times[:3], np.pi * np.arange(1, 4), rtol=1e-14)


def test_crossings_inside_one_step_happen_in_order_of_time():
    """One step covers all: two of the same condition between its ends, one of another."""
    twice = nde.ContinuousEvent(lambda t, y, p: (y - 2.0) * (y - 4.0))
    between = nde.ContinuousEvent(lambda t, y, p: y - 3.0)
    options = {"dt0": 10.0, "controller": "constant"}
    sol = solved(clock, tf.zeros([], tf.float64), (0.0, 10.0), events=[twice, between], **options)
    np.testing.assert_allclose(sol.event_times[:3], [2.0, 3.0, 4.0], rtol=1e-13)
    assert sol.event_index[:4].numpy().tolist() == [0, 1, 0, -1]
    up = nde.ContinuousEvent(twice.condition, direction=1)
    sol = solved(clock, tf.zeros([], tf.float64), (0.0, 10.0), events=[up], **options)
    np.testing.assert_allclose(sol.event_times[:2], [4.0, np.nan], rtol=1e-13)


def test_two_events_at_one_time_both_happen_in_their_order():
    first = nde.ContinuousEvent(lambda t, y, p: y - 1.0, lambda t, y, p: 2.0 * y)
    second = nde.PresetTimeEvent([1.0], lambda t, y, p: y + 10.0)
    third = nde.ContinuousEvent(lambda t, y, p: t - 1.0, lambda t, y, p: 3.0 * y)
    for events, y in (([first, third, second], 16.0), ([second, first, third], 66.0)):
        sol = solved(clock, tf.zeros([], tf.float64), (0.0, 1.5), events=events)
        assert int(sol.num_events) == 3
        np.testing.assert_allclose(sol.event_times[:3], 1.0, rtol=1e-15)
        np.testing.assert_allclose(sol.y, y + 0.5, rtol=1e-13)
        assert sol.event_index[:3].numpy().tolist() == [0, 1, 2]


def test_late_times_in_float32():
    """A sawtooth of period 1 from t = 1000 on: times are right to the resolution of float32."""
    reset = nde.ContinuousEvent(lambda t, y, p: y - 1.0, lambda t, y, p: y - 1.0)
    sol = solved(clock, tf.zeros([], tf.float32), (1000.0, 1010.5), events=[reset])
    assert int(sol.num_events) == 10
    np.testing.assert_allclose(sol.event_times[:10], 1001.0 + np.arange(10), atol=1e-3)
    np.testing.assert_allclose(sol.y, 0.5, atol=2e-3)


def test_a_ball_that_comes_to_rest_ends_with_a_status():
    """After t = √(2h/g)(1 + e)/(1 - e) there is no next bounce. Other rows do not notice."""
    y0 = tf.constant([[1.0, 0.0], [50.0, 0.0]], tf.float64)
    e = 0.5
    sol = solved(fall, y0, (0.0, 4.0), e, batch_ndims=1, events=[GROUND])
    assert sol.status.numpy().tolist() == [int(nde.Status.MAX_EVENTS), 0]
    assert "max_events" in nde.Status.MAX_EVENTS.message
    assert np.all(np.isnan(sol.y[0])) and np.all(np.isfinite(sol.y[1]))
    last = np.nanmax(sol.event_times[0])
    np.testing.assert_allclose(last, np.sqrt(2 / G) * 3.0, rtol=1e-6)
    # Where it ended is where the events accumulate.
    np.testing.assert_allclose(sol.stopped, [last, 4.0], rtol=1e-12)
    few = nde.ContinuousEvent(height, bounce, direction=-1, max_events=5)
    sol = solved(fall, y0, (0.0, 4.0), e, batch_ndims=1, events=[few])
    assert sol.status.numpy().tolist() == [int(nde.Status.MAX_EVENTS), 0]
    # The sixth does not happen: there are as many as there are entries.
    assert int(sol.num_events[0]) == 5 and np.all(np.isfinite(sol.event_times[0]))
    assert sol.event_times.shape == (2, 5)


def test_a_discrete_event_that_stays_true_ends_with_a_status():
    always = nde.DiscreteEvent(lambda t, y, p: y > 0.5, lambda t, y, p: y + 1.0, max_events=7)
    options = {"dt0": 0.01, "controller": "constant"}
    sol = solved(clock, 0.0, (0.0, 100.0), events=[always], **options)
    assert int(sol.status) == nde.Status.MAX_EVENTS and int(sol.steps) < 100
    with pytest.raises(nde.SolveError, match="max_events"):
        nde.solve(
            nde.ODEProblem(clock, 0.0, (0.0, 100.0)), "euler", dt0=0.01, controller="constant",
            events=[always],
        )  # fmt: skip


def test_a_condition_that_is_not_finite_ends_with_a_status():
    bad = nde.ContinuousEvent(lambda t, y, p: tf.math.log(1.0 - y))
    sol = solved(clock, tf.constant([0.0, -5.0]), (0.0, 3.0), batch_ndims=1, events=[bad])
    assert sol.status.numpy().tolist() == [int(nde.Status.BAD_CONDITION), 0]
    np.testing.assert_allclose(sol.stopped, [1.0, 3.0], rtol=1e-6)
    never = nde.ContinuousEvent(lambda t, y, p: y * np.nan)
    sol = solved(clock, 0.0, (0.5, 3.0), events=[never])
    assert int(sol.status) == nde.Status.BAD_CONDITION and sol.stopped == [0.5]


def test_save_points_after_a_terminal_event_are_nan():
    landing = nde.ContinuousEvent(lambda t, y, p: y - 1.0, lambda t, y, p: 7.0 + y, terminal=True)
    sol = solved(
        clock, tf.constant([0.0, -1.5], tf.float64), (0.0, 2.0), batch_ndims=1,
        saveat=[0.5, 1.0, 1.5, 2.0], events=[landing],
    )  # fmt: skip
    assert sol.status.numpy().tolist() == [0, 0]
    nan = np.nan
    expected = [[0.5, 8.0, nan, nan], [-1.0, -0.5, 0.0, 0.5]]
    np.testing.assert_allclose(sol.y.numpy().T, expected, rtol=1e-13, atol=1e-14)
    final = solved(clock, tf.constant([0.0, -1.5]), (0.0, 2.0), batch_ndims=1, events=[landing])
    np.testing.assert_allclose(final.y, [8.0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(final.t, [1.0, 2.0], rtol=1e-6)


def test_a_failed_row_adds_nothing_to_the_gradients_of_others():
    y0 = tf.constant([[1.0, 0.0], [50.0, 0.0]], tf.float64)

    @in_graph
    def gradient(e, y0):
        with tf.GradientTape() as tape:
            tape.watch([e, y0])
            sol = nde.solve(nde.ODEProblem(fall, y0, (0.0, 4.0), e), batch_ndims=1, events=[GROUND])
            total = tf.reduce_sum(tf.where(sol.success, sol.y[:, 0], 0.0))
        return tape.gradient(total, [e, y0])

    e_bar, y_bar = gradient(tf.constant(0.5, tf.float64), y0)
    assert np.all(y_bar[0].numpy() == 0.0) and np.all(np.isfinite(y_bar))
    t, v = np.sqrt(100 / G), np.sqrt(100 * G)
    np.testing.assert_allclose(e_bar, v * (4.0 - t), rtol=1e-10)


@pytest.mark.parametrize(
    "events, message",
    [
        ([nde.ContinuousEvent(height, lambda t, y, p: y[..., 0])], "affect.*shape of `y`"),
        ([nde.ContinuousEvent(lambda t, y, p: y)], "a number for each trajectory"),
        ([nde.ContinuousEvent(lambda t, y, p: None)], "return. missing"),
        ([nde.PresetTimeEvent([2.0, 1.0, 3.0], bounce)], "must be sorted"),
        ([nde.PresetTimeEvent([np.nan, 1.0], bounce)], "NaN last"),
    ],
)
def test_bad_events(events, message):
    problem = nde.ODEProblem(fall, tf.ones((2, 2)), (0.0, 1.0), 0.5)
    with pytest.raises(ValueError, match=message):
        nde.solve(problem, batch_ndims=1, events=events)


def test_bad_settings_of_events():
    problem = nde.ODEProblem(fall, tf.ones(2), (0.0, 1.0), 0.5)
    with pytest.raises(TypeError, match="must be a list of ContinuousEvent"):
        nde.solve(problem, events=[height])
    with pytest.raises(TypeError, match="booleans"):
        nde.solve(problem, events=[nde.DiscreteEvent(height)])
    for wrong in (lambda t, y, p: {"height": y[0]}, lambda t, y, p: [y[0]], lambda t, y, p: "low"):
        with pytest.raises(TypeError, match=r"condition\(t, y, p\) must return"):
            nde.solve(problem, events=[nde.ContinuousEvent(wrong)])
    with pytest.raises(TypeError, match="`condition` must be a function"):
        nde.ContinuousEvent(1.0)
    with pytest.raises(ValueError, match="`direction` must be"):
        nde.ContinuousEvent(height, direction=2)
    with pytest.raises(ValueError, match="`max_events`"):
        nde.DiscreteEvent(height, max_events=0)
    for keywords, message in (
        ({"adjoint": "backsolve"}, "adjoint='discrete' only"),
        ({"dense": True}, "dense=True"),
        ({"step_control": "joint", "batch_ndims": 1}, "joint"),
        ({"steps": [0.0, 1.0]}, "cannot be replayed"),
    ):
        with pytest.raises(ValueError, match=message):
            nde.solve(problem, events=[GROUND], **keywords)
    mass = nde.ODEProblem(fall, tf.ones(2), (0.0, 1.0), 0.5, mass_matrix=np.eye(2))
    with pytest.raises(ValueError, match="mass matrix"):
        nde.solve(mass, "rodas5p", events=[GROUND])
    noisy = nde.SDEProblem(fall, lambda t, y, p: y, tf.ones(2), (0.0, 1.0), 0.5)
    with pytest.raises(ValueError, match="interpolant"):
        nde.solve(noisy, events=[GROUND])


def test_preset_times_have_no_gradient():
    times = tf.constant([0.3, 0.6], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(times)
        dose = nde.PresetTimeEvent(times, lambda t, y, p: y + 1.0)
        problem = nde.ODEProblem(lambda t, y, p: -2.0 * y, np.ones(1), (0.0, 1.0))
        value = tf.reduce_sum(nde.solve(problem, "tsit5", events=[dose]).y)
    with pytest.raises(ValueError, match=r"`events\[0\].times`"):
        tape.gradient(value, times)


def test_a_root_on_the_end_of_a_step_moves_like_any_other():
    """y' = v until y = 1, where v becomes 0: the end does not depend on where it began."""
    stop = nde.ContinuousEvent(
        lambda t, y, p: y[0] - 1.0, lambda t, y, p: tf.stack([y[0], 0.0 * y[1]])
    )

    def bars(y0):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(y0)
            problem = nde.ODEProblem(lambda t, y, p: tf.stack([y[1], 0.0 * y[0]]), y0, (0.0, 2.0))
            sol = nde.solve(problem, "midpoint", dt0=0.5, controller="constant", events=[stop])
            end, time = sol.y[0], sol.event_times[0]
        return tape.gradient(end, y0), tape.gradient(time, y0)

    end_bar, time_bar = bars(tf.constant([0.0, 1.0], tf.float64))
    np.testing.assert_allclose(end_bar, [0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(time_bar, [-1.0, -1.0], atol=1e-12)


def test_a_bounce_late_in_single_precision_happens_once():
    ground = nde.ContinuousEvent(
        lambda t, y, p: y[0], lambda t, y, p: tf.stack([y[0], -0.8 * y[1]])
    )

    def field(t, y, p):
        return tf.stack([y[1], -9.8 + 0.0 * y[0]])

    problem = nde.ODEProblem(field, tf.constant([50.0, 0.0]), (1000.0, 1015.0))
    sol = nde.solve(problem, "tsit5", events=[ground])
    assert sol.num_events == 3
    np.testing.assert_allclose(
        sol.event_times[:3] - 1000.0, [3.19438, 8.30540, 12.39420], atol=1e-3
    )


def test_the_time_of_a_terminal_event_has_its_gradient():
    ground = nde.ContinuousEvent(lambda t, y, p: y[0], terminal=True)

    def field(t, y, p):
        return tf.stack([y[1], -9.8 + 0.0 * y[0]])

    with tf.GradientTape() as tape:
        height = tf.constant(50.0, tf.float64)
        tape.watch(height)
        problem = nde.ODEProblem(field, tf.stack([height, 0.0 * height]), (0.0, 15.0))
        time = nde.solve(problem, "tsit5", rtol=1e-8, events=[ground]).t
    np.testing.assert_allclose(tape.gradient(time, height), 1 / np.sqrt(2 * 50 * 9.8), rtol=1e-9)


def test_times_of_presets_at_the_door():
    for times, words in (([1.0, 1.0], "must differ"), ([], "at least one time")):
        dose = nde.PresetTimeEvent(times, lambda t, y, p: y + 1.0)
        with pytest.raises(ValueError, match=words):
            nde.solve(nde.ODEProblem(lambda t, y, p: y, 1.0, (0.0, 2.0)), events=[dose])
    with pytest.raises(TypeError, match="`times` must be an array of numbers"):
        nde.PresetTimeEvent(None, lambda t, y, p: y)
    with pytest.raises(ValueError, match="`direction` must be"):
        nde.ContinuousEvent(height, direction=np.array([1, 1]))


def sinks(t, y, p):
    return -1.0 + 0.0 * y


def test_a_condition_may_cease_to_be_a_number_behind_its_crossing():
    """One step from 1 to -9: the logarithm crosses at 0.1, and ends at 0, both before any probe."""
    low = nde.ContinuousEvent(lambda t, y, p: tf.math.log(y / p), terminal=True)
    p = tf.constant([0.1, 0.1, 1e-3], tf.float64)
    y0 = tf.constant([1.0, -1.0, 0.5], tf.float64)
    options = {"dt0": 10.0, "controller": "constant", "batch_ndims": 1}

    @in_graph
    def times(y0, p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            sol = nde.solve(nde.ODEProblem(sinks, y0, (0.0, 10.0), p), events=[low], **options)
            time = tf.reduce_sum(tf.where(sol.success, sol.t, 0.0))
        return sol.t, sol.status, tape.gradient(time, p)

    time, status, bar = times(y0, p)
    # It is no number at the start of the second.
    assert status.numpy().tolist() == [0, int(nde.Status.BAD_CONDITION), 0]
    np.testing.assert_allclose(time.numpy()[[0, 2]], [0.9, 0.499], rtol=1e-13)
    np.testing.assert_allclose(bar, [-1.0, 0.0, -1.0], rtol=1e-12)
    # No crossing before: the first touches zero where it ends, the second only rises to it.
    touches = nde.ContinuousEvent(lambda t, y, p: tf.sqrt(y) + p, terminal=True)
    sol = solved(sinks, y0[:1], (0.0, 10.0), p[:1], events=[touches], **options)
    assert sol.status.numpy().tolist() == [int(nde.Status.BAD_CONDITION)]
    rising = nde.ContinuousEvent(low.condition, terminal=True, direction=1)
    sol = solved(sinks, y0[:1], (0.0, 10.0), p[:1], events=[rising], **options)
    assert sol.status.numpy().tolist() == [int(nde.Status.BAD_CONDITION)]


def test_a_condition_does_not_matter_behind_another_event():
    half = nde.ContinuousEvent(lambda t, y, p: y - 0.5, terminal=True)
    other = nde.ContinuousEvent(lambda t, y, p: tf.sqrt(y - 0.3) + 1.0)
    options = {"dt0": 10.0, "controller": "constant"}
    one = tf.ones([], tf.float64)
    sol = solved(sinks, one, (0.0, 10.0), events=[other, half], **options)
    np.testing.assert_allclose(sol.t, 0.5, rtol=1e-13)
    sol = solved(sinks, one, (0.0, 10.0), events=[other], **options)
    assert int(sol.status) == nde.Status.BAD_CONDITION
    # What begins anew at each event crosses a logarithm each time.
    again = nde.ContinuousEvent(lambda t, y, p: tf.math.log(y / 0.1), lambda t, y, p: y + 0.9)
    sol = solved(sinks, one, (0.0, 4.0), events=[again], dt0=5.0, controller="constant")
    assert int(sol.num_events) == 4
    np.testing.assert_allclose(sol.event_times[:4], 0.9 * np.arange(1, 5), rtol=1e-12)


def test_a_condition_without_a_derivative_in_other_rows():
    """The square root has an infinite one at the start of the second, where nothing happens."""
    level = nde.ContinuousEvent(
        lambda t, y, p: tf.sqrt(y) - p, lambda t, y, p: 0.0 * y, direction=1
    )

    @in_graph
    def gradient(y0, p):
        with tf.GradientTape() as tape:
            tape.watch([y0, p])
            problem = nde.ODEProblem(lambda t, y, p: 0.0 * y + y0, y0, (0.0, 2.0), p)
            y = nde.solve(problem, batch_ndims=1, events=[level]).y
            total = tf.reduce_sum(y)
        return y, tape.gradient(total, p)

    # y = 1 + t until y = 2.25 at t = p² - 1 = 1.25, then from 0 on.
    y, bar = gradient(tf.constant([1.0, 0.0], tf.float64), tf.constant(1.5, tf.float64))
    np.testing.assert_allclose(y, [0.75, 0.0], rtol=1e-10)
    np.testing.assert_allclose(bar, -3.0, rtol=1e-10)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_a_rerun_takes_the_decisions_of_the_first_run(dtype):
    """Levels are reached on the ends of steps, to rounding; few checkpoints mean many reruns."""

    def drop(t, y, p):
        return y - tf.stack([p, 0.0 * p])

    def shrink(t, y, p):
        return y * tf.stack([1.0 + 0.0 * p, 0.1 * p])

    events = [
        nde.ContinuousEvent(lambda t, y, p: y[..., 0] - 1.0, drop),
        nde.DiscreteEvent(lambda t, y, p: y[..., 1] >= 0.7, shrink),
    ]

    def bars(checkpoints, p, rate):
        with tf.GradientTape() as tape:
            tape.watch([p, rate])

            def field(t, y, p):
                return tf.stack([1.0 + 0.0 * y[..., 0], rate * (1.0 + 0.0 * y[..., 0])], -1)

            sol = nde.solve(
                nde.ODEProblem(field, tf.zeros((3, 2), dtype), (0.0, 40.0), p), "rk4",
                batch_ndims=1, dt0=0.1, controller="constant", events=events,
                checkpoints=checkpoints,
            )  # fmt: skip
            total = tf.reduce_sum(sol.y * [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        return sol.num_events, tape.gradient(total, [p, rate])

    p, rate = tf.constant(1.0, dtype), tf.constant(0.7, dtype)
    compiled = tf.function(bars, jit_compile=True, autograph=False)
    (few, low), (many, high) = compiled(4, p, rate), compiled(1024, p, rate)
    assert np.all(few == many) and np.all(few > 60)
    np.testing.assert_allclose(low, high, rtol=1e-4 if dtype == tf.float32 else 1e-12)


def oscillator(t, y, p):
    """Van der Pol's, the stiffer the larger p[..., 0]."""
    x, v = y[..., 0], y[..., 1]
    return tf.stack([v, p[..., 0] * (1.0 - x**2) * v - x], -1)


KICK = nde.ContinuousEvent(
    lambda t, y, p: y[..., 0] - p[..., 1],
    lambda t, y, p: tf.stack([y[..., 0] + 0.3 * p[..., 1], y[..., 1]], -1),
    direction=-1,
)


def kicks(p, solver, **keywords):
    """A smooth function of what happens to oscillators that are stiff and that are not."""
    y0 = tf.constant([[2.0, 0.0], [2.0, 0.0]], p.dtype)
    spans = tf.zeros(2, p.dtype), tf.constant([75.0, 2.0], p.dtype)
    problem = nde.ODEProblem(oscillator, y0, spans, p)
    sol = nde.solve(problem, solver, batch_ndims=1, events=[KICK], **keywords)
    times = tf.where(sol.event_index < 0, tf.zeros_like(sol.event_times), sol.event_times)
    return sol, tf.stack([times[0, 0] + sol.y[0, 0], tf.reduce_sum(times[1, :3]) + sol.y[1, 0]])


STIFF_AND_NOT = np.array([[100.0, 1.5], [0.5, 1.5]])


def check_kicks(counts, found, bars):
    """Against `rodas5p` with many digits, and differences of it."""

    @in_graph
    def exact(p):
        return kicks(p, "rodas5p", rtol=1e-9, atol=1e-11)[1]

    np.testing.assert_allclose(found, exact(tf.constant(STIFF_AND_NOT)), rtol=1e-5)
    # Steps of Tsit5 at the limit of its stability would be thousands, and their derivative huge.
    assert counts.num_implicit[0] > 10 and counts.num_steps[0] < 500
    assert counts.num_implicit[1] == 0
    differences = np.zeros((2, 2))
    for column in range(2):
        h = 1e-4 * STIFF_AND_NOT * np.eye(2)[column]
        sides = [exact(tf.constant(STIFF_AND_NOT + s * h)).numpy() for s in (1, -1)]
        differences[:, column] = (sides[0] - sides[1]) / (2.0 * h[:, column])
    np.testing.assert_allclose(bars, differences, rtol=1e-4)


def test_auto_takes_implicit_steps_where_a_stiff_equation_has_events():
    @in_graph
    def run(p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            sol, found = kicks(p, "auto", rtol=1e-7, atol=1e-9, checkpoints=8)
            total = tf.reduce_sum(found)
        return sol.stats.num_steps, sol.stats.num_implicit, found, tape.gradient(total, p)

    steps, implicit, found, bars = run(tf.constant(STIFF_AND_NOT))
    check_kicks(types.SimpleNamespace(num_steps=steps, num_implicit=implicit), found, bars)


def test_an_event_that_does_not_happen_changes_no_step():
    """Steps at the limit of stability, where the controller has much to say."""
    never = nde.DiscreteEvent(lambda t, y, p: t < 0.0, lambda t, y, p: 2.0 * y)
    counts = []
    for events in ([], [never]):
        sol = solved(lambda t, y, p: 300.0 * (tf.cos(t) - y), np.ones(1), (0.0, 1.0), events=events)
        counts.append(int(sol.steps))
    assert counts[0] == counts[1] > 20


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("TEST_WHOLE"), reason="a minute: TEST_WHOLE=1 make test")
def test_auto_finds_out_eagerly_that_an_equation_with_events_is_stiff():
    p = tf.constant(STIFF_AND_NOT)
    with tf.GradientTape() as tape:
        tape.watch(p)
        sol, found = kicks(p, "auto", rtol=1e-7, atol=1e-9)
        total = tf.reduce_sum(found)
    check_kicks(sol.stats, found, tape.gradient(total, p))
