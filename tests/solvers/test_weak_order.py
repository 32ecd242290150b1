"""Weak orders of all stochastic methods, from laws that are computed instead of sampled.

A step is taken once for each node of a Gauss-Hermite rule over its increments and areas, so that an
expectation over the step is a sum without statistical error. Two consequences are compared with
closed forms: the error of one step of a nonlinear equation, whose expectations are the series
Σ h^k L^k φ / k! of the generator L (a local order p + 1 makes a weak order p: Milstein, "Weak
approximation of solutions of systems of stochastic differential equations", 1985), and the first
two moments of many steps of a linear equation, which are powers of matrices.
"""

import collections
import functools
import itertools
import math
import re

import numpy as np
import pytest
import tensorflow as tf
from numpy.polynomial import hermite_e
from scipy import linalg

from keras_neuralde import solvers
from keras_neuralde.brownian import Increment
from keras_neuralde.solvers.sde import STOCHASTIC, EulerMaruyama

Y0 = np.array([0.6, -0.4])


class Driven:
    """What a step sees as its equation, driven by given noise.

    Args:
        f: the drift, a function of `(t, y)`.
        g: the diffusion, likewise.
        w: `(rows, components)`.
        area: the same shape.
    """

    def __init__(self, f, g, w, area):
        self.drift, self.diffusion = f, g
        self.increment = Increment(tf.constant(w), tf.constant(area))

    def noise(self, t, t_next):
        return self.increment


def nodes(components, h, count=9):
    """Increments and areas of a step, `(rows, components)` each, and their weights `(rows,)`."""
    points, weights = hermite_e.hermegauss(count)
    weights = weights / weights.sum()
    z = np.stack(np.meshgrid(*[points] * (2 * components), indexing="ij"), -1)
    z = z.reshape(-1, 2 * components)
    each = np.stack(np.meshgrid(*[weights] * (2 * components), indexing="ij"), -1)
    w, area = np.sqrt(h) * z[:, :components], np.sqrt(h / 12.0) * z[:, components:]
    return w, area, each.reshape(-1, 2 * components).prod(axis=1)


def step(method, driven, h, y):
    """One step of all rows from t = 0."""
    t = tf.zeros(len(y), tf.float64)
    y = tf.constant(y)
    proposal = method.step(driven, t, t + h, y, method.init(driven, t, y), False)
    return proposal.y1.numpy()


# Polynomials in (t, x, y) are dictionaries from powers to coefficients.
def poly(**terms):
    """From names: `x2y=3.0` is 3 x² y, and `one` the constant."""
    found = {}
    for name, coefficient in terms.items():
        powers = {"t": 0, "x": 0, "y": 0}
        for letter, digit in re.findall(r"([txy])(\d?)", "" if name == "one" else name):
            powers[letter] = int(digit or 1)
        found[tuple(powers.values())] = coefficient
    return found


def plus(*polys):
    found = collections.Counter()
    for one in polys:
        for powers, coefficient in one.items():
            found[powers] += coefficient
    return dict(found)


def product(*polys):
    found = {(0, 0, 0): 1.0}
    for one in polys:
        pairs = list(itertools.product(found.items(), one.items()))
        found = plus(*({tuple(np.add(i, j).tolist()): a * b} for (i, a), (j, b) in pairs))
    return found


def partial(poly, axis):
    down = tuple(np.eye(3, dtype=int)[axis])
    return {
        tuple(np.subtract(powers, down).tolist()): powers[axis] * coefficient
        for powers, coefficient in poly.items()
        if powers[axis]
    }


def evaluate(poly, t, x, y):
    """For numbers, arrays or tensors."""
    return sum((c * t**i * x**j * y**k for (i, j, k), c in poly.items()), 0.0 * x)


NOTHING, HALF = poly(), poly(one=0.5)
DRIFT = [
    poly(one=0.3, x=-0.8, y=0.5, xy=-0.4, t=0.6, x3=-0.2),
    poly(one=-0.2, x=-0.6, y=-0.5, x2=0.3, ty=0.4),
]
#: The matrices of the noise, rows of columns.
DIFFUSION = {
    "diagonal": [
        [poly(one=0.4, x=0.5, x2=0.3, t=0.3), NOTHING],
        [NOTHING, poly(one=0.5, y=-0.4, y2=0.2, ty=0.2)],
    ],
    # Each component's diffusion reads the other component, so that the noises do not commute.
    "crossing": [
        [poly(one=0.4, x=0.5, y=0.6, xy=0.3), NOTHING],
        [NOTHING, poly(one=0.5, x=-0.7, y=0.4, x2=0.2)],
    ],
    "scalar": [
        [poly(one=0.4, x=0.5, y=0.3, xy=0.2, t=0.3)],
        [poly(one=0.3, x=0.4, y=-0.5, y2=0.2)],
    ],
    "additive": [[poly(one=0.5, t=0.4), poly(one=0.2)], [poly(one=-0.3, t2=0.5), poly(one=0.4)]],
    "general": [
        [poly(one=0.4, x=0.3, t=0.3), poly(y=0.6, x2=0.2)],
        [poly(x=0.7, xy=0.2), poly(one=0.3, y=-0.4)],
    ],
}  # fmt: skip
FUNCTIONS = [poly(x=1.0), poly(y=1.0), poly(x2=1.0), poly(xy=1.0), poly(y2=1.0), poly(x3=1.0)]


def generator(noise, interpretation):
    """L as a function from polynomials to polynomials."""
    matrix = DIFFUSION[noise]
    columns = range(len(matrix[0]))
    drift = list(DRIFT)
    if interpretation == "stratonovich":
        drift = [
            plus(
                drift[i],
                *(
                    product(HALF, matrix[j][k], partial(matrix[i][k], 1 + j))
                    for j in range(2)
                    for k in columns
                ),
            )
            for i in range(2)
        ]

    def apply(phi):
        terms = [partial(phi, 0)]
        for i in range(2):
            slope = partial(phi, 1 + i)
            terms.append(product(drift[i], slope))
            for j in range(2):
                bend = partial(slope, 1 + j)
                terms += [product(HALF, matrix[i][k], matrix[j][k], bend) for k in columns]
        return plus(*terms)

    return apply


@functools.cache
def derivatives(noise, interpretation, count=6):
    """L^k φ at the start for k from 0 and each of `FUNCTIONS`."""
    apply, rows = generator(noise, interpretation), []
    for phi in FUNCTIONS:
        rows.append([])
        for _ in range(count):
            rows[-1].append(evaluate(phi, 0.0, *Y0))
            phi = apply(phi)
    return np.array(rows)


def error_of_a_step(method, noise, interpretation, h):
    """The largest error of the expectations of `FUNCTIONS` after one step."""
    matrix = DIFFUSION[noise]
    w, area, weights = nodes(len(matrix[0]), h)

    def f(t, y):
        return tf.stack([evaluate(one, t, y[:, 0], y[:, 1]) for one in DRIFT], -1)

    def g(t, y):
        rows = [[evaluate(one, t, y[:, 0], y[:, 1]) for one in row] for row in matrix]
        if noise in ("diagonal", "crossing"):
            return tf.stack([rows[0][0], rows[1][1]], -1)
        if noise == "scalar":
            return tf.stack([rows[0][0], rows[1][0]], -1)
        return tf.stack([tf.stack(row, -1) for row in rows], 1)

    y = np.tile(Y0, (len(w), method.copies))
    x, y, *_ = step(method, Driven(f, g, w, area), h, y).T
    found = [weights @ evaluate(phi, h, x, y) for phi in FUNCTIONS]
    table = derivatives(noise, interpretation)
    powers = [h**k / math.factorial(k) for k in range(table.shape[1])]
    return np.max(np.abs(found - table @ powers))


# dz = A z dt + Σ B_k z dW_k for z = (x, y, 1).
LINEAR = np.array([[-0.7, 0.4, 0.5], [-0.5, -0.3, 0.2], [0.0, 0.0, 0.0]])
LINEAR_NOISE = {
    "diagonal": [[[0.6, 0, 0.2], [0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0.5, -0.3], [0, 0, 0]]],
    "crossing": [[[0.4, 0.5, 0.2], [0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0.6, 0.3, -0.3], [0, 0, 0]]],
    "scalar": [[[0.5, 0.3, 0.2], [-0.4, 0.3, 0.1], [0, 0, 0]]],
    "additive": [[[0, 0, 0.4], [0, 0, 0.2], [0, 0, 0]], [[0, 0, -0.3], [0, 0, 0.5], [0, 0, 0]]],
    "general": [[[0.5, 0, 0.2], [0.4, 0, 0], [0, 0, 0]], [[0, 0.6, 0], [0, 0.3, 0.2], [0, 0, 0]]],
}


def moments(method, noise, steps):
    """E z and E z zᵀ at t = 1 after equal steps of the linear equation."""
    h = 1.0 / steps
    parts = np.array(LINEAR_NOISE[noise], float)[:, :2]
    w, area, weights = nodes(len(parts), h)
    size = 2 * method.copies
    # The step is affine: it is known from where it takes zero and the unit vectors.
    starts = np.concatenate([np.zeros((1, size)), np.eye(size)])
    rows = len(weights)
    w, area = (np.repeat(x, size + 1, axis=0) for x in (w, area))

    def f(t, y):
        return y @ LINEAR[:2, :2].T + LINEAR[:2, 2]

    def g(t, y):
        columns = tf.stack([y @ part[:, :2].T + part[:, 2] for part in parts], -1)
        if noise in ("diagonal", "crossing"):
            return tf.linalg.diag_part(columns)
        return columns[..., 0] if noise == "scalar" else columns

    y1 = step(method, Driven(f, g, w, area), h, np.tile(starts, (rows, 1)))
    y1 = y1.reshape(rows, size + 1, size)
    matrices = np.zeros((rows, size + 1, size + 1))
    matrices[:, :size, size] = y1[:, 0]
    matrices[:, :size, :size] = np.swapaxes(y1[:, 1:] - y1[:, :1], 1, 2)
    matrices[:, size, size] = 1.0
    squares = np.einsum("n,nij,nkl->ikjl", weights, matrices, matrices)
    squares = squares.reshape((size + 1) ** 2, -1)
    z = np.append(np.tile(Y0, method.copies), 1.0)
    found = np.linalg.matrix_power(squares, steps) @ np.kron(z, z)
    # Of the products with 1, and of the first copies among themselves.
    found = found.reshape(size + 1, size + 1)
    return found[:2][:, [0, 1, size]]


def exact_moments(noise, interpretation):
    parts = np.array(LINEAR_NOISE[noise], float)
    drift = LINEAR + 0.5 * sum(part @ part for part in parts) * (interpretation != "ito")
    both = np.kron(drift, np.eye(3)) + np.kron(np.eye(3), drift)
    both = both + sum(np.kron(part, part) for part in parts)
    z = np.append(Y0, 1.0)
    return (linalg.expm(both) @ np.kron(z, z)).reshape(3, 3)[:2]


def error_of_moments(method, noise, interpretation, steps):
    return np.max(np.abs(moments(method, noise, steps) - exact_moments(noise, interpretation)))


def cases():
    for name, method in STOCHASTIC.items():
        for interpretation in method.interpretations:
            crossing = ["crossing"] if "diagonal" in method.noises else []
            for noise in (*method.noises, *crossing):
                yield pytest.param(
                    name, interpretation, noise, id=f"{name}-{interpretation}-{noise}"
                )


def promised(method, noise):
    """The declared weak order; 1 where the declaration does not hold, as the page says."""
    if noise == "crossing":
        return 1.0
    return (noise == "additive" and method.weak_order_additive) or method.weak_order


def local_order(method, noise, interpretation):
    # `sosri` comes to its order late where noises do not commute.
    sizes = (2.0**-12, 2.0**-14) if noise == "crossing" else (2.0**-8, 2.0**-10)
    errors = [error_of_a_step(method, noise, interpretation, h) for h in sizes]
    return np.log2(errors[0] / errors[1]) / 2 - 1


def global_order(method, noise, interpretation):
    counts = (1024, 4096) if noise == "crossing" else (64, 256)
    errors = [error_of_moments(method, noise, interpretation, steps) for steps in counts]
    return np.log2(errors[0] / errors[1]) / 2


@pytest.mark.parametrize(("name", "interpretation", "noise"), list(cases()))
def test_weak_order(name, interpretation, noise):
    """What is declared and no more, so that each order would fail as that of one more."""
    method = solvers.get(name).interpreted(interpretation)
    order = promised(method, noise)
    for observed in (local_order, global_order):
        assert abs(observed(method, noise, interpretation) - order) < 0.1, observed.__name__


class Late(EulerMaruyama):
    """A drift that is wrong by a tenth."""

    name = "late"

    def _propose(self, g, t, t_next, y, h):
        return super()._propose(g, t, t_next, y, 1.1 * h)


def test_a_wrong_drift_has_no_order():
    for noise in Late.noises:
        assert abs(local_order(Late(), noise, "ito")) < 0.1
        assert abs(global_order(Late(), noise, "ito")) < 0.1


def test_the_wrong_integral_has_no_order():
    """Itô's method judged by the Stratonovich solution."""
    assert abs(global_order(EulerMaruyama(), "general", "stratonovich")) < 0.1
    assert abs(local_order(EulerMaruyama(), "general", "stratonovich")) < 0.1
