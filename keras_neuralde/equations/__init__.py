"""The kinds of equations: what the front door checks, traces and binds for each."""

from keras_neuralde.equations.base import Context
from keras_neuralde.equations.delayed import DelayEquation
from keras_neuralde.equations.hybrid import HybridEquation
from keras_neuralde.equations.ordinary import OrdinaryEquation
from keras_neuralde.equations.split import SplitEquation
from keras_neuralde.equations.stochastic import (
    StochasticEquation,
    TrajectorySeeds,
    draw_seed,
    refuse_missing_seed,
)
from keras_neuralde.problems import DDEProblem, ODEProblem, SDEProblem, SplitODEProblem

#: The kind of equation that each problem is.
KINDS = {
    ODEProblem: OrdinaryEquation,
    SplitODEProblem: SplitEquation,
    SDEProblem: StochasticEquation,
    DDEProblem: DelayEquation,
}


def kind_of(problem):
    """The subclass of `Equation` for a problem.

    Raises:
        TypeError: if it is no problem.
    """
    for problem_class, kind in KINDS.items():
        if isinstance(problem, problem_class):
            return kind
    names = ", ".join(problem_class.__name__ for problem_class in KINDS)
    raise TypeError(
        f"`problem` must be one of {names}. Received: {problem!r} of type {type(problem).__name__}"
    )


__all__ = [
    "KINDS",
    "Context",
    "HybridEquation",
    "TrajectorySeeds",
    "kind_of",
    "draw_seed",
    "refuse_missing_seed",
]
