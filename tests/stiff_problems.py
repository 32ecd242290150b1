"""The stiff problems of the benchmarks, with their fields in TensorFlow."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from benchmarks import stiff


class Problem(NamedTuple):
    """A stiff problem: field, start, end, the state there, and absolute tolerances at 1e-8."""

    f: Any
    y0: np.ndarray
    t1: float
    y1: np.ndarray
    atol: Any


def field(components):
    """The field f(t, y, p) of a function of components, which takes those of p after them."""

    def f(t, y, p):
        rates = () if p is None else tf.unstack(p, axis=-1)
        return tf.stack(components(*tf.unstack(y, axis=-1), *rates), -1)

    return f


PROBLEMS = {name: Problem(field(one[0]), *one[1:]) for name, one in stiff.PROBLEMS.items()}
robertson = PROBLEMS["robertson"].f
