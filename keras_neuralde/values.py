"""What users pass, made into tensors of one floating type."""

import numbers

import keras
import numpy as np
import tensorflow as tf


def is_tensor(value):
    """Whether gradients may be asked with respect to `value`."""
    return isinstance(value, (tf.Tensor, tf.Variable, keras.Variable)) or keras.ops.is_tensor(value)


def is_number_tree(value):
    """Whether `value` is a number or a list of (lists of) numbers: an array in disguise."""
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return len(value) > 0 and all(is_number_tree(item) for item in value)
    return isinstance(value, numbers.Number) and not isinstance(value, np.generic)


def as_nest(value):
    """`value` with lists of plain numbers turned into single leaves."""
    if is_number_tree(value):
        return np.asarray(value, dtype=object)
    if isinstance(value, dict):
        return type(value)({key: as_nest(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        items = [as_nest(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _dtype_of(leaf, name):
    """The floating dtype a leaf insists on, or `None` for plain numbers and integers."""
    if isinstance(leaf, np.ndarray) and leaf.dtype == object:
        return None
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return None
    try:
        dtype = tf.as_dtype(dtype)
    except TypeError as error:
        raise TypeError(f"`{name}` must be numbers. Received: {leaf!r}") from error
    if dtype.is_complex:
        raise TypeError(
            f"`{name}` must be real: complex states and parameters are not supported, split them "
            f"into real and imaginary parts. Received: {dtype.name}"
        )
    return dtype if dtype.is_floating else None


def common_dtype(y0, p):
    """The one floating dtype of `y0` and `p`.

    Args:
        y0: nest of states, as `as_nest` returned it.
        p: nest of parameters, likewise.

    Returns:
        A `tf.DType`; Keras's `floatx` when there are only plain numbers.

    Raises:
        TypeError: for mixed, complex or half-precision dtypes.
    """
    found: dict = {}
    for name, nest in (("y0", y0), ("p", p)):
        for leaf in tf.nest.flatten(nest):
            dtype = _dtype_of(leaf, name) if leaf is not None else None
            if dtype is not None:
                found.setdefault(dtype, name)
    if len(found) > 1:
        listed = ", ".join(f"{name}: {dtype.name}" for dtype, name in found.items())
        raise TypeError(
            "all floating leaves of `y0` and `p` must have one dtype; cast them to the same. "
            f"Received: {listed}"
        )
    dtype = next(iter(found), tf.as_dtype(keras.config.floatx()))
    if dtype not in (tf.float32, tf.float64):
        raise TypeError(f"`y0` and `p` must be float32 or float64. Received: {dtype.name}")
    return dtype


def to_tensor(leaf, dtype, name="`y0` and `p`"):
    """A leaf as a tensor: plain numbers take `dtype`, integer tensors stay integers."""
    if isinstance(leaf, np.ndarray) and leaf.dtype == object:
        try:
            return tf.convert_to_tensor(leaf.astype(dtype.as_numpy_dtype))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name} must be rectangular arrays of numbers. Received: {leaf}"
            ) from error
    try:
        tensor = tf.convert_to_tensor(leaf)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be numbers. Received: {leaf!r}") from error
    if not _is_number(tensor.dtype):
        raise TypeError(f"{name} must be numbers. Received: {leaf!r}")
    return tensor


def _is_number(dtype):
    return dtype.is_floating or dtype.is_integer or dtype.is_bool


def as_float(value, dtype, name):
    """`value` as a tensor of `dtype`, whatever number type it has.

    Raises:
        TypeError: if it is not numeric.
    """
    cause: Exception | None = None
    try:
        given = tf.convert_to_tensor(value) if is_tensor(value) else np.asarray(value)
        if is_tensor(given) and _is_number(given.dtype):
            return tf.cast(given, dtype)
        # NumPy reads numbers out of strings, and drops imaginary parts.
        if not is_tensor(given) and given.dtype.kind in "fiubOV":
            return tf.convert_to_tensor(np.asarray(given, dtype=dtype.as_numpy_dtype))
    except (TypeError, ValueError) as error:
        cause = error
    raise TypeError(f"`{name}` must be numeric. Received: {value!r}") from cause


def per_trajectory(value, t, name, dtype=None):
    """What a user's function of a trajectory returned, as one number for each.

    Args:
        value: what it returned.
        t: the time that it was given, of the batch shape.
        name: how errors call the function, such as "rate(t, y, p)".
        dtype: what it must return; `None` for the dtype of `t`.

    Returns:
        A tensor of the shape of `t`; a scalar stands for all trajectories.

    Raises:
        TypeError: for no number, or one of another dtype.
        ValueError: for nothing, or another shape.
    """
    dtype = t.dtype if dtype is None else dtype
    if value is None:
        raise ValueError(
            f"{name} must return a number for each trajectory. Received: None; is a `return` "
            "missing?"
        )
    if not (tf.is_tensor(value) or is_tensor(value)) and tf.nest.is_nested(value):
        raise TypeError(f"{name} must return a number for each trajectory. Received: {value!r}")
    try:
        value = tf.convert_to_tensor(value, dtype_hint=dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must return a number for each trajectory. Received: {value!r}"
        ) from error
    if value.dtype != dtype:
        kind = "booleans" if dtype == tf.bool else f"the dtype of `y`, {dtype.name}"
        raise TypeError(f"{name} must return {kind}. Received: {value.dtype.name}")
    if value.shape.rank == 0 and t.shape.rank:
        value = value & (t == t) if dtype == tf.bool else value + tf.zeros_like(t)
    if not value.shape.is_compatible_with(t.shape):
        raise ValueError(
            f"{name} must return a number for each trajectory, of shape {t.shape}. "
            f"Received shape: {value.shape}"
        )
    return value


def known(tensor):
    """The NumPy value of a tensor, or `None` inside a graph."""
    value = tf.get_static_value(tensor)
    return None if value is None else np.asarray(value)
