"""ESDIRK methods: explicit first stage, then implicit stages with one diagonal entry."""

import dataclasses
import math
from fractions import Fraction
from typing import Any

from keras_neuralde.tableaus.tableau import hermite_weights

_FLOAT_TOLERANCE = 1e-12


@dataclasses.dataclass(frozen=True)
class ESDIRKTableau:
    r"""A stiffly accurate, singly diagonally implicit method with an explicit first stage.

    One step from `(t, y)` over `h` is, with s stages (Kværnø, "Singly diagonally implicit
    Runge-Kutta methods with an explicit first stage", BIT 44, 2004),

        k_1 = f(t, y),
        Y_i = y + h Σ_(j<i) a_ij k_j + h γ k_i,    k_i = f(t + c_i h, Y_i),    i = 2, ..., s,
        y1 = Y_s,    error = h Σ_i (b_i - b̂_i) k_i,

    so that b is the last row of a, c_s is 1, and k_s is the next step's k_1.

    Args:
        name: the string by which the method is known, such as `"kvaerno5"`.
        order: the order of the method.
        c: the s nodes, 0 first and 1 last.
        a: s rows; row i has i + 1 entries, the last of them γ (0 in the first row).
        error: `b - b̂`, s weights that sum to 0.
        error_order: the error estimate falls like `h^(error_order + 1)`.
        dense: one row of polynomial coefficients for each stage, whose sums are b; `()` stands
            for the cubic Hermite polynomial through both ends.
        dense_order: the order of `dense`; `None` without it.
        explicit: the rows of the explicit companion that makes an IMEX pair, or `()`; it has the
            nodes, the weights and the error estimate of the implicit method.
        source: the publication the numbers come from.

    Raises:
        ValueError: if the numbers do not fit together; the message names the part at fault.

    Example:

    >>> half = Fraction(1, 2)
    >>> trapezoid = ESDIRKTableau(
    ...     name="trapezoid", order=2, c=(0, 1), a=((0,), (half, half)), error=(-half, half),
    ...     error_order=1,
    ... )
    >>> trapezoid.gamma, trapezoid.b
    (Fraction(1, 2), (Fraction(1, 2), Fraction(1, 2)))
    """

    name: str
    order: int
    c: tuple
    a: tuple
    error: tuple
    error_order: int
    dense: tuple = ()
    dense_order: int | None = None
    explicit: tuple = ()
    source: str = ""

    def __post_init__(self):
        """Refuses a table whose parts do not fit together."""
        s = self.num_stages
        if s < 2 or len(self.c) != s or len(self.error) != s:
            self._refuse(
                "`c`, `a` and `error` must have one entry for each of at least 2 stages. "
                f"Received: {len(self.c)}, {s} and {len(self.error)} entries"
            )
        for i, (node, row) in enumerate(zip(self.c, self.a, strict=True)):
            if len(row) != i + 1:
                self._refuse(f"`a[{i}]` must have {i + 1} entries. Received: {len(row)}")
            self._check_equal(f"the sum of `a[{i}]`", sum(row), node)
            self._check_equal(f"the diagonal `a[{i}][{i}]`", row[i], self.gamma if i else 0)
        self._check_equal("the last node", self.c[-1], 1)
        self._check_equal("the sum of `error`", sum(self.error), 0)
        if bool(self.dense) != (self.dense_order is not None):
            self._refuse("`dense` and `dense_order` must be given together")
        for i, row in enumerate(self.dense):
            self._check_equal(f"`dense[{i}]` at θ = 1", sum(row), self.b[i])
        for i, row in enumerate(self.explicit):
            if len(row) != i:
                self._refuse(f"`explicit[{i}]` must have {i} entries. Received: {len(row)}")
            self._check_equal(f"the sum of `explicit[{i}]`", sum(row), self.c[i])

    @property
    def num_stages(self) -> int:
        """The number s of stages, the explicit first one included."""
        return len(self.a)

    @property
    def gamma(self) -> Any:
        """The diagonal entry γ."""
        return self.a[1][1]

    @property
    def b(self) -> tuple:
        """The weights: the last row."""
        return self.a[-1]

    def interpolant(self) -> tuple:
        """The polynomials that interpolate within a step, one row for each stage."""
        return self.dense or hermite_weights(self.b)

    def _check_equal(self, what, received, expected):
        exact = not isinstance(received, float) and not isinstance(expected, float)
        tolerance = 0 if exact else _FLOAT_TOLERANCE
        # Written so that NaN is refused.
        if not abs(received - expected) <= tolerance:
            self._refuse(f"{what} must be {expected}. Received: {received}")

    def _refuse(self, sentence):
        raise ValueError(f"In the ESDIRK table {self.name!r}: {sentence}.")


def _difference(left, right):
    return tuple(x - y for x, y in zip(left, right, strict=True))


# The implicit Euler method; the trapezoidal rule estimates its error.
IMPLICIT_EULER = ESDIRKTableau(
    name="implicit_euler",
    order=1,
    c=(0, 1),
    a=((0,), (0, 1)),
    error=(Fraction(-1, 2), Fraction(1, 2)),
    error_order=1,
    source="L. Euler, 1768; error estimate as in Hairer & Wanner II, section IV.8",
)

# γ = 2 - √2 of the step by the trapezoidal rule, the rest by BDF2.
_W = math.sqrt(2.0) / 4.0
_D = 1.0 - math.sqrt(2.0) / 2.0

TRBDF2 = ESDIRKTableau(
    name="trbdf2",
    order=2,
    c=(0, 2.0 * _D, 1),
    a=((0,), (_D, _D), (_W, _W, _D)),
    error=_difference((_W, _W, _D), ((1.0 - _W) / 3.0, (3.0 * _W + 1.0) / 3.0, _D / 3.0)),
    error_order=2,
    source="M. E. Hosea & L. F. Shampine, Applied Numerical Mathematics 20, 1996, pp. 21-37",
)


def _kvaerno3():
    # The root of γ³ - 3 γ² + 3/2 γ - 1/6 that makes the method L-stable.
    g = 0.43586652150845899942
    a3 = ((-4 * g * g + 6 * g - 1) / (4 * g), (1 - 2 * g) / (4 * g), g)
    a4 = (
        (6 * g - 1) / (12 * g),
        -1 / ((24 * g - 12) * g),
        (-6 * g * g + 6 * g - 1) / (6 * g - 3),
        g,
    )
    return ESDIRKTableau(
        name="kvaerno3",
        order=3,
        c=(0, 2 * g, 1, 1),
        a=((0,), (g, g), a3, a4),
        error=_difference(a4, (*a3, 0.0)),
        error_order=2,
        source="A. Kværnø, BIT 44, 2004, pp. 489-502",
    )


KVAERNO3 = _kvaerno3()

_KVAERNO5_A6 = (
    0.13855640231268224, 0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676, 0.26,
)  # fmt: skip
_KVAERNO5_A7 = (
    0.13659751177640291, 0, -0.05496908796538376, -0.04118626728321046, 0.62993304899016403,
    0.06962479448202728, 0.26,
)  # fmt: skip

# The third node is 1.23: the field is evaluated beyond the end of the step.
KVAERNO5 = ESDIRKTableau(
    name="kvaerno5",
    order=5,
    c=(0, 0.52, 1.230333209967908, 0.8957659843500759, 0.43639360985864756, 1, 1),
    a=(
        (0,),
        (0.26, 0.26),
        (0.13, 0.84033320996790809, 0.26),
        (0.22371961478320505, 0.47675532319799699, -0.06470895363112615, 0.26),
        (
            0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998,
            0.26,
        ),
        _KVAERNO5_A6,
        _KVAERNO5_A7,
    ),
    error=_difference(_KVAERNO5_A7, (*_KVAERNO5_A6, 0)),
    error_order=4,
    source="A. Kværnø, BIT 44, 2004, pp. 489-502",
)  # fmt: skip


def _exact(*rows):
    return tuple(tuple(Fraction(number) for number in row.split()) for row in rows)


_KENCARP4_B = _exact("82889/524892 0 15625/83664 69875/102672 -2260/8211 1/4")[0]
_KENCARP4_B_HAT = _exact(
    "4586570599/29645900160 0 178811875/945068544 814220225/1159782912 -3700637/11593932 "
    "61727/225920"
)[0]

KENCARP4 = ESDIRKTableau(
    name="kencarp4",
    order=4,
    c=_exact("0 1/2 83/250 31/50 17/20 1")[0],
    a=(
        *_exact(
            "0",
            "1/4 1/4",
            "8611/62500 -1743/31250 1/4",
            "5012029/34652500 -654441/2922500 174375/388108 1/4",
            "15267082809/155376265600 -71443401/120774400 730878875/902184768 2285395/8070912 1/4",
        ),
        _KENCARP4_B,
    ),
    error=_difference(_KENCARP4_B, _KENCARP4_B_HAT),
    error_order=3,
    # Powers θ³, θ², θ. The fractions are rounded: the cubic term closes the sum of each row.
    dense=tuple(
        (float(linear), float(square), float(weight) - float(linear) - float(square))
        for weight, (_, square, linear) in zip(
            _KENCARP4_B,
            _exact(
                "6818779379841/7100303317025 -54480133/30881146 6943876665148/7220017795957",
                "0 0 0",
                "2173542590792/12501825683035 -11436875/14766696 7640104374378/9702883013639",
                "-31592104683404/5083833661969 174696575/18121608 -20649996744609/7521556579894",
                "61146701046299/7138195549469 -12120380/966161 8854892464581/2390941311638",
                "-17219254887155/4939391667607 3843/706 -11397109935349/6675773540249",
            ),
            strict=True,
        )
    ),
    dense_order=3,
    explicit=tuple(
        tuple(float(number) for number in row)
        for row in _exact(
            "",
            "1/2",
            "13861/62500 6889/62500",
            "-116923316275/2393684061468 -2731218467317/15368042101831 "
            "9408046702089/11113171139209",
            "-451086348788/2902428689909 -2682348792572/7519795681897 "
            "12662868775082/11960479115383 3355817975965/11060851509271",
            "647845179188/3216320057751 73281519250/8382639484533 552539513391/3454668386233 "
            "3354512671639/8306763924573 4040/17871",
        )
    ),
    source="C. A. Kennedy & M. H. Carpenter, Applied Numerical Mathematics 44, 2003, pp. 139-181",
)
