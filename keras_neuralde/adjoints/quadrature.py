"""The quadrature adjoint: λ is recorded, and the integral over the parameters taken afterwards."""

import dataclasses

import tensorflow as tf

from keras_neuralde.adjoints.interpolating import Interpolating
from keras_neuralde.integrate import Ring
from keras_neuralde.save_points import write_all


@dataclasses.dataclass(frozen=True)
class Quadrature(Interpolating):
    """The continuous adjoint along the interpolated solution, parameters last.

    As `Interpolating`, with λ on record too: the backward solve does no work for the parameters,
    and only accepted steps are visited for the integral.

    Args:
        rtol: relative tolerance of the backward solve; that of the forward one by default.
        atol: absolute tolerance likewise.
        nodes: Gauss-Legendre points per step for the integral over the parameters.
    """

    name = "quadrature"

    def sweep_back(self, sweep, y_bar, max_record):
        adjoint = tf.zeros_like(sweep.y0)
        degree = sweep.plan.solver.dense_degree()

        def room(x):
            return tf.zeros(tf.concat([[max_record], tf.shape(x)], 0), x.dtype)

        times = tf.stack([sweep.terms.t0, sweep.terms.t0])
        ring = Ring(room(times), room(adjoint), room(tf.tile(adjoint, [1, degree])))

        def listener(memory, *record):
            count, ring = memory
            # Turns that no row accepted leave nothing to integrate.
            taken = tf.reduce_any(record[0][0] != record[0][1])
            at = tf.minimum(count, max_record - 1)
            ring = write_all(ring, at, Ring(*record))
            return count + tf.cast(taken, tf.int32), ring

        adjoint, (count, ring) = sweep.run(y_bar, listener, (tf.constant(0), ring))

        def add(turn, totals):
            record = tf.nest.map_structure(lambda buffer: tf.gather(buffer, turn), ring)
            return turn + 1, tf.nest.map_structure(
                tf.add, totals, sweep.integral(record.times, record.y, record.dense)
            )

        held = tf.minimum(count, max_record)
        loop = (tf.constant(0), sweep.zeros())
        _, totals = tf.while_loop(lambda turn, _: turn < held, add, loop)
        # A record that was too short must not pass for the whole.
        nan = tf.constant(float("nan"), adjoint.dtype)
        totals = tf.nest.map_structure(lambda x: tf.where(count > max_record, nan, x), totals)
        return sweep.gradient(adjoint, y_bar, totals)
