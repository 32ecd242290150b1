"""What a served request says to the layers of a model, past the model's own inputs.

A model passes its inputs on to its layers, but no save times and no seeds that it was not built
for. An exported signature takes them as inputs of its own and puts them here while it is traced.
"""

import contextlib
import contextvars
from typing import Any, NamedTuple

import tensorflow as tf

from keras_neuralde.execution import without_gradients


class Request(NamedTuple):
    """What holds for the layers of a model during one call.

    Whatever it holds, a row's noise depends on that row alone, and not on its place in the batch:
    servers put the requests of strangers into one batch.

    Attributes:
        layers: the outermost layers with differential equations; no other listens.
        times: save times `(batch, n)`, padded with NaN; `None` for the layers' own.
        seed: int32, `(batch,)` for a seed of each row, or a scalar for a batch that is one request
            and whose rows differ by their place; `None` for the layers' own.
    """

    layers: tuple
    times: Any = None
    seed: Any = None


_current: contextvars.ContextVar = contextvars.ContextVar("request", default=None)


def of(layer):
    """The `Request` that holds for a layer, or `None`."""
    request = _current.get()
    listens = request is not None and any(one is layer for one in request.layers)
    return request if listens else None


@contextlib.contextmanager
def serving(request):
    """A scope in which the layers of a model are called for a request."""
    token = _current.set(request)
    try:
        with without_gradients():
            yield
    finally:
        _current.reset(token)


def seeds(request, layer, rows, own, trajectories):
    """The noise of a stochastic layer.

    Args:
        request: the `Request`.
        layer: the layer.
        rows: how many rows the batch has.
        own: the words of the layer's own seed, `(2,)` int32.
        trajectories: how many paths there are for a row.

    Returns:
        Seeds `(rows * trajectories, 2)` and numbers `(rows * trajectories,)` of the trajectories.
    """
    within = tf.tile(tf.range(trajectories), [rows])
    if request.seed is None:
        return tf.tile(own[None], [rows * trajectories, 1]), within
    given = tf.cast(tf.convert_to_tensor(request.seed), tf.int32)
    each = tf.broadcast_to(tf.reshape(given, [-1]), [rows])
    stochastic = [one for one in request.layers if hasattr(one, "seed_generator")]
    # Layers of one model have different noise; the first has that of `layer(y0, seed=seed)`.
    place = next(place for place, one in enumerate(stochastic) if one is layer)
    words = tf.repeat(tf.stack([each, tf.fill([rows], place)], axis=1), trajectories, axis=0)
    return words, tf.where(tf.rank(given) == 0, tf.range(rows * trajectories), within)
