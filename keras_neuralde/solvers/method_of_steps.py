"""The method of steps: delay equations by the one-step methods for ordinary ones."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_neuralde.history import Past
from keras_neuralde.solution import Status
from keras_neuralde.solvers import implicit_steps
from keras_neuralde.solvers.base import Solver, Step
from keras_neuralde.solvers.explicit_rk import combine

# How often the interpolant of a step that reads itself is improved at most.
_MOST_PASSES = 40
# What part of the tolerance the last improvement may be.
_CONVERGED = 1e-3


class MethodOfSteps(Solver):
    """A method for ordinary equations, made one for delay equations.

    Past states are the interpolants of earlier steps. Where a lag is shorter than the step, the
    step reads its own interpolant, which is found by fixed-point iteration; a step whose iteration
    does not converge is rejected (Bellen & Zennaro, "Numerical Methods for Delay Differential
    Equations", 2003, chapters 3 and 4). Each step ends on the points where constant lags carry a
    discontinuity, up to the order of the method.

    An implicit method steps as for an ordinary equation, with the past read wherever it evaluates
    the field or a derivative of it: the Jacobian is that of f with respect to y alone, which is
    what stiffness comes from, unless a lag is shorter than the step.

    Args:
        solver: the name or object of an explicit or implicit method that interpolates.

    Raises:
        ValueError: for methods that cannot be wrapped.

    Example:

    >>> MethodOfSteps("tsit5").order
    5
    """

    remembers = True
    counts_evaluations = True

    def __init__(self, solver: str | dict | Solver = "tsit5") -> None:
        from keras_neuralde.solvers import registry

        inner: Any = registry.get(solver)
        explicit = isinstance(inner, registry.ExplicitRungeKutta)
        if not (explicit or inner.implicit):
            raise ValueError(
                "a delay equation needs a one-step method that interpolates, such as 'tsit5', or "
                f"'rodas5p' for stiff ones. Received: {inner.name!r}"
            )
        self.solver = inner
        self.name = inner.name
        self.order = inner.order
        self.error_order = inner.error_order
        self._table: Any = _Table(inner.tableau) if explicit else None

    def get_config(self):
        from keras_neuralde.solvers import registry

        return {"solver": registry.serialize(self.solver)}

    def dense_degree(self):
        return self.solver.dense_degree()

    def init(self, g, t, y):
        # The field may jump where a step ends, so that no slope is handed to the next one.
        return tf.zeros_like(y)

    def step(self, g, t, t_next, y, state, dense):
        inner = self.solver
        h = (t_next - t)[:, None]
        adaptive = inner.error_order is not None
        found = (tf.zeros_like(tf.tile(y, [1, inner.dense_degree()])), y)
        found += (tf.zeros_like(y),) if adaptive else ()

        def improve(passes, count, found, settled, ahead, trouble, near):
            made = self._propose(g, t, t_next, y, h, found[0], near)
            # Newton's iteration leaves rounding errors of its own size.
            noise = 4.0 if self._table is not None else 1000.0
            small = _is_small(g.implicit.tolerances, y, found[0], made.found[0], noise)
            better = tf.nest.map_structure(
                lambda new, old: tf.where(settled[:, None], old, new), made.found, found
            )
            count += tf.where(settled, tf.zeros_like(count), made.count)
            ahead |= ~settled & made.early
            trouble = tf.where(settled, trouble, made.trouble)
            settled |= small | ~made.inside | made.early | (made.trouble != 0.0)
            return passes + 1, count, better, settled, ahead, trouble, made.near

        one = tf.ones_like(t)
        resting = t_next == t
        never = tf.zeros_like(resting)
        loop = (
            tf.constant(0),
            tf.zeros_like(t),
            found,
            resting,
            never,
            tf.zeros_like(t),
            g.record.newest(t, g.reads),
        )
        _, count, found, settled, ahead, trouble, _ = tf.while_loop(
            lambda passes, count, found, settled, *_: (
                (passes < _MOST_PASSES) & tf.reduce_any(~settled)
            ),
            improve,
            loop,
        )
        return Step(
            y1=found[1],
            error=found[2] if adaptive else None,
            dense=found[0],
            state=tf.zeros_like(y),
            ok=settled & ~ahead & (trouble == 0.0),
            trouble=tf.where(
                ahead, float(Status.BAD_LAG) * one,
                tf.where(trouble != 0.0, trouble, float(Status.DELAY_DIVERGED) * one),
            ),
            num_f=count,
        )  # fmt: skip

    def _propose(self, g, t, t_next, y, h, dense, near):
        """A step whose field sees `dense` as the step's own interpolant: a `_Pass`."""
        inner = self.solver
        if self._table is None:
            step, inside, early = implicit_steps.propose(inner, g, t, t_next, y, dense)
            found = (step.dense, step.y1) if step.error is None else (
                step.dense, step.y1, step.error
            )  # fmt: skip
            zero = tf.zeros_like(t)
            trouble = zero if step.ok is None else tf.where(step.ok, zero, step.trouble)
            count = zero + inner.evaluations(True) if step.num_f is None else step.num_f
            return _Pass(found, near, inside, early, trouble, count)
        ks, near, inside, early = self._evaluate(g, g.record, t, t_next, y, dense, near)
        ks = tf.unstack(ks, num=len(self._table.c))
        found = (inner.polynomial(h, ks), y + h * combine(self._table.outputs[:, 0], ks))
        if inner.error_order is not None:
            found += (inner.error_estimate(h, ks),)
        count = tf.zeros_like(t) + float(len(self._table.c))
        return _Pass(found, near, inside, early, tf.zeros_like(t), count)

    def _evaluate(self, g, record, t, t_next, y, dense, near, strict=True):
        """All stages, those of the interpolant included, one after the other.

        They are turns of a loop, so that the field, which searches the record wherever it reads,
        is compiled once.

        Returns:
            The stages, `(stages, rows, width)`; the records found last, to look near to; and the
            flags `inside` and `ahead` of `Past`.
        """
        a, c = self._table.tensors(y.dtype)

        def stage(i, ks, near, inside, ahead):
            past = Past(record, t, t_next, y, dense, near, strict)
            with g.seeing(past):
                k = g(*_argument(a, c, i, t, t_next, y, ks))
            inside |= tf.constant(True) if past.inside is None else past.inside
            return i + 1, _put(ks, i, k), past.near, inside, ahead | past.ahead

        stages = len(self._table.c)
        never = tf.zeros_like(t, tf.bool)
        loop = (tf.constant(0), tf.stack([tf.zeros_like(y)] * stages), near, never, never)
        return tf.while_loop(lambda i, *_: i < stages, stage, loop)[1:]

    def recorded_vjp(self, field, record, t, t_next, y, dense, theta, y1_bar, dense_bar, totals):
        """The vector-Jacobian product of a recorded step, also with respect to what it read.

        It is the one of `ExplicitRungeKutta.step_vjp`, with the stages as turns of a loop.

        Args:
            field: the `DelayField`.
            record: the `Record` that the step read.
            t: `(rows,)`, where the step starts.
            t_next: where it ends.
            y: `(rows, width)`.
            dense: `(rows, degree * width)`, its interpolant, as far as the step read itself.
            theta: the differentiable tensors that the field reads.
            y1_bar: cotangent of the state at the end.
            dense_bar: cotangent of the interpolant.
            totals: `(theta, variables, read)`: lists of the cotangents so far of theta, of the
                field's variables and of the record's times, states and interpolants.

        Returns:
            The cotangents of `[t, t_next, y, dense]`, and the totals with what this step adds.
        """
        if self._table is None:
            return implicit_steps.recorded_vjp(
                self.solver, field, record, t, t_next, y, dense, theta, y1_bar, dense_bar, totals
            )
        table, bound = self._table, field.bind(theta)
        near = record.newest(t, bound.reads)
        ks, near, _, _ = self._evaluate(bound, record, t, t_next, y, dense, near, strict=False)
        a, c = table.tensors(y.dtype)
        outputs = tf.constant(table.outputs, y.dtype)
        given = tf.stack([y1_bar, *tf.split(dense_bar, table.outputs.shape[1] - 1, axis=1)])
        h = (t_next - t)[:, None]
        captured, variables = field.captures, list(field.variables)
        parameters = list(theta[: len(theta) - len(captured)])
        read = [record.times, record.y, record.dense]

        def stage(i, later, own, totals, near):
            time, argument = _argument(a, c, i, t, t_next, y, ks)
            inner = [time, argument, t, t_next, y, dense]
            sources = [*inner, *read, *parameters, *captured, *variables]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                past = Past(record, t, t_next, y, dense, near, strict=False)
                with field.seeing(past):
                    k = bound(time, argument)
            weights = _sum(tf.gather(outputs, i), given) + _sum(tf.gather(a, i, axis=1), later)
            bars = tape.gradient(k, sources, output_gradients=h * weights)
            time_bar, argument_bar, *direct = add_bars([tf.zeros_like(x) for x in inner], bars[:6])
            share, h_bar = tf.gather(c, i), tf.reduce_sum(tf.gather(ks, i) * weights, axis=1)
            own = [total + bar for total, bar in zip(own, direct, strict=True)]
            own[0] += (1.0 - share) * time_bar - h_bar
            own[1] += share * time_bar + h_bar
            own[2] += argument_bar
            theta_bar, variables_bar, read_bar = totals
            n = 9 + len(theta)
            totals = (
                add_bars(theta_bar, bars[9:n]),
                add_bars(variables_bar, bars[n:]),
                add_bars(read_bar, bars[6:9]),
            )
            return i - 1, _put(later, i, argument_bar), own, totals, past.near

        own = [tf.zeros_like(t), tf.zeros_like(t_next), y1_bar, tf.zeros_like(dense)]
        loop = (tf.constant(len(table.c) - 1), tf.zeros_like(ks), own, totals, near)
        _, _, own, totals, _ = tf.while_loop(lambda i, *_: i >= 0, stage, loop)
        return own, totals


class _Pass(NamedTuple):
    """One pass of the iteration for a step.

    Attributes:
        found: its interpolant, its end and its error estimate.
        near: the records found last.
        inside: `(rows,)` booleans, whether the step read itself.
        early: the same, whether it read ahead.
        trouble: `(rows,)`, 0, or the `Status` code of what an implicit method could not solve.
        count: `(rows,)` evaluations of the field.
    """

    found: tuple
    near: list
    inside: tf.Tensor
    early: tf.Tensor
    trouble: tf.Tensor
    count: tf.Tensor


class _Table:
    """A Butcher table as dense arrays, the stages of the interpolant included.

    Attributes:
        c: `(stages,)`.
        a: `(stages, stages)`.
        outputs: `(stages, 1 + degree)`, the weights of the stages in y1 and in Q_1, Q_2, ...
    """

    def __init__(self, table):
        c_extra, a_extra, dense = table.interpolant()
        self.c = np.array([*table.c, *c_extra], float)
        self.a = np.zeros((len(self.c), len(self.c)))
        for row, weights in zip(self.a, (*table.a, *a_extra), strict=True):
            row[: len(weights)] = [float(weight) for weight in weights]
        self.outputs = np.zeros((len(self.c), 1 + len(dense[0])))
        self.outputs[: len(table.b), 0] = [float(weight) for weight in table.b]
        for row, weights in zip(self.outputs, dense, strict=False):
            row[1:] = [float(weight) for weight in weights]

    def tensors(self, dtype):
        return tf.constant(self.a, dtype), tf.constant(self.c, dtype)


def _sum(weights, vectors):
    """Σ w_i v_i for `(n,)` weights and `(n, rows, width)` vectors."""
    return tf.reduce_sum(weights[:, None, None] * vectors, axis=0)


def _argument(a, c, i, t, t_next, y, ks):
    """The time and the state at which stage `i` evaluates the field."""
    share = tf.gather(c, i)
    time = tf.where(tf.equal(share, 1.0), t_next, t + share * (t_next - t))
    return time, y + (t_next - t)[:, None] * _sum(tf.gather(a, i), ks)


def add_bars(totals, bars):
    """Sums of cotangents; what a tape returns may be missing or sparse."""

    def add(total, bar):
        if bar is None:
            return total
        if isinstance(bar, tf.IndexedSlices):
            return tf.tensor_scatter_nd_add(total, bar.indices[:, None], bar.values)
        bar = total + bar
        bar.set_shape(total.shape)
        return bar

    return [add(total, bar) for total, bar in zip(totals, bars, strict=True)]


def _is_small(tolerances, y, old, new, noise):
    """Whether the interpolants differ by less than matters, `(rows,)` booleans.

    That is a part of the tolerance, or `noise` rounding errors.
    """
    width, dtype = y.shape[1], y.dtype
    eps = float(np.finfo(dtype.as_numpy_dtype).eps)
    change = tf.add_n(tf.split(tf.abs(new - old), old.shape[1] // width, axis=1))
    size = tf.abs(y) + tf.add_n(tf.split(tf.abs(new), old.shape[1] // width, axis=1))
    limit = noise * eps * size
    if tolerances is not None:
        rtol, atol = tolerances
        limit += _CONVERGED * (atol + rtol * tf.abs(y))
    # A NaN is not improved by another pass either; it fails as such.
    return ~tf.reduce_any(change > limit, axis=1)


def _put(buffer, index, value):
    """`buffer` with row `index` replaced."""
    return tf.tensor_scatter_nd_update(buffer, tf.reshape(index, [1, 1]), value[None])
