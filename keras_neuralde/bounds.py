"""Box bounds by a change of variables."""

import numbers

import numpy as np
import tensorflow as tf

from keras_neuralde.checks import check_array


class Box:
    """A smooth map from free variables onto a box, component by component.

    Two bounds: x = a + (b - a) (sin z + 1) / 2; a lower one: x = a - 1 + √(z² + 1); an upper one:
    x = b + 1 - √(z² + 1) (James & Roos, "MINUIT", Computer Physics Communications 10, 1975). The
    borders themselves can be reached.

    Args:
        lower: `(n,)`, -inf where there is no bound.
        upper: `(n,)`, inf where there is none.
    """

    def __init__(self, lower, upper):
        self._both = np.isfinite(lower) & np.isfinite(upper)
        self._below = np.isfinite(lower) & ~self._both
        self._above = np.isfinite(upper) & ~self._both
        self._a = np.where(np.isfinite(lower), lower, 0.0)
        self._b = np.where(np.isfinite(upper), upper, 0.0)

    def inside(self, z):
        """The point of the box for free variables; differentiable."""
        a, b = tf.constant(self._a, z.dtype), tf.constant(self._b, z.dtype)
        root = tf.sqrt(z * z + 1.0)
        x = tf.where(self._both, a + 0.5 * (b - a) * (tf.sin(z) + 1.0), z)
        x = tf.where(self._below, a - 1.0 + root, x)
        return tf.where(self._above, b + 1.0 - root, x)

    def free(self, x):
        """Free variables for a point of the box, pulled a little inside, where slopes vanish."""
        x = np.asarray(x, float)
        width = np.where(self._both, self._b - self._a, 1.0)
        share = np.clip((x - self._a) / width, 1e-4, 1.0 - 1e-4)
        z = np.where(self._both, np.arcsin(2.0 * share - 1.0), x)
        low = np.maximum(x - self._a, 1e-4)
        high = np.maximum(self._b - x, 1e-4)
        z = np.where(self._below, np.sqrt((low + 1.0) ** 2 - 1.0), z)
        return np.where(self._above, np.sqrt((high + 1.0) ** 2 - 1.0), z)


def make_box(bounds, parameters, start):
    """A `Box` from what users write, or `None` without bounds.

    Args:
        bounds: `None`, or `(lower, upper)`, each `None`, a number, an array of the parameters'
            shape, or their nest.
        parameters: the `Parameters`.
        start: the starting vector.

    Raises:
        ValueError: for bounds of another shape, crossed bounds, or a start outside of them.
    """
    if bounds is None:
        return None
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise ValueError(f"`bounds` must be a pair (lower, upper). Received: {bounds!r}")
    lower, upper = (
        _side(side, infinity, parameters)
        for side, infinity in zip(bounds, (-np.inf, np.inf), strict=True)
    )
    if np.any(np.isnan(lower)) or np.any(np.isnan(upper)):
        raise ValueError(
            f"`bounds` must not be NaN; None or infinity means no bound. Received: {bounds!r}"
        )
    crossed = lower >= upper
    if np.any(crossed):
        raise ValueError(
            "every lower bound in `bounds` must be below the upper one. "
            f"Received: {lower[crossed]} and {upper[crossed]}"
        )
    start = np.asarray(start, float)
    outside = (start < lower) | (start > upper)
    if np.any(outside):
        raise ValueError(
            f"the start must lie within `bounds`. Received: {start[outside]}, with the bounds "
            f"{lower[outside]} and {upper[outside]}"
        )
    return Box(lower, upper)


def _leaves(side, parameters):
    """The arrays of one side of the bounds, in the order of the parameters."""
    try:
        tf.nest.assert_same_structure(parameters.structure, side)
        return tf.nest.flatten(side)
    except (TypeError, ValueError):
        # Lists of numbers in place of arrays, and an array in place of a nest of one.
        if isinstance(side, dict) and isinstance(parameters.structure, dict):
            if sorted(side) != sorted(parameters.structure):
                raise ValueError(
                    f"`bounds` must have the keys {sorted(parameters.structure)}. "
                    f"Received: {sorted(side)}"
                ) from None
            return [side[key] for key in sorted(side)]
        several = len(parameters.shapes) > 1 and isinstance(side, (list, tuple))
        return list(side) if several else [side]


def _side(side, infinity, parameters):
    total = sum(parameters.sizes)
    if side is None:
        return np.full(total, infinity)
    if isinstance(side, (str, numbers.Number)) or getattr(side, "shape", None) == ():
        return np.full(total, check_array("bounds", side).astype(float))
    leaves = [check_array("bounds", leaf) for leaf in _leaves(side, parameters)]
    shapes = [leaf.shape for leaf in leaves]
    fits = len(shapes) == len(parameters.shapes) and all(
        shape in ((), expected) for shape, expected in zip(shapes, parameters.shapes, strict=True)
    )
    if not fits:
        raise ValueError(
            f"`bounds` must have the parameters' shapes {parameters.shapes}. Received: {shapes}"
        )
    full = [
        np.broadcast_to(np.asarray(leaf, float), shape).ravel()
        for leaf, shape in zip(leaves, parameters.shapes, strict=True)
    ]
    return np.concatenate(full)
