"""The affects of what happened, and the numbers that functions of a trajectory return."""

import tensorflow as tf


def number_of(g, function, t, y):
    """What a lifted scalar function of a trajectory returns, `(rows,)`."""
    return tf.reshape(g.evaluate(function, t, y), [y.shape[0] or -1])


def rows_of(now):
    """For each row the row whose state a function sees that matters only where `now`.

    Other rows take the place of one that matters: elsewhere the function may have no derivative.
    """
    row = tf.argmax(tf.cast(now, tf.int32), output_type=tf.int32)
    return tf.where(now | ~tf.reduce_any(now), tf.range(tf.shape(now)[0]), row)


class Affects:
    """What the channels do to a state.

    Args:
        channels: the `Channel`s.
        draws: the `Draws`.
    """

    def __init__(self, channels, draws):
        self._channels, self._draws = channels, draws

    def apply(self, g, t, y, fired, number):
        """The affects of what happened, one after the other.

        Args:
            g: the field, whose `evaluate` calls lifted functions.
            t: `(rows,)`.
            y: `(rows, width)`.
            fired: `(channels, rows)` int32.
            number: `(rows,)`, the counter of random numbers.

        Returns:
            The state after, and the states before each channel's affect, `(channels, rows,
            width)`.
        """
        states = []
        for e, channel in enumerate(self._channels):
            states.append(y)
            if channel.affect is not None:
                now = fired[e] > 0
                at = rows_of(now)
                changed = self.changed(g, e, tf.gather(t, at), tf.gather(y, at), number)
                y = tf.where(now[:, None], changed, y)
        return y, tf.stack(states)

    def changed(self, g, e, t, y, number):
        """The states after the affect of channel `e`."""
        channel, extra = self._channels[e], []
        if channel.uniforms:
            # The first two numbers decide when, the others what.
            extra = [self._draws.uniforms(e, number, 2 + channel.uniforms, t.dtype)[:, 2:]]
        return g.pack(g.evaluate(channel.affect, t, y, *extra))
