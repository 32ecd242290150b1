"""Jacobians and factors that serve several steps."""

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from tests.adjoints.test_discrete import check
from tests.solvers.test_implicit import column, ring, ring_pattern, ring_state


def method(name, reuse):
    return nde.solvers.DiagonallyImplicit(name, jacobian_reuse=reuse)


class TestSavings:
    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "sparse"), [("kvaerno5", False), ("trbdf2", True)])
    def test_few_jacobians_and_the_same_solution(self, name, sparse):
        """Dense factors and those of blocks; rows with matrices of their own."""
        pattern = {"jac_sparsity": ring_pattern(40)} if sparse else {}
        p = np.array([[5.0], [200.0]])
        problem = nde.ODEProblem(ring, ring_state(2, 40), (0.0, 10.0), p, **pattern)
        tight = nde.solve(problem, "rodas5p", batch_ndims=1, rtol=1e-9, atol=1e-9)
        keywords = {"batch_ndims": 1, "rtol": 1e-5, "atol": 1e-5}
        fresh = nde.solve(problem, method(name, False), **keywords)
        kept = nde.solve(problem, method(name, True), **keywords)
        np.testing.assert_array_equal(fresh.stats.num_jac, fresh.stats.num_steps)
        np.testing.assert_array_less(3 * kept.stats.num_jac, 2 * kept.stats.num_steps)
        np.testing.assert_array_less(np.abs(kept.stats.num_steps / fresh.stats.num_steps - 1), 0.2)
        error = np.abs(fresh.y - tight.y).max()
        assert np.abs(kept.y - tight.y).max() < 1.5 * error + 1e-6

    def test_by_default_for_one_large_trajectory(self):
        problem = nde.ODEProblem(ring, ring_state(1, 40), (0.0, 10.0), 50.0)
        stats = nde.solve(problem, "kvaerno3", batch_ndims=1, rtol=1e-5, atol=1e-5).stats
        assert 2 * stats.num_jac < stats.num_steps

    def test_joint_steps_and_split_equations(self):
        def slow(t, y, p):
            return -(y**3)

        def fast(t, y, p):
            return p * (tf.roll(y, 1, -1) - 2.0 * y + tf.roll(y, -1, -1))

        y0 = ring_state(3, 8)
        solver = nde.solvers.ImplicitExplicit(jacobian_reuse=True)
        problem = nde.SplitODEProblem(slow, fast, y0, (0.0, 5.0), 30.0)
        keywords = {"batch_ndims": 1, "rtol": 1e-6, "atol": 1e-6}
        each = nde.solve(problem, **keywords)
        joint = nde.solve(problem, solver, step_control="joint", **keywords)
        np.testing.assert_allclose(joint.y, each.y, atol=1e-5)
        assert np.all(3 * joint.stats.num_jac < 2 * joint.stats.num_steps)
        assert np.all(each.stats.num_jac == each.stats.num_steps)

    def test_small_systems_and_other_methods(self):
        problem = nde.ODEProblem(ring, ring_state(1, 3)[0], (0.0, 1.0), 50.0)
        for solver in (method("trbdf2", True), "rosenbrock23"):
            stats = nde.solve(problem, solver).stats
            assert stats.num_jac == stats.num_steps
        assert nde.solve(problem, "tsit5").stats.num_jac == 0


def rate(time, p):
    """1 up to t = 0.42, then p."""
    return tf.where(time < 0.42, tf.ones_like(time), p * tf.ones_like(time))


def switched(t, y, p):
    """Suddenly stiff, within a step from 0.4 to 0.5."""
    return -rate(column(t), p) * (y - tf.cos(column(t)))


def foresight(t, y, p):
    """The Jacobian a little later: that of the step's implicit stages."""
    return -rate(t + 0.05, p) * tf.eye(5, dtype=y.dtype)


class TestFailure:
    def test_an_iteration_that_fails_has_a_new_jacobian_made(self):
        """Constant steps, which nothing else could save."""
        problem = nde.ODEProblem(switched, np.ones(5), (0.0, 1.0), 1e5, jacobian=foresight)
        keywords = {"dt0": 0.1, "controller": "constant"}
        sol = nde.solve(problem, method("kvaerno3", True), **keywords)
        fresh = nde.solve(problem, method("kvaerno3", False), **keywords)
        np.testing.assert_allclose(sol.y, fresh.y, rtol=1e-10)
        assert sol.stats.num_accepted == 10 and sol.stats.num_rejected == 1
        assert sol.stats.num_jac <= 4

    def test_what_is_wrong_with_new_jacobians_is_said(self):
        problem = nde.ODEProblem(
            lambda t, y, p: -1e3 * y,
            np.ones(5),
            (0.0, 1.0),
            jacobian=lambda t, y, p: 1e3 * tf.eye(5, dtype=tf.float64),
        )
        keywords = {"dt0": 0.1, "controller": "constant"}
        with pytest.raises(nde.SolveError, match="Newton iteration diverged"):
            nde.solve(problem, method("kvaerno3", True), **keywords)

    def test_settings(self):
        with pytest.raises(ValueError, match="`jacobian_reuse` must be 'auto', True or False"):
            nde.solvers.DiagonallyImplicit("kvaerno5", jacobian_reuse="always")
        solver = method("trbdf2", True)
        assert nde.solvers.get(nde.solvers.serialize(solver)) == solver
        assert solver != nde.solvers.get("trbdf2")


class TestGradients:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["kvaerno5", "trbdf2"])
    def test_are_those_of_converged_stages(self, name):
        def loss(y0, p):
            problem = nde.ODEProblem(ring, y0, (0.0, 0.5), p)
            sol = nde.solve(
                problem, method(name, True), dt0=0.05, controller="constant", saveat=[0.23, 0.5]
            )
            return tf.reduce_sum(tf.sin(sol.y))

        check(loss, ring_state(1, 5)[0], 20.0)
