"""Stiff problems with published values at the end, for any library of arrays.

From F. Mazzia & C. Magherini, "Test Set for Initial Value Problem Solvers", release 2.4, 2008
(archimede.uniba.it/~testset): the reference values there were computed by RADAU5 in quadruple
precision at tolerances of 1e-18.
"""

from typing import Any, NamedTuple

import numpy as np


class Problem(NamedTuple):
    """A stiff problem.

    Attributes:
        components: the derivatives of the components, as a function of the components.
        y0: the start, at time 0.
        t1: the end.
        y1: the state there.
        atol: absolute tolerances that go with rtol=1e-8.
    """

    components: Any
    y0: np.ndarray
    t1: float
    y1: np.ndarray
    atol: Any


def robertson(a, b, c, k1=0.04, k2=3e7, k3=1e4):
    """Three reactants, three rates."""
    return -k1 * a + k3 * b * c, k1 * a - k2 * b * b - k3 * b * c, k2 * b * b


def hires(y1, y2, y3, y4, y5, y6, y7, y8):
    """High irradiance responses of a plant: eight reactants (Schäfer 1975)."""
    binding = 280.0 * y6 * y8
    return (
        -1.71 * y1 + 0.43 * y2 + 8.32 * y3 + 0.0007,
        1.71 * y1 - 8.75 * y2,
        -10.03 * y3 + 0.43 * y4 + 0.035 * y5,
        8.32 * y2 + 1.71 * y3 - 1.12 * y4,
        -1.745 * y5 + 0.43 * y6 + 0.43 * y7,
        -binding + 0.69 * y4 + 1.71 * y5 - 0.43 * y6 + 0.69 * y7,
        binding - 1.81 * y7,
        -binding + 1.81 * y7,
    )


def oregonator(x, z, v):
    """The Belousov-Zhabotinskii reaction."""
    s, q, w = 77.27, 8.375e-6, 0.161
    return s * (z - x * z + x - q * x * x), (-z - x * z + v) / s, w * (x - v)


def van_der_pol(x, v):
    """The oscillator with ε = 1e-6."""
    return v, ((1.0 - x * x) * v - x) / 1e-6


# The 25 reactions of the pollution problem (Verwer 1994): rate constant, and the species
# consumed and produced, numbered from 1.
_REACTIONS = (
    (0.35, (1,), (2, 3)),
    (26.6, (2, 4), (1,)),
    (12300.0, (5, 2), (6, 1)),
    (0.86e-3, (7,), (5, 5, 8)),
    (0.82e-3, (7,), (8,)),
    (15000.0, (7, 6), (8, 5)),
    (0.13e-3, (9,), (10, 8, 5)),
    (24000.0, (9, 6), (11,)),
    (16500.0, (11, 2), (10, 1, 12)),
    (9000.0, (11, 1), (13,)),
    (0.022, (13,), (11, 1)),
    (12000.0, (10, 2), (14, 1)),
    (1.88, (14,), (7, 5)),
    (16300.0, (1, 6), (15,)),
    (4.8e6, (3,), (4,)),
    (0.35e-3, (4,), (16,)),
    (0.0175, (4,), (3,)),
    (1e8, (16,), (6, 6)),
    (4.44e11, (16,), (3,)),
    (1240.0, (17, 6), (5, 18)),
    (2.1, (19,), (2,)),
    (5.78, (19,), (1, 3)),
    (0.0474, (1, 4), (19,)),
    (1780.0, (19, 1), (20,)),
    (3.12, (20,), (19, 1)),
)


def pollution(*species):
    """Chemistry of polluted air: 20 species."""
    rates: list = [0.0 for _ in species]
    for constant, consumed, produced in _REACTIONS:
        rate = constant * species[consumed[0] - 1]
        if len(consumed) == 2:
            rate = rate * species[consumed[1] - 1]
        for number in consumed:
            rates[number - 1] = rates[number - 1] - rate
        for number in produced:
            rates[number - 1] = rates[number - 1] + rate
    return tuple(rates)


def _pollution_start():
    y0 = np.zeros(20)
    y0[[1, 3, 6, 7, 8, 16]] = 0.2, 0.04, 0.1, 0.3, 0.01, 0.007
    return y0


PROBLEMS = {
    "robertson": Problem(
        robertson,
        np.array([1.0, 0.0, 0.0]),
        1e11,
        np.array([0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050]),
        np.array([1e-14, 1e-20, 1e-8]),
    ),
    "hires": Problem(
        hires,
        np.array([1.0, 0, 0, 0, 0, 0, 0, 0.0057]),
        321.8122,
        np.array(
            [
                0.7371312573325668e-3, 0.1442485726316185e-3, 0.5888729740967575e-4,
                0.1175651343283149e-2, 0.2386356198831331e-2, 0.6238968252742796e-2,
                0.2849998395185769e-2, 0.2850001604814231e-2,
            ]
        ),
        1e-12,
    ),
    "oregonator": Problem(
        oregonator,
        np.array([1.0, 2.0, 3.0]),
        360.0,
        np.array([0.1000814870318523e1, 0.1228178521549917e4, 0.1320554942846706e3]),
        1e-8,
    ),
    "van_der_pol": Problem(
        van_der_pol,
        np.array([2.0, 0.0]),
        2.0,
        np.array([0.1706167732170483e1, -0.8928097010247975]),
        1e-8,
    ),
    "pollution": Problem(
        pollution,
        _pollution_start(),
        60.0,
        np.array(
            [
                0.5646255480022769e-1, 0.1342484130422339, 0.4139734331099427e-8,
                0.5523140207484359e-2, 0.2018977262302196e-6, 0.1464541863493966e-6,
                0.7784249118997964e-1, 0.3245075353396018, 0.7494013383880406e-2,
                0.1622293157301561e-7, 0.1135863833257075e-7, 0.2230505975721359e-2,
                0.2087162882798630e-3, 0.1396921016840158e-4, 0.8964884856898295e-2,
                0.4352846369330103e-17, 0.6899219696263405e-2, 0.1007803037365946e-3,
                0.1772146513969984e-5, 0.5682943292316392e-4,
            ]
        ),
        1e-18,
    ),
}  # fmt: skip
