"""Step sequences held still: a solve inside a function takes the steps of an earlier evaluation.

An adaptive solve is a rough function of its inputs: when they change, an attempt that was accepted
is now rejected, and the result jumps by as much as the tolerance allows. A line search sees those
jumps. Recording the steps of every solve at one point and taking them again at the others makes
the function smooth between them.
"""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from keras_neuralde.checks import check_function


class _Local(threading.local):
    active: "Recording | None" = None


_local = _Local()


class Recording:
    """The steps of the solves of one evaluation, in the order of their calls.

    Args:
        steps: what to replay; `None` to record.

    Attributes:
        replays: whether solves take their steps from here.
    """

    def __init__(self, steps=None):
        self.replays = steps is not None
        self.steps = list(steps or ())
        self._given = 0

    def take(self, steps):
        """Notes the steps of a solve."""
        self.steps.append(steps)

    def give(self):
        """The steps for the next solve."""
        if self._given == len(self.steps):
            raise ValueError(
                "a function with frozen steps must make the same solves every time it is called. "
                f"Received: more than the {len(self.steps)} solves that were recorded"
            )
        self._given += 1
        return self.steps[self._given - 1]


def active():
    """The recording that solves must heed, or `None`."""
    return _local.active


@contextlib.contextmanager
def _use(recording):
    before, _local.active = _local.active, recording
    try:
        yield recording
    finally:
        _local.active = before


def freeze(function: Callable, *arguments: Any) -> Callable:
    """A function with the step sequences of its solves held at those of one evaluation.

    Args:
        function: any function that calls `solve`, directly or in layers.
        *arguments: where to record.

    Returns:
        A function of the same arguments.

    Example:

    >>> import tensorflow as tf, keras_neuralde as nde
    >>> def end(p):
    ...     return nde.solve(nde.ODEProblem(lambda t, y, p: -p * y, 1.0, (0.0, 1.0), p)).y
    >>> smooth = freeze(end, tf.constant(1.0))
    >>> abs(float(smooth(tf.constant(1.1))) - 0.332871) < 1e-3
    True
    """
    check_function("function", function, "that calls `solve`")
    recording = Recording()
    with _use(recording):
        function(*arguments)

    def frozen(*arguments):
        with _use(Recording(recording.steps)):
            return function(*arguments)

    return frozen
