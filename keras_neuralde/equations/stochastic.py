"""Stochastic equations at the front door."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.config import (
    is_op_determinism_enabled as op_determinism_is_enabled,
)

from keras_neuralde import captures, solvers, values
from keras_neuralde.brownian import BrownianPath, CutGridPath
from keras_neuralde.equations.base import Equation, Lifted, checked, spanning
from keras_neuralde.equations.ordinary import refuse_delay_solver
from keras_neuralde.programs import function_key
from keras_neuralde.settings import Shape
from keras_neuralde.stochastic_field import StochasticField, StochasticFunctions

# The adjoints that know what to do with noise.
_ADJOINTS = ("discrete", "forward", "backsolve", "reversible")


class StochasticEquation(Equation):
    """An `SDEProblem`."""

    def choose_solver(self, solver, adjoint, controller):
        if solver != "auto":
            return solver
        problem = self.problem
        plain = problem.noise != "general" and problem.interpretation == "ito"
        if problem.interpretation == "stratonovich":
            raise ValueError(
                "solver='auto' chooses among adaptive methods, which are for the Itô integral: "
                "name one, such as 'stochastic_heun' with dt0. "
                "Received: interpretation='stratonovich'"
            )
        return "sosri" if plain else "lamba_em"

    def check(self, settings):
        refuse_delay_solver(self.problem, settings.solver)
        problem, solver = self.problem, settings.solver
        stochastic = solvers.stochastic()
        if not solver.stochastic:
            raise ValueError(
                f"an SDEProblem needs a solver for stochastic equations, one of "
                f"{list(stochastic)}. Received: {solver.name!r}"
            )

        def fitting():
            fit = [
                name
                for name, method in stochastic.items()
                if problem.noise in method.noises
                and problem.interpretation in method.interpretations
            ]
            return f"Solvers that can: {fit}."

        if problem.noise not in solver.noises:
            raise ValueError(
                f"solver {solver.name!r} takes the noise types {list(solver.noises)}. "
                f"Received: noise={problem.noise!r}. {fitting()}"
            )
        if problem.interpretation not in solver.interpretations:
            raise ValueError(
                f"solver {solver.name!r} computes the integral of {list(solver.interpretations)}. "
                f"Received: interpretation={problem.interpretation!r}. {fitting()}"
            )
        if settings.dense:
            raise ValueError(
                "dense=True is not for stochastic equations: their paths have no interpolant. "
                "Ask for save points; each of them ends a step."
            )
        _check_adjoint(problem, settings.adjoint)
        if settings.joint:
            raise ValueError(
                "step_control='joint' is not for stochastic equations: each trajectory has its own "
                "noise and its own steps. Leave it out."
            )

    def inputs(self, settings, layout, inputs, seed):
        words, trajectory = words_of(seed, layout)
        return {"seed": words, "trajectory": trajectory}

    def shape(self, saves, watched, settings, inputs):
        times = (inputs[name] for name in ("t0", "t1", "dt0", "saves"))
        on_grid = settings.constant_steps and _on_grid(*times)
        # A Brownian path has no derivative with respect to time.
        return Shape(saves, False, on_grid)

    def key(self, references):
        problem = self.problem
        functions = (function_key(one, references) for one in (problem.f, problem.g))
        return "stochastic", *functions, problem.noise, problem.noise_dim

    def lift(self, layout, p):
        problem = self.problem
        functions = StochasticFunctions(problem.f, problem.g, problem.noise, problem.noise_dim)
        drift = captures.lift(checked(problem.f, layout), *spanning(layout, p))
        return LiftedStochastic(functions.lift(drift, layout, p))


def _check_adjoint(problem, adjoint):
    if adjoint.name not in _ADJOINTS:
        raise ValueError(
            f"a stochastic equation has the gradients {list(_ADJOINTS)}. "
            f"Received: adjoint={adjoint!r}"
        )
    rough = problem.interpretation == "ito" and problem.noise != "additive"
    if adjoint.name == "backsolve" and rough:
        raise ValueError(
            "adjoint='backsolve' follows the Stratonovich integral: use adjoint='discrete', or "
            "rewrite the drift as f - ½ Σ (∂g/∂y) g with interpretation='stratonovich'. "
            "Received: interpretation='ito'"
        )


class LiftedStochastic(Lifted):
    """The traced drift and diffusion.

    Args:
        lifted: the `LiftedEquation`.
        silent: as in `StochasticField`.
    """

    def __init__(self, lifted, silent=0):
        self.functions = (lifted.drift, lifted.diffusion)
        self.lifted, self._silent = lifted, silent

    def with_silent(self, count):
        """The same where no noise drives the last `count` components of the state."""
        shared = self.lifted.columns is not None or self.lifted.noise == "scalar"
        return LiftedStochastic(self.lifted, 0 if shared else count)

    def bind(self, context):
        layout, silent = context.layout, self._silent
        path = _brownian_path(self.lifted.components(layout) - silent, context)
        return StochasticField(
            self.lifted, layout, context.batch_dims, context.p_leaves, path, silent
        )


def _brownian_path(components, context):
    """The noise of all rows. It covers the whole span, whatever the save points are."""
    settings, inputs, terms = context.settings, context.inputs, context.terms
    rows = tf.shape(terms.t0)[0]
    end = tf.broadcast_to(tf.reshape(inputs["t1"], [-1]), [rows])
    trajectory = trajectories_of(inputs, rows)
    cell = inputs["dt0"] if settings.constant_steps else None
    shape = context.shape
    common = inputs["seed"], trajectory, components, terms.t0, end, cell
    # Whether the save points are known to lie on the grid must not decide what the noise is.
    if shape.cut and settings.constant_steps:
        return CutGridPath(*common)
    return BrownianPath(*common, split=not shape.on_grid)


def trajectories_of(inputs, rows):
    """The numbers of the trajectories, `(rows,)` int32."""
    trajectory = inputs["trajectory"]
    return tf.range(rows) if trajectory is None else tf.reshape(trajectory, [-1])


class TrajectorySeeds(NamedTuple):
    """The noise of the trajectories with given numbers: what an ensemble passes as `seed`.

    Attributes:
        seed: the ensemble's, an integer or a `(2,)` tensor.
        trajectory: int32 of the batch shape.
    """

    seed: Any
    trajectory: tf.Tensor


def words_of(seed, layout):
    """The words of the seed, `(2,)` or `(rows, 2)` int32, and the trajectories' numbers."""
    if isinstance(seed, TrajectorySeeds):
        return words_of(seed.seed, layout)[0], seed.trajectory
    if seed is None:
        return _fresh_seed(), None
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        words = [int(seed) % 2**32, (int(seed) >> 32) % 2**32]
        return tf.constant(np.array(words, np.uint32).view(np.int32)), None
    if not (values.is_tensor(seed) or isinstance(seed, np.ndarray)):
        raise TypeError(
            f"`seed` must be an integer, a tensor of integers or None. Received: {seed!r}"
        )
    seed = tf.convert_to_tensor(seed)
    if not seed.dtype.is_integer:
        raise TypeError(f"`seed` must hold integers. Received: {seed.dtype.name}")
    if seed.dtype.size != 4:
        seed = tf.cast(seed, tf.int32)
    seed = tf.bitcast(seed, tf.int32)
    if seed.shape.rank == 0:
        return tf.stack([seed, tf.zeros_like(seed)]), None
    each = tf.TensorShape(layout.batch_shape).concatenate([2])
    if seed.shape.rank > 1 and seed.shape.is_compatible_with(each):
        return tf.reshape(seed, (-1, 2)), tf.zeros_like(seed[..., 0])
    if not seed.shape.is_compatible_with([2]):
        raise ValueError(
            f"`seed` must be a scalar, of shape (2,), or {each} for a seed of each trajectory. "
            f"Received shape: {seed.shape}"
        )
    return seed, None


def refuse_missing_seed():
    """Raises where TensorFlow was told that every run must give the same numbers."""
    if op_determinism_is_enabled():
        raise ValueError(
            "tf.config.experimental.enable_op_determinism() asks for the same numbers in every "
            "run: give this solve a `seed`. Received: seed=None"
        )


def _fresh_seed():
    refuse_missing_seed()
    return draw_seed()


def draw_seed():
    """A seed that nobody chose, `(2,)` int32: a new one at every call, also of a graph."""
    if tf.executing_eagerly():
        return tf.constant(np.random.default_rng().integers(-(2**31), 2**31, 2, dtype=np.int32))
    limits = {"minval": tf.int32.min, "maxval": tf.int32.max}
    return tf.random.uniform((2,), dtype=tf.int32, **limits)


def _on_grid(t0, t1, step, saves):
    """Whether every save point is known to end a step of the grid."""
    if saves is None:
        return True
    start, end, step, times = (values.known(value) for value in (t0, t1, step, saves))
    if start is None or end is None or step is None or times is None:
        return False
    start, end = start[..., None], end[..., None]
    steps = np.abs(times - start) / step
    eps = np.finfo(times.dtype).eps
    slack = 4 * eps * (steps + (np.abs(start) + np.abs(times)) / step)
    whole = np.abs(steps - np.round(steps)) <= slack
    return bool(np.all(whole | (times == end) | np.isnan(times)))
