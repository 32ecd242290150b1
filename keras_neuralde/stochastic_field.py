"""A stochastic equation as the loop sees it: drift, diffusion and the noise that drives them."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_neuralde import captures
from keras_neuralde.brownian import Increment
from keras_neuralde.checks import check_takes
from keras_neuralde.fields import Field
from keras_neuralde.problems import NOISES
from keras_neuralde.two_part_field import TwoPartField, once


@dataclasses.dataclass(frozen=True)
class StochasticFunctions:
    """The functions of an `SDEProblem` and the kind of its noise.

    Args:
        f: the drift.
        g: the diffusion.
        noise: the kind of noise.
        noise_dim: as in `SDEProblem`.
    """

    f: Callable
    g: Callable
    noise: str
    noise_dim: int | None

    def lift(self, drift, layout, p_specs):
        """A `LiftedEquation`, from the lifted drift; checks what `g` returns."""
        t = tf.TensorSpec(layout.batch_shape, layout.dtype)
        width: list = []
        diffusion = captures.lift(self._checked(layout, width), t, layout.structure, p_specs)
        return LiftedEquation(drift, diffusion, self.noise, width[-1])

    def _checked(self, layout, width):
        """`g` with its outcome checked; appends the width of its matrix, `None` for none."""
        matrix = self.noise == "general" or self.noise_dim is not None

        def diffusion(t, y, p):
            with tf.GradientTape() as tape:
                tape.watch(y)
                check_takes(self.g, "g(t, y, p)", t, y, p)
                out = self.g(t, y, p)
            if any(leaf is None for leaf in tf.nest.flatten(out)):
                raise ValueError(
                    f"noise={self.noise!r}: g(t, y, p) must return {NOISES[self.noise]}. "
                    f"Received: {out}; is a `return` missing?"
                )
            if self.noise == "additive":
                bars = tape.gradient(out, tf.nest.flatten(y))
                if any(bar is not None for bar in bars):
                    raise ValueError(
                        "noise='additive' means that g(t, y, p) does not depend on y (use "
                        "tf.ones_like(y) to get its shape); for one that does use "
                        "noise='diagonal' or 'general'. Received: a diffusion that depends on y"
                    )
            return self._converted(out, layout, matrix, width)

        return diffusion

    def _converted(self, out, layout, matrix, width):
        expected = f"noise={self.noise!r}: g(t, y, p) must return {NOISES[self.noise]}"
        try:
            tf.nest.assert_same_structure(layout.structure, out)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{expected}. Received: {out}") from error
        found = self.noise_dim

        def convert(leaf, spec):
            nonlocal found
            leaf = tf.convert_to_tensor(leaf)
            if leaf.dtype != spec.dtype:
                raise TypeError(
                    f"g(t, y, p) must return the dtype of `y`, {spec.dtype.name}. "
                    f"Received: {leaf.dtype.name}"
                )
            shape = spec.shape
            if matrix:
                last = leaf.shape[-1] if leaf.shape.rank else None
                found = last if found is None else found
                shape = shape.concatenate([found])
            if leaf.shape.rank != shape.rank or not leaf.shape.is_compatible_with(shape):
                raise ValueError(f"{expected}, here {shape}. Received shape: {leaf.shape}")
            return leaf

        flat = zip(tf.nest.flatten(out), tf.nest.flatten(layout.structure), strict=True)
        leaves = [convert(leaf, spec) for leaf, spec in flat]
        width.append(found if matrix else None)
        return tf.nest.pack_sequence_as(layout.structure, leaves)


@dataclasses.dataclass(frozen=True)
class LiftedEquation:
    """Traced drift and diffusion.

    Attributes:
        drift: a `captures.LiftedFunction`.
        diffusion: the same.
        noise: the kind of noise.
        columns: the number of columns of a matrix-valued diffusion, else `None`.
    """

    drift: Any
    diffusion: Any
    noise: str
    columns: int | None

    @property
    def captures(self):
        """Tensors that either function closes over, each once."""
        return once([*self.drift.captures, *self.diffusion.captures])

    def components(self, layout):
        """How many Brownian motions drive a trajectory."""
        if self.columns is not None:
            return self.columns
        return 1 if self.noise == "scalar" else layout.width


class DiffusionField(Field):
    """The lifted diffusion on packed states.

    Args:
        columns: the number of columns of a matrix-valued diffusion, else `None`.
        *arguments: those of `Field`.
    """

    def __init__(self, columns, *arguments):
        super().__init__(*arguments)
        self._columns = columns

    def __call__(self, t, y, theta):
        """`(rows, width)`, or `(rows, width, columns)` for a matrix."""
        if self._columns is None:
            return super().__call__(t, y, theta)
        rows = self._layout.rows or -1
        sizes = self._layout.sizes
        leaves = tf.nest.flatten(self._outcome(self._time(t, y), y, theta))
        parts = [
            tf.reshape(leaf, (rows, size, self._columns))
            for leaf, size in zip(leaves, sizes, strict=True)
        ]
        return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)


class StochasticField(TwoPartField):
    """The field of a stochastic equation.

    Args:
        equation: a `LiftedEquation`.
        layout: the `StateLayout`.
        batch_dims: as in `Field`.
        p_leaves: as in `Field`.
        path: the `BrownianPath`.
        silent: how many of the state's last components no noise drives, where each of the others
            has its own: the path has none for them.
    """

    def __init__(self, equation, layout, batch_dims, p_leaves, path, silent=0):
        common = layout, batch_dims, p_leaves
        self.drift = Field(equation.drift, *common)
        self.diffusion = DiffusionField(equation.columns, equation.diffusion, *common)
        self.path, self._silent = path, silent
        super().__init__((self.drift, self.diffusion), equation.captures)

    def also_reads(self, functions):
        """See `Field.also_reads`."""
        self.drift.also_reads(functions)
        self._captures = once([*self._captures, *self.drift.captures])

    def __call__(self, t, y, theta):
        """The drift."""
        return self.drift(t, y, theta)

    def bind(self, theta):
        """A `BoundEquation` for given parameters."""
        return BoundEquation(self, theta)

    def noise(self, t, t_next):
        """The `Increment` of all components from `t` to `t_next`."""
        increment = self.path(t, t_next)
        if not self._silent:
            return increment
        return Increment(*(tf.pad(part, [[0, 0], [0, self._silent]]) for part in increment))

    def driven_by(self, increment):
        """The same for one step, whose `Increment` is known."""
        field = copy.copy(self)
        field.path = lambda t, t_next: increment
        return field


@dataclasses.dataclass(frozen=True)
class BoundEquation:
    """A stochastic equation for given parameters: what a step of an SDE method sees as `g`."""

    field: StochasticField
    theta: Any

    def __call__(self, t, y):
        """The drift, `(rows, width)`."""
        return self.field.drift(t, y, self.theta)

    drift = __call__

    def evaluate(self, function, t, y, *extra):
        """See `Field.evaluate`."""
        return self.field.drift.evaluate(function, t, y, self.theta, *extra)

    def pack(self, nest):
        """See `Field.pack`."""
        return self.field.drift.pack(nest)

    def diffusion(self, t, y):
        """The diffusion, `(rows, width)` or `(rows, width, columns)`."""
        return self.field.diffusion(t, y, self.theta)

    def align(self, t, t_next):
        """A good time to end a step that would end at `t_next`; see `BrownianPath.align`."""
        return self.field.path.align(t, t_next)

    def begin_noise(self):
        """What `draw_noise` takes along; an empty tuple where `noise` is all there is to ask."""
        return self.field.path.begin()

    def draw_noise(self, t, t_next, rest):
        """The equation with the noise from `t` to `t_next`; that noise, and what is left.

        Args:
            t: `(rows,)`, where the last step ended.
            t_next: `(rows,)`.
            rest: what was left there, a `Rest`.
        """
        increment, rest = self.field.path.draw(t, t_next, rest)
        return BoundEquation(self.field.driven_by(increment), self.theta), increment, rest

    def noise(self, t, t_next):
        """The `Increment` of the trajectories' Brownian motions from `t` to `t_next`."""
        return self.field.noise(t, t_next)
