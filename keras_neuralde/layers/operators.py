"""Derivatives in space as layers, for partial differential equations by the method of lines."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, Unpack, get_args

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_neuralde.checks import (
    check_array,
    check_choice,
    check_integer,
    check_positive,
    check_whole,
)
from keras_neuralde.options import LayerKeywords
from keras_neuralde.typing import TensorLike

Border: TypeAlias = Literal["dirichlet", "neumann", "periodic"]
"""The names that `border=` takes."""


class _Operator(keras.layers.Layer):
    """A linear operator on fields; it computes in the dtype of its input and has no weights."""

    def __init__(self, **keywords):
        keywords.setdefault("autocast", False)
        super().__init__(**keywords)
        self.supports_masking = True

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("autocast", None)
        return config


@keras.saving.register_keras_serializable(package="keras_neuralde")
class FiniteDifference(_Operator):
    """The first or second derivative by central differences on equally spaced points.

    The error falls with the square of the spacing (but, for the second derivative on a Neumann
    border itself, with the spacing; that of solutions falls with the square all the same):

    - `"dirichlet"`: the field holds the n inner points; `value` is the field on the border, one
      spacing beyond the first and the last of them.
    - `"neumann"`: the field holds the border points too; `value` is the derivative along the axis
      there.
    - `"periodic"`: the last point's neighbour is the first one.

    Args:
        derivative: 1 or 2.
        spacing: the distance between neighbours, a positive number.
        border: `"dirichlet"`, `"neumann"` or `"periodic"`.
        value: what is given on the border: a number, or a pair for its two ends.
        axis: the axis of space.
        **keywords: those of `keras.layers.Layer`.

    Raises:
        ValueError: for other values.

    Example:

    >>> x = 0.1 * np.arange(1.0, 10.0)
    >>> second = FiniteDifference(2, 0.1, "dirichlet", value=(0.0, 1.0))
    >>> second(x[None] ** 2)[0, :3].numpy().round(9)
    array([2., 2., 2.])
    """

    def __init__(
        self,
        derivative: Literal[1, 2],
        spacing: float,
        border: Border = "periodic",
        value: float | Sequence[float] = 0.0,
        axis: int = -1,
        **keywords: Unpack[LayerKeywords],
    ) -> None:
        super().__init__(**keywords)
        if isinstance(derivative, bool) or derivative not in (1, 2):
            raise ValueError(f"`derivative` must be 1 or 2. Received: {derivative!r}")
        self.derivative = derivative
        self.spacing = check_positive("spacing", spacing)
        self.border = check_choice("border", border, get_args(Border))
        self.value = _pair(value)
        self.axis = check_integer("axis", axis)

    def build(self, input_shape):
        size = input_shape[self.axis]
        least = 1 if self.border == "dirichlet" else 3
        if size is None or size < least:
            raise ValueError(
                f"the axis of space, {self.axis}, must hold at least {least} points. "
                f"Received shape: {tuple(input_shape)}"
            )
        self.built = True

    def call(self, inputs: TensorLike) -> tf.Tensor:
        u = tf.convert_to_tensor(inputs)
        h, axis, size = self.spacing, self.axis % u.shape.rank, u.shape[self.axis]

        def part(start, count):
            return tf.gather(u, tf.range(start, start + count), axis=axis)

        first, last = part(0, 1), part(size - 1, 1)
        if self.border == "periodic":
            before, after = last, first
        elif self.border == "dirichlet":
            before, after = (tf.zeros_like(first) + value for value in self.value)
        else:
            before = part(1, 1) - 2.0 * h * self.value[0]
            after = part(size - 2, 1) + 2.0 * h * self.value[1]
        left = tf.concat([before, part(0, size - 1)], axis)
        right = tf.concat([part(1, size - 1), after], axis)
        if self.derivative == 1:
            return (right - left) / (2.0 * h)
        return (left - 2.0 * u + right) / h**2

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "derivative": self.derivative,
            "spacing": self.spacing,
            "border": self.border,
            "value": self.value,
            "axis": self.axis,
        }


@keras.saving.register_keras_serializable(package="keras_neuralde")
class Laplacian(_Operator):
    """The Laplacian by central differences: the sum of second derivatives over the axes of space.

    Args:
        spacing: the distance between neighbours: a number for one axis of space, or a list with
            one for each of the last axes (two for the plane).
        border: as in `FiniteDifference`; a list for a kind of its own on each axis.
        value: likewise; a list of pairs for each axis.
        axis: the last axis of space; -2 for fields that have channels last.
        **keywords: those of `keras.layers.Layer`.

    Example:

    >>> x = np.linspace(0.0, 2.0 * np.pi, 64, endpoint=False)
    >>> u = np.sin(x)[:, None] * np.cos(x)
    >>> laplacian = Laplacian([x[1], x[1]])
    >>> bool(np.abs(laplacian(u[None])[0] + 2.0 * u).max() < 2e-3)
    True
    """

    def __init__(
        self,
        spacing: float | Sequence[float],
        border: Border | Sequence[Border] = "periodic",
        value: npt.ArrayLike = 0.0,
        axis: int = -1,
        **keywords: Unpack[LayerKeywords],
    ) -> None:
        super().__init__(**keywords)
        several = isinstance(spacing, (list, tuple)) or np.ndim(spacing)
        spacings = list(spacing) if several else [spacing]
        count = len(spacings)
        borders = list(border) if isinstance(border, (list, tuple)) else [border] * count
        values = list(value) if check_array("value", value).ndim == 2 else [value] * count
        if not count or len(borders) != count or len(values) != count:
            raise ValueError(
                "`spacing`, `border` and `value` must have one entry for each axis of space. "
                f"Received: {spacing!r}, {border!r} and {value!r}"
            )
        self.spacing = [check_positive("spacing", one) for one in spacings]
        self.border = [check_choice("border", one, get_args(Border)) for one in borders]
        self.value = [_pair(one) for one in values]
        self.axis = check_integer("axis", axis)
        self._parts = [
            FiniteDifference(
                2, self.spacing[i], self.border[i], self.value[i], axis - count + 1 + i
            )
            for i in range(count)
        ]

    def build(self, input_shape):
        for part in self._parts:
            part.build(input_shape)
        self.built = True

    def call(self, inputs: TensorLike) -> tf.Tensor:
        return tf.add_n([part(inputs) for part in self._parts])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "spacing": self.spacing,
            "border": self.border,
            "value": self.value,
            "axis": self.axis,
        }


@keras.saving.register_keras_serializable(package="keras_neuralde")
class SpectralDerivative(_Operator):
    """A derivative that is exact for every wave that the points of a field resolve.

    It differentiates the trigonometric polynomial through the points (Trefethen, "Spectral Methods
    in MATLAB", 2000, chapter 3), as a product with a matrix: simple, and no slower than Fourier
    transforms for fields of some hundred points. The points are those of `FiniteDifference`:

    - `"periodic"`: 0, length / n, ..., and waves of that period.
    - `"dirichlet"`: the n inner points between two borders; sums of sines, which vanish on both.
    - `"neumann"`: the border points too; sums of cosines, whose derivative vanishes there.

    Other values on the borders are met by a line, or a parabola, that is taken off before and
    differentiated by itself. Of fields whose remainder is no such sum (its second derivative, say,
    does not vanish on a Dirichlet border) the derivative is less accurate near the borders.

    Args:
        derivative: 1, 2, ...; for odd ones the wave of two points has derivative zero.
        length: the period, or the distance between the borders, a positive number.
        axis: the axis of space.
        border: `"periodic"`, `"dirichlet"` or `"neumann"`.
        value: what is given on the border, as in `FiniteDifference`.
        **keywords: those of `keras.layers.Layer`.

    Raises:
        ValueError: for other values.

    Example:

    >>> x = np.linspace(0.0, 1.0, 8, endpoint=False)
    >>> slope = SpectralDerivative(1, 1.0)(np.sin(2.0 * np.pi * x)[None])
    >>> bool(np.abs(slope[0] - 2.0 * np.pi * np.cos(2.0 * np.pi * x)).max() < 1e-12)
    True
    """

    def __init__(
        self,
        derivative: int,
        length: float,
        axis: int = -1,
        border: Border = "periodic",
        value: float | Sequence[float] = 0.0,
        **keywords: Unpack[LayerKeywords],
    ) -> None:
        super().__init__(**keywords)
        self.derivative = check_whole("derivative", derivative)
        self.length = check_positive("length", length)
        self.axis = check_integer("axis", axis)
        self.border = check_choice("border", border, get_args(Border))
        self.value = _pair(value)
        self._matrix = self._offset = None

    def build(self, input_shape):
        size = input_shape[self.axis]
        least = 2 if self.border == "neumann" else 1
        if size is None or size < least:
            raise ValueError(
                f"the axis of space, {self.axis}, must have a known size of at least {least}. "
                f"Received shape: {tuple(input_shape)}"
            )
        whole, period = self._extension(size), self.length
        if self.border != "periodic":
            period *= 2.0
        count = len(whole)
        waves = 1j * 2.0 * np.pi / period * np.fft.fftfreq(count, 1.0 / count)
        if count % 2 == 0 and self.derivative % 2:
            waves[count // 2] = 0.0
        columns = np.fft.ifft(waves[:, None] ** self.derivative * np.fft.fft(whole, axis=0), axis=0)
        first = 1 if self.border == "dirichlet" else 0
        self._matrix = columns.real[first : first + size]
        field, slope = self._lift(size)
        self._offset = slope - self._matrix @ field
        self.built = True

    def _extension(self, size):
        """The matrix that continues a field to a whole period: odd, even, or as it is."""
        unit = np.eye(size)
        if self.border == "periodic":
            return unit
        if self.border == "neumann":
            return np.concatenate([unit, unit[-2:0:-1]])
        zero = np.zeros((1, size))
        return np.concatenate([zero, unit, zero, -unit[::-1]])

    def _lift(self, size):
        """A polynomial that has the values on the borders, and its derivative; at the points."""
        low, high = self.value
        if self.border == "periodic" or not (low or high):
            return np.zeros(size), np.zeros(size)
        inner = self.border == "dirichlet"
        x = self.length * np.linspace(0.0, 1.0, size + 2 * inner)[inner : inner + size]
        rise = (high - low) / self.length
        powers = [low, rise] if inner else [0.0, low, 0.5 * rise]
        line = np.polynomial.Polynomial(powers)
        return line(x), line.deriv(self.derivative)(x)

    def call(self, inputs: TensorLike) -> tf.Tensor:
        u = tf.convert_to_tensor(inputs)
        axis = self.axis % u.shape.rank
        order = [*(i for i in range(u.shape.rank) if i != axis), axis]
        moved = tf.transpose(u, order)
        product = tf.linalg.matvec(tf.constant(self._matrix, u.dtype), moved)
        return tf.transpose(product + tf.constant(self._offset, u.dtype), np.argsort(order))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "derivative": self.derivative,
            "length": self.length,
            "axis": self.axis,
            "border": self.border,
            "value": self.value,
        }


def _pair(value):
    array = check_array("value", value)
    if array.shape not in ((), (2,)) or not np.all(np.isfinite(array)):
        raise ValueError(f"`value` must be a number or a pair of numbers. Received: {value!r}")
    return np.broadcast_to(array, 2).tolist()
