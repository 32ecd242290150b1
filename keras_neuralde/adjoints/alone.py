"""The discrete adjoint of a trajectory alone: forwards and backwards in numbers.

See `passing.Alone` for what its turns leave behind.
"""

import dataclasses

import tensorflow as tf

from keras_neuralde import components, passing
from keras_neuralde.adjoints.backward import Backward
from keras_neuralde.integrate import begin, finish


def columns_alone(task, field, y0, terms):
    """The `Columns` of the parameters, where the turns of one trajectory are numbers; else `None`.

    It is asked once: the way back may be traced where nobody knows that XLA will compile it.
    """
    if not passing.is_alone(y0):
        return None
    plan = dataclasses.replace(task.plan, repeats=True)
    if not passing.pays(plan, field.bind(field.theta), y0, terms.saves):
        return None
    return components.columns_of(field, y0, field.theta)


class TurnsAlone:
    """The same for a trajectory alone, see `passing.Alone`."""

    def __init__(self, plan, g, terms):
        self.plan, self.g, self.terms = plan, g, terms
        self.alone = passing.Alone(plan, g, terms)

    def start(self, y0):
        block, states = self.alone.start(*begin(self.plan, self.g, y0, self.terms))
        return block, tf.zeros((self.plan.segment + 1, self.alone.numbers), y0.dtype), states

    def is_running(self, block):
        return self.alone.is_running(block)

    def run(self, block, ring, states):
        block, states, ring, turns = self.alone.run(block, states, ring)
        return block, ring, turns, states

    def rerun(self, block, ring, known, flags):
        flags = tf.stack(flags)[:, :, 0]
        block, _, ring, turns = self.alone.run(block, (), ring, (known, flags))
        return block, ring, turns

    def end(self, block, states):
        carry, outputs = self.alone.end(block, states)
        return finish(self.plan, carry, outputs, self.terms)

    def flags(self, ring, turns):
        return [flag[:, None] for flag in tf.unstack(self.alone.flags(ring, turns))]


class BackwardAlone(Backward):
    """The same for a trajectory alone: a turn backwards is one kernel, save points included."""

    turns_of = TurnsAlone

    def __init__(self, columns, *arguments):
        super().__init__(*arguments)
        self.columns = columns

    def _walk_back(self, ring, turns, walk, theta, y_bar, save_rate):
        width = int(walk.y_bar.shape[1])
        alone = passing.Alone(self.plan, self.field.bind(theta), self.terms)
        sent = None
        if self.plan.saves:
            # What the states at the save points, and their times, have sent.
            sent = y_bar[:, 0]
            if self.time_gradient:
                sent = tf.concat([sent, save_rate], axis=1)
            sent = tf.pad(sent, [[0, 1], [0, 0]])
        parts = [walk.y_bar[0], walk.t_bar, walk.t_end_bar, walk.t_next]
        parts += [tf.reshape(leaf, [-1]) for leaf in walk.theta_bar]
        loop = (turns - 1, tf.concat(parts, axis=0))

        def one_turn(turn, block):
            before, after = passing.row_of(ring, turn), passing.row_of(ring, turn + 1)
            numbers = self._reverse_alone(alone, before, after, sent, block, theta)
            return turn - 1, tf.stack(components.together(numbers))

        _, block = tf.while_loop(lambda turn, _: turn >= 0, one_turn, loop)
        y_bar, t_bar, t_end_bar, t_next, totals = tf.split(block, [width, 1, 1, 1, -1])
        return walk._replace(
            y_bar=y_bar[None],
            t_bar=t_bar,
            t_end_bar=t_end_bar,
            t_next=t_next,
            theta_bar=self.columns.join(tf.unstack(totals)),
        )

    def _reverse_alone(self, alone, before, after, sent, block, theta):
        """One turn backwards, from the records before and after it; all in numbers."""
        width = self.field.size
        t, number, *ys = before
        t_after, number_after, *_ = after
        took, moved = number_after != number, t_after != t
        *y_bar, later, end, step_end = tf.unstack(block[: width + 3])
        # A step that is taken once more ends where the one that moves on does.
        step_end = tf.where(moved, t_after, step_end)
        t_next = tf.where(moved | took, step_end, t)
        zero = tf.zeros_like(t)
        # Where it did not move on, the step was taken for its save points only.
        given, waiting = [tf.where(moved, x, zero) for x in y_bar], tf.where(moved, later, zero)
        direct, dense, times = [a - b for a, b in zip(y_bar, given, strict=True)], [], [zero, zero]
        if self.plan.saves:
            add, dense, times = self._saved_alone(alone, t, t_next, number, took, sent)
            direct = [a + b for a, b in zip(direct, add, strict=True)]
        pulled = self.plan.solver.pull_by_components(
            self.field, self.columns, t, t_next, ys, self.columns.parameters(theta),
            [given, *dense],
            self.time_gradient,
        )  # fmt: skip
        step_times, y_bar, totals = pulled
        y_bar = [a + b for a, b in zip(y_bar, direct, strict=True)]
        totals = [a + b for a, b in zip(tf.unstack(block[width + 3 :]), totals, strict=True)]
        if self.time_gradient:
            # The step keeps its size, so what moves its end moves its start, unless it was cut.
            at_end = waiting + step_times[1] + times[1]
            cut = (t_next == self.terms.t_end[0]) & (t_next != t)
            end += tf.where(cut, at_end, zero)
            later += step_times[0] + times[0] + tf.where(cut, zero, at_end) - waiting
        return [*y_bar, later, end, step_end, *totals]

    def _saved_alone(self, alone, t, t_next, number, took, sent):
        """What a save point sends to its step: to the start, the interpolant, and the times."""
        bar = passing.row_of(sent, tf.cast(number, tf.int32))
        zero = tf.zeros_like(t)
        bar = [tf.where(took, x, zero) for x in bar]
        inverse = 1.0 / tf.where(t_next != t, t_next - t, zero + 1.0)
        fraction = tf.where(took, (alone.time_of(number) - t) * inverse, zero)
        times = [zero, zero]
        if self.time_gradient:
            rate = bar.pop()
            times = [rate * (fraction - 1.0), -rate * fraction]
        dense = [[x * fraction for x in bar]]
        for _ in range(self.plan.solver.dense_degree() - 1):
            dense.append([x * fraction for x in dense[-1]])
        return bar, dense, times
