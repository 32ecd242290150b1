"""Tracing a user's function once, with everything it closes over lifted into arguments.

A tensor that a function closes over is invisible to a custom gradient: in graph mode its gradient
would silently be lost. Here the function is traced once; the tensors it captured become explicit
arguments that the custom gradient differentiates like any other. Variables stay what they are: the
custom gradient reports them through TensorFlow's own `variables` argument.
"""

import dataclasses
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import errors_impl


@dataclasses.dataclass(frozen=True)
class LiftedFunction:
    """A traced function whose captured tensors are arguments.

    Attributes:
        concrete: the traced `ConcreteFunction`.
        captures: tensors with a floating dtype that the function closes over, in order.
        variables: the floating `tf.Variable`s that it reads.
    """

    concrete: Any
    captures: tuple
    variables: tuple
    _lifted: tuple

    def __call__(self, args, captures):
        """Calls the function.

        Args:
            args: the flat list of its tensor arguments.
            captures: replacements for `self.captures`.

        Returns:
            The structure that the function returns.
        """
        replacements = list(self.concrete.captured_inputs)
        for index, value in zip(self._lifted, captures, strict=True):
            replacements[index] = value
        # A private method, used in this one place; tests/test_captures.py guards it.
        return self.concrete._call_flat(list(args), captured_inputs=replacements)


def lift(f, *specs):
    """Traces `f` for the given nests of `tf.TensorSpec` and lifts its captured tensors.

    Args:
        f: a Python callable or `tf.function`.
        *specs: one nest of `tf.TensorSpec` (or `None`) per argument.

    Returns:
        A `LiftedFunction`. It takes the flattened arguments.
    """
    flat_specs = tf.nest.flatten(specs)
    present = [spec for spec in flat_specs if spec is not None]

    def flat(*tensors):
        tensors = iter(tensors)
        filled = [None if spec is None else next(tensors) for spec in flat_specs]
        return f(*tf.nest.pack_sequence_as(specs, filled))

    concrete = _trace(flat, present)
    captured = concrete.captured_inputs
    lifted = tuple(i for i, tensor in enumerate(captured) if tensor.dtype.is_floating)
    variables = tuple(v for v in concrete.graph.variables if v.dtype.is_floating)
    return LiftedFunction(concrete, tuple(captured[i] for i in lifted), variables, lifted)


def _trace(flat, specs):
    try:
        return tf.function(flat, autograph=False).get_concrete_function(*specs)
    except errors_impl.OperatorNotAllowedInGraphError:
        # A Python `if` or loop over tensors: let AutoGraph translate it.
        return tf.function(flat, autograph=True).get_concrete_function(*specs)
