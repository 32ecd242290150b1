"""Narrow states by components: the same numbers as row by row, and when it is done."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde import arithmetic, components, passing, save_points

RATES = np.linspace(0.8, 1.2, 5)[:, None] * np.array([1.5, 1.0, 3.0, 1.0])
SAVES = [0.0, 0.4, 0.41, 2.0, 3.0]


def predator_and_prey(t, y, p):
    u, v = tf.unstack(y, axis=-1)
    a, b, c, d = tf.unstack(p, axis=-1)
    return tf.stack([a * u - b * u * v, -c * v + d * u * v + 0.1 * t], -1)


def with_a_sine(t, y, p):
    return predator_and_prey(t, y, p) + tf.sin(y)


def states(y0, p, solver="tsit5", field=predator_and_prey, **options):
    problem = nde.ODEProblem(field, y0, (0.0, 3.0), p)
    return nde.solve(problem, solver, rtol=1e-6, atol=1e-6, batch_ndims=1, **options).y


def compiled(**options):
    return tf.function(lambda y0, p: states(y0, p, **options), jit_compile=True)


@pytest.fixture
def seen(monkeypatch):
    """Whether steps and save points were traced by components."""
    found = {"steps": 0, "repeats": 0, "passing": 0}
    run = passing.Alone.run
    pays, repeat, many = components.pays, save_points._repeat, passing.save_in_passing

    def noted(g, y):
        answer = pays(g, y)
        found["steps"] += answer
        return answer

    def repeated(*args):
        found["repeats"] += 1
        return repeat(*args)

    monkeypatch.setattr(components, "pays", noted)

    def passed(*args):
        found["passing"] += 1
        return many(*args)

    monkeypatch.setattr(save_points, "_repeat", repeated)
    monkeypatch.setattr(passing, "save_in_passing", passed)

    def alone(*args, **keywords):
        found["passing"] += 1
        return run(*args, **keywords)

    monkeypatch.setattr(passing.Alone, "run", alone)
    return found


@pytest.mark.parametrize(
    ("solver", "saves", "options"),
    [
        ("tsit5", None, {}),
        ("tsit5", SAVES, {}),
        ("midpoint", None, {"controller": "constant", "dt0": 0.05}),
        ("bosh3", SAVES, {}),
        ("vern7", None, {}),
    ],
)
def test_the_same_numbers_as_row_by_row(seen, solver, saves, options):
    y0, p = tf.ones((5, 2), tf.float64), tf.constant(RATES)
    outside = tf.function(lambda: states(y0, p, solver, saveat=saves, **options))()
    before = dict(seen)
    found = compiled(solver=solver, saveat=saves, **options)(y0, p)
    assert seen["steps"] > before["steps"]
    assert (seen["passing"] > before["passing"]) == (saves is not None)
    # Step sizes are computed in single precision. Where the two ways round differently, steps
    # differ by a ten-millionth, and the results by that part of the tolerance.
    np.testing.assert_allclose(found, outside, rtol=1e-10)


def test_where_it_does_not_pay(seen):
    """Nothing of it in plain graphs, for wide states or dear functions."""
    p, y0 = tf.constant(RATES), tf.ones((5, 2), tf.float64)
    tf.function(lambda: states(y0, p, saveat=[1.0])).get_concrete_function()
    compiled(field=with_a_sine, saveat=[1.0]).get_concrete_function(y0, p)
    wide = tf.ones((5, 9), tf.float64)
    compiled(field=lambda t, y, p: -y).get_concrete_function(wide, p)
    assert seen == {"steps": 0, "repeats": 0, "passing": 0}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_computed_together(dtype):
    """They are what they were, whatever they are, and come from one kernel."""
    limits = np.finfo(dtype)
    values = [0.0, -1.5, np.inf, -np.inf, np.nan, limits.max, 1e6 * limits.tiny, 7.0]
    x = tf.constant(values, dtype)

    def parts(x):
        shared = x * x + x * 0.25
        for _ in range(5):
            shared = shared * 0.5 + x
        return [shared * float(i) + x for i in range(4)]

    @tf.function(jit_compile=True)
    def run(x):
        found = components.together(parts(x))
        return found, [part * 2.0 for part in found]

    found, twice = run(x)
    for one, other, double in zip(found, parts(x), twice, strict=True):
        np.testing.assert_allclose(one, other, rtol=4 * limits.eps)
        np.testing.assert_array_equal(double, 2.0 * one)
    program = run.experimental_get_compiler_ir(x)(stage="optimized_hlo")
    result = f"({', '.join([f'f{limits.bits}[8]{{0}}'] * 4)}) fusion("
    assert program.count(result) == 1


def fast_and_slow(t, y, p):
    return -p * y + 0.05 * y * y


@pytest.mark.parametrize(
    ("trajectories", "saves", "t_span", "options"),
    [
        # Several in one step, some of them twice, at the start, at the end, in two pieces.
        (1, np.sort(np.r_[0, 0, 0.5, 0.5, np.linspace(0.1, 0.11, 30), 2, 2]), (0.0, 2.0), {}),
        (3, np.sort(np.r_[0, 0, 0.5, 0.5, np.linspace(0.1, 0.11, 30), 2, 2]), (0.0, 2.0), {}),
        (1, np.linspace(0.0, 2.0, 65)[1:], (0.0, 3.0), {}),
        (3, np.linspace(2.0, -1.0, 70), (2.0, -1.0), {}),
        # Few, with turns between them in which no row passes one.
        (3, [2.0, 1.9, 1.9, 0.0, -1.0, -1.0], (2.0, -1.0), {}),
        (3, [0.7, 2.0], (0.0, 2.0), {}),
        (1, [0.25, 1.0, 2.0], (0.0, 2.0), {"controller": "constant", "dt0": 0.3}),
        (3, np.linspace(0.0, 2.0, 40), (0.0, 2.0), {"controller": "PI", "norm": "max"}),
        (1, np.linspace(0.0, 2.0, 40), (0.0, 2.0), {"steps": [0.0, 0.5, 1.25, 2.0]}),
    ],
)
def test_save_points_in_passing(seen, trajectories, saves, t_span, options):
    """As without XLA, where they are interpolated from the records of the steps."""
    y0 = tf.constant(np.linspace(0.5, 1.5, 3 * 2).reshape(3, 2)[:trajectories])
    rates = tf.constant([[1.0], [3.0], [0.3]], tf.float64)[:trajectories]
    saves = tf.constant(saves, tf.float64)

    def run(y0, rates, saves):
        problem = nde.ODEProblem(fast_and_slow, y0, t_span, rates)
        sol = nde.solve(
            problem,
            "tsit5",
            saveat=saves,
            rtol=1e-8,
            atol=1e-8,
            batch_ndims=1,
            throw=False,
            **options,
        )
        return sol.y, sol.stats.num_accepted, sol.status

    y, accepted, status = tf.function(run, jit_compile=True)(y0, rates, saves)
    assert seen["passing"] == 1
    expected, others, _ = tf.function(run)(y0, rates, saves)
    np.testing.assert_allclose(y, expected, rtol=1e-11)
    np.testing.assert_array_equal(accepted, others)
    assert not np.any(status) and np.isfinite(y).all()
    if "steps" in options or "dt0" in options:
        return  # Steps that are too long for this solution.
    times, first = saves.numpy()[:, None, None] - t_span[0], y0.numpy()
    decay = np.exp(-rates.numpy() * times)
    exact = first * decay / (1.0 - 0.05 / rates.numpy() * first * (1.0 - decay))
    np.testing.assert_allclose(y, exact, rtol=1e-6)


def test_save_points_of_each_trajectory_and_trajectories_that_fail(seen):
    """NaN pads, spans without length, and a solution that ends in a pole at t = 1."""
    y0 = tf.constant([[0.5, 0.25], [1.0, 0.1], [0.2, 0.2]], tf.float64)
    nan = float("nan")
    saves = tf.constant([[0.5, 1.0, 1.5], [0.5, 0.75, 2.0], [0.0, nan, nan]], tf.float64)

    def run(y0, saves):
        problem = nde.ODEProblem(lambda t, y, p: y * y, y0, (0.0, 2.0))
        sol = nde.solve(
            problem, "tsit5", saveat=saves, rtol=1e-9, atol=1e-11, batch_ndims=1, throw=False
        )
        return sol.y, sol.status

    y, status = tf.function(run, jit_compile=True)(y0, saves)
    assert seen["passing"] == 1
    times = np.swapaxes(saves, 0, 1)[:, :, None]
    np.testing.assert_allclose(y[:, 0], (y0 / (1.0 - y0 * times))[:, 0], rtol=1e-7)
    np.testing.assert_allclose(y[0, 2], y0[2])
    assert np.isnan(y[:, 1]).all() and np.isnan(y[1:, 2]).all()
    assert [int(s) == int(nde.Status.SUCCESS) for s in status] == [True, False, True]


def test_whether_xla_compiles_is_known_inside_loops():
    """Of a private method of TensorFlow: this test fails when it is gone."""
    told = []

    def body(i):
        told.append(components.is_compiled())
        return i + 1

    def loop():
        return tf.while_loop(lambda i: i < 2, body, [0])

    tf.function(loop, jit_compile=True)()
    tf.function(loop)()
    assert told == [True, False]
    assert not components.is_compiled()


def test_gradients_with_save_points(seen):
    """Forwards the steps to save points are taken once more; backwards a step is one kernel."""
    y0, p = tf.ones((5, 2), tf.float64), tf.constant(RATES)
    saves = tf.constant(SAVES, tf.float64)

    def gradient(y0, p, saves):
        with tf.GradientTape() as tape:
            tape.watch([y0, p, saves])
            loss = tf.reduce_sum(states(y0, p, saveat=saves) ** 2)
        return tape.gradient(loss, [y0, p, saves])

    found = tf.function(gradient, jit_compile=True)(y0, p, saves)
    assert seen["repeats"]
    for one, other in zip(found, tf.function(gradient)(y0, p, saves), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def test_gradients_where_cotangents_do_not_come_apart():
    """A captured tensor of another dtype, shared parameters, and no rows at all."""
    single = tf.constant([[2.0]], tf.float32)

    def field(t, y, p):
        return -tf.cast(single, y.dtype) * y * p

    def gradient(y0, p):
        with tf.GradientTape() as tape:
            tape.watch([y0, p])
            y = states(y0, p, field=field)
        return tape.gradient(y, [y0, p])

    program = tf.function(gradient, jit_compile=True)
    by_y0, by_p = program(tf.ones((1, 2), tf.float64), tf.ones([2], tf.float64))
    np.testing.assert_allclose(by_y0, np.full((1, 2), np.exp(-6.0)), atol=1e-6)
    np.testing.assert_allclose(by_p, np.full(2, -6.0 * np.exp(-6.0)), atol=1e-6)
    nothing, none = program(tf.ones((0, 2), tf.float64), tf.ones((0, 2), tf.float64))
    assert nothing.shape == none.shape == (0, 2)


def test_rows_that_fail_and_rows_that_rest():
    """A field that is not finite for one row, times of each row's own, and a span of no length."""

    @tf.function(jit_compile=True)
    def run(y0, saves):
        problem = nde.ODEProblem(lambda t, y, p: y * y, y0, (0.0, 2.0))
        sol = nde.solve(problem, rtol=1e-8, atol=1e-8, saveat=saves, batch_ndims=1, throw=False)
        return sol.y, sol.status

    y0 = tf.constant([[0.25, 0.4], [1.0, 0.1], [float("nan"), 0.1], [0.1, -0.5]], tf.float64)
    saves = np.array([[0.5, 2.0], [0.5, 2.0], [0.5, 1.0], [0.0, np.nan]])
    y, status = run(y0, tf.constant(saves))
    start = y0.numpy()
    exact = start / (1.0 - start * np.swapaxes(saves, 0, 1)[:, :, None])
    np.testing.assert_allclose(y[:, 0], exact[:, 0], rtol=1e-6)
    np.testing.assert_allclose(y[0, 3], exact[0, 3])
    assert np.isnan(y[1, 3]).all() and np.isnan(y[:, 1:3]).all()
    assert [int(s) == int(nde.Status.SUCCESS) for s in status] == [True, False, False, True]


def test_constant_steps_and_tolerances_of_each_component():
    y0, p = tf.ones((5, 2), tf.float64), tf.constant(RATES)
    for options in (
        {"controller": "constant", "dt0": 0.01, "rtol": 1e-6, "atol": 1e-6},
        {"rtol": tf.constant([1e-6, 1e-5], tf.float64), "atol": 1e-7},
    ):

        def solve(y0, p, options=options):
            problem = nde.ODEProblem(predator_and_prey, y0, (0.0, 3.0), p)
            return nde.solve(problem, batch_ndims=1, **options).y

        np.testing.assert_allclose(
            tf.function(solve, jit_compile=True)(y0, p),
            tf.function(solve)(y0, p),
            rtol=1e-13 if "controller" in options else 1e-10,
        )


def test_what_other_programs_load_is_made_of_everyday_operations(seen):
    y0, p = tf.ones((5, 2), tf.float64), tf.constant(RATES)

    def operations():
        graph = compiled(saveat=SAVES).get_concrete_function(y0, p).graph.as_graph_def()
        inner = [node for function in graph.library.function for node in function.node_def]
        return {node.op for node in [*graph.node, *inner]}

    assert "XlaVariadicReduceV2" in operations()
    before = dict(seen)
    with components.portable():
        assert not any(name.startswith("Xla") for name in operations())
    assert seen["passing"] == before["passing"] == 1


def test_plans_that_cannot_repeat_stay_as_they_are():
    plan = dataclasses.make_dataclass("P", ["saves", "happenings", "solver"])(False, None, None)
    assert save_points.repeating(plan, None, None, None) is plan


def test_which_fields_are_arithmetic():
    def found(field):
        spec = tf.TensorSpec([5, 2], tf.float64)
        return arithmetic.is_arithmetic(tf.function(field).get_concrete_function(spec).graph)

    assert found(lambda y: tf.stack([y[:, 1], -y[:, 0] * y[:, 1]], axis=-1))
    assert found(lambda y: tf.concat([y[:, 1:], -(y[:, :1] ** 2)], axis=-1))
    assert found(lambda y: -y * y[:, ::-1] * tf.constant([1.0, 2.0], tf.float64))
    assert not found(lambda y: tf.exp(y))
    assert not found(lambda y: y**1.5)


@pytest.mark.parametrize("saves", [None, SAVES])
def test_fields_that_slice_what_they_have_computed(seen, saves):
    """And that read their state backwards: nothing is computed again for each stage."""

    def field(t, y, p):
        scaled = y * p[:, :2]
        return tf.stack([0.3 * scaled[:, 1] - scaled[:, 0], -scaled[:, 1]], 1) - 0.1 * y[:, ::-1]

    y0, p = tf.ones((5, 2), tf.float64), tf.constant(RATES)
    found = compiled(field=field, saveat=saves)(y0, p)
    assert seen["steps"]
    expected = tf.function(lambda: states(y0, p, field=field, saveat=saves))()
    np.testing.assert_allclose(found, expected, rtol=1e-10)
