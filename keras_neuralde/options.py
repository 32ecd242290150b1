"""The choices of a solve by name, and its keywords where they are handed on, for editors."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

from keras_neuralde.adjoints import Adjoint
from keras_neuralde.controllers import PID, Constant
from keras_neuralde.events import ContinuousEvent, DiscreteEvent, PresetTimeEvent
from keras_neuralde.solvers import Solver
from keras_neuralde.typing import TensorLike

SolverName: TypeAlias = Literal[
    "auto",
    "euler", "midpoint", "heun", "ralston", "bosh3", "rk4", "dopri5", "tsit5", "vern7", "dopri8",
    "rosenbrock23", "rodas5p", "implicit_euler", "trbdf2", "kvaerno3", "kvaerno5", "kencarp4",
    "euler_maruyama", "milstein", "euler_heun", "stochastic_heun", "sra1", "sosri", "lamba_em",
    "reversible_heun",
    "tfp_dormand_prince", "tfp_bdf",
]  # fmt: skip
"""The names that `solver=` takes."""

AdjointName: TypeAlias = Literal[
    "discrete", "forward", "backsolve", "interpolating", "quadrature", "reversible"
]
"""The names that `adjoint=` takes."""

ControllerName: TypeAlias = Literal["constant", "I", "PI", "PID"]
"""The names that `controller=` takes."""

Norm: TypeAlias = Literal["rms", "max"]
"""The names that `norm=` takes."""

StepControl: TypeAlias = Literal["per_sample", "joint"]
"""The names that `step_control=` takes."""


class TFPSolver(Protocol):
    """An instance of a stock solver of `tfp.math.ode`."""

    def solve(self, *arguments: Any, **keywords: Any) -> Any:
        """Solves an initial value problem."""


# `str` and `dict` beside the names: a name may be read from a file, and so may a config.
SolverLike: TypeAlias = SolverName | str | Solver | TFPSolver | dict
"""A solver, its name or its config."""

AdjointLike: TypeAlias = AdjointName | str | Adjoint | dict
"""An adjoint, its name or its config."""

ControllerLike: TypeAlias = ControllerName | str | PID | Constant | dict
"""A step-size controller, its name or its config."""

Event: TypeAlias = ContinuousEvent | PresetTimeEvent | DiscreteEvent
"""Something that happens to a trajectory."""


class SolveOptions(TypedDict, total=False):
    """Keywords of `solve` that layers, ensembles and multiple shooting hand on to it."""

    rtol: TensorLike | None
    atol: TensorLike | None
    dt0: TensorLike | None
    dt_min: TensorLike
    max_steps: int
    controller: ControllerLike | None
    norm: Norm
    step_control: StepControl
    adjoint: AdjointLike
    checkpoints: int
    events: Event | Sequence[Event]
    steps: TensorLike | None
    max_record: int


class EnsembleOptions(SolveOptions, total=False):
    """What `solve_ensemble` hands on to `solve`."""

    saveat: TensorLike | None
    throw: bool


class LayerKeywords(TypedDict, total=False):
    """Keywords of `keras.layers.Layer`."""

    name: str | None
    dtype: Any
    trainable: bool


class LayerOptions(SolveOptions, LayerKeywords, total=False):
    """What a layer hands on to `solve` and to `keras.layers.Layer`."""

    throw: bool
    progress: bool
