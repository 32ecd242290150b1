"""What every one-step solver is: its capabilities as class data, and one pure step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from keras_neuralde import components, narrow_products
from keras_neuralde.interpolation import horner


class Step(NamedTuple):
    """What one proposed step from `t` to `t_next` returns; all rows at once.

    Attributes:
        y1: the state at `t_next`, `(rows, width)`.
        error: the local error estimate, `(rows, width)`, or `None` for methods without one.
        dense: interpolation coefficients Q, `(rows, degree * width)`, or `None`; the state inside
            the step is y(θ) = y0 + Σ_m Q_m θ^m with θ = (t - t0) / (t1 - t0), m from 1.
        state: what the solver hands to its next step (for explicit Runge-Kutta methods the field
            at `t_next`), `(rows, width)`.
        ok: `(rows,)` booleans; False rejects the step whatever its error. `None`: always fine.
        trouble: the `Status` code, a number or `(rows,)`, of rows that are not ok at the smallest
            step.
        num_f: `(rows,)` evaluations of the field, from methods that have no fixed number of them.
        stiff: `(rows,)` booleans: whether an explicit step of this size is at the limit of its
            stability, from methods that watch for it.
        kept: what the method keeps for its next step, as `Solver.keep` made it.
        again: `(rows,)` booleans: whether a step that is not ok is to be tried again as it is.
        num_jac: `(rows,)` evaluations of the Jacobian, from methods that count them.
    """

    y1: tf.Tensor
    error: tf.Tensor | None
    dense: tf.Tensor | None
    state: tf.Tensor
    ok: tf.Tensor | None = None
    trouble: tf.Tensor | float | None = None
    num_f: tf.Tensor | None = None
    stiff: tf.Tensor | None = None
    kept: Any = ()
    again: tf.Tensor | None = None
    num_jac: tf.Tensor | None = None


def pull_back(tape, targets, sources, cotangents):
    """`tape.gradient` with dense tensors, zeros where there is no connection."""
    with narrow_products.quick(components.is_compiled()):
        bars = tape.gradient(targets, sources, output_gradients=cotangents)
    return [
        tf.zeros_like(source) if bar is None else tf.convert_to_tensor(bar)
        for bar, source in zip(bars, sources, strict=True)
    ]


class Solver:
    """A one-step method.

    A solver is a record of settings: equal settings make equal solvers. `init` and `step` are pure
    functions of tensors; the loop, the step size and the gradient live elsewhere.

    Class attributes:
        name: the string that names it.
        order: the order of the solution it propagates.
        error_order: the order of the embedded solution, or `None` without an error estimate.
    """

    name: str = ""
    order: int = 0
    error_order: float | None = None

    #: Whether the solver state is the field at the current point.
    carries_slope: bool = False

    #: Whether steps solve equations: then the field may have a mass matrix, a Jacobian and a
    #: sparsity pattern.
    implicit: bool = False

    #: Whether the mass matrix of an implicit method may be singular.
    singular_mass: bool = False

    #: Whether a mass matrix that can be inverted is: the field is y' then.
    inverts_mass: bool = True

    #: Whether the field has an implicit and an explicit part.
    splits: bool = False

    #: How many numbers a row keeps to watch for stiffness (see `keras_neuralde.solvers.switching`).
    watches: int = 0

    #: Whether the method has two kinds of steps, and a row's kind is an argument of `step`.
    switches: bool = False

    #: Whether each step says how often it evaluated the field.
    counts_evaluations: bool = False

    #: Whether each step says how often it evaluated the Jacobian.
    counts_jacobians: bool = False

    #: Whether the method is one for stochastic equations (see `keras_neuralde.solvers.sde`).
    stochastic: bool = False

    #: Whether a step is nothing but its start, its end and the field in between, so that it can be
    #: taken once more.
    repeatable: bool = False

    #: Whether steps are written for `keras_neuralde.components` too, as `step_together`: the loop
    #: then calls that one where it pays. To be false where only `step` is overridden.
    by_components: bool = False

    #: Whether a step can be interpolated; otherwise steps end on the save points.
    interpolates: bool = True

    #: Whether the error estimate is known before the noise of the step, and must stay so.
    previsible: bool = False

    #: How many states the method carries side by side; all start from y0, the first is the result.
    copies: int = 1

    #: What rtol and atol are where the caller does not say.
    default_tolerances: tuple = (1e-3, 1e-6)

    #: Whether `advance` from `t_next` to `t` undoes the step from `t` to `t_next`.
    reversible: bool = False

    #: A rule of its own for the first step, with the arguments of `controllers.initial_step`.
    initial_step: Callable | None = None

    #: Whether a step reads the record of earlier steps, as delay equations do.
    remembers: bool = False

    #: Whether the whole integration is somebody else's (see `keras_neuralde.solvers.delegated`).
    delegated: bool = False

    @property
    def adaptive(self):
        """Whether the method estimates its error, so that steps can be chosen by tolerances."""
        return self.error_order is not None

    def interpreted(self, interpretation):
        """The method for an interpretation of the stochastic integral."""
        return self

    def dense_degree(self):
        """Degree of the polynomial that interpolates inside a step."""
        raise NotImplementedError

    def evaluations(self, dense):
        """Field evaluations of one attempted step."""
        raise NotImplementedError

    def init(self, g, t, y):
        """The solver state at the start.

        Args:
            g: the field, `g(t, y)` for `t` of shape `(rows,)` and `y` of shape `(rows, width)`.
            t: `(rows,)`.
            y: `(rows, width)`.

        Returns:
            The solver state, `(rows, width)`.
        """
        raise NotImplementedError

    def keep(self, g, y):
        """Room for what the method keeps from step to step, whether the step is accepted or not.

        It is empty again at the start of every segment of the loop, since checkpoints do not hold
        it. Methods that return something get it back as the argument `kept` of `step`.

        Args:
            g: the field.
            y: `(rows, width)`.

        Returns:
            A nest of tensors; an empty tuple for nothing.
        """
        return ()

    def step(self, g, t, t_next, y, state, dense):
        """Proposes a step.

        Args:
            g: the field.
            t: `(rows,)`, where the step starts.
            t_next: `(rows,)`, where it ends; equal to `t` in rows that rest.
            y: `(rows, width)`.
            state: the solver state at `t`.
            dense: whether to return interpolation coefficients.

        Returns:
            A `Step`.
        """
        raise NotImplementedError

    def inside(self, g, t, t_next, y, theta):
        """A step once more, for the state inside it.

        Args:
            g: the field.
            t: `(rows,)`, where it starts.
            t_next: where it ends.
            y: `(rows, width)`, the state at `t`.
            theta: `(rows,)`, from 0 at the start to 1 at the end.

        Returns:
            `(y, dy/dθ)`, each `(rows, width)`.
        """
        dense = self.step(g, t, t_next, y, self.init(g, t, y), True).dense
        return horner(y, tf.split(dense, self.dense_degree(), axis=1), theta[:, None])

    def advance(self, g, t, t_next, y, dense):
        """The step as a function of its start alone: what the discrete adjoint differentiates.

        Returns:
            The pair `(y1, dense)` of `Step`.
        """
        proposal = self.step(g, t, t_next, y, self.init(g, t, y), dense)
        return proposal.y1, proposal.dense

    def step_vjp(self, field, t, t_next, y, theta, y1_bar, dense_bar, time_gradient):
        """The vector-Jacobian product of `advance`.

        Args:
            field: the field, `field(t, y, theta)`.
            t: `(rows,)`, where the step starts.
            t_next: `(rows,)`, where it ends.
            y: `(rows, width)`.
            theta: the differentiable tensors that the field reads.
            y1_bar: cotangent of `y1`.
            dense_bar: cotangent of the interpolation coefficients, or `None`.
            time_gradient: whether cotangents of `t` and `t_next` are wanted.

        Returns:
            `(t_bar, t_next_bar, y_bar, theta_bar, variables_bar)`; the first two are `None`
            without `time_gradient`.
        """
        times = [t, t_next] if time_gradient else []
        variables, captures = list(field.variables), field.captures
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*times, y, *theta, *captures, *variables])
            y1, dense = self.advance(field.bind(theta), t, t_next, y, dense_bar is not None)
        targets, cotangents = [y1], [y1_bar]
        if dense_bar is not None:
            targets.append(dense)
            cotangents.append(dense_bar)
        parameters = theta[: len(theta) - len(captures)]
        sources = [*times, y, *parameters, *captures, *variables]
        bars = pull_back(tape, targets, sources, cotangents)
        t_bar, t_next_bar = (bars.pop(0), bars.pop(0)) if time_gradient else (None, None)
        y_bar, rest = bars[0], bars[1:]
        return t_bar, t_next_bar, y_bar, rest[: len(theta)], rest[len(theta) :]

    def taken(self, kind):
        """What has the `step_vjp` of a turn whose rows took steps of the given kinds.

        Args:
            kind: `(rows,)`, from methods that switch; else an empty tuple.
        """
        return self

    def get_config(self) -> dict[str, Any]:
        """The settings, so that `from_config` makes an equal solver."""
        return {}

    @classmethod
    def from_config(cls, config):
        """Makes a solver from what `get_config` returned."""
        return cls(**config)

    def _key(self):
        settings = sorted(self.get_config().items())
        return type(self), tuple((k, repr(v) if isinstance(v, dict) else v) for k, v in settings)

    def __eq__(self, other):
        return isinstance(other, Solver) and self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        settings = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({settings})"
