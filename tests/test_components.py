"""Narrow states by components: the same numbers as row by row, and when it is done."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde import components, integrate

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
    found = {"steps": 0, "repeats": 0}
    pays, repeat = components.pays, integrate._repeat

    def noted(g, y):
        answer = pays(g, y)
        found["steps"] += answer
        return answer

    def repeated(*args):
        found["repeats"] += 1
        return repeat(*args)

    monkeypatch.setattr(components, "pays", noted)
    monkeypatch.setattr(integrate, "_repeat", repeated)
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
    assert (seen["repeats"] > before["repeats"]) == (saves is not None)
    # A step size has three digits of its own, but those in single precision: what the two ways
    # round differently comes back as a ten-millionth of the tolerance.
    np.testing.assert_allclose(found, outside, rtol=1e-10)


def test_where_it_does_not_pay(seen):
    """Nothing of it in plain graphs, for one trajectory, for wide states or for dear functions."""
    p, y0 = tf.constant(RATES), tf.ones((5, 2), tf.float64)
    tf.function(lambda: states(y0, p, saveat=[1.0])).get_concrete_function()
    compiled().get_concrete_function(y0[:1], p[:1])
    compiled(field=with_a_sine, saveat=[1.0]).get_concrete_function(y0, p)
    wide = tf.ones((5, 9), tf.float64)
    compiled(field=lambda t, y, p: -y).get_concrete_function(wide, p)
    assert seen == {"steps": 0, "repeats": 0}


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
    """Forwards the steps to save points are taken once more; backwards nothing changes."""
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


def test_plans_that_cannot_repeat_stay_as_they_are():
    plan = dataclasses.make_dataclass("P", ["saves", "happenings", "solver"])(False, None, None)
    assert integrate.repeating(plan, None, None, None) is plan
