"""Narrow states, component by component: what XLA makes one kernel of.

A field of plain arithmetic on two or three components ends in a concatenation of its outputs. XLA
gives each concatenation a kernel, in which every component computes the whole argument of the
stage for itself. Where a state is a list of components instead, all stages of a step melt into the
kernels of their results. `kept` marks those: without it each of their many readers would compute
the step anew.
"""

import tensorflow as tf

#: The most components; with each of them the step is computed once more.
MOST = 4

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
    return all(op.type in _CHEAP for op in graph.get_operations())


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


def pays(g, y):
    """Whether to step through a state by its components.

    Args:
        g: the field.
        y: `(rows, width)`.
    """
    rows, width = y.shape
    # A single row has nothing to gain: each of its kernels takes longer to start than to run.
    return bool(
        rows != 1
        and width is not None
        and width <= MOST
        and getattr(g, "is_arithmetic", False)
        and is_compiled()
    )


def split(y):
    """`(..., width)` as a list of `(...,)`."""
    return tf.unstack(y, axis=-1)


def join(parts):
    """The inverse of `split`."""
    return tf.stack(parts, axis=-1)


def kept(t, parts):
    """The same tensors, as results that are computed once and read from memory.

    XLA does not compute a division twice, whatever it could melt with; nor can it know that the
    divisor is one.

    Args:
        t: `(rows,)`, anything that is not NaN.
        parts: a list of `(rows,)`.
    """
    one = tf.cast(tf.equal(t, t), t.dtype)
    return [part / one for part in parts]
