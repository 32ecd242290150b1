"""Solvers by name."""

import difflib
from typing import Any

from keras_neuralde.solvers.base import Solver
from keras_neuralde.solvers.delegated import DelegatedSolver, is_tfp_solver
from keras_neuralde.solvers.esdirk import DiagonallyImplicit
from keras_neuralde.solvers.explicit_rk import ExplicitRungeKutta
from keras_neuralde.solvers.imex import PAIRS, ImplicitExplicit
from keras_neuralde.solvers.method_of_steps import MethodOfSteps
from keras_neuralde.solvers.rosenbrock import Rosenbrock
from keras_neuralde.solvers.sde import STOCHASTIC, StochasticSolver
from keras_neuralde.solvers.switching import Switching
from keras_neuralde.tableaus import ESDIRK, EXPLICIT, ROSENBROCK

_CLASSES: dict = {
    "ExplicitRungeKutta": ExplicitRungeKutta,
    "Rosenbrock": Rosenbrock,
    "DiagonallyImplicit": DiagonallyImplicit,
    "ImplicitExplicit": ImplicitExplicit,
    "DelegatedSolver": DelegatedSolver,
    "MethodOfSteps": MethodOfSteps,
    "Switching": Switching,
}
_CLASSES |= {method.__name__: method for method in STOCHASTIC.values()}
_DELEGATED = {"tfp_dormand_prince": "DormandPrince", "tfp_bdf": "BDF"}


def names() -> list[str]:
    """The strings that `get` knows."""
    return [*EXPLICIT, *ROSENBROCK, *ESDIRK, *STOCHASTIC, *_DELEGATED, "auto"]


def stochastic() -> dict[str, type[StochasticSolver]]:
    """The classes of the methods for stochastic equations, by name."""
    return dict(STOCHASTIC)


def get(identifier: Any) -> Solver:
    """The solver for a name, a config dictionary, or a solver.

    Args:
        identifier: a string such as `"tsit5"`, what `serialize` returned, or a `Solver`.

    Returns:
        A `Solver`.

    Raises:
        ValueError: for a name that no solver has; the message lists the nearest ones.
        TypeError: for anything else.

    Example:

    >>> get("dopri5").order
    5
    """
    if isinstance(identifier, Solver):
        return identifier
    if is_tfp_solver(identifier):
        return getattr(identifier, "inner", None) or DelegatedSolver.wrap(identifier)
    if isinstance(identifier, str):
        name = "tsit5" if identifier == "auto" else identifier.lower()
        if name in EXPLICIT:
            return ExplicitRungeKutta(name)
        if name in ROSENBROCK:
            return Rosenbrock(name)
        if name in ESDIRK:
            return DiagonallyImplicit(name)
        if name in STOCHASTIC:
            return STOCHASTIC[name]()
        if name in _DELEGATED:
            return DelegatedSolver(_DELEGATED[name])
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"`solver` must be one of {names()} or a solver object. Received: {identifier!r}.{hint}"
        )
    if isinstance(identifier, dict) and identifier.get("class_name") in _CLASSES:
        return _CLASSES[identifier["class_name"]].from_config(identifier.get("config", {}))
    raise TypeError(
        f"`solver` must be a name, a config or a solver object. Received: {identifier!r} "
        f"of type {type(identifier).__name__}"
    )


def splitting(identifier: Any) -> ImplicitExplicit:
    """The solver for an equation of two parts.

    Args:
        identifier: as for `get`; an ESDIRK method stands for its pair.

    Raises:
        ValueError: for methods that have no explicit companion.
    """
    solver = ImplicitExplicit() if identifier == "auto" else get(identifier)
    if isinstance(solver, ImplicitExplicit):
        return solver
    if not isinstance(solver, DiagonallyImplicit) or not solver.tableau.explicit:
        raise ValueError(
            f"a SplitODEProblem needs an implicit-explicit method, one of {list(PAIRS)}. Received: "
            f"{solver.name!r}, which treats a field as a whole: add the two parts and make it an "
            "ODEProblem."
        )
    return ImplicitExplicit(
        solver.tableau, solver.newton_limit, solver.linear_solver, solver.jacobian_reuse
    )


def serialize(solver: Solver) -> dict[str, Any]:
    """A plain dictionary from which `get` makes the solver again."""
    if not isinstance(solver, Solver):
        raise TypeError(f"`solver` must be a solver object. Received: {solver!r}")
    return {"class_name": type(solver).__name__, "config": solver.get_config()}
