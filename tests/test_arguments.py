"""Wrong values for every argument of everything public: each is refused by a sentence, at once.

What is public is read from the package and from the reference page. A function, class, method or
argument that is new fails `test_nothing_is_left_out` until it has a row here.
"""

import ast
import functools
import importlib
import inspect
import pathlib
import re
import traceback
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde import execution, freezing
from keras_neuralde.solve import SOLVE_KEYWORDS

ROOT = pathlib.Path(nde.__file__).parent
REFERENCE = pathlib.Path(__file__).parents[1] / "docs" / "reference.md"

NAN = float("nan")
NAMES = ("nonsense", "", 3, None)
WHOLE = (0, -1, 1.5, NAN, "two", True, None, [1])
FLAGS = ("no", 2, None, [])
FUNCTIONS = (3, "f", None)
NUMBERS = ("a", NAN, None, [1.0, 2.0], lambda: 1.0)
POSITIVE = (*NUMBERS, 0.0, -1.0, float("inf"))
SIZES = (*NUMBERS, -1.0)
ARRAYS = ("a", ["a"], None, [[1.0], [2.0, 3.0]], 1j, object())
MODELS = (3, "dense", None, lambda y: y)
PATHS = (3, None, 1.5)


def given(values):
    """The values without `None`, where that has a meaning."""
    return tuple(value for value in values if value is not None)


class Case(NamedTuple):
    """How something public is called, and what it must refuse.

    Attributes:
        call: called with keywords.
        valid: keywords that it takes.
        wrong: for each argument the values that it does not take.
        free: arguments that have no wrong value of their own, with the reason.
    """

    call: Any
    valid: dict
    wrong: dict
    free: dict = {}


def decay(t, y, p):
    return -p * y


def delayed(t, y, h, p):
    return -h(t - 1.0)


def past(t, p):
    return tf.ones(2, tf.float64)


def jumped(t, y, p):
    return y + 1.0


ONE = np.float64(1.0)
Y0 = np.ones(2)
SPAN = (0.0, 1.0)
TIMES = np.linspace(0.0, 1.0, 6)
DATA = np.ones((6, 2))
ODE = nde.ODEProblem(decay, Y0, SPAN, ONE)
SDE = nde.SDEProblem(decay, decay, Y0, SPAN, ONE)
JUMP = nde.ConstantRateJump(1.0, jumped)

_SPANS = (3, "ab", None, (0.0,), (0.0, 1.0, 2.0), (0.0, "b"), (0.0, None), (NAN, 1.0), {0.0, 1.0})
_STATES = (
    None, "a", [], {}, np.ones(2, int), 1j, np.ones(2, complex), [1.0, NAN], [[1.0], [2.0, 3.0]],
    object(), lambda: 1.0, tf.constant("a"), np.ones(2, np.float16),
)  # fmt: skip
_PARAMETERS = ("a", ["a"], 1j, object(), np.float32(1.0), [[1.0], [2.0, 3.0]], lambda: 1.0)
_PROBLEMS = (3, None, "ode", decay)
_SOLVERS = ("nonsense", "", 3, None, ["tsit5"], ONE)
_OTHER_STATES = ([1.0, 1.0, 1.0], {})  # tolerances for states of another form
_TOLERANCES = ("a", "1e-3", -1.0, NAN, 1j, object(), tf.constant("a"), *_OTHER_STATES)
_SAVES = ("a", "0.5", [], NAN, [0.5, NAN], [1.0, 0.5], [0.5, 2.0], -1.0, 1j, np.ones((3, 2, 2)))

SOLVE = {
    "saveat": (*_SAVES, tf.constant("a")),
    "rtol": _TOLERANCES,
    "atol": _TOLERANCES,
    "dt0": ("a", "0.1", 0.0, -1.0, NAN, float("inf"), [0.1, 0.1], 1j, object()),
    "dt_min": ("a", "0.1", -1.0, NAN, float("inf"), [0.1, 0.1], None, object()),
    "max_steps": WHOLE,
    "controller": (*given(NAMES), ["I"], object()),
    "norm": (*NAMES, ["rms"], Y0),
    "batch_ndims": (-1, 1.5, "one", True, None, 2),
    "step_control": (*NAMES, ["joint"]),
    "adjoint": (*NAMES, ["discrete"], object()),
    "checkpoints": WHOLE,
    "events": (3, None, "event", [3], decay),
    "seed": (1.5, "a", True, [1, 2], np.ones(2), np.ones(3, int), object()),
    "steps": ("a", [0.0], 1.0, np.ones((2, 2, 2)), [0.0, 1.0, 0.5], object()),
    "dense": FLAGS,
    "max_record": WHOLE,
    "throw": FLAGS,
    "progress": FLAGS,
}


@functools.cache
def solution():
    return nde.solve(ODE, saveat=TIMES, dense=True)


@functools.cache
def ensemble():
    return nde.solve_ensemble(ODE, 3, saveat=TIMES)


def solved(kind, solver="rodas5p", **keywords):
    """Makes a problem and solves it: some of its fields mean something to a solve only."""
    return lambda **fields: nde.solve(kind(**fields), solver, **keywords)


def dense(units=2):
    return keras.layers.Dense(units)


@functools.cache
def called(kind):
    """A layer that has been built."""
    if kind is nde.NeuralODE:
        layer = nde.NeuralODE(dense(), SPAN, "euler", dt0=0.5)
    else:
        layer = nde.NeuralDSDE(
            dense(), dense(), SPAN, "euler_maruyama", dt0=0.5, controller="constant"
        )
    layer.build((None, 2))
    return layer


_LAYER = {
    "t_span": _SPANS,
    "solver": _SOLVERS,
    "saveat": (*_SAVES, [[1.0], [1.0, 0.5]]),
    "time_dependent": FLAGS,
    "**keywords": ({"rtoll": 1.0}, {"batch_ndims": 1}, {"dense": True}),
}
_STOCHASTIC = _LAYER | {
    "drift": MODELS,
    "diffusion": MODELS,
    "solver": (*_SOLVERS, "tsit5"),
    "trajectories": given(WHOLE),
    "seed": (1.5, "a", True, [1]),
}
_STOCHASTIC_VALID = {"drift": dense(), "diffusion": dense(), "t_span": SPAN}
_QUASI_NEWTON = {
    "initial_step_norm": given(POSITIVE),
    "engine": NAMES,
    "gradient_tolerance": SIZES,
    "loss_tolerance": SIZES,
    "max_evaluations": WHOLE,
    "freeze_steps": FLAGS,
    "**keywords": ({"clipnorm": 1.0}, {"learning_rate": 0.1}),
}
_OF_KERAS = {"name": "Keras's"}
_KEYWORDS_OF_KERAS = {"**keywords": "Keras's"}
_AXES = (1.5, "a", None, True, [1])
_DRAWN = {
    "data": ("a", [1.0, 2.0], [["a", "b"]] * 6, object()),
    "ax": (3, "axes"),
    "labels": (3, "ab", [1, 2], ["a"]),
}
_CALLED = {"training": "Keras's"}
_TABLES = (3, "nonsense", "", None, [1.0])
_LINEAR_SOLVERS = (3, "nonsense", "", None, ["dense"])
_ADJOINT = {"rtol": given(SIZES), "atol": given(SIZES), "nodes": given(WHOLE)}


def exported(**keywords):
    return nde.export_saved_model(**{"signatures": "serving_default"} | keywords)


CASES = {
    "solve": Case(
        lambda **k: nde.solve(**k),
        {"problem": SDE, "solver": "lamba_em"},
        {"problem": _PROBLEMS, "solver": _SOLVERS, **SOLVE},
    ),
    "solve_ensemble": Case(
        nde.solve_ensemble,
        {"problem": ODE, "trajectories": 2},
        {
            "problem": _PROBLEMS,
            "trajectories": WHOLE,
            "solver": _SOLVERS,
            "vary": (3, "f"),
            "seed": (1.5, "a", True, [1]),
            "batch_size": given(WHOLE),
            "strategy": (3, "mirrored", object()),
            "progress": given(FLAGS),
            "**keywords": (
                {"rtoll": 1.0},
                {"batch_ndims": 1},
                {"dense": True},
                {"saveat": [[0.5], [1.0]]},
                {"saveat": "a"},
                {"rtol": -1.0},
            ),
        },
    ),
    "ODEProblem": Case(
        solved(nde.ODEProblem),
        {"f": decay, "y0": Y0, "t_span": SPAN, "p": ONE},
        {
            "f": FUNCTIONS,
            "y0": _STATES,
            "t_span": _SPANS,
            "p": _PARAMETERS,
            "mass_matrix": ("a", 1.0, np.ones(2), np.eye(3), [[1.0, NAN], [0.0, 1.0]], object()),
            "jacobian": given(FUNCTIONS),
            "jac_sparsity": ("a", 1.0, np.ones(2), np.eye(3), [[1.0], [1.0, 1.0]], object()),
        },
    ),
    "SplitODEProblem": Case(
        solved(nde.SplitODEProblem, "kencarp4"),
        {"f_explicit": decay, "f_implicit": decay, "y0": Y0, "t_span": SPAN, "p": ONE},
        {
            "f_explicit": FUNCTIONS,
            "f_implicit": FUNCTIONS,
            "y0": _STATES,
            "t_span": _SPANS,
            "p": _PARAMETERS,
        },
    ),
    "SDEProblem": Case(
        solved(nde.SDEProblem, "lamba_em"),
        {"f": decay, "g": decay, "y0": Y0, "t_span": SPAN, "p": ONE, "noise": "general"},
        {
            "f": FUNCTIONS,
            "g": FUNCTIONS,
            "y0": _STATES,
            "t_span": _SPANS,
            "p": _PARAMETERS,
            "noise": (*NAMES, ["general"]),
            "noise_dim": given(WHOLE),
            "interpretation": (*NAMES, ["ito"]),
        },
    ),
    "DDEProblem": Case(
        solved(nde.DDEProblem, "tsit5"),
        {"f": delayed, "y0": Y0, "history": past, "t_span": SPAN, "p": ONE, "lags": [1.0]},
        {
            "f": FUNCTIONS,
            "y0": _STATES,
            "history": FUNCTIONS,
            "t_span": _SPANS,
            "p": _PARAMETERS,
            "lags": (
                3,
                None,
                "a",
                [],
                ["a"],
                [0.0],
                [-1.0],
                [NAN],
                [None],
                [1.0, 1.0],
                [[1.0, 2.0, 3.0]],
            ),
        },
    ),
    "JumpProblem": Case(
        nde.JumpProblem,
        {"problem": ODE, "jumps": [JUMP]},
        {"problem": _PROBLEMS, "jumps": (3, None, "jump", [], [3], decay)},
    ),
    "ConstantRateJump": Case(
        nde.ConstantRateJump,
        {"rate": 1.0, "affect": jumped},
        {
            "rate": ("a", "1.0", None, -1.0, NAN, float("inf"), 1j, object()),
            "affect": FUNCTIONS,
            "mark_sampler": given(FUNCTIONS),
            "mark_size": WHOLE,
        },
    ),
    "VariableRateJump": Case(
        nde.VariableRateJump,
        {"rate": decay, "affect": jumped},
        {
            "rate": ("a", None, -1.0, NAN, 1j, object()),
            "affect": FUNCTIONS,
            "bound": ("a", -1.0, NAN, 1j, object()),
            "mark_sampler": given(FUNCTIONS),
            "mark_size": WHOLE,
        },
    ),
    "ContinuousEvent": Case(
        nde.ContinuousEvent,
        {"condition": decay},
        {
            "condition": FUNCTIONS,
            "affect": given(FUNCTIONS),
            "direction": (2, 0.5, "up", None, True),
            "terminal": FLAGS,
            "max_events": WHOLE,
        },
    ),
    "PresetTimeEvent": Case(
        lambda **k: nde.solve(ODE, "tsit5", events=[nde.PresetTimeEvent(**k)]),
        {"times": [0.5], "affect": jumped},
        {
            "times": (*ARRAYS, [], [0.5, 0.5], [0.1, 0.9, 0.5], [NAN, 0.5], [np.inf]),
            "affect": FUNCTIONS,
        },
    ),
    "DiscreteEvent": Case(
        nde.DiscreteEvent,
        {"condition": decay},
        {
            "condition": FUNCTIONS,
            "affect": given(FUNCTIONS),
            "terminal": FLAGS,
            "max_events": WHOLE,
        },
    ),
    "expectation": Case(
        nde.expectation,
        {"values": np.ones((3, 2)), "log_likelihood": np.ones(3)},
        {
            "values": (*ARRAYS, 1.0, np.ones((4, 2)), np.ones((3, 2), np.float32)),
            "log_likelihood": (*ARRAYS, 1.0, np.ones((3, 2, 1)), np.ones(3, int)),
        },
    ),
    "consistent_state": Case(
        nde.consistent_state,
        {"problem": ODE.remake(mass_matrix=np.diag([1.0, 0.0]))},
        {"problem": _PROBLEMS, "batch_ndims": (-1, 1.5, "one", None, 2), "max_iterations": WHOLE},
    ),
    "Solution.__call__": Case(
        lambda t: solution()(t), {"t": 0.5}, {"t": (*ARRAYS, 2.0, -1.0, np.ones((2, 2)))}
    ),
    "Solution.plot": Case(
        lambda **k: solution().plot(**k),
        {},
        {"**keywords": tuple({name: v} for name, vs in _DRAWN.items() for v in vs)},
    ),
    "EnsembleSolution.summary": Case(
        lambda **k: ensemble().summary(**k),
        {},
        {
            "quantiles": (*ARRAYS, 2.0, [-0.1], NAN),
            "at": (*given(ARRAYS), 0.123, [0.2, 7.0], [[0.2, 0.4]]),
        },
    ),
    "EnsembleSolution.plot": Case(
        lambda **k: ensemble().plot(**k),
        {},
        {"**keywords": tuple({name: v} for name, vs in _DRAWN.items() for v in vs)},
    ),
    "Summary.plot": Case(lambda **k: ensemble().summary().plot(**k), {}, _DRAWN),
    **{
        f"{kind.__name__}.remake": Case(made.remake, {}, {"**fields": ({"x0": 1.0}, {"t_span": 3})})
        for kind, made in (
            (nde.ODEProblem, ODE),
            (nde.SDEProblem, SDE),
            (nde.SplitODEProblem, nde.SplitODEProblem(decay, decay, Y0, SPAN, ONE)),
            (nde.DDEProblem, nde.DDEProblem(delayed, Y0, past, SPAN, lags=[1.0])),
            (nde.JumpProblem, nde.JumpProblem(ODE, [JUMP])),
        )
    },
    "NeuralODE": Case(
        nde.NeuralODE, {"model": dense(), "t_span": SPAN}, {**_LAYER, "model": MODELS}
    ),
    "NeuralODE.call": Case(
        lambda inputs: called(nde.NeuralODE)(inputs),
        {"inputs": np.ones((3, 2), "float32")},
        {"inputs": ([np.ones((3, 2))], [np.ones((3, 2))] * 3)},
        _CALLED,
    ),
    "NeuralDSDE": Case(nde.NeuralDSDE, _STOCHASTIC_VALID, _STOCHASTIC),
    "NeuralDSDE.call": Case(
        lambda inputs, seed=0: called(nde.NeuralDSDE)(inputs, seed=seed),
        {"inputs": np.ones((3, 2), "float32")},
        {
            "inputs": ([np.ones((3, 2))], [np.ones((3, 2))] * 3),
            "seed": (1.5, "a", 2**40, np.ones(2), [1.5, 2.0]),
        },
        _CALLED,
    ),
    "NeuralSDE": Case(
        nde.NeuralSDE,
        _STOCHASTIC_VALID | {"noise_dim": 1},
        {**_STOCHASTIC, "noise_dim": WHOLE},
    ),
    "NeuralCDDE": Case(
        nde.NeuralCDDE,
        {"model": dense(), "t_span": SPAN, "lags": [0.1]},
        {
            **_LAYER,
            "model": MODELS,
            "lags": (*ARRAYS, [], [0.0], [-1.0], [NAN], 0.1, [0.1, 0.1]),
            "history": (3, "nonsense", "", Y0),
            "trainable_lags": FLAGS,
        },
    ),
    "NeuralJumpSDE": Case(
        nde.NeuralJumpSDE,
        _STOCHASTIC_VALID | {"jump": dense(), "rate": dense(1), "rate_bound": 1.0},
        {
            **_STOCHASTIC,
            "jump": MODELS,
            "rate": ("a", None, True, -1.0, NAN, float("inf"), [1.0], lambda y: y),
            "rate_bound": (*SIZES, float("inf")),
            "log_likelihood": FLAGS,
        },
    ),
    "NeuralODEMM": Case(
        nde.NeuralODEMM,
        {"model": dense(1), "constraints": dense(1), "t_span": SPAN, "mass_matrix": np.eye(2)},
        {
            **_LAYER,
            "model": MODELS,
            "constraints": (3, "f", None),
            "mass_matrix": (*ARRAYS, 1.0, np.ones(2), np.ones((2, 3)), [[1.0, NAN], [0.0, 1.0]]),
            "solver": (*_SOLVERS, "tsit5"),
        },
    ),
    "FiniteDifference": Case(
        nde.FiniteDifference,
        {"derivative": 1, "spacing": 0.1},
        {
            "derivative": (0, 3, 1.5, "a", None, True),
            "spacing": POSITIVE,
            "border": (*NAMES, ["periodic"]),
            "value": (*ARRAYS, NAN, [1.0, 2.0, 3.0]),
            "axis": _AXES,
        },
        _KEYWORDS_OF_KERAS,
    ),
    "Laplacian": Case(
        nde.Laplacian,
        {"spacing": 0.1},
        {
            "spacing": ("a", None, 0.0, -1.0, NAN, [], ["a"], [0.1, 0.0], [[0.1], [0.1]]),
            "border": (*NAMES, ["periodic"] * 2, ["nonsense"]),
            "value": (*ARRAYS, NAN, [1.0, 2.0, 3.0], np.ones((2, 2))),
            "axis": _AXES,
        },
        _KEYWORDS_OF_KERAS,
    ),
    "SpectralDerivative": Case(
        nde.SpectralDerivative,
        {"derivative": 1, "length": 1.0},
        {
            "derivative": WHOLE,
            "length": POSITIVE,
            "axis": _AXES,
            "border": (*NAMES, ["periodic"]),
            "value": (*ARRAYS, NAN, [1.0, 2.0, 3.0]),
        },
        _KEYWORDS_OF_KERAS,
    ),
    "export_saved_model": Case(
        exported,
        {"model": called(nde.NeuralODE), "path": "/nowhere"},
        {
            "model": MODELS,
            "path": PATHS,
            "signatures": (3, [], ["other"], ["at_times"], [3], {}),
            "xla": FLAGS,
            "warmup": (
                3,
                "a",
                [Y0, Y0],
                [("other", {})],
                [("serving_default", 3)],
                [("serving_default", {"y0": "a"})],
                [("serving_default", {"y": Y0})],
            ),
        },
    ),
    "minimize": Case(
        nde.minimize,
        {
            "loss": lambda p: tf.reduce_sum(p**2),
            "params": [1.0],
            "optimizer": nde.optimizers.BFGS(),
        },
        {
            "loss": FUNCTIONS,
            "params": (None, "a", {}, [], object(), 1j, [np.ones(2), np.ones(2, np.float32)]),
            "optimizer": (3, None, [], "nonsense", "", [nde.optimizers.BFGS()]),
            "max_iters": given(WHOLE),
            "max_evaluations": given(WHOLE),
            "bounds": (
                3,
                "ab",
                (1.0,),
                ("a", None),
                (2.0, 3.0),
                (3.0, 2.0),
                (None, [1.0, 2.0, 3.0]),
                (NAN, None),
                (None, object()),
            ),
            "batches": (3, []),
            "callback": (3, "f"),
            "restarts": (-1, 1.5, "two", None, True),
            "freeze_steps": FLAGS,
            "progress": FLAGS,
            "jit_compile": FLAGS,
        },
    ),
    "flatten_parameters": Case(nde.flatten_parameters, {"model": dense()}, {"model": MODELS}),
    "growing_horizons": Case(
        nde.growing_horizons,
        {"times": TIMES, "data": DATA, "horizons": [0.5, 1.0], "iterations": 3},
        {
            "times": (*ARRAYS, 1.0, [0.0], [1.0, 0.0], [0.0, NAN], TIMES[:3]),
            "data": (*ARRAYS, 1.0, NAN * DATA, DATA[:3]),
            "horizons": (*ARRAYS, [], [0.5, 0.1], [NAN], [-1.0], [0.5, np.inf]),
            "iterations": (0, -1, 1.5, "a", None, True, [1, 2, 3], [1, 0]),
        },
    ),
    "shooting_groups": Case(
        nde.shooting_groups,
        {"count": 6, "group_size": 3},
        {"count": (*WHOLE, 1), "group_size": (*WHOLE, 1, 7)},
    ),
    "multiple_shooting": Case(
        nde.multiple_shooting,
        {"problem": ODE, "times": TIMES, "data": DATA, "group_size": 3},
        {
            "problem": (*_PROBLEMS, SDE),
            "times": (*ARRAYS, 1.0, [1.0, 0.0], TIMES[:3]),
            "data": (*ARRAYS, 1.0, NAN * DATA, DATA[:3]),
            "group_size": (*WHOLE, 1, 7),
            "solver": _SOLVERS,
            "continuity": ("a", NAN, None, -1.0, [1.0, 2.0], object()),
            "starts": (*given(ARRAYS), np.ones(2)),
            "loss": (3, "mse"),
            "vectorized": FLAGS,
            "**keywords": ({"saveat": TIMES}, {"rtoll": 1.0}, {"rtol": -1.0}),
        },
    ),
    "collocate": Case(
        nde.collocate,
        {"times": TIMES, "data": DATA},
        {
            "times": (*ARRAYS, 1.0, [1.0, 0.0], TIMES[:3]),
            "data": (*ARRAYS, 1.0, NAN * DATA, DATA[:3]),
            "kernel": (*NAMES, ["uniform"]),
            "bandwidth": (*given(POSITIVE), 1e-9),
            "at": (*given(ARRAYS), NAN, [[0.5]]),
        },
    ),
    "collocation_loss": Case(
        nde.collocation_loss,
        {"problem": ODE, "times": TIMES, "y": DATA, "dy": DATA},
        {
            "problem": (*_PROBLEMS, SDE),
            "times": (*ARRAYS, 1.0, [1.0, 0.0], TIMES[:3]),
            "y": (*ARRAYS, 1.0, NAN * DATA, DATA[:3]),
            "dy": (*ARRAYS, 1.0, DATA[:3]),
            "vectorized": FLAGS,
        },
    ),
    "freezing.freeze": Case(
        freezing.freeze,
        {"function": np.sin},
        {"function": FUNCTIONS},
        {"*arguments": "those of the function"},
    ),
    "optimizers.LBFGS": Case(
        nde.optimizers.LBFGS, {}, {"history_size": WHOLE, **_QUASI_NEWTON}, _OF_KERAS
    ),
    "optimizers.BFGS": Case(nde.optimizers.BFGS, {}, _QUASI_NEWTON, _OF_KERAS),
    "optimizers.Chain": Case(
        nde.optimizers.Chain,
        {"optimizers": ["adam", "sgd"], "steps": [3]},
        {
            "optimizers": (3, "adam", None, [3], ["nonsense", "adam"], []),
            "steps": (1.5, "a", None, [1, 2], [-1], [1.5], []),
            "**keywords": ({"clipnorm": 1.0}, {"learning_rate": 0.1}),
        },
        _OF_KERAS,
    ),
    "callbacks.PlotPrediction": Case(
        nde.callbacks.PlotPrediction,
        {"x": Y0},
        {
            "x": (None, [], decay, "logs"),
            "y": given(ARRAYS),
            "t": given(ARRAYS),
            "directory": given(PATHS),
            "every": WHOLE,
            "row": ("a", 1.5, None, (1.5,), [1]),
            "labels": (3, "ab", [1, 2]),
        },
    ),
    "callbacks.SolverStatistics": Case(
        nde.callbacks.SolverStatistics,
        {"x": Y0},
        {"x": (None, [], decay, "logs"), "log_dir": given(PATHS), "every": WHOLE},
    ),
    "plot.solution": Case(
        lambda **k: nde.plot.solution(**{"sol": solution()} | k),
        {},
        {"sol": (3, None, "a", DATA), **_DRAWN},
    ),
    "plot.summary": Case(
        lambda **k: nde.plot.summary(**{"statistics": ensemble().summary()} | k),
        {},
        {"statistics": (3, None, "a", DATA), **_DRAWN},
    ),
    "plot.prediction": Case(
        nde.plot.prediction,
        {"t": TIMES, "y": DATA},
        {"t": (*ARRAYS, TIMES[:3], 1.0), "y": (*ARRAYS, DATA[:3], 1.0), **_DRAWN},
    ),
    "plot.loss": Case(
        nde.plot.loss,
        {"history": [1.0, 0.5]},
        {
            "history": (*ARRAYS, 3, [], {}, {"loss": "a"}, np.ones((2, 2))),
            "ax": _DRAWN["ax"],
            "stages": ("a", ["a"], object()),
        },
    ),
    "controllers.PID": Case(
        nde.controllers.PID,
        {},
        {
            **dict.fromkeys(("P", "I", "D"), (*NUMBERS, np.inf)),
            "safety": POSITIVE,
            "factor_min": (*SIZES, 2.0),
            "factor_max": (*POSITIVE, 0.5),
        },
    ),
    "controllers.get": Case(nde.controllers.get, {}, {"identifier": (*NAMES, ["I"], {}, object())}),
    "controllers.serialize": Case(nde.controllers.serialize, {}, {"controller": (*NAMES, "I", {})}),
    "adjoints.get": Case(nde.adjoints.get, {}, {"identifier": (*NAMES, [], {}, object())}),
    "adjoints.serialize": Case(nde.adjoints.serialize, {}, {"adjoint": (*NAMES, "discrete", {})}),
    "adjoints.Backsolve": Case(nde.adjoints.Backsolve, {}, _ADJOINT),
    "adjoints.Interpolating": Case(nde.adjoints.Interpolating, {}, _ADJOINT),
    "adjoints.Quadrature": Case(nde.adjoints.Quadrature, {}, _ADJOINT),
    "solvers.get": Case(nde.solvers.get, {}, {"identifier": (*_SOLVERS, {}, {"class_name": "A"})}),
    "solvers.serialize": Case(nde.solvers.serialize, {}, {"solver": (*NAMES, "tsit5", {})}),
    "solvers.splitting": Case(nde.solvers.splitting, {}, {"identifier": (*_SOLVERS, "tsit5")}),
    "solvers.as_tfp": Case(
        nde.solvers.as_tfp, {}, {"solver": _SOLVERS, "**keywords": ({"rtoll": 1.0},)}
    ),
    "solvers.ExplicitRungeKutta": Case(
        nde.solvers.ExplicitRungeKutta, {}, {"tableau": (*_TABLES, "rodas5p")}
    ),
    "solvers.Rosenbrock": Case(
        nde.solvers.Rosenbrock,
        {},
        {"tableau": (*_TABLES, "tsit5"), "linear_solver": _LINEAR_SOLVERS},
    ),
    "solvers.DiagonallyImplicit": Case(
        nde.solvers.DiagonallyImplicit,
        {},
        {
            "tableau": (*_TABLES, "tsit5"),
            "newton_limit": (*WHOLE, 1),
            "linear_solver": _LINEAR_SOLVERS,
            "jacobian_reuse": FLAGS,
        },
    ),
    "solvers.ImplicitExplicit": Case(
        nde.solvers.ImplicitExplicit,
        {},
        {
            "tableau": (*_TABLES, "kvaerno5"),
            "newton_limit": (*WHOLE, 1),
            "linear_solver": _LINEAR_SOLVERS,
            "jacobian_reuse": FLAGS,
        },
    ),
    "solvers.Switching": Case(nde.solvers.Switching, {}, {"linear_solver": _LINEAR_SOLVERS}),
    "solvers.MethodOfSteps": Case(
        nde.solvers.MethodOfSteps, {}, {"solver": (*_SOLVERS, "euler_maruyama")}
    ),
    "solvers.LinearSolver": Case(
        nde.solvers.LinearSolver,
        {},
        {
            "kind": (*NAMES, ["dense"], "given"),
            "size": WHOLE,
            "restarts": WHOLE,
            "preconditioner": given(FUNCTIONS),
        },
    ),
}

# Not called by users, or no business of this package.
NOT_CALLED = {
    "EnsembleSolution": "what `solve_ensemble` returns",
    "Solution": "what `solve` returns",
    "Stats": "part of a solution",
    "Summary": "what a solution of an ensemble returns",
    "Collocation": "what `collocate` returns",
    "MinimizeResult": "what `minimize` returns",
    "interpolation.DenseOutput": "part of a solution; called as `Solution.__call__`",
    "Status": "an enumeration",
    "MinimizeStatus": "an enumeration",
    "optimizers.Progress": "an enumeration",
    "SolveError": "an error",
    "Model": "Keras's arguments",
    "ClosureTrainer": "a mixin",
    "solvers.Solver": "a base class without arguments",
    "solvers.Step": "what a solver of one's own returns",
    "controllers.initial_step": "called by the loop",
    **{
        f"tableaus.{kind}Tableau": "tables are checked entry by entry in tests/tableaus"
        for kind in ("Butcher", "Rosenbrock", "ESDIRK")
    },
}
# Methods that the package or Keras calls: solvers, adjoints, controllers and optimizers have no
# others, and of layers users call `call`.
_PARTS = ("solvers.", "adjoints.", "controllers.", "optimizers.", "callbacks.", "tableaus.")
_KERAS_CALLS = {
    "build", "compute_mask", "compute_output_shape", "compute_output_spec", "from_config",
    "get_config", "served_inputs",
}  # fmt: skip
# Methods with the code of another class.
_SAME_METHOD = {
    **dict.fromkeys(("NeuralCDDE.call", "NeuralODEMM.call"), "NeuralODE.call"),
    **dict.fromkeys(("NeuralSDE.call", "NeuralJumpSDE.call"), "NeuralDSDE.call"),
    "EnsembleSolution.__call__": "Solution.__call__",
    "interpolation.DenseOutput.__call__": "Solution.__call__",
    **dict.fromkeys(
        ("FiniteDifference.call", "Laplacian.call", "SpectralDerivative.call"), "Keras's"
    ),
}


def reexported(package):
    """The names that an `__init__.py` hands on: `from x import y as y`, and those it defines."""
    tree = ast.parse(pathlib.Path(package.__file__).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            yield from (one.name for one in node.names if one.asname == one.name)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def public():
    """Everything public by name: of the top level, of the public modules, of the reference."""
    found = {}
    for name in reexported(nde):
        value = getattr(nde, name)
        if not inspect.ismodule(value):
            found[name] = value
            continue
        inner = list(reexported(value))
        for one in inner:
            if callable(getattr(value, one)) and getattr(nde, one, None) is not getattr(value, one):
                found[f"{name}.{one}"] = getattr(value, one)
    found["solvers.as_tfp"] = nde.solvers.as_tfp
    for path in re.findall(r"^::: keras_neuralde\.(\S+)$", REFERENCE.read_text(), re.M):
        module, _, name = path.rpartition(".")
        value = getattr(importlib.import_module(f"keras_neuralde.{module}".rstrip(".")), name)
        known = inspect.ismodule(value) or any(value is one for one in found.values())
        if not known and callable(value):
            found[path] = value
    return found


def methods(kind):
    """The public methods of a class that are written in this package."""
    for name, _ in inspect.getmembers(kind, inspect.isfunction):
        home = next(one for one in kind.__mro__ if name in vars(one))
        ours = home.__module__.startswith("keras_neuralde")
        if ours and (name == "__call__" or not name.startswith("_")):
            yield name


def arguments(function):
    """The names of the arguments, `*` and `**` as they are written."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = inspect.signature(function).parameters.values()
    return [stars.get(one.kind, "") + one.name for one in parameters if one.name != "self"]


def everything():
    """`{name of a callable: its arguments}` of all that users call with arguments."""
    found = {}
    for name, value in public().items():
        enumeration_or_error = isinstance(value, type) and issubclass(value, (int, Exception))
        if name not in NOT_CALLED:
            found[name] = arguments(value)
        if not isinstance(value, type) or enumeration_or_error or name.startswith(_PARTS):
            continue
        if name in ("Model", "ClosureTrainer"):
            continue
        for method in methods(value):
            if method not in _KERAS_CALLS and f"{name}.{method}" not in _SAME_METHOD:
                found[f"{name}.{method}"] = arguments(getattr(value, method))
    return {name: names for name, names in found.items() if names}


def test_nothing_is_left_out():
    expected, tested = everything(), {n: [*c.wrong, *c.free] for n, c in CASES.items()}
    assert sorted(expected) == sorted(tested), set(expected) ^ set(tested)
    for name, names in expected.items():
        assert sorted(names) == sorted(tested[name]), (name, set(names) ^ set(tested[name]))
    assert set(SOLVE) == set(SOLVE_KEYWORDS)
    assert not set(NOT_CALLED) - set(public())


@pytest.fixture
def no_traces(monkeypatch):
    """A solve that gets as far as tracing its functions has refused nothing."""

    def lift(*_):
        raise AssertionError("the argument was taken")

    monkeypatch.setattr(execution, "lift", lift)


def refused(call, keywords, argument, value):
    """`None` if the call is refused as it should be, or what is wrong."""
    try:
        call(**keywords)
    except (TypeError, ValueError) as error:
        said = str(error)
        place = traceback.extract_tb(error.__traceback__)[-1]
        if not pathlib.Path(place.filename).is_relative_to(ROOT):
            return f"raised in {place.filename}:{place.lineno}: {said}"
        plain = rf"(?<!\w){re.escape(argument)}(?!\w)"
        named = re.search(plain if len(argument) > 1 else f"`{argument}", said)
        expected = "must" in said or "needs" in said or "expected" in said
        if not named and not (repr(value) in said and expected):
            return f"names neither argument nor value: {said}"
        if argument not in said and not expected:
            return f"does not say what was expected: {said}"
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "taken"


ROWS = [(name, argument) for name, case in CASES.items() for argument in case.wrong]


@pytest.mark.parametrize(("name", "argument"), ROWS, ids=[".".join(row) for row in ROWS])
def test_wrong_values(name, argument, request):
    case = CASES[name]
    if name.split(".")[0] in ("Solution", "EnsembleSolution", "Summary", "plot"):
        pyplot = pytest.importorskip("matplotlib.pyplot", reason="needs Matplotlib")
        assert len(solution().t) == len(ensemble().t)
        request.addfinalizer(lambda: pyplot.close("all"))
    request.getfixturevalue("no_traces")
    wrong = {}
    for value in case.wrong[argument]:
        given = value if argument.startswith("**") else {argument: value}
        for key, one in given.items():
            said = refused(case.call, {**case.valid, **given}, key, one)
            if said:
                wrong[f"{key}={one!r}"] = said
    assert not wrong, "\n".join(f"{what}: {said}" for what, said in wrong.items())


# Arguments of the layers themselves, and the seed, which an ordinary equation does not read.
_OF_LAYERS = ("saveat", "batch_ndims", "dense", "seed")


@pytest.mark.parametrize("name", [name for name in SOLVE if name not in _OF_LAYERS])
@pytest.mark.parametrize("kind", [nde.NeuralODE, nde.NeuralDSDE])
def test_keywords_of_solve_in_layers(kind, name, no_traces):
    """They are refused when the layer is made; `steps`, whose shape depends on y0, at the call."""
    valid = _STOCHASTIC_VALID if kind is nde.NeuralDSDE else {"model": dense(), "t_span": SPAN}

    def call(**keywords):
        layer = kind(**valid, **keywords)
        if name == "steps":
            layer(np.ones((3, 2), "float32"))

    values = [value for value in SOLVE[name] if not any(value is one for one in _OTHER_STATES)]
    found = {repr(value): refused(call, {name: value}, name, value) for value in values}
    wrong = {value: said for value, said in found.items() if said}
    assert not wrong, "\n".join(f"{value}: {said}" for value, said in wrong.items())
