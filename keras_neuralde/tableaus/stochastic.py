"""Tables of stochastic Runge-Kutta methods of strong order 1.5.

A method for diagonal or scalar Itô noise has stages (Rößler, "Runge-Kutta methods for the strong
approximation of solutions of stochastic differential equations", SIAM J. Numer. Anal. 48, 2010)

    H0_i = y + h Σ_j A0_ij f(t + c0_j h, H0_j) + Σ_j B0_ij g(t + c1_j h, H1_j) I_10 / h,
    H1_i = y + h Σ_j A1_ij f(t + c0_j h, H0_j) + √h Σ_j B1_ij g(t + c1_j h, H1_j),

and ends on

    y + h Σ_i α_i f(H0_i)
      + Σ_i (β1_i I_1 + β2_i I_11 / √h + β3_i I_10 / h + β4_i I_111 / h) g(H1_i).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class StochasticTableau:
    """The coefficients of such a method; rows of the strictly lower triangular matrices.

    Attributes:
        name: its name.
        alpha: weights of the drift.
        beta: four rows of weights of the diffusion.
        a0: the matrix A0.
        a1: the matrix A1.
        b0: the matrix B0.
        b1: the matrix B1.
        source: where the coefficients come from.
    """

    name: str
    alpha: tuple
    beta: tuple
    a0: tuple
    a1: tuple
    b0: tuple
    b1: tuple
    source: str

    @property
    def c0(self):
        """The nodes of the drift: row sums of A0."""
        return tuple(sum(row) for row in self.a0)

    @property
    def c1(self):
        """The nodes of the diffusion: row sums of A1."""
        return tuple(sum(row) for row in self.a1)


SOSRI = StochasticTableau(
    name="sosri",
    alpha=(1.140099274172029, -0.6401334255743456, 0.4736296532772559, 0.026404498125060714),
    beta=(
        (-1.8453464565104432, 2.688764531100726, -0.2523866501071323, 0.40896857551684956),
        (0.4969658141589478, -0.5771202869753592, -0.12919702470322217, 0.2093514975196336),
        (2.8453464565104425, -2.688764531100725, 0.2523866501071322, -0.40896857551684945),
        (0.11522663875443433, -0.57877086147738, 0.2857851028163886, 0.17775911990655704),
    ),
    a0=(
        (),
        (-0.04199224421316468,),
        (2.842612915017106, -2.0527723684000727),
        (4.338237071435815, -2.8895936137439793, 2.3017575594644466),
    ),
    a1=(
        (),
        (0.26204282091330466,),
        (0.20903646383505375, -0.1502377115150361),
        (0.05836595312746999, 0.6149440396332373, 0.08535117634046772),
    ),
    b0=(
        (),
        (-0.21641093549612528,),
        (1.5336352863679572, 0.26066223492647056),
        (-1.0536037558179159, 1.7015284721089472, -0.20725685784180017),
    ),
    b1=(
        (),
        (-0.5119011827621657,),
        (2.67767339866713, -4.9395031322250995),
        (0.15580956238299215, 3.2361551006624674, -1.4223118283355949),
    ),
    source="Rackauckas & Nie, Stability-optimized high order methods and stiffness detection for "
    "pathwise stiff stochastic differential equations, IEEE HPEC 2020",
)
