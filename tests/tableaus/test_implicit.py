"""The tables of Rosenbrock and ESDIRK methods against the theory of order."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest

from keras_neuralde.tableaus import ESDIRK, ROSENBROCK, ESDIRKTableau, RosenbrockTableau

from . import rooted_trees

ROSENBROCKS = pytest.mark.parametrize("table", ROSENBROCK.values(), ids=ROSENBROCK.keys())
ESDIRKS = pytest.mark.parametrize("table", ESDIRK.values(), ids=ESDIRK.keys())
THETAS = pytest.mark.parametrize("theta", [1 / 7, 0.5, 0.9])


def square(rows):
    return [[*row, *[0] * (len(rows) - len(row))] for row in rows]


def defect(residuals, exact=False):
    worst = max(map(abs, residuals))
    return worst if exact or worst > 1e-11 else 0


def weights_at(dense, theta):
    return [sum(x * theta ** (k + 1) for k, x in enumerate(row)) for row in dense]


def rosenbrock_defects(table, weights, orders, theta=1.0):
    alpha, gammas, b = table.classical(weights)
    return [defect(rooted_trees.rosenbrock_residuals(alpha, gammas, b, n, theta)) for n in orders]


class TestRosenbrock:
    @ROSENBROCKS
    def test_step(self, table):
        defects = rosenbrock_defects(table, table.m, range(1, table.order + 2))
        assert defects[:-1] == [0] * table.order and defects[-1] > 1e-6

    @ROSENBROCKS
    def test_embedded_formula(self, table):
        m_hat = [x - y for x, y in zip(table.m, table.error, strict=True)]
        # The better of the two formulas is one order ahead of the other.
        order = table.error_order if table.error_order < table.order else table.order + 1
        defects = rosenbrock_defects(table, m_hat, range(1, order + 2))
        if table.name == "rosenbrock23":
            # The comparison formula of ode23s has order 3 only where J is constant enough.
            assert defects[:2] == [0, 0]
        else:
            assert defects[:-1] == [0] * order and defects[-1] > 1e-6

    @ROSENBROCKS
    @THETAS
    def test_continuous_extension(self, table, theta):
        weights = weights_at(table.dense, theta)
        defects = rosenbrock_defects(table, weights, range(1, table.dense_order + 2), theta)
        assert defects[:-1] == [0] * table.dense_order and defects[-1] > 1e-9

    @ROSENBROCKS
    def test_vanishes_at_infinity(self, table):
        """L-stability: R(z) → 0 for z → -∞, and |R| ≤ 1 on the imaginary axis."""
        assert abs(stability(table, -1e9)) < 1e-7
        assert all(abs(stability(table, 1j * x)) <= 1 + 1e-12 for x in np.logspace(-2, 4, 60))

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"alpha": (0.0, 0.4, 1.0)}, r"`alpha\[1\]` must be 0.5"),
            ({"d": (0.3, 0.0, 0.0)}, r"`d\[0\]` must be"),
            ({"m": (0.0, 1.0, 0.0)}, "dense"),
            ({"a": ((), (1.0, 1.0), (1.0, 1.0))}, r"`a\[1\]` must have 1 entries. Received: 2"),
            ({"error": (0.0,)}, "`error` must have one entry for each of the 3 stages"),
        ],
    )
    def test_refuses_what_does_not_fit(self, change, message):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(ROSENBROCK["rosenbrock23"], **change)


def stability(table, z):
    """R(z): one step of y' = λ y from 1 with z = h λ."""
    if isinstance(table, RosenbrockTableau):
        alpha, gammas, b = (np.array(part) for part in table.classical())
        inner = alpha + gammas
    else:
        inner, b = np.array(square(table.a), float), np.array(table.b, float)
    eye = np.eye(len(b))
    return 1 + z * b @ np.linalg.solve(eye - z * inner, np.ones(len(b)))


class TestESDIRK:
    @ESDIRKS
    def test_step(self, table):
        exact = isinstance(table.gamma, Fraction)
        residuals = [
            defect(rooted_trees.residuals(square(table.a), table.b, n), exact)
            for n in range(1, table.order + 2)
        ]
        assert residuals[:-1] == [0] * table.order and residuals[-1] > 1e-6

    @ESDIRKS
    def test_embedded_formula(self, table):
        b_hat = [x - y for x, y in zip(table.b, table.error, strict=True)]
        order = table.error_order if table.error_order < table.order else table.order + 1
        residuals = [
            defect(rooted_trees.residuals(square(table.a), b_hat, n)) for n in range(1, order + 2)
        ]
        assert residuals[:-1] == [0] * order and residuals[-1] > 1e-6

    @ESDIRKS
    @THETAS
    def test_continuous_extension(self, table, theta):
        order = table.dense_order or min(3, table.order)
        b = weights_at(table.interpolant(), theta)
        residuals = [
            defect(rooted_trees.residuals(square(table.a), b, n, theta))
            for n in range(1, 1 + order)
        ]
        assert residuals == [0] * order

    @ESDIRKS
    def test_vanishes_at_infinity_and_is_stable_on_the_imaginary_axis(self, table):
        assert abs(stability(table, -1e9)) < 1e-7
        assert all(abs(stability(table, 1j * x)) <= 1 + 1e-12 for x in np.logspace(-2, 4, 60))

    def test_explicit_companion(self):
        table = ESDIRK["kencarp4"]
        b = [float(x) for x in table.b]
        residuals = [
            defect(rooted_trees.residuals(square(table.explicit), b, n)) for n in range(1, 6)
        ]
        assert residuals[:-1] == [0] * 4 and residuals[-1] > 1e-6

    def test_gamma_of_kvaerno3_is_the_root(self):
        g = ESDIRK["kvaerno3"].gamma
        assert abs(g**3 - 3 * g**2 + 1.5 * g - 1 / 6) < 1e-15

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"c": (0, 0.5)}, r"the sum of `a\[1\]` must be 0.5"),
            ({"a": ((0,), (0.5, 0.5), (1,))}, "one entry for each"),
            ({"a": ((0,), (1,))}, r"`a\[1\]` must have 2 entries"),
            ({"error": (0.5, math.nan)}, "the sum of `error` must be 0"),
            ({"dense": ((1,), (0,))}, "must be given together"),
            ({"explicit": ((), (0.5,))}, r"the sum of `explicit\[1\]` must be 1"),
        ],
    )
    def test_refuses_what_does_not_fit(self, change, message):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(ESDIRK["implicit_euler"], **change)


@pytest.mark.parametrize("table", [*ROSENBROCK.values(), *ESDIRK.values()], ids=lambda t: t.name)
def test_names_its_source(table):
    assert any(character.isdigit() for character in table.source)
    assert isinstance(table, (RosenbrockTableau, ESDIRKTableau))
