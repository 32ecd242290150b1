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
            The results by the numbers of their shares.
        """

        def on_device(share, device):
            with tf.device(device):
                return compute(share)

        with concurrent.futures.ThreadPoolExecutor(len(self._local)) as pool:
            return dict(
                zip(self._local, pool.map(on_device, self._local, self._devices), strict=True)
            )

    def gather(self, shares, axis=0):
        """The tensors of all shares, those of other processes too, joined in their order."""
        if self.count == 1:
            (share,) = shares.values()
            return share
        if len(shares) == self.count:
            return tf.concat([shares[number] for number in range(self.count)], axis)
        values = self._strategy.experimental_distribute_values_from_function(
            lambda context: shares[context.replica_id_in_sync_group]
        )
        return self._strategy.gather(values, axis)
