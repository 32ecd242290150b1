"""What a solve returns: values, statistics, and a status for each trajectory."""

import dataclasses
import enum
import functools
from typing import Any

import tensorflow as tf

from keras_neuralde.typing import Axes, Nest, TensorLike


class Status(enum.IntEnum):
    """How a trajectory ended. `Status(code).message` says what to do about it.

    Example:

    >>> Status(1).message
    'reached max_steps; raise max_steps, loosen rtol/atol, or use a stiff solver'
    """

    SUCCESS = 0
    MAX_STEPS = 1
    STEP_TOO_SMALL = 2
    NON_FINITE = 3
    BAD_TIMES = 4
    RECORD_FULL = 5
    SINGULAR_MATRIX = 6
    NEWTON_DIVERGED = 7
    INCONSISTENT_START = 8
    GMRES_STALLED = 9
    BAD_LAG = 10
    DELAY_DIVERGED = 11
    STIFF = 12
    MAX_EVENTS = 13
    BAD_CONDITION = 14
    BAD_RATE = 15

    @property
    def message(self) -> str:
        """The sentence that tells the user what to do."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.SUCCESS: "reached the end",
    Status.MAX_STEPS: (
        "reached max_steps; raise max_steps, loosen rtol/atol, or use a stiff solver"
    ),
    Status.STEP_TOO_SMALL: (
        "the step size fell below what the time resolves (or below dt_min): the solution may blow "
        "up or jump near the last time; shorten t_span, loosen rtol/atol, use float64, or check "
        "the equation"
    ),
    Status.NON_FINITE: (
        "the field, its Jacobian or the state became NaN or infinite; check them and their "
        "parameters at the last time (and the rates of jumps: a negative one without a bound does "
        "this), bound the field, or start from another state"
    ),
    Status.SINGULAR_MATRIX: (
        "the matrix M - hγJ of the implicit method is singular at the last time, whatever the "
        "step: check the mass matrix and the algebraic equations (the problem may be of an index "
        "above 1, or an equation may be missing)"
    ),
    Status.NEWTON_DIVERGED: (
        "the Newton iteration diverged at the last time, whatever the step: check the equation and "
        "its Jacobian (a wrong `jacobian` or `jac_sparsity` does this), use a Rosenbrock method, "
        "or loosen rtol/atol"
    ),
    Status.GMRES_STALLED: (
        "GMRES did not solve the linear systems of the implicit method at the last time, whatever "
        "the step: raise `size` or `restarts` of its LinearSolver, loosen rtol/atol, or use "
        "linear_solver='dense' with a jac_sparsity"
    ),
    Status.INCONSISTENT_START: (
        "the initial state violates the algebraic equations, those in which the mass matrix has "
        "no time derivative, by more than the tolerances; start from a state that satisfies them "
        "(keras_neuralde.consistent_state finds one)"
    ),
    Status.BAD_LAG: (
        "a lag became negative at the last time, so that the equation asked for its own future; "
        "check the functions of the lags, or bound them from below by 0"
    ),
    Status.DELAY_DIVERGED: (
        "the iteration for lags shorter than the step did not converge; take a smaller dt0, or "
        "let the solver choose its steps"
    ),
    Status.MAX_EVENTS: (
        "an event happened more often than its max_events, or again at the time where it had just "
        "happened: events accumulate, as the bounces of a ball that comes to rest, or an affect "
        "leaves its condition true; raise max_events, end earlier, or use a terminal event"
    ),
    Status.BAD_CONDITION: (
        "the condition of an event became NaN or infinite at the last time; check it there"
    ),
    Status.BAD_RATE: (
        "the rate of a jump became negative, NaN, infinite or larger than its bound at the last "
        "time; use tf.nn.softplus or another positive function, or raise the bound"
    ),
    Status.STIFF: (
        "the equation turned stiff, and the explicit method gave up; use solver='auto' or an "
        "implicit method such as 'rodas5p'"
    ),
    Status.BAD_TIMES: (
        "the save times (or `steps`) are unsorted, outside t_span or not finite, rtol, atol, dt0 "
        "or dt_min is negative or NaN, a constant lag is not positive, or t_span runs backwards in "
        "a JumpProblem; sort the times, widen t_span, put NaN pads last, give settings of zero or "
        "more, and let jumps run forwards"
    ),
    Status.RECORD_FULL: (
        "needed more attempted steps than the record holds; raise max_record or loosen rtol/atol"
    ),
}


class SolveError(RuntimeError):
    """A trajectory did not reach the end; the message says why and what to do."""


@dataclasses.dataclass(frozen=True, repr=False)
class Stats:
    """Counts of a solve; int32 tensors of the batch shape.

    Attributes:
        num_steps: attempted steps.
        num_accepted: accepted steps.
        num_rejected: rejected steps.
        num_f: evaluations of the field; of a `SplitODEProblem`, of its implicit part. Steps that
            are only taken once more to interpolate a save point do not count.
        num_jac: evaluations of the Jacobian, or linearisations in its place, by implicit methods;
            of `solver="auto"`, those of accepted steps.
        num_implicit: accepted steps of an implicit method.
        num_switches: how often `solver="auto"` changed between its explicit and implicit method.
    """

    num_steps: tf.Tensor
    num_accepted: tf.Tensor
    num_rejected: tf.Tensor
    num_f: tf.Tensor
    num_jac: tf.Tensor
    num_implicit: tf.Tensor
    num_switches: tf.Tensor

    def __repr__(self):
        counts = [f"{f.name}: {_range(getattr(self, f.name))}" for f in dataclasses.fields(self)]
        return f"Stats({', '.join(counts)})"


def _range(counts):
    """The smallest and the largest of some counts, as text."""
    if not hasattr(counts, "numpy"):
        return f"of shape {tuple(counts.shape)}"
    numbers = counts.numpy()
    if not numbers.size:
        return "none"
    low, high = numbers.min(), numbers.max()
    return str(low) if low == high else f"{low} to {high}"


@dataclasses.dataclass(frozen=True)
class Solution:
    """The record that `solve` returns.

    Attributes:
        t: the times of `y`: `(num_times,)`, or `(num_times, *batch)` for per-sample save times; a
            scalar (or the batch shape) when only the final state was asked for.
        y: the nest of states, `(num_times, *batch, *state)`, without the time axis when only one
            time was asked for. NaN in trajectories that failed.
        stats: a `Stats`.
        status: int32 of the batch shape; 0 is success, see `Status`.
        steps: the accepted steps as times `(num_steps + 1, *batch)`, the start first, NaN after a
            trajectory's last; `solve(..., steps=sol.steps)` takes them again. They are found when
            first asked for, by repeating the solve, unless it was a dense one.
        event_times: with `events`, the times when something happened, `(*batch, max_events)`, in
            order, NaN after the last; the number of entries is the sum over the events.
        event_states: the states there, before the affect: `(*batch, max_events, *state)`.
        event_index: which event it was, by its place in `events`; -1 after the last.
        num_events: how many there were, int32 of the batch shape.
        log_likelihood: of a `JumpProblem`, that of its jumps so far, `(num_times, *batch)`, without
            the first axis where `y` has none.

    With `dense=True`, `sol(t)` is the state at any time of the span; gradients flow through it.
    """

    t: tf.Tensor
    y: Nest
    stats: Stats
    status: tf.Tensor
    event_times: tf.Tensor | None = None
    event_states: Nest = None
    event_index: tf.Tensor | None = None
    num_events: tf.Tensor | None = None
    log_likelihood: tf.Tensor | None = None
    _find_steps: Any = dataclasses.field(default=None, repr=False)
    _dense: Any = dataclasses.field(default=None, repr=False)
    # The loop's control block, which says where a trajectory stopped.
    _control: Any = dataclasses.field(default=None, repr=False)

    def __call__(self, t: TensorLike) -> Nest:
        """The state at `t`; see `keras_neuralde.interpolation.DenseOutput`."""
        if self._dense is None:
            raise ValueError("sol(t) needs a solve with dense=True; save points need `saveat`.")
        return self._dense(t)

    @functools.cached_property
    def steps(self) -> tf.Tensor:
        if self._find_steps is None:
            raise ValueError(
                "which steps were taken is not known: ensembles, solves with events and solvers of "
                "other packages do not say."
            )
        return self._find_steps()

    @property
    def success(self) -> tf.Tensor:
        """A boolean tensor of the batch shape."""
        return self.status == int(Status.SUCCESS)

    def plot(self, **keywords: Any) -> Axes:
        """Draws the solution; see `keras_neuralde.plot.solution`."""
        from keras_neuralde import plot

        return plot.solution(self, **keywords)

    def __repr__(self):
        shapes = tf.nest.map_structure(lambda leaf: tuple(leaf.shape), self.y)
        lines = [f"{type(self).__name__}(y: {shapes}, t: {tuple(self.t.shape)})"]
        if hasattr(self.status, "numpy"):
            lines += [f"  {line}" for line in describe(self.status.numpy().ravel())]
            steps = self.stats.num_steps.numpy().ravel()
            lines.append(
                f"  steps: {steps.min()} to {steps.max()} per trajectory"
                if steps.size > 1
                else f"  steps: {steps[0] if steps.size else 0}"
            )
        return "\n".join(lines)


def describe(codes):
    """One line for each status that occurs among `codes`, with how many trajectories had it."""
    if len(codes) == 1:
        return [f"status {int(codes[0])}: {Status(int(codes[0])).message}"]
    counts = sorted((int(code), int((codes == code).sum())) for code in set(codes.tolist()))
    return [
        f"{count} of {len(codes)} trajectories, status {code}: {Status(code).message}"
        for code, count in counts
    ]
