"""`minimize`: a loss, parameters, optimizers in stages."""

import itertools
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import TypeAlias

import keras
import numpy as np
import tensorflow as tf

from keras_neuralde.bounds import make_box
from keras_neuralde.checks import check_flag, check_function, check_whole
from keras_neuralde.minimize_result import MinimizeResult, MinimizeStatus
from keras_neuralde.optimizers.closure import ClosureOptimizer, named_optimizer
from keras_neuralde.optimizers.line_search import Progress
from keras_neuralde.optimizers.quasi_newton import QuasiNewton
from keras_neuralde.parameters import Parameters
from keras_neuralde.programs import compiled
from keras_neuralde.typing import Nest

Stage: TypeAlias = tuple[keras.optimizers.Optimizer, int | None]
"""An optimizer and how many iterations it gets; `None` for as many as it takes."""

_BACKTRACKS = 30


# After these, no further stage is tried.
_FINAL = (MinimizeStatus.MAX_EVALUATIONS, MinimizeStatus.HALTED, MinimizeStatus.NON_FINITE)

_OF_PROGRESS = {
    Progress.GRADIENT_CONVERGED: MinimizeStatus.CONVERGED,
    Progress.LOSS_CONVERGED: MinimizeStatus.CONVERGED,
    Progress.STALLED: MinimizeStatus.STALLED,
    Progress.NON_FINITE: MinimizeStatus.NON_FINITE,
}


def minimize(
    loss: Callable[..., tf.Tensor | tuple],
    params: Nest,
    optimizer: keras.optimizers.Optimizer | Sequence[Stage],
    *,
    max_iters: int | None = None,
    max_evaluations: int | None = None,
    bounds: tuple[Nest, Nest] | None = None,
    batches: Iterable[tuple] | None = None,
    callback: Callable[..., bool | None] | None = None,
    restarts: int = 1,
    freeze_steps: bool = False,
    progress: bool = True,
    jit_compile: bool = True,
) -> MinimizeResult:
    """Minimizes a function of parameters.

    Args:
        loss: `loss(p)`, or `loss(p, *batch)` with `batches`; returns a scalar or a tuple
            `(scalar, *extras)`. `p` has the form of `params`: tensors for values and for a list of
            variables, the model itself for a model. Traced once and compiled.
        params: where to start: a vector, a nest of arrays or tensors, a list of Keras variables, or
            a built Keras model.
        optimizer: a Keras optimizer, `LBFGS`, `BFGS`, or a list of stages
            `[(Adam(0.05), 300), (BFGS(), None)]` with the iterations of each. A stage starts at the
            best point so far; an optimizer that was used before is copied and starts afresh.
        max_iters: iterations over all stages. `None`: what the stages say, one pass over `batches`,
            or, for a first-order optimizer without either, an error.
        max_evaluations: evaluations of the loss over all stages; looked at after each iteration, so
            that the last line search may go beyond it.
        bounds: `(lower, upper)`, each `None`, a number, or of the shape of `params`.
        batches: an iterable of tuples of arrays, one an iteration, begun again when it is used up.
        callback: `callback(p, loss, *extras)` after every iteration, with the loss and extras of
            that `p`; `True` halts, `False` and `None` go on.
        restarts: how often a quasi-Newton stage whose line search gives up begins again from a
            fresh memory.
        freeze_steps: hold the step sequences of adaptive solves in the loss during each line search
            of a quasi-Newton stage, which makes the loss smooth at any tolerance; see `LBFGS`.
        progress: whether to draw a progress bar; only a terminal gets one.
        jit_compile: whether to compile with XLA.

    Returns:
        A `MinimizeResult`.

    Raises:
        ValueError: for a loss that is no scalar, parameters that it does not touch (named; those
            that reach a solve and are ignored by its field count as touched), bounds that do not
            fit, or limits out of range.
        TypeError: for parameters, optimizers or callback results of a wrong type.

    Example:

    >>> import keras, tensorflow as tf, keras_neuralde as nde
    >>> def rosenbrock(p):
    ...     return 100.0 * (p[1] - p[0] ** 2) ** 2 + (1.0 - p[0]) ** 2
    >>> result = nde.minimize(rosenbrock, tf.constant([-1.2, 1.0], tf.float64),
    ...                       nde.optimizers.BFGS(initial_step_norm=0.01))
    >>> bool(abs(result.minimizer[0] - 1.0) < 1e-6)
    True
    """
    check_flag("freeze_steps", freeze_steps)
    stages = _stages(optimizer, max_iters, batches, freeze_steps)
    for name, value in (("max_iters", max_iters), ("max_evaluations", max_evaluations)):
        if value is not None:
            check_whole(name, value)
    check_whole("restarts", restarts, 0)
    for name, value in (("progress", progress), ("jit_compile", jit_compile)):
        check_flag(name, value)
    check_function("loss", loss, "loss(p), or loss(p, *batch) with `batches`")
    if callback is not None:
        check_function("callback", callback, "callback(p, loss, *extras)")
    if batches is not None and not hasattr(batches, "__iter__"):
        raise TypeError(f"`batches` must be an iterable of tuples of arrays. Received: {batches!r}")
    if isinstance(batches, Sized) and len(batches) == 0:
        raise ValueError("`batches` must hold at least one batch. Received: an empty one")
    parameters = Parameters(params)
    box = make_box(bounds, parameters, parameters.vector)
    objective = _Objective(loss, parameters, box)
    run = _Run(objective, callback, max_evaluations, batches, jit_compile, restarts)
    bar = _bar(progress, max_iters, stages)
    left = max_iters
    for method, steps in stages:
        count = _least(steps, left)
        made = run.stage(method, count, bar)
        left = None if left is None else left - made
        if run.status in _FINAL or left == 0:
            break
    if bar is not None and run.iterations != bar.target:
        # It ended before its last iteration, or had no last one.
        bar.update(run.iterations, [("loss", float(run.minimum))], finalize=True)
    return run.result()


def _least(a, b):
    given = [value for value in (a, b) if value is not None]
    return min(given) if given else None


def _stages(optimizer, max_iters, batches, freeze_steps):
    """`(optimizer, steps)` pairs."""
    given = optimizer if isinstance(optimizer, (list, tuple)) else [(optimizer, None)]
    stages = []
    for i, stage in enumerate(given):
        if not isinstance(stage, (list, tuple)) or len(stage) != 2:
            raise TypeError(
                f"a stage must be a pair (optimizer, iterations or None). Received: {stage!r}"
            )
        method, steps = stage
        method = named_optimizer("optimizer", method)
        if method.built:
            # One that has worked before holds the memory of other parameters.
            method = type(method).from_config(method.get_config())
        if freeze_steps and isinstance(method, QuasiNewton):
            method = type(method).from_config(method.get_config() | {"freeze_steps": True})
        if isinstance(getattr(method, "optimizers", None), list):
            raise TypeError(
                "stages are a list here, not a Chain: [(Adam(0.05), 300), (BFGS(), None)]. "
                f"Received: {method!r}"
            )
        if steps is not None:
            check_whole("iterations", steps, 0)
        unlimited = steps is None and max_iters is None and batches is None
        if unlimited and not isinstance(method, ClosureOptimizer):
            raise ValueError(
                f"{type(method).__name__} never ends by itself: give `max_iters`, or the stage's "
                f"iterations. Received: stage {i} without either"
            )
        stages.append((method, steps))
    if not stages:
        raise ValueError("`optimizer` must hold at least one stage. Received: an empty list")
    return stages


def _bar(progress, max_iters, stages):
    """Keras's progress bar where somebody can see it."""
    if not progress or not sys.stdout.isatty():
        return None
    steps = [count for _, count in stages]
    target = None if None in steps else sum(steps)
    return keras.utils.Progbar(
        _least(target, max_iters), stateful_metrics=["loss"], unit_name="iteration"
    )


class _Objective:
    """The loss as a function of the free vector, with its gradient."""

    def __init__(self, loss, parameters, box):
        self.loss, self.parameters, self.box = loss, parameters, box
        self.num_extras = 0
        start = parameters.vector
        if box is not None:
            start = tf.constant(box.free(start.numpy()), parameters.dtype)
        self.z = keras.Variable(start, dtype=parameters.dtype.name, name="parameters")

    def point(self, z):
        """The user's parameter vector for a free vector."""
        return z if self.box is None else self.box.inside(z)

    def __call__(self, z, batch=()):
        """`(loss, gradient, extras)`."""
        names = self.parameters.names
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(z)
            x = self.point(z)
        leaves = self.parameters.leaves(x)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(leaves)
            value, extras = _scalar(self.parameters.call(self.loss, leaves, *batch))
            self.num_extras = len(extras)
        bars = tape.gradient(value, leaves)
        lost = [name for name, bar in zip(names, bars, strict=True) if bar is None]
        if lost:
            raise ValueError(
                "the loss does not depend on these parameters; read them in the loss, or leave "
                f"them out. Received: {lost}"
            )
        bar = self.parameters.flatten([tf.convert_to_tensor(bar) for bar in bars])
        gradient = outer.gradient(x, z, output_gradients=bar) if self.box else bar
        return tf.cast(value, z.dtype), gradient, extras


def _scalar(value):
    """What a loss returned, as `(scalar, extras)`."""
    if value is None or (isinstance(value, (tuple, list)) and not value):
        raise ValueError(
            "the loss must return a floating scalar, or a tuple (scalar, *extras). "
            f"Received: {value!r}; is a `return` missing?"
        )
    value, *extras = value if isinstance(value, (tuple, list)) else (value,)
    value = tf.convert_to_tensor(value)
    if not value.dtype.is_floating or (value.shape.rank != 0 and value.shape.num_elements() != 1):
        raise ValueError(
            "the loss must return a floating scalar, or a tuple (scalar, *extras). "
            f"Received: shape {value.shape}, {value.dtype.name}"
        )
    return tf.reshape(value, []), tuple(extras)


def _warn_of_noise(method, evaluate):
    """Line searches compare losses: two of the same point must be the same."""
    first = float(evaluate())
    method.start(same_data=True)
    second = float(evaluate())
    if np.isfinite(first) and first != second:
        warnings.warn(
            f"the loss is stochastic: two evaluations at one point gave {first:g} and {second:g}. "
            f"The line search of {type(method).__name__} cannot work with noise: fix the seed, or "
            "take a first-order optimizer such as Adam.",
            stacklevel=5,
        )


class _Run:
    """One minimization: its counters, its best point, and the stages."""

    def __init__(self, objective, callback, max_evaluations, batches, jit, restarts):
        self.objective, self.callback = objective, callback
        self.max_evaluations, self.restarts_left = max_evaluations, restarts
        self.batches, self._stream, self._pass = batches, None, None
        self.jit = jit
        self.began = time.perf_counter()
        self.history: list = []
        self.evaluations = self.iterations = self.non_finite = self.restarts = 0
        self.best, self.minimum, self.size = self._here(), float("inf"), float("nan")
        self.status = MinimizeStatus.MAX_ITERATIONS

        def evaluate(z, batch):
            value, gradient, extras = objective(z, batch)
            return value, gradient, tf.reduce_max(tf.abs(gradient)), extras

        self.evaluate = compiled(evaluate, jit)

    def _here(self):
        """A snapshot of the free vector."""
        return tf.convert_to_tensor(self.objective.z)

    def stage(self, method, count, bar):
        """Runs one optimizer; returns how many iterations it made."""
        self.status = MinimizeStatus.MAX_ITERATIONS
        if self.batches is None:
            self.objective.z.assign(self.best)
        before = self.iterations
        searches = isinstance(method, ClosureOptimizer)
        turn = self._search(method) if searches else self._descend(method)
        for k in itertools.count():
            if (count is not None and k >= count) or self._used_up(count):
                break
            if not turn():
                break
            if bar is not None:
                bar.update(self.iterations, [("loss", self.history[-1])])
            if self.max_evaluations and self.evaluations >= self.max_evaluations:
                self.status = MinimizeStatus.MAX_EVALUATIONS
                break
        if not searches and self.batches is None:
            self._look_at_the_last_point()
        return self.iterations - before

    def _used_up(self, count):
        """Whether one pass over the batches was all that was asked for."""
        if self.batches is None or count is not None:
            return False
        self._stream = self._stream or iter(self.batches)
        self._pass = next(self._stream, None)
        if self._pass is None:
            self._stream = None
            if self.iterations == 0:
                raise ValueError("`batches` must hold at least one batch. Received: none")
        return self._pass is None

    def _batch(self):
        """The batch of this iteration, as a tuple of tensors."""
        if self.batches is None:
            return ()
        batch, self._pass = self._pass, None
        if batch is None:
            self._stream = self._stream or iter(self.batches)
            batch = next(self._stream, None)
        if batch is None:
            self._stream = iter(self.batches)
            batch = next(self._stream, None)
        if batch is None:
            raise ValueError(
                "`batches` must be an iterable that can be begun again and holds a batch. "
                f"Received: {self.batches!r}"
            )
        batch = batch if isinstance(batch, (tuple, list)) else (batch,)
        return tuple(tf.nest.map_structure(tf.convert_to_tensor, item) for item in batch)

    def _descend(self, method):
        """An iteration of a first-order optimizer: evaluate, tell, move."""
        z = self.objective.z
        method.build([z])
        good: list = [None]

        def update(gradient):
            method.apply([gradient], [z])

        move = compiled(update, self.jit)

        def turn():
            batch = self._batch()
            value, gradient, size, extras = self._finite_point(batch, good[0])
            if value is None:
                return False
            good[0] = self._here()
            if not self._accept(good[0], value, size, extras):
                return False
            move(gradient)
            return True

        return turn

    def _finite_point(self, batch, good):
        """The loss here or, where it is not finite, nearer to the last point where it was."""
        z = self.objective.z
        for _ in range(_BACKTRACKS):
            value, gradient, size, extras = self.evaluate(self._here(), batch)
            self.evaluations += 1
            if np.isfinite(value.numpy()) and np.isfinite(size.numpy()):
                return value, gradient, size, extras
            self.non_finite += 1
            if good is None:
                break
            z.assign(0.5 * (self._here() + good))
        self.status = MinimizeStatus.NON_FINITE
        return None, None, None, None

    def _look_at_the_last_point(self):
        """The point after the last update has not been evaluated yet; it may be the best."""
        if self.status in _FINAL or not self.iterations:
            return
        value, _, size, _ = self.evaluate(self._here(), ())
        self.evaluations += 1
        self._keep_best(self._here(), float(value), float(size))

    def _search(self, method):
        """An iteration of a quasi-Newton method."""
        z, objective = self.objective.z, self.objective
        method.build([z])

        def search(batch, idle):
            def closure(candidates):
                value, gradient, _ = objective(candidates[0], batch)
                return value, [gradient]

            value, _, (gradient,) = method.minimize_step(closure, [z], self.batches is None, idle)
            return value, tf.reduce_max(tf.abs(gradient))

        iterate = compiled(search, self.jit)
        method.start(same_data=self.batches is None)
        evaluations = method.num_evaluations
        if self.batches is None:
            _warn_of_noise(method, lambda: iterate((), tf.constant(True))[0])
        self.evaluations += method.num_evaluations - evaluations

        def turn():
            batch = self._batch()
            if self.batches is not None:
                method.start(same_data=False)
            before = method.num_evaluations
            value, size = iterate(batch, tf.constant(False))
            self.evaluations += method.num_evaluations - before
            progress = method.progress
            extras = ()
            if self.callback is not None and objective.num_extras:
                extras = self.evaluate(self._here(), batch)[3]
                self.evaluations += 1
            if progress is Progress.NON_FINITE:
                self.status = MinimizeStatus.NON_FINITE
                return False
            if not self._accept(self._here(), value, size, extras):
                return False
            if progress is Progress.STALLED and self.restarts_left > 0:
                self.restarts_left -= 1
                self.restarts += 1
                method.forget()
                method.start(same_data=self.batches is None)
            elif progress is not Progress.RUNNING and self.batches is None:
                self.status = _OF_PROGRESS[progress]
                return False
            return True

        return turn

    def _accept(self, z, value, size, extras):
        """Books an iteration; whether to go on."""
        value = float(value)
        self.iterations += 1
        self.history.append(value)
        self._keep_best(z, value, float(size))
        if self.callback is None:
            return True
        p = self._form(z)
        halt = self.callback(p, value, *extras)
        if halt is not None and not isinstance(halt, (bool, np.bool_)):
            raise TypeError(
                f"the callback must return True to halt, False or None to go on. Received: {halt!r}"
            )
        if halt:
            self.status = MinimizeStatus.HALTED
        return not halt

    def _form(self, z):
        """The parameters as the user keeps them."""
        return self.objective.parameters.result(self.objective.point(tf.convert_to_tensor(z)))

    def _keep_best(self, z, value, size):
        self.size = size
        if value < self.minimum or self.batches is not None:
            self.best, self.minimum = tf.convert_to_tensor(z), value

    def result(self):
        """The `MinimizeResult`."""
        best = self._here() if self.batches is not None else self.best
        return MinimizeResult(
            minimizer=self._form(best),
            minimum=self.minimum,
            status=self.status,
            message=self.status.message,
            iterations=self.iterations,
            evaluations=self.evaluations,
            history=self.history,
            gradient_norm=self.size,
            non_finite=self.non_finite,
            restarts=self.restarts,
            seconds=time.perf_counter() - self.began,
        )
