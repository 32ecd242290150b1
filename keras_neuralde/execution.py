"""Running a checked solve: as part of a graph, or eagerly through a compiled program."""

import contextlib
import contextvars
import dataclasses
import enum
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_neuralde import controllers, values
from keras_neuralde.adjoints.base import Task
from keras_neuralde.adjoints.recorded import integrate_densely
from keras_neuralde.consistency import is_consistent
from keras_neuralde.equations import Context
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
    integrate_times,
    nan_where_failed,
    outputs_of,
    step_times,
)
from keras_neuralde.passing import integrate
from keras_neuralde.programs import ProgramCache, compiled
from keras_neuralde.save_points import read_saves, repeating, segment_of_memory
from keras_neuralde.solution import Status

programs = ProgramCache()
_TURNS_OF_A_PART = 4096


def lift(equation, layout, inputs):
    """Traces the functions once and checks what they return."""

    def spec(leaf):
        return None if leaf is None else tf.TensorSpec(leaf.shape, leaf.dtype)

    return equation.lift(layout, tf.nest.map_structure(spec, inputs["p"]))


class Gradient(enum.Enum):
    """What a solve must be ready for."""

    NEVER = "never"
    POSSIBLE = "possible"  # a graph may still be differentiated, by a tape around it
    EXPECTED = "expected"  # a tape is recording


def run_eagerly(equation, settings, layout, inputs, shape, what):
    """Runs an eager call through its compiled program.

    Args:
        equation: the `equations.Equation`.
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
    key = (
        equation.key(references), settings, layout.batch_ndims, shape, gradient,
        keyed(inputs), what.__name__,
    )  # fmt: skip

    def make():
        lifted = lift(equation, layout, inputs)

        # Compiling TFP's BDF takes longer than anybody waits.
        jit = not settings.solver.delegated or settings.solver.compilable

        def program(inputs):
            return what(lifted, settings, layout, inputs, shape, gradient)

        return lifted, compiled(program, jit)

    lifted, program = programs.get(key, references, make)
    return _with_law(program(inputs), lifted, inputs)


def _with_law(outputs, lifted, inputs):
    """The outputs of a solve with its `Lifted.law`."""
    return {**outputs, "law": lifted.law(inputs["p"])} if isinstance(outputs, dict) else outputs


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
    outputs = what(lifted, settings, layout, inputs, shape, gradient)
    return _with_law(outputs, lifted, inputs)


def tape_is_active():
    """Whether a tape or an accumulator is recording."""
    from tensorflow.python.eager import record

    return record.could_possibly_record()


def trace(lifted, settings, layout, inputs, shape, gradient):
    """The solve as graph operations: tensors in, tensors out."""
    bound = bind(lifted, settings, layout, inputs, shape)
    field, y0, terms = bound.field, bound.y0, bound.terms
    if settings.solver.delegated:
        y, control, num_f = settings.solver.integrate(field, y0, terms, settings.max_steps)
        return _answer(settings, layout, inputs, bound, y, control, num_f)
    if settings.dense or settings.solver.remembers:
        y, control, record = _integrate_densely(field, y0, terms, settings, shape, bound.stops)
        log = []
    else:
        y, *log, control = _integrate(bound, settings, shape, gradient, inputs)
        record = _log(log, layout, bound.batch_dims)
    return _answer(settings, layout, inputs, bound, y, control, log=log) | record


def trace_part(lifted, settings, layout, inputs, shape, gradient):
    """A part of the solve: the answer so far, and what it takes to go on from there.

    The inputs hold the `state` of the part before; the first part has `None`.
    """
    bound = bind(lifted, settings, layout, inputs, shape)
    field, y0, terms = bound.field, bound.y0, bound.terms
    segment = segment_of_memory(y0, settings.solver.dense_degree())
    plan = _plan(settings, shape, segment, bound.happenings)
    g = field.bind(field.theta)
    carry, outputs = inputs["state"] or begin(plan, g, y0, terms)
    carry, outputs = advance(plan, g, terms, carry, outputs, _TURNS_OF_A_PART)
    outcome = finish(plan, carry, outputs, terms)
    told = outputs_of(outcome)[1:-1]
    span = tf.abs(terms.t_end - terms.t0)
    covered = tf.math.divide_no_nan(tf.abs(carry.control[T] - terms.t0), span)
    covered = tf.where(carry.control[STATUS] < 0.0, covered, 1.0)
    return {
        "answer": _answer(settings, layout, inputs, bound, outcome.y, outcome.control, log=told)
        | _log(told, layout, bound.batch_dims),
        "state": (carry, outputs),
        "covered": tf.reduce_mean(covered),
        "running": any_running(carry.control),
    }


def run_with_progress(equation, settings, layout, inputs, shape, report):
    """Runs an eager call in parts.

    Args:
        equation: the `equations.Equation`.
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


def _answer(settings, layout, inputs, bound, y, control, num_f=None, log=()):
    """The raw outputs of a solve."""
    field, y0, terms, bad, batch_dims, *_ = bound
    has_saves = terms.saves is not None
    if num_f is None:
        dense = has_saves or settings.dense or bound.happenings is not None
        num_f = _evaluations(settings, dense, control)
        if settings.solver.copies > 1:
            y = tf.split(y, settings.solver.copies, axis=-1)[0]
    status = tf.where(bad, tf.cast(Status.BAD_TIMES, y.dtype), control[STATUS])
    if "constraints" in inputs:
        consistent = is_consistent(field.bind(field.theta), y0, terms)
        bad |= ~consistent
        inconsistent = tf.cast(Status.INCONSISTENT_START, y.dtype)
        status = tf.where(consistent, status, inconsistent)
    y = tf.where(bad[:, None], tf.constant(float("nan"), y.dtype), y)
    control = tf.concat([control[:STATUS], status[None], control[STATUS + 1 :]], axis=0)
    leading = [tf.shape(y)[0] if y.shape[0] is None else y.shape[0]] if has_saves else []
    return {
        "y": layout.unpack(y, batch_dims, leading),
        "control": control,
        "t": _end(bound, control, log) if not has_saves else inputs["saves"],
        "num_f": num_f,
        "batch_like": tf.nest.flatten(inputs["y0"])[0],
    }


def _end(bound, control, log):
    """Where the state that is asked for is: at the end, or where a terminal event was."""
    if not log or not any(channel.terminal for channel in bound.happenings.channels):
        return bound.terms.t_end
    times, _, notes = log
    stopped = (control[STATUS] == float(Status.SUCCESS)) & (control[T] != bound.terms.t_end)
    # The last entry, which has a gradient.
    last = tf.cast(notes[-1], tf.int32) - 1
    chosen = tf.range(times.shape[0])[:, None] == last
    ended = tf.reduce_sum(tf.where(chosen, times, tf.zeros_like(times)), axis=0)
    return tf.where(stopped, ended, bound.terms.t_end)


def _log(log, layout, batch_dims):
    """What happened, as raw outputs: from the loop's times, states and notes."""
    if not log:
        return {}
    times, states, notes = log
    index, count = notes[:-1], notes[-1]
    return {
        "event_times": times,
        "event_states": layout.unpack(states, batch_dims, [states.shape[0]]),
        "event_index": tf.cast(index, tf.int32),
        "num_events": tf.cast(count, tf.int32),
    }


def trace_steps(lifted, settings, layout, inputs, shape, gradient):
    """The times of the accepted steps of the solve; see `integrate_times`."""
    field, y0, terms, *_ = bind(lifted, settings, layout, inputs, shape)
    plan = _plan(settings, shape, settings.max_record)
    return integrate_times(plan, field.bind(field.theta), tf.stop_gradient(y0), terms)


class Bound(NamedTuple):
    """The field and the loop's inputs as matrices.

    Attributes:
        field: the `Field`.
        y0: `(rows, width)`.
        terms: the `Terms`.
        bad: `(rows,)`, which rows have times that cannot be served.
        batch_dims: the batch dimensions.
        stops: `(n, rows)`, where steps end besides the save points, or `None`.
        happenings: the `Happenings`, or `None`.
    """

    field: Any
    y0: tf.Tensor
    terms: Terms
    bad: tf.Tensor
    batch_dims: list
    stops: tf.Tensor | None
    happenings: Any = None


def bind(lifted, settings, layout, inputs, shape):
    """A `Bound`."""
    batch_dims = layout.batch_dims(tf.nest.flatten(inputs["y0"]))
    p_leaves = [leaf for leaf in tf.nest.flatten(inputs["p"]) if leaf is not None]
    # What no function reads has no gradient, rather than one of zero.
    p_leaves = [
        leaf if lifted.uses(number) else tf.stop_gradient(leaf)
        for number, leaf in enumerate(p_leaves)
    ]
    y0 = layout.pack(inputs["y0"])
    terms, bad = _terms(layout, inputs, y0, shape, settings.dense)
    context = Context(settings, layout, batch_dims, p_leaves, inputs, terms, shape)
    field = lifted.bind(context)
    if settings.solver.copies > 1:
        y0 = tf.tile(y0, [1, settings.solver.copies])
    stops, happenings = lifted.stops(context), lifted.happenings(context)
    return Bound(field, y0, terms, bad, batch_dims, stops, happenings)


def _plan(settings, shape, segment, happenings=None):
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
        happenings,
    )


def _integrate(bound, settings, shape, gradient, inputs):
    """The states, what happened, and the control block.

    They come through the adjoint where a gradient may be asked for.
    """
    field, y0, terms, happenings = bound.field, bound.y0, bound.terms, bound.happenings
    segment = segment_of_memory(y0, settings.solver.dense_degree())
    plan = _plan(settings, shape, segment, happenings)
    if gradient is Gradient.NEVER:
        plan = repeating(plan, field, y0, terms.saves)
        return outputs_of(integrate(plan, field.bind(field.theta), y0, terms))
    expected = gradient is Gradient.EXPECTED
    moving = shape.time_gradient or (happenings is not None and happenings.moves_times)
    turns = _most_turns(plan, inputs)
    task = Task(plan, settings.checkpoints, settings.max_record, moving, expected, turns)
    return settings.adjoint.integrate(task, field, y0, terms)


def _most_turns(plan, inputs):
    """The most turns of a loop; `None` if not known."""
    if plan.happenings is not None or plan.watches:
        return None
    # Every turn is an attempt. Implicit methods may try one of equal steps again.
    constant = isinstance(plan.controller, controllers.Constant)
    if not constant or plan.stops or plan.solver.implicit:
        return plan.max_steps
    known = [values.known(inputs[name]) for name in ("t0", "t1", "dt0")]
    if any(value is None for value in known):
        return plan.max_steps
    start, end, step = (np.asarray(value, np.float64) for value in known)
    turns = np.max(np.abs(end - start), initial=0.0) / step if step > 0.0 else np.inf
    # One more than rounding could make it.
    return int(min(np.ceil(turns) + 1, plan.max_steps))


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
    if shape.forwards:
        bad |= direction < 0.0
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
