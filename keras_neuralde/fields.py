"""The user's field, as the loop sees it: matrices in, matrices out, parameters as a flat list."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_neuralde import arithmetic, components
from keras_neuralde import slice_gradients as slice_gradients
from keras_neuralde.sparsity import BandedJacobian
from keras_neuralde.state import shaped

#: Up to this size a Jacobian is written out column by column: XLA merges what these share.
_UNROLLED = 8


class Implicit(NamedTuple):
    """What implicit methods want to know beyond the field's values.

    Attributes:
        mass: the mass matrix, `(n, n)` over the components of a trajectory, or `None`.
        mass_inverse: instead, the inverse of a mass matrix, for methods that want y' itself.
        constraints: the projector onto the left null space of a singular `mass`, `(n, n)`.
        pseudoinverse: that of a singular `mass`, for methods that want a slope.
        jacobian: the `captures.LiftedFunction` of the user's `jacobian(t, y, p)`, or `None`.
        sparsity: `(n, n)` booleans, where the Jacobian may be nonzero, or `None`.
        band: a `sparsity.Band` of it, where blocks pay, or `None`.
        tolerances: `(rtol, atol)` as in `Terms`, what Newton iterations are measured by; `None`
            with constant steps.
    """

    mass: Any = None
    mass_inverse: Any = None
    constraints: Any = None
    pseudoinverse: Any = None
    jacobian: Any = None
    sparsity: Any = None
    band: Any = None
    tolerances: Any = None


class Field:
    """A lifted vector field `f(t, y, p)` on packed states.

    Args:
        function: the `captures.LiftedFunction` of `f(t, y, p)`.
        layout: the `StateLayout`.
        batch_dims: the batch shape as the layout's `batch_dims` gives it.
        p_leaves: all leaves of `p`; floating ones are differentiable and replaced by `theta`.
        substitute: whether captured tensors are replaced by `theta` too. Without it they are read
            where they are, and gradients reach them through a tape that watches them.
        implicit: an `Implicit`.
    """

    def __init__(self, function, layout, batch_dims, p_leaves, substitute=False, implicit=None):
        self.implicit = implicit or Implicit()
        self._substitute = substitute
        self._function = function
        self._layout = layout
        self._batch_dims = batch_dims
        self._p_leaves = list(p_leaves)
        self._floating = [i for i, leaf in enumerate(p_leaves) if leaf.dtype.is_floating]
        self._others: list = []

    def also_reads(self, functions):
        """Names further lifted functions of (t, y, p), called with `evaluate`."""
        self._others += functions

    @property
    def variables(self):
        """Variables that the field reads by itself."""
        found = {id(v): v for function in self._functions for v in function.variables}
        return tuple(found.values())

    @property
    def captures(self):
        """Tensors that the field closes over: the last entries of `theta`, for a tape to watch."""
        found = {id(t): t for function in self._functions for t in function.captures}
        return list(found.values())

    @property
    def theta(self):
        """The differentiable tensors: floating parameters, then captured tensors."""
        return [self._p_leaves[i] for i in self._floating] + self.captures

    @property
    def joint(self):
        """Whether one row holds the whole batch."""
        return self._layout.joint

    @property
    def without_batch(self):
        """Whether the field's arrays have no batch axis, for there is one trajectory."""
        return self._layout.batch_ndims == 0

    @functools.cached_property
    def is_arithmetic(self):
        """Whether the field is cheap arithmetic (see `components`)."""
        if self.joint or self.implicit.mass_inverse is not None:
            return False
        return arithmetic.is_arithmetic(self._function.concrete.graph)

    @functools.cached_property
    def by_numbers(self):
        """Whether `by_components` takes numbers, for there is one trajectory."""
        single = self._layout.rows == 1 and self.is_arithmetic
        return single and arithmetic.comes_apart(self._function.concrete.graph)

    @functools.cached_property
    def read_by_columns(self):
        """Which of `theta` are `(rows, few)`, and read column by column by cheap arithmetic."""
        if not self.is_arithmetic or self._layout.rows == 1:
            return ()
        graph, first = self._function.concrete.graph, 1 + len(self._layout.sizes)
        return tuple(
            place
            for place, index in enumerate(self._floating)
            if self._p_leaves[index].shape.rank == 2
            and (self._p_leaves[index].shape[1] or math.inf) <= components.MOST
            and arithmetic.reads_parts(graph, graph.inputs[first + index])
        )

    @property
    def _functions(self):
        jacobian = self.implicit.jacobian
        own = [self._function] if jacobian is None else [self._function, jacobian]
        return own + self._others

    def evaluate(self, function, t, y, theta, *extra):
        """What another lifted function of `(t, y, *extra, p)` returns, as it is."""
        arguments = [self._time(t, y), *tf.nest.flatten(self._unpack(y))]
        arguments += [tf.reshape(x, [*self._batch_dims, x.shape[-1]]) for x in extra]
        arguments += self._parameters(theta)
        return function(arguments)

    def pack(self, nest):
        """A nest of states as a `(rows, width)` matrix."""
        return self._layout.pack(nest)

    def __call__(self, t, y, theta):
        """`t` of shape `(rows,)` and `y` of shape `(rows, width)` → `(rows, width)`."""
        return self._evaluate(self._time(t, y), y, theta)

    def by_components(self, t, parts, theta):
        """The same for a state that is a list of its components.

        Args:
            t: `(rows,)`; a number where the field goes `by_numbers`.
            parts: the components, of the same shape.
            theta: the differentiable tensors, or arrays of their numbers.

        Returns:
            The components of the slope.
        """
        if not self.by_numbers:
            return components.split(self(t, components.join(parts), theta))
        batch, leaves = tuple(self._batch_dims), []
        for size, shape in zip(self._layout.sizes, self._layout.state_shapes, strict=True):
            leaves.append(arithmetic.array(parts[:size], batch + shape))
            parts = parts[size:]
        theta = [arithmetic.numbers(leaf) for leaf in theta]
        feeds = [arithmetic.array([t], batch), *leaves, *self._parameters(theta)]
        captured = list(self._function.concrete.captured_inputs)
        lifted, first = self._function.lifted, len(self._floating)
        # Behind them stand those of other functions.
        for index, value in zip(lifted, theta[first : first + len(lifted)], strict=True):
            captured[index] = value
        feeds = [arithmetic.numbers(feed) for feed in [*feeds, *captured]]
        found = arithmetic.evaluate(self._function.concrete.graph, feeds)
        return [
            tf.convert_to_tensor(one, self._layout.dtype) for leaf in found for one in leaf.flat
        ]

    def _outcome(self, time, y, theta):
        """What the user's function returns, as it is."""
        arguments = [time, *tf.nest.flatten(self._unpack(y)), *self._parameters(theta)]
        if self._substitute:
            return self._function.substituted(arguments, theta[len(self._floating) :])
        return self._function(arguments)

    def _evaluate(self, time, y, theta):
        packed = self._layout.pack(self._outcome(time, y, theta))
        packed.set_shape(y.shape)
        if self.implicit.mass_inverse is None:
            return packed
        inverse = self.implicit.mass_inverse
        return self.join(tf.linalg.matmul(self.split(packed), inverse, transpose_b=True))

    def bind(self, theta):
        """The field for given parameters, as solvers see it."""
        return BoundField(self, theta)

    @property
    def size(self):
        """Components of a trajectory."""
        return self._layout.width

    def rate(self, t, y, theta):
        """∂f/∂t, `(rows, width)`, or `None` for fields that do not read the time."""
        time = self._time(t, y)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(time)
            out = self._evaluate(time, y, theta)
        return None if tape.gradient(out, time) is None else self._time_derivative(time, y, theta)

    def linearise(self, t, y, theta):
        """The Jacobian of each trajectory and the time derivative of the field.

        Args:
            t: `(rows,)`.
            y: `(rows, width)`.
            theta: the differentiable tensors.

        Returns:
            `(jacobian, time_derivative)`: the n rows of the Jacobian, a list of
            `(trajectories, n)` tensors, for small systems, a `sparsity.BandedJacobian`, or one
            `(trajectories, n, n)` tensor; and a `(rows, width)` tensor, or `None` for fields that
            do not read the time.
        """
        z, time, n = self.split(y), self._time(t, y), self._layout.width
        rate = self.rate(t, y, theta)
        if self.implicit.jacobian is not None:
            return self._given_jacobian(time, y, theta), rate
        if n <= _UNROLLED:
            return self._by_columns(time, z, theta), rate
        if self.implicit.sparsity is not None:
            return self._coloured(time, z, theta), rate
        return self._dense(time, z, theta), rate

    def _time_derivative(self, time, y, theta):
        """∂f/∂t by forward mode, as the transpose of the transpose."""
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            weights = tf.zeros_like(y)
            outer.watch(weights)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(time)
                out = self._evaluate(time, y, theta)
            pulled = tape.gradient(out, time, output_gradients=weights)
        pushed = outer.gradient(pulled, weights, output_gradients=tf.ones_like(time))
        return _or_zeros(pushed, y)

    def push(self, t, y, direction, theta):
        """The Jacobian times `direction`, by forward mode; all `(rows, width)`."""
        time = self._time(t, y)
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            weights = tf.zeros_like(y)
            outer.watch(weights)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(y)
                out = self._evaluate(time, y, theta)
            pulled = _or_zeros(tape.gradient(out, y, output_gradients=weights), y)
        return _or_zeros(outer.gradient(pulled, weights, output_gradients=direction), y)

    def pull(self, t, y, weights, theta):
        """The transposed Jacobian times `weights`; all `(rows, width)`."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(y)
            out = self._evaluate(self._time(t, y), y, theta)
        return _or_zeros(tape.gradient(out, y, output_gradients=weights), y)

    def precondition(self, function, t, y, scale, b):
        """What `function(t, y, s, b)` makes of packed states; see `solvers.LinearSolver`.

        Args:
            function: the user's.
            t: `(rows,)`.
            y: `(rows, width)`.
            scale: s, `(rows,)`.
            b: `(rows, width)`.
        """
        made = function(self._time(t, y), self._unpack(y), self._time(scale, y), self._unpack(b))
        try:
            tf.nest.assert_same_structure(self._layout.structure, made)
            packed = self._layout.pack(tf.nest.map_structure(tf.convert_to_tensor, made))
        except (TypeError, ValueError) as error:
            raise ValueError(
                "preconditioner(t, y, s, b) must return the structure of `y`. "
                f"Expected: {self._layout.structure}. Received: {made}"
            ) from error
        packed.set_shape(b.shape)
        return packed

    def _by_columns(self, time, z, theta):
        """Column by column: the derivative along a component, as that of what is pulled to it."""
        n = self._layout.width
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
            weights, pulled = self._pulled(outer, time, z, theta)
            parts = tf.unstack(pulled, num=n, axis=1)
        columns = [_or_zeros(outer.gradient(part, weights), weights) for part in parts]
        columns = [tf.unstack(column, num=n, axis=1) for column in columns]
        return [tf.stack(row, axis=1) for row in zip(*columns, strict=True)]

    def _pulled(self, outer, time, z, theta):
        """Weights of zero, and the transposed Jacobian times them, for the tape `outer`."""
        weights = tf.zeros_like(z)
        outer.watch(weights)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(z)
            out = self.split(self._evaluate(time, self.join(z), theta))
        return weights, _or_zeros(tape.gradient(out, z, output_gradients=weights), z)

    def _dense(self, time, z, theta):
        """All rows at once, by reverse mode: columns would have to be transposed."""
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(z)
            out = self.split(self._evaluate(time, self.join(z), theta))
        return tape.batch_jacobian(out, z)

    def _coloured(self, time, z, theta):
        """Columns without a common row share one push, or rows without a common column one pull.

        Whichever takes fewer products. The idea is that of Curtis, Powell & Reid, "On the
        estimation of sparse Jacobian matrices", IMA Journal of Applied Mathematics 13, 1974, for
        columns; products with the transposed matrix can do the same for rows.
        """
        sparsity = self.implicit.sparsity
        by_rows, by_columns = colour_rows(sparsity), colour_rows(sparsity.T)
        reverse = by_rows.max() < by_columns.max()
        colours = by_rows if reverse else by_columns
        seeds = [
            tf.constant(colours == colour, z.dtype) + tf.zeros_like(z)
            for colour in range(colours.max() + 1)
        ]
        if reverse:
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                tape.watch(z)
                out = self.split(self._evaluate(time, self.join(z), theta))
            groups = [_or_zeros(tape.gradient(out, z, output_gradients=w), z) for w in seeds]
        else:
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
                weights, pulled = self._pulled(outer, time, z, theta)
            groups = [
                _or_zeros(outer.gradient(pulled, weights, output_gradients=x), z) for x in seeds
            ]
        compressed = tf.stack(groups, axis=1)
        band, n = self.implicit.band, self._layout.width
        if band is not None:
            flat = tf.reshape(compressed, (-1, compressed.shape[1] * n))
            lines, places = (band.rows, band.columns)[:: 1 if reverse else -1]
            entries = tf.gather(flat, colours[lines] * n + places, axis=1)
            entries = entries * tf.constant(band.mask, z.dtype)
            return BandedJacobian(tf.transpose(entries, [1, 2, 0, 3, 4]), band)
        lines = tf.gather(compressed, colours, axis=1)
        lines = lines if reverse else tf.linalg.matrix_transpose(lines)
        return lines * tf.constant(sparsity, z.dtype)

    def _given_jacobian(self, time, y, theta):
        arguments = [time, *tf.nest.flatten(self._unpack(y)), *self._parameters(theta)]
        n = self._layout.width
        matrix = tf.reshape(self.implicit.jacobian(arguments), (-1, n, n))
        if self.implicit.mass_inverse is not None:
            matrix = tf.linalg.matmul(self.implicit.mass_inverse, matrix)
        return tf.unstack(matrix, axis=1) if n <= _UNROLLED else matrix

    def split(self, y):
        """`(rows, width)` → `(trajectories, n)`; the same unless a row holds a whole batch."""
        if not self._layout.joint:
            return y
        sizes = self._layout.sizes
        if len(sizes) == 1:
            return tf.reshape(y, (-1, sizes[0]))
        trajectories = tf.shape(y)[1] // self._layout.width
        parts = tf.split(y, [size * trajectories for size in sizes], axis=1)
        pairs = zip(parts, sizes, strict=True)
        return tf.concat([tf.reshape(part, (-1, size)) for part, size in pairs], axis=1)

    def join(self, z):
        """The inverse of `split`."""
        if not self._layout.joint:
            return z
        parts = tf.split(z, self._layout.sizes, axis=1)
        return tf.concat([tf.reshape(part, (1, -1)) for part in parts], axis=1)

    def _parameters(self, theta):
        leaves = list(self._p_leaves)
        for index, value in zip(self._floating, theta, strict=False):
            leaves[index] = value
        return leaves

    def _unpack(self, y):
        return self._layout.unpack(y, self._batch_dims)

    def _time(self, t, y):
        if self._layout.batch_ndims == 0:
            return tf.reshape(t, ())
        if self._layout.joint:
            reference = tf.nest.flatten(self._unpack(y))[0]
            return tf.broadcast_to(
                tf.reshape(t, ()), tf.shape(reference)[: self._layout.batch_ndims]
            )
        return shaped(t, self._batch_dims)


class BoundField:
    """A `Field` for given parameters: `g(t, y)`, and what implicit methods ask of it."""

    def __init__(self, field, theta):
        self._field = field
        self._theta = theta
        self.implicit, self.size = field.implicit, field.size
        self.split, self.join, self.joint = field.split, field.join, field.joint
        self.is_arithmetic, self.by_numbers = field.is_arithmetic, field.by_numbers
        self.without_batch = field.without_batch
        # Outside of loops, which then read each of them as an array of its own.
        columns = field.read_by_columns if components.is_compiled() else ()
        self._columns = {index: tf.unstack(theta[index], axis=1) for index in columns}

    def __call__(self, t, y):
        return self._field(t, y, self._theta)

    def by_components(self, t, parts):
        """See `Field.by_components`."""
        theta = list(self._theta)
        for index, columns in self._columns.items():
            theta[index] = tf.stack(columns, axis=1)
        return self._field.by_components(t, parts, theta)

    def evaluate(self, function, t, y, *extra):
        """See `Field.evaluate`."""
        return self._field.evaluate(function, t, y, self._theta, *extra)

    def pack(self, nest):
        """See `Field.pack`."""
        return self._field.pack(nest)

    def linearise(self, t, y):
        """See `Field.linearise`."""
        return self._field.linearise(t, y, self._theta)

    def rate(self, t, y):
        """See `Field.rate`."""
        return self._field.rate(t, y, self._theta)

    def push(self, t, y, direction):
        """See `Field.push`."""
        return self._field.push(t, y, direction, self._theta)

    def pull(self, t, y, weights):
        """See `Field.pull`."""
        return self._field.pull(t, y, weights, self._theta)

    def precondition(self, function, t, y, scale, b):
        """See `Field.precondition`."""
        return self._field.precondition(function, t, y, scale, b)


def colour_rows(sparsity):
    """Colours such that no two rows of one colour have a nonzero in the same column.

    Args:
        sparsity: `(n, n)` booleans.

    Returns:
        `(n,)` ints from 0.
    """
    colours: list = []
    taken: list = []  # the columns that each colour has used up
    for row in np.asarray(sparsity, bool):
        fits = (colour for colour, columns in enumerate(taken) if not np.any(columns & row))
        colour = next(fits, len(taken))
        if colour == len(taken):
            taken.append(np.zeros_like(row))
        taken[colour] |= row
        colours.append(colour)
    return np.asarray(colours)


def _or_zeros(gradient, like):
    return tf.zeros_like(like) if gradient is None else tf.convert_to_tensor(gradient)
