"""Fields of two parts, one treated implicitly and one explicitly."""

import dataclasses
from typing import Any

from keras_neuralde.fields import Field
from keras_neuralde.two_part_field import TwoPartField, once


@dataclasses.dataclass(frozen=True)
class LiftedSplit:
    """Both functions, traced.

    Attributes:
        explicit: a `captures.LiftedFunction`.
        implicit: the same.
    """

    explicit: Any
    implicit: Any

    @property
    def captures(self):
        """Tensors that either function closes over, each once."""
        return once([*self.explicit.captures, *self.implicit.captures])


class SplitField(TwoPartField):
    """The field of a split equation.

    Args:
        lifted: a `LiftedSplit`.
        layout: the `StateLayout`.
        batch_dims: as in `Field`.
        p_leaves: as in `Field`.
        implicit: what implicit methods know of the implicit part, a `fields.Implicit`.
    """

    def __init__(self, lifted, layout, batch_dims, p_leaves, implicit):
        common = layout, batch_dims, p_leaves
        self.explicit_part = Field(lifted.explicit, *common)
        self.implicit_part = Field(lifted.implicit, *common, implicit=implicit)
        super().__init__((self.explicit_part, self.implicit_part), lifted.captures)

    def __call__(self, t, y, theta):
        """The sum of both parts."""
        return self.explicit_part(t, y, theta) + self.implicit_part(t, y, theta)

    def bind(self, theta):
        """A `BoundSplitField` for given parameters."""
        return BoundSplitField(self, theta)


class BoundSplitField:
    """A `SplitField` for given parameters: `g(t, y)`, and its two parts."""

    def __init__(self, field, theta):
        self.explicit_part = field.explicit_part.bind(theta)
        self.implicit_part = field.implicit_part.bind(theta)
        self.implicit = field.implicit_part.implicit

    def __call__(self, t, y):
        """The sum of both parts."""
        return self.explicit_part(t, y) + self.implicit_part(t, y)
