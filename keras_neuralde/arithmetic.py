"""Plain arithmetic, number by number.

The graph of a small field is evaluated with every tensor taken apart into its numbers. What is left
are operations between numbers: nothing is sliced, stacked or reshaped. XLA makes one kernel of
these, forwards and backwards, where the gradients of slices are sums of padded arrays, each of
which gets a kernel of its own.
"""

import functools

import numpy as np
import tensorflow as tf

# What costs no more than moving its result through memory.
_ELEMENTWISE = {
    "Abs": tf.abs,
    "Add": tf.add,
    "AddV2": tf.add,
    "Cast": None,
    "Equal": tf.equal,
    "Greater": tf.greater,
    "GreaterEqual": tf.greater_equal,
    "Less": tf.less,
    "LessEqual": tf.less_equal,
    "LogicalAnd": tf.logical_and,
    "LogicalNot": tf.logical_not,
    "LogicalOr": tf.logical_or,
    "Maximum": tf.maximum,
    "Minimum": tf.minimum,
    "Mul": tf.multiply,
    "Neg": tf.negative,
    "NotEqual": tf.not_equal,
    "Pow": tf.pow,
    "SelectV2": tf.where,
    "Square": tf.square,
    "Sub": tf.subtract,
}
# What only moves numbers to other places.
_MOVES = frozenset(
    ["AddN", "BroadcastTo", "ConcatV2", "ExpandDims", "Fill", "Identity", "OnesLike", "Pack"]
    + ["Reshape", "Split", "SplitV", "Squeeze", "StridedSlice", "Unpack", "ZerosLike"]
)
_PARTS = frozenset(["Split", "SplitV", "StridedSlice", "Unpack"])
_OTHERS = frozenset(["Const", "NoOp", "Placeholder", "ReadVariableOp", "Shape"])

#: The most numbers in all tensors of a graph that is taken apart: a step has several times as many.
_NUMBERS = 512


def is_arithmetic(graph):
    """Whether a field's graph holds nothing but cheap operations on single numbers."""
    return all(
        op.type in _MOVES
        or op.type in _OTHERS
        or (op.type in _ELEMENTWISE and (op.type != "Pow" or _is_product(op)))
        for op in _needed(graph)
    )


def _needed(graph):
    """What the outputs depend on, and what has effects: what was mapped over rows is left over."""
    found, waiting = set(), [one.op for one in graph.outputs] + list(graph.control_outputs)
    while waiting:
        operation = waiting.pop()
        if operation.name not in found:
            found.add(operation.name)
            waiting += [one.op for one in operation.inputs]
            waiting += operation.control_inputs
    return [one for one in graph.get_operations() if one.name in found]


def _is_product(operation):
    """Whether it is a square or a cube, which XLA multiplies out."""
    exponent = tf.get_static_value(operation.inputs[1])
    return exponent is not None and bool(((exponent == 2) | (exponent == 3)).all())


def reads_parts(graph, tensor):
    """Whether a graph reads nothing but parts of one of its inputs, such as columns."""
    readers = [op for op in _needed(graph) if any(one is tensor for one in op.inputs)]
    return bool(readers) and all(
        op.type in _PARTS
        and op.outputs[0].shape.rank
        and op.outputs[0].shape[-1:] != tensor.shape[-1:]
        for op in readers
    )


def comes_apart(graph):
    """Whether `evaluate` can do with a graph that is arithmetic."""
    # All inputs are taken apart, also what nothing reads.
    tensors = list(graph.inputs)
    if any(tensor.dtype == tf.resource for tensor in tensors):
        return False
    for operation in _needed(graph):
        if operation.type == "StridedSlice" and any(
            tf.get_static_value(one) is None for one in operation.inputs[1:]
        ):
            return False
        tensors += [] if operation.type == "Placeholder" else operation.outputs
    if not all(tensor.shape.is_fully_defined() for tensor in tensors):
        return False
    return sum(tensor.shape.num_elements() for tensor in tensors) <= _NUMBERS


def numbers(tensor):
    """The numbers of a tensor: an array of its shape; what is one already stays as it is."""
    if isinstance(tensor, np.ndarray):
        return tensor
    flat = tf.unstack(tf.reshape(tensor, [tensor.shape.num_elements()]))
    return array(flat, tensor.shape)


def array(flat, shape):
    """A list of numbers as an array."""
    made = np.empty(len(flat), object)
    for index, one in enumerate(flat):
        made[index] = one
    return made.reshape(tuple(shape))


def evaluate(graph, feeds):
    """What a graph returns.

    Args:
        graph: a `FuncGraph` that is arithmetic and that `comes_apart`.
        feeds: the arrays of its inputs, in order.

    Returns:
        The arrays of its outputs, of tensors and of NumPy's numbers.
    """
    known = {one.ref(): feed for one, feed in zip(graph.inputs, feeds, strict=True)}
    fed = set(known)
    for operation in _needed(graph):
        # A small tensor that a function closes over is an input, and yet a constant by its type.
        if operation.type == "NoOp" or all(one.ref() in known for one in operation.outputs):
            continue
        static = [tf.get_static_value(output) for output in operation.outputs]
        if operation.type != "Shape" and any(one.ref() in fed for one in operation.inputs):
            # Whatever it seems to be, it follows from an input.
            fed.update(output.ref() for output in operation.outputs)
            static = [None]
        if any(value is None for value in static):
            found = _result(operation, [known[one.ref()] for one in operation.inputs])
        else:
            # With numbers that keep their types among tensors, which those of a typed array do not.
            found = [array(list(np.ravel(value)), np.shape(value)) for value in static]
        known.update(
            (output.ref(), value) for output, value in zip(operation.outputs, found, strict=True)
        )
    return [known[one.ref()] for one in graph.outputs]


def _result(operation, values):
    """The outputs of one operation, a list of arrays."""
    kind, shape = operation.type, tuple(operation.outputs[0].shape)
    dtype = operation.outputs[0].dtype
    if kind == "Cast":
        return [_mapped(lambda x: tf.cast(x, dtype), *values)]
    if kind in _ELEMENTWISE:
        return [_mapped(_ELEMENTWISE[kind], *values)]
    if kind == "AddN":
        return [functools.reduce(functools.partial(_mapped, tf.add), values)]
    if kind in ("Identity", "Reshape", "ExpandDims", "Squeeze"):
        return [values[0].reshape(shape)]
    if kind == "BroadcastTo":
        return [np.broadcast_to(values[0], shape)]
    if kind == "Fill":
        return [np.broadcast_to(values[1], shape)]
    if kind in ("OnesLike", "ZerosLike"):
        number = dtype.as_numpy_dtype(kind == "OnesLike")
        return [array([number] * operation.outputs[0].shape.num_elements(), shape)]
    if kind == "ConcatV2":
        return [np.concatenate(values[:-1], axis=int(values[-1]))]
    if kind == "Pack":
        return [np.stack(values, axis=operation.get_attr("axis"))]
    if kind == "Unpack":
        # Not `take`, which has no array around a single number.
        parts = np.split(values[0], operation.get_attr("num"), axis=operation.get_attr("axis"))
        return [part.reshape(shape) for part in parts]
    if kind in ("Split", "SplitV"):
        whole, axis = (values[1], values[0]) if kind == "Split" else (values[0], values[2])
        sizes = [output.shape[int(axis)] for output in operation.outputs]
        return np.split(whole, np.cumsum(sizes)[:-1], axis=int(axis))
    if kind == "StridedSlice":
        return [values[0][_key(operation, *values[1:])].reshape(shape)]
    raise NotImplementedError(f"{kind} is no plain arithmetic.")


def _mapped(function, *arrays):
    """`function` of the numbers of arrays that are broadcast against each other."""
    spread = np.broadcast_arrays(*arrays)
    made = [function(*some) for some in zip(*(one.ravel() for one in spread), strict=True)]
    return array(made, spread[0].shape)


def _key(operation, begin, end, strides):
    """The index of a `StridedSlice`, all of its axes kept."""
    masks = {
        name: operation.get_attr(f"{name}_mask")
        for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    key: list = []
    for axis, (first, last, step) in enumerate(zip(begin, end, strides, strict=True)):
        marked = {name for name, bits in masks.items() if bits >> axis & 1}
        if "ellipsis" in marked:
            key.append(...)
        elif "new_axis" in marked:
            key.append(None)
        elif "shrink_axis" in marked:
            key.append(slice(int(first), int(first) + 1 or None))
        else:
            first = None if "begin" in marked else int(first)
            last = None if "end" in marked else int(last)
            key.append(slice(first, last, int(step)))
    return tuple(key)
