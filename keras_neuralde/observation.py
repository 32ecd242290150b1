"""Solves watched from outside: what is solved inside a model, with its statistics."""

import contextlib
import threading

import tensorflow as tf


class _Local(threading.local):
    seen: "list | None" = None


_local = _Local()


@contextlib.contextmanager
def observe():
    """Collects the solutions of all eager solves made inside; failures do not raise.

    Yields:
        A list of pairs `(place, solution)`; the place is the name scope of the call, which ends
        with the name of the Keras layer that made it.

    Example:

    >>> import keras_neuralde as nde
    >>> with observe() as seen:
    ...     sol = nde.solve(nde.ODEProblem(lambda t, y, p: -y, 1.0, (0.0, 1.0)))
    >>> len(seen), seen[0][1] is sol
    (1, True)
    """
    before, _local.seen = _local.seen, []
    try:
        yield _local.seen
    finally:
        _local.seen = before


def watched():
    """Whether somebody watches; in a graph the numbers of a solution are not known."""
    return _local.seen is not None and tf.executing_eagerly()


def tell(solution):
    """Notes a solution and says whether somebody watches."""
    seen = _local.seen
    if seen is None or not watched():
        return False
    seen.append((tf.get_current_name_scope(), solution))
    return True
