"""`solver="auto"`: explicit and implicit steps in one solve, by what the equation asks for."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde.execution import programs
from keras_neuralde.solvers.switching import STABILITY
from keras_neuralde.tableaus import EXPLICIT
from tests import problems, stiff_problems
from tests.adjoints.test_discrete import central_differences, check
from tests.solvers.test_implicit import column


def stiff_for_a_while(t, y, p):
    """Solved by cos t; the eigenvalue is about -p near t = 1.5 and -1 far from it."""
    pull = 1.0 + p * tf.exp(-(((column(t) - 1.5) / 0.25) ** 2))
    away = y - tf.cos(column(t))
    return -pull * (away + away**3) - tf.sin(column(t))


def test_stability_limit():
    """|R(z)| = 1 on the negative axis, for the R of Tsit5's table."""
    table = EXPLICIT["tsit5"]
    stages = len(table.b)
    a = np.zeros((stages, stages))
    for i, row in enumerate(table.a):
        a[i, : len(row)] = [float(x) for x in row][:stages]
    b = np.array([float(x) for x in table.b])

    def growth(z):
        return 1.0 + z * b @ np.linalg.solve(np.eye(stages) - z * a, np.ones(stages))

    assert abs(growth(-STABILITY + 1e-3)) < 1.0 < abs(growth(-STABILITY - 1e-3))


class TestEquationsThatAreNotStiff:
    def test_are_solved_by_tsit5_and_by_its_program_alone(self):
        problem = nde.ODEProblem(
            problems.lotka_volterra, np.ones(2), (0.0, 10.0), problems.LOTKA_VOLTERRA_P
        )
        plain = nde.solve(problem, "tsit5", rtol=1e-6)
        before = len(programs)
        sol = nde.solve(problem, rtol=1e-6)
        assert len(programs) == before + 1
        np.testing.assert_allclose(sol.y, plain.y, rtol=1e-12)
        for name in ("num_steps", "num_rejected", "num_f"):
            assert getattr(sol.stats, name) == getattr(plain.stats, name)
        assert sol.stats.num_implicit == plain.stats.num_implicit == 0
        assert sol.stats.num_switches == plain.stats.num_switches == 0

    def test_other_methods_say_what_they_are(self):
        problem = nde.ODEProblem(problems.decay, np.ones(1), (0.0, 1.0), 1.0)
        stats = nde.solve(problem, "rosenbrock23").stats
        assert stats.num_implicit == stats.num_accepted and stats.num_switches == 0


class TestStiffEquations:
    def test_there_and_back(self):
        problem = nde.ODEProblem(stiff_for_a_while, np.ones(1), (0.0, 4.0), 1e5)
        times = np.linspace(0.0, 4.0, 9)
        sol = nde.solve(problem, rtol=1e-6, atol=1e-8, saveat=times)
        np.testing.assert_allclose(sol.y[:, 0], np.cos(times), atol=1e-5)
        assert sol.stats.num_switches == 2
        assert 0 < sol.stats.num_implicit < sol.stats.num_accepted
        # Tsit5 needs about 1e5 · 0.25 √π / 3.5 steps.
        assert sol.stats.num_steps < 300
        replayed = nde.solve(problem, steps=sol.steps, saveat=times)
        np.testing.assert_allclose(replayed.y, sol.y, rtol=1e-10)
        assert replayed.stats.num_implicit == sol.stats.num_implicit

    @pytest.mark.parametrize("name", ["robertson", "van_der_pol"])
    def test_published_values(self, name):
        case = stiff_problems.PROBLEMS[name]
        problem = nde.ODEProblem(case.f, case.y0, (0.0, case.t1))
        sol = nde.solve(problem, rtol=1e-6, atol=100.0 * np.asarray(case.atol))
        np.testing.assert_allclose(sol.y, case.y1, rtol=2e-5)
        assert 2 * sol.stats.num_implicit > sol.stats.num_accepted
        assert sol.stats.num_steps < 2000
        # Van der Pol's oscillator turns easy at its jumps, Robertson's reaction never.
        assert (sol.stats.num_switches > 2) == (name == "van_der_pol")

    def test_a_stiff_component_that_is_decades_smaller_is_noticed(self):
        """At tight tolerances too, where it moves by much less than the others."""
        case = stiff_problems.PROBLEMS["robertson"]
        problem = nde.ODEProblem(case.f, case.y0, (0.0, case.t1))
        sol = nde.solve(problem, rtol=1e-8, atol=case.atol)
        np.testing.assert_allclose(sol.y, case.y1, rtol=1e-6)
        # Explicit steps up to t = 1 alone take 700.
        assert sol.stats.num_accepted - sol.stats.num_implicit < 200
        assert sol.stats.num_switches == 1

    def test_each_trajectory_by_itself(self):
        strength = np.array([[1.0], [1e5], [10.0]])
        problem = nde.ODEProblem(stiff_for_a_while, np.ones((3, 1)), (0.0, 3.0), strength)
        keywords = {"batch_ndims": 1, "rtol": 1e-6, "atol": 1e-8}
        sol = nde.solve(problem, **keywords)
        np.testing.assert_allclose(sol.y[:, 0], np.cos(3.0), atol=1e-5)
        np.testing.assert_array_equal(sol.stats.num_switches, [0, 2, 0])
        easy = nde.solve(problem, "tsit5", **keywords)
        np.testing.assert_allclose(sol.y[0], easy.y[0], rtol=1e-12)
        np.testing.assert_array_equal(sol.stats.num_f[0], easy.stats.num_f[0])

    @pytest.mark.slow
    def test_in_a_graph_jointly_with_save_points_and_dense(self):
        strength = np.array([[1.0], [1e4]])
        problem = nde.ODEProblem(stiff_for_a_while, np.ones((2, 1)), (0.0, 3.0), strength)
        keywords = {"batch_ndims": 1, "rtol": 1e-6, "atol": 1e-8, "saveat": [1.0, 2.0, 3.0]}
        eager = nde.solve(problem, **keywords)
        plain = tf.function(lambda: nde.solve(problem, **keywords).y, autograph=False)
        np.testing.assert_allclose(plain(), eager.y, rtol=1e-10)
        joint = nde.solve(problem, step_control="joint", **keywords)
        np.testing.assert_allclose(joint.y, eager.y, atol=1e-5)
        dense = nde.solve(problem, dense=True, **keywords)
        np.testing.assert_allclose(dense(2.5)[:, 0], np.cos(2.5), atol=1e-5)


class TestGradients:
    @pytest.mark.slow
    def test_of_both_kinds_of_steps(self):
        """Central differences over the same steps, with so few checkpoints that most are redone."""
        problem = nde.ODEProblem(stiff_for_a_while, np.array([1.3]), (0.0, 3.0), 300.0)
        saves = [0.4, 1.4, 1.7, 2.9]
        sol = nde.solve(problem, rtol=1e-4, atol=1e-4, saveat=saves, checkpoints=4)
        assert sol.stats.num_switches == 2
        steps = sol.steps

        def loss(y0, p, saves, t0):
            again = problem.remake(y0=y0, p=p, t_span=(t0, 3.0))
            y = nde.solve(again, steps=steps, saveat=saves, checkpoints=4).y[:, 0]
            return tf.reduce_sum(tf.sin(3.0 * y) * tf.constant([1.0, 1e4, 1e4, 1.0], y.dtype))

        points = [tf.constant(point, tf.float64) for point in ([1.3], 300.0, saves)]
        check(lambda *points: loss(*points, tf.zeros((), tf.float64)), *map(np.asarray, points))
        start = tf.zeros((), tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(start)
            value = loss(*points, start)

        def along(t0):
            with tf.GradientTape():
                return loss(*points, tf.constant(t0))

        # The steps move with the start and cross the stiff phase elsewhere: a curved function.
        expected = central_differences(along, 0.0, relative=3e-6)
        np.testing.assert_allclose(tape.gradient(value, start), expected, rtol=1e-6)


class TestLayers:
    @pytest.mark.slow
    def test_a_layer(self, tmp_path):
        keras.utils.set_random_seed(0)
        inner = keras.layers.Dense(2, use_bias=False, kernel_initializer="zeros", dtype="float64")
        layer = nde.NeuralODE(inner, (0.0, 1.0), "auto", rtol=1e-6, atol=1e-9, dtype="float64")
        inputs = keras.Input((2,), dtype="float64")
        model = keras.Model(inputs, layer(inputs))
        inner.kernel.assign([[-1.0, 0.0], [0.0, -1e5]])
        y0 = np.array([[1.0, 1.0], [2.0, 1.0]])
        exact = np.exp(-1.0) * y0 * [1.0, 0.0]
        np.testing.assert_allclose(layer(y0), exact, atol=1e-5)
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert loaded.layers[-1].solver == "auto"
        np.testing.assert_allclose(loaded(y0), exact, atol=1e-5)
        model.export(tmp_path / "saved", verbose=False)
        served = tf.saved_model.load(str(tmp_path / "saved"))
        np.testing.assert_allclose(served.serve(tf.constant(y0)), exact, atol=1e-5)


class TestWhatAutoStandsFor:
    def test_a_mass_matrix_asks_for_rodas5p(self):
        problem = nde.ODEProblem(
            lambda t, y, p: -y, np.ones(2), (0.0, 1.0), mass_matrix=np.diag([1.0, 2.0])
        )
        sol = nde.solve(problem, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(sol.y, np.exp([-1.0, -0.5]), rtol=1e-5)
        assert sol.stats.num_implicit == sol.stats.num_accepted

    def test_constant_steps_and_other_adjoints_are_those_of_tsit5(self):
        problem = nde.ODEProblem(problems.decay, np.ones(1), (0.0, 1.0), 1.0)
        for keywords in ({"dt0": 0.1, "controller": "constant"}, {"adjoint": "backsolve"}):
            auto, plain = (nde.solve(problem, solver, **keywords) for solver in ("auto", "tsit5"))
            np.testing.assert_array_equal(auto.y, plain.y)

    def test_a_jacobian_is_used_where_it_helps(self):
        problem = nde.ODEProblem(
            stiff_problems.robertson, np.array([1.0, 0.0, 0.0]), (0.0, 1.0),
            jac_sparsity=[[1, 1, 1], [1, 1, 1], [0, 1, 0]],
        )  # fmt: skip
        sol = nde.solve(problem, rtol=1e-6, atol=[1e-10, 1e-14, 1e-10])
        exact = [0.9664597373330035, 3.0746265785787e-5, 0.0335095164012107]
        np.testing.assert_allclose(sol.y, exact, rtol=1e-5)

    def test_configs(self):
        solver = nde.solvers.Switching("dense")
        assert nde.solvers.get(nde.solvers.serialize(solver)) == solver
