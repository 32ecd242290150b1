"""Implicit-explicit methods: one part of the field implicit, the other explicit."""

from typing import Literal

import tensorflow as tf

from keras_neuralde.solvers.esdirk import DiagonallyImplicit
from keras_neuralde.solvers.explicit_rk import combine
from keras_neuralde.solvers.iteration_matrix import LinearSolver
from keras_neuralde.tableaus import ESDIRK, ESDIRKTableau

#: The tables that have an explicit companion.
PAIRS = tuple(name for name, table in ESDIRK.items() if table.explicit)


class ImplicitExplicit(DiagonallyImplicit):
    """An additive Runge-Kutta pair for y' = f_E(t, y) + f_I(t, y): what a `SplitODEProblem` takes.

    The stages treat f_I as the ESDIRK method of the table does and f_E by its explicit companion,
    which shares nodes and weights (Kennedy & Carpenter, Applied Numerical Mathematics 44, 2003):

        Y_i = y + h Σ_(j<i) (a^E_ij f_E(t_j, Y_j) + a_ij f_I(t_j, Y_j)) + h γ f_I(t_i, Y_i),
        y1 = y + h Σ_i b_i (f_E(t_i, Y_i) + f_I(t_i, Y_i)).

    Newton's iterations and Jacobians see f_I alone.

    Args:
        tableau: the name of an ESDIRK table with an explicit companion, or such a table.
        newton_limit: as in `DiagonallyImplicit`.
        linear_solver: likewise.
        jacobian_reuse: likewise.

    Raises:
        ValueError: for a table without an explicit companion.

    Example:

    >>> ImplicitExplicit("kencarp4").order
    4
    """

    singular_mass = False
    carries_slope = False
    splits = True

    def __init__(
        self,
        tableau: str | ESDIRKTableau = "kencarp4",
        newton_limit: int = 10,
        linear_solver: str | dict | LinearSolver = "auto",
        jacobian_reuse: Literal["auto"] | bool = "auto",
    ) -> None:
        super().__init__(tableau, newton_limit, linear_solver, jacobian_reuse)
        if not self.tableau.explicit:
            raise ValueError(
                "a split equation needs a method with an explicit companion, one of "
                f"{list(PAIRS)}. Received: {self.name!r}"
            )

    def init(self, g, t, y):
        # No slope is handed on: the last stage is not the new state.
        return tf.zeros_like(y)

    def _parts(self, g):
        return g.implicit_part, g.explicit_part

    def _arrival(self, h, y, stages):
        # The last stage is not the new state: the explicit part has no weight in it yet.
        return y + h * combine(self.tableau.b, stages.slopes)
