"""Long series: growing horizons, multiple shooting and collocation.

A trajectory from a random start leaves long data early, and the loss of the whole series is then
flat or rugged. Three remedies: fit the beginning first and let the horizon grow; fit many short
pieces, each started on the data, and tie their ends together; or do without a solver at first and
fit the field to slopes of the smoothed data.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, Unpack

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_neuralde import values
from keras_neuralde.checks import (
    check_array,
    check_choice,
    check_flag,
    check_function,
    check_keywords,
    check_positive,
    check_whole,
)
from keras_neuralde.options import SolveOptions, SolverLike
from keras_neuralde.problems import ODEProblem
from keras_neuralde.solve import SOLVE_KEYWORDS, solve
from keras_neuralde.typing import TensorLike


def growing_horizons(
    times: npt.ArrayLike,
    data: npt.ArrayLike,
    horizons: npt.ArrayLike,
    iterations: int | Sequence[int],
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The beginning of a series first, more of it later: batches for `minimize`.

    Every batch has the shape of the whole series, so that one compiled program serves them all:
    times beyond the horizon are pulled back to it and their weights are 0.

    Args:
        times: sorted measurement times, `(n,)`.
        data: what was measured at them, `(n, *state)`.
        horizons: how far each stage looks: increasing times, each beyond `times[0]`. The last one
            should be `times[-1]`.
        iterations: how many batches each stage gets: an integer, or one for each horizon.

    Returns:
        A list of tuples `(times, data, weights)`, `weights` of shape `(n,)`.

    Raises:
        ValueError: for unsorted times, data of another length, horizons that do not grow or hold
            no measurement after the first, or iterations below 1.

    Example:

    >>> import keras, numpy as np, tensorflow as tf, keras_neuralde as nde
    >>> times = np.linspace(0.0, 2.0, 21)
    >>> problem = nde.ODEProblem(lambda t, y, p: -p * y, 1.0, (0.0, 2.0), 1.0)
    >>> def loss(p, times, data, weights):
    ...     stage = problem.remake(p=p[0], t_span=(0.0, times[-1]))
    ...     y = nde.solve(stage, saveat=times).y
    ...     return tf.reduce_sum(weights * (y - data) ** 2)
    >>> stages = nde.growing_horizons(times, np.exp(-3.0 * times), (0.5, 2.0), 100)
    >>> start = tf.constant([1.0], tf.float64)
    >>> result = nde.minimize(loss, start, keras.optimizers.Adam(0.1), batches=stages)
    >>> bool(abs(result.minimizer[0] - 3.0) < 0.05)
    True
    """
    times, data = _series(times, data)
    horizons = np.atleast_1d(check_array("horizons", horizons).astype(float))
    if horizons.ndim != 1 or horizons.size == 0 or not np.all(np.diff(horizons) > 0):
        raise ValueError(f"`horizons` must be increasing times. Received: {horizons.tolist()}")
    if not times[1] <= horizons[0] or not np.isfinite(horizons[-1]):
        raise ValueError(
            "each of `horizons` must hold a measurement after the first and be finite: "
            f"the second time is {times[1]:g}. Received: {horizons.tolist()}"
        )
    if np.shape(iterations) not in ((), horizons.shape):
        raise ValueError(
            f"`iterations` must be an integer or one for each of the {horizons.size} horizons. "
            f"Received: {iterations!r}"
        )
    counts = np.broadcast_to(np.asarray(iterations), horizons.shape)
    if not np.issubdtype(counts.dtype, np.integer) or counts.min() < 1:
        raise ValueError(
            "`iterations` must be an integer of at least 1, or one for each horizon. "
            f"Received: {iterations!r}"
        )
    stages = []
    for horizon, count in zip(horizons.astype(times.dtype), counts, strict=True):
        weights = (times <= horizon).astype(data.dtype)
        stages += [(np.minimum(times, horizon), data, weights)] * int(count)
    return stages


def shooting_groups(count: int, group_size: int) -> list[tuple[int, int]]:
    """Where the groups of multiple shooting begin and end.

    Neighbours share one point; the last group may be shorter.

    Args:
        count: how many points the series has.
        group_size: how many points a group has, its first and last included.

    Returns:
        A list of pairs `(first, last)` of indices, both included.

    Raises:
        ValueError: unless `2 <= group_size <= count`.

    Example:

    >>> shooting_groups(10, 5)
    [(0, 4), (4, 8), (8, 9)]
    """
    check_whole("count", count, 2)
    whole = isinstance(group_size, (int, np.integer)) and not isinstance(group_size, bool)
    if not whole or not 2 <= group_size <= count:
        raise ValueError(
            f"`group_size` must be an integer from 2 to the number of points, {count}. "
            f"Received: {group_size!r}"
        )
    firsts = range(0, count - 1, group_size - 1)
    return [(first, min(count, first + group_size) - 1) for first in firsts]


def multiple_shooting(
    problem: ODEProblem,
    times: npt.ArrayLike,
    data: npt.ArrayLike,
    group_size: int,
    solver: SolverLike = "auto",
    *,
    continuity: TensorLike = 100.0,
    starts: TensorLike | None = None,
    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    vectorized: bool = False,
    **keywords: Unpack[SolveOptions],
) -> tuple[tf.Tensor, tf.Tensor]:
    """The loss of many short pieces of a series, each started on the data.

    The groups are solved at once, each with steps of its own. The loss is that of the pieces, plus
    `continuity` times the sum of |end of a piece - start of the next one| (direct multiple
    shooting; Bock and Plitt 1984).

    Args:
        problem: an `ODEProblem` for one trajectory, whose `p` is to be trained; its y0 and t_span
            are not used.
        times: sorted measurement times, `(n,)`.
        data: what was measured at them, `(n, *state)`.
        group_size: how many points a piece has, first and last included; neighbours share one.
        solver: as in `solve`.
        continuity: the weight of the gaps between the pieces.
        starts: where the pieces start, `(groups, *state)`, to be trained with `p` when the data
            are noisy; by default the data themselves.
        loss: `loss(data, prediction)` of one piece, both `(points, *state)`; by default the sum of
            squares. Points that two pieces share count in both.
        vectorized: whether the field takes all pieces at once, `y` of shape `(groups, *state)` and
            `t` of shape `(groups,)`, as a network does; otherwise it is mapped over them, which
            costs more.
        **keywords: those of `solve`, but for `saveat`, `batch_ndims`, `throw` and `dense`.

    Returns:
        `(loss, predictions)`: a scalar, and a tensor `(groups, group_size, *state)` with NaN where
        the last piece is shorter. A piece whose solve fails makes the loss NaN, from which
        `minimize` backs away.

    Raises:
        ValueError: for a series that does not fit, a `group_size` out of range, or `starts` of
            another shape.
        TypeError: for a problem of another type.

    Example:

    >>> import numpy as np, tensorflow as tf, keras_neuralde as nde
    >>> times = np.linspace(0.0, 2.0, 21)
    >>> problem = nde.ODEProblem(lambda t, y, p: -p * y, 1.0, (0.0, 2.0), 1.0)
    >>> def loss(p):
    ...     problem_p = problem.remake(p=p[0])
    ...     return nde.multiple_shooting(problem_p, times, np.exp(-3.0 * times), 5, rtol=1e-6)
    >>> result = nde.minimize(loss, tf.constant([1.0], tf.float64), nde.optimizers.BFGS(0.1))
    >>> bool(abs(result.minimizer[0] - 3.0) < 1e-4)
    True
    """
    _check_problem(problem)
    times, data = _series(times, data)
    _refuse(keywords)
    check_keywords("multiple_shooting", keywords, SOLVE_KEYWORDS)
    check_flag("vectorized", vectorized)
    if loss is not None:
        check_function("loss", loss, "loss(data, prediction)")
    continuity = values.as_float(continuity, tf.as_dtype(data.dtype), "continuity")
    if continuity.shape.rank != 0:
        raise ValueError(f"`continuity` must be a number. Received shape: {continuity.shape}")
    weight = values.known(continuity)
    if weight is not None and not 0.0 <= weight < np.inf:
        raise ValueError(f"`continuity` must be finite and not negative. Received: {weight}")
    groups = shooting_groups(len(times), group_size)
    first, last = (np.array(ends) for ends in zip(*groups, strict=True))
    index = first[:, None] + np.arange(group_size)
    present = index <= last[:, None]
    inside = np.minimum(index, len(times) - 1)
    if starts is None:
        begin = tf.constant(data[first])
    else:
        begin = values.as_float(starts, tf.as_dtype(data.dtype), "starts")
        if begin.shape != data[first].shape:
            raise ValueError(
                f"`starts` must have the shape {data[first].shape}: one state for each of the "
                f"{len(groups)} groups. Received shape: {begin.shape}"
            )
    field = problem.f if vectorized else _over_rows(problem.f)
    pieces = ODEProblem(field, begin, (times[first], times[last]), problem.p)
    saveat = np.where(present, times[inside], np.nan)
    solution = solve(pieces, solver, saveat=saveat, batch_ndims=1, throw=False, **keywords)
    y = tf.transpose(solution.y, [1, 0, *range(2, solution.y.shape.rank)])
    if loss is None:
        mask = present.reshape(present.shape + (1,) * (data.ndim - 1))
        value = tf.reduce_sum(tf.where(mask, y - data[inside], 0.0) ** 2)
    else:
        sizes = last - first + 1
        parts = [loss(tf.constant(data[inside[i, :n]]), y[i, :n]) for i, n in enumerate(sizes)]
        value = tf.add_n(parts)
    # Only the last group can be short, and nothing follows it.
    gaps = tf.reduce_sum(tf.abs(y[:-1, group_size - 1] - begin[1:]))
    return value + continuity * gaps, y


class Collocation(NamedTuple):
    """Smoothed data and their slopes.

    Attributes:
        y: `(n, *state)`.
        dy: the same; the derivative with respect to time.
    """

    y: np.ndarray
    dy: np.ndarray


def _inside(weights):
    return lambda x: np.where(np.abs(x) <= 1.0, weights(np.minimum(np.abs(x), 1.0)), 0.0)


Kernel: TypeAlias = Literal[
    "epanechnikov", "uniform", "triangular", "quartic", "triweight", "tricube", "cosine",
    "gaussian", "logistic", "sigmoid",
]  # fmt: skip
"""The names that `kernel=` takes."""

#: Kernels by name: of x, the distance in bandwidths.
KERNELS: dict[Kernel, Callable] = {
    "epanechnikov": _inside(lambda x: 0.75 * (1.0 - x**2)),
    "uniform": _inside(lambda x: 0.5 + 0.0 * x),
    "triangular": _inside(lambda x: 1.0 - x),
    "quartic": _inside(lambda x: 15.0 / 16.0 * (1.0 - x**2) ** 2),
    "triweight": _inside(lambda x: 35.0 / 32.0 * (1.0 - x**2) ** 3),
    "tricube": _inside(lambda x: 70.0 / 81.0 * (1.0 - x**3) ** 3),
    "cosine": _inside(lambda x: np.pi / 4.0 * np.cos(np.pi * x / 2.0)),
    "gaussian": lambda x: np.exp(-(x**2) / 2.0) / math.sqrt(2.0 * np.pi),
    "logistic": lambda x: 0.25 / np.cosh(np.minimum(np.abs(x), 700.0) / 2.0) ** 2,
    "sigmoid": lambda x: 1.0 / (np.pi * np.cosh(np.minimum(np.abs(x), 700.0))),
}


def collocate(
    times: npt.ArrayLike,
    data: npt.ArrayLike,
    kernel: Kernel = "triangular",
    bandwidth: float | None = None,
    *,
    at: npt.ArrayLike | None = None,
) -> Collocation:
    """Smooths a series and estimates its slopes, without a model.

    At each time, lines are fitted to the data for y and parabolas for y', weighted by a kernel
    (local polynomial regression; Liang and Wu, "Parameter estimation for differential equation
    models using a framework of measurement error in regression models", 2008). The default
    bandwidth is theirs, n^(-1/5) n^(-3/35) (log n)^(-1/16), times the length of the series.

    The slopes train a field without a solver: see `collocation_loss`, or fit a Keras model to them,
    `model.fit(y, dy)`. It is a start, to be refined with a solver: near the ends and where the data
    bend within a bandwidth the slopes are biased.

    Args:
        times: sorted measurement times, `(n,)`.
        data: what was measured at them, `(n, *state)`.
        kernel: one of `epanechnikov`, `uniform`, `triangular`, `quartic`, `triweight`, `tricube`,
            `cosine` (these see one bandwidth to each side), `gaussian`, `logistic`, `sigmoid`.
        bandwidth: in units of time; wider is smoother.
        at: the times to estimate at; `times` by default.

    Returns:
        A `Collocation`: arrays `y` and `dy`.

    Raises:
        ValueError: for a series that does not fit, an unknown kernel, a bandwidth that is not
            positive or so narrow that fewer than three measurements are seen.

    Example:

    >>> import numpy as np, keras_neuralde as nde
    >>> times = np.linspace(0.0, 1.0, 11)
    >>> y, dy = nde.collocate(times, 2.0 * times, kernel="tricube", bandwidth=0.3)
    >>> bool(np.allclose(y, 2.0 * times)), bool(np.allclose(dy, 2.0))
    (True, True)
    """
    times, data = _series(times, data)
    check_choice("kernel", kernel, sorted(KERNELS))
    n = len(times)
    t = times.astype(float)
    if bandwidth is None:
        bandwidth = n ** (-1 / 5) * n ** (-3 / 35) * math.log(n) ** (-1 / 16) * (t[-1] - t[0])
    bandwidth = check_positive("bandwidth", bandwidth)
    targets = t if at is None else np.atleast_1d(check_array("at", at).astype(float))
    if targets.ndim != 1 or not np.all(np.isfinite(targets)):
        raise ValueError(f"`at` must be finite times, a number or a 1-D array. Received: {at!r}")
    x = (t - targets[:, None]) / bandwidth
    weights = KERNELS[kernel](x)
    seen = (np.abs(weights) > 1e-12 * np.abs(weights).max(initial=0.0)).sum(axis=1)
    if seen.min() < 3:
        raise ValueError(
            f"with this bandwidth fewer than three measurements are seen at t="
            f"{targets[seen.argmin()]:g}: take a wider one. Received: bandwidth={bandwidth:g}"
        )
    flat = data.reshape(n, -1).astype(float)
    y = _local_fit(x, weights, flat, degree=1)[:, 0]
    dy = _local_fit(x, weights, flat, degree=2)[:, 1] / bandwidth
    shape = (len(targets), *data.shape[1:])
    return Collocation(y.reshape(shape).astype(data.dtype), dy.reshape(shape).astype(data.dtype))


def _local_fit(x, weights, flat, degree):
    """Coefficients of the weighted least-squares polynomials, `(targets, degree + 1, columns)`."""
    powers = x[..., None] ** np.arange(degree + 1)
    weighted = powers * weights[..., None]
    return np.linalg.solve(
        np.einsum("inj,ink->ijk", weighted, powers), np.einsum("inj,nc->ijc", weighted, flat)
    )


def collocation_loss(
    problem: ODEProblem,
    times: npt.ArrayLike,
    y: npt.ArrayLike,
    dy: npt.ArrayLike,
    *,
    vectorized: bool = False,
) -> tf.Tensor:
    """The mean square of f(t, y, p) - y' over a series: regression of a field on slopes.

    Args:
        problem: an `ODEProblem` for one trajectory, whose `p` is to be trained; its y0 and t_span
            are not used.
        times: the times, `(n,)`.
        y: the states at them, `(n, *state)`, as from `collocate`.
        dy: the slopes, likewise.
        vectorized: whether the field takes all times at once, `y` of shape `(n, *state)` and `t`
            of shape `(n,)`; otherwise it is mapped over them.

    Returns:
        A scalar tensor, differentiable in `p`.

    Raises:
        ValueError: for shapes that do not fit.
        TypeError: for a problem of another type.

    Example:

    >>> import numpy as np, tensorflow as tf, keras_neuralde as nde
    >>> times = np.linspace(0.0, 2.0, 201)
    >>> y, dy = nde.collocate(times, np.exp(-3.0 * times), bandwidth=0.1)
    >>> problem = nde.ODEProblem(lambda t, y, p: -p * y, 1.0, (0.0, 2.0), 1.0)
    >>> def loss(p):
    ...     return nde.collocation_loss(problem.remake(p=p[0]), times, y, dy)
    >>> result = nde.minimize(loss, tf.constant([1.0], tf.float64), nde.optimizers.BFGS(0.1))
    >>> bool(abs(result.minimizer[0] - 3.0) < 0.05)
    True
    """
    _check_problem(problem)
    check_flag("vectorized", vectorized)
    times, y = _series(times, y, "y")
    dy = check_array("dy", dy)
    if dy.shape != y.shape:
        raise ValueError(f"`dy` must have the shape of `y`, {y.shape}. Received shape: {dy.shape}")
    p = values.as_nest(problem.p)
    p = tf.nest.map_structure(
        lambda leaf: leaf if leaf is None else values.to_tensor(leaf, tf.as_dtype(y.dtype)), p
    )
    field = problem.f if vectorized else _over_rows(problem.f)
    slopes = field(tf.constant(times), tf.constant(y), p)
    if slopes.shape != y.shape:
        raise ValueError(
            f"f(t, y, p) must return the shape of `y`, {y.shape[1:]} for each time. "
            f"Received: {slopes.shape[1:]}"
        )
    return tf.reduce_mean((slopes - dy) ** 2)


def _over_rows(f):
    """A field for one trajectory as a field for a batch."""

    def field(t, y, p):
        return tf.vectorized_map(lambda row: f(row[0], row[1], p), (t, y))

    return field


def _check_problem(problem):
    if not isinstance(problem, ODEProblem):
        raise TypeError(
            "`problem` must be an ODEProblem. "
            f"Received: {problem!r} of type {type(problem).__name__}"
        )


def _refuse(keywords):
    fixed = sorted({"saveat", "batch_ndims", "throw", "dense"} & set(keywords))
    if fixed:
        raise ValueError(f"`multiple_shooting` sets these keywords itself. Received: {fixed}")


def _series(times: Any, data: Any, name: str = "data") -> tuple[np.ndarray, np.ndarray]:
    """Times and data as arrays of one floating type; `name` is what the caller calls the data."""
    symbolic = [x for x in (times, data) if tf.is_tensor(x) and tf.get_static_value(x) is None]
    if symbolic:
        raise ValueError(
            "the series must be known when the loss is built: close over arrays instead of passing "
            f"them as batches. Received: {symbolic[0]}"
        )
    data = check_array(name, data)
    times = check_array("times", times).astype(data.dtype)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(
            f"`times` must be a 1-D array of two or more. Received shape: {times.shape}"
        )
    if not np.all(np.isfinite(times)) or not np.all(np.diff(times) > 0):
        raise ValueError(f"`times` must be finite and increasing. Received: {times}")
    if data.ndim < 1 or len(data) != len(times):
        raise ValueError(
            f"`{name}` must hold one state for each of the {len(times)} times. "
            f"Received shape: {data.shape}"
        )
    if not np.all(np.isfinite(data)):
        raise ValueError(f"`{name}` must be finite. Received: NaN or infinite entries")
    return times, data
