"""The user's field, as the loop sees it: matrices in, matrices out, parameters as a flat list."""

import tensorflow as tf


class Field:
    """A lifted vector field `f(t, y, p)` on packed states.

    Args:
        function: the `captures.LiftedFunction` of `f(t, y, p)`.
        layout: the `StateLayout`.
        batch_dims: the batch shape as the layout's `batch_dims` gives it.
        p_leaves: all leaves of `p`; floating ones are differentiable and replaced by `theta`.
        substitute: whether captured tensors are replaced by `theta` too. Without it they are read
            where they are, and gradients reach them through a tape that watches them.
    """

    def __init__(self, function, layout, batch_dims, p_leaves, substitute=False):
        self._substitute = substitute
        self._function = function
        self._layout = layout
        self._batch_dims = batch_dims
        self._p_leaves = list(p_leaves)
        self._floating = [i for i, leaf in enumerate(p_leaves) if leaf.dtype.is_floating]

    @property
    def variables(self):
        """Variables that the field reads by itself."""
        return self._function.variables

    @property
    def captures(self):
        """Tensors that the field closes over: the last entries of `theta`, for a tape to watch."""
        return list(self._function.captures)

    @property
    def theta(self):
        """The differentiable tensors: floating parameters, then captured tensors."""
        return [self._p_leaves[i] for i in self._floating] + list(self._function.captures)

    def __call__(self, t, y, theta):
        """`t` of shape `(rows,)` and `y` of shape `(rows, width)` → `(rows, width)`."""
        packed = self._layout.pack(self._evaluate(t, y, theta))
        packed.set_shape(y.shape)
        return packed

    def _evaluate(self, t, y, theta):
        """What the user's function returns."""
        leaves = list(self._p_leaves)
        for index, value in zip(self._floating, theta, strict=False):
            leaves[index] = value
        nested = self._layout.unpack(y, self._batch_dims)
        time = self._time(t, nested)
        arguments = [time, *tf.nest.flatten(nested), *leaves]
        if self._substitute:
            return self._function.substituted(arguments, theta[len(self._floating) :])
        return self._function(arguments)

    def bind(self, theta):
        """The field for given parameters, `g(t, y)`."""
        return lambda t, y: self(t, y, theta)

    def _time(self, t, nested):
        if self._layout.batch_ndims == 0:
            return tf.reshape(t, ())
        if self._layout.joint:
            reference = tf.nest.flatten(nested)[0]
            return tf.broadcast_to(
                tf.reshape(t, ()), tf.shape(reference)[: self._layout.batch_ndims]
            )
        return tf.reshape(t, self._batch_dims)
