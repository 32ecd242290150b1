"""The problem records: an equation, where it starts, how long it runs, and its parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class ODEProblem:
    """The initial value problem y' = f(t, y, p), y(t0) = y0.

    Args:
        f: the field, `f(t, y, p)`: a pure function that returns the structure of `y`. With batch
            axes, `y` has shape `(*batch, *state)` and `t` shape `(*batch,)`; `p` arrives whole.
            Tensors and variables that `f` closes over receive gradients.
        y0: the state at the start: a floating tensor, an array, numbers, or a nest of tensors.
        t_span: the pair `(t0, t1)`; `t1 < t0` integrates backwards. Numbers or tensors, scalars
            or of the batch shape.
        p: parameters: any nest of tensors, arrays or numbers; `None` if there are none.
        mass_matrix: the matrix M of M y' = f, for implicit solvers.
        jacobian: `jacobian(t, y, p)`, for implicit solvers.
        jac_sparsity: the sparsity pattern of the Jacobian, for implicit solvers.

    Raises:
        TypeError: if `f` is not callable.
        ValueError: if `t_span` is not a pair.

    Example:

    >>> problem = ODEProblem(lambda t, y, p: -p * y, 1.0, (0.0, 1.0), 2.0)
    >>> problem.remake(p=3.0).p
    3.0
    """

    f: Callable
    y0: Any
    t_span: Any
    p: Any = None
    _: dataclasses.KW_ONLY
    mass_matrix: Any = None
    jacobian: Callable | None = None
    jac_sparsity: Any = None

    def __post_init__(self):
        if not callable(self.f):
            raise TypeError(f"`f` must be a function f(t, y, p). Received: {self.f!r}")
        shape = getattr(self.t_span, "shape", None)
        size = len(self.t_span) if shape is None and hasattr(self.t_span, "__len__") else None
        if shape is not None and len(shape) > 0:
            size = shape[0]
        if size != 2:
            raise ValueError(f"`t_span` must be a pair (t0, t1). Received: {self.t_span!r}")

    def remake(self, **fields):
        """A copy with some fields replaced.

        Args:
            **fields: any field of the problem, such as `p=`, `y0=` or `t_span=`.

        Returns:
            A problem of the same class.

        Raises:
            TypeError: if a name is not a field.
        """
        names = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(fields) - set(names))
        if unknown:
            raise TypeError(f"remake() takes the fields {names}. Received: {unknown}")
        return dataclasses.replace(self, **fields)
