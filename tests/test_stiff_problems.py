"""The stiff problems of the published test set, against its reference values."""

import numpy as np
import pytest

import keras_neuralde as nde
from tests.stiff_problems import PROBLEMS


def solve(name, solver, rtol=1e-8, **keywords):
    problem = PROBLEMS[name]
    ode = nde.ODEProblem(problem.f, problem.y0, (0.0, problem.t1))
    return nde.solve(ode, solver, rtol=rtol, atol=problem.atol, **keywords)


@pytest.mark.parametrize("name", PROBLEMS)
def test_rodas5p_reaches_the_published_values(name):
    sol = solve(name, "rodas5p")
    np.testing.assert_allclose(sol.y, PROBLEMS[name].y1, rtol=2e-6)
    assert sol.stats.num_steps < 2500


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("solver", ["kvaerno5", "kencarp4"])
def test_esdirk_methods_reach_the_published_values(name, solver):
    sol = solve(name, solver)
    np.testing.assert_allclose(sol.y, PROBLEMS[name].y1, rtol=2e-5)


@pytest.mark.parametrize("solver", ["rosenbrock23", "trbdf2", "kvaerno3"])
def test_low_orders_at_low_tolerances(solver):
    sol = solve("hires", solver, rtol=1e-5)
    np.testing.assert_allclose(sol.y, PROBLEMS["hires"].y1, rtol=5e-3)


def test_explicit_methods_cannot():
    sol = solve("van_der_pol", "tsit5", rtol=1e-4, max_steps=2000, throw=False)
    assert sol.status == nde.Status.MAX_STEPS
