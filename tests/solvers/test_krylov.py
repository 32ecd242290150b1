"""GMRES alone, and inside of implicit methods against elimination."""

import types

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde.solvers.iteration_matrix import LARGE
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


def spectral(p):
    """The inverse of 1 - s p L for the ring's Laplacian L, by its eigenvectors."""
    eye = np.eye(30)
    values, vectors = np.linalg.eigh(np.roll(eye, 1, 1) - 2.0 * eye + np.roll(eye, -1, 1))

    def preconditioner(t, y, s, b):
        scaled = tf.linalg.matvec(vectors, b, transpose_a=True) / (1.0 - s[:, None] * p * values)
        return tf.linalg.matvec(vectors, scaled)

    return preconditioner


def solve_with(preconditioner, p=500.0, **keywords):
    """With so few directions that GMRES by itself does not arrive."""
    linear = nde.solvers.LinearSolver("krylov", 6, 1, preconditioner)
    problem = nde.ODEProblem(ring, ring_state(2, 30), (0.0, 1.0), p)
    solver = nde.solvers.Rosenbrock("rosenbrock23", linear)
    return nde.solve(problem, solver, batch_ndims=1, rtol=1e-5, atol=1e-5, **keywords)


def test_a_preconditioner_saves_iterations_and_changes_nothing_else():
    with_it = solve_with(spectral(500.0))
    problem = nde.ODEProblem(ring, ring_state(2, 30), (0.0, 1.0), 500.0)
    dense = nde.solve(problem, "rosenbrock23", batch_ndims=1, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(with_it.y, dense.y, atol=1e-6)
    np.testing.assert_array_less(np.abs(with_it.stats.num_steps - dense.stats.num_steps), 3)
    without = solve_with(None, throw=False)
    assert np.all(without.stats.num_steps > 2 * with_it.stats.num_steps)


def test_a_system_that_gmres_does_not_solve_is_named():
    """Constant steps, which cannot become smaller until it does."""
    sol = solve_with(None, dt0=0.1, controller="constant", throw=False)
    np.testing.assert_array_equal(sol.status, [nde.Status.GMRES_STALLED] * 2)
    assert np.isnan(sol.y).all()


@pytest.mark.slow
def test_the_gradient_through_a_preconditioner():
    gradients = []
    for preconditioned in (False, True):
        p = tf.constant(500.0, tf.float64)
        linear = nde.solvers.LinearSolver("krylov", 6, 1, spectral(500.0))
        solver = nde.solvers.Rosenbrock("rosenbrock23", linear if preconditioned else "dense")
        with tf.GradientTape() as tape:
            tape.watch(p)
            problem = nde.ODEProblem(ring, ring_state(2, 30), (0.0, 0.3), p)
            y = nde.solve(problem, solver, batch_ndims=1, rtol=1e-8, atol=1e-8).y
            loss = tf.reduce_sum(tf.sin(y))
        gradients.append(tape.gradient(loss, p))
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-5)


@pytest.mark.slow
def test_a_gradient_that_gmres_does_not_find_is_nan():
    """Few directions are enough for the states at loose tolerances, but not for the gradient."""
    linear = nde.solvers.LinearSolver("krylov", size=2, restarts=1)
    solver = nde.solvers.DiagonallyImplicit("trbdf2", linear_solver=linear)
    y0 = tf.constant(ring_state(2, 30))
    with tf.GradientTape() as tape:
        tape.watch(y0)
        problem = nde.ODEProblem(ring, y0, (0.0, 0.1), 100.0)
        sol = nde.solve(problem, solver, batch_ndims=1, rtol=1e-2, atol=1e-2)
        loss = tf.reduce_sum(sol.y**2)
    assert not np.any(sol.status)
    assert np.all(np.isnan(tape.gradient(loss, y0)))


def test_a_solution_that_is_given():
    """A linear ring, whose systems the eigenvectors solve exactly: states and gradient."""

    def heat(t, y, p):
        return p * (tf.roll(y, 1, -1) - 2.0 * y + tf.roll(y, -1, -1))

    found = []
    given = nde.solvers.LinearSolver("given", preconditioner=spectral(500.0))
    for linear in ("dense", given):
        y0, p = tf.constant(ring_state(2, 30)), tf.constant(500.0, tf.float64)
        solver = nde.solvers.DiagonallyImplicit("trbdf2", linear_solver=linear)
        with tf.GradientTape() as tape:
            tape.watch([y0, p])
            problem = nde.ODEProblem(heat, y0, (0.0, 0.01), p)
            y = nde.solve(problem, solver, batch_ndims=1, rtol=1e-6, atol=1e-6).y
            loss = tf.reduce_sum(tf.sin(y))
        found.append([y, *tape.gradient(loss, [y0, p])])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


def test_preconditioners_of_a_wrong_kind():
    with pytest.raises(ValueError, match="needs a `preconditioner`"):
        nde.solvers.LinearSolver("given")
    with pytest.raises(TypeError, match="`preconditioner` must be a function"):
        nde.solvers.LinearSolver("krylov", preconditioner=3.0)
    with pytest.raises(ValueError, match="must return the structure of `y`"):
        solve_with(lambda t, y, s, b: {"a": b})


def test_who_iterates():
    """By default large systems of which nothing is told."""

    def field(size, **told):
        told = {"jacobian": None, "sparsity": None} | told
        return types.SimpleNamespace(size=size, implicit=types.SimpleNamespace(**told))

    iterates = nde.solvers.LinearSolver().iterates
    assert iterates(field(LARGE)) and not iterates(field(LARGE - 1))
    assert not iterates(field(LARGE, sparsity=np.eye(LARGE)))
    assert not nde.solvers.LinearSolver("dense").iterates(field(LARGE))
    assert nde.solvers.LinearSolver("krylov").iterates(field(3))


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
    with pytest.raises(ValueError, match="'auto', 'dense', 'krylov' or 'given'"):
        nde.solvers.Rosenbrock(linear_solver="lu")
    with pytest.raises(ValueError, match="`size` must be an integer of at least 1"):
        nde.solvers.LinearSolver("krylov", size=0)
    problem = nde.ODEProblem(ring, np.ones(4), (0.0, 1.0), 1.0, jac_sparsity=np.ones((4, 4)))
    with pytest.raises(ValueError, match="leave out `jacobian`"):
        nde.solve(problem, nde.solvers.Rosenbrock(linear_solver="krylov"))
    solver = nde.solvers.Rosenbrock(linear_solver=nde.solvers.LinearSolver("krylov", size=7))
    assert nde.solvers.get(nde.solvers.serialize(solver)) == solver
    assert solver != nde.solvers.get("rodas5p")
