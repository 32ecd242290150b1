"""Stock `tfp.math.ode` solvers, accepted wherever an ODE solver is.

Their integration and their adjoint stay TFP's; what the adapter adds are guards against what goes
wrong there without a word:

* time is a state of its own, because TFP's adjoint starts at the wrong sign of time;
* the field is never asked beyond the final time, and a value that is not finite stops the state
  instead of the loop, so that a NaN ends in a status and not in a hang;
* everything the field closes over is passed on explicitly, so that no gradient is lost.
"""

import sys
import warnings

import tensorflow as tf

from keras_neuralde.solution import Status
from keras_neuralde.solvers.base import Solver

_WARNED = set()


def is_tfp_solver(solver):
    """Whether `solver` is a `tfp.math.ode.Solver`; never imports TFP."""
    module = sys.modules.get("tensorflow_probability")
    return module is not None and isinstance(solver, module.math.ode.Solver)


class DelegatedSolver(Solver):
    """A stock TFP solver, with its own integration, joint stepping and adjoint.

    Args:
        kind: `"DormandPrince"` or `"BDF"`.
        **options: what the TFP class takes; see its documentation. Without any, the tolerances of
            the solve are used.

    Raises:
        ValueError: for another `kind`.
    """

    kinds = ("DormandPrince", "BDF")
    delegated = True

    def __init__(self, kind, **options):
        if kind not in self.kinds:
            raise ValueError(f"`kind` must be one of {list(self.kinds)}. Received: {kind!r}")
        self.kind = kind
        self.options = options
        self.name = {"DormandPrince": "tfp_dormand_prince", "BDF": "tfp_bdf"}[kind]
        self.order = self.error_order = 5
        self._instance = None

    @classmethod
    def wrap(cls, instance):
        """Wraps an instance of a TFP solver as it is."""
        kind = type(instance).__name__
        if kind not in cls.kinds:
            raise ValueError(
                f"of TFP's solvers {list(cls.kinds)} are accepted. Received: {instance!r}"
            )
        solver = cls(kind, **_options_of(instance))
        solver._instance = instance
        return solver

    @property
    def compilable(self):
        """Whether XLA compiles it in reasonable time."""
        return self.kind == "DormandPrince"

    def get_config(self):
        return {"kind": self.kind, **self.options}

    def _key(self):
        return type(self), id(self._instance), repr(sorted(self.options.items())), self.kind

    def evaluations(self, dense):
        return 0

    def check_keywords(self, **keywords):
        """Refuses what the TFP solver decides by itself.

        Raises:
            ValueError: for a keyword that is not `None` and would have no effect.
        """
        decided = ("rtol", "atol", "dt0", "controller") if self.options else ("dt0", "controller")
        for name in decided:
            if keywords[name] is not None:
                raise ValueError(
                    f"{self.name} decides `{name}` by itself: set it on the TFP solver and leave "
                    f"it out here. Received: {keywords[name]!r}"
                )

    def integrate(self, field, y0, terms):
        """The solve, delegated.

        Args:
            field: the `Field`.
            y0: `(1, width)`: TFP steps the batch jointly.
            terms: the loop's `Terms`.

        Returns:
            `(y, control, num_f)` shaped as the loop would return them; TFP does not count steps,
            so their number is -1.
        """
        direction, t0 = terms.direction[0], terms.t0[0]
        t_end = terms.t_end[0]
        saves = terms.t_end[:1] if terms.saves is None else terms.saves[:, 0]
        elapsed = tf.abs(tf.stop_gradient(saves) - t0)
        # TFP wants increasing times after the start: ask once for equal ones.
        distinct, where = tf.unique(elapsed)
        positive = distinct > 0
        asked = tf.where(positive, distinct, tf.zeros_like(distinct))
        skip = tf.cast(tf.reduce_any(~positive), tf.int32)
        constants = {f"theta_{i}": tensor for i, tensor in enumerate(field.theta)}
        limit = tf.stop_gradient(t_end)

        def ode_fn(_, state, **constants):
            theta = [constants[f"theta_{i}"] for i in range(len(constants))]
            y, t, _ = state
            clipped = direction * tf.minimum(direction * t, direction * limit)
            dy = direction * field(clipped[None], y, theta)
            healthy = tf.math.is_finite(dy) & (tf.abs(y) < dy.dtype.max**0.5)
            poison = tf.cast(tf.reduce_any(~healthy), dy.dtype)
            return tf.where(healthy, dy, tf.zeros_like(dy)), direction, poison

        results = self._solver(terms).solve(
            ode_fn,
            tf.zeros_like(t0),
            (y0, t0, tf.zeros_like(t0)),
            asked[skip:],
            constants=constants,
        )
        states, _, poison = results.states
        y = tf.gather(tf.concat([y0[None], states], 0), where + 1 - skip)
        failed = tf.reduce_any(poison > 0)
        unfinished = ~tf.reduce_all(tf.math.is_finite(states))
        bad = failed | unfinished
        y = tf.where(bad, tf.constant(float("nan"), y.dtype), y)
        status = tf.where(bad, int(Status.NON_FINITE), int(Status.SUCCESS))
        nothing = tf.zeros_like(t0)
        rows = [t_end, nothing, nothing, nothing, -tf.ones_like(t0), nothing]
        control = tf.stack([*rows, tf.cast(status, t0.dtype), nothing])[:, None]
        control = tf.stop_gradient(control)
        return (y[-1] if terms.saves is None else y), control, _count(results)[None]

    def _solver(self, terms):
        if self._instance is not None:
            return self._instance
        import tensorflow_probability as tfp

        options = self.options or {"rtol": terms.rtol, "atol": terms.atol}
        return getattr(tfp.math.ode, self.kind)(**options)


def _count(results):
    count = results.diagnostics.num_ode_fn_evaluations
    return tf.cast(count, tf.int32)


def _options_of(instance):
    """The plain numbers that a TFP solver was made with."""
    names = (
        "rtol",
        "atol",
        "first_step_size",
        "safety_factor",
        "min_step_size_factor",
        "max_step_size_factor",
        "max_num_steps",
    )
    found = {name: getattr(instance, f"_{name}", None) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}


def warn_about_joint_steps(name):
    """Says once per process that TFP's solvers share one step over the batch."""
    if name not in _WARNED:
        _WARNED.add(name)
        warnings.warn(
            f"{name} steps the whole batch jointly: one step size and one error norm for all "
            "trajectories. Solvers of this package control each trajectory by itself.",
            stacklevel=4,
        )
