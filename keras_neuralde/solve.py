"""The front door: checks what came, picks a program, runs it, and packs the answer."""

import dataclasses
import inspect
import math
from typing import Any

import numpy as np
import tensorflow as tf

from keras_neuralde import captures, controllers, solvers, values
from keras_neuralde.adjoints.discrete import solve_discrete
from keras_neuralde.fields import Field
from keras_neuralde.integrate import (
    ACCEPTED,
    REJECTED,
    STATUS,
    H,
    Plan,
    T,
    Terms,
    integrate,
)
from keras_neuralde.problems import ODEProblem
from keras_neuralde.programs import ProgramCache, function_key
from keras_neuralde.solution import Solution, SolveError, Stats, Status, describe
from keras_neuralde.state import StateLayout

_programs = ProgramCache()
_NORMS = ("rms", "max")
_STEP_CONTROLS = ("per_sample", "joint")
_ADJOINTS = ("discrete",)
_RING_BYTES = 1 << 25


def solve(
    problem,
    solver="auto",
    *,
    saveat=None,
    rtol=None,
    atol=None,
    dt0=None,
    dt_min=0.0,
    max_steps=100_000,
    controller=None,
    norm="rms",
    batch_ndims=0,
    step_control="per_sample",
    adjoint="discrete",
    checkpoints=64,
    throw=True,
):
    """Solves a differential equation.

    Called eagerly, the solve is compiled by XLA once for the equation, its shapes and its
    settings; new values of y0, p, times and tolerances reuse the program. Called inside a
    `tf.function` it becomes part of that graph, compiled or not as the caller decides.

    Args:
        problem: an `ODEProblem`.
        solver: a name (see `keras_neuralde.solvers.names()`) or a solver object.
        saveat: `None` for the final state only; a number for one time; a sorted 1-D array for
            those times exactly; or `(*batch, n)` for times of each trajectory, padded with NaN.
        rtol: relative tolerance, default 1e-3; a number or an array of the state's shape.
        atol: absolute tolerance, default 1e-6; likewise.
        dt0: the first step; with `controller="constant"` the size of every step.
        dt_min: the smallest step; a trajectory that needs a smaller one ends with a status.
        max_steps: the most steps a trajectory may attempt.
        controller: `"I"` (default), `"PI"`, `"PID"`, `"constant"` or a controller object.
        norm: `"rms"` or `"max"` of the scaled error over the state's components.
        batch_ndims: that many leading axes of the state are independent trajectories.
        step_control: `"per_sample"`, or `"joint"` for one step size over the whole batch.
        adjoint: how gradients are computed: `"discrete"`.
        checkpoints: how many states the discrete adjoint keeps; memory grows with it, and
            more of them mean less recomputation.
        throw: raise when a trajectory fails. Only an eager call can; in a graph the failed
            trajectory is NaN and the status says why.

    Returns:
        A `Solution`.

    Raises:
        TypeError: for arguments of a wrong type or mixed dtypes.
        ValueError: for arguments with a wrong value or shape.
        SolveError: when a trajectory fails and `throw` is true.

    Example:

    >>> import keras_neuralde as nde
    >>> problem = nde.ODEProblem(lambda t, y, p: -p * y, 1.0, (0.0, 1.0), 2.0)
    >>> sol = nde.solve(problem, "tsit5", saveat=[0.5, 1.0])
    >>> tuple(sol.y.shape)
    (2,)
    """
    settings = _Settings.make(
        solver, controller, norm, max_steps, batch_ndims, step_control, adjoint, checkpoints, dt0
    )
    _check_problem(problem)
    layout, inputs, shape = _prepare(problem, settings, saveat, rtol, atol, dt0, dt_min)
    if tf.executing_eagerly():
        outputs = _eager(problem.f, settings, layout, inputs, shape)
        given = {"rtol": rtol, "atol": atol, "dt0": dt0, "dt_min": dt_min}
        outputs["y"] = _refuse_gradients(outputs["y"], given)
    else:
        outputs = _trace(_lift(problem.f, layout, inputs), settings, layout, inputs, shape, True)
    solution = _assemble(settings, layout, outputs, shape)
    if throw and tf.executing_eagerly():
        _raise_on_failure(outputs["control"].numpy())
    return solution


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The choices that are part of a program."""

    solver: Any
    controller: Any
    norm: str
    max_steps: int
    batch_ndims: int
    joint: bool
    adjoint: str
    checkpoints: int
    first_step: bool

    @classmethod
    def make(
        cls,
        solver,
        controller,
        norm,
        max_steps,
        batch_ndims,
        step_control,
        adjoint,
        checkpoints,
        dt0,
    ):
        solver = solvers.get(solver)
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
        _choice("norm", norm, _NORMS)
        _choice("step_control", step_control, _STEP_CONTROLS)
        _choice("adjoint", adjoint, _ADJOINTS)
        _at_least("max_steps", max_steps, 1)
        _at_least("checkpoints", checkpoints, 1)
        _at_least("batch_ndims", batch_ndims, 0)
        joint = step_control == "joint" and batch_ndims > 0
        return cls(
            solver, controller, norm, int(max_steps), int(batch_ndims), joint, adjoint,
            int(checkpoints), not constant and dt0 is None,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Shape:
    """What the caller's times look like, which decides the shape of the answer."""

    saves: str  # "none", "scalar", "shared" or "per_sample"
    time_gradient: bool


def _choice(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {list(allowed)}. Received: {value!r}")


def _at_least(name, value, least):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}. Received: {value!r}")


def _check_problem(problem):
    if not isinstance(problem, ODEProblem):
        raise TypeError(
            "`problem` must be an ODEProblem. "
            f"Received: {problem!r} of type {type(problem).__name__}"
        )
    for name in ("mass_matrix", "jacobian", "jac_sparsity"):
        if getattr(problem, name) is not None:
            raise ValueError(
                f"`{name}` belongs to implicit solvers; explicit Runge-Kutta methods cannot use "
                "it. Leave it out."
            )


def _known(tensor):
    """The NumPy value of a tensor, or `None` inside a graph."""
    value = tf.get_static_value(tensor)
    return None if value is None else np.asarray(value)


def _prepare(problem, settings, saveat, rtol, atol, dt0, dt_min):
    """Checks the arguments and makes them tensors: `(layout, inputs, shape)`."""
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
    inputs = {
        "y0": y0,
        "p": p,
        "t0": t0,
        "t1": t1,
        "saves": saves,
        "rtol": _tolerance(1e-3 if rtol is None else rtol, "rtol", y0, dtype),
        "atol": _tolerance(1e-6 if atol is None else atol, "atol", y0, dtype),
        "dt0": _step_size(0.0 if dt0 is None else dt0, dtype, "dt0", positive=dt0 is not None),
        "dt_min": _step_size(dt_min, dtype, "dt_min", positive=False),
    }
    return layout, inputs, _Shape(kind, watched)


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


def _lift(f, layout, inputs):
    """Traces the field once and checks what it returns."""
    t_shape = layout.batch_shape
    t = tf.TensorSpec(t_shape, layout.dtype)

    def spec(leaf):
        return None if leaf is None else tf.TensorSpec(leaf.shape, leaf.dtype)

    p = tf.nest.map_structure(spec, inputs["p"])
    function = captures.lift(_checked(f, layout), t, layout.structure, p)
    return function


def _checked(f, layout):
    def field(t, y, p):
        dy = f(t, y, p)
        try:
            tf.nest.assert_same_structure(layout.structure, dy)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "f(t, y, p) must return the structure of `y`. "
                f"Expected: {layout.structure}. Received: {dy}"
            ) from error

        def convert(leaf, spec):
            leaf = tf.convert_to_tensor(leaf)
            if leaf.dtype != spec.dtype:
                raise TypeError(
                    f"f(t, y, p) must return the dtype of `y`, {spec.dtype.name}. "
                    f"Received: {leaf.dtype.name}"
                )
            same_rank = leaf.shape.rank is None or leaf.shape.rank == spec.shape.rank
            if not same_rank or not leaf.shape.is_compatible_with(spec.shape):
                raise ValueError(
                    f"f(t, y, p) must return the shape of `y`, {spec.shape}. Received: {leaf.shape}"
                )
            return leaf

        flat = tf.nest.flatten(dy)
        specs = tf.nest.flatten(layout.structure)
        leaves = [convert(leaf, spec) for leaf, spec in zip(flat, specs, strict=True)]
        return tf.nest.pack_sequence_as(layout.structure, leaves)

    return field


def _eager(f, settings, layout, inputs, shape):
    """Runs an eager call through its compiled program."""
    needs_gradient = _tape_is_active()

    def signature(leaf):
        return None if leaf is None else (tuple(leaf.shape), leaf.dtype.name)

    def keyed(nest):
        return repr(tf.nest.map_structure(lambda leaf: repr(signature(leaf)), nest))

    references = []
    key = (
        function_key(f, references), settings, layout.batch_ndims, shape, needs_gradient,
        keyed(inputs),
    )  # fmt: skip

    def make():
        function = _lift(f, layout, inputs)

        @tf.function(jit_compile=True, autograph=False)
        def program(inputs):
            return _trace(function, settings, layout, inputs, shape, needs_gradient)

        return program

    return _programs.get(key, references, make)(inputs)


def _refuse_gradients(y, settings):
    """Lets a tape that asks for the gradient of a setting find a sentence, not a zero."""
    for name, value in settings.items():
        for leaf in tf.nest.flatten(value):
            if values.is_tensor(leaf):
                y = _join(y, _refused(tf.convert_to_tensor(leaf), name))
    return y


def _refused(setting, name):
    @tf.custom_gradient
    def identity(setting):
        def refuse(_):
            raise ValueError(
                f"the solution has no gradient with respect to `{name}`: the step sequence is held "
                "fixed. Take the tape's watch off it, or tf.stop_gradient it."
            )

        return tf.identity(setting), refuse

    return identity(setting)


def _join(y, setting):
    """`y`, connected to `setting` with a zero gradient."""
    leaves = tf.nest.flatten(y)

    @tf.custom_gradient
    def first(setting, *leaves):
        return [tf.identity(leaf) for leaf in leaves], lambda *bars: (tf.zeros_like(setting), *bars)

    return tf.nest.pack_sequence_as(y, first(setting, *leaves))


def _tape_is_active():
    from tensorflow.python.eager import record

    return record.could_possibly_record()


def _trace(function, settings, layout, inputs, shape, needs_gradient):
    """The solve as graph operations: tensors in, tensors out."""
    leaves = tf.nest.flatten(inputs["y0"])
    batch_dims = layout.batch_dims(leaves)
    p_leaves = [leaf for leaf in tf.nest.flatten(inputs["p"]) if leaf is not None]
    field = Field(function, layout, batch_dims, p_leaves)
    y0 = layout.pack(inputs["y0"])
    terms, bad = _terms(layout, inputs, y0, shape)
    has_saves = terms.saves is not None
    plan = Plan(
        settings.solver,
        settings.controller,
        settings.norm,
        settings.max_steps,
        _segment(settings, y0, needs_gradient),
        has_saves,
        has_saves and needs_gradient and shape.time_gradient,
        settings.first_step,
    )
    if needs_gradient:
        y, control = solve_discrete(
            plan, field, y0, terms, settings.checkpoints, shape.time_gradient
        )
    else:
        outcome = integrate(plan, field.bind(field.theta), y0, terms)
        y, control = outcome.y, outcome.control
    status = tf.where(bad, tf.cast(Status.BAD_TIMES, y.dtype), control[STATUS])
    y = tf.where(bad[:, None], tf.constant(float("nan"), y.dtype), y)
    control = tf.concat([control[:STATUS], status[None], control[STATUS + 1 :]], axis=0)
    leading = [tf.shape(y)[0] if y.shape[0] is None else y.shape[0]] if has_saves else []
    return {
        "y": layout.unpack(y, batch_dims, leading),
        "control": control,
        "t": terms.t_end if not has_saves else inputs["saves"],
        "batch_like": leaves[0],
    }


def _terms(layout, inputs, y0, shape):
    """The loop's constants; and which rows have times that cannot be served."""
    rows = tf.shape(y0)[0]

    def per_row(t):
        return tf.broadcast_to(tf.reshape(t, [-1]), [rows])

    t0, t1 = per_row(inputs["t0"]), per_row(inputs["t1"])
    one = tf.ones_like(t0)
    direction = tf.where(t1 >= t0, one, -one)
    saves, t_end = None, t1
    bad = ~tf.math.is_finite(t0 + t1)
    if shape.saves != "none":
        saves = inputs["saves"]
        n = saves.shape[-1] or tf.shape(saves)[-1]
        saves = tf.transpose(tf.reshape(saves, [-1, n]))
        present = tf.math.is_finite(saves)
        ahead = tf.where(present, direction * saves, direction * t0)
        # Zero times t1, so that its gradient is a zero and not missing.
        t_end = direction * tf.reduce_max(ahead, axis=0) + 0.0 * t1
        slack = 4 * np.finfo(y0.dtype.as_numpy_dtype).eps * tf.maximum(tf.abs(t0), tf.abs(t1))
        bad |= tf.reduce_any(ahead < direction * t0 - slack, axis=0)
        bad |= direction * t_end > direction * t1 + slack
        bad |= tf.reduce_any(present[1:] & (ahead[1:] < ahead[:-1]), axis=0)
        bad |= tf.reduce_any(present[1:] & ~present[:-1], axis=0)
    t_end = tf.where(bad, t0, t_end)

    def tolerance(value):
        leaves = tf.nest.flatten(value)
        if len(leaves) == 1 and leaves[0].shape.rank == 0:
            return leaves[0]
        targets = tf.nest.flatten(inputs["y0"])
        full = [tf.broadcast_to(a, tf.shape(b)) for a, b in zip(leaves, targets, strict=True)]
        return layout.pack(tf.nest.pack_sequence_as(layout.structure, full))

    return Terms(
        t0, t_end, direction, tolerance(inputs["rtol"]), tolerance(inputs["atol"]),
        inputs["dt0"], inputs["dt_min"], saves,
    ), bad  # fmt: skip


def _segment(settings, y0, needs_gradient):
    """Turns per segment, a power of two: all checkpoints' worth, or what memory allows."""
    if needs_gradient:
        return 1 << int(math.log2(settings.checkpoints))
    rows, width = y0.shape[0] or 256, y0.shape[1] or 256
    row_bytes = max(1, rows * (2 + width * (1 + settings.solver.dense_degree())) * 8)
    return 1 << max(4, min(10, int(math.log2(max(1, _RING_BYTES // row_bytes)))))


def _assemble(settings, layout, outputs, shape):
    """A `Solution` from the raw outputs."""
    control = outputs["control"]
    like = [outputs["batch_like"]]
    dims = layout.batch_dims(like, wildcard=not layout.joint)

    def per_batch(row):
        return layout.rows_to_batch(row, dims)

    accepted = tf.cast(control[ACCEPTED], tf.int32)
    rejected = tf.cast(control[REJECTED], tf.int32)
    steps = accepted + rejected
    solver = settings.solver
    once = int(solver.carries_slope) + settings.first_step * (1 + (not solver.carries_slope))
    num_f = once + steps * solver.evaluations(dense=shape.saves != "none")
    stats = Stats(*(per_batch(count) for count in (steps, accepted, rejected, num_f)))
    y, t = outputs["y"], outputs["t"]
    if shape.saves == "none":
        t = per_batch(t)
    elif shape.saves == "scalar":
        y, t = tf.nest.map_structure(lambda leaf: leaf[0], y), t[0]
    elif shape.saves == "per_sample":
        t = tf.transpose(t, [t.shape.rank - 1, *range(t.shape.rank - 1)])
    return Solution(t, y, stats, per_batch(tf.cast(control[STATUS], tf.int32)))


def _raise_on_failure(control):
    codes = control[STATUS].astype(int)
    failed = np.flatnonzero(codes)
    if failed.size == 0:
        return
    first = failed[0]
    where = f"t={control[T, first]:.6g} with a step of {control[H, first]:.3g}"
    raise SolveError(
        f"the solve failed: {'; '.join(describe(codes))}. Trajectory {first} stopped at {where}. "
        "Pass throw=False to get the solution with its status instead."
    )


#: The keywords of `solve` with their defaults, for layers that pass them on.
SOLVE_KEYWORDS = {
    name: parameter.default
    for name, parameter in inspect.signature(solve).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
}
