"""The continuous adjoint of a Stratonovich equation, along the same Brownian path backwards.

The Stratonovich integral obeys the rules of ordinary calculus, so that the adjoint of
dy = f dt + g ∘ dW is dλ = -λ ∂f/∂y dt - λ ∂g/∂y ∘ dW, and the gradient of the parameters is
∫ λ ∂f/∂p dt + λ ∂g/∂p ∘ dW (Li, Wong, Chen & Duvenaud, "Scalable gradients for stochastic
differential equations", AISTATS 2020). All three are solved backwards by Heun's method on the grid
of the forward solve.
"""

import tensorflow as tf

from keras_neuralde.adjoints.grid import Grid
from keras_neuralde.solvers.base import pull_back
from keras_neuralde.solvers.sde import times


def walk_back(task, field, terms, theta, outcome, y0, y_bar):
    """All cotangents, as `base.differentiable` wants them.

    Args:
        task: the `Task`.
        field: the `StochasticField`.
        terms: the `Terms` of the forward solve.
        theta: the differentiable tensors.
        outcome: `(y, control)` of the forward solve.
        y0: `(rows, copies * width)`.
        y_bar: the cotangents of its states.
    """
    y, control = outcome
    grid = Grid(terms, control)
    copies, saves = task.plan.solver.copies, task.plan.saves
    first = lambda tensor: tf.split(tensor, copies, axis=-1)[0]  # noqa: E731
    y, y_bar, start = first(y), first(y_bar), first(y0)
    y_bar = tf.where(tf.math.is_finite(y), y_bar, tf.zeros_like(y_bar))
    y = tf.where(tf.math.is_finite(y), y, start)
    if not saves:
        y, y_bar = y[None], y_bar[None]
    points = _SavePoints(terms, y, y_bar) if saves else None

    def one_step(number, y, adjoint, save, totals):
        t, t_next = grid.step(number)
        if points is not None:
            y, adjoint, save = points.take(t, y, adjoint, save)
        y, adjoint, found = _heun(field, theta, t, t_next, y, adjoint)
        return number - 1, y, adjoint, save, tf.nest.map_structure(tf.add, totals, found)

    zeros = (
        [tf.zeros_like(tensor) for tensor in theta],
        [tf.zeros_like(variable) for variable in field.variables],
    )
    if points is None:
        begin = y[0], y_bar[0], tf.zeros_like(terms.t0, tf.int32)
    else:
        begin = start, tf.zeros_like(start), points.last()
    _, _, adjoint, _, totals = tf.while_loop(
        lambda number, *_: number >= 0, one_step, (grid.turns - 1, *begin, zeros)
    )
    if points is not None:
        adjoint += points.at_rest(grid)
    y0_bar = tf.concat([adjoint, *[tf.zeros_like(adjoint)] * (copies - 1)], axis=1)
    rest = tf.zeros_like(terms.t0)
    saves_bar = tf.zeros_like(terms.saves) if saves else tf.zeros((0, 1), y0_bar.dtype)
    return rest, rest, saves_bar, y0_bar, *totals


def _heun(field, theta, t, t_next, y, adjoint):
    """One step backwards: `(y, adjoint, (theta_bar, variables_bar))`."""
    w = field.path(t, t_next).w
    h = (t_next - t)[:, None]
    captured, variables = field.captures, list(field.variables)
    parameters = list(theta[: len(theta) - len(captured)])

    def pull(t, y, adjoint):
        """What the drift and the noise of the step add to y; and its cotangents."""
        y = tf.identity(y)
        sources = [y, *parameters, *captured, *variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            moved = h * field.drift(t, y, theta) + times(field.diffusion(t, y, theta), w)
        y_bar, *bars = pull_back(tape, moved, sources, adjoint)
        return moved, y_bar, bars

    moved, y_bar, bars = pull(t_next, y, adjoint)
    ahead = pull(t, y - moved, adjoint + y_bar)
    y -= 0.5 * (moved + ahead[0])
    adjoint += 0.5 * (y_bar + ahead[1])
    bars = [0.5 * (a + b) for a, b in zip(bars, ahead[2], strict=True)]
    return y, adjoint, (bars[: len(theta)], bars[len(theta) :])


class _SavePoints:
    """The save points, met from the last to the first; each row has its own next one.

    Args:
        terms: the `Terms`.
        y: the states there, `(num_times, rows, width)`.
        y_bar: their cotangents.
    """

    def __init__(self, terms, y, y_bar):
        self._direction, self._t0 = terms.direction, terms.t0
        self._times = terms.saves + tf.zeros_like(terms.t0)
        self._y, self._y_bar = y, y_bar

    def last(self):
        """The index of the last save point, `(rows,)`."""
        return tf.reduce_sum(tf.cast(tf.math.is_finite(self._times), tf.int32), axis=0) - 1

    def take(self, t, y, adjoint, save):
        """The save points after `t`: y is set to the state there, λ takes up its cotangent."""
        rows = tf.shape(self._times)[1]

        def flat(save):
            return tf.maximum(save, 0) * rows + tf.range(rows)

        def met(save):
            at = tf.gather(tf.reshape(self._times, [-1]), flat(save))
            return (save >= 0) & (self._direction * at > self._direction * t)

        def one(y, adjoint, save, here):
            column, width = here[:, None], self._y.shape[2]
            saved = tf.gather(tf.reshape(self._y, (-1, width)), flat(save))
            bar = tf.gather(tf.reshape(self._y_bar, (-1, width)), flat(save))
            y = tf.where(column, saved, y)
            adjoint += tf.where(column, bar, tf.zeros_like(bar))
            save -= tf.cast(here, tf.int32)
            return y, adjoint, save, met(save)

        loop = (y, adjoint, save, met(save))
        return tf.while_loop(lambda *loop: tf.reduce_any(loop[-1]), one, loop)[:3]

    def at_rest(self, grid):
        """The cotangents of save points at the start, `(rows, width)`."""
        here = self._direction * self._times <= self._direction * self._t0
        here &= ~grid.failed
        return tf.reduce_sum(tf.where(here[:, :, None], self._y_bar, 0.0), axis=0)
