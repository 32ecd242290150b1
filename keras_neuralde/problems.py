"""The problem records: an equation, where it starts, how long it runs, and its parameters."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Self, TypeAlias

import numpy.typing as npt

from keras_neuralde.checks import check_choice, check_function, check_whole
from keras_neuralde.typing import DelayField, Field, History, Nest, TensorLike, TimeSpan


@dataclasses.dataclass(frozen=True, repr=False)
class Record:
    """A dataclass that prints its fields briefly, those at their defaults not at all."""

    def __repr__(self):
        rows = [(field, getattr(self, field.name)) for field in dataclasses.fields(self)]
        shown = [
            f"{field.name}={_brief(value)}" for field, value in rows if value is not field.default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclasses.dataclass(frozen=True, repr=False)
class _Problem(Record):
    """What all problem records can do."""

    def _check(self, f, t_span, name="f"):
        check_function(name, f, f"{name}(t, y, p)")
        shape = getattr(t_span, "shape", None)
        size = len(t_span) if isinstance(t_span, (list, tuple)) else None
        if shape is not None and len(shape) > 0:
            size = shape[0]
        if size != 2:
            raise ValueError(f"`t_span` must be a pair (t0, t1). Received: {t_span!r}")

    def remake(self, **fields: Any) -> Self:
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
            raise TypeError(f"the fields of remake() must be among {names}. Received: {unknown}")
        return dataclasses.replace(self, **fields)


def _brief(value):
    """A field as a reader wants it: functions by name, tensors by shape, small things whole."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_brief(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        numbers = all(isinstance(item, (int, float)) for item in value)
        if numbers and len(value) > _FEW:
            return f"{len(value)} numbers"
        text = ", ".join(map(_brief, value[:_FEW])) + (", ..." if len(value) > _FEW else "")
        return f"[{text}]" if isinstance(value, list) else f"({text})"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        if not len(shape) and hasattr(value, "__float__"):
            return f"{float(value):.6g}"
        return f"<{getattr(dtype, 'name', dtype)} {tuple(shape)}>"
    return getattr(value, "__qualname__", None) or repr(value)


_FEW = 6


@dataclasses.dataclass(frozen=True, repr=False)
class ODEProblem(_Problem):
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
        jac_sparsity: the sparsity pattern of the Jacobian, `(n, n)`, an array or a sparse matrix of
            SciPy, nonzero where the Jacobian may be; for implicit solvers.

    Raises:
        TypeError: if `f` is not callable.
        ValueError: if `t_span` is not a pair.

    Example:

    >>> problem = ODEProblem(lambda t, y, p: -p * y, 1.0, (0.0, 1.0), 2.0)
    >>> problem.remake(p=3.0).p
    3.0
    """

    f: Field
    y0: Nest
    t_span: TimeSpan
    p: Nest = None
    _: dataclasses.KW_ONLY
    mass_matrix: TensorLike | None = None
    jacobian: Field | None = None
    jac_sparsity: npt.ArrayLike | None = None

    def __post_init__(self):
        self._check(self.f, self.t_span)


@dataclasses.dataclass(frozen=True, repr=False)
class SplitODEProblem(_Problem):
    """The initial value problem y' = f_explicit(t, y, p) + f_implicit(t, y, p), y(t0) = y0.

    For implicit-explicit (IMEX) methods: what is stiff goes into `f_implicit`, what is costly and
    not stiff into `f_explicit`, so that Newton's iterations and Jacobians see the stiff part alone.

    Args:
        f_explicit: the part that is not stiff, as the field of an `ODEProblem`.
        f_implicit: the stiff part, likewise.
        y0: the state at the start.
        t_span: the pair `(t0, t1)`.
        p: parameters, seen by both parts.

    Raises:
        TypeError: if a part is not callable.
        ValueError: if `t_span` is not a pair.

    Example:

    >>> import tensorflow as tf, keras_neuralde as nde
    >>> problem = nde.SplitODEProblem(
    ...     lambda t, y, p: tf.sin(t), lambda t, y, p: -p * y, 1.0, (0.0, 1.0), 1e4
    ... )
    >>> bool(abs(nde.solve(problem, rtol=1e-6, atol=1e-9).y - 8.4142e-5) < 1e-8)
    True
    """

    f_explicit: Field
    f_implicit: Field
    y0: Nest
    t_span: TimeSpan
    p: Nest = None

    def __post_init__(self):
        self._check(self.f_explicit, self.t_span, "f_explicit")
        self._check(self.f_implicit, self.t_span, "f_implicit")


@dataclasses.dataclass(frozen=True, repr=False)
class DDEProblem(_Problem):
    """The delay differential equation y' = f(t, y, h, p), with a history before the start.

    Args:
        f: the field, `f(t, y, h, p)`: a pure function that returns the structure of `y`.
            `h(t_past)` is the whole state at an earlier time, of the structure and shape of `y`,
            and `h(t_past, derivative=True)` its time derivative, for neutral equations;
            `t_past` is a scalar or has the shape of `t`. A lag that it reads with may be a
            number, a tensor, a parameter, or depend on time and state; it may vanish, and it may
            be shorter than a step. Tensors and variables that `f` closes over receive gradients.
        y0: the state at the start; it may differ from `history` there.
        history: `history(t, p)`, the state before the start, of the structure and shape of `y`,
            for `t` of the shape that `f` gets.
        t_span: the pair `(t0, t1)`. With `t1 < t0` the past lies at later times: `f` reads
            `h(t + lag)`.
        p: parameters, seen by `f` and by `history`.
        lags: the lags that `f` reads with: positive numbers or tensors, scalars or of the batch
            shape, for the constant ones, and functions `(t, y, p) -> lag` for the others. Steps end
            on the points to which constant lags carry the discontinuity at the start, and the
            gradient with respect to a lag follows those points; what other lags carry is left to
            the error estimate.

    Raises:
        TypeError: if `f` or `history` is not callable, or a lag is neither a number nor a function.
        ValueError: if `t_span` is not a pair, there is no lag, or a constant one is not positive.

    Example:

    >>> import keras_neuralde as nde
    >>> problem = DDEProblem(
    ...     lambda t, y, h, p: -h(t - 1.0), 1.0, lambda t, p: 1.0, (0.0, 1.0), lags=[1.0]
    ... )
    >>> bool(abs(nde.solve(problem).y) < 1e-6)
    True
    """

    f: DelayField
    y0: Nest
    history: History
    t_span: TimeSpan
    p: Nest = None
    _: dataclasses.KW_ONLY
    lags: Sequence[TensorLike | Field]

    def __post_init__(self):
        check_function("f", self.f, "f(t, y, h, p)")
        self._check(self.f, self.t_span)
        check_function("history", self.history, "history(t, p)")
        if not isinstance(self.lags, (list, tuple)) or not self.lags:
            raise ValueError(
                "`lags` must be a list with at least one lag: a number, a tensor, or a function "
                f"(t, y, p) -> lag. Received: {self.lags!r}"
            )

    @property
    def constant_lags(self) -> list:
        """The lags that are numbers or tensors."""
        return [lag for lag in self.lags if not callable(lag)]


Noise: TypeAlias = Literal["diagonal", "scalar", "additive", "general"]
"""The names that `noise=` takes."""

Interpretation: TypeAlias = Literal["ito", "stratonovich"]
"""The names that `interpretation=` takes."""

#: The kinds of noise and what `g` returns for each of them.
NOISES = {
    "diagonal": "the structure and shape of y: a Brownian motion for each component",
    "scalar": "the structure and shape of y: one Brownian motion for all components",
    "additive": "the shape of y, or (*state, noise_dim) where noise_dim is given; it does not "
    "depend on y",
    "general": "(*state, noise_dim): each component hears all Brownian motions",
}


@dataclasses.dataclass(frozen=True, repr=False)
class SDEProblem(_Problem):
    """The stochastic differential equation dy = f(t, y, p) dt + g(t, y, p) dW, y(t0) = y0.

    Args:
        f: the drift, `f(t, y, p)`, as in `ODEProblem`.
        g: the diffusion, `g(t, y, p)`, likewise; what it returns depends on `noise`.
        y0: the state at the start.
        t_span: the pair `(t0, t1)`. With `t1 < t0` the same Brownian path is followed backwards.
        p: parameters, seen by both `f` and `g`.
        noise: `"diagonal"`: `g` has the shape of y and each component its own Brownian motion;
            `g` of a component may depend on that component and on time (other dependence costs
            order). `"scalar"`: the same shape, one Brownian motion for all components.
            `"general"`: `g` is `(*state, noise_dim)`, a matrix times `noise_dim` Brownian motions.
            `"additive"`: `g` does not depend on y; shape of y, or `(*state, noise_dim)` if
            `noise_dim` is given.
        noise_dim: the number of Brownian motions, for `"general"` and `"additive"`; `None` takes
            it from what a general `g` returns.
        interpretation: `"ito"` or `"stratonovich"`: the integral that is meant. The two differ by
            the drift ½ Σ_j (∂g_j/∂y) g_j.

    Raises:
        TypeError: if `f` or `g` is not callable.
        ValueError: for other names, or a `noise_dim` where none belongs.

    Example:

    >>> growth = SDEProblem(lambda t, y, p: p * y, lambda t, y, p: 0.2 * y, 1.0, (0.0, 1.0), 1.5)
    >>> growth.remake(interpretation="stratonovich").noise
    'diagonal'
    """

    f: Field
    g: Field
    y0: Nest
    t_span: TimeSpan
    p: Nest = None
    _: dataclasses.KW_ONLY
    noise: Noise = "diagonal"
    noise_dim: int | None = None
    interpretation: Interpretation = "ito"

    def __post_init__(self):
        self._check(self.f, self.t_span)
        check_function("g", self.g, "g(t, y, p)")
        check_choice("noise", self.noise, NOISES)
        check_choice("interpretation", self.interpretation, ("ito", "stratonovich"))
        if self.noise_dim is None:
            return
        if self.noise not in ("general", "additive"):
            raise ValueError(
                f"`noise_dim` belongs to noise='general' and 'additive'; for {self.noise!r} the "
                f"number of Brownian motions follows from y. Received: {self.noise_dim!r}"
            )
        check_whole("noise_dim", self.noise_dim)


Problem: TypeAlias = ODEProblem | SplitODEProblem | SDEProblem | DDEProblem
"""An equation without jumps."""
