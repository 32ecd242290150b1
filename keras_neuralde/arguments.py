"""What a caller of `solve` passes, checked at the door and made into tensors and settings."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.config import (
    is_op_determinism_enabled as op_determinism_is_enabled,
)

from keras_neuralde import adjoints, controllers, solvers, values
from keras_neuralde.history import DelayFunctions
from keras_neuralde.problems import DDEProblem, ODEProblem, SDEProblem
from keras_neuralde.solvers.delegated import warn_about_joint_steps
from keras_neuralde.state import StateLayout
from keras_neuralde.stochastic_field import StochasticFunctions

_NORMS = ("rms", "max")
_STEP_CONTROLS = ("per_sample", "joint")


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
        _choice("norm", norm, _NORMS)
        _choice("step_control", step_control, _STEP_CONTROLS)
        _at_least("max_steps", max_steps, 1)
        _at_least("checkpoints", checkpoints, 1)
        _at_least("batch_ndims", batch_ndims, 0)
        _at_least("max_record", max_record, 1)
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


def _choice(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {list(allowed)}. Received: {value!r}")


def _at_least(name, value, least):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}. Received: {value!r}")


def choose_solver(problem, solver):
    """The solver that `"auto"` stands for; for a delay equation, wrapped in `MethodOfSteps`."""
    if isinstance(problem, DDEProblem):
        solver = solvers.get(solver)
        return solver if solver.remembers else solvers.MethodOfSteps(solver)
    if not isinstance(problem, SDEProblem) or solver != "auto":
        return solver
    plain = problem.noise != "general" and problem.interpretation == "ito"
    if problem.interpretation == "stratonovich":
        raise ValueError(
            "solver='auto' chooses among adaptive methods, which are for the Itô integral: name "
            "one, such as 'stochastic_heun' with dt0. Received: interpretation='stratonovich'"
        )
    return "sosri" if plain else "lamba_em"


def check_problem(problem, settings):
    """Refuses what is no problem that the solver can take."""
    if not isinstance(problem, (ODEProblem, SDEProblem, DDEProblem)):
        raise TypeError(
            "`problem` must be an ODEProblem, an SDEProblem or a DDEProblem. "
            f"Received: {problem!r} of type {type(problem).__name__}"
        )
    solver = settings.solver
    if isinstance(problem, DDEProblem):
        _check_delayed(settings)
        return
    if solver.remembers:
        raise ValueError(
            f"MethodOfSteps is for a DDEProblem; give its inner solver {solver.name!r} to a "
            f"{type(problem).__name__}."
        )
    if isinstance(problem, SDEProblem):
        _check_stochastic(problem, settings)
        return
    if solver.stochastic:
        raise ValueError(
            f"solver {solver.name!r} is for an SDEProblem; an ODEProblem has no noise. Use an ODE "
            "solver such as 'tsit5'."
        )
    for name in ("mass_matrix", "jacobian", "jac_sparsity"):
        if getattr(problem, name) is not None and not solver.implicit:
            raise ValueError(
                f"`{name}` belongs to implicit solvers, such as 'rodas5p'; solver "
                f"{solver.name!r} cannot use it. Leave it out, or choose an implicit solver."
            )
    if problem.jacobian is not None and not callable(problem.jacobian):
        raise TypeError(
            f"`jacobian` must be a function jacobian(t, y, p). Received: {problem.jacobian!r}"
        )


def _mass_matrix(problem, solver, layout):
    """The inputs that a mass matrix adds."""
    if problem.mass_matrix is None:
        return {}
    n, dtype = layout.width, layout.dtype
    mass = values.as_float(problem.mass_matrix, dtype, "mass_matrix")
    if mass.shape != (n, n):
        raise ValueError(
            f"`mass_matrix` must be of shape ({n}, {n}) for a state of {n} components. "
            f"Received shape: {mass.shape}"
        )
    known = _known(mass)
    if known is not None and not np.all(np.isfinite(known)):
        raise ValueError("`mass_matrix` must be finite. Received NaN or infinite entries.")
    if known is None:
        # Inside a graph: the equations without a time derivative are the rows of zeros.
        constraints = tf.linalg.diag(tf.cast(tf.reduce_all(tf.equal(mass, 0.0), axis=1), dtype))
        rank = None
    else:
        # The projector onto what no M y' can reach: the left null space.
        inverse = np.linalg.pinv(known.astype(float))
        constraints = tf.constant(np.eye(n) - known @ inverse, dtype)
        rank = np.linalg.matrix_rank(known.astype(float))
    if not solver.singular_mass:
        if rank != n:
            raise ValueError(
                f"solver {solver.name!r} needs a mass matrix that is known when the solve is built "
                f"and can be inverted; use 'rodas5p' or 'rosenbrock23'. Received: {mass}"
            )
        return {"mass_inverse": tf.constant(np.linalg.inv(known.astype(float)), dtype)}
    return {"mass": mass} if rank == n else {"mass": mass, "constraints": constraints}


def _sparsity(problem, layout):
    """The pattern of the Jacobian as booleans, or `None`."""
    if problem.jac_sparsity is None:
        return None
    n = layout.width
    pattern = np.asarray(problem.jac_sparsity)
    if pattern.shape != (n, n):
        raise ValueError(
            f"`jac_sparsity` must be an array of shape ({n}, {n}), nonzero where the Jacobian may "
            f"be. Received shape: {pattern.shape}"
        )
    return pattern != 0


def _check_delayed(settings):
    if settings.joint:
        raise ValueError(
            "step_control='joint' is not for delay equations: each trajectory has its own past. "
            "Leave it out."
        )
    if settings.adjoint.name != "discrete":
        raise ValueError(
            "a delay equation has the gradient adjoint='discrete' only. "
            f"Received: adjoint={settings.adjoint!r}"
        )


def _lags(problem, dtype, layout):
    """The constant lags as tensors, scalars or of the batch shape."""
    batch = tf.TensorShape(layout.batch_shape)
    lags = []
    for index, given in enumerate(problem.lags):
        if callable(given):
            continue
        lag = values.as_float(given, dtype, f"lags[{index}]")
        if lag.shape.rank not in (0, layout.batch_ndims) or (
            lag.shape.rank and not lag.shape.is_compatible_with(batch)
        ):
            raise ValueError(
                f"`lags[{index}]` must be a scalar or of the batch shape {batch}. "
                f"Received shape: {lag.shape}"
            )
        known = _known(lag)
        if known is not None and not (np.all(np.isfinite(known)) and np.all(known > 0)):
            raise ValueError(
                f"`lags[{index}]` must be positive and finite; a lag that may vanish is a function "
                f"(t, y, p) -> lag. Received: {given!r}"
            )
        lags.append(lag)
    return lags


def _check_stochastic(problem, settings):
    solver = settings.solver
    stochastic = solvers.stochastic()
    if not solver.stochastic:
        raise ValueError(
            f"an SDEProblem needs a solver for stochastic equations, one of {list(stochastic)}. "
            f"Received: {solver.name!r}"
        )

    def fitting():
        fit = [
            name
            for name, method in stochastic.items()
            if problem.noise in method.noises and problem.interpretation in method.interpretations
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
            "dense=True is not for stochastic equations: their paths have no interpolant. Ask for "
            "save points; each of them ends a step."
        )
    if settings.adjoint.name != "discrete":
        raise ValueError(
            "a stochastic equation has the gradient adjoint='discrete' only. "
            f"Received: adjoint={settings.adjoint!r}"
        )
    if settings.joint:
        raise ValueError(
            "step_control='joint' is not for stochastic equations: each trajectory has its own "
            "noise and its own steps. Leave it out."
        )


def _known(tensor):
    """The NumPy value of a tensor, or `None` inside a graph."""
    value = tf.get_static_value(tensor)
    return None if value is None else np.asarray(value)


class Equation(NamedTuple):
    """The functions of a problem, and what is fixed about them when a solve is traced.

    Attributes:
        f: the field.
        jacobian: the user's Jacobian, or `None`.
        sparsity: `(n, n)` booleans, or `None`.
    """

    f: Any
    jacobian: Any
    sparsity: Any


def prepare(problem, settings, saveat, rtol, atol, dt0, dt_min, steps=None, seed=None):
    """Checks the arguments and makes them tensors: `(equation, layout, inputs, shape)`."""
    y0, p = values.as_nest(problem.y0), values.as_nest(problem.p)
    dtype = values.common_dtype(y0, p)
    y0 = _initial_state(y0, dtype)
    p_leaves = [
        None if leaf is None else values.to_tensor(leaf, dtype) for leaf in tf.nest.flatten(p)
    ]
    p = tf.nest.pack_sequence_as(p, p_leaves)
    layout = _layout(y0, settings)
    t0, t1 = (problem.t_span[0], problem.t_span[1])
    watched = any(values.is_tensor(value) for value in (problem.t_span, t0, t1, saveat))
    t0 = _time(t0, dtype, "t_span[0]", layout)
    t1 = _time(t1, dtype, "t_span[1]", layout)
    saves, kind = _saves(saveat, dtype, layout)
    saves = _check_times(t0, t1, saves, watched)
    default_rtol, default_atol = settings.solver.default_tolerances
    inputs = {
        "y0": y0,
        "p": p,
        "t0": t0,
        "t1": t1,
        "saves": saves,
        "steps": _recorded_steps(steps, dtype, layout),
        "rtol": _tolerance(default_rtol if rtol is None else rtol, "rtol", y0, dtype),
        "atol": _tolerance(default_atol if atol is None else atol, "atol", y0, dtype),
        "dt0": _step_size(0.0 if dt0 is None else dt0, dtype, "dt0", positive=dt0 is not None),
        "dt_min": _step_size(dt_min, dtype, "dt_min", positive=False),
    }
    if isinstance(problem, DDEProblem):
        inputs["lags"] = _lags(problem, dtype, layout)
        watched |= any(values.is_tensor(lag) for lag in problem.constant_lags)
        equation = Equation(DelayFunctions(problem.f, problem.history), None, None)
        return equation, layout, inputs, Shape(kind, watched)
    if not isinstance(problem, SDEProblem):
        inputs |= _mass_matrix(problem, settings.solver, layout)
        equation = Equation(problem.f, problem.jacobian, _sparsity(problem, layout))
        return equation, layout, inputs, Shape(kind, watched)
    inputs["seed"], inputs["trajectory"] = _seed(seed, layout)
    # A Brownian path has no derivative with respect to time.
    on_grid = settings.constant_steps and _on_grid(t0, t1, inputs["dt0"], saves)
    functions = StochasticFunctions(problem.f, problem.g, problem.noise, problem.noise_dim)
    return Equation(functions, None, None), layout, inputs, Shape(kind, False, on_grid)


class TrajectorySeeds(NamedTuple):
    """The noise of the trajectories with given numbers: what an ensemble passes as `seed`.

    Attributes:
        seed: the ensemble's, an integer or a `(2,)` tensor.
        trajectory: int32 of the batch shape.
    """

    seed: Any
    trajectory: tf.Tensor


def _seed(seed, layout):
    """The words of the seed, `(2,)` or `(rows, 2)` int32, and the trajectories' numbers."""
    if isinstance(seed, TrajectorySeeds):
        return _seed(seed.seed, layout)[0], seed.trajectory
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


def _fresh_seed():
    if op_determinism_is_enabled():
        raise ValueError(
            "tf.config.experimental.enable_op_determinism() asks for the same numbers in every "
            "run: give this solve a `seed`. Received: seed=None"
        )
    if tf.executing_eagerly():
        return tf.constant(np.random.default_rng().integers(-(2**31), 2**31, 2, dtype=np.int32))
    limits = {"minval": tf.int32.min, "maxval": tf.int32.max}
    return tf.random.uniform((2,), dtype=tf.int32, **limits)


def _on_grid(t0, t1, step, saves):
    """Whether every save point is known to end a step of the grid."""
    if saves is None:
        return True
    start, end, step, times = (_known(value) for value in (t0, t1, step, saves))
    if start is None or end is None or step is None or times is None:
        return False
    start, end = start[..., None], end[..., None]
    steps = np.abs(times - start) / step
    eps = np.finfo(times.dtype).eps
    slack = 4 * eps * (steps + (np.abs(start) + np.abs(times)) / step)
    whole = np.abs(steps - np.round(steps)) <= slack
    return bool(np.all(whole | (times == end) | np.isnan(times)))


def _initial_state(y0, dtype):
    def convert(leaf):
        tensor = values.to_tensor(leaf, dtype)
        if not tensor.dtype.is_floating:
            raise TypeError(
                f"`y0` must have a floating dtype; cast it. Received: {tensor.dtype.name}"
            )
        known = _known(tensor)
        if known is not None and not np.all(np.isfinite(known)):
            raise ValueError("`y0` must be finite. Received a state with NaN or infinite entries.")
        return tensor

    if not tf.nest.flatten(y0):
        raise ValueError(f"`y0` must hold at least one tensor. Received: {y0!r}")
    return tf.nest.map_structure(convert, y0)


def _layout(y0, settings):
    n = settings.batch_ndims
    leaves = tf.nest.flatten(y0)
    for leaf in leaves:
        if leaf.shape.rank is None or leaf.shape.rank < n:
            raise ValueError(
                f"batch_ndims={n} needs leaves of `y0` with at least {n} axes of known rank. "
                f"Received shape: {leaf.shape}"
            )
        if None in leaf.shape[n:]:
            raise ValueError(
                "the state axes of `y0` must have known sizes (batch axes need not). "
                f"Received shape: {leaf.shape} with batch_ndims={n}"
            )
        if not leaf.shape[:n].is_compatible_with(leaves[0].shape[:n]):
            raise ValueError(
                "all leaves of `y0` must have the same batch shape. "
                f"Received: {leaves[0].shape[:n]} and {leaf.shape[:n]}"
            )
    structure = tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), y0)
    return StateLayout(structure, n, settings.joint)


def _time(value, dtype, name, layout):
    t = values.as_float(value, dtype, name)
    batch = tf.TensorShape(layout.batch_shape)
    if t.shape.rank not in (0, layout.batch_ndims) or (
        t.shape.rank and not t.shape.is_compatible_with(batch)
    ):
        raise ValueError(
            f"`{name}` must be a scalar or of the batch shape {batch}. Received shape: {t.shape}"
        )
    if t.shape.rank and layout.joint:
        raise ValueError(f"`{name}` of each trajectory needs step_control='per_sample'.")
    known = _known(t)
    if known is not None and not np.all(np.isfinite(known)):
        raise ValueError(f"`{name}` must be finite. Received: {value!r}")
    return t


def _saves(saveat, dtype, layout):
    """Save times as `(n,)` or `(*batch, n)`, and their kind."""
    if saveat is None:
        return None, "none"
    times = values.as_float(saveat, dtype, "saveat")
    if times.shape.rank == 0:
        return times[None], "scalar"
    if times.shape[-1] == 0:
        raise ValueError("`saveat` must hold at least one time. Received: an empty array")
    if times.shape.rank == 1:
        return times, "shared"
    batch = tf.TensorShape(layout.batch_shape)
    if layout.batch_ndims == 0 or not times.shape[:-1].is_compatible_with(batch):
        raise ValueError(
            f"`saveat` must be a number, a 1-D array or of shape (*batch, n) with the batch shape "
            f"{batch}. Received shape: {times.shape}"
        )
    if layout.joint:
        raise ValueError("`saveat` of each trajectory needs step_control='per_sample'.")
    return times, "per_sample"


def _recorded_steps(steps, dtype, layout):
    """The times of steps to replay, `(n + 1, rows)` or `(n + 1, 1)`; `None` for none."""
    if steps is None:
        return None
    times = values.as_float(steps, dtype, "steps")
    shape, rank = times.shape, times.shape.rank
    batch = tf.TensorShape(layout.batch_shape)
    fits = rank == 1 or rank == 1 + layout.batch_ndims and shape[1:].is_compatible_with(batch)
    if not fits or (shape[0] is not None and shape[0] < 2):
        raise ValueError(
            "`steps` must hold at least two times, (num_steps + 1,) or (num_steps + 1, *batch) "
            f"with the batch shape {batch}, as `sol.steps` has them. Received shape: {shape}"
        )
    known = _known(times)
    if known is not None:
        moves = np.nan_to_num(np.diff(known, axis=0))
        if np.any(np.any(moves > 0, axis=0) & np.any(moves < 0, axis=0)):
            raise ValueError(f"`steps` must be sorted. Received: {known}")
    if rank == 1:
        return times[:, None]
    if layout.joint:
        # A joint row has one sequence; `sol.steps` repeats it over the batch.
        return tf.reshape(times, [tf.shape(times)[0], -1])[:, :1]
    return tf.reshape(times, [shape[0] or tf.shape(times)[0], layout.rows or -1])


def _check_times(t0, t1, saves, watched):
    """Refuses save times that are unsorted or outside the span, where values are known."""
    if saves is None:
        return None
    start, end, times = _known(t0), _known(t1), _known(saves)
    if start is None or end is None or times is None:
        return saves
    start, end = start[..., None], end[..., None]
    forwards = np.where(end >= start, 1.0, -1.0)
    present = np.isfinite(times)
    if times.ndim == 1 and not present.all():
        raise ValueError(
            "shared `saveat` times must be finite; only per-sample rows may be padded."
        )
    if np.any(present[..., 1:] & ~present[..., :-1]):
        raise ValueError("NaN pads must come after all times of a row of `saveat`.")
    if np.any(np.diff(times, axis=-1) * forwards < 0):
        raise ValueError(
            "`saveat` must be sorted in the direction of integration. "
            f"Received: {times} for t_span from {start[..., 0]} to {end[..., 0]}"
        )
    slack = 4 * np.finfo(times.dtype).eps * np.maximum(np.abs(start), np.abs(end))
    outside = ((times - start) * forwards < -slack) | ((end - times) * forwards < -slack)
    if np.any(outside & present):
        raise ValueError(
            f"`saveat` must lie within t_span from {start[..., 0]} to {end[..., 0]}. "
            f"Received: {times}"
        )
    if watched:
        return saves
    low, high = np.minimum(start, end), np.maximum(start, end)
    return tf.convert_to_tensor(np.clip(times, low, high))


def _tolerance(value, name, y0, dtype):
    """A scalar, or a nest of tensors that broadcast to the state."""
    leaves = tf.nest.flatten(values.as_nest(value))
    tensors = [_positive_or_zero(leaf, dtype, name) for leaf in leaves]
    if len(tensors) == 1 and tensors[0].shape.rank == 0:
        return tensors[0]
    targets = tf.nest.flatten(y0)
    if len(tensors) != len(targets):
        raise ValueError(
            f"`{name}` must be a number or have the structure of `y0` ({len(targets)} leaves). "
            f"Received: {len(tensors)} leaves"
        )
    for tensor, target in zip(tensors, targets, strict=True):
        try:
            shape = tf.broadcast_static_shape(tensor.shape, target.shape)
        except ValueError:
            shape = None
        if shape is None or not shape.is_compatible_with(target.shape):
            raise ValueError(
                f"`{name}` must broadcast to the state's shape {target.shape}. "
                f"Received shape: {tensor.shape}"
            )
    return tf.nest.pack_sequence_as(y0, tensors)


def _positive_or_zero(leaf, dtype, name):
    if isinstance(leaf, np.ndarray) and leaf.dtype == object:
        leaf = leaf.astype(dtype.as_numpy_dtype)
    tensor = values.as_float(leaf, dtype, name)
    known = _known(tensor)
    if known is not None and not np.all(known >= 0):
        raise ValueError(f"`{name}` must not be negative or NaN. Received: {leaf!r}")
    return tensor


def _step_size(value, dtype, name, positive):
    tensor = values.as_float(value, dtype, name)
    if tensor.shape.rank != 0:
        raise ValueError(f"`{name}` must be a scalar. Received shape: {tensor.shape}")
    known = _known(tensor)
    if known is not None and not (
        np.isfinite(known) and (known > 0 or not positive and known == 0)
    ):
        kind = "positive" if positive else "zero or positive"
        raise ValueError(f"`{name}` must be a finite {kind} number. Received: {value!r}")
    return tensor
