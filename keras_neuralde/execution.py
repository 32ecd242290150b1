"""Running a checked solve: as part of a graph, or eagerly through a compiled program."""

import enum
import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_neuralde import captures
from keras_neuralde.adjoints.discrete import solve_discrete
from keras_neuralde.consistency import is_consistent
from keras_neuralde.controllers import Constant
from keras_neuralde.fields import Field, Implicit
from keras_neuralde.integrate import ACCEPTED, REJECTED, STATUS, Plan, Terms, integrate
from keras_neuralde.programs import ProgramCache, function_key
from keras_neuralde.solution import Status

programs = ProgramCache()
_RING_BYTES = 1 << 25


class Lifted(NamedTuple):
    """The traced functions of an equation."""

    field: Any
    jacobian: Any
    sparsity: Any


def lift(equation, layout, inputs):
    """Traces the functions once and checks what they return."""
    t = tf.TensorSpec(layout.batch_shape, layout.dtype)

    def spec(leaf):
        return None if leaf is None else tf.TensorSpec(leaf.shape, leaf.dtype)

    p = tf.nest.map_structure(spec, inputs["p"])
    specs = (t, layout.structure, p)
    jacobian = equation.jacobian
    if jacobian is not None:
        jacobian = captures.lift(_checked_jacobian(jacobian, layout), *specs)
    field = captures.lift(_checked(equation.f, layout), *specs)
    return Lifted(field, jacobian, equation.sparsity)


def _checked_jacobian(function, layout):
    n, batch = layout.width, list(layout.batch_shape)
    shapes = [tf.TensorShape([*batch, n, n])]
    if len(layout.state_shapes) == 1:
        shapes.append(tf.TensorShape([*batch, *layout.state_shapes[0] * 2]))

    def jacobian(t, y, p):
        matrix = tf.convert_to_tensor(function(t, y, p))
        if matrix.dtype != layout.dtype:
            raise TypeError(
                f"jacobian(t, y, p) must return the dtype of `y`, {layout.dtype.name}. "
                f"Received: {matrix.dtype.name}"
            )
        if not any(matrix.shape.is_compatible_with(shape) for shape in shapes):
            raise ValueError(
                f"jacobian(t, y, p) must return the shape {shapes[0]}: ∂f_i/∂y_j in row i and "
                f"column j. Received: {matrix.shape}"
            )
        return matrix

    return jacobian


def _checked(f, layout):
    def field(t, y, p):
        dy = f(t, y, p)
        try:
            tf.nest.assert_same_structure(layout.structure, dy)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "f(t, y, p) must return the structure of `y`. "
                f"Expected: {layout.structure}. Received: {dy}"
            ) from error

        def convert(leaf, spec):
            leaf = tf.convert_to_tensor(leaf)
            if leaf.dtype != spec.dtype:
                raise TypeError(
                    f"f(t, y, p) must return the dtype of `y`, {spec.dtype.name}. "
                    f"Received: {leaf.dtype.name}"
                )
            same_rank = leaf.shape.rank is None or leaf.shape.rank == spec.shape.rank
            if not same_rank or not leaf.shape.is_compatible_with(spec.shape):
                raise ValueError(
                    f"f(t, y, p) must return the shape of `y`, {spec.shape}. Received: {leaf.shape}"
                )
            return leaf

        flat = tf.nest.flatten(dy)
        specs = tf.nest.flatten(layout.structure)
        leaves = [convert(leaf, spec) for leaf, spec in zip(flat, specs, strict=True)]
        return tf.nest.pack_sequence_as(layout.structure, leaves)

    return field


class Gradient(enum.Enum):
    """What a solve must be ready for."""

    NEVER = "never"
    POSSIBLE = "possible"  # a graph may still be differentiated, by a tape around it
    EXPECTED = "expected"  # a tape is recording


def run_eagerly(equation, settings, layout, inputs, shape):
    """Runs an eager call through its compiled program."""
    gradient = Gradient.EXPECTED if tape_is_active() else Gradient.NEVER

    def signature(leaf):
        return None if leaf is None else (tuple(leaf.shape), leaf.dtype.name)

    def keyed(nest):
        return repr(tf.nest.map_structure(lambda leaf: repr(signature(leaf)), nest))

    references: list = []
    jacobian, sparsity = equation.jacobian, equation.sparsity
    key = (
        function_key(equation.f, references), settings, layout.batch_ndims, shape, gradient,
        keyed(inputs), None if jacobian is None else function_key(jacobian, references),
        None if sparsity is None else sparsity.tobytes(),
    )  # fmt: skip

    def make():
        lifted = lift(equation, layout, inputs)

        # Compiling TFP's BDF takes longer than anybody waits.
        jit = not settings.solver.delegated or settings.solver.compilable

        @tf.function(jit_compile=jit, autograph=False)
        def program(inputs):
            return trace(lifted, settings, layout, inputs, shape, gradient)

        return program

    return programs.get(key, references, make)(inputs)


def run_in_graph(equation, settings, layout, inputs, shape):
    """Makes the solve part of the graph that is being built."""
    gradient = Gradient.EXPECTED if tape_is_active() else Gradient.POSSIBLE
    lifted = lift(equation, layout, inputs)
    return trace(lifted, settings, layout, inputs, shape, gradient)


def tape_is_active():
    """Whether a tape or an accumulator is recording."""
    from tensorflow.python.eager import record

    return record.could_possibly_record()


def make_field(lifted, settings, layout, inputs, shape):
    """The field, the packed initial state, the terms, and which rows have times out of place."""
    p_leaves = [leaf for leaf in tf.nest.flatten(inputs["p"]) if leaf is not None]
    substitute = settings.solver.delegated and bool(lifted.field.captures)
    y0 = layout.pack(inputs["y0"])
    terms, bad = _terms(layout, inputs, y0, shape)
    constant = not settings.solver.adaptive or isinstance(settings.controller, Constant)
    implicit = Implicit(
        inputs.get("mass"),
        inputs.get("mass_inverse"),
        lifted.jacobian,
        lifted.sparsity,
        None if constant else (terms.rtol, terms.atol),
    )
    batch_dims = layout.batch_dims(tf.nest.flatten(inputs["y0"]))
    field = Field(lifted.field, layout, batch_dims, p_leaves, substitute, implicit)
    return field, y0, terms, bad


def trace(lifted, settings, layout, inputs, shape, gradient):
    """The solve as graph operations: tensors in, tensors out."""
    leaves = tf.nest.flatten(inputs["y0"])
    batch_dims = layout.batch_dims(leaves)
    field, y0, terms, bad = make_field(lifted, settings, layout, inputs, shape)
    has_saves = terms.saves is not None
    if settings.solver.delegated:
        y, control, num_f = settings.solver.integrate(field, y0, terms, settings.max_steps)
    else:
        y, control = _integrate(field, y0, terms, settings, shape, gradient)
        num_f = _evaluations(settings, has_saves, control)
    status = tf.where(bad, tf.cast(Status.BAD_TIMES, y.dtype), control[STATUS])
    if "constraints" in inputs:
        consistent = is_consistent(field.bind(field.theta), y0, terms, inputs["constraints"])
        bad |= ~consistent
        inconsistent = tf.cast(Status.INCONSISTENT_START, y.dtype)
        status = tf.where(consistent, status, inconsistent)
    y = tf.where(bad[:, None], tf.constant(float("nan"), y.dtype), y)
    control = tf.concat([control[:STATUS], status[None], control[STATUS + 1 :]], axis=0)
    leading = [tf.shape(y)[0] if y.shape[0] is None else y.shape[0]] if has_saves else []
    return {
        "y": layout.unpack(y, batch_dims, leading),
        "control": control,
        "t": terms.t_end if not has_saves else inputs["saves"],
        "num_f": num_f,
        "batch_like": leaves[0],
    }


def _plan(settings, has_saves, segment, save_slopes):
    return Plan(
        settings.solver,
        settings.controller,
        settings.norm,
        settings.max_steps,
        segment,
        has_saves,
        save_slopes,
        settings.first_step,
    )


def _integrate(field, y0, terms, settings, shape, gradient):
    """The states and the control block, through the adjoint where a gradient may be asked for."""
    has_saves = terms.saves is not None
    plain = _plan(settings, has_saves, _segment_of_memory(settings, y0), False)
    if gradient is Gradient.NEVER:
        outcome = integrate(plain, field.bind(field.theta), y0, terms)
        return outcome.y, outcome.control
    # All checkpoints' worth of turns, as a power of two.
    segment = 1 << int(math.log2(settings.checkpoints))
    plan = _plan(settings, has_saves, segment, has_saves and shape.time_gradient)
    primal = plain if gradient is Gradient.POSSIBLE else None
    return solve_discrete(plan, field, y0, terms, settings.checkpoints, shape.time_gradient, primal)


def _evaluations(settings, has_saves, control):
    """Evaluations of the field, per row."""
    solver = settings.solver
    if solver.counts_evaluations:
        once = int(solver.carries_slope) + settings.first_step * (2 - solver.carries_slope)
        return once + tf.cast(control[-1], tf.int32)
    once = int(solver.carries_slope) + settings.first_step * (2 - solver.carries_slope)
    steps = tf.cast(control[ACCEPTED] + control[REJECTED], tf.int32)
    return once + steps * solver.evaluations(dense=has_saves)


def _terms(layout, inputs, y0, shape):
    """The loop's constants; and which rows have times that cannot be served."""
    rows = tf.shape(y0)[0]

    def per_row(t):
        return tf.broadcast_to(tf.reshape(t, [-1]), [rows])

    t0, t1 = per_row(inputs["t0"]), per_row(inputs["t1"])
    one = tf.ones_like(t0)
    direction = tf.where(t1 >= t0, one, -one)
    saves, t_end = None, t1
    bad = ~tf.math.is_finite(t0 + t1)
    if shape.saves != "none":
        saves = inputs["saves"]
        n = saves.shape[-1] or tf.shape(saves)[-1]
        saves = tf.transpose(tf.reshape(saves, [-1, n]))
        present = tf.math.is_finite(saves)
        ahead = tf.where(present, direction * saves, direction * t0)
        # Zero times t1, so that its gradient is a zero and not missing.
        t_end = direction * tf.reduce_max(ahead, axis=0) + 0.0 * t1
        slack = 4 * np.finfo(y0.dtype.as_numpy_dtype).eps * tf.maximum(tf.abs(t0), tf.abs(t1))
        bad |= tf.reduce_any(ahead < direction * t0 - slack, axis=0)
        bad |= direction * t_end > direction * t1 + slack
        bad |= tf.reduce_any(present[1:] & (ahead[1:] < ahead[:-1]), axis=0)
        bad |= tf.reduce_any(present[1:] & ~present[:-1], axis=0)
    t_end = tf.where(bad, t0, t_end)

    def tolerance(value):
        leaves = tf.nest.flatten(value)
        if len(leaves) == 1 and leaves[0].shape.rank == 0:
            return leaves[0]
        targets = tf.nest.flatten(inputs["y0"])
        full = [tf.broadcast_to(a, tf.shape(b)) for a, b in zip(leaves, targets, strict=True)]
        return layout.pack(tf.nest.pack_sequence_as(layout.structure, full))

    return Terms(
        t0, t_end, direction, tolerance(inputs["rtol"]), tolerance(inputs["atol"]),
        inputs["dt0"], inputs["dt_min"], saves,
    ), bad  # fmt: skip


def _segment_of_memory(settings, y0):
    """Turns per segment of a solve without a trail, a power of two: what memory allows."""
    rows, width = y0.shape[0] or 256, y0.shape[1] or 256
    row_bytes = max(1, rows * (2 + width * (1 + settings.solver.dense_degree())) * 8)
    return 1 << max(4, min(10, int(math.log2(max(1, _RING_BYTES // row_bytes)))))
