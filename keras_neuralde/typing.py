"""What the signatures of this package speak of, for editors and type checkers.

Nothing is checked against these when a program runs.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy.typing as npt
import tensorflow as tf

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
else:
    # Matplotlib is an extra.
    Axes = Figure = Any

TensorLike: TypeAlias = tf.Tensor | tf.Variable | npt.ArrayLike
"""Whatever TensorFlow makes a tensor of: a tensor, a variable, an array, numbers."""

Nest: TypeAlias = Any
"""A tensor, or a list, tuple, dictionary or named tuple of nests."""

TimeSpan: TypeAlias = tuple[TensorLike, TensorLike] | TensorLike
"""The pair `(t0, t1)`."""

Field: TypeAlias = Callable[[tf.Tensor, Nest, Nest], Nest]
"""A function `f(t, y, p)`: a field, a diffusion, an affect."""

Past: TypeAlias = Callable[..., Nest]
"""The past of a delay equation, `h(t_past)` and `h(t_past, derivative=True)`."""

DelayField: TypeAlias = Callable[[tf.Tensor, Nest, Past, Nest], Nest]
"""A function `f(t, y, h, p)`."""

History: TypeAlias = Callable[[tf.Tensor, Nest], Nest]
"""A function `history(t, p)`."""

Condition: TypeAlias = Callable[[tf.Tensor, Nest, Nest], tf.Tensor]
"""A function `condition(t, y, p)` whose value is a tensor of the shape of `t`."""

Rate: TypeAlias = TensorLike | Condition
"""A number, or a function `rate(t, y, p)`."""
