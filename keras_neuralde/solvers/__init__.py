"""One-step methods."""

from typing import TYPE_CHECKING, Any

from keras_neuralde.solvers.base import Solver as Solver
from keras_neuralde.solvers.base import Step as Step
from keras_neuralde.solvers.esdirk import DiagonallyImplicit as DiagonallyImplicit
from keras_neuralde.solvers.explicit_rk import ExplicitRungeKutta as ExplicitRungeKutta
from keras_neuralde.solvers.imex import ImplicitExplicit as ImplicitExplicit
from keras_neuralde.solvers.iteration_matrix import LinearSolver as LinearSolver
from keras_neuralde.solvers.method_of_steps import MethodOfSteps as MethodOfSteps
from keras_neuralde.solvers.registry import get as get
from keras_neuralde.solvers.registry import names as names
from keras_neuralde.solvers.registry import serialize as serialize
from keras_neuralde.solvers.registry import splitting as splitting
from keras_neuralde.solvers.registry import stochastic as stochastic
from keras_neuralde.solvers.rosenbrock import Rosenbrock as Rosenbrock
from keras_neuralde.solvers.sde import StochasticSolver as StochasticSolver
from keras_neuralde.solvers.switching import Switching as Switching

if TYPE_CHECKING:
    from keras_neuralde.tfp import as_tfp as as_tfp


def __getattr__(name: str) -> Any:
    # `as_tfp` is built on `solve`, which is built on this package: look it up when asked.
    if name == "as_tfp":
        from keras_neuralde.tfp import as_tfp

        return as_tfp
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
