"""GMRES alone, and inside of implicit methods against elimination."""

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde.solvers.krylov import gmres
from tests.solvers.test_implicit import ring, ring_state


@pytest.mark.parametrize("jit", [False, True])
def test_every_row_is_solved_to_its_limit(jit):
    random = np.random.default_rng(0)
    matrix = np.eye(12) + 0.3 * random.normal(size=(4, 12, 12))
    matrix[1] = np.eye(12)  # done after one direction
    matrix[2] = np.diag([1e3, *np.ones(11)])  # after two
    b = random.normal(size=(4, 12))
    limit = np.array([1e-10, 1e-10, 1e-8, 1e-2])

    @tf.function(jit_compile=jit, autograph=False)
    def solve(matrix, b, limit):
        return gmres(lambda x: tf.linalg.matvec(matrix, x), b, limit, 5, 40)

    x, ok = solve(matrix, b, limit)
    residual = np.linalg.norm(b - np.einsum("kij,kj->ki", matrix, x), axis=1)
    assert np.all(ok) and np.all(residual <= limit)


def test_what_cannot_be_solved_is_said():
    singular = tf.constant([[[1.0, 0.0], [0.0, 0.0]]], tf.float64)
    b = tf.constant([[1.0, 1.0]], tf.float64)
    x, ok = gmres(lambda x: tf.linalg.matvec(singular, x), b, tf.constant([1e-6], tf.float64), 2, 3)
    assert not ok[0] and np.all(np.isfinite(x))


@pytest.mark.parametrize("name", ["rosenbrock23", "kvaerno3"])
def test_same_numbers_as_by_elimination(name):
    table = {"rosenbrock23": nde.solvers.Rosenbrock, "kvaerno3": nde.solvers.DiagonallyImplicit}
    y0 = ring_state(2, 30)
    problem = nde.ODEProblem(ring, y0, (0.0, 1.0), 50.0)
    keywords = {"batch_ndims": 1, "rtol": 1e-5, "atol": 1e-5}
    dense = nde.solve(problem, name, **keywords)
    krylov = nde.solve(problem, table[name](name, linear_solver="krylov"), **keywords)
    np.testing.assert_allclose(krylov.y, dense.y, atol=1e-6)
    difference = np.abs(krylov.stats.num_steps - dense.stats.num_steps)
    assert np.all(difference <= 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rosenbrock23", "trbdf2"])
def test_gradients_as_by_elimination(name):
    kind = nde.solvers.Rosenbrock if name == "rosenbrock23" else nde.solvers.DiagonallyImplicit
    gradients = []
    for linear_solver in ("dense", "krylov"):
        y0, p = tf.constant(ring_state(1, 20)), tf.constant(50.0, tf.float64)
        with tf.GradientTape() as tape:
            tape.watch([y0, p])
            problem = nde.ODEProblem(ring, y0, (0.0, 0.3), p)
            solver = kind(name, linear_solver=linear_solver)
            sol = nde.solve(problem, solver, batch_ndims=1, rtol=1e-8, atol=1e-8)
            loss = tf.reduce_sum(tf.sin(sol.y))
        gradients.append(tape.gradient(loss, [y0, p]))
    for dense, krylov in zip(*gradients, strict=True):
        np.testing.assert_allclose(krylov, dense, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_a_thousand_states_go_through_gmres_by_default():
    n = 1000
    grid = np.arange(n) / n
    y0 = np.sin(2 * np.pi * grid)
    rate = 4.0 * np.sin(np.pi / n) ** 2  # of the discrete Laplacian on this mode

    def heat(t, y, p):
        return p * (tf.roll(y, 1, -1) - 2.0 * y + tf.roll(y, -1, -1))

    solver = nde.solvers.get("rodas5p")
    problem = nde.ODEProblem(heat, y0, (0.0, 1.0), 1.0 / rate)
    sol = nde.solve(problem, solver, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(sol.y, np.exp(-1.0) * y0, atol=1e-5)
    assert sol.stats.num_steps < 60


def test_refusals():
    with pytest.raises(ValueError, match="'auto', 'dense' or 'krylov'"):
        nde.solvers.Rosenbrock(linear_solver="lu")
    with pytest.raises(ValueError, match="`size` must be a positive integer"):
        nde.solvers.LinearSolver("krylov", size=0)
    problem = nde.ODEProblem(ring, np.ones(4), (0.0, 1.0), 1.0, jac_sparsity=np.ones((4, 4)))
    with pytest.raises(ValueError, match="leave out `jacobian`"):
        nde.solve(problem, nde.solvers.Rosenbrock(linear_solver="krylov"))
    solver = nde.solvers.Rosenbrock(linear_solver=nde.solvers.LinearSolver("krylov", size=7))
    assert nde.solvers.get(nde.solvers.serialize(solver)) == solver
    assert solver != nde.solvers.get("rodas5p")
