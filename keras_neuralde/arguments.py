"""What a caller of `solve` passes, checked at the door and made into tensors."""

import numpy as np
import tensorflow as tf

from keras_neuralde import values
from keras_neuralde.settings import check_each
from keras_neuralde.state import StateLayout


def prepare(equation, settings, saveat, rtol, atol, dt0, dt_min, steps=None, seed=None):
    """Checks the arguments and makes them tensors: `(layout, inputs, shape)`.

    Args:
        equation: the `equations.Equation` of the problem.
        settings: the `Settings`.
        saveat: as in `solve`, and so are the rest.
        rtol: relative tolerance.
        atol: absolute tolerance.
        dt0: first or constant step.
        dt_min: smallest step.
        steps: recorded steps.
        seed: the seed.
    """
    problem = equation.problem
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
    inputs |= equation.inputs(settings, layout, inputs, seed)
    return layout, inputs, equation.shape(kind, watched, settings, inputs)


def _initial_state(y0, dtype):
    def convert(leaf):
        tensor = values.to_tensor(leaf, dtype)
        if not tensor.dtype.is_floating:
            raise TypeError(
                f"`y0` must have a floating dtype; cast it. Received: {tensor.dtype.name}"
            )
        known = values.known(tensor)
        if known is not None and not np.all(np.isfinite(known)):
            raise ValueError("`y0` must be finite. Received: a state with NaN or infinite entries")
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
        raise ValueError(
            f"`{name}` of each trajectory needs step_control='per_sample'. "
            f"Received: shape {t.shape} with step_control='joint'"
        )
    known = values.known(t)
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
        raise ValueError(
            "`saveat` of each trajectory needs step_control='per_sample'. "
            f"Received: shape {times.shape} with step_control='joint'"
        )
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
    known = values.known(times)
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
    start, end, times = values.known(t0), values.known(t1), values.known(saves)
    if start is None or end is None or times is None:
        return saves
    start, end = start[..., None], end[..., None]
    forwards = np.where(end >= start, 1.0, -1.0)
    present = np.isfinite(times)
    if times.ndim == 1 and not present.all():
        raise ValueError(
            "shared `saveat` times must be finite; only per-sample rows may be padded. "
            f"Received: {times}"
        )
    if np.any(present[..., 1:] & ~present[..., :-1]):
        raise ValueError(
            f"NaN pads must come after all times of a row of `saveat`. Received: {times}"
        )
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
    tensor = values.as_float(leaf, dtype, name)
    known = values.known(tensor)
    if known is not None and not np.all(known >= 0):
        received = leaf.tolist() if isinstance(leaf, np.ndarray) else leaf
        raise ValueError(f"`{name}` must not be negative or NaN. Received: {received!r}")
    return tensor


def check_settings(keywords):
    """Refuses what no solve would take, where there is no problem yet: in layers.

    Args:
        keywords: some keywords of `solve` with their values.
    """
    check_each(**keywords)
    given = {name: value for name, value in keywords.items() if value is not None}
    for name in ("rtol", "atol"):
        for leaf in tf.nest.flatten(values.as_nest(given.get(name, 0.0))):
            _positive_or_zero(leaf, tf.float64, name)
    if "dt0" in given:
        _step_size(given["dt0"], tf.float64, "dt0", positive=True)
    if "dt_min" in keywords:
        _step_size(keywords["dt_min"], tf.float64, "dt_min", positive=False)


def _step_size(value, dtype, name, positive):
    tensor = values.as_float(value, dtype, name)
    if tensor.shape.rank != 0:
        raise ValueError(f"`{name}` must be a scalar. Received shape: {tensor.shape}")
    known = values.known(tensor)
    if known is not None and not (
        np.isfinite(known) and (known > 0 or not positive and known == 0)
    ):
        kind = "positive" if positive else "zero or positive"
        raise ValueError(f"`{name}` must be a finite {kind} number. Received: {value!r}")
    return tensor
