"""Running a checked solve: as part of a graph, or eagerly through a compiled program."""

import contextlib
import contextvars
import dataclasses
import enum
import functools
import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_neuralde import captures
from keras_neuralde.adjoints.base import Task
from keras_neuralde.adjoints.recorded import integrate_densely
from keras_neuralde.brownian import BrownianPath
from keras_neuralde.consistency import is_consistent
from keras_neuralde.controllers import Constant
from keras_neuralde.fields import Field, Implicit
from keras_neuralde.history import DelayField, DelayFunctions, LiftedDelay, discontinuities
from keras_neuralde.integrate import (
    ACCEPTED,
    REJECTED,
    STATUS,
    Plan,
    T,
    Terms,
    advance,
    any_running,
    begin,
    finish,
    integrate,
    integrate_times,
    nan_where_failed,
    read_saves,
    step_times,
)
from keras_neuralde.programs import ProgramCache, function_key
from keras_neuralde.solution import Status
from keras_neuralde.sparsity import find_band
from keras_neuralde.stochastic_field import LiftedEquation, StochasticField, StochasticFunctions

programs = ProgramCache()
_RING_BYTES = 1 << 25
_TURNS_OF_A_PART = 4096


class Lifted(NamedTuple):
    """The traced functions of an equation.

    `field` is a `LiftedEquation` of stochastic ones and a `LiftedDelay` of those with delays.
    """

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
    if isinstance(equation.f, DelayFunctions):
        wrap = functools.partial(_checked, layout=layout)
        delayed = equation.f.lift(layout, p, lambda f, name: wrap(f, name=name))
        return Lifted(delayed, None, None)
    jacobian = equation.jacobian
    if jacobian is not None:
        jacobian = captures.lift(_checked_jacobian(jacobian, layout), *specs)
    stochastic = isinstance(equation.f, StochasticFunctions)
    drift = equation.f.f if stochastic else equation.f
    field = captures.lift(_checked(drift, layout), *specs)
    field = equation.f.lift(field, layout, p) if stochastic else field
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


def _checked(f, layout, name="f(t, y, p)"):
    def field(*arguments):
        dy = f(*arguments)
        if dy is None:
            raise ValueError(
                f"{name} must return the structure of `y`. Received: None; is a `return` missing?"
            )
        try:
            tf.nest.assert_same_structure(layout.structure, dy)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name} must return the structure of `y`. "
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


class Gradient(enum.Enum):
    """What a solve must be ready for."""

    NEVER = "never"
    POSSIBLE = "possible"  # a graph may still be differentiated, by a tape around it
    EXPECTED = "expected"  # a tape is recording


def run_eagerly(equation, settings, layout, inputs, shape, what):
    """Runs an eager call through its compiled program.

    Args:
        equation: the `arguments.Equation`.
        settings: the `Settings`.
        layout: the `StateLayout`.
        inputs: the tensors.
        shape: the `Shape`.
        what: `trace`, `trace_part` or `trace_steps`.
    """
    gradient = Gradient.EXPECTED if tape_is_active() else Gradient.NEVER

    def signature(leaf):
        return None if leaf is None else (tuple(leaf.shape), leaf.dtype.name)

    def keyed(nest):
        return repr(tf.nest.map_structure(lambda leaf: repr(signature(leaf)), nest))

    references: list = []
    jacobian, sparsity = equation.jacobian, equation.sparsity
    key = (
        _functions_key(equation.f, references), settings, layout.batch_ndims, shape, gradient,
        keyed(inputs), what.__name__,
        None if jacobian is None else function_key(jacobian, references),
        None if sparsity is None else sparsity.tobytes(),
    )  # fmt: skip

    def make():
        lifted = lift(equation, layout, inputs)

        # Compiling TFP's BDF takes longer than anybody waits.
        jit = not settings.solver.delegated or settings.solver.compilable

        @tf.function(jit_compile=jit, autograph=False)
        def program(inputs):
            return what(lifted, settings, layout, inputs, shape, gradient)

        return program

    return programs.get(key, references, make)(inputs)


def _functions_key(f, references):
    if isinstance(f, DelayFunctions):
        return "delay", *(function_key(one, references) for one in (f.f, f.history))
    if not isinstance(f, StochasticFunctions):
        return function_key(f, references)
    return *(function_key(one, references) for one in (f.f, f.g)), f.noise, f.noise_dim


_differentiable: contextvars.ContextVar = contextvars.ContextVar("differentiable", default=True)


@contextlib.contextmanager
def without_gradients():
    """A scope for graphs that nobody will differentiate: what gradients need is left out."""
    token = _differentiable.set(False)
    try:
        yield
    finally:
        _differentiable.reset(token)


def run_in_graph(equation, settings, layout, inputs, shape, what):
    """Makes the solve part of the graph that is being built."""
    gradient = Gradient.EXPECTED if tape_is_active() else Gradient.POSSIBLE
    gradient = gradient if _differentiable.get() else Gradient.NEVER
    lifted = lift(equation, layout, inputs)
    return what(lifted, settings, layout, inputs, shape, gradient)


def tape_is_active():
    """Whether a tape or an accumulator is recording."""
    from tensorflow.python.eager import record

    return record.could_possibly_record()


def trace(lifted, settings, layout, inputs, shape, gradient):
    """The solve as graph operations: tensors in, tensors out."""
    bound = bind(lifted, settings, layout, inputs, shape)
    field, y0, terms, bad, _ = bound
    if settings.solver.delegated:
        y, control, num_f = settings.solver.integrate(field, y0, terms, settings.max_steps)
        return _answer(settings, layout, inputs, bound, y, control, num_f)
    if settings.dense or settings.solver.remembers:
        stops = _discontinuities(settings, inputs, terms)
        y, control, record = _integrate_densely(field, y0, terms, settings, shape, stops)
    else:
        y, control = _integrate(field, y0, terms, settings, shape, gradient)
        record = {}
    return _answer(settings, layout, inputs, bound, y, control) | record


def trace_part(lifted, settings, layout, inputs, shape, gradient):
    """A part of the solve: the answer so far, and what it takes to go on from there.

    The inputs hold the `state` of the part before; the first part has `None`.
    """
    bound = bind(lifted, settings, layout, inputs, shape)
    field, y0, terms, _, _ = bound
    plan = _plan(settings, shape, _segment_of_memory(settings, y0))
    g = field.bind(field.theta)
    carry, outputs = inputs["state"] or begin(plan, g, y0, terms)
    carry, outputs = advance(plan, g, terms, carry, outputs, _TURNS_OF_A_PART)
    outcome = finish(plan, carry, outputs)
    span = tf.abs(terms.t_end - terms.t0)
    covered = tf.math.divide_no_nan(tf.abs(carry.control[T] - terms.t0), span)
    covered = tf.where(carry.control[STATUS] < 0.0, covered, 1.0)
    return {
        "answer": _answer(settings, layout, inputs, bound, outcome.y, outcome.control),
        "state": (carry, outputs),
        "covered": tf.reduce_mean(covered),
        "running": any_running(carry.control),
    }


def run_with_progress(equation, settings, layout, inputs, shape, report):
    """Runs an eager call in parts.

    Args:
        equation: the `arguments.Equation`.
        settings: the `Settings`.
        layout: the `StateLayout`.
        inputs: the tensors.
        shape: the `Shape`.
        report: `report(covered)`, told after each part what share of the time span is done.
    """
    state, part = None, None
    while part is None or part["running"]:
        given = inputs | {"state": state}
        part = run_eagerly(equation, settings, layout, given, shape, trace_part)
        state = part["state"]
        report(float(part["covered"]))
    return part["answer"]


def _answer(settings, layout, inputs, bound, y, control, num_f=None):
    """The raw outputs of a solve."""
    field, y0, terms, bad, batch_dims = bound
    has_saves = terms.saves is not None
    if num_f is None:
        num_f = _evaluations(settings, has_saves or settings.dense, control)
        if settings.solver.copies > 1:
            y = tf.split(y, settings.solver.copies, axis=-1)[0]
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
        "batch_like": tf.nest.flatten(inputs["y0"])[0],
    }


def trace_steps(lifted, settings, layout, inputs, shape, gradient):
    """The times of the accepted steps of the solve; see `integrate_times`."""
    field, y0, terms, _, _ = bind(lifted, settings, layout, inputs, shape)
    plan = _plan(settings, shape, settings.max_record)
    return integrate_times(plan, field.bind(field.theta), tf.stop_gradient(y0), terms)


def bind(lifted, settings, layout, inputs, shape):
    """The field and the loop's inputs as matrices: `(field, y0, terms, bad, batch_dims)`."""
    leaves = tf.nest.flatten(inputs["y0"])
    batch_dims = layout.batch_dims(leaves)
    p_leaves = [leaf for leaf in tf.nest.flatten(inputs["p"]) if leaf is not None]
    y0 = layout.pack(inputs["y0"])
    terms, bad = _terms(layout, inputs, y0, shape, settings.dense)
    if isinstance(lifted.field, LiftedDelay):
        implicit = _implicit(lifted, settings, inputs, terms)
        field: Any = DelayField(lifted.field, layout, batch_dims, p_leaves, terms, implicit)
    elif isinstance(lifted.field, LiftedEquation):
        path = _brownian_path(lifted.field.components(layout), settings, inputs, terms, shape)
        field = StochasticField(lifted.field, layout, batch_dims, p_leaves, path)
    else:
        substitute = settings.solver.delegated and bool(lifted.field.captures)
        implicit = _implicit(lifted, settings, inputs, terms)
        field = Field(lifted.field, layout, batch_dims, p_leaves, substitute, implicit)
    if settings.solver.copies > 1:
        y0 = tf.tile(y0, [1, settings.solver.copies])
    return field, y0, terms, bad, batch_dims


def _implicit(lifted, settings, inputs, terms):
    """What implicit methods know of the equation."""
    constant = not settings.solver.adaptive or isinstance(settings.controller, Constant)
    banded = lifted.sparsity is not None and not {"mass", "mass_inverse"} & inputs.keys()
    return Implicit(
        inputs.get("mass"),
        inputs.get("mass_inverse"),
        lifted.jacobian,
        lifted.sparsity,
        find_band(lifted.sparsity) if banded else None,
        None if constant else (terms.rtol, terms.atol),
    )


def _brownian_path(components, settings, inputs, terms, shape):
    """The noise of all rows. It covers the whole span, whatever the save points are."""
    rows = tf.shape(terms.t0)[0]
    end = tf.broadcast_to(tf.reshape(inputs["t1"], [-1]), [rows])
    trajectory = inputs["trajectory"]
    trajectory = tf.range(rows) if trajectory is None else tf.reshape(trajectory, [-1])
    cell = inputs["dt0"] if settings.constant_steps else None
    return BrownianPath(
        inputs["seed"], trajectory, components, terms.t0, end, cell=cell, split=not shape.on_grid
    )


def _plan(settings, shape, segment):
    saves = shape.saves != "none" or settings.dense
    return Plan(
        settings.solver,
        settings.controller,
        settings.norm,
        settings.max_steps,
        segment,
        saves,
        False,
        settings.first_step,
        saves and not settings.solver.interpolates and not shape.on_grid,
    )


def _integrate(field, y0, terms, settings, shape, gradient):
    """The states and the control block, through the adjoint where a gradient may be asked for."""
    plan = _plan(settings, shape, _segment_of_memory(settings, y0))
    if gradient is Gradient.NEVER:
        outcome = integrate(plan, field.bind(field.theta), y0, terms)
        return outcome.y, outcome.control
    expected = gradient is Gradient.EXPECTED
    task = Task(plan, settings.checkpoints, settings.max_record, shape.time_gradient, expected)
    return settings.adjoint.integrate(task, field, y0, terms)


def _discontinuities(settings, inputs, terms):
    """Where steps of a delay equation end because of its constant lags; `None` for nowhere."""
    if not inputs.get("lags"):
        return None
    lags = [tf.reshape(lag, [-1]) if lag.shape.rank else lag for lag in inputs["lags"]]
    return discontinuities(lags, terms.t0, terms.t_end, terms.direction, settings.solver.order)


def _integrate_densely(field, y0, terms, settings, shape, stops=None):
    """The same with every step on record, which is returned too."""
    plan = _plan(settings, shape, settings.max_record)
    plan = dataclasses.replace(plan, saves=True, stops=stops is not None)
    task = Task(plan, settings.checkpoints, settings.max_record, shape.time_gradient, True)
    without = terms._replace(saves=stops)
    y, ring, turns, control = integrate_densely(task, field, y0, without)
    record = {
        "ring": ring, "turns": turns, "direction": terms.direction, "t_end": terms.t_end,
        "steps": step_times(terms, ring.times, control),
    }  # fmt: skip
    if terms.saves is None:
        return nan_where_failed(y, control), control, record
    y = read_saves(plan, terms, y0, ring, turns)
    return nan_where_failed(y, control), control, record


def _evaluations(settings, has_saves, control):
    """Evaluations of the field, per row."""
    solver = settings.solver
    if solver.counts_evaluations:
        once = int(solver.carries_slope) + settings.first_step * (2 - solver.carries_slope)
        return once + tf.cast(control[-1], tf.int32)
    once = int(solver.carries_slope) + settings.first_step * (2 - solver.carries_slope)
    steps = tf.cast(control[ACCEPTED] + control[REJECTED], tf.int32)
    return once + steps * solver.evaluations(dense=has_saves)


def _terms(layout, inputs, y0, shape, dense):
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
        last = direction * tf.reduce_max(ahead, axis=0) + 0.0 * t1
        slack = 4 * np.finfo(y0.dtype.as_numpy_dtype).eps * tf.maximum(tf.abs(t0), tf.abs(t1))
        bad |= tf.reduce_any(ahead < direction * t0 - slack, axis=0)
        bad |= direction * last > direction * t1 + slack
        bad |= tf.reduce_any(present[1:] & (ahead[1:] < ahead[:-1]), axis=0)
        bad |= tf.reduce_any(present[1:] & ~present[:-1], axis=0)
        t_end = t1 if dense else last
    for lag in inputs.get("lags", ()):
        bad |= (per_row(lag) <= 0) | ~tf.math.is_finite(per_row(lag))
    steps = inputs["steps"]
    if steps is not None:
        bad |= tf.reduce_any(tf.math.is_nan(steps[:2]), axis=0) & (t_end != t0)
    for name in ("rtol", "atol", "dt0", "dt_min"):
        for leaf in tf.nest.flatten(inputs[name]):
            # Not the negation of `leaf >= 0`: plain graphs simplify that, which drops NaN.
            bad |= tf.reduce_any((leaf < 0.0) | tf.math.is_nan(leaf))
    t_end = tf.where(bad, t0, t_end)
    # What is exactly zero and shall stay so has an error of zero, not of 0 / 0.
    tiny = float(np.sqrt(np.finfo(y0.dtype.as_numpy_dtype).tiny))

    def tolerance(value):
        leaves = tf.nest.flatten(value)
        if len(leaves) == 1 and leaves[0].shape.rank == 0:
            return leaves[0]
        targets = tf.nest.flatten(inputs["y0"])
        full = [tf.broadcast_to(a, tf.shape(b)) for a, b in zip(leaves, targets, strict=True)]
        return layout.pack(tf.nest.pack_sequence_as(layout.structure, full))

    return Terms(
        t0, t_end, direction, tolerance(inputs["rtol"]), tolerance(inputs["atol"]) + tiny,
        inputs["dt0"], inputs["dt_min"], saves, None if steps is None else tf.stop_gradient(steps),
    ), bad  # fmt: skip


def _segment_of_memory(settings, y0):
    """Turns per segment of a solve without a trail, a power of two: what memory allows."""
    rows, width = y0.shape[0] or 256, y0.shape[1] or 256
    row_bytes = max(1, rows * (2 + width * (1 + settings.solver.dense_degree())) * 8)
    return 1 << max(4, min(10, int(math.log2(max(1, _RING_BYTES // row_bytes)))))
