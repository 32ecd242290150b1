"""The explicit tables against the theory of order and against an exact solution."""

import dataclasses
import itertools
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from keras_neuralde.tableaus import EXPLICIT, ButcherTableau

from . import rooted_trees

TABLES = pytest.mark.parametrize("table", EXPLICIT.values(), ids=EXPLICIT.keys())
ESTIMATING = pytest.mark.parametrize(
    "table",
    [table for table in EXPLICIT.values() if table.has_error],
    ids=[name for name, table in EXPLICIT.items() if table.has_error],
)
EXACT = {"euler", "midpoint", "heun", "ralston", "bosh3", "rk4", "dopri5"}

# Kutta's 3/8 rule: a table without a continuous extension of its own.
THREE_EIGHTHS = ButcherTableau(
    name="three_eighths",
    order=4,
    c=(0, Fraction(1, 3), Fraction(2, 3), 1),
    a=((), (Fraction(1, 3),), (Fraction(-1, 3), 1), (1, -1, 1)),
    b=(Fraction(1, 8), Fraction(3, 8), Fraction(3, 8), Fraction(1, 8)),
)


def numbers(table):
    """Every coefficient of a table."""
    rows = (table.c, table.b, table.error, table.error_damping, table.c_dense)
    return itertools.chain(*rows, *table.a, *table.a_dense, *table.dense)


def largest_residual(table, a, b, order, theta=1):
    """The largest defect among the conditions with `order` nodes; 0 below rounding."""
    worst = max(map(abs, rooted_trees.residuals(a, b, order, theta)))
    return worst if table.name in EXACT or worst > 1e-12 else 0


def weights_at(dense, theta):
    return [sum(x * theta ** (m + 1) for m, x in enumerate(row)) for row in dense]


def all_stages(table):
    c_extra, a_extra, dense = table.interpolant()
    return (*table.c, *c_extra), (*table.a, *a_extra), dense


class TestRegistry:
    def test_names(self):
        names = "euler midpoint heun ralston bosh3 rk4 dopri5 tsit5 vern7 dopri8"
        assert " ".join(EXPLICIT) == names
        assert all(name == table.name for name, table in EXPLICIT.items())

    @TABLES
    def test_names_its_source(self, table):
        assert any(character.isdigit() for character in table.source)

    @TABLES
    def test_exact_where_the_method_is(self, table):
        has_floats = any(isinstance(number, float) for number in numbers(table))
        assert has_floats == (table.name not in EXACT)

    def test_first_same_as_last_is_derived(self):
        found = {name for name, table in EXPLICIT.items() if table.first_same_as_last}
        assert found == {"bosh3", "dopri5", "tsit5", "vern7", "dopri8"}

    def test_needs_no_tensorflow(self):
        package = Path(sys.modules["keras_neuralde"].__file__).parent
        code = (
            "import sys, types\n"
            "package = types.ModuleType('keras_neuralde')\n"
            f"package.__path__ = [{str(package)!r}]\n"
            "sys.modules['keras_neuralde'] = package\n"
            "import keras_neuralde.tableaus\n"
            "assert 'tensorflow' not in sys.modules and 'numpy' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


class TestRootedTrees:
    def test_counts(self):
        # The known numbers of rooted trees with 1 to 9 nodes.
        counts = [len(rooted_trees.trees(n)) for n in range(1, 10)]
        assert counts == [1, 1, 2, 4, 9, 20, 48, 115, 286]
        assert all(len(set(rooted_trees.trees(n))) == len(rooted_trees.trees(n)) for n in range(10))

    def test_densities(self):
        tall, bushy = (((),),), ((), ())
        assert [rooted_trees.density(tree) for tree in ((), ((),), tall, bushy)] == [1, 2, 6, 3]


class TestOrder:
    @TABLES
    def test_step(self, table):
        defects = [
            largest_residual(table, table.a, table.b, order) for order in range(1, table.order + 2)
        ]
        assert defects[:-1] == [0] * table.order
        assert defects[-1] > 1e-6

    @ESTIMATING
    def test_embedded_formula(self, table):
        # DOP853 estimates with a fifth-order formula and damps with a third-order one.
        order = 5 if table.error_damping else table.error_order
        self._check_embedded(table, table.error, order)

    def test_damping_formula(self):
        table = EXPLICIT["dopri8"]
        self._check_embedded(table, table.error_damping, 3)
        # e5² / e3 falls like the square of h^6 over h^4.
        assert table.error_order + 1 == 2 * (5 + 1) - (3 + 1)

    @TABLES
    @pytest.mark.parametrize("theta", [Fraction(1, 7), Fraction(1, 2), Fraction(9, 10)])
    def test_continuous_extension(self, table, theta):
        theta = theta if table.name in EXACT else float(theta)
        _, a, dense = all_stages(table)
        b = weights_at(dense, theta)
        orders = range(1, table.dense_order + 2)
        defects = [largest_residual(table, a, b, order, theta) for order in orders]
        assert defects[:-1] == [0] * table.dense_order
        assert defects[-1] > 1e-9

    def _check_embedded(self, table, error, order):
        b_hat = [x - y for x, y in zip(table.b, error, strict=True)]
        defects = [largest_residual(table, table.a, b_hat, n) for n in range(1, order + 2)]
        assert defects[:-1] == [0] * order
        assert defects[-1] > 1e-6


class TestInterpolant:
    @TABLES
    def test_ends_of_the_step(self, table):
        c, _, dense = all_stages(table)
        slopes_at_start = [row[0] for row in dense]
        assert slopes_at_start == [1] + [0] * (len(c) - 1)
        own, extra = np.split(np.array(weights_at(dense, 1), float), [table.num_stages])
        np.testing.assert_allclose(own, np.array(table.b, float), rtol=0, atol=1e-12)
        np.testing.assert_allclose(extra, 0, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("name", ["bosh3", "dopri5", "tsit5", "vern7", "dopri8"])
    def test_slope_at_the_end(self, name):
        """Where the field at the end of the step is a stage, the interpolant is smooth there."""
        table = EXPLICIT[name]
        _, _, dense = all_stages(table)
        slopes = [sum((m + 1) * x for m, x in enumerate(row)) for row in dense]
        expected = [float(i == table.num_stages - 1) for i in range(len(dense))]
        np.testing.assert_allclose(np.array(slopes, float), expected, rtol=0, atol=2e-12)

    def test_hermite_adds_the_slope_at_the_end(self):
        c_extra, a_extra, dense = THREE_EIGHTHS.interpolant()
        assert (c_extra, a_extra) == ((1,), (THREE_EIGHTHS.b,))
        a = (*THREE_EIGHTHS.a, *a_extra)
        for theta in (Fraction(1, 7), Fraction(1, 2)):
            b = weights_at(dense, theta)
            defects = [max(map(abs, rooted_trees.residuals(a, b, n, theta))) for n in range(1, 5)]
            assert defects[:3] == [0, 0, 0] and defects[3] > 0
        assert [sum((m + 1) * x for m, x in enumerate(row)) for row in dense] == [0, 0, 0, 0, 1]

    def test_hermite_without_an_extra_stage(self):
        bosh3 = EXPLICIT["bosh3"]
        bare = dataclasses.replace(bosh3, dense=(), dense_order=None)
        assert bare.interpolant() == ((), (), bosh3.dense)

    def test_dopri8_agrees_with_scipy(self):
        integrate = pytest.importorskip("scipy.integrate")
        solver = integrate.DOP853(field, 0.0, exact(0.0), 2.0, first_step=0.5, rtol=1e3, atol=1e3)
        solver.step()
        y1, interpolate = take_step(EXPLICIT["dopri8"], 0.0, exact(0.0), solver.t)
        np.testing.assert_allclose(y1, solver.y, rtol=1e-13)
        theirs = solver.dense_output()
        for theta in np.linspace(0, 1, 11):
            expected = theirs(theta * solver.t)
            np.testing.assert_allclose(interpolate(theta), expected, rtol=1e-12, atol=1e-13)

    def test_dopri5_agrees_with_scipy(self):
        integrate = pytest.importorskip("scipy.integrate")
        solver = integrate.RK45(field, 0.0, exact(0.0), 2.0, first_step=0.5, rtol=1e3, atol=1e3)
        solver.step()
        y1, interpolate = take_step(EXPLICIT["dopri5"], 0.0, exact(0.0), solver.t)
        np.testing.assert_allclose(y1, solver.y, rtol=1e-13)
        theirs = solver.dense_output()
        for theta in np.linspace(0, 1, 11):
            np.testing.assert_allclose(interpolate(theta), theirs(theta * solver.t), rtol=1e-12)


# An eccentric Kepler orbit in a warped time s -> φ(s): nonlinear, coupled, with time in the field.
ECCENTRICITY = 0.3


def warp(s):
    return s + 0.3 * np.sin(s)


def exact(s):
    """Position and velocity from Kepler's equation E - e sin E = φ(s)."""
    mean = warp(s)
    anomaly = mean
    for _ in range(30):
        residual = anomaly - ECCENTRICITY * np.sin(anomaly) - mean
        anomaly = anomaly - residual / (1 - ECCENTRICITY * np.cos(anomaly))
    axis = np.sqrt(1 - ECCENTRICITY**2)
    position = [np.cos(anomaly) - ECCENTRICITY, axis * np.sin(anomaly)]
    velocity = np.array([-np.sin(anomaly), axis * np.cos(anomaly)])
    return np.concatenate([position, velocity / (1 - ECCENTRICITY * np.cos(anomaly))])


def field(s, y):
    position, velocity = y[:2], y[2:]
    gravity = -position / np.sum(position**2) ** 1.5
    return (1 + 0.3 * np.cos(s)) * np.concatenate([velocity, gravity])


def take_step(table, t, y, h):
    """The textbook formula, straight from the table: y1 and the function of θ."""
    c, a, dense = all_stages(table)
    ks = []
    for node, row in zip(c, a, strict=True):
        increment = sum((float(x) * k for x, k in zip(row, ks, strict=True)), np.zeros_like(y))
        ks.append(field(t + float(node) * h, y + h * increment))

    def combine(weights):
        return y + h * sum(float(x) * k for x, k in zip(weights, ks, strict=False))

    return combine(table.b), lambda theta: combine(weights_at(dense, theta))


def errors(table, steps):
    """The largest errors at the ends of the steps and within them."""
    h = 2.0 / steps
    y, at_ends, within = exact(0.0), 0.0, 0.0
    for i in range(steps):
        t = i * h
        y, interpolate = take_step(table, t, y, h)
        at_ends = max(at_ends, np.abs(y - exact(t + h)).max())
        for theta in (0.2, 0.5, 0.8):
            within = max(within, np.abs(interpolate(theta) - exact(t + theta * h)).max())
    return np.array([at_ends, within])


class TestConvergence:
    STEPS = {1: 800, 2: 200, 3: 100, 4: 50, 5: 40, 7: 12, 8: 10}

    @TABLES
    def test_observed_order(self, table):
        steps = self.STEPS[table.order]
        coarse, fine = errors(table, steps), errors(table, 2 * steps)
        observed = np.log2(coarse / fine)
        # An extension of one order less is uniform enough to keep the order of the method.
        expected = [table.order, min(table.order, table.dense_order + 1)]
        assert np.all(fine > 1e-14), "the errors must stay clear of rounding"
        # From below only: the leading error term of Verner's pair is so small that the next one
        # shows, and that no table is of a higher order than it says follows from the trees.
        assert np.all(observed > np.subtract(expected, 0.35))


class TestRefusals:
    HEUN = {"name": "mine", "order": 2, "c": (0, 1), "a": ((), (1,)), "b": (0.5, 0.5)}

    def test_accepts_the_table_that_the_others_spoil(self):
        assert ButcherTableau(**self.HEUN).num_stages == 2

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"order": 0}, "`order` must be a positive integer. Received: 0"),
            ({"c": (0, 0.5)}, r"the sum of `a\[1\]` must be 0.5. Received: 1"),
            ({"c": (0,)}, "Received: 1, 2 and 2 entries"),
            ({"a": ((), (1, 0))}, r"`a\[1\]` must have 1 entries. Received: 2"),
            ({"b": (0.5, 0.5 + 1e-9)}, "the sum of `b` must be 1"),
            ({"b": (0.5, float("nan"))}, "the sum of `b` must be 1. Received: nan"),
            ({"b": (Fraction(1, 2), Fraction(1, 2) + Fraction(1, 10**20))}, "the sum of `b`"),
            ({"error": (0.5,), "error_order": 1}, "`error` must be empty or have 2 weights"),
            ({"error": (0.5, -0.4), "error_order": 1}, "the sum of `error` must be 0"),
            ({"error": (0.5, -0.5)}, "`error` and `error_order` must be given together"),
            ({"error_order": 1}, "`error` and `error_order` must be given together"),
            ({"error_damping": (0.5, -0.5)}, "`error_damping` needs an `error`"),
            ({"c_dense": (1,)}, "Received: 1 and 0 entries"),
            ({"c_dense": (1,), "a_dense": ((0.5, 0.5),)}, "need the polynomials of `dense`"),
            ({"dense": ((1, -0.5), (0, 0.5))}, "must be given together"),
            ({"dense": ((1, -0.5),), "dense_order": 2}, "`dense` must have 2 rows"),
            ({"dense": ((1, -0.5), (0.5,)), "dense_order": 2}, "rows of one length"),
            ({"dense": ((1, -0.4), (0, 0.5)), "dense_order": 2}, r"`dense\[0\]` at θ = 1"),
            (
                {"dense": ((1, 0), (0, 0), (0, 0)), "dense_order": 1}
                | {"c_dense": (1,), "a_dense": ((0.5, 0.4),)},
                r"the sum of `a_dense\[0\]` must be 1",
            ),
        ],
    )
    def test_says_what_does_not_fit(self, change, message):
        with pytest.raises(ValueError, match=message):
            ButcherTableau(**(self.HEUN | change))

    def test_names_the_table(self):
        with pytest.raises(ValueError, match="In the Butcher table 'mine'"):
            ButcherTableau(**(self.HEUN | {"order": 0}))
