"""Equal steps are known by their numbers: they can be walked backwards without a record."""

import tensorflow as tf

from keras_neuralde.controllers import Constant
from keras_neuralde.integrate import ACCEPTED, STATUS
from keras_neuralde.solution import Status


class Grid:
    """The times of a finished solve with equal steps.

    Rows that failed rest at their start.

    Args:
        terms: the `Terms` of the solve.
        control: its control block at the end.

    Attributes:
        failed: `(rows,)` booleans.
        turns: a scalar, the most steps that a row took.
    """

    def __init__(self, terms, control):
        self._terms = terms
        self.failed = control[STATUS] != float(Status.SUCCESS)
        self._count = tf.where(self.failed, tf.zeros_like(terms.t0), control[ACCEPTED])
        self._end = tf.where(self.failed, terms.t0, terms.t_end)
        self.turns = tf.cast(tf.reduce_max(self._count), tf.int32)

    def step(self, number):
        """Where a step begins and ends, both `(rows,)`; equal in rows that rest."""
        return self._time(number), self._time(number + 1)

    def _time(self, number):
        # The formula of the loop, to the last bit: noise belongs to the times.
        terms, number = self._terms, tf.cast(number, self._end.dtype)
        along = terms.t0 + terms.direction * (number * terms.dt0)
        return tf.where(number < self._count, along, self._end)


def check_grid(name, plan):
    """Refuses plans whose steps are not known by their numbers."""
    if not isinstance(plan.controller, Constant):
        raise ValueError(
            f"adjoint={name!r} walks equal steps backwards: give dt0 and controller='constant', or "
            f"use adjoint='discrete'. Received: controller={plan.controller!r}"
        )
    if plan.stops:
        raise ValueError(
            f"adjoint={name!r} walks equal steps backwards, so save points must be known to lie on "
            "the grid of dt0: give t_span, dt0 and saveat as numbers that fit, or use "
            "adjoint='discrete'."
        )
