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

#: The most components: a kernel of very many operations takes long to compile.
MOST = 8

#: The most numbers of each row that the cotangents of parameters may be.
_NUMBERS = 32

# What costs no more than moving its result through memory.
_CHEAP = frozenset(
    # Numbers,
    ["Abs", "Add", "AddN", "AddV2", "Cast", "Maximum", "Minimum", "Mul", "Neg", "Square", "Sub"]
    # choices among them,
    + ["Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "LogicalAnd", "LogicalNot"]
    + ["LogicalOr", "NotEqual", "SelectV2"]
    # and where they come from and go to.
    + ["BroadcastTo", "ConcatV2", "Const", "ExpandDims", "Fill", "Identity", "NoOp", "OnesLike"]
    + ["Pack", "Placeholder", "ReadVariableOp", "Reshape", "Shape", "Split", "SplitV", "Squeeze"]
    + ["StridedSlice", "Unpack", "ZerosLike"]
)


def is_arithmetic(graph):
    """Whether a field's graph holds nothing but cheap operations on single numbers."""
    return all(op.type in _CHEAP or _is_product(op) for op in graph.get_operations())


def _is_product(operation):
    """Whether it is a square or a cube, which XLA multiplies out."""
    if operation.type != "Pow":
        return False
    exponent = tf.get_static_value(operation.inputs[1])
    return exponent is not None and bool(((exponent == 2) | (exponent == 3)).all())


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
    # Without a batch axis the field's vectors would be reshaped into rows and back, in every stage;
    # XLA sees through slices, but not through that.
    narrow = narrow and not getattr(g, "without_batch", False)
    return bool(narrow and getattr(g, "is_arithmetic", False) and is_compiled())


def split(y):
    """`(..., width)` as a list of `(...,)`."""
    return tf.unstack(y, axis=-1)


def join(parts):
    """The inverse of `split`."""
    return tf.stack(parts, axis=-1)


def together(parts):
    """The same tensors, as the results of one kernel.

    XLA:CPU computes each result of a fusion by itself, with all that it depends on, unless the
    fusion ends in one operation with several results. Such an operation is a reduction of several
    arrays at once: here of two copies of each, to the larger. The copies are never made; the
    compiler finds that both are the same number.

    Args:
        parts: a list of `(rows,)` of one dtype.
    """
    lowest = tf.constant(float("-inf"), parts[0].dtype)
    shape = [parts[0].shape[0] or tf.shape(parts[0])[0], 2]
    twice = [tf.broadcast_to(part[:, None], shape) for part in parts]
    count = len(parts)
    found = gen_xla_ops.xla_variadic_reduce_v2(
        twice, [lowest] * count, [1], _maxima(count, parts[0].dtype)
    )
    for part, like in zip(found, parts, strict=True):
        part.set_shape(like.shape)
    return list(found)


def _maxima(count, dtype):
    """The function of two times `count` numbers that reduces them pair by pair."""

    @tf.function(autograph=False)
    def maxima(*numbers):
        # Not tf.maximum, which drops NaN here.
        pairs = zip(numbers[:count], numbers[count:], strict=True)
        return [tf.where((a > b) | (a != a), a, b) for a, b in pairs]

    return maxima.get_concrete_function(*[tf.TensorSpec([], dtype)] * (2 * count))


class Columns:
    """How cotangents of parameters come apart into numbers of each row.

    Args:
        rows: how many rows there are.
        shapes: the shapes of the parameters.
    """

    def __init__(self, rows, shapes):
        self._rows, self._shapes = rows, shapes
        self._counts = [shape.num_elements() // rows for shape in shapes]

    def split(self, bars):
        """All numbers, a list of `(rows,)`."""
        parts: list = []
        for count, bar in zip(self._counts, bars, strict=True):
            parts += tf.unstack(tf.reshape(bar, [self._rows, count]), axis=1)
        return parts

    def join(self, parts):
        """The inverse of `split`."""
        bars = []
        for count, shape in zip(self._counts, self._shapes, strict=True):
            bars.append(tf.reshape(tf.stack(parts[:count], axis=1), shape))
            parts = parts[count:]
        return bars


def columns_of(field, y, theta):
    """The `Columns` of the parameters' cotangents.

    Args:
        field: the `Field`.
        y: `(rows, width)`.
        theta: the differentiable tensors.

    Returns:
        `None` where it does not pay: for a parameter without a first axis of that many rows, whose
        cotangent is a sum over them, or for one of another dtype than the state's.
    """
    rows, shapes = y.shape[0], [leaf.shape for leaf in theta]
    if not rows or field.variables or not pays(field, y):
        return None
    for leaf, shape in zip(theta, shapes, strict=True):
        if leaf.dtype != y.dtype or not shape.num_elements():
            return None
        if rows != 1 and shape[:1] != [rows]:
            return None
    few = sum(shape.num_elements() for shape in shapes) <= _NUMBERS * rows
    return Columns(rows, shapes) if few else None
