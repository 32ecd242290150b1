"""Train steps under a distribution strategy: one place decides, all replicas evaluate.

A closure optimizer runs in cross-replica context. Whenever it asks for the loss and its gradient at
a point, each replica computes them on its share of the batch, and their sums come back. All
decisions of a line search follow from these sums, which are the same everywhere: no replica, and
no worker, can take another step than the rest.
"""

import keras
import tensorflow as tf

from keras_neuralde.programs import as_written

_SYNCHRONOUS = (
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
    tf.distribute.OneDeviceStrategy,
)


def spreads(strategy):
    """Whether there is more than the current device to compute on."""
    return strategy is not None and (strategy.num_replicas_in_sync > 1 or spans_workers(strategy))


def spans_workers(strategy):
    """Whether other processes take part."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def refuse_asynchronous(strategy, name):
    """Refuses strategies whose replicas do not hold the same weights at all times."""
    if spreads(strategy) and not isinstance(strategy, _SYNCHRONOUS):
        raise ValueError(
            f"{name} works on one device, under MirroredStrategy and under "
            f"MultiWorkerMirroredStrategy. Received: {type(strategy).__name__}"
        )


def closure_on_all(strategy, data, make_closure):
    """The loss and its gradient over a batch that is spread over replicas.

    Args:
        strategy: the strategy.
        data: the batch, a nest of per-replica tensors.
        make_closure: `make_closure(data)` → the closure of one replica's share, whose loss Keras
            has divided by the number of replicas.

    Returns:
        `closure(values) -> (loss, gradients)`, for use in cross-replica context. A replica counts
        as much as it has rows, so that a mean over the batch is that of one device.
    """
    counts = strategy.run(_count_rows, args=(data,))
    total = strategy.reduce("SUM", counts, axis=None)

    def local(data, values, count, total):
        loss, gradients = make_closure(data)(values)
        replicas = float(strategy.num_replicas_in_sync)
        share = tf.cast(count, loss.dtype) * replicas / tf.cast(total, loss.dtype)
        scaled = [tf.math.multiply_no_nan(g, tf.cast(share, g.dtype)) for g in gradients]
        return tf.math.multiply_no_nan(loss, share), scaled

    def closure(values):
        loss, gradients = strategy.run(local, args=(data, values, counts, total))
        loss = strategy.reduce("SUM", loss, axis=None)
        return loss, [strategy.reduce("SUM", gradient, axis=None) for gradient in gradients]

    return closure


def _count_rows(data):
    x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
    leaf = next(leaf for leaf in tf.nest.flatten(x) if leaf is not None)
    return tf.shape(leaf)[0]


def make_function(model, strategy, step_function, everywhere):
    """What `Trainer.make_train_function` makes, under a strategy.

    Args:
        model: the model.
        strategy: the strategy.
        step_function: a step on a batch.
        everywhere: whether it runs on each replica with its share, or once in cross-replica
            context with the whole.
    """

    @as_written
    def one_step(iterator):
        data = next(iterator)
        if not everywhere:
            return step_function(data)
        outputs = strategy.run(step_function, args=(data,))
        return means(strategy, outputs)

    if not model.run_eagerly:
        one_step = tf.function(one_step, reduce_retracing=True)

    def function(iterator):
        try:
            for _ in range(model.steps_per_execution):
                outputs = one_step(iterator)
        except tf.errors.OutOfRangeError as end:
            raise StopIteration from end
        return outputs

    return function


def means(strategy, outputs):
    """Logs of all replicas as one."""
    return tf.nest.map_structure(lambda value: strategy.reduce("MEAN", value, axis=None), outputs)


def one_share(strategy, batch):
    """The batch of one replica of this process, for its shapes and dtypes."""
    return tf.nest.map_structure(lambda v: strategy.experimental_local_results(v)[0], batch)
