"""Dense output: the solution as a function of time, with its gradients."""

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde.tableaus import EXPLICIT
from tests import problems
from tests.adjoints.test_discrete import check, forced

TIMES = np.array([0.0, 0.3, 1.7, 4.0, 9.99, 10.0])


def lotka_volterra(**fields):
    problem = nde.ODEProblem(
        problems.lotka_volterra, np.ones(2), (0.0, 10.0), problems.LOTKA_VOLTERRA_P
    )
    return problem.remake(**fields)


@pytest.mark.parametrize("name", [name for name in EXPLICIT if EXPLICIT[name].has_error])
def test_is_what_save_points_are(name):
    dense = nde.solve(lotka_volterra(), name, dense=True)
    saved = nde.solve(lotka_volterra(), name, saveat=TIMES)
    np.testing.assert_allclose(dense(TIMES), saved.y, rtol=1e-12)
    np.testing.assert_allclose(dense(4.0), saved.y[3], rtol=1e-12)
    np.testing.assert_allclose(dense(TIMES[::-1]), saved.y[::-1], rtol=1e-12)
    np.testing.assert_allclose(dense.y, saved.y[-1], rtol=1e-12)


def test_against_an_exact_solution_backwards_and_per_sample():
    def exact(t):
        return np.exp(np.sin(t) - np.sin(6.0))

    starts = np.array([[1.0], [2.0], [-0.5]])
    problem = nde.ODEProblem(problems.seasonal, starts, (6.0, 0.0))
    sol = nde.solve(problem, batch_ndims=1, rtol=1e-9, atol=1e-9, dense=True)
    shared = np.linspace(0.0, 6.0, 11)
    np.testing.assert_allclose(sol(shared), exact(shared)[:, None, None] * starts, rtol=1e-7)
    own = np.random.default_rng(0).uniform(0.0, 6.0, (3, 7))
    np.testing.assert_allclose(sol(own)[..., 0], exact(own).T * starts.T, rtol=1e-7)


def test_save_points_come_from_the_same_record_and_do_not_end_it():
    sol = nde.solve(lotka_volterra(), saveat=[2.0, 5.0], dense=True)
    np.testing.assert_allclose(sol([2.0, 5.0]), sol.y, rtol=1e-13)
    assert np.isfinite(sol(9.5)).all()


def test_nests_and_joint_steps():
    def field(t, y, p):
        return {"a": -y["a"], "b": y["b"]}

    y0 = {"a": np.ones((2, 3)), "b": np.ones((2, 1))}
    problem = nde.ODEProblem(field, y0, (0.0, 1.0))
    sol = nde.solve(problem, batch_ndims=1, step_control="joint", dense=True, rtol=1e-8, atol=1e-8)
    y = sol([0.25, 0.5])
    np.testing.assert_allclose(
        y["a"], np.exp(-np.array([0.25, 0.5]))[:, None, None] * y0["a"][None]
    )
    assert y["b"].shape == (2, 2, 1)


def test_gradients_in_everything():
    weights = np.random.default_rng(3).normal(size=(4, 2))

    def loss(y0, p, t0, t1, times):
        problem = nde.ODEProblem(forced, y0, (t0, t1), p)
        sol = nde.solve(problem, dt0=0.07, controller="constant", dense=True)
        return tf.reduce_sum(sol(times) * weights) + tf.reduce_sum(sol.y * weights[0])

    check(loss, [1.0, -0.5], [0.9, 0.4], 0.2, 2.0, [1.3, 0.2001, 1.97, 0.61])


def test_the_gradient_of_a_span_that_the_save_points_are_read_from():
    def loss(y0, t1, saves):
        problem = nde.ODEProblem(forced, y0, (0.2, t1), tf.constant([0.9, 0.4], tf.float64))
        sol = nde.solve(problem, "heun", dt0=0.5, controller="constant", saveat=saves, dense=True)
        return tf.reduce_sum(sol.y**2)

    check(loss, [1.0, -0.5], 2.0, [0.2001, 1.3, 1.99])


def test_inside_a_compiled_function_and_in_a_plain_graph():
    p = tf.constant(problems.LOTKA_VOLTERRA_P)

    def loss(p):
        sol = nde.solve(lotka_volterra(p=p), rtol=1e-8, atol=1e-8, dense=True)
        return tf.reduce_sum(sol(TIMES) ** 2)

    results = []
    for wrap in (lambda f: f, tf.function, tf.function(jit_compile=True)):

        def both():
            with tf.GradientTape() as tape:
                tape.watch(p)
                value = loss(p)
            return value, tape.gradient(value, p)

        results.append(wrap(both)())
    for value, gradient in results[1:]:
        np.testing.assert_allclose(value, results[0][0], rtol=1e-10)
        np.testing.assert_allclose(gradient, results[0][1], rtol=1e-8)


def test_a_full_record_ends_with_a_status():
    sol = nde.solve(lotka_volterra(), dense=True, max_record=10, throw=False)
    assert sol.status == nde.Status.RECORD_FULL and "max_record" in nde.Status(5).message
    assert np.isnan(sol.y).all() and np.isnan(sol(10.0)).all() and np.isfinite(sol(0.1)).all()
    with pytest.raises(nde.SolveError, match="raise max_record"):
        nde.solve(lotka_volterra(), dense=True, max_record=10)


def test_a_span_of_length_zero():
    sol = nde.solve(lotka_volterra(t_span=(1.0, 1.0)), dense=True)
    np.testing.assert_array_equal(sol(1.0), np.ones(2))


def test_recorded_steps_can_be_read_and_no_time_gives_no_state():
    rates = tf.constant([[1.0], [50.0]], tf.float64)
    problem = nde.ODEProblem(lambda t, y, p: -p * y, np.ones((2, 1)), (0.0, 1.0), rates)
    with tf.GradientTape() as tape:
        tape.watch(rates)
        tight = {"rtol": 1e-8, "atol": 1e-10, "dense": True}
        sol = nde.solve(problem.remake(p=rates), "tsit5", batch_ndims=1, **tight)
        times = tf.transpose(sol.steps)
        y = sol(times)
        loss = tf.reduce_sum(tf.where(tf.math.is_nan(y), tf.zeros_like(y), y))
    known = np.isfinite(sol.steps)
    assert not known.all() and known[0].all()
    np.testing.assert_array_equal(np.isfinite(y[..., 0]), known)
    exact = np.exp(-sol.steps * rates[:, 0])
    np.testing.assert_allclose(y[..., 0][known], exact[known], atol=1e-8)
    expected = -np.nansum(sol.steps * exact, axis=0)
    np.testing.assert_allclose(tape.gradient(loss, rates)[:, 0], expected, rtol=1e-4)


def test_bad_input():
    dense = nde.solve(lotka_volterra(), dense=True)
    with pytest.raises(ValueError, match="within the solved span of each trajectory, 0 to 10"):
        dense(10.5)
    with pytest.raises(ValueError, match="Received shape"):
        dense(np.ones((2, 2)))
    with pytest.raises(ValueError, match="dense=True"):
        nde.solve(lotka_volterra())(1.0)
    with pytest.raises(ValueError, match="max_record"):
        nde.solve(lotka_volterra(), dense=True, max_record=0)
