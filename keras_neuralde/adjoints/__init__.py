"""Gradients of solves: how they are computed, chosen by name or as an object with settings."""

from typing import Any

from keras_neuralde.adjoints.backsolve import Backsolve as Backsolve
from keras_neuralde.adjoints.base import Adjoint as Adjoint
from keras_neuralde.adjoints.discrete import Discrete as Discrete
from keras_neuralde.adjoints.forward import Forward as Forward
from keras_neuralde.adjoints.interpolating import Interpolating as Interpolating
from keras_neuralde.adjoints.quadrature import Quadrature as Quadrature
from keras_neuralde.adjoints.reversible import Reversible as Reversible

_KINDS = (Discrete, Forward, Backsolve, Interpolating, Quadrature, Reversible)
_NAMED = {kind.name: kind for kind in _KINDS}


def names() -> list[str]:
    """The names that `solve(..., adjoint=...)` takes."""
    return sorted(_NAMED)


def get(identifier: str | dict | Adjoint) -> Adjoint:
    """The adjoint for a name, a config or an adjoint."""
    if isinstance(identifier, Adjoint):
        return identifier
    if isinstance(identifier, str) and identifier in _NAMED:
        return _NAMED[identifier]()
    if isinstance(identifier, dict):
        kind = _NAMED.get(str(identifier.get("class_name")).lower())
        if kind is not None:
            return kind(**identifier.get("config", {}))
    raise ValueError(
        f"`adjoint` must be one of {names()} or an adjoint object. Received: {identifier!r}"
    )


def serialize(adjoint: Adjoint) -> dict[str, Any]:
    """The config from which `get` makes the adjoint again."""
    if not isinstance(adjoint, Adjoint):
        raise TypeError(f"`adjoint` must be an adjoint object. Received: {adjoint!r}")
    return {"class_name": type(adjoint).__name__, "config": adjoint.get_config()}
