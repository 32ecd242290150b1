"""Jumps: random times at which the state changes at once, on ordinary and stochastic equations.

The times come from the counter-based random numbers of `seed`. They are constants in gradients: the
gradient of `sol.y` is that of the path with its jumps where they are, through the flow, the affects
and the marks. How the mean over paths depends on the rates is the other part of its derivative, and
comes from the likelihood of the jumps,

    log L = Σ_k log λ(t_k, y(t_k-), p) - ∫ λ(t, y(t), p) dt,

which is solved along with the state: d E[v] = E[dv + (v - b) d log L] for any b that does not
depend on the path (Glynn, "Likelihood ratio gradient estimation for stochastic systems", 1990).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_neuralde import values
from keras_neuralde.checks import check_takes, check_whole
from keras_neuralde.events import RATE, ROOT, Happening
from keras_neuralde.problems import ODEProblem, Record, SDEProblem
from keras_neuralde.typing import Nest, Rate, TensorLike


@dataclasses.dataclass(frozen=True, repr=False)
class _Jump(Record):
    """What both kinds share."""

    rate: Rate
    affect: Callable[..., Nest]
    _: dataclasses.KW_ONLY
    mark_sampler: Callable[[tf.Tensor, tf.Tensor, Nest, Nest], tf.Tensor] | None = None
    mark_size: int = 1

    def __post_init__(self):
        _check_rate("rate", self.rate)
        if not callable(self.affect):
            raise TypeError(
                f"`affect` must be a function affect(t, y, p), or affect(t, y, p, mark) with a "
                f"mark_sampler. Received: {self.affect!r}"
            )
        if self.mark_sampler is not None and not callable(self.mark_sampler):
            raise TypeError(
                "`mark_sampler` must be a function mark_sampler(u, t, y, p) of uniform numbers. "
                f"Received: {self.mark_sampler!r}"
            )
        check_whole("mark_size", self.mark_size)


@dataclasses.dataclass(frozen=True, repr=False)
class ConstantRateJump(_Jump):
    """A jump whose rate changes only when something happens.

    The rate is read at the start and after every jump and event; in between it is taken as
    constant. With a rate that depends on time, or on components that flow, use `VariableRateJump`.

    Args:
        rate: jumps per unit of time: a number, or `rate(t, y, p)`, a number for each trajectory.
        affect: `affect(t, y, p)`, the state after a jump, of the structure and shape of `y`; with
            a mark sampler `affect(t, y, p, mark)`.
        mark_sampler: `mark_sampler(u, t, y, p)`, the mark of a jump from uniform numbers u in
            (0, 1), `(*batch, mark_size)`: `tf.math.ndtri(u[..., 0])` is a standard normal number.
            Gradients flow through it.
        mark_size: how many uniform numbers a mark needs.

    Raises:
        TypeError: if a function is not callable.
        ValueError: for a negative rate.

    Example:

    >>> halving = ConstantRateJump(2.0, lambda t, y, p: 0.5 * y)
    >>> halving.mark_size
    1
    """


@dataclasses.dataclass(frozen=True, repr=False)
class VariableRateJump(_Jump):
    """A jump whose rate may depend on time and on everything that flows.

    Args:
        rate: `rate(t, y, p)`, as in `ConstantRateJump`.
        affect: likewise.
        bound: a number that the rate does not exceed, or `bound(t, y, p)`, read at the start and
            after every candidate, jump and event, which must hold until the next: candidates that
            come at this rate become jumps with the probability rate / bound (thinning; Lewis &
            Shedler, "Simulation of nonhomogeneous Poisson processes by thinning", 1979). A
            candidate whose rate is above it ends a trajectory with a status. `None`, for ordinary
            equations only: a jump happens when the integral of the rate has reached an
            exponential random number, found as the root of an event.
        mark_sampler: as in `ConstantRateJump`.
        mark_size: likewise.

    Raises:
        TypeError: if a function is not callable.
        ValueError: for a negative rate or bound.

    Example:

    >>> season = VariableRateJump(lambda t, y, p: 1.0 + 0.5 * t, lambda t, y, p: y + 1.0, 1.5)
    >>> season.bound
    1.5
    """

    bound: Rate | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.bound is not None:
            _check_rate("bound", self.bound)


def _check_rate(name, value):
    if callable(value):
        return
    if values.is_tensor(value):
        kind = tf.as_dtype(value.dtype).as_numpy_dtype
        # What a variable or a tensor of a graph holds is seen when jumps happen.
        number = values.known(value) if isinstance(value, tf.Tensor) else None
        number = np.zeros((), kind) if number is None else number
    else:
        number = np.asarray(value)
    if number.dtype.kind not in "iuf":
        raise TypeError(
            f"`{name}` must be a number or a function {name}(t, y, p). Received: {value!r}"
        )
    if not (np.all(np.isfinite(number)) and np.all(number >= 0.0)):
        raise ValueError(f"`{name}` must not be negative, infinite or NaN. Received: {value!r}")


@dataclasses.dataclass(frozen=True, repr=False)
class JumpProblem(Record):
    """An ordinary or stochastic equation with jumps.

    A solution of it has the field `log_likelihood`, of the shape `(num_times, *batch)` without the
    first axis where there are no save times: the log-likelihood of the jumps so far. `expectation`
    makes of it gradients of means with respect to rates. The gradient of `sol.y` alone takes the
    times of the jumps as constants; one with respect to what only rates read is refused.

    Args:
        problem: an `ODEProblem` or `SDEProblem`.
        jumps: a list of `ConstantRateJump` and `VariableRateJump`.

    Raises:
        TypeError: for other problems or jumps.

    Example:

    >>> import keras_neuralde as nde
    >>> still = nde.ODEProblem(lambda t, y, p: 0.0 * y, 0.0, (0.0, 10.0))
    >>> count = nde.JumpProblem(still, [nde.ConstantRateJump(3.0, lambda t, y, p: y + 1.0)])
    >>> sol = nde.solve_ensemble(count, 1000, seed=0)
    >>> abs(float(sol.y.numpy().mean()) - 30.0) < 1.0
    True
    """

    problem: ODEProblem | SDEProblem
    jumps: Sequence[ConstantRateJump | VariableRateJump]

    def __post_init__(self):
        if not isinstance(self.problem, (ODEProblem, SDEProblem)):
            raise TypeError(
                "`problem` must be an ODEProblem or an SDEProblem. "
                f"Received: {self.problem!r} of type {type(self.problem).__name__}"
            )
        jumps = (self.jumps,) if isinstance(self.jumps, _Jump) else self.jumps
        if not isinstance(jumps, (list, tuple)) or not jumps:
            raise TypeError(f"`jumps` must be a list of jumps. Received: {self.jumps!r}")
        if not all(isinstance(jump, (ConstantRateJump, VariableRateJump)) for jump in jumps):
            raise TypeError(
                "`jumps` must be a list of ConstantRateJump and VariableRateJump. "
                f"Received: {self.jumps!r}"
            )
        object.__setattr__(self, "jumps", tuple(jumps))

    def remake(self, **fields: Any) -> "JumpProblem":
        """A copy with fields of the equation, or `jumps`, replaced."""
        jumps = fields.pop("jumps", self.jumps)
        return JumpProblem(self.problem.remake(**fields), jumps)


class Jumping(NamedTuple):
    """A jump problem as what `solve` knows: a larger problem, and what happens.

    The state is `(y, log_likelihood, clocks)`, one clock for each rate without a bound.
    """

    problem: ODEProblem | SDEProblem
    happenings: list

    @classmethod
    def of(cls, given: "JumpProblem", batch_ndims: int) -> "Jumping":
        """From a `JumpProblem`."""
        problem, jumps = given.problem, given.jumps
        _refuse_backwards(problem.t_span)
        # Tuples, so that the functions made here are known again at the next call.
        rates = tuple(_function(jump.rate) for jump in jumps)
        free = tuple(
            k
            for k, jump in enumerate(jumps)
            if isinstance(jump, VariableRateJump) and jump.bound is None
        )
        if free and isinstance(problem, SDEProblem):
            raise ValueError(
                "a VariableRateJump on a stochastic equation needs a `bound` of its rate: its "
                "paths have no interpolant on which a time could be found. Received: bound=None"
            )
        fields: dict = {
            "f": _drift(problem.f, rates, free),
            "y0": _start(problem, batch_ndims, free),
        }
        if isinstance(problem, ODEProblem):
            # They are not those of the larger problem, which are computed.
            fields |= {"jacobian": None, "jac_sparsity": None}
        if isinstance(problem, SDEProblem):
            matrix = problem.noise == "general" or problem.noise_dim is not None
            fields["g"] = _diffusion(problem.g, matrix)
        happenings = [
            _happening(jump, rates[k], k, free.index(k) if k in free else None)
            for k, jump in enumerate(jumps)
        ]
        return cls(problem.remake(**fields), happenings)

    def tolerance(self, value, default):
        """A tolerance for the larger state."""
        if value is None or not np.shape(value) and not tf.nest.is_nested(value):
            return value
        return (value, default, [default] * len(self.problem.y0[2]))


def _refuse_backwards(t_span):
    """Jumps have a direction of time: the likelihood and the clocks run forwards."""
    start, end = (tf.get_static_value(tf.convert_to_tensor(t)) for t in t_span)
    if start is not None and end is not None and np.any(np.asarray(end) < np.asarray(start)):
        raise ValueError(
            f"a JumpProblem runs forwards in time. Received: t_span from {start} to {end}"
        )


def _function(rate):
    """A rate as a function."""
    if callable(rate):
        return rate
    return lambda t, y, p: tf.cast(rate, t.dtype)


def _at(rate, t, y, p, name="rate"):
    """A rate where a trajectory is, of the shape of `t`."""
    check_takes(rate, f"{name}(t, y, p)", t, y, p)
    return values.per_trajectory(rate(t, y, p), t, f"{name}(t, y, p)")


def _start(problem, batch_ndims, free):
    """The state at the start: nothing has happened."""
    y0, p = values.as_nest(problem.y0), values.as_nest(problem.p)
    dtype = values.common_dtype(y0, p)
    leaves = [values.to_tensor(leaf, dtype) for leaf in tf.nest.flatten(y0)]
    y0 = tf.nest.pack_sequence_as(y0, leaves)
    zero = tf.zeros(tf.shape(leaves[0])[:batch_ndims], dtype)
    zero.set_shape(leaves[0].shape[:batch_ndims])
    return (y0, zero, [zero for _ in free])


def _drift(f, rates, free):
    """The field of the larger state."""

    def larger(t, y, p):
        state = y[0]
        found = [_at(rate, t, state, p) for rate in rates]
        # Nothing else would notice that one without a bound is negative.
        nan = tf.constant(float("nan"), t.dtype)
        for k in free:
            found[k] = tf.where(found[k] < 0.0, nan, found[k])
        return (f(t, state, p), -tf.add_n(found), [found[k] for k in free])

    return larger


def _diffusion(g, matrix):
    """The diffusion of the larger state: nothing drives the likelihood."""

    def larger(t, y, p):
        noise = g(t, y[0], p)
        none = tf.zeros_like(t)
        if matrix:
            columns = tf.nest.flatten(noise)[0].shape[-1]
            none = none[..., None] + tf.zeros((columns,), t.dtype)
        return (noise, none, [])

    return larger


def _happening(jump, rate, number, clock):
    """The channel of a jump."""
    # Not the jump itself, which an ensemble makes anew at each call.
    act, sampler = jump.affect, jump.mark_sampler
    uniforms = jump.mark_size if sampler is not None else 0

    def after(t, y, p, *mark):
        state, likelihood, clocks = y
        now = _at(rate, t, state, p)
        clocks = list(clocks)
        if clock is not None:
            clocks[clock] = tf.zeros_like(clocks[clock])
        return (act(t, state, p, *mark), likelihood + tf.math.log(now), clocks)

    def marked(t, y, u, p):
        return after(t, y, p, sampler(u, t, y[0], p))

    def of_state(function, name):
        return lambda t, y, p: _at(function, t, y[0], p, name)

    affect = marked if uniforms else after
    common: dict = {"uniforms": uniforms, "recorded": False}
    if clock is not None:
        return Happening(
            ROOT, affect, lambda t, y, p: y[2][clock], direction=1, held=True, waits=True, **common
        )
    bound = getattr(jump, "bound", None)
    bound = None if bound is None else of_state(_function(bound), "bound")
    return Happening(RATE, affect, rate=of_state(rate, "rate"), bound=bound, **common)


def expectation(values: TensorLike, log_likelihood: TensorLike) -> tf.Tensor:
    """The mean over trajectories with an unbiased gradient, with respect to rates too.

    The gradient of a mean over paths with jumps has two parts: that of the paths with their jumps
    where they are, and that of the law of the jumps. This function has both: its value is the plain
    mean, and its gradient is that of

        mean(v) + mean((v - b) log L),

    with v - b taken as a constant, b the mean over the other trajectories.

    Args:
        values: what to average, a function of `sol.y`: `(..., trajectories, ...)`, whose first axes
            are those of `log_likelihood`.
        log_likelihood: `sol.log_likelihood`, `(trajectories,)` or `(num_times, trajectories)`; its
            last axis is averaged over. At a save time it is that of the jumps so far.

    Returns:
        The mean, `values` without the axis of the trajectories.

    Raises:
        TypeError: for anything but tensors of one floating dtype.
        ValueError: if the shapes do not fit.

    Example:

    >>> import tensorflow as tf, keras_neuralde as nde
    >>> rate = tf.constant(3.0)
    >>> still = nde.ODEProblem(lambda t, y, p: 0.0 * y, 0.0, (0.0, 2.0), rate)
    >>> jump = nde.ConstantRateJump(lambda t, y, p: p, lambda t, y, p: y + 1.0)
    >>> with tf.GradientTape() as tape:
    ...     tape.watch(rate)
    ...     sol = nde.solve_ensemble(
    ...         nde.JumpProblem(still.remake(p=rate), [jump]), 4000, seed=1
    ...     )
    ...     mean = nde.expectation(sol.y, sol.log_likelihood)
    >>> abs(float(tape.gradient(mean, rate)) - 2.0) < 0.3
    True
    """
    values = _floating("values", values)
    log_likelihood = _floating("log_likelihood", log_likelihood)
    if values.dtype != log_likelihood.dtype:
        raise TypeError(
            "`values` and `log_likelihood` must have one dtype; cast them to the same. "
            f"Received: {values.dtype.name} and {log_likelihood.dtype.name}"
        )
    rank = log_likelihood.shape.rank
    fits = rank and values.shape[:rank].is_compatible_with(log_likelihood.shape)
    if not fits or values.shape.rank is None:
        raise ValueError(
            "`values` must begin with the axes of `log_likelihood`, the trajectories last among "
            f"them. Received shapes: {values.shape} and {log_likelihood.shape}"
        )
    axis = rank - 1
    shape = tf.concat([tf.shape(log_likelihood), tf.ones(values.shape.rank - rank, tf.int32)], 0)
    score = tf.reshape(log_likelihood, shape)
    n = tf.cast(tf.shape(values)[axis], values.dtype)
    others = (tf.reduce_sum(values, axis, keepdims=True) - values) / tf.maximum(n - 1.0, 1.0)
    weight = tf.stop_gradient(values - others)
    return tf.reduce_mean(values + weight * (score - tf.stop_gradient(score)), axis)


def _floating(name, value):
    """A tensor of real numbers."""
    try:
        tensor = tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` must be a tensor of real numbers. Received: {value!r}"
        ) from error
    if not tensor.dtype.is_floating:
        raise TypeError(f"`{name}` must be a tensor of real numbers. Received: {tensor.dtype.name}")
    return tensor
