"""Signatures: what an editor or a type checker reads is there, and says what the program takes."""

import dataclasses
import enum
import inspect
import pathlib
import pkgutil
import re
import typing

import keras
import pytest

import keras_neuralde as nde
from keras_neuralde import export, long_series, options, problems
from keras_neuralde.layers import neural_cdde, operators
from keras_neuralde.optimizers import quasi_newton
from keras_neuralde.solve import SOLVE_KEYWORDS
from keras_neuralde.tfp import TFPOptions

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODULES = (nde, nde.adjoints, nde.callbacks, nde.controllers, nde.layers, nde.optimizers)
MODULES += (nde.plot, nde.solvers)
# What others call, not users: their methods follow the bases of Keras and of the solvers.
FRAMEWORK = (
    nde.solvers.Solver,
    nde.adjoints.Adjoint,
    nde.ClosureTrainer,
    keras.layers.Layer,
    keras.optimizers.Optimizer,
    keras.callbacks.Callback,
)


def public():
    """Every class and function that users can name, by its name."""
    found = {}
    for module in MODULES:
        for name, thing in vars(module).items():
            own = getattr(thing, "__module__", "").startswith(module.__name__)
            if own and not name.startswith("_") and callable(thing):
                found[f"{thing.__module__}.{thing.__qualname__}"] = thing
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for name in re.findall(r"::: (.*)", page):
        thing = pkgutil.resolve_name(name)
        if callable(thing):
            found[f"{thing.__module__}.{thing.__qualname__}"] = thing
    return found


def functions(thing):
    """A function itself; of a class its constructor and the methods that users call."""
    if not inspect.isclass(thing):
        yield thing
        return
    if not issubclass(thing, (enum.Enum, Exception)):
        maker = thing.__new__ if issubclass(thing, tuple) else thing.__init__
        if getattr(maker, "__module__", None) == thing.__module__ or dataclasses.is_dataclass(
            thing
        ):
            yield maker
    if issubclass(thing, FRAMEWORK):
        return
    for name, member in vars(thing).items():
        member = getattr(member, "fget", None) or getattr(member, "func", None) or member
        member = getattr(member, "__func__", member)
        called = not name.startswith("_") or name == "__call__"
        if called and inspect.isfunction(member) and member.__module__ == thing.__module__:
            yield member


PUBLIC = public()


def test_what_is_public_is_found():
    assert {"keras_neuralde.solve.solve", "keras_neuralde.plot.loss"} <= set(PUBLIC)
    assert len(PUBLIC) > 80
    names = {f.__qualname__ for f in functions(nde.Solution)}
    assert {"Solution.__init__", "Solution.__call__", "Solution.plot", "Solution.steps"} <= names


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_signatures_are_annotated_and_resolve(name):
    for function in functions(PUBLIC[name]):
        hints = typing.get_type_hints(function)
        parameters = inspect.signature(function).parameters
        bare = [p for p in parameters if p not in hints and p not in ("self", "cls", "_cls")]
        assert not bare, (function.__qualname__, bare)
        constructor = function.__name__ in ("__init__", "__new__")
        assert constructor or "return" in hints, function.__qualname__
    if inspect.isclass(PUBLIC[name]):
        typing.get_type_hints(PUBLIC[name])


def literals(alias):
    """The strings among the types of an alias."""
    return set(typing.get_args(alias))


def test_the_listed_names_are_the_names():
    assert literals(options.SolverName) == set(nde.solvers.names())
    assert literals(options.AdjointName) == set(nde.adjoints.names())
    assert literals(options.ControllerName) == set(nde.controllers._NAMED)
    assert literals(problems.Noise) == set(problems.NOISES)
    assert literals(long_series.Kernel) == set(long_series.KERNELS)
    assert literals(quasi_newton.Engine) == {"native", "tfp"}
    assert literals(operators.Border) == {"dirichlet", "neumann", "periodic"}
    assert neural_cdde._SAMPLED == "sampled"


def test_handed_on_keywords_are_those_of_solve():
    keywords = set(SOLVE_KEYWORDS)
    of_layer = set(options.LayerOptions.__annotations__)
    layers = set(options.LayerKeywords.__annotations__)
    assert of_layer - layers == keywords - {"saveat", "batch_ndims", "dense", "seed"}
    of_ensemble = set(options.EnsembleOptions.__annotations__)
    assert of_ensemble == keywords - {"batch_ndims", "dense", "seed", "progress"}
    assert set(options.SolveOptions.__annotations__) < of_ensemble
    assert set(TFPOptions.__annotations__) < keywords


def test_annotations_of_solve_and_of_handed_on_keywords_agree():
    hints = typing.get_type_hints(nde.solve)
    for name, kind in typing.get_type_hints(options.EnsembleOptions).items():
        assert hints[name] == kind, name
    assert hints["return"] is nde.Solution


def test_the_package_says_that_it_is_typed():
    assert (pathlib.Path(nde.__file__).parent / "py.typed").exists()
    assert "keras_neuralde = py.typed" in (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert export.export_saved_model.__annotations__["return"] == dict[str, list[str]]
