"""Our solvers as `tfp.math.ode` solvers; the way back is `keras_neuralde.solvers.delegated`."""

import functools
from typing import Unpack

import tensorflow as tf

from keras_neuralde import solvers
from keras_neuralde.options import SolveOptions, SolverLike, TFPSolver
from keras_neuralde.problems import ODEProblem
from keras_neuralde.solve import SOLVE_KEYWORDS, solve
from keras_neuralde.typing import TensorLike


class TFPOptions(SolveOptions, total=False):
    """What `as_tfp` hands on to `solve`."""

    batch_ndims: int
    seed: TensorLike | None
    throw: bool


def as_tfp(solver: SolverLike = "tsit5", **keywords: Unpack[TFPOptions]) -> TFPSolver:
    """One of our solvers as a `tfp.math.ode.Solver`.

    It works in `tfp.bijectors.FFJORD` and in any code written for TFP's interface; the gradient is
    ours, exact, with respect to the initial state, the times, `constants` and whatever `ode_fn`
    closes over. As with TFP's own solvers, `ode_fn` sees a scalar time, one step serves the whole
    state, and `diagnostics.status` is -1 after a failure.

    Args:
        solver: a solver name or object.
        **keywords: keywords of `keras_neuralde.solve`, such as `rtol=` and `atol=`; not `saveat`,
            which is TFP's `solution_times`. With `batch_ndims=` each trajectory has steps of its
            own, and `ode_fn` sees a time for each.

    Returns:
        A `tfp.math.ode.Solver`.

    Raises:
        TypeError: for keywords that `solve` does not have.

    Example:

    >>> import keras_neuralde as nde, tensorflow as tf
    >>> solver = nde.solvers.as_tfp("tsit5", rtol=1e-6)
    >>> results = solver.solve(lambda t, y: -y, 0.0, tf.constant([1.0]), solution_times=[1.0])
    >>> tuple(results.states.shape)
    (1, 1)
    """
    allowed = sorted(set(SOLVE_KEYWORDS) - {"saveat"})
    unknown = sorted(set(keywords) - set(allowed))
    if unknown:
        raise TypeError(f"as_tfp() takes the keywords {allowed}. Received: {unknown}")
    return _adapter_class()(solvers.get(solver), keywords)


def _solve_as_tfp(solver, keywords, ode_fn, initial_time, initial_state, times, constants):
    """A `Solution` with TFP's conventions: a scalar time, joint steps."""
    state = tf.nest.map_structure(tf.convert_to_tensor, initial_state)
    constants = tf.nest.map_structure(tf.convert_to_tensor, dict(constants or {}))
    times = tf.cast(tf.convert_to_tensor(times), tf.nest.flatten(state)[0].dtype)
    joint = "batch_ndims" not in keywords
    if joint:
        keywords = {**keywords, "batch_ndims": _unknown_axes(state), "step_control": "joint"}

    def field(t, y, p):
        return ode_fn(tf.reduce_max(t) if joint else t, y, **p)

    problem = ODEProblem(field, state, (initial_time, times[-1]), constants)
    return times, solve(problem, solver, saveat=times, **keywords)


def _unknown_axes(state):
    """How many leading axes to call a batch, whose sizes only the run knows."""
    shapes = [leaf.shape.as_list() for leaf in tf.nest.flatten(state)]
    return max(
        (i + 1 for shape in shapes for i, size in enumerate(shape) if size is None), default=0
    )


@functools.cache
def _adapter_class():
    import tensorflow_probability as tfp

    class Diagnostics(tfp.math.ode.Diagnostics):
        """Counts in TFP's terms."""

        def __init__(self, solution):
            self._solution = solution

        @property
        def num_jacobian_evaluations(self):
            return tf.zeros_like(self._solution.stats.num_f)

        @property
        def num_matrix_factorizations(self):
            return tf.zeros_like(self._solution.stats.num_f)

        @property
        def num_ode_fn_evaluations(self):
            return tf.reduce_max(self._solution.stats.num_f)

        @property
        def status(self):
            return tf.where(tf.reduce_all(self._solution.success), 0, -1)

    class TFPSolver(tfp.math.ode.Solver):
        """One of our solvers behind TFP's interface; see `as_tfp`."""

        def __init__(self, solver, keywords):
            super().__init__(lambda: self, validate_args=False, name=f"as_tfp_{solver.name}")
            self._solver, self._keywords = solver, keywords

        @property
        def inner(self):
            """The solver itself, for `keras_neuralde.solve`."""
            if self._keywords:
                raise ValueError(
                    f"give `solve` the solver and its keywords, not as_tfp({self._solver.name!r}, "
                    f"...). Received: the keywords {sorted(self._keywords)}"
                )
            return self._solver

        def solve(
            self,
            ode_fn,
            initial_time,
            initial_state,
            solution_times,
            jacobian_fn=None,
            jacobian_sparsity=None,
            batch_ndims=None,
            previous_solver_internal_state=None,
            constants=None,
        ):
            # The others are about Jacobians and warm starts, which our solvers do without.
            if isinstance(solution_times, tfp.math.ode.ChosenBySolver):
                raise NotImplementedError(
                    "solution_times=ChosenBySolver is not supported; list the times."
                )
            times, solution = _solve_as_tfp(
                self._solver,
                self._keywords,
                ode_fn,
                initial_time,
                initial_state,
                solution_times,
                constants,
            )
            return tfp.math.ode.Results(times, solution.y, Diagnostics(solution), ())

        def _solve(self, *args, **keywords):
            return self.solve(*args, **keywords)

        def _initialize_solver_internal_state(self, *args, **keywords):
            return ()

    return TFPSolver
