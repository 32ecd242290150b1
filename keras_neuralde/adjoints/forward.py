"""Forward mode: derivatives along a few directions, carried with the solution.

The same numbers as the discrete adjoint's: the derivative of the computed solution with its
accepted steps held fixed. Every turn of the loop is followed by the Jacobian-vector products of its
step along each direction: the state's components, the scalars of the parameters, and the times.
Memory does not grow with the steps; cost grows with the directions.
"""

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from keras_neuralde.adjoints.base import Adjoint, differentiable
from keras_neuralde.integrate import (
    Ring,
    any_running,
    empty_ring,
    finish,
    run_segment,
    start,
)
from keras_neuralde.passing import integrate
from keras_neuralde.save_points import at_start, first_outputs, flush, write

_SEGMENT = 32


@dataclasses.dataclass(frozen=True)
class Forward(Adjoint):
    """The exact gradient of the computed solution by forward mode, for few parameters.

    Costs about one step for each scalar in y0 (of one trajectory) and in the parameters, whatever
    the number of save points. A Jacobian of many outputs costs no more than a gradient.
    """

    name = "forward"

    def integrate(self, task, field, y0, terms):
        slopes = task.plan.saves and task.time_gradient
        plan = dataclasses.replace(task.plan, segment=_SEGMENT, save_slopes=slopes)

        def forward(bound, g, y0):
            return _forward(plan, field, bound, y0, task.time_gradient)

        def primal(bound, g, y0):
            outcome = integrate(task.plan, g, y0, bound)
            return outcome.y, outcome.control

        def backward(memory, bound, theta, y_bar):
            outcome, sensitivity = memory
            return _contract(field, bound, theta, y_bar, outcome, sensitivity, task.time_gradient)

        return differentiable(self.name, task, field, y0, terms, forward, primal, backward)


class _Directions(NamedTuple):
    """What moves along each of the `count` directions, stacked on the first axis.

    Attributes:
        y0: `(count, rows, width)`.
        parameters: one `(count, *shape)` for each parameter, captured tensor and variable.
        t0: `(count,)`, 1 where the start moves.
        t_end: `(count,)`, 1 where the end moves.
    """

    y0: tf.Tensor
    parameters: list
    t0: tf.Tensor
    t_end: tf.Tensor


def _directions(y0, parameters, time_gradient):
    """One direction for each component of a row, each parameter scalar, and the two times."""
    width = y0.shape[1] or tf.shape(y0)[1]
    sizes = [width, *(tf.size(parameter) for parameter in parameters)]
    count = tf.add_n([tf.convert_to_tensor(size) for size in sizes]) + 2 * int(time_gradient)
    units = tf.eye(count, dtype=y0.dtype)
    blocks, offset = [], 0
    for size in sizes:
        blocks.append(units[:, offset : offset + size])
        offset += size
    zero = tf.zeros_like(units[:, 0])
    return _Directions(
        blocks[0][:, None, :] + tf.zeros_like(y0),
        [
            tf.reshape(block, tf.concat([[count], tf.shape(parameter)], 0))
            for block, parameter in zip(blocks[1:], parameters, strict=True)
        ],
        units[:, offset] if time_gradient else zero,
        units[:, offset + 1] if time_gradient else zero,
    )


def _forward(plan, field, terms, y0, time_gradient):
    """`(outputs, memory)`: the integration, and the sensitivity of what it returns."""
    theta = field.theta
    parameters = [*theta, *(tf.convert_to_tensor(variable) for variable in field.variables)]
    directions = _directions(y0, parameters, time_gradient)
    carry = start(plan, field.bind(theta), y0, terms)
    ring = empty_ring(plan, carry, plan.segment)
    tangent = directions.y0
    size, degree = plan.segment, plan.solver.dense_degree()
    outputs: Any = ()
    sensitivity: Any = ()
    moved: Any = ()
    if plan.saves:
        outputs = first_outputs(plan, field.bind(theta), y0, terms)
        at_rest = tangent
        if time_gradient:
            at_rest -= directions.t0[:, None, None] * field(terms.t0, y0, theta)
        at_rest = _by_row(at_rest)
        sensitivity = tf.where(at_start(terms)[:, :, None], at_rest, tf.zeros_like(at_rest))
        dense = tf.tile(at_rest, [1, degree])
        moved = Ring(ring.times, *(tf.tile(x[None], [size, 1, 1]) for x in (at_rest, dense)))
    without_slopes = dataclasses.replace(plan, save_slopes=False)

    def turn_segment(carry, ring, tangent, moved, outputs, sensitivity):
        carry, ring, turns = run_segment(plan, field.bind(theta), terms, carry, ring)

        def push(turn, tangent, moved):
            times, y = tf.gather(ring.times, turn), tf.gather(ring.y, turn)
            step = _StepTangent(plan, field, terms, theta, times[0], times[1], y, time_gradient)
            pushed, read_y, read_dense = step(directions, tangent)
            if plan.saves:
                dense = tf.reshape(
                    read_dense, [*_shape(y)[:1], degree * _shape(_by_row(read_y))[1]]
                )
                row = Ring(times, _by_row(read_y), dense)
                moved = tf.nest.map_structure(lambda b, v: write(b, turn, v), moved, row)
            return turn + 1, pushed, moved

        zero = tf.constant(0)
        _, tangent, moved = tf.while_loop(
            lambda turn, *_: turn < turns, push, (zero, tangent, moved)
        )
        if plan.saves:
            outputs = flush(plan, terms, ring, turns, outputs)
            sensitivity, _ = flush(without_slopes, terms, moved, turns, (sensitivity, ()))
        return carry, ring, tangent, moved, outputs, sensitivity

    loop = (carry, ring, tangent, moved, outputs, sensitivity)
    carry, _, tangent, _, outputs, sensitivity = tf.while_loop(
        lambda carry, *_: any_running(carry.control), turn_segment, loop
    )
    outcome = finish(plan, carry, outputs)
    sensitivity = sensitivity if plan.saves else _by_row(tangent)
    return (outcome.y, outcome.control), (outcome, sensitivity)


class _StepTangent:
    """The derivative of one turn along all directions."""

    def __init__(self, plan, field, terms, theta, t, t_next, y, time_gradient):
        self.plan, self.field, self.theta = plan, field, theta
        self.t, self.t_next, self.y = t, t_next, y
        self.time_gradient = time_gradient
        # A step keeps its size, so its end moves with its start, unless it was cut at the end.
        self.cut = (t_next == terms.t_end) & (t_next != t)

    def __call__(self, directions, tangent):
        """Pushes `tangent`, `(count, rows, width)`, through the turn.

        Returns:
            The tangent after it, and the tangents of the state before and of the interpolation
            coefficients `(rows, degree, count, width)`, for reading at a time that stands still.
        """
        t_dot = directions.t0[:, None] + tf.zeros_like(self.t)
        end_dot = tf.where(self.cut, directions.t_end[:, None], t_dot)
        pushed, dense_dot = tf.vectorized_map(
            lambda one: self._along(*one), (t_dot, end_dot, tangent, directions.parameters)
        )
        if not self.plan.saves:
            return pushed, (), ()
        if not self.time_gradient:
            return pushed, tangent, self._by_degree(dense_dot)
        return pushed, *self._at_standing_times(t_dot, end_dot, tangent, dense_dot)

    def _along(self, t_dot, end_dot, y_dot, parameters_dot):
        field, theta = self.field, self.theta
        captures = field.captures
        primals = [self.y, *theta[: len(theta) - len(captures)], *captures, *field.variables]
        tangents = [y_dot, *parameters_dot]
        if self.time_gradient:
            primals, tangents = [self.t, self.t_next, *primals], [t_dot, end_dot, *tangents]
        with tf.autodiff.ForwardAccumulator(primals, tangents) as accumulator:
            y1, dense = self.plan.solver.advance(
                field.bind(theta), self.t, self.t_next, self.y, self.plan.saves
            )
        zero = tf.UnconnectedGradients.ZERO
        y1_dot = accumulator.jvp(y1, unconnected_gradients=zero)
        if not self.plan.saves:
            return y1_dot, y1_dot
        return y1_dot, accumulator.jvp(dense, unconnected_gradients=zero)

    def _by_degree(self, dense_dot):
        """`(count, rows, degree * width)` → `(rows, degree, count, width)`."""
        count, rows, _ = _shape(dense_dot)
        degree = self.plan.solver.dense_degree()
        return tf.transpose(tf.reshape(dense_dot, [count, rows, degree, -1]), [1, 2, 0, 3])

    def _at_standing_times(self, t_dot, end_dot, tangent, dense_dot):
        """The tangents of the interpolant's coefficients when θ moves too, because the step does.

        At a fixed time, θ' = -(t' + θ (t_next' - t')) / h; its product with Σ m Q_m θ^(m-1) is a
        polynomial of the same degree.
        """
        plan, t, t_next, y = self.plan, self.t, self.t_next, self.y
        _, dense = plan.solver.advance(self.field.bind(self.theta), t, t_next, y, True)
        degree = plan.solver.dense_degree()
        q = [*tf.split(dense, degree, axis=1), tf.zeros_like(y)]
        h = tf.where(t_next != t, t_next - t, 1.0)
        start_rate = (t_dot / h)[:, :, None]
        stretch = ((end_dot - t_dot) / h)[:, :, None]
        tangent -= start_rate * q[0]
        parts = [
            (m + 1.0) * start_rate * q[m] + float(m) * stretch * q[m - 1]
            for m in range(1, degree + 1)
        ]
        return tangent, self._by_degree(dense_dot - tf.concat(parts, axis=2))


def _contract(field, terms, theta, y_bar, outcome, sensitivity, time_gradient):
    """The cotangents of all inputs from those of the states and the sensitivities."""
    saves = terms.saves is not None
    y_bar = tf.where(tf.math.is_finite(outcome.y), y_bar, tf.zeros_like(y_bar))
    if not saves:
        y_bar, sensitivity = y_bar[None], sensitivity[None]
    times, rows, width = _shape(y_bar)
    by_direction = tf.reshape(sensitivity, [times, rows, -1, width])
    product = tf.math.multiply_no_nan(by_direction, y_bar[:, :, None, :])
    bars = tf.reduce_sum(product, axis=[0, 3])  # (rows, count)
    y0_bar, offset = bars[:, :width], width
    totals = tf.reduce_sum(bars, axis=0)
    parameters_bar = []
    for parameter in (*theta, *field.variables):
        size = tf.size(parameter)
        block = totals[offset : offset + size]
        parameters_bar.append(tf.reshape(block, tf.shape(parameter)))
        offset += size
    t0_bar = t_end_bar = tf.zeros_like(terms.t0)
    saves_bar = tf.zeros((0, 1), y_bar.dtype) if not saves else tf.zeros_like(terms.saves)
    if time_gradient:
        t0_bar, t_end_bar = bars[:, offset], bars[:, offset + 1]
        if saves:
            saves_bar = tf.reduce_sum(y_bar * outcome.slopes, axis=-1)
            if terms.saves.shape[1] == 1 and y_bar.shape[1] != 1:
                saves_bar = tf.reduce_sum(saves_bar, axis=1, keepdims=True)
    count = len(theta)
    return t0_bar, t_end_bar, saves_bar, y0_bar, parameters_bar[:count], parameters_bar[count:]


def _by_row(tangent):
    """`(count, rows, width)` → `(rows, count * width)`."""
    count, rows, width = _shape(tangent)
    return tf.reshape(tf.transpose(tangent, [1, 0, 2]), [rows, count * width])


def _shape(tensor):
    """The shape, static where it is known."""
    dynamic = tf.shape(tensor)
    return [dynamic[i] if size is None else size for i, size in enumerate(tensor.shape)]
