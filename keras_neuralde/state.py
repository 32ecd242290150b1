"""How a nest of state tensors becomes the one matrix that the loop carries.

Everything below the front door sees a state of shape `(rows, width)`: one row per trajectory, one
column per component. With joint stepping the whole batch is a single row, so that one step size,
one error norm and one status serve it all, and the loop needs no second code path.
"""

import dataclasses
import math
from typing import Any

import tensorflow as tf


def shaped(tensor, shape):
    """`tf.reshape`, left out where it would change nothing: each costs time to trace.

    Args:
        tensor: a tensor.
        shape: its shape to be, a list of ints, of which one may be -1, and scalar tensors.
    """
    static = tensor.shape
    if static.rank == len(shape):
        known = [isinstance(size, int) and size >= 0 for size in shape]
        pairs = list(zip(static, shape, known, strict=True))
        open_axes = sum(not sure or old is None for old, _, sure in pairs)
        differs = any(sure and old != size for old, size, sure in pairs)
        if open_axes <= 1 and not differs:
            return tensor
    return tf.reshape(tensor, shape)


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """The mapping between a nest of `(*batch, *state)` tensors and a `(rows, width)` matrix.

    Args:
        structure: a nest with one `tf.TensorSpec` per leaf, the batch axes included.
        batch_ndims: how many leading axes of every leaf are independent trajectories.
        joint: one row for the whole batch (shared steps) instead of one row per trajectory.
    """

    structure: Any
    batch_ndims: int
    joint: bool = False

    @property
    def leaves(self):
        return tf.nest.flatten(self.structure)

    @property
    def dtype(self):
        return self.leaves[0].dtype

    @property
    def state_shapes(self):
        return [tuple(leaf.shape[self.batch_ndims :]) for leaf in self.leaves]

    @property
    def batch_shape(self):
        """The static batch shape; unknown axes are `None`."""
        merged = [None] * self.batch_ndims
        for leaf in self.leaves:
            for axis, size in enumerate(leaf.shape[: self.batch_ndims]):
                merged[axis] = size if merged[axis] is None else merged[axis]
        return tuple(merged)

    @property
    def sizes(self):
        return [math.prod(shape) for shape in self.state_shapes]

    @property
    def width(self):
        """Components per trajectory (not per row: a joint row holds all trajectories)."""
        return sum(self.sizes)

    @property
    def rows(self):
        """The static number of rows, or `None`."""
        if self.joint or self.batch_ndims == 0:
            return 1
        return None if None in self.batch_shape else math.prod(self.batch_shape)

    def batch_dims(self, leaves, *, wildcard=True):
        """The batch shape as a list of ints and tensors; `wildcard` writes one unknown as -1."""
        static = self.batch_shape
        unknown = sum(size is None for size in static)
        if unknown == 1 and wildcard:
            return [-1 if size is None else size for size in static]
        if unknown == 0:
            return list(static)
        dynamic = tf.shape(leaves[0])
        return [dynamic[axis] if size is None else size for axis, size in enumerate(static)]

    def pack(self, nest):
        """`(*batch, *state)` leaves → `(rows, width)`."""
        leaves = tf.nest.flatten(nest)
        rows = 1 if self.joint else (self.rows or -1)
        columns = -1 if self.joint else None
        parts = [
            shaped(leaf, (rows, columns or size))
            for leaf, size in zip(leaves, self.sizes, strict=True)
        ]
        return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)

    def unpack(self, matrix, batch_dims, leading=()):
        """`(*leading, rows, width)` → leaves of shape `(*leading, *batch, *state)`."""
        leading = list(leading)
        if len(self.sizes) == 1:
            parts = [matrix]
        elif self.joint:
            trajectories = tf.shape(matrix)[-1] // self.width
            parts = tf.split(matrix, [size * trajectories for size in self.sizes], axis=-1)
        else:
            parts = tf.split(matrix, self.sizes, axis=-1)
        outer = leading + list(batch_dims)
        leaves = [
            shaped(part, outer + list(shape))
            for part, shape in zip(parts, self.state_shapes, strict=True)
        ]
        return tf.nest.pack_sequence_as(self.structure, leaves)

    def rows_to_batch(self, per_row, batch_dims):
        """A `(..., rows)` tensor → `(..., *batch)`; a joint row is repeated over its batch."""
        if self.batch_ndims == 0:
            return tf.squeeze(per_row, axis=-1)
        leading = per_row.shape[:-1].as_list()
        if self.joint:
            return tf.broadcast_to(
                tf.reshape(per_row, leading + [1] * self.batch_ndims), leading + list(batch_dims)
            )
        return shaped(per_row, leading + list(batch_dims))
