"""Work that is spread over the devices and the workers of a distribution strategy."""

import concurrent.futures

import tensorflow as tf


class Replicas:
    """The replicas of a strategy, as places to compute shares of one job.

    Args:
        strategy: a `tf.distribute.Strategy`.
    """

    def __init__(self, strategy):
        self._strategy = strategy
        self.count = strategy.num_replicas_in_sync
        self._local: list = []

        def see(context):
            self._local.append(context.replica_id_in_sync_group)
            return tf.constant(0)

        strategy.experimental_distribute_values_from_function(see)
        self._devices = strategy.extended.worker_devices

    def run(self, compute):
        """`compute(share)` for the shares of this process, each on its device at the same time.

        Returns:
            A list of the results, in the order of the shares.
        """

        def on_device(share, device):
            with tf.device(device):
                return compute(share)

        with concurrent.futures.ThreadPoolExecutor(len(self._local)) as pool:
            return list(pool.map(on_device, self._local, self._devices))

    def gather(self, parts, axis):
        """Tensors of the shares of this process, joined in order with those of all others."""
        if len(parts) == self.count:
            return tf.concat(parts, axis) if len(parts) > 1 else parts[0]
        own = dict(zip(self._local, parts, strict=True))
        values = self._strategy.experimental_distribute_values_from_function(
            lambda context: own[context.replica_id_in_sync_group]
        )
        return self._strategy.gather(values, axis)
