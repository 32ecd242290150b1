"""The random numbers that decide what happens."""

import numpy as np
import tensorflow as tf

from keras_neuralde.brownian import philox

# In the counters of random numbers this word stands where Brownian paths have a component.
_WORD = 0xFFFFFFFF


class Draws:
    """Random numbers by counters.

    Args:
        seed: `(2,)` or `(rows, 2)` int32, or `None` where nothing is random.
        trajectory: `(rows,)` int32.
    """

    def __init__(self, seed, trajectory):
        self._seed, self._trajectory = seed, trajectory

    def uniforms(self, channel, number, count, dtype):
        """Uniform numbers of a channel, `(rows, count)`, each row's from its own counter."""
        seed = tf.transpose(tf.bitcast(tf.reshape(self._seed, (-1, 2)), tf.uint32))
        number, trajectory = (tf.bitcast(x, tf.uint32) for x in (number, self._trajectory))
        zero = tf.zeros_like(number)
        key = seed[0] + zero, seed[1] + zero
        words: list = []
        for block in range(-(-count // 2)):
            place = zero + np.uint32(4096 * channel + block)
            bits = philox(key, (number, place, zero + np.uint32(_WORD), trajectory))
            words += [_uniform(bits[0], bits[1], dtype), _uniform(bits[2], bits[3], dtype)]
        return tf.stop_gradient(tf.stack(words[:count], axis=1))

    def after(self, s, rate, channel, number):
        """Direction times the time of the next event of a Poisson process, `(rows,)`.

        In double precision up to the end: the logarithms of two compilers differ in the last bit,
        and a Brownian path at a time that is later by one bit of a float32, 6e-8, is elsewhere by
        its root, 2e-4.

        Args:
            s: `(rows,)`, direction times the time to wait from.
            rate: `(rows,)`, positive: events per unit of time.
            channel: which of the processes.
            number: `(rows,)` int32, how many draws came before.
        """
        wide = tf.float64
        wait = -tf.math.log(tf.cast(self.uniforms(channel, number, 1, s.dtype)[:, 0], wide))
        # Not at the very time of the last: a step must have a length.
        least = 4.0 * float(np.finfo(s.dtype.as_numpy_dtype).eps) * tf.abs(tf.cast(s, wide))
        later = tf.cast(s, wide) + tf.maximum(wait / tf.cast(rate, wide), least)
        return tf.cast(later, s.dtype)


def _uniform(high, low, dtype):
    """Uniform numbers in (0, 1) from two words of random bits."""
    if dtype == tf.float64:
        return (tf.cast(high, dtype) + (tf.cast(low, dtype) + 0.5) * 2.0**-32) * 2.0**-32
    # One bit less than a float32 holds, so that the half is not rounded up to one.
    bits = tf.bitwise.right_shift(high, tf.constant(9, tf.uint32))
    return (tf.cast(bits, dtype) + 0.5) * 2.0**-23
