"""Narrow states, component by component: what XLA makes one kernel of.

A field of plain arithmetic on two or three components ends in a concatenation of its outputs. XLA
gives each concatenation a kernel, in which every component computes the whole argument of the
stage for itself. Where a state is a list of components instead, all stages of a step melt into the
kernels of their results, and `together` makes one kernel of these.
"""

import contextlib
import contextvars

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from keras_neuralde import arithmetic

#: The most components: a kernel of very many operations takes long to compile.
MOST = 8

#: What an array may take, in bytes, that XLA is to make on one core.
_UNSPLIT = 3 << 17

#: The most numbers of each row that the cotangents of parameters may be.
_NUMBERS = 32


def is_compiled():
    """Whether XLA will compile what is being traced."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        # A private method; tests/test_components.py guards it. Without it nothing is wrong, only
        # slower.
        context = getattr(graph, "_get_control_flow_context", lambda: None)()
        if context is not None and context.IsXLAContext():
            return True
        graph = getattr(graph, "outer_graph", None)
    return False


_portable: contextvars.ContextVar = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable():
    """A scope for graphs that other programs load: nothing but TensorFlow's everyday operations.

    A server may have been built without those that `together` is made of, and then refuses the
    whole model.
    """
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def pays(g, y):
    """Whether to step through a state by its components.

    Args:
        g: the field.
        y: `(rows, width)`.
    """
    width = y.shape[1]
    narrow = width is not None and width <= MOST and not _portable.get()
    if not narrow or not getattr(g, "is_arithmetic", False) or not is_compiled():
        return False
    # Without a batch axis the field's vectors would be reshaped into rows and back, in every stage;
    # XLA sees through slices, but not through that.
    return g.by_numbers or not g.without_batch


def split(y):
    """`(..., width)` as a list of `(...,)`."""
    return tf.unstack(y, axis=-1)


def join(parts):
    """The inverse of `split`."""
    return tf.stack(parts, axis=-1)


def bundled(parts):
    """Tensors `(rows,)` as few arrays, for a loop to carry.

    XLA:CPU splits the kernel that makes an array of half a megabyte over the cores, which costs
    more than it gains here. Where single tensors are that large there is one array.
    """
    rows = parts[0].shape[0]
    each = _UNSPLIT // max(1, rows * parts[0].dtype.size) if rows else 0
    each = each or len(parts)
    return tuple(tf.stack(parts[i : i + each]) for i in range(0, len(parts), each))


def loosened(bundles):
    """The inverse of `bundled`."""
    return [part for bundle in bundles for part in tf.unstack(bundle)]


def numbers(g, parts):
    """`(1,)` as numbers where a field takes these.

    A reshape between two stages would make XLA:CPU compute the first one once more for whatever
    reads it; so there is one in front of all of them, and `arrays` behind.
    """
    return [tf.reshape(part, ()) for part in parts] if g.by_numbers else parts


def arrays(parts):
    """The inverse of `numbers`."""
    return [part if part.shape.rank else part[None] for part in parts]


def together(parts):
    """The same tensors, as the results of one kernel.

    XLA:CPU computes each result of a fusion by itself, with all that it depends on, unless the
    fusion ends in one operation with several results. Such an operation is a reduction of several
    arrays at once: here of two copies of each, to the larger. The copies are never made; the
    compiler finds that both are the same number.

    Args:
        parts: a list of `(rows,)`, or of numbers, of one dtype.
    """
    lowest = tf.constant(float("-inf"), parts[0].dtype)
    rank = parts[0].shape.rank
    shape = [*(size or tf.shape(parts[0])[0] for size in parts[0].shape), 2]
    twice = [tf.broadcast_to(part[..., None], shape) for part in parts]
    count = len(parts)
    found = gen_xla_ops.xla_variadic_reduce_v2(
        twice, [lowest] * count, [rank], _maxima(count, parts[0].dtype)
    )
    for part, like in zip(found, parts, strict=True):
        part.set_shape(like.shape)
    return list(found)


def once(parts, h):
    """The same matrices, each computed once.

    XLA:CPU computes a sum again in each kernel that reads it, and sums of sums again and again, but
    never repeats a division. Here by a one that it cannot know to be one.

    Args:
        parts: a list of `(rows, width)`.
        h: `(rows, 1)`, finite where the result matters.
    """
    one = 1.0 + 0.0 * h
    return [part / one for part in parts]


def _maxima(count, dtype):
    """The function of two times `count` numbers that reduces them pair by pair."""

    @tf.function(autograph=False)
    def maxima(*numbers):
        # Not tf.maximum, which drops NaN here.
        pairs = zip(numbers[:count], numbers[count:], strict=True)
        return [tf.where((a > b) | (a != a), a, b) for a, b in pairs]

    return maxima.get_concrete_function(*[tf.TensorSpec([], dtype)] * (2 * count))


class Columns:
    """How parameters and their cotangents come apart into numbers of each row.

    Args:
        rows: how many rows there are; 0 for plain numbers, see `numbers`.
        theta: the differentiable tensors.
    """

    def __init__(self, rows, theta):
        self._shapes = [leaf.shape for leaf in theta]
        self._rows = rows
        self._counts = [shape.num_elements() // (rows or 1) for shape in self._shapes]

    def parameters(self, theta):
        """What a field takes in place of `theta`."""
        if self._rows:
            return theta
        # New tensors, so that a tape can tell them from the caller's.
        return [arithmetic.numbers(tf.identity(leaf)) for leaf in theta]

    def sources(self, parameters, captures):
        """What a tape watches of them."""
        if self._rows:
            return [*parameters[: len(parameters) - len(captures)], *captures]
        return [one for leaf in parameters for one in leaf.ravel()]

    def split(self, bars):
        """The cotangents of the `sources` as a list of `(rows,)`, or of numbers."""
        if not self._rows:
            return bars
        parts: list = []
        for count, bar in zip(self._counts, bars, strict=True):
            parts += tf.unstack(tf.reshape(bar, [self._rows, count]), axis=1)
        return parts

    def join(self, parts):
        """The cotangents of `theta`, from what `split` gives."""
        bars = []
        for count, shape in zip(self._counts, self._shapes, strict=True):
            bars.append(tf.reshape(tf.stack(parts[:count], axis=-1), shape))
            parts = parts[count:]
        return bars


def columns_of(field, y, theta):
    """The `Columns` of the parameters.

    Args:
        field: the `Field`.
        y: `(rows, width)`.
        theta: the differentiable tensors.

    Returns:
        `None` where it does not pay: for a parameter without a first axis of that many rows, whose
        cotangent is a sum over them, or for one of another dtype than the state's.
    """
    rows = y.shape[0]
    if not rows or field.variables or not pays(field, y):
        return None
    if rows == 1 and not field.by_numbers:
        return None
    for leaf in theta:
        if leaf.dtype != y.dtype or not leaf.shape.num_elements():
            return None
        if rows != 1 and leaf.shape[:1] != [rows]:
            return None
    few = sum(leaf.shape.num_elements() for leaf in theta) <= _NUMBERS * rows
    return Columns(0 if rows == 1 else rows, theta) if few else None
