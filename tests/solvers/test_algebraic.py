"""ESDIRK methods on equations whose mass matrix is singular."""

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from tests.adjoints.test_discrete import check
from tests.solvers.test_implicit import column

# M = L diag(1, 1, 0) R: every equation and every component has a share in the constraint.
LEFT = np.array([[1.0, 0.0, 0.5], [0.3, 2.0, -1.0], [0.0, 0.4, 1.0]])
RIGHT = np.array([[1.0, 0.2, 0.0], [0.0, 1.0, -0.3], [0.5, 0.0, 2.0]])
MASS = LEFT @ np.diag([1.0, 1.0, 0.0]) @ RIGHT


def exact(t):
    """The solution for p = 1, `(3,)` or `(n, 3)`: w = (x, v, z) as y = R⁻¹ w."""
    x = 1.0 / (1.0 + np.exp(-np.asarray(t) - np.sin(t)))
    v = np.exp(np.sin(t) - t)
    z = x * x + np.cos(t) * v
    return np.stack([x, v, z], -1) @ np.linalg.inv(RIGHT).T


def mixed(t, y, p):
    """x' = x (1 - x) (1 + cos t), v' = v (cos t - 1) + r, 0 = r = z - x² - p v cos t."""
    w = tf.linalg.matvec(RIGHT, y)
    x, v, z = w[..., :1], w[..., 1:2], w[..., 2:]
    cosine = tf.cos(column(t))
    rest = z - x * x - p * v * cosine
    rows = [x * (1.0 - x) * (1.0 + cosine), v * (cosine - 1.0) + rest, rest]
    return tf.linalg.matvec(LEFT, tf.concat(rows, -1))


PROBLEM = nde.ODEProblem(mixed, exact(0.0), (0.0, 2.0), 1.0, mass_matrix=MASS)


class TestOrder:
    STEPS = {"implicit_euler": (1, 160), "trbdf2": (2, 40), "kvaerno3": (3, 40)}
    STEPS |= {"kencarp4": (4, 20), "kvaerno5": (5, 12)}
    ENDS = np.array([0.5, 1.0, 1.5, 2.0])
    TIMES = np.sort(np.concatenate([ENDS, np.linspace(0.01, 1.99, 60)]))

    @pytest.mark.parametrize(
        "name",
        ["trbdf2"]
        + [
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("implicit_euler", "kvaerno3", "kencarp4", "kvaerno5")
        ],
    )
    def test_at_the_ends_and_within(self, name):
        order, steps = self.STEPS[name]
        at_ends = np.isin(self.TIMES, self.ENDS)
        errors = []
        for count in (steps, 2 * steps):
            keywords = {"dt0": 2.0 / count, "controller": "constant", "saveat": self.TIMES}
            error = np.abs(nde.solve(PROBLEM, name, **keywords).y - exact(self.TIMES))
            errors.append([error[at_ends].max(), error.max()])
        assert np.min(errors) > 1e-11, "the errors must stay clear of rounding"
        expected = [order, min(order, 4)]
        np.testing.assert_allclose(np.log2(errors[0]) - np.log2(errors[1]), expected, atol=0.4)


class TestAgainstRosenbrock:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["trbdf2", "kvaerno5"])
    def test_adaptive_steps_of_a_batch(self, name):
        """Both ways to estimate the error; each row with steps of its own, or one for all."""
        y0 = np.stack([exact(0.0), exact(0.0)])
        p = np.array([[1.0], [0.5]])
        problem = PROBLEM.remake(y0=y0, p=p)
        y0 = nde.consistent_state(problem, batch_ndims=1)
        problem = problem.remake(y0=y0, t_span=(0.0, 20.0))
        tight = nde.solve(problem, "rodas5p", batch_ndims=1, rtol=1e-9, atol=1e-9)
        for step_control in ("per_sample", "joint"):
            sol = nde.solve(
                problem, name, batch_ndims=1, rtol=1e-5, atol=1e-5, step_control=step_control
            )
            np.testing.assert_allclose(sol.y, tight.y, atol=2e-4)
            assert np.all(sol.stats.num_steps < 300)


class TestGradients:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["trbdf2", "kvaerno5", "rosenbrock23"])
    def test_in_everything(self, name):
        """Against central differences of the same steps, at their ends and between them."""

        def loss(y0, p, t0, t1, saves):
            problem = nde.ODEProblem(mixed, y0, (t0, t1), p, mass_matrix=MASS)
            sol = nde.solve(problem, name, saveat=saves, dt0=0.24, controller="constant")
            return tf.reduce_sum(tf.sin(sol.y) * tf.constant([1.0, 2.0, 3.0], tf.float64))

        start = np.array([0.5, 0.8, 0.25 + 0.7 * 0.8 * np.cos(0.1)]) @ np.linalg.inv(RIGHT).T
        check(loss, start, 0.7, 0.1, 1.0, [0.21, 0.5, 0.93])

    @pytest.mark.slow
    def test_with_a_jacobian_that_is_only_about_right(self):
        # That of the start.
        frozen = LEFT @ np.array([[0.0, 0.0, 0.0], [-1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]]) @ RIGHT

        def loss(p, t1):
            problem = PROBLEM.remake(p=p, t_span=(0.0, t1), jacobian=lambda t, y, p: frozen)
            options = {"dt0": 0.05, "controller": "constant", "max_steps": 64}
            return tf.reduce_sum(tf.sin(nde.solve(problem, "trbdf2", **options).y))

        check(loss, 1.0, 0.5)

    def test_of_a_known_solution(self):
        """0 = z - p x², x' = -z: x = 1 / (1/x0 + p t)."""

        def field(t, y, p):
            x, z = tf.unstack(y, axis=-1)
            return tf.stack([-z, z - p * x * x], -1)

        p, y0 = tf.constant(2.0, tf.float64), tf.constant([0.5, 0.5], tf.float64)
        with tf.GradientTape() as tape:
            tape.watch([p, y0])
            problem = nde.ODEProblem(field, y0, (0.0, 1.0), p, mass_matrix=np.diag([1.0, 0.0]))
            x, z = tf.unstack(nde.solve(problem, "kvaerno5", rtol=1e-9, atol=1e-9).y)
            loss = x + z
        by_p, by_y0 = tape.gradient(loss, [p, y0])
        # x(1) = 1/4 with dx/dp = -x², dx/dx0 = (x / x0)²; z = p x².
        np.testing.assert_allclose([x, z], [0.25, 0.125], rtol=1e-7)
        # The start moves along: dz0 = x0² dp + 2 p x0 dx0.
        expected = [-(0.25**2) + 0.25**2 - 4.0 * 0.25 * 0.25**2, 0.25 + 4.0 * 0.25 * 0.25]
        along = [by_p + 0.25 * by_y0[1], by_y0[0] + 2.0 * by_y0[1]]
        np.testing.assert_allclose(along, expected, rtol=1e-6)


class TestFailure:
    def test_an_index_above_one_is_named(self):
        """The second equation does not determine the second component: it has none."""
        problem = nde.ODEProblem(
            lambda t, y, p: tf.stack([-y[0], 0.0 * y[1]]),
            np.ones(2),
            (0.0, 1.0),
            mass_matrix=np.diag([1.0, 0.0]),
        )
        with pytest.raises(nde.SolveError, match="singular"):
            nde.solve(problem, "trbdf2", saveat=[0.5, 1.0])

    def test_an_inconsistent_start_is_named(self):
        problem = PROBLEM.remake(y0=exact(0.0) + np.array([0.0, 0.0, 0.1]))
        with pytest.raises(nde.SolveError, match="violates the algebraic equations"):
            nde.solve(problem, "trbdf2")

    def test_a_mass_matrix_of_a_graph(self):
        def solve(mass):
            return nde.solve(PROBLEM.remake(mass_matrix=mass), "kvaerno3").y

        with pytest.raises(ValueError, match="known when the solve is built"):
            tf.function(solve, autograph=False)(tf.constant(MASS))
