"""One step of an implicit method through a delay equation, and its gradient.

The method itself is the one for ordinary equations: while it steps, its field reads the past.
"""

import tensorflow as tf

from keras_neuralde.history import Past


def propose(inner, g, t, t_next, y, dense):
    """A step whose field sees `dense` as the step's own interpolant.

    Args:
        inner: the implicit method.
        g: the `BoundDelay`.
        t: `(rows,)`, where the step starts.
        t_next: where it ends.
        y: `(rows, width)`.
        dense: `(rows, degree * width)`.

    Returns:
        The `Step` and the flags `inside` and `ahead` of `Past`.
    """
    # New tensors: what the step reads of itself is no part of the Jacobian.
    start, end, at_start, own = (tf.identity(tensor) for tensor in (t, t_next, y, dense))

    def past():
        return Past(g.record, start, end, at_start, own, g.record.newest(t, g.reads))

    seen = past()
    with g.seeing(seen):
        proposal = inner.step(g, t, t_next, y, inner.init(g, t, y), True)
    if seen.inside is not None:
        return proposal, seen.inside, seen.ahead
    # What a Newton iteration reads can raise no flag outside of its loop: what it ended on can.
    inside, ahead = tf.zeros_like(t, tf.bool), seen.ahead
    for time, state in _nodes(inner, t, t_next, y, proposal.dense):
        look = past()
        with g.seeing(look):
            # The outcome is of no use, and the compiler drops it.
            g(time, state)
        inside |= tf.constant(True) if look.inside is None else look.inside
        ahead |= look.ahead
    return proposal, inside, ahead


def _nodes(inner, t, t_next, y, dense):
    """Times and states at which the stages of a step evaluate the field, from its interpolant."""
    table = inner.tableau
    nodes = sorted({float(c) for c in getattr(table, "alpha", None) or table.c})
    parts = tf.split(dense, dense.shape[1] // y.shape[1], axis=1)
    for node in nodes:
        value = tf.zeros_like(y)
        for part in reversed(parts):
            value = (value + part) * node
        yield (tf.identity(t_next) if node == 1 else t + node * (t_next - t)), y + value


class RecordedField:
    """The field of one recorded step, whose past is among its differentiable tensors.

    Args:
        field: the `DelayField`.
        record: the `Record` that the step read.
        own: `(t, t_next, y, dense)` of the step, as its field reads them.
    """

    def __init__(self, field, record, own):
        self._field, self._record, self._own = field, record, own
        self.variables = field.variables

    @property
    def past(self):
        """The tensors of the past: those of the step, and those of the record."""
        return [*self._own, self._record.times, self._record.y, self._record.dense]

    @property
    def captures(self):
        return [*self._field.captures, *self.past]

    def __call__(self, t, y, theta):
        with self._seeing():
            return self._field(t, y, theta[: -len(self.past)])

    def bind(self, theta):
        return _BoundRecorded(self, self._field.bind(theta[: -len(self.past)]))

    def _seeing(self):
        t, t_next, y, dense = self._own
        near = self._record.newest(t, self._field.reads)
        return self._field.seeing(Past(self._record, t, t_next, y, dense, near, strict=False))


class _BoundRecorded:
    """A `RecordedField` for given parameters: what implicit methods ask of a field."""

    def __init__(self, recorded, bound):
        self._recorded, self._bound = recorded, bound
        self.implicit, self.size = bound.implicit, bound.size
        self.split, self.join, self.joint = bound.split, bound.join, bound.joint

    def __call__(self, t, y):
        return self._see(self._bound, t, y)

    def linearise(self, t, y):
        return self._see(self._bound.linearise, t, y)

    def rate(self, t, y):
        return self._see(self._bound.rate, t, y)

    def push(self, t, y, direction):
        return self._see(self._bound.push, t, y, direction)

    def pull(self, t, y, weights):
        return self._see(self._bound.pull, t, y, weights)

    def _see(self, function, *arguments):
        with self._recorded._seeing():
            return function(*arguments)


def recorded_vjp(inner, field, record, t, t_next, y, dense, theta, y1_bar, dense_bar, totals):
    """The vector-Jacobian product of a recorded step; see `MethodOfSteps.recorded_vjp`."""
    own = [tf.identity(tensor) for tensor in (t, t_next, y, dense)]
    record = record._replace(
        times=tf.identity(record.times), y=tf.identity(record.y), dense=tf.identity(record.dense)
    )
    recorded = RecordedField(field, record, own)
    bars = inner.step_vjp(recorded, t, t_next, y, [*theta, *recorded.past], y1_bar, dense_bar, True)
    t_bar, t_next_bar, y_bar, theta_bar, variables_bar = bars
    theta_bar, own_bar, read_bar = theta_bar[:-7], theta_bar[-7:-3], theta_bar[-3:]
    below = [
        t_bar + own_bar[0], t_next_bar + own_bar[1], y_bar + own_bar[2], own_bar[3],
    ]  # fmt: skip
    found = (theta_bar, variables_bar, read_bar)
    totals = [
        [total + bar for total, bar in zip(group, bars, strict=True)]
        for group, bars in zip(totals, found, strict=True)
    ]
    return below, tuple(totals)
