"""Stock `tfp.math.ode` solvers, accepted wherever an ODE solver is.

Their integration and their adjoint stay TFP's. What the adapter adds are guards against what goes
wrong there without a word: rails for the steps (see `keras_neuralde.solvers.guarded`), everything
the field closes over passed on explicitly, so that no gradient is lost, and a refusal of gradients
that TFP does not have.
"""

import inspect
import numbers
import sys
import warnings

import numpy as np
import tensorflow as tf

from keras_neuralde.solution import Status
from keras_neuralde.solvers.base import Solver

_NAMES = {"DormandPrince": "tfp_dormand_prince", "BDF": "tfp_bdf"}
_NOT_OPTIONS = ("self", "make_adjoint_solver_fn", "validate_args", "name")
_DECIDED = (
    "dt0", "dt_min", "controller", "norm", "adjoint", "checkpoints", "steps", "dense", "max_record",
)  # fmt: skip
_WARNED: set = set()


def is_tfp_solver(solver):
    """Whether `solver` is a `tfp.math.ode.Solver`; never imports TFP."""
    module = sys.modules.get("tensorflow_probability")
    return module is not None and isinstance(solver, module.math.ode.Solver)


class DelegatedSolver(Solver):
    """A stock TFP solver, with its own integration, joint stepping and adjoint.

    Args:
        kind: `"DormandPrince"` or `"BDF"`.
        adjoint: the `DelegatedSolver` of TFP's adjoint equations; `None` takes the same solver.
        **options: what the TFP class takes, as plain numbers; see its documentation. Tolerances
            that are not among them are those of the solve.

    Raises:
        TypeError: for an option that the TFP class does not have.
        ValueError: for another `kind`, or an option that is not a number or cannot work.
    """

    delegated = True

    def __init__(self, kind, adjoint=None, **options):
        if kind not in _NAMES:
            raise ValueError(f"`kind` must be one of {list(_NAMES)}. Received: {kind!r}")
        self.kind = kind
        self.name = _NAMES[kind]
        self.order = self.error_order = 5
        self.options = _checked_options(kind, options) if options else {}
        self.adjoint = type(self)(**adjoint) if isinstance(adjoint, dict) else adjoint

    @classmethod
    def wrap(cls, instance):
        """The solver that has the settings of an instance of a TFP solver.

        Raises:
            ValueError: for another class than TFP's two, or settings that are not numbers.
        """
        kind = type(instance).__name__
        if kind not in _NAMES:
            raise ValueError(
                f"of TFP's solvers {list(_NAMES)} are accepted. Received: {instance!r}"
            )
        options = {name: getattr(instance, f"_{name}") for name in _option_names(kind)}
        adjoint = instance._make_adjoint_solver_fn()
        return cls(kind, None if adjoint is instance else cls.wrap(adjoint), **options)

    @property
    def compilable(self):
        """Whether XLA compiles it in reasonable time."""
        return self.kind == "DormandPrince"

    def get_config(self):
        config = {"kind": self.kind, **self.options}
        if self.adjoint is not None:
            config["adjoint"] = self.adjoint.get_config()
        return config

    def _key(self):
        return type(self), repr(sorted(self.get_config().items()))

    def check_keywords(self, defaults, **keywords):
        """Refuses what the TFP solver decides by itself.

        Args:
            defaults: the defaults of the keywords of `solve`.
            **keywords: what `solve` was given.

        Raises:
            ValueError: for a keyword that would have no effect.
        """
        decided = [name for name in ("rtol", "atol") if name in self.options]
        for name in (*decided, *_DECIDED):
            value, default = keywords[name], defaults[name]
            plain = isinstance(value, (str, numbers.Number))
            if value is not default and not (plain and value == default):
                raise ValueError(
                    f"{self.name} decides `{name}` by itself: set it on the TFP solver, if it has "
                    f"such a setting, and leave it out here. Received: {value!r}"
                )

    def integrate(self, field, y0, terms, max_steps):
        """The solve, delegated.

        Args:
            field: the `Field`.
            y0: `(1, width)`: TFP steps the batch jointly.
            terms: the loop's `Terms`.
            max_steps: attempted steps before it ends with a status.

        Returns:
            `(y, control, num_f)` shaped as the loop would return them; TFP does not count steps,
            so their number is -1.

        Raises:
            ValueError: for tolerances that are not scalars.
        """
        # A clock that runs forwards, as TFP wants it: u = t or u = -t.
        direction = terms.direction[0]
        start, end = direction * terms.t0[0], direction * terms.t_end[0]
        saves = end[None] if terms.saves is None else direction * terms.saves[:, 0]
        present = tf.math.is_finite(saves)
        times = tf.clip_by_value(tf.where(present, saves, end), start, end)

        def ode_fn(u, y, **constants):
            theta = [constants[f"theta_{i}"] for i in range(len(constants))]
            return direction * field((direction * u)[None], y, theta)

        first, *theta = _first_order_only([y0, *field.theta], field.variables)
        results = self._guarded(terms, max_steps).solve(
            ode_fn,
            tf.stop_gradient(start),
            first,
            tf.stop_gradient(times),
            constants={f"theta_{i}": tensor for i, tensor in enumerate(theta)},
        )
        status, (stopped, step) = results.diagnostics.status, results.solver_internal_state
        failed = status != int(Status.SUCCESS)
        missing = failed | ~present[:, None, None]
        y = tf.where(missing, tf.constant(float("nan"), y0.dtype), results.states)
        y = y[-1] if terms.saves is None else y
        y = _refuse_gradients(y, terms)
        t = direction * tf.where(failed, stopped, end)
        uncounted, nothing = -tf.ones_like(t), tf.zeros_like(t)
        status = tf.cast(status, t.dtype)
        # The loop's order: T, H, ACCEPTED, REJECTED, STATUS.
        rows = [t, step, uncounted, nothing, status]
        num_f = tf.cast(results.diagnostics.num_ode_fn_evaluations, tf.int32)
        return y, tf.stop_gradient(tf.stack(rows)[:, None]), num_f[None]

    def _guarded(self, terms, max_steps, **keywords):
        """The TFP solver on its rails."""
        from keras_neuralde.solvers import guarded

        if terms.rtol.shape.rank or terms.atol.shape.rank:
            raise ValueError(
                f"{self.name} takes one tolerance for all components. Received shapes: "
                f"rtol {terms.rtol.shape}, atol {terms.atol.shape}"
            )
        if self.adjoint is not None:
            keywords["adjoint"] = lambda: self.adjoint._guarded(terms, max_steps, gradient=True)
        options = {"rtol": terms.rtol, "atol": terms.atol, **self.options}
        return getattr(guarded, f"Guarded{self.kind}")(max_steps, **keywords, **options)


def _first_order_only(inputs, variables):
    """`inputs`, whose gradient refuses to be differentiated again.

    TFP stops the gradient of its adjoint, so that a second derivative would silently be lost. The
    variables that the field reads take part with a gradient of zero, for the same refusal.
    """

    @tf.custom_gradient
    def guard(*tensors):
        def gradient(*bars):
            @tf.custom_gradient
            def once(*_):
                zeros = [tf.zeros_like(tensor) for tensor in tensors[len(bars) :]]
                return [*map(tf.identity, bars), *zeros], _refuse_second_derivative

            return once(*bars, *tensors)

        return [tf.identity(tensor) for tensor in tensors[: len(inputs)]], gradient

    return guard(*inputs, *map(tf.convert_to_tensor, variables))


def _refuse_second_derivative(*_, variables=None):
    raise NotImplementedError(
        "a solver of TFP gives first derivatives only: its gradient cannot be differentiated "
        "again. If you need no second derivative, take the inner gradient outside the outer tape."
    )


def _refuse_gradients(y, terms):
    """`y`, connected by a gradient that is refused to what TFP has no gradient for."""
    settings = {"t_span": [terms.t0, terms.t_end], "rtol": [terms.rtol], "atol": [terms.atol]}
    if terms.saves is not None:
        settings["saveat"] = [terms.saves]
    refused = [_refused(tensor, name) for name in settings for tensor in settings[name]]
    return tf.where(tf.constant(False), tf.add_n(refused), y)


def _refused(setting, name):
    """A scalar that depends on a setting."""
    graph = tf.compat.v1.get_default_graph()

    @tf.custom_gradient
    def dependent(setting):
        def refuse(_):
            # A tape of this graph asks for it. The backward pass of a compiled function is made
            # for all of its inputs, asked for or not: there NaN says it.
            if tf.compat.v1.get_default_graph() is graph:
                raise ValueError(
                    f"a solver of TFP has no gradient with respect to `{name}`. Take the tape's "
                    "watch off it, tf.stop_gradient it, or use another solver."
                )
            return tf.fill(tf.shape(setting), tf.constant(float("nan"), setting.dtype))

        return tf.reduce_sum(setting), refuse

    return dependent(setting)


def _option_names(kind):
    """The keywords of a TFP class that are settings of its method."""
    import tensorflow_probability as tfp

    parameters = inspect.signature(getattr(tfp.math.ode, kind).__init__).parameters
    return [name for name in parameters if name not in _NOT_OPTIONS]


def _checked_options(kind, options):
    known = _option_names(kind)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"tfp.math.ode.{kind} has the options {known}. Received: {unknown}")
    options = {name: _plain(name, value) for name, value in options.items()}
    if options.get("evaluate_jacobian_lazily"):
        raise ValueError(
            "tfp.math.ode.BDF fails inside a graph with evaluate_jacobian_lazily=True: leave it "
            "out. Received: True"
        )
    if kind == "BDF" and options.get("max_num_newton_iters", 4) is None:
        raise ValueError(
            "tfp.math.ode.BDF may iterate for ever without `max_num_newton_iters`: give a number. "
            "Received: None"
        )
    for name in ("rtol", "atol"):
        if name in options and not options[name] > 0:
            raise ValueError(
                f"TFP divides by its tolerances, so `{name}` must be positive. "
                f"Received: {options[name]}"
            )
    return options


def _plain(name, value):
    """An option as JSON can hold it."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    known = tf.get_static_value(value) if tf.is_tensor(value) else value
    array = np.asarray(known)
    if array.dtype.kind not in "iuf" or array.ndim != int(name == "bdf_coefficients"):
        raise ValueError(f"`{name}` of a TFP solver must be a number. Received: {value!r}")
    return array.tolist()


def warn_about_joint_steps(name):
    """Says once per process that TFP's solvers share one step over the batch."""
    if name not in _WARNED:
        _WARNED.add(name)
        warnings.warn(
            f"{name} steps the whole batch jointly: one step size and one error norm for all "
            "trajectories. Solvers of this package control each trajectory by itself.",
            stacklevel=4,
        )
