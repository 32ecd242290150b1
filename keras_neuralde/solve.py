"""The front door: checks what came, runs it, and packs the answer."""

import dataclasses
import inspect
import sys
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_neuralde import freezing, observation
from keras_neuralde.arguments import prepare
from keras_neuralde.equations import HybridEquation, kind_of
from keras_neuralde.events import Happening, as_events
from keras_neuralde.execution import (
    run_eagerly,
    run_in_graph,
    run_with_progress,
    tape_is_active,
    trace,
    trace_steps,
)
from keras_neuralde.integrate import ACCEPTED, REJECTED, STATUS, H, T
from keras_neuralde.interpolation import DenseOutput
from keras_neuralde.jumps import Jumping, JumpProblem
from keras_neuralde.options import (
    AdjointLike,
    ControllerLike,
    Event,
    Norm,
    SolverLike,
    StepControl,
)
from keras_neuralde.problems import Problem, SDEProblem
from keras_neuralde.programs import as_written
from keras_neuralde.refusals import refuse_alone, refuse_gradients
from keras_neuralde.settings import Settings, check_each
from keras_neuralde.solution import Solution, SolveError, Stats, Status, describe
from keras_neuralde.typing import TensorLike


@as_written
def solve(
    problem: Problem | JumpProblem,
    solver: SolverLike = "auto",
    *,
    saveat: TensorLike | None = None,
    rtol: TensorLike | None = None,
    atol: TensorLike | None = None,
    dt0: TensorLike | None = None,
    dt_min: TensorLike = 0.0,
    max_steps: int = 100_000,
    controller: ControllerLike | None = None,
    norm: Norm = "rms",
    batch_ndims: int = 0,
    step_control: StepControl = "per_sample",
    adjoint: AdjointLike = "discrete",
    checkpoints: int = 64,
    events: Event | Sequence[Event] = (),
    seed: TensorLike | None = None,
    steps: TensorLike | None = None,
    dense: bool = False,
    max_record: int = 4096,
    throw: bool = True,
    progress: bool = False,
) -> Solution:
    """Solves a differential equation.

    Called eagerly, the solve is compiled by XLA once for the equation, its shapes and its
    settings; new values of y0, p, times and tolerances reuse the program. Called inside a
    `tf.function` it becomes part of that graph, compiled or not as the caller decides.

    Args:
        problem: an `ODEProblem`, a `SplitODEProblem`, an `SDEProblem`, a `DDEProblem` or a
            `JumpProblem`.
        solver: a name (see `keras_neuralde.solvers.names()`) or a solver object. `"auto"` takes
            `tsit5` and, for each trajectory where the equation turns out stiff, `rodas5p`.
        saveat: `None` for the final state only; a number for one time; a sorted 1-D array for
            those times exactly; or `(*batch, n)` for times of each trajectory, padded with NaN.
        rtol: relative tolerance, default 1e-3, and 1e-2 for stochastic equations; a number or an
            array of the state's shape.
        atol: absolute tolerance, default 1e-6, and 1e-2 for stochastic equations; likewise.
        dt0: the first step; with `controller="constant"` the size of every step.
        dt_min: the smallest step; a trajectory that needs a smaller one ends with a status.
        max_steps: the most steps a trajectory may attempt.
        controller: `"I"` (default), `"PI"`, `"PID"`, `"constant"` or a controller object.
        norm: `"rms"` or `"max"` of the scaled error over the state's components.
        batch_ndims: that many leading axes of the state are independent trajectories.
        step_control: `"per_sample"`, or `"joint"` for one step size over the whole batch.
        adjoint: how gradients are computed: `"discrete"` (default) or another name or object of
            `keras_neuralde.adjoints`.
        checkpoints: how many states the discrete adjoint keeps; memory grows with it, and
            more of them mean less recomputation. Up to four steps for each checkpoint are kept
            instead where there cannot be more: by `max_steps`, or by the number of equal steps
            where a compiled program knows it.
        events: a list of `ContinuousEvent`, `PresetTimeEvent` and `DiscreteEvent`. A save point at
            the time of an event is the state after its affect, and so is the final state.
        seed: decides Brownian paths and jumps: an integer, an integer tensor of
            shape () or (2,), or `(*batch, 2)` for a seed of each trajectory. The same seed gives
            the same path to each trajectory of a batch, whatever its size, the steps and the
            save points, compiled or not; only a grid of fixed steps has paths of its own. `None`
            draws a fresh one at every call.
        steps: times of steps to take instead of choosing them, as `sol.steps` of an earlier solve
            has them: `(n + 1,)` for all trajectories or `(n + 1, *batch)`, NaN after the last. A
            step keeps its size, and the last one ends on the end. What is computed is then a
            smooth function of y0, p and the times.
        dense: keep every step, so that `sol(t)` gives the state at any time.
        max_record: how many attempted steps a trajectory may need for `dense=True`, for
            `sol.steps`, for adjoints that keep the solution and for delay equations, which keep
            their past.
        throw: raise when a trajectory fails. Only an eager call can; in a graph the failed
            trajectory is NaN and the status says why.
        progress: draw a bar over the time span, where a terminal can show it and no gradient is
            recorded; the solve is then made in parts of some thousand steps. Solves that keep their
            steps (`dense=True`, delay equations) and solvers of TFP draw none.

    Returns:
        A `Solution`.

    Raises:
        TypeError: for arguments of a wrong type or mixed dtypes.
        ValueError: for arguments with a wrong value or shape.
        SolveError: when a trajectory fails and `throw` is true.

    Example:

    >>> import keras_neuralde as nde
    >>> problem = nde.ODEProblem(lambda t, y, p: -p * y, 1.0, (0.0, 1.0), 2.0)
    >>> sol = nde.solve(problem, "tsit5", saveat=[0.5, 1.0])
    >>> tuple(sol.y.shape)
    (2,)
    >>> sol = nde.solve(problem, rtol=1e-5, dense=True)
    >>> abs(float(sol(0.25)) - 0.6065307) < 1e-4
    True
    """
    check_each(batch_ndims=batch_ndims, throw=throw, progress=progress)
    events = as_events(events)
    happenings = [Happening.of(event) for event in events]
    jumping = False
    if isinstance(problem, JumpProblem):
        jumping = True
        larger = Jumping.of(problem, batch_ndims)
        happenings = [event.on(0) for event in happenings] + larger.happenings
        rtol, atol = larger.tolerance(rtol, 1e-3), larger.tolerance(atol, 1e-6)
        problem = larger.problem
    equation = kind_of(problem)(problem)
    if happenings:
        equation = HybridEquation(equation, happenings)
    solver = equation.choose_solver(solver, adjoint, controller)
    settings = Settings.make(
        solver, controller=controller, norm=norm, max_steps=max_steps, batch_ndims=batch_ndims,
        step_control=step_control, adjoint=adjoint, checkpoints=checkpoints, dt0=dt0, steps=steps,
        dense=dense, max_record=max_record,
    )  # fmt: skip
    equation.check(settings)
    if settings.solver.delegated:
        settings.solver.check_keywords(
            SOLVE_KEYWORDS, rtol=rtol, atol=atol, dt0=dt0, dt_min=dt_min, controller=controller,
            norm=norm, adjoint=adjoint, checkpoints=checkpoints, steps=steps, dense=dense,
            max_record=max_record,
        )  # fmt: skip
    frozen = freezing.active() if settings.chooses_steps and not happenings else None
    if frozen is not None and frozen.replays:
        steps, settings = frozen.give(), settings.replaying()
    if isinstance(problem, SDEProblem):
        solver = settings.solver.interpreted(problem.interpretation)
        settings = dataclasses.replace(settings, solver=solver)
    layout, inputs, shape = prepare(
        equation, settings, saveat, rtol, atol, dt0, dt_min, steps, seed
    )

    def run(what, settings):
        engine = run_eagerly if tf.executing_eagerly() else run_in_graph
        return engine(equation, settings, layout, inputs, shape, what)

    if progress and _can_report(settings):
        report = progress_bar()
        outputs = run_with_progress(equation, settings, layout, inputs, shape, report)
    else:
        outputs, settings = _run_in_turn(run, settings)
    if tf.executing_eagerly() or tape_is_active():
        given = {"rtol": rtol, "atol": atol, "dt0": dt0, "dt_min": dt_min, "steps": steps}
        given["mass_matrix"] = getattr(problem, "mass_matrix", None)
        given |= {f"events[{i}].times": getattr(e, "times", None) for i, e in enumerate(events)}
        if settings.solver.delegated and tf.executing_eagerly():
            given |= {"t_span": problem.t_span, "saveat": saveat}
        outputs["y"] = refuse_gradients(outputs["y"], given)
    if settings.solver.stochastic:
        times = {"t_span": problem.t_span, "saveat": saveat}
        outputs["y"] = refuse_gradients(outputs["y"], times)

    def find_steps():
        times = outputs["steps"] if "steps" in outputs else run(trace_steps, settings)
        return _arrange_steps(times, layout, outputs["batch_like"])

    if frozen is not None and not frozen.replays:
        frozen.take(find_steps())
    solution = _assemble(settings, layout, outputs, shape, find_steps)
    if jumping:
        solution = _without_clocks(solution, events, outputs.get("law", ()))
    observed = observation.tell(solution)
    if throw and not observed and tf.executing_eagerly():
        raise_on_failure(outputs["control"].numpy())
    return solution


def _run_in_turn(run, settings):
    """The outputs, and the settings that they were made with.

    An eager call of a method that switches tries its explicit half first: that program compiles
    in a third of the time, and most equations need no more.
    """
    if tf.executing_eagerly() and settings.solver.switches:
        first = dataclasses.replace(settings, solver=settings.solver.watching())
        outputs = run(trace, first)
        if not np.any(outputs["control"][STATUS] == float(Status.STIFF)):
            return outputs, first
    return run(trace, settings), settings


def _can_report(settings):
    """Whether a progress bar can be drawn."""
    possible = tf.executing_eagerly() and not tape_is_active()
    recorded = settings.dense or settings.solver.remembers
    return possible and not recorded and not settings.solver.delegated


def progress_bar():
    """A function that draws how much is done, 0 to 1; silent without a terminal."""
    if not sys.stdout.isatty():
        return lambda covered: None
    bar = keras.utils.Progbar(100, unit_name="percent")
    return lambda covered: bar.update(int(100 * covered), finalize=covered >= 1.0)


def _arrange_steps(times, layout, like):
    """Step times `(n, rows)` as `(n, *batch)`; eagerly cut to the longest sequence."""
    if tf.executing_eagerly():
        longest = int(tf.reduce_max(tf.reduce_sum(tf.cast(times == times, tf.int32), axis=0)))
        if longest == 0 and times.shape[1]:
            raise ValueError(f"no steps are known: {Status.RECORD_FULL.message}")
        # Few different lengths, so that programs that replay the steps can be used again.
        times = times[: 1 + (1 << max(0, longest - 2).bit_length())]
    return layout.rows_to_batch(times, layout.batch_dims([like], wildcard=not layout.joint))


def _assemble(settings, layout, outputs, shape, find_steps):
    """A `Solution` from the raw outputs."""
    control = outputs["control"]
    like = [outputs["batch_like"]]
    dims = layout.batch_dims(like, wildcard=not layout.joint)

    def per_batch(row):
        return layout.rows_to_batch(row, dims)

    accepted = tf.cast(control[ACCEPTED], tf.int32)
    rejected = tf.cast(control[REJECTED], tf.int32)
    steps = accepted + rejected
    counts = (
        steps,
        accepted,
        rejected,
        outputs["num_f"],
        _jacobians(settings.solver, control),
        *_methods_taken(settings.solver, control),
    )
    stats = Stats(*(per_batch(count) for count in counts))
    y, t = outputs["y"], outputs["t"]
    if shape.saves == "none":
        t = per_batch(t)
    elif shape.saves == "scalar":
        y, t = tf.nest.map_structure(lambda leaf: leaf[0], y), t[0]
    elif shape.saves == "per_sample":
        t = tf.transpose(t, [t.shape.rank - 1, *range(t.shape.rank - 1)])
    output = None
    if settings.dense:
        output = DenseOutput(
            outputs["ring"], outputs["turns"], outputs["direction"], outputs["t_end"],
            settings.solver.dense_degree(), layout, layout.batch_dims(like),
        )  # fmt: skip
    hybrid = "event_times" in outputs
    steps = None if settings.solver.delegated or hybrid else find_steps
    status = per_batch(tf.cast(control[STATUS], tf.int32))
    solution = Solution(t, y, stats, status, _find_steps=steps, _dense=output, _control=control)
    return _with_events(solution, outputs, per_batch, len(dims)) if hybrid else solution


_ALONE = (
    "what only the rates of jumps read: its jumps stay where they are. Differentiate "
    "`keras_neuralde.expectation(values, sol.log_likelihood)`, which knows how the law of the "
    "jumps changes, or tf.stop_gradient what the rates read."
)


def _without_clocks(solution, events, law):
    """The solution of a jump problem, from that of the larger problem.

    Args:
        solution: that one.
        events: the user's events.
        law: the tensors that only rates read.
    """
    state, log_likelihood, _ = solution.y
    alone = {"y": state}
    if events:
        alone |= {"event_times": solution.event_times, "event_states": solution.event_states[0]}
    if law:
        alone, log_likelihood = refuse_alone(alone, log_likelihood, law, _ALONE)
    solution = dataclasses.replace(solution, log_likelihood=log_likelihood, **alone)
    if events:
        return solution
    nothing = dict.fromkeys(("event_times", "event_states", "event_index", "num_events"))
    return dataclasses.replace(solution, **nothing)


def _with_events(solution, outputs, per_batch, batch_ndims):
    """The solution with what happened; the entries come after the batch axes."""

    def last(x):
        axes = range(x.shape.rank)
        return tf.transpose(x, [*axes[1 : batch_ndims + 1], 0, *axes[batch_ndims + 1 :]])

    return dataclasses.replace(
        solution,
        event_times=last(per_batch(outputs["event_times"])),
        event_states=tf.nest.map_structure(last, outputs["event_states"]),
        event_index=last(per_batch(outputs["event_index"])),
        num_events=per_batch(outputs["num_events"]),
    )


def _methods_taken(solver, control):
    """How many accepted steps were implicit, and how often the method changed."""
    accepted = tf.cast(control[ACCEPTED], tf.int32)
    none = tf.zeros_like(accepted)
    if not solver.switches:
        return (accepted if solver.implicit else none), none
    # The last row counts evaluations.
    return tf.cast(control[-3], tf.int32), tf.cast(control[-2], tf.int32)


def _jacobians(solver, control):
    """How often the Jacobian was evaluated."""
    if solver.counts_jacobians:
        return tf.cast(control[-2], tf.int32)
    if solver.switches:
        return _methods_taken(solver, control)[0]
    steps = tf.cast(control[ACCEPTED] + control[REJECTED], tf.int32)
    return steps if solver.implicit else tf.zeros_like(steps)


def raise_on_failure(control, number=0):
    """Raises where trajectories failed.

    Args:
        control: the control block, `(lines, rows)`.
        number: the number of the first trajectory in it.

    Raises:
        SolveError: with what their statuses say, and where the first of them stopped.
    """
    codes = control[STATUS].astype(int)
    failed = np.flatnonzero(codes)
    if failed.size == 0:
        return
    first = failed[0]
    end = f"stopped at t={control[T, first]:.6g} with a step of {control[H, first]:.3g}"
    if codes[first] in (Status.BAD_TIMES, Status.INCONSISTENT_START):
        # What the loop made of it counts for nothing.
        end = "was refused at its start"
    raise SolveError(
        f"the solve failed: {'; '.join(describe(codes))}. Trajectory {number + first} {end}. "
        "Pass throw=False to get the solution with its status instead."
    )


#: The keywords of `solve` with their defaults, for layers that pass them on.
SOLVE_KEYWORDS = {
    name: parameter.default
    for name, parameter in inspect.signature(solve).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
}
