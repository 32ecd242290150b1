"""What many trajectories have in common: statistics for each time and component."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from keras_neuralde.typing import Axes, Nest


class Summary(NamedTuple):
    """Statistics over the trajectories that succeeded, for each time and component.

    Attributes:
        t: the times, as in the solution.
        mean: `(num_times, *state)`.
        var: the same; with the divisor n - 1.
        median: the same.
        quantiles: a tuple of the same, one for each level that was asked for.
        levels: these levels.
        count: how many trajectories there are.
    """

    t: tf.Tensor
    mean: Nest
    var: Nest
    median: Nest
    quantiles: tuple[Nest, ...]
    levels: tuple[float, ...]
    count: tf.Tensor

    def __repr__(self):
        times = f"{tuple(self.t.shape)} times" if self.t.shape.rank else "one time"
        count = tf.get_static_value(self.count)
        shapes = tf.nest.map_structure(lambda leaf: tuple(leaf.shape), self.mean)
        return (
            f"Summary(of {'unknown' if count is None else int(count)} trajectories at {times}; "
            f"mean, var, median: {shapes}, quantiles {self.levels})"
        )

    def plot(
        self,
        data: Nest = None,
        ax: Axes | None = None,
        labels: Sequence[str] | None = None,
    ) -> Axes:
        """Draws mean and ribbon; see `keras_neuralde.plot.summary`."""
        from keras_neuralde import plot

        return plot.summary(self, data=data, ax=ax, labels=labels)
