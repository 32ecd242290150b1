"""What the front door needs to know of each kind of problem."""

import dataclasses
from typing import Any

import tensorflow as tf

from keras_neuralde.checks import check_takes
from keras_neuralde.programs import function_key
from keras_neuralde.settings import Shape


class Equation:
    """The functions of a problem, and what is particular to its kind.

    Args:
        problem: the problem.
    """

    def __init__(self, problem):
        self.problem = problem

    def choose_solver(self, solver, adjoint, controller):
        """The solver that is meant by `solver`; refuses nothing that `check` refuses.

        Args:
            solver: what the caller of `solve` passed, and so are the rest.
            adjoint: what the solver must be able to go through.
            controller: how its steps are to be chosen.
        """
        return solver

    def check(self, settings):
        """Refuses settings that this kind of equation does not take."""

    def inputs(self, settings, layout, inputs, seed):
        """The tensors that this kind of equation adds to the common `inputs`, as a dictionary."""
        return {}

    def shape(self, saves, watched, settings, inputs):
        """The `Shape` of the answer.

        Args:
            saves: the kind of save points.
            watched: whether a time is a tensor, so that it may have a gradient.
            settings: the `Settings`.
            inputs: all tensors.
        """
        return Shape(saves, watched)

    def key(self, references):
        """What decides the traced functions, hashable; see `programs.function_key`."""
        return function_key(self.problem.f, references)

    def lift(self, layout, p):
        """Traces the functions once and checks what they return.

        Args:
            layout: the `StateLayout`.
            p: the nest of specs of the parameters.

        Returns:
            A `Lifted`, which holds no reference to the problem.
        """
        raise NotImplementedError


class Lifted:
    """The traced functions of an equation."""

    #: The traced functions that see p.
    functions: tuple = ()

    def bind(self, context):
        """The `Field` that the loop sees, from a `Context`."""
        raise NotImplementedError

    def stops(self, context):
        """Times at which steps must end besides the save points, `(n, rows)`; `None` for none."""
        return None

    def happenings(self, context):
        """The `Happenings` between steps, or `None`."""
        return None

    def law(self, p):
        """What decides only when jumps happen: tensors and variables.

        Args:
            p: the parameters.
        """
        return []

    def uses(self, leaf):
        """Whether the equation reads the parameter number `leaf` of p."""
        return any(function.uses_parameter(leaf) for function in self.functions)


@dataclasses.dataclass(frozen=True)
class Context:
    """What a lifted equation is bound to.

    Args:
        settings: the `Settings`.
        layout: the `StateLayout`.
        batch_dims: the batch dimensions, static or as tensors.
        p_leaves: the parameters as a flat list.
        inputs: all tensors.
        terms: the loop's `Terms`.
        shape: the `Shape` of the answer.
    """

    settings: Any
    layout: Any
    batch_dims: list
    p_leaves: list
    inputs: dict
    terms: Any
    shape: Shape


def spanning(layout, p):
    """The specs of `f(t, y, p)`'s arguments."""
    return tf.TensorSpec(layout.batch_shape, layout.dtype), layout.structure, p


def checked(f, layout, name="f(t, y, p)"):
    """`f` with what it returns compared with the state."""

    def field(*arguments):
        dy = _called(f, name, arguments)
        if any(leaf is None for leaf in tf.nest.flatten(dy)):
            raise ValueError(
                f"{name} must return the structure of `y`. Received: {dy}; is a `return` missing?"
            )
        try:
            tf.nest.assert_same_structure(layout.structure, dy)
        except (TypeError, ValueError) as error:
            listed = isinstance(dy, (list, tuple)) and not tf.nest.is_nested(layout.structure)
            hint = " (`tf.stack` makes one tensor of a list)" if listed else ""
            raise ValueError(
                f"{name} must return the structure of `y`{hint}. "
                f"Expected: {layout.structure}. Received: {dy}"
            ) from error

        def convert(leaf, spec):
            leaf = tf.convert_to_tensor(leaf)
            if leaf.dtype != spec.dtype:
                raise TypeError(
                    f"{name} must return the dtype of `y`, {spec.dtype.name}. "
                    f"Received: {leaf.dtype.name}"
                )
            same_rank = leaf.shape.rank is None or leaf.shape.rank == spec.shape.rank
            if not same_rank or not leaf.shape.is_compatible_with(spec.shape):
                raise ValueError(
                    f"{name} must return the shape of `y`, {spec.shape}. Received: {leaf.shape}"
                )
            return leaf

        flat = tf.nest.flatten(dy)
        specs = tf.nest.flatten(layout.structure)
        leaves = [convert(leaf, spec) for leaf, spec in zip(flat, specs, strict=True)]
        return tf.nest.pack_sequence_as(layout.structure, leaves)

    return field


def _called(f, name, arguments):
    """What `f` returns; with a sentence for what newcomers write first."""
    check_takes(f, name, *arguments)
    try:
        return f(*arguments)
    except NotImplementedError as error:
        if "symbolic" not in str(error):
            raise
        raise TypeError(
            f"{name} must compute with TensorFlow, as `tf.sin` in place of `np.sin`: NumPy cannot "
            f"take tensors whose values are not known yet. Received: {error}"
        ) from error
