"""The Butcher table of an explicit Runge-Kutta method, as data that checks itself."""

import dataclasses

_FLOAT_TOLERANCE = 1e-12


@dataclasses.dataclass(frozen=True)
class ButcherTableau:
    r"""An explicit Runge-Kutta method with its error estimate and its continuous extension.

    One step from `(t, y)` over `h` is, with s stages (Hairer, Nørsett & Wanner, "Solving Ordinary
    Differential Equations I", 2nd ed. 1993, sections II.1, II.4 and II.6),

        k_i = f(t + c_i h, y + h Σ_j a_ij k_j),
        y1 = y + h Σ_i b_i k_i,
        error = h Σ_i (b_i - b̂_i) k_i,
        y(t + θ h) ≈ y + h Σ_i b_i(θ) k_i,        b_i(θ) = Σ_m dense[i][m] θ^(m+1).

    Every sequence is a tuple; its numbers are ints or `fractions.Fraction` where the method is
    given in exact numbers, else floats. A table refuses to be built if its rows do not fit
    together, exactly for exact numbers and to 1e-12 for floats.

    Args:
        name: the string by which the method is known, such as `"tsit5"`.
        order: the order of `b`.
        c: the s nodes, the first of them 0.
        a: s rows; row i has i entries and sums to `c[i]`.
        b: the s weights; they sum to 1.
        error: `b - b̂`, s weights that sum to 0; `()` (the default) when the method has no
            error estimate.
        error_damping: s weights of a second, coarser estimate e3 (DOP853 only); the error is then
            `e5² / sqrt(e5² + (0.1 e3)²)` with e5 from `error`, componentwise (Hairer, Nørsett &
            Wanner, section II.10). Defaults to `()`.
        error_order: the order of the embedded formula; the error estimate falls like
            `h^(error_order + 1)`, and it is this power that counts where `error_damping` mixes
            two estimates. `None` without an error estimate.
        dense: one row of polynomial coefficients for each stage, the extra ones included; all
            rows have one length, and `b_i(1)` is `b_i` (0 for an extra stage). Defaults to `()`:
            the table has no continuous extension of its own.
        dense_order: the order up to which the b_i(θ) satisfy the order conditions at every θ.
            `None` when `dense` is empty.
        c_dense: nodes of extra stages that are evaluated only to interpolate.
        a_dense: their rows; the j-th has s + j entries.
        source: the publication the numbers come from.

    Raises:
        ValueError: if the numbers do not fit together; the message names the part at fault.

    Example:

    >>> from fractions import Fraction
    >>> midpoint = ButcherTableau(
    ...     name="midpoint", order=2, c=(0, Fraction(1, 2)), a=((), (Fraction(1, 2),)), b=(0, 1)
    ... )
    >>> midpoint.num_stages, midpoint.first_same_as_last, midpoint.has_error
    (2, False, False)
    """

    name: str
    order: int
    c: tuple
    a: tuple
    b: tuple
    error: tuple = ()
    error_damping: tuple = ()
    error_order: int | None = None
    dense: tuple = ()
    dense_order: int | None = None
    c_dense: tuple = ()
    a_dense: tuple = ()
    source: str = ""

    def __post_init__(self):
        """Refuses a table whose parts do not fit together."""
        self._check_step()
        self._check_error()
        self._check_extra_stages()
        self._check_dense()

    @property
    def num_stages(self) -> int:
        """The number s of stages of a step, without those needed only to interpolate."""
        return len(self.b)

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is the field at the end of the step, the next step's first."""
        return self.num_stages > 1 and (
            self.c[-1] == 1 and self.b[-1] == 0 and self.a[-1] == self.b[:-1]
        )

    @property
    def has_error(self) -> bool:
        """Whether the method estimates its error."""
        return bool(self.error)

    def interpolant(self) -> tuple[tuple, tuple, tuple]:
        """The stages and polynomials that interpolate within a step.

        They are the table's own where it has them. Otherwise they are those of the cubic Hermite
        polynomial through both ends of the step and their slopes (Hairer, Nørsett & Wanner,
        section II.6), which needs the field at the end of the step: one extra stage, unless
        the last stage is that already.

        Returns:
            A triple `(c_extra, a_extra, dense)`: nodes and rows of the extra stages, and the
            polynomial coefficients of all stages.

        Example:

        >>> from fractions import Fraction
        >>> half = Fraction(1, 2)
        >>> heun = ButcherTableau(name="heun", order=2, c=(0, 1), a=((), (1,)), b=(half, half))
        >>> c_extra, a_extra, dense = heun.interpolant()
        >>> c_extra, len(dense)
        ((1,), 3)
        """
        if self.dense:
            return self.c_dense, self.a_dense, self.dense
        if self.first_same_as_last:
            return (), (), hermite_weights(self.b)
        return (1,), (self.b,), hermite_weights((*self.b, 0))

    def _check_step(self):
        s = self.num_stages
        if not isinstance(self.order, int) or self.order < 1:
            self._refuse(f"`order` must be a positive integer. Received: {self.order!r}")
        if s == 0 or len(self.c) != s or len(self.a) != s:
            self._refuse(
                "`c`, `a` and `b` must have one entry for each stage. "
                f"Received: {len(self.c)}, {len(self.a)} and {s} entries"
            )
        self._check_rows("a", self.c, self.a, first_length=0)
        self._check_equal("the sum of `b`", sum(self.b), 1)

    def _check_error(self):
        for part in ("error", "error_damping"):
            weights = getattr(self, part)
            if len(weights) not in (0, self.num_stages):
                self._refuse(
                    f"`{part}` must be empty or have {self.num_stages} weights. "
                    f"Received: {len(weights)}"
                )
            self._check_equal(f"the sum of `{part}`", sum(weights), 0)
        if self.has_error != (self.error_order is not None):
            self._refuse(
                "`error` and `error_order` must be given together. "
                f"Received: error={self.error}, error_order={self.error_order}"
            )
        if self.error_damping and not self.has_error:
            self._refuse("`error_damping` needs an `error` to damp")

    def _check_extra_stages(self):
        if len(self.c_dense) != len(self.a_dense):
            self._refuse(
                "`c_dense` and `a_dense` must have one entry for each extra stage. "
                f"Received: {len(self.c_dense)} and {len(self.a_dense)} entries"
            )
        if self.c_dense and not self.dense:
            self._refuse("`c_dense` and `a_dense` need the polynomials of `dense`")
        self._check_rows("a_dense", self.c_dense, self.a_dense, first_length=self.num_stages)

    def _check_dense(self):
        if bool(self.dense) != (self.dense_order is not None):
            self._refuse(
                "`dense` and `dense_order` must be given together. "
                f"Received: {len(self.dense)} rows, dense_order={self.dense_order}"
            )
        if not self.dense:
            return
        stages = self.num_stages + len(self.c_dense)
        if len(self.dense) != stages or len({len(row) for row in self.dense}) != 1:
            self._refuse(
                f"`dense` must have {stages} rows of one length. "
                f"Received: rows of lengths {[len(row) for row in self.dense]}"
            )
        weights = (*self.b, *(0 for _ in self.c_dense))
        for i, (row, weight) in enumerate(zip(self.dense, weights, strict=True)):
            self._check_equal(f"`dense[{i}]` at θ = 1", sum(row), weight)

    def _check_rows(self, part, nodes, rows, first_length):
        for i, (node, row) in enumerate(zip(nodes, rows, strict=True)):
            if len(row) != first_length + i:
                self._refuse(
                    f"`{part}[{i}]` must have {first_length + i} entries. Received: {len(row)}"
                )
            self._check_equal(f"the sum of `{part}[{i}]`", sum(row), node)

    def _check_equal(self, what, received, expected):
        exact = not isinstance(received, float) and not isinstance(expected, float)
        tolerance = 0 if exact else _FLOAT_TOLERANCE
        # Written so that NaN is refused.
        if not abs(received - expected) <= tolerance:
            self._refuse(f"{what} must be {expected}. Received: {received}")

    def _refuse(self, sentence):
        raise ValueError(f"In the Butcher table {self.name!r}: {sentence}.")


def hermite_weights(b):
    """b_i(θ) of the cubic Hermite polynomial; the last stage has the slope at the end."""
    rows = [[0, 3 * weight, -2 * weight] for weight in b]
    for row, slope in ((rows[0], (1, -2, 1)), (rows[-1], (0, -1, 1))):
        row[:] = [entry + extra for entry, extra in zip(row, slope, strict=True)]
    return tuple(tuple(row) for row in rows)
