"""Implicit-explicit methods on split equations with known solutions."""

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from tests import problems
from tests.adjoints.test_discrete import check
from tests.solvers.test_implicit import column


def circle(t):
    """The solution (cos t, 2 + sin 2t) of `drift` + `pull`, `(2,)` or `(n, 2)`."""
    return np.stack([np.cos(t), 2.0 + np.sin(2.0 * t)], -1)


def drift(t, y, p):
    """Both parts are nonlinear, read the time, and mix the components."""
    a, b = tf.unstack(y, axis=-1)
    x, z = tf.cos(t), 2.0 + tf.sin(2.0 * t)
    return tf.stack([a * b - x * z - tf.sin(t), tf.sin(a) - tf.sin(x) + 2.0 * tf.cos(2.0 * t)], -1)


def pull(t, y, p):
    a, b = tf.unstack(y, axis=-1)
    x, z = tf.cos(t), 2.0 + tf.sin(2.0 * t)
    return p * tf.stack([x * x * z - a * a * b, z**3 - b**3 + (a - x)], -1)


def turn(t, y, p):
    """With `spring`: y' = -p (y - cos t) - sin t (1 + (y - cos t)²), solved by cos t."""
    return -tf.sin(column(t)) * (1.0 + (y - tf.cos(column(t))) ** 2)


def spring(t, y, p):
    return -p * (y - tf.cos(column(t)))


class TestAccuracy:
    def test_order_at_the_ends_and_within(self):
        """Order 4 of the pair: conditions that couple the two tables are among those it needs."""
        ends = np.array([0.5, 1.0])
        times = np.sort(np.concatenate([ends, np.linspace(0.01, 0.99, 40)]))
        errors = []
        for count in (80, 160):
            problem = nde.SplitODEProblem(drift, pull, circle(0.0), (0.0, 1.0), 1.0)
            keywords = {"dt0": 1.0 / count, "controller": "constant", "saveat": times}
            error = np.abs(nde.solve(problem, "kencarp4", **keywords).y - circle(times))
            errors.append([error[np.isin(times, ends)].max(), error.max()])
        assert np.min(errors) > 1e-11, "the errors must stay clear of rounding"
        np.testing.assert_allclose(np.log2(errors[0]) - np.log2(errors[1]), [4, 4], atol=0.25)

    def test_large_steps_across_a_fast_transient(self):
        problem = nde.SplitODEProblem(turn, spring, np.array([1.5]), (0.0, 3.0), 1e6)
        y = nde.solve(problem, dt0=0.1, controller="constant").y
        np.testing.assert_allclose(y, [np.cos(3.0)], atol=1e-3)

    def test_adaptive_steps_keep_the_tolerance_and_stay_few(self):
        problem = nde.SplitODEProblem(turn, spring, np.array([1.5]), (0.0, 3.0), 1e5)
        sol = nde.solve(problem, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(sol.y, [np.cos(3.0)], atol=2e-3)
        # An explicit method needs about 1e5 · 3 / 3.3 steps.
        assert sol.stats.num_steps < 400

    def test_the_sum_as_one_equation(self):
        split = nde.SplitODEProblem(drift, pull, circle(0.0), (0.0, 2.0), 10.0)
        whole = nde.ODEProblem(
            lambda t, y, p: drift(t, y, p) + pull(t, y, p), circle(0.0), (0.0, 2.0), 10.0
        )
        tight = {"rtol": 1e-9, "atol": 1e-9}
        np.testing.assert_allclose(
            nde.solve(split, **tight).y, nde.solve(whole, "rodas5p", **tight).y, atol=1e-7
        )

    def test_evaluations_are_those_of_the_implicit_part(self):
        """Linear stages take two turns each: the second finds nothing left."""
        problem = nde.SplitODEProblem(turn, spring, np.array([1.5]), (0.0, 3.0), 1e3)
        stats = nde.solve(problem, rtol=1e-6, atol=1e-6).stats
        assert stats.num_f <= 2 + stats.num_steps * (1 + 5 * 2)
        assert stats.num_f >= 2 + stats.num_steps * (1 + 5)


class TestGradients:
    @pytest.mark.slow
    def test_in_everything(self):
        """By the implicit function theorem, against central differences of the same steps."""

        def loss(y0, p, t0, t1, saves, closed_over):
            problem = nde.SplitODEProblem(
                lambda t, y, p: p[0] * tf.sin(column(t) * y[..., ::-1]),
                lambda t, y, p: closed_over * (tf.cos(p[1] * column(t)) - y * y[..., ::-1]),
                y0,
                (t0, t1),
                p,
            )
            sol = nde.solve(problem, saveat=saves, dt0=0.14, controller="constant")
            return tf.reduce_sum(tf.sin(sol.y))

        check(loss, [1.1, 0.9], [0.9, 1.2], 0.2, 1.0, [0.21, 0.5, 0.93], 40.0)

    def test_variables_of_either_part(self):
        fast = tf.Variable(50.0, dtype=tf.float64)
        slow = tf.Variable(0.5, dtype=tf.float64)

        def value():
            problem = nde.SplitODEProblem(
                lambda t, y, p: slow * tf.ones_like(y),
                lambda t, y, p: -fast * y,
                np.ones(1),
                (0.0, 0.4),
            )
            return nde.solve(problem, rtol=1e-10, atol=1e-10).y[0]

        with tf.GradientTape() as tape:
            y = value()
        by_fast, by_slow = tape.gradient(y, [fast, slow])
        decayed = np.exp(-50.0 * 0.4)
        np.testing.assert_allclose(y, 0.01 + 0.99 * decayed, atol=1e-9)
        np.testing.assert_allclose(by_slow, (1.0 - decayed) / 50.0, rtol=1e-7)
        # d/dk of s/k + (1 - s/k) e^(-kt) with s = 1/2.
        exact = -0.5 / 2500 * (1 - decayed) - 0.4 * 0.99 * decayed
        np.testing.assert_allclose(by_fast, exact, rtol=1e-5)


class TestBatchesAndModes:
    Y0 = np.array([[1.0, 2.0], [0.5, 1.5], [1.2, 2.5]])

    def solve(self, y0, **keywords):
        problem = nde.SplitODEProblem(
            problems.harmonic, lambda t, y, p: -p * y**3, y0, (0, 1), 50.0
        )
        return nde.solve(problem, batch_ndims=1, rtol=1e-6, atol=1e-6, **keywords)

    def test_rows_are_independent(self):
        together = self.solve(self.Y0)
        alone = self.solve(self.Y0[1:2])
        np.testing.assert_allclose(together.y[1], alone.y[0], rtol=1e-12)
        assert together.stats.num_steps[1] == alone.stats.num_steps[0]
        joint = self.solve(self.Y0, step_control="joint")
        np.testing.assert_allclose(joint.y, together.y, atol=2e-5)

    def test_ensembles(self):
        def vary(problem, i, seed):
            return problem.remake(p=10.0 ** tf.cast(i + 1, tf.float64))

        problem = nde.SplitODEProblem(turn, spring, np.array([1.5]), (0.0, 3.0), 1.0)
        sol = nde.solve_ensemble(problem, 4, vary=vary, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(sol.y[:, 0], 4 * [np.cos(3.0)], atol=1e-4)

    def test_same_numbers_in_every_mode(self):
        eager = self.solve(self.Y0).y
        specs = [tf.TensorSpec((None, 2), tf.float64)]
        plain = tf.function(lambda y0: self.solve(y0).y, specs, autograph=False)
        np.testing.assert_allclose(plain(tf.constant(self.Y0)), eager, rtol=1e-10)

    def test_nests_and_remake(self):
        def fast(t, y, p):
            return {"a": -p * y["a"], "b": tf.zeros_like(y["b"])}

        def slow(t, y, p):
            return {"a": tf.reduce_sum(y["b"]), "b": -y["b"]}

        y0 = {"a": np.array(1.0), "b": np.ones(1)}
        problem = nde.SplitODEProblem(slow, fast, y0, (0.0, 1.0), 1e3)
        sol = nde.solve(problem.remake(p=1e4), rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(sol.y["b"], [np.exp(-1.0)], rtol=1e-5)
        np.testing.assert_allclose(sol.y["a"], np.exp(-1.0) / 9999.0, rtol=1e-5)


class TestRefusals:
    PROBLEM = nde.SplitODEProblem(turn, spring, np.array([1.5]), (0.0, 3.0), 1e3)

    @pytest.mark.parametrize("name", ["tsit5", "rodas5p", "kvaerno5", "sosri"])
    def test_other_methods(self, name):
        with pytest.raises(ValueError, match="implicit-explicit method.*'kencarp4'"):
            nde.solve(self.PROBLEM, name)

    def test_other_tables(self):
        with pytest.raises(ValueError, match="explicit companion"):
            nde.solvers.ImplicitExplicit("kvaerno5")

    def test_an_equation_of_one_part(self):
        problem = nde.ODEProblem(turn, np.array([1.5]), (0.0, 3.0))
        with pytest.raises(ValueError, match="is for a SplitODEProblem"):
            nde.solve(problem, nde.solvers.ImplicitExplicit())

    def test_other_adjoints(self):
        with pytest.raises(ValueError, match="discrete gradient only"):
            nde.solve(self.PROBLEM, adjoint="backsolve")

    def test_what_is_no_function_or_returns_another_shape(self):
        with pytest.raises(TypeError, match="`f_implicit` must be a function"):
            nde.SplitODEProblem(turn, 3.0, np.ones(1), (0.0, 1.0))
        problem = nde.SplitODEProblem(turn, lambda t, y, p: y[:1], np.ones(2), (0.0, 1.0))
        with pytest.raises(ValueError, match=r"f_implicit\(t, y, p\) must return the shape"):
            nde.solve(problem)

    def test_configs(self):
        solver = nde.solvers.ImplicitExplicit("kencarp4", 7, "dense")
        assert nde.solvers.get(nde.solvers.serialize(solver)) == solver
        # The method's own settings hold for the pair.
        assert (
            nde.solvers.splitting(nde.solvers.DiagonallyImplicit("kencarp4", 7, "dense")) == solver
        )
