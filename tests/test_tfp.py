"""Stock TFP solvers here, and ours in code written for TFP."""

import warnings

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import keras_neuralde as nde
from keras_neuralde.solvers import delegated
from tests import problems
from tests.adjoints.test_discrete import central_differences

KINDS = {"DormandPrince": tfp.math.ode.DormandPrince, "BDF": tfp.math.ode.BDF}


@pytest.fixture(params=KINDS)
def stock(request):
    return KINDS[request.param](rtol=1e-8, atol=1e-8)


def test_values_and_save_times(stock):
    times = np.array([0.0, 0.3, 0.3, 2.0])
    problem = nde.ODEProblem(problems.harmonic, np.array([1.0, 0.0]), (0.0, 2.0))
    sol = nde.solve(problem, stock, saveat=times)
    np.testing.assert_allclose(sol.y[:, 0], np.cos(times), atol=1e-5)
    assert sol.status == 0 and sol.stats.num_f > 10 and sol.stats.num_steps == -1


def test_backwards_in_time(stock):
    times = np.array([2.0, 1.0, 0.0])
    y0 = np.array([np.cos(2.0), -np.sin(2.0)])
    sol = nde.solve(nde.ODEProblem(problems.harmonic, y0, (2.0, 0.0)), stock, saveat=times)
    np.testing.assert_allclose(sol.y[:, 0], np.cos(times), atol=1e-5)


def test_the_field_is_never_evaluated_beyond_the_end(stock):
    def field(t, y, p):
        return tf.where(t > 1.0, tf.constant(np.nan, y.dtype), -y)

    sol = nde.solve(nde.ODEProblem(field, np.ones(()), (0.0, 1.0)), stock)
    np.testing.assert_allclose(sol.y, np.exp(-1.0), rtol=1e-5)


def test_gradients_of_a_time_dependent_field(stock):
    """TFP's own adjoint is wrong here: it starts at the wrong sign of time."""

    def loss(p, tape=None):
        p = tf.convert_to_tensor(p)
        if tape is not None:
            tape.watch(p)
        field = lambda t, y, p: p[0] * y * tf.cos(t) + p[1] * t  # noqa: E731
        y = nde.solve(nde.ODEProblem(field, np.ones(()), (0.5, 2.0), p), stock).y
        return (y, p) if tape is not None else y

    with tf.GradientTape() as tape:
        y, p = loss(np.array([0.7, 0.3]), tape)
    expected = central_differences(loss, np.array([0.7, 0.3]), 1e-3)
    np.testing.assert_allclose(tape.gradient(y, p), expected, rtol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_closed_over_tensors_and_variables_in_a_graph(compiled):
    variable, tensor = tf.Variable(2.0), tf.constant(3.0)
    solver = tfp.math.ode.DormandPrince(rtol=1e-6, atol=1e-8)

    @tf.function(jit_compile=compiled)
    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            problem = nde.ODEProblem(lambda t, y, p: -variable * tensor * y, 1.0, (0.0, 0.5))
            y = nde.solve(problem, solver).y
        return tape.gradient(y, [variable, tensor])

    y = np.exp(-3.0)
    np.testing.assert_allclose(gradient(), [-1.5 * y, -1.0 * y], rtol=1e-3)


def test_a_nan_field_ends_with_a_status(stock):
    def field(t, y, p):
        return tf.where(t > 0.5, tf.constant(np.nan, y.dtype), -y)

    sol = nde.solve(nde.ODEProblem(field, np.ones(()), (0.0, 1.0)), stock, throw=False)
    assert sol.status == nde.Status.NON_FINITE and np.isnan(sol.y)


def test_a_blow_up_ends_with_a_status():
    problem = nde.ODEProblem(lambda t, y, p: y * y, np.ones(()), (0.0, 2.0))
    sol = nde.solve(problem, "tfp_dormand_prince", throw=False)
    assert sol.status == nde.Status.STEP_TOO_SMALL


def test_gradients_of_times_are_refused():
    t1 = tf.constant(1.0, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(t1)
        problem = nde.ODEProblem(problems.decay, np.ones(()), (0.0, t1), 1.0)
        y = nde.solve(problem, "tfp_dormand_prince").y
    with pytest.raises(ValueError, match="t_span"):
        tape.gradient(y, t1)


def test_batches_step_jointly_and_say_so_once():
    delegated._WARNED.clear()
    problem = nde.ODEProblem(problems.decay, np.ones((3, 1)), (0.0, 1.0), 1.0)
    with pytest.warns(UserWarning, match="jointly"):
        sol = nde.solve(problem, "tfp_dormand_prince", batch_ndims=1, rtol=1e-7, atol=1e-9)
    assert sol.status.shape == (3,)
    np.testing.assert_allclose(sol.y, np.full((3, 1), np.exp(-1)), rtol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nde.solve(problem, "tfp_dormand_prince", batch_ndims=1, rtol=1e-7, atol=1e-9)


def test_what_tfp_decides_itself_is_refused(stock):
    problem = nde.ODEProblem(problems.decay, np.ones(()), (0.0, 1.0), 1.0)
    for keywords in ({"rtol": 1e-3}, {"dt0": 0.1}, {"controller": "PI"}):
        with pytest.raises(ValueError, match="by itself"):
            nde.solve(problem, stock, **keywords)


class TestAsTFP:
    def test_interface(self):
        solver = nde.solvers.as_tfp("tsit5", rtol=1e-8, atol=1e-8)
        assert isinstance(solver, tfp.math.ode.Solver)
        results = solver.solve(
            lambda t, y, rate: {"x": -rate * y["x"]},
            0.0,
            {"x": tf.ones(3, tf.float64)},
            solution_times=[0.5, 1.0],
            constants={"rate": tf.constant(2.0, tf.float64)},
        )
        np.testing.assert_allclose(results.states["x"][:, 0], np.exp([-1.0, -2.0]), rtol=1e-7)
        np.testing.assert_array_equal(results.times, [0.5, 1.0])
        assert results.diagnostics.success and results.diagnostics.num_ode_fn_evaluations > 6

    def test_gradients_with_respect_to_constants_and_closures(self):
        solver = nde.solvers.as_tfp("tsit5", rtol=1e-9, atol=1e-9)
        a, b = tf.constant(2.0, tf.float64), tf.constant(0.5, tf.float64)
        with tf.GradientTape() as tape:
            tape.watch([a, b])
            y = solver.solve(
                lambda t, y, a: -a * b * y, 0.0, tf.ones(1, tf.float64), [1.0], constants={"a": a}
            ).states[-1]
        expected = -np.exp(-1.0) * np.array([0.5, 2.0])
        np.testing.assert_allclose(tape.gradient(y, [a, b]), expected, rtol=1e-7)

    def test_ffjord(self):
        """The density of a linear flow is known: z = x exp(1), log|det| = 2."""
        bijector = tfp.bijectors.FFJORD(
            state_time_derivative_fn=lambda t, z: z,
            ode_solve_fn=nde.solvers.as_tfp("tsit5", rtol=1e-7, atol=1e-9).solve,
            trace_augmentation_fn=tfp.bijectors.ffjord.trace_jacobian_exact,
        )
        flow = tfp.distributions.TransformedDistribution(
            tfp.distributions.MultivariateNormalDiag(tf.zeros(2), tf.ones(2)), bijector
        )
        x = tf.constant([[0.3, -1.0], [1.0, 2.0]])
        expected = tfp.distributions.MultivariateNormalDiag(
            tf.zeros(2), np.e * tf.ones(2)
        ).log_prob(x)
        np.testing.assert_allclose(flow.log_prob(x), expected, rtol=1e-5)

    def test_comes_back_as_our_solver(self):
        sol = nde.solve(
            nde.ODEProblem(problems.decay, np.ones(()), (0.0, 1.0), 1.0),
            nde.solvers.as_tfp("dopri5"),
        )
        assert sol.stats.num_steps > 0

    def test_unknown_keywords(self):
        with pytest.raises(TypeError, match="tolerance"):
            nde.solvers.as_tfp("tsit5", tolerance=1e-3)
