"""Ordinary differential equations of two parts at the front door."""

from keras_neuralde import captures, solvers
from keras_neuralde.equations.base import Equation, Lifted, checked, spanning
from keras_neuralde.equations.ordinary import implicit_terms
from keras_neuralde.programs import function_key
from keras_neuralde.split_field import LiftedSplit, SplitField


class SplitEquation(Equation):
    """A `SplitODEProblem`."""

    def choose_solver(self, solver, adjoint, controller):
        return solvers.splitting(solver)

    def key(self, references):
        functions = (self.problem.f_explicit, self.problem.f_implicit)
        return "split", *(function_key(one, references) for one in functions)

    def lift(self, layout, p):
        parts = [
            captures.lift(
                checked(getattr(self.problem, name), layout, f"{name}(t, y, p)"),
                *spanning(layout, p),
            )
            for name in ("f_explicit", "f_implicit")
        ]
        return LiftedSplitEquation(LiftedSplit(*parts))


class LiftedSplitEquation(Lifted):
    """The two traced parts."""

    def __init__(self, lifted):
        self.functions = (lifted.explicit, lifted.implicit)
        self.lifted = lifted

    def bind(self, context):
        return SplitField(
            self.lifted, context.layout, context.batch_dims, context.p_leaves,
            implicit_terms(context),
        )  # fmt: skip
