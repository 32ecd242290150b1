"""All adjoints against each other and against finite differences, on one time-dependent network."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde import adjoints
from tests.adjoints.test_discrete import central_differences

RNG = np.random.default_rng(7)
SAVES = np.array([0.0, 0.4, 1.1, 1.5])
POINTS = {
    "y0": RNG.normal(size=(3, 2)),
    "w1": RNG.normal(size=(3, 5)) / 2,
    "w2": RNG.normal(size=(5, 2)) / 2,
    "t0": np.array(0.0),
    "t1": np.array(1.5),
    "saves": SAVES,
    "closed": np.array([0.3, -0.2]),
}
WEIGHTS = RNG.normal(size=(4, 3, 2))
# Those for ordinary equations.
ALL = [name for name in adjoints.names() if name != "reversible"]
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def solution(adjoint, y0, w1, w2, t0, t1, saves, closed, variable, timed, keywords):
    def field(t, y, p):
        inputs = tf.concat([tf.broadcast_to(t[..., None], tf.shape(y[..., :1])), y], axis=-1)
        return variable * tf.tanh(inputs @ p["w1"]) @ p["w2"] + closed * tf.sin(t)[..., None]

    problem = nde.ODEProblem(field, y0, (t0, t1), {"w1": w1, "w2": w2})
    saveat = saves if timed else None
    return nde.solve(problem, saveat=saveat, batch_ndims=1, adjoint=adjoint, **(TIGHT | keywords))


def compile_it(function):
    return tf.function(function, jit_compile=True)


def gradients(adjoint, timed, wrap=compile_it, **keywords):
    variable = tf.Variable(0.9, dtype=tf.float64)

    def compute():
        points = {name: tf.constant(value) for name, value in POINTS.items()}
        with tf.GradientTape() as tape:
            tape.watch(points)
            sol = solution(adjoint, **points, variable=variable, timed=timed, keywords=keywords)
            loss = tf.reduce_sum(sol.y * (WEIGHTS if timed else WEIGHTS[-1]))
        return tape.gradient(loss, [points, variable])

    found, by_variable = wrap(compute)()
    return found | {"variable": by_variable}


@functools.cache
def reference(timed):
    """Finite differences of tight solves, all of one program."""

    @tf.function(jit_compile=True)
    def compiled(points, variable):
        keywords = {"rtol": 1e-12, "atol": 1e-12}
        sol = solution("discrete", **points, variable=variable, timed=timed, keywords=keywords)
        return tf.reduce_sum(sol.y * (WEIGHTS if timed else WEIGHTS[-1]))

    def loss(points, variable=0.9):
        tensors = {name: tf.constant(value) for name, value in points.items()}
        return compiled(tensors, tf.constant(variable, tf.float64))

    found = {}
    for name, point in POINTS.items():
        if name != "saves" or timed:
            found[name] = central_differences(lambda x, n=name: loss(POINTS | {n: x}), point)
    if timed:
        # One-sided where a save point cannot move past the start, nor the end before the last.
        shift = 1e-6
        base, eye = loss(POINTS), shift * np.eye(4)
        found["saves"][0] = (loss(POINTS | {"saves": SAVES + eye[0]}) - base) / shift
        found["saves"][3] = (base - loss(POINTS | {"saves": SAVES - eye[3]})) / shift
        found["t0"] = (base - loss(POINTS | {"t0": np.array(-shift)})) / shift
        found["t1"] = np.array(0.0)
    found["variable"] = (loss(POINTS, 0.9 + 1e-6) - loss(POINTS, 0.9 - 1e-6)) / 2e-6
    return found


def check(found, expected, rtol):
    for name, value in expected.items():
        if name == "saves" and found[name] is None:
            continue
        scale = max(1.0, np.abs(value).max())
        limit = 1e-5 if name in ("saves", "t0") else rtol  # one-sided differences
        np.testing.assert_allclose(found[name], value, rtol=rtol, atol=limit * scale, err_msg=name)


@pytest.mark.parametrize("timed", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ALL)
def test_agree_with_finite_differences(name, timed):
    exact = name in ("discrete", "forward")
    check(gradients(name, timed), reference(timed), 1e-6 if exact else 1e-5)


@pytest.mark.parametrize("name", ["forward", "interpolating"])
def test_eagerly(name):
    check(gradients(name, True, lambda function: function), reference(True), 1e-5)


@pytest.mark.parametrize("name", ["forward", "interpolating"])
def test_in_a_plain_graph_with_the_tape_outside(name):
    w1 = tf.constant(POINTS["w1"])
    variable = tf.Variable(0.9, dtype=tf.float64)

    @tf.function
    def run(w1):
        points = {key: tf.constant(value) for key, value in POINTS.items()} | {"w1": w1}
        sol = solution(name, **points, variable=variable, timed=True, keywords={})
        return tf.reduce_sum(sol.y * WEIGHTS)

    run(w1)  # traced without a tape
    with tf.GradientTape() as tape:
        tape.watch(w1)
        value = run(w1)
    check({"w1": tape.gradient(value, w1)}, {"w1": reference(True)["w1"]}, 1e-5)


@pytest.mark.slow
def test_forward_and_discrete_are_the_same_numbers_at_loose_tolerance():
    loose = {"rtol": 1e-2, "atol": 1e-3}
    expected = gradients("discrete", True, **loose)
    found = gradients("forward", True, **loose)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.slow
def test_joint_steps():
    expected = gradients("discrete", True, step_control="joint")
    for name in ("forward", "interpolating"):
        found = gradients(name, True, step_control="joint")
        for key in ("y0", "w1", "t0", "saves", "closed", "variable"):
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-5, atol=1e-5)


def test_backsolve_takes_y_from_the_solution_at_save_points():
    """A strongly damped equation, hopeless to solve backwards over the whole span."""

    def gradient(saves):
        p = tf.constant(30.0, tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(p)
            problem = nde.ODEProblem(lambda t, y, p: -p * (y - tf.cos(t)), 0.0, (0.0, 2.0), p)
            y = nde.solve(problem, saveat=saves, adjoint="backsolve", rtol=1e-8, atol=1e-8).y
            loss = tf.reduce_sum(y[-1:] ** 2)
        return tape.gradient(loss, p)

    def exact():
        p = tf.constant(30.0, tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(p)
            # y = (p² cos t + p sin t) / (1 + p²), the start forgotten.
            y = (p**2 * np.cos(2.0) + p * np.sin(2.0)) / (1 + p**2)
            loss = y**2
        return tape.gradient(loss, p)

    np.testing.assert_allclose(gradient(np.linspace(0.1, 2.0, 20)), exact(), rtol=1e-4)


def test_interpolating_does_not_go_backwards_through_y():
    p = tf.constant(30.0, tf.float64)
    gradients = {}
    for name in ("discrete", "interpolating"):
        with tf.GradientTape() as tape:
            tape.watch(p)
            problem = nde.ODEProblem(lambda t, y, p: -p * (y - tf.cos(t)), 0.0, (0.0, 2.0), p)
            loss = nde.solve(problem, adjoint=name, rtol=1e-9, atol=1e-9).y ** 2
        gradients[name] = tape.gradient(loss, p)
    np.testing.assert_allclose(gradients["interpolating"], gradients["discrete"], rtol=1e-5)


@pytest.mark.slow
def test_failed_rows_send_nothing():
    def field(t, y, p):
        return p * y**2  # y0 = 2 blows up at t = 1/2

    for name in ALL:
        p = tf.constant(1.0, tf.float64)
        y0 = tf.constant([[0.5], [2.0]], tf.float64)
        with tf.GradientTape() as tape:
            tape.watch([p, y0])
            problem = nde.ODEProblem(field, y0, (0.0, 1.0), p)
            keywords = {"rtol": 1e-8, "atol": 1e-8, "throw": False, "max_steps": 500}
            sol = nde.solve(problem, batch_ndims=1, adjoint=name, **keywords)
            loss = tf.reduce_sum(tf.where(sol.success[:, None], sol.y, 0.0))
        assert list(sol.status.numpy() == 0) == [True, False]
        by_p, by_y0 = tape.gradient(loss, [p, y0])
        # y = y0 / (1 - p y0 t)
        np.testing.assert_allclose(by_p, 1.0, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(by_y0, [[4.0], [0.0]], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", ["interpolating", "quadrature"])
def test_a_full_record_is_no_silent_zero(name):
    keywords = {"max_record": 8, "throw": False}
    p = tf.constant(1.0, tf.float64)
    problem = nde.ODEProblem(lambda t, y, p: -p * y, tf.ones(1, tf.float64), (0.0, 9.0), p)
    sol = None
    with tf.GradientTape() as tape:
        tape.watch(p)
        sol = nde.solve(problem, rtol=1e-9, atol=1e-9, adjoint=name, **keywords)
    assert sol.status == nde.Status.RECORD_FULL and np.isnan(sol.y).all()

    @tf.function
    def run(p):
        solved = nde.solve(problem.remake(p=p), rtol=1e-9, atol=1e-9, adjoint=name, **keywords)
        return tf.reduce_sum(solved.y)

    run(p)
    with tf.GradientTape() as tape:
        tape.watch(p)
        value = run(p)
    assert np.isfinite(value) and np.isnan(tape.gradient(value, p))


@pytest.mark.slow
def test_tolerances_of_the_backward_solve():
    def error(**settings):
        found = gradients(adjoints.Interpolating(**settings), True)["w1"]
        return np.abs(found - reference(True)["w1"]).max()

    assert error(rtol=1e-3, atol=1e-3) > 100 * error(rtol=1e-9, atol=1e-9)


def test_names_objects_and_configs():
    assert ALL == ["backsolve", "discrete", "forward", "interpolating", "quadrature"]
    adjoint = adjoints.Backsolve(rtol=1e-5)
    assert adjoints.get(adjoints.serialize(adjoint)) == adjoint
    assert adjoints.get("forward") == adjoints.Forward()
    with pytest.raises(ValueError, match="`adjoint` must be one of"):
        adjoints.get("nothing")
    with pytest.raises(ValueError, match="`rtol` must not be negative"):
        adjoints.Backsolve(rtol=-1.0)
    with pytest.raises(ValueError, match="`nodes`"):
        adjoints.Quadrature(nodes=0)
    problem = nde.ODEProblem(lambda t, y, p: -y, 1.0, (0.0, 1.0))
    with pytest.raises(ValueError, match="dense=True"):
        nde.solve(problem, dense=True, adjoint="backsolve")


def test_second_derivatives_are_refused_by_name():
    p = tf.constant(1.0)
    with (
        pytest.raises(NotImplementedError, match="adjoint='forward'"),
        tf.GradientTape() as outer,
    ):
        outer.watch(p)
        with tf.GradientTape() as inner:
            inner.watch(p)
            problem = nde.ODEProblem(lambda t, y, p: -p * y, 1.0, (0.0, 1.0), p)
            y = nde.solve(problem, adjoint="forward").y
        outer.gradient(inner.gradient(y, p), p)
