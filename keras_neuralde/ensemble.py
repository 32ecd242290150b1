"""Many trajectories of one problem, written for one."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Unpack

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_neuralde import observation, rows, values
from keras_neuralde.checks import (
    check_array,
    check_flag,
    check_function,
    check_keywords,
    check_whole,
)
from keras_neuralde.equations import TrajectorySeeds, draw_seed, refuse_missing_seed
from keras_neuralde.events import as_events
from keras_neuralde.execution import programs, tape_is_active
from keras_neuralde.jumps import JumpProblem
from keras_neuralde.options import EnsembleOptions, SolverLike
from keras_neuralde.problems import (
    DDEProblem,
    ODEProblem,
    Problem,
    SDEProblem,
    SplitODEProblem,
)
from keras_neuralde.programs import compiled, function_key
from keras_neuralde.solution import Solution, SolveError, Stats, describe
from keras_neuralde.solve import SOLVE_KEYWORDS, progress_bar, raise_on_failure, solve
from keras_neuralde.spreading import Replicas
from keras_neuralde.summary import Summary
from keras_neuralde.typing import Axes

_BATCH_SIZE = 16_384
# The same of a delay equation, which keeps all its steps.
_DELAY_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True, repr=False)
class EnsembleSolution(Solution):
    """A `Solution` whose batch axis holds trajectories: `y` is `(num_times, trajectories, *state)`.

    Without save times, or with a single number for them, it is `(trajectories, *state)`.

    Attributes:
        timed: whether `y` has a time axis.
    """

    timed: bool = True

    def summary(
        self,
        quantiles: float | Sequence[float] = (0.05, 0.95),
        at: npt.ArrayLike | None = None,
    ) -> Summary:
        """Mean, variance, median and quantiles over the trajectories.

        Failed trajectories are left out. Everything is differentiable.

        Args:
            quantiles: levels between 0 and 1, or one of them; values between two trajectories are
                interpolated.
            at: some of the save times, a number or a list, for statistics at these alone; `None`
                for all.

        Returns:
            A `Summary`.

        Raises:
            ValueError: for levels out of range, or times that were not saved.
        """
        levels = tuple(np.ravel(check_array("quantiles", quantiles)).tolist())
        if not all(0.0 <= level <= 1.0 for level in levels):
            raise ValueError(f"`quantiles` must lie between 0 and 1. Received: {quantiles!r}")
        if at is not None:
            return self._only(at).summary(quantiles)
        good = self.success
        axis = int(self.timed)
        count = tf.reduce_sum(tf.cast(good, tf.int32))
        if tf.executing_eagerly() and count == 0:
            raise ValueError(
                "no trajectory succeeded, so there is nothing to summarise; `status` says why."
            )

        def statistics(y):
            y = tf.boolean_mask(tf.transpose(y, _first(y, axis)), good)
            mean = tf.reduce_mean(y, axis=0)
            n = tf.cast(count, y.dtype)
            var = tf.reduce_sum((y - mean) ** 2, axis=0) / (n - 1.0)
            return mean, var, *_quantiles(y, (0.5, *levels))

        leaves = [statistics(leaf) for leaf in tf.nest.flatten(self.y)]
        columns = zip(*leaves, strict=True)
        packed = [tf.nest.pack_sequence_as(self.y, list(column)) for column in columns]
        mean, var, median, *rest = packed
        t = self.t if axis else tf.reduce_mean(self.t)
        return Summary(t, mean, var, median, tuple(rest), levels, count)

    def _only(self, at):
        """The solution at some of its times."""
        known = tf.get_static_value(self.t)
        if known is None:
            raise ValueError(
                "`at` needs save times that are known: give `saveat` as numbers or an array."
            )
        times = np.atleast_1d(known if self.timed else [])
        wanted = check_array("at", at).astype(times.dtype)
        slack = 1e-6 * np.ptp(times) if times.size else 0.0
        found = [np.flatnonzero(np.abs(times - time) <= slack) for time in np.ravel(wanted)]
        missing = [float(t) for t, i in zip(np.ravel(at), found, strict=True) if not i.size]
        if missing or wanted.ndim > 1:
            raise ValueError(
                f"`at` must be a save time or a list of them. Received: {at!r}, of which {missing} "
                "were not saved; list them in `saveat`"
            )
        index = int(found[0][0]) if wanted.ndim == 0 else [int(i[0]) for i in found]
        y = tf.nest.map_structure(lambda leaf: tf.gather(leaf, index), self.y)
        return dataclasses.replace(self, t=tf.gather(self.t, index), y=y, timed=wanted.ndim == 1)

    def plot(self, **keywords: Any) -> Axes:
        """Draws mean, ribbon and data; see `keras_neuralde.plot.summary`."""
        return self.summary().plot(**keywords)


def _first(y, axis):
    order = list(range(y.shape.rank))
    return [order.pop(axis), *order]


def _quantiles(y, levels):
    """Linear interpolation between order statistics, as NumPy's default has it."""
    ordered = tf.sort(y, axis=0)
    last = tf.shape(y)[0] - 1
    found = []
    for level in levels:
        position = tf.cast(last, y.dtype) * level
        low = tf.floor(position)
        below = tf.gather(ordered, tf.cast(low, tf.int32))
        above = tf.gather(ordered, tf.minimum(tf.cast(low, tf.int32) + 1, last))
        found.append(below + (position - low) * (above - below))
    return found


def solve_ensemble(
    problem: Problem | JumpProblem,
    trajectories: int,
    solver: SolverLike = "auto",
    *,
    vary: Callable[[Any, tf.Tensor, tf.Tensor], Any] | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    strategy: tf.distribute.Strategy | None = None,
    progress: bool | None = None,
    **keywords: Unpack[EnsembleOptions],
) -> EnsembleSolution:
    """Solves a problem, written for one trajectory, for many.

    Args:
        problem: an `ODEProblem`, `SDEProblem`, `DDEProblem` or `JumpProblem` for one trajectory:
            its functions, those of jumps and events included, see one state and a scalar time. The
            noise of a trajectory depends on `seed` and its number alone.
        trajectories: how many.
        solver: as in `solve`.
        vary: `vary(problem, i, seed)` returns a remade problem for trajectory `i`, a scalar int32
            tensor. It may change y0, p, t_span and constant lags; what it leaves as it is (weights
            of a network in p, say) is shared, not copied. `seed` is the trajectory's own, an int32
            tensor of shape (2,) for `tf.random.stateless_*`, whose floats differ between compiled
            and plain programs (their integer bits do not, with `alg="philox"`). Pass what is
            trained through y0 and p: a tensor that `vary` closes over is part of its compiled
            program.
        seed: an integer; `None` for a fresh one. The seed of a trajectory depends on it and on `i`
            alone, so that chunks do not change results.
        batch_size: trajectories solved at once, default 16,384, and 256 of a delay equation, which
            keeps all steps; it bounds the memory of a solve.
        strategy: a `tf.distribute.MirroredStrategy` or `MultiWorkerMirroredStrategy` whose devices
            share the work; every worker calls this function with the same arguments and gets the
            whole solution. A trajectory does not depend on how many devices there are. Without
            gradients, and not inside a `tf.function`.
        progress: whether to draw a bar where a terminal can show it. `None` draws one over the
            chunks where there are several; `True` also one over the time span of a single chunk,
            which is then solved in parts.
        **keywords: those of `solve`, but for `batch_ndims`.

    Returns:
        An `EnsembleSolution`: `y` is `(num_times, trajectories, *state)`.

    Raises:
        ValueError: for arguments out of range, or a `vary` that changes the field.
        TypeError: for a problem of another type.

    Example:

    >>> import tensorflow as tf, keras_neuralde as nde
    >>> problem = nde.ODEProblem(lambda t, y, p: -p * y, 1.0, (0.0, 1.0), 1.0)
    >>> def vary(problem, i, seed):
    ...     return problem.remake(p=tf.random.stateless_uniform((), seed, 0.5, 1.5))
    >>> sol = nde.solve_ensemble(problem, 100, vary=vary, seed=0, saveat=[0.5, 1.0])
    >>> tuple(sol.y.shape), tuple(sol.summary().mean.shape)
    ((2, 100), (2,))
    """
    if not isinstance(problem, (ODEProblem, SplitODEProblem, SDEProblem, DDEProblem, JumpProblem)):
        raise TypeError(
            "`problem` must be an ODEProblem, a SplitODEProblem, an SDEProblem, a DDEProblem or a "
            "JumpProblem. "
            f"Received: {problem!r}"
        )
    check_keywords("solve_ensemble", keywords, SOLVE_KEYWORDS)
    check_whole("trajectories", trajectories)
    if progress is not None:
        check_flag("progress", progress)
    if batch_size is None:
        most = _DELAY_BATCH_SIZE if isinstance(problem, DDEProblem) else _BATCH_SIZE
        batch_size = min(trajectories, most)
    check_whole("batch_size", batch_size)
    options: dict[str, Any] = {**keywords}
    if "batch_ndims" in options:
        raise ValueError(
            "`solve_ensemble` makes the batch axis itself: write the problem for one trajectory, "
            f"or call `solve`. Received: batch_ndims={options['batch_ndims']!r}"
        )
    if options.get("dense"):
        raise ValueError(
            "an ensemble keeps no record of its steps: list times in `saveat`, or call `solve` "
            "with batch_ndims=1. Received: dense=True"
        )
    if vary is not None:
        check_function("vary", vary, "vary(problem, i, seed)")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, (int, np.integer))):
        raise TypeError(f"`seed` must be an integer or None. Received: {seed!r}")
    shape = _shape(options.get("saveat"))
    if len(shape) > 1:
        raise ValueError(
            "`saveat` must be a number or a 1-D array: trajectories share their save times. "
            f"Received shape: {shape}"
        )
    timed = len(shape) == 1
    if seed is None and isinstance(problem, (SDEProblem, JumpProblem)):
        refuse_missing_seed()
    fresh = seed
    if seed is None:
        # A number, which devices can share; in a graph what is drawn anew whenever it runs.
        eager = tf.executing_eagerly()
        fresh = int(np.random.default_rng().integers(2**31)) if eager else draw_seed()
    work = _Work(problem, trajectories, solver, vary, batch_size, timed, options)
    if strategy is not None:
        return _on_replicas(strategy, work, fresh)
    return work.solve(range(trajectories), fresh, progress)


class _Work(NamedTuple):
    """An ensemble to be solved, with the arguments of `solve_ensemble`."""

    problem: Any
    trajectories: int
    solver: Any
    vary: Any
    batch_size: int
    timed: bool
    keywords: dict

    def solve(self, numbers, seed, progress=None, **more):
        """The trajectories of a range of numbers; beyond the last number it is repeated."""
        count = len(numbers)
        batch_size = min(self.batch_size, count)
        problem, vary, keywords = self.problem, self.vary, {**self.keywords, **more}
        jumps = None
        if isinstance(problem, JumpProblem):
            jumps = problem.jumps
            problem, vary = problem.problem, _varying(vary, jumps)
        spread = _Spread(problem, vary, seed)
        if keywords.get("events"):
            keywords["events"] = [spread.batched(event) for event in as_events(keywords["events"])]
        chunks = []
        throw = keywords.pop("throw", True)
        several = batch_size < count
        draws = progress is not False and several and tf.executing_eagerly()
        report = progress_bar() if draws else lambda done: None
        keywords["progress"] = bool(progress) and not several
        for start in range(0, count, batch_size):
            # The last chunk repeats its last trajectory: one shape, one program.
            first = numbers.start + start
            indices = tf.minimum(tf.range(first, first + batch_size), self.trajectories - 1)
            random = jumps is not None or isinstance(problem, SDEProblem)
            noise = TrajectorySeeds(seed, indices) if random else None
            batch = spread(indices)
            if jumps is not None:
                batch = JumpProblem(batch, [spread.batched(jump) for jump in jumps])
            sol = solve(batch, self.solver, batch_ndims=1, seed=noise, throw=False, **keywords)
            own = min(batch_size, count - start)
            if throw and tf.executing_eagerly() and not observation.watched():
                # Without the copies of the last trajectory.
                raise_on_failure(sol._control.numpy()[:, :own], first)
            chunks.append(_cut(sol, own, self.timed))
            report(min(1.0, (start + batch_size) / count))
        return _join(chunks, self.timed)


def _on_replicas(strategy, work, seed):
    """An ensemble whose trajectories are shared out to the replicas of a strategy."""
    if not isinstance(strategy, tf.distribute.Strategy):
        raise TypeError(f"`strategy` must be a tf.distribute.Strategy. Received: {strategy!r}")
    if not tf.executing_eagerly() or tape_is_active():
        raise ValueError(
            "solve_ensemble(..., strategy=...) computes no gradients and starts the work itself: "
            "call it outside of tf.function and of tf.GradientTape. "
            f"Received: strategy={strategy!r}"
        )
    replicas = Replicas(strategy)
    # Workers that were given no seed take that of the first.
    seeds = replicas.run(lambda number: tf.constant([seed], tf.int64))
    seed = int(replicas.gather(seeds, 0)[0])
    share = -(-work.trajectories // replicas.count)

    def compute(number):
        # A worker that raised alone would leave the others waiting for its share.
        numbers = range(number * share, (number + 1) * share)
        return work.solve(numbers, seed, False, throw=False)

    solution = _join(replicas.run(compute), work.timed, replicas.gather)
    solution = _cut(solution, work.trajectories, work.timed)
    codes = solution.status.numpy()
    if work.keywords.get("throw", True) and codes.any():
        raise SolveError(
            f"the solve failed: {'; '.join(describe(codes))}. Trajectory "
            f"{int(np.flatnonzero(codes)[0])} is the first of them. Pass throw=False to get the "
            "solution with its status instead."
        )
    return solution


def _varying(vary, jumps):
    """A function that varies the equation of a jump problem, from one that varies the problem."""
    if vary is None:
        return None

    def inner(problem, i, seed):
        made = vary(JumpProblem(problem, jumps), i, seed)
        if not isinstance(made, JumpProblem) or made.jumps is not jumps:
            raise ValueError(
                "`vary` must return a problem with the same jumps: problem.remake(...) of y0, p or "
                f"t_span. Received: {made!r}"
            )
        return made.problem

    return inner


def _varying_in_time(function, place):
    """The function, reading its argument number `place`, the time.

    What reads nothing of a trajectory cannot be mapped over trajectories.
    """

    def varying(*arguments):
        zero = 0.0 * arguments[place]

        def touched(leaf):
            leaf = tf.convert_to_tensor(leaf, dtype_hint=zero.dtype)
            return leaf + zero if leaf.dtype == zero.dtype else leaf

        return tf.nest.map_structure(touched, function(*arguments))

    return varying


def _shape(saveat):
    """The shape of what a user gives as save times; `()` for none."""
    if saveat is None:
        return ()
    return tuple(saveat.shape) if hasattr(saveat, "shape") else check_array("saveat", saveat).shape


class _Spread:
    """From trajectory numbers to one batched problem."""

    def __init__(self, problem, vary, seed):
        self._problem, self._vary = problem, vary
        self._y0, self._p = values.as_nest(problem.y0), values.as_nest(problem.p)
        self._dtype = values.common_dtype(self._y0, self._p)
        self._base = self._leaves(self._y0, self._p, problem)
        drawn = tf.is_tensor(seed)
        self._root = seed if drawn else tf.constant([seed % 2**31, 0], tf.int32)
        self._y_leaves = len(tf.nest.flatten(self._y0))
        self._functions = {
            name: rows.by_row(getattr(problem, name), _template(self._p), self._y_leaves)
            for name in ("f", "g", "jacobian", "f_explicit", "f_implicit")
            if callable(getattr(problem, name, None))
        }
        self._lags = sum(not callable(lag) for lag in getattr(problem, "lags", ()))
        if isinstance(problem, DDEProblem):
            arguments = _template(self._p), self._y_leaves
            self._functions["f"] = rows.delayed_by_row(problem.f, *arguments)
            self._functions["history"] = rows.by_row(problem.history, *arguments, place=1)
        self._which: list = []
        self._jit = True

    def __call__(self, indices):
        """A problem for a batch of trajectories."""
        base, first, span = self._base, self._y_leaves, len(self._base) - 2
        last = span - self._lags
        full = {} if self._vary is None else self._mapped(indices)
        count = indices.shape[0]
        state = [
            full[k] if k in full else tf.broadcast_to(leaf, (count, *leaf.shape))
            for k, leaf in enumerate(base[:first])
        ]
        shared = {str(k): base[k] for k in range(first, last) if k not in full}
        varied = {str(k): full[k] for k in range(first, last) if k in full}
        functions = dict(self._functions)
        if isinstance(self._problem, DDEProblem):
            constant = iter(full.get(k, base[k]) for k in range(last, span))
            lags = [lag if callable(lag) else next(constant) for lag in self._problem.lags]
            functions["lags"] = lags
        return self._problem.remake(
            **functions,
            y0=tf.nest.pack_sequence_as(self._y0, state),
            t_span=tuple(full.get(k, base[k]) for k in (span, span + 1)),
            p={"shared": shared, "varied": varied},
        )

    def batched(self, record):
        """An event or a jump, whose functions see one trajectory, for a batch."""
        template, first = _template(self._p), self._y_leaves
        functions = {}
        for field in dataclasses.fields(record):
            function = getattr(record, field.name)
            if callable(function):
                place = 3 if field.name == "mark_sampler" else 2
                varying = _varying_in_time(function, place - 2)
                functions[field.name] = rows.by_row(varying, template, first, place)
        return dataclasses.replace(record, **functions)

    def _leaves(self, y0, p, problem):
        leaves = [values.to_tensor(leaf, self._dtype) for leaf in tf.nest.flatten(y0)]
        leaves += [values.to_tensor(leaf, self._dtype) for leaf in _without_none(p)]
        lags = getattr(problem, "constant_lags", ())
        leaves += [values.as_float(lag, self._dtype, "lags") for lag in lags]
        span = problem.t_span
        return leaves + [values.as_float(span[k], self._dtype, "t_span") for k in range(2)]

    def _mapped(self, indices):
        """What differs between the trajectories: stacked leaves, by their numbers.

        Mapping random numbers row by row is a slow loop in plain graph mode; XLA runs it faster,
        where it can compile what `vary` does. With and without a tape alike: floats from
        TensorFlow's generators are not the same numbers in both modes.
        """
        arguments = (indices, self._root, self._base)
        if not tf.executing_eagerly():
            found = self._rows(*arguments)
            return dict(zip(self._which, found, strict=False))
        try:
            return self._run(self._jit, arguments)
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            if not self._jit:
                raise
            self._jit = False
            return self._run(False, arguments)

    def _run(self, jit, arguments):
        references: list = []
        shapes = [(tuple(leaf.shape), leaf.dtype.name) for leaf in self._base]
        structure = repr((_template(self._y0), _template(self._p)))
        key = ("vary", function_key(self._vary, references), jit, structure, str(shapes))

        def make():
            return self, compiled(self._rows, jit)

        owner, program = programs.get(key, references, make)
        found = program(*arguments)
        return dict(zip(owner._which, found, strict=False))

    def _rows(self, indices, root, base):
        # Without its warning: random numbers, the reason for most calls, are mapped one by one.
        return tf.vectorized_map(lambda i: self._one(i, root, base), indices, warn=False)

    def _one(self, i, root, base):
        """What `vary` changes in the problem of trajectory `i`, as a list of leaves."""
        seed = tf.random.experimental.stateless_fold_in(root, i, alg="philox")
        y0 = tf.nest.pack_sequence_as(self._y0, base[: self._y_leaves])
        numbers = iter(base[self._y_leaves : -2])
        p = tf.nest.map_structure(lambda x: x if x is None else next(numbers), self._p)
        fields = {"y0": y0, "p": p, "t_span": tuple(base[-2:])}
        delayed = isinstance(self._problem, DDEProblem)
        if delayed:
            lags = self._problem.lags
            fields["lags"] = [lag if callable(lag) else next(numbers) for lag in lags]
        given = self._problem.remake(**fields)
        made = self._vary(given, i, seed)
        same = type(made) is type(given) and all(
            getattr(made, name) is getattr(given, name) for name in self._functions
        )
        if not same:
            raise ValueError(
                "`vary` must return a problem with the same functions: problem.remake(...) of y0, "
                f"p, t_span or constant lags. Received: {made!r}"
            )
        nests = values.as_nest(made.y0), values.as_nest(made.p)
        for name, ours, theirs in zip(("y0", "p"), (y0, p), nests, strict=True):
            try:
                tf.nest.assert_same_structure(ours, theirs)
            except (TypeError, ValueError) as error:
                raise ValueError(f"`vary` must keep the structure of `{name}`. {error}") from error
        raw = [*_flat(made.y0), *_flat(made.p)]
        if delayed:
            changed = [a is not b for a, b in zip(made.lags, lags, strict=False) if callable(b)]
            if len(made.lags) != len(lags) or any(changed) or len(made.constant_lags) != self._lags:
                raise ValueError(
                    "`vary` must keep the number of lags and those that are functions. "
                    f"Received: lags={made.lags!r}"
                )
            raw += made.constant_lags
        raw += [made.t_span[0], made.t_span[1]]
        leaves = self._leaves(*nests, made)
        self._which = [k for k, (a, b) in enumerate(zip(raw, base, strict=True)) if a is not b]
        return [leaves[k] for k in self._which] or [i]


def _flat(nest):
    """The objects that the user gave, one for each leaf that becomes a tensor."""
    if values.is_number_tree(nest) or not tf.nest.is_nested(nest):
        return [] if nest is None else [nest]
    if isinstance(nest, dict):
        return [leaf for key in sorted(nest) for leaf in _flat(nest[key])]
    return [leaf for item in nest for leaf in _flat(item)]


def _without_none(nest):
    return [leaf for leaf in tf.nest.flatten(nest) if leaf is not None]


_templates: dict = {}


def _template(nest):
    """The structure of a nest with zeros for tensors; one object for equal structures."""
    zeros = tf.nest.map_structure(lambda leaf: leaf if leaf is None else 0, nest)
    return _templates.setdefault(repr(zeros), zeros)


def _cut(sol, count, timed):
    """The first `count` trajectories of a solution."""
    if count == sol.status.shape[0]:
        return sol
    part = (lambda x: x[:, :count]) if timed else (lambda x: x[:count])
    own_times = not timed and sol.t.shape.rank == 1
    return dataclasses.replace(
        sol,
        t=sol.t[:count] if own_times else sol.t,
        y=tf.nest.map_structure(part, sol.y),
        stats=_map_stats(lambda row: row[:count], sol.stats),
        status=sol.status[:count],
        log_likelihood=None if sol.log_likelihood is None else part(sol.log_likelihood),
        **{name: _map_or_none(lambda x: x[:count], getattr(sol, name)) for name in _HAPPENED},
    )


_HAPPENED = ("event_times", "event_states", "event_index", "num_events")


def _map_or_none(function, *nests):
    return None if nests[0] is None else tf.nest.map_structure(function, *nests)


def _map_stats(function, *stats):
    names = [field.name for field in dataclasses.fields(Stats)]
    return Stats(*(function(*(getattr(one, name) for one in stats)) for name in names))


def _concat(parts, axis):
    return tf.concat(parts, axis) if len(parts) > 1 else parts[0]


def _join(chunks, timed, concat=_concat):
    """One `EnsembleSolution` from the chunks."""
    first = chunks[0]
    own_times = not timed and first.t.shape.rank == 1

    def glue(axis):
        return lambda *parts: concat(parts, axis)

    return EnsembleSolution(
        t=glue(0)(*(sol.t for sol in chunks)) if own_times else first.t,
        y=tf.nest.map_structure(glue(int(timed)), *(sol.y for sol in chunks)),
        stats=_map_stats(glue(0), *(sol.stats for sol in chunks)),
        status=glue(0)(*(sol.status for sol in chunks)),
        log_likelihood=_map_or_none(glue(int(timed)), *(sol.log_likelihood for sol in chunks)),
        **{
            name: _map_or_none(glue(0), *(getattr(sol, name) for sol in chunks))
            for name in _HAPPENED
        },
        timed=timed,
    )
