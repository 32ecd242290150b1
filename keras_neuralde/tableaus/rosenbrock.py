"""Rosenbrock methods: their tables, which check themselves, and the methods themselves."""

import dataclasses
import math
from collections.abc import Sequence

_FLOAT_TOLERANCE = 1e-11


@dataclasses.dataclass(frozen=True)
class RosenbrockTableau:
    r"""A Rosenbrock method with its error estimate and its continuous extension.

    One step from `(t, y)` over `h` of M y' = f(t, y) is, with s stages, J = ∂f/∂y and f_t = ∂f/∂t
    both at `(t, y)` (Hairer & Wanner, "Solving Ordinary Differential Equations II", 2nd ed. 1996,
    section IV.7, equation 7.25),

        (M / (h γ) - J) u_i = f(t + α_i h, y + Σ_j a_ij u_j) + M Σ_j (c_ij / h) u_j + h d_i f_t,
        y1 = y + Σ_i m_i u_i,
        error = Σ_i (m_i - m̂_i) u_i,
        y(t + θ h) ≈ y + Σ_i m_i(θ) u_i,        m_i(θ) = Σ_k dense[i][k] θ^(k+1).

    Every sequence is a tuple of floats. A table refuses to be built if its rows do not fit
    together: the nodes α and the sums d follow from a and c, and are compared with those given.

    Args:
        name: the string by which the method is known, such as `"rodas5p"`.
        order: the order of `m`.
        gamma: γ, the same in every stage.
        alpha: the s nodes, the first of them 0.
        d: the s factors of the time derivative.
        a: s rows; row i has i entries.
        c: s rows; row i has i entries.
        m: the s weights.
        error: `m - m̂`, s weights.
        error_order: the error estimate falls like `h^(error_order + 1)`.
        dense: one row of polynomial coefficients for each stage, all of one length, that sum to
            the stage's weight.
        dense_order: the order up to which the m_i(θ) satisfy the order conditions at every θ.
        source: the publication the numbers come from.

    Raises:
        ValueError: if the numbers do not fit together; the message names the part at fault.

    Example:

    >>> rosenbrock_euler = RosenbrockTableau(
    ...     name="mine", order=1, gamma=1.0, alpha=(0.0,), d=(1.0,), a=((),), c=((),), m=(1.0,),
    ...     error=(0.0,), error_order=1, dense=((1.0,),), dense_order=1,
    ... )
    >>> rosenbrock_euler.num_stages, rosenbrock_euler.first_same_as_last
    (1, False)
    """

    name: str
    order: int
    gamma: float
    alpha: tuple
    d: tuple
    a: tuple
    c: tuple
    m: tuple
    error: tuple
    error_order: int
    dense: tuple
    dense_order: int
    source: str = ""

    def __post_init__(self):
        """Refuses a table whose parts do not fit together."""
        s = self.num_stages
        for part in ("alpha", "d", "a", "c", "error", "dense"):
            if len(getattr(self, part)) != s:
                self._refuse(
                    f"`{part}` must have one entry for each of the {s} stages. "
                    f"Received: {len(getattr(self, part))}"
                )
        for part in ("a", "c"):
            for i, row in enumerate(getattr(self, part)):
                if len(row) != i:
                    self._refuse(f"`{part}[{i}]` must have {i} entries. Received: {len(row)}")
        alpha, gammas, b = self.classical()
        for i in range(s):
            self._check_equal(f"`alpha[{i}]`", self.alpha[i], sum(alpha[i]))
            self._check_equal(f"`d[{i}]`", self.d[i], sum(gammas[i]))
            self._check_equal(f"`dense[{i}]` at θ = 1", sum(self.dense[i]), self.m[i])
        self._check_equal("the sum of the classical weights", sum(b), 1.0)

    @property
    def num_stages(self) -> int:
        """The number s of stages."""
        return len(self.m)

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage evaluates the field at the end of the step."""
        return (
            self.num_stages > 1
            and self.alpha[-1] == 1
            and self.m[-1] == 0
            and self.a[-1] == self.m[:-1]
        )

    def classical(self, weights: Sequence[float] | None = None) -> tuple[list, list, list]:
        """The coefficients of the untransformed method, whose stages are k = Γ⁻¹ u / h.

        Args:
            weights: s weights of the u_i; default `m`.

        Returns:
            `(alpha, gammas, b)`: the matrices α_ij and γ_ij, square, and the weights b_i that
            belong to `weights`.
        """
        s = self.num_stages
        inverse = [[-self.c[i][j] if j < i else 0.0 for j in range(s)] for i in range(s)]
        for i in range(s):
            inverse[i][i] = 1.0 / self.gamma
        gammas = _invert_lower(inverse)
        a = [[*row, *[0.0] * (s - len(row))] for row in self.a]
        weights = self.m if weights is None else weights
        return _times(a, gammas), gammas, _times([list(weights)], gammas)[0]

    def _check_equal(self, what, received, expected):
        # Written so that NaN is refused.
        if not abs(received - expected) <= _FLOAT_TOLERANCE * max(1.0, abs(expected)):
            self._refuse(f"{what} must be {expected}. Received: {received}")

    def _refuse(self, sentence):
        raise ValueError(f"In the Rosenbrock table {self.name!r}: {sentence}.")


def _times(left, right):
    columns = list(zip(*right, strict=True))
    return [
        [sum(x * y for x, y in zip(row, column, strict=True)) for column in columns] for row in left
    ]


def _invert_lower(matrix):
    """The inverse of a lower triangular matrix, by forward substitution."""
    s = len(matrix)
    inverse = [[0.0] * s for _ in range(s)]
    for j in range(s):
        for i in range(j, s):
            rest = sum(matrix[i][k] * inverse[k][j] for k in range(j, i))
            inverse[i][j] = (float(i == j) - rest) / matrix[i][i]
    return inverse


def _transformed(name, order, alpha, gammas, b, error, dense, **keywords):
    """A table from the classical coefficients: a = α Γ⁻¹, c = diag(1/γ) - Γ⁻¹, m = b Γ⁻¹."""
    s = len(b)
    gamma = gammas[0][0]
    square = [[row[j] if j < len(row) else 0.0 for j in range(s)] for row in alpha]
    inverse = _invert_lower([[*row, *[0.0] * (s - len(row))] for row in gammas])
    a = _times(square, inverse)
    degree = len(dense[0])
    powers = _times([[dense[i][k] for i in range(s)] for k in range(degree)], inverse)
    return RosenbrockTableau(
        name=name,
        order=order,
        gamma=gamma,
        alpha=tuple(sum(row) for row in square),
        d=tuple(sum(row) for row in gammas),
        a=tuple(tuple(a[i][:i]) for i in range(s)),
        c=tuple(tuple(-x for x in inverse[i][:i]) for i in range(s)),
        m=tuple(_times([list(b)], inverse)[0]),
        error=tuple(_times([list(error)], inverse)[0]),
        dense=tuple(tuple(powers[k][i] for k in range(degree)) for i in range(s)),
        **keywords,
    )


# γ = 1 / (2 + √2) makes the method L-stable. The third stage evaluates the field at the end of the
# step and serves the error estimate only.
_D = 1.0 / (2.0 + math.sqrt(2.0))
_E32 = 6.0 + math.sqrt(2.0)

ROSENBROCK23 = _transformed(
    name="rosenbrock23",
    order=2,
    alpha=((), (0.5,), (0.0, 1.0)),
    gammas=((_D,), (-_D, _D), (_D * (_E32 - 2.0), -_D * _E32, _D)),
    b=(0.0, 1.0, 0.0),
    error=(-1 / 6, 2 / 6, -1 / 6),
    error_order=2,
    # θ(1 - θ) / (1 - 2γ) k_1 + θ(θ - 2γ) / (1 - 2γ) k_2, of order 2.
    dense=(
        (1.0 / (1.0 - 2.0 * _D), -1.0 / (1.0 - 2.0 * _D)),
        (-2.0 * _D / (1.0 - 2.0 * _D), 1.0 / (1.0 - 2.0 * _D)),
        (0.0, 0.0),
    ),
    dense_order=2,
    source="L. F. Shampine & M. W. Reichelt, SIAM J. Sci. Comput. 18, 1997, pp. 1-22",
)


def _rodas_dense(m, h):
    """m_i(θ) = m_i θ + θ (1 - θ) (h_i2 + h_i3 θ + h_i4 θ²), in powers of θ."""
    return tuple(
        (weight + h2, h3 - h2, h4 - h3, -h4) for weight, h2, h3, h4 in zip(m, *h, strict=True)
    )


_RODAS5P_A6 = (
    -7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256,
    0.030198172008377946,
)  # fmt: skip
_RODAS5P_M = (*_RODAS5P_A6, 1.0, 1.0, 1.0)

RODAS5P = RosenbrockTableau(
    name="rodas5p",
    order=5,
    gamma=0.21193756319429014,
    alpha=(
        0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664,
        1.0, 1.0, 1.0,
    ),
    d=(
        0.21193756319429014, -0.42387512638858027, -0.3384627126235924, 1.8046452872882734,
        2.325825639765069, 0.0, 0.0, 0.0,
    ),
    a=(
        (),
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        _RODAS5P_A6,
        (*_RODAS5P_A6, 1.0),
        (*_RODAS5P_A6, 1.0, 1.0),
    ),
    c=(
        (),
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (
            24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125,
            -0.6610691825249471,
        ),
        (
            30.91273214028599, -3.1208243349937974, 77.79954646070892, 34.28646028294783,
            -19.097331116725623, -28.087943162872662,
        ),
        (
            37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047,
            -40.06618937091002, -54.66780262877968, -9.48861652309627,
        ),
    ),
    m=_RODAS5P_M,
    error=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    error_order=4,
    dense=_rodas_dense(
        _RODAS5P_M,
        (
            (
                25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204,
                0.524948541321073, 1.1241088310450404, 0.4272876194431874, -0.17202221070155493,
            ),
            (
                -9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796,
                20.176138334709044, 15.98066361424651, -6.789040303419874, -6.710236069923372,
            ),
            (
                11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643,
                -52.072871366152654, -59.78993625266729, -0.15582684282751913, 4.883087185713722,
            ),
        ),
    ),
    dense_order=4,
    source="G. Steinebach, BIT Numerical Mathematics 63, 2023, article 27",
)  # fmt: skip
