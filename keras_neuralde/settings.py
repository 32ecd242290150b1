"""The choices of a solve that are part of its program."""

import dataclasses
from typing import Any, get_args

from keras_neuralde import adjoints, controllers, solvers
from keras_neuralde.checks import check_choice, check_flag, check_whole
from keras_neuralde.options import Norm, StepControl
from keras_neuralde.solvers.delegated import warn_about_joint_steps

_NAMES = {"norm": get_args(Norm), "step_control": get_args(StepControl)}
_LEAST = {"max_steps": 1, "checkpoints": 1, "batch_ndims": 0, "max_record": 1}
_FLAGS = ("dense", "throw", "progress")


def check_each(**choices):
    """Refuses keywords of `solve` that are wrong whatever the others are; knows a part of them."""
    for name, value in choices.items():
        if name in _NAMES:
            check_choice(name, value, _NAMES[name])
        elif name in _LEAST:
            check_whole(name, value, _LEAST[name])
        elif name in _FLAGS:
            check_flag(name, value)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The choices that are part of a program."""

    solver: Any
    controller: Any
    norm: str
    max_steps: int
    batch_ndims: int
    joint: bool
    adjoint: Any
    checkpoints: int
    first_step: bool
    dense: bool
    max_record: int

    @classmethod
    def make(
        cls, solver, *, controller, norm, max_steps, batch_ndims, step_control, adjoint,
        checkpoints, dt0, steps, dense, max_record,
    ):  # fmt: skip
        """Checks the choices and fills in what depends on the solver."""
        solver = solvers.get(solver)
        check_each(
            norm=norm, step_control=step_control, max_steps=max_steps, checkpoints=checkpoints,
            batch_ndims=batch_ndims, max_record=max_record, dense=dense,
        )  # fmt: skip
        adjoint = adjoints.get(adjoint)
        joint = step_control == "joint" and batch_ndims > 0
        if solver.delegated:
            if batch_ndims:
                warn_about_joint_steps(solver.name)
            controller, adjoint, joint = None, None, batch_ndims > 0
        else:
            controller = _controller(solver, controller, dt0, steps)
            if solver.implicit and adjoint.name != "discrete":
                raise ValueError(
                    f"implicit methods such as {solver.name!r} have the discrete gradient only; "
                    f"use adjoint='discrete'. Received: adjoint={adjoint!r}"
                )
            if dense and adjoint.name != "discrete":
                raise ValueError(
                    "dense=True has the discrete gradient only; use adjoint='discrete', or save "
                    f"points instead. Received: adjoint={adjoint!r}"
                )
        chooses = isinstance(controller, controllers.PID)
        return cls(
            solver, controller, norm, int(max_steps), int(batch_ndims), joint, adjoint,
            int(checkpoints), chooses and dt0 is None, bool(dense), int(max_record),
        )  # fmt: skip

    @property
    def constant_steps(self):
        """Whether all steps are equal."""
        return isinstance(self.controller, controllers.Constant)

    @property
    def chooses_steps(self):
        """Whether the steps depend on the solution."""
        return isinstance(self.controller, controllers.PID)

    @property
    def replays(self):
        """Whether recorded steps are taken again."""
        return isinstance(self.controller, controllers.Replay)

    def replaying(self):
        """The same with recorded steps."""
        return dataclasses.replace(self, controller=controllers.Replay(), first_step=False)


def _controller(solver, controller, dt0, steps):
    """The step-size controller, with what it needs."""
    if steps is not None:
        if controller is not None or dt0 is not None:
            raise ValueError(
                "`steps` are taken as they are: leave out `controller` and `dt0`. "
                f"Received: controller={controller!r}, dt0={dt0!r}"
            )
        return controllers.Replay()
    controller = controllers.get(
        ("I" if solver.adaptive else "constant") if controller is None else controller
    )
    constant = isinstance(controller, controllers.Constant)
    if constant and dt0 is None:
        raise ValueError(
            f"solver {solver.name!r} with a constant step size needs `dt0`, the size of its "
            "steps. Received: dt0=None"
        )
    if not constant and not solver.adaptive:
        raise ValueError(
            f"solver {solver.name!r} has no error estimate, so it cannot choose its steps: use "
            f"controller='constant' with dt0. Received: controller={controller!r}"
        )
    return controller


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the caller's times look like, which decides the shape of the answer."""

    saves: str  # "none", "scalar", "shared" or "per_sample"
    time_gradient: bool
    on_grid: bool = False  # whether all save points are known to be ends of equal steps
    forwards: bool = False  # whether time must not run backwards
    cut: bool = False  # whether something may end steps between the times that are known
