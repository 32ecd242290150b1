"""What a user's function closes over, found by tracing it once.

A tensor that a function closes over is invisible to a custom gradient: in graph mode its gradient
would silently be lost. Here the function is traced once; the floating tensors it captured are
listed, so that the custom gradient takes them as arguments like any other. Variables stay what
they are: the custom gradient reports them through TensorFlow's own `variables` argument.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import errors_impl


@dataclasses.dataclass(frozen=True)
class LiftedFunction:
    """A function whose captured tensors are known.

    Attributes:
        inline: the function of its flat tensor arguments, to be called while a graph is built;
            captured tensors are read where they are. `None` when AutoGraph had to translate it.
        concrete: the traced `ConcreteFunction`.
        captures: tensors with a floating dtype that the function closes over, in order.
        variables: the floating `tf.Variable`s that it reads.
        first_parameter: how many tensors come before those of the last argument.
        lifted: which of all captured inputs `captures` are.
    """

    inline: Callable | None
    concrete: Any
    captures: tuple
    variables: tuple
    first_parameter: int
    lifted: tuple

    def __call__(self, args):
        """Calls the function on its flat arguments; captured tensors are read where they are."""
        # Its operations become part of the caller's graph: behind a call, XLA would take shapes
        # for values and compile anew for every value.
        if self.inline is not None:
            return self.inline(*args)
        return self.substituted(args, self.captures)

    def uses_parameter(self, number):
        """Whether the function reads the tensor `number` of its last argument."""
        return bool(self.concrete.inputs[self.first_parameter + number].consumers())

    def reads(self, outputs=None):
        """What the first `outputs` of the tensors that the function returns depend on.

        Args:
            outputs: how many of them; `None` for all.

        Returns:
            The numbers of the tensors of its last argument, and a list of captured tensors and
            variables.
        """
        operations, waiting = {}, [tensor.op for tensor in self.concrete.outputs[:outputs]]
        while waiting:
            operation = waiting.pop()
            if operation.name not in operations:
                operations[operation.name] = operation
                waiting += [tensor.op for tensor in operation.inputs]
        inputs, captured = self.concrete.inputs, self.concrete.captured_inputs
        own = inputs[: len(inputs) - len(captured)]
        numbers = {
            number
            for number, tensor in enumerate(own[self.first_parameter :])
            if tensor.op.name in operations
        }
        inner = inputs[len(own) :]
        reached = [a for a, b in zip(captured, inner, strict=True) if b.op.name in operations]
        floating = [one for one in self.captures if any(one is other for other in reached)]
        variables = [v for v in self.variables if any(v.handle is other for other in reached)]
        return numbers, floating + variables

    def substituted(self, args, captures):
        """Calls the function with other tensors in place of those it captured.

        Args:
            args: the flat list of its tensor arguments.
            captures: replacements for `self.captures`.

        Returns:
            The structure that the function returns.
        """
        replacements = list(self.concrete.captured_inputs)
        for index, value in zip(self.lifted, captures, strict=True):
            replacements[index] = value
        # A private method, used in this one place; tests/test_captures.py guards it.
        return self.concrete._call_flat(list(args), captured_inputs=replacements)


def lift(f, *specs):
    """Traces `f` for the given nests of `tf.TensorSpec` and finds its captured tensors.

    Args:
        f: a Python callable or `tf.function`.
        *specs: one nest of `tf.TensorSpec` (or `None`) per argument.

    Returns:
        A `LiftedFunction`. It takes the flattened arguments.
    """
    flat_specs = tf.nest.flatten(specs)
    present = [spec for spec in flat_specs if spec is not None]

    def flat(*tensors):
        remaining = iter(tensors)
        filled = [None if spec is None else next(remaining) for spec in flat_specs]
        return f(*tf.nest.pack_sequence_as(specs, filled))

    try:
        concrete = tf.function(flat, autograph=False).get_concrete_function(*present)
        inline = flat
    except errors_impl.OperatorNotAllowedInGraphError:
        # A Python `if` or loop over tensors: let AutoGraph translate it.
        concrete = tf.function(flat, autograph=True).get_concrete_function(*present)
        inline = None
    captured = concrete.captured_inputs
    lifted = tuple(i for i, tensor in enumerate(captured) if tensor.dtype.is_floating)
    variables = tuple(v for v in concrete.graph.variables if v.dtype.is_floating)
    captures = tuple(captured[i] for i in lifted)
    last = [spec for spec in tf.nest.flatten(specs[-1]) if spec is not None]
    first_parameter = len(present) - len(last)
    return LiftedFunction(inline, concrete, captures, variables, first_parameter, lifted)
