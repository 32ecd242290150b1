"""Our solvers as `tfp.math.ode` solvers; the way back is `keras_neuralde.solvers.delegated`."""

import tensorflow as tf

from keras_neuralde import solvers
from keras_neuralde.problems import ODEProblem
from keras_neuralde.solve import SOLVE_KEYWORDS, solve


def as_tfp(solver="tsit5", **keywords):
    """One of our solvers as a `tfp.math.ode.Solver`.

    It works in `tfp.bijectors.FFJORD` and in any code written for TFP's interface; the gradient is
    ours, exact, with respect to the initial state, `constants` and whatever `ode_fn` closes over.

    Args:
        solver: a solver name or object.
        **keywords: keywords of `keras_neuralde.solve`, such as `rtol=` and `atol=`.

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
    import tensorflow_probability as tfp

    inner = solvers.get(solver)
    unknown = sorted(set(keywords) - set(SOLVE_KEYWORDS))
    if unknown:
        raise TypeError(f"as_tfp() takes the keywords of solve(). Received: {unknown}")

    class TFPSolver(tfp.math.ode.Solver):
        """An adapter; see `as_tfp`."""

        def __init__(self):
            super().__init__(
                use_pfor_to_compute_jacobian=False,
                make_adjoint_solver_fn=lambda: self,
                validate_args=False,
                name=f"as_tfp_{inner.name}",
            )
            self.inner = inner

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
            del jacobian_fn, jacobian_sparsity, batch_ndims, previous_solver_internal_state
            if isinstance(solution_times, tfp.math.ode.ChosenBySolver):
                raise NotImplementedError(
                    "solution_times=ChosenBySolver is not supported; list the times."
                )
            state = tf.nest.map_structure(tf.convert_to_tensor, initial_state)
            dtype = tf.nest.flatten(state)[0].dtype
            times = tf.cast(tf.convert_to_tensor(solution_times), dtype)
            constants = dict(constants or {})
            # Like TFP: the field sees a scalar time, and one step serves the whole state.
            problem = ODEProblem(
                lambda t, y, p: ode_fn(t, y, **p),
                state,
                (initial_time, times[-1]),
                tf.nest.map_structure(tf.convert_to_tensor, constants),
            )
            solution = solve(problem, inner, saveat=times, **keywords)
            diagnostics = _Diagnostics(solution.stats.num_f, solution.status)
            return tfp.math.ode.Results(times, solution.y, diagnostics, ())

        def _solve(self, *args, **kwargs):
            return self.solve(*args, **kwargs)

        def _initialize_solver_internal_state(self, *args, **kwargs):
            return ()

    class _Diagnostics(tfp.math.ode.Diagnostics):
        """Counts in TFP's terms."""

        def __init__(self, num_f, status):
            self._num_f, self._status = num_f, status

        @property
        def num_jacobian_evaluations(self):
            return tf.zeros_like(self._num_f)

        @property
        def num_matrix_factorizations(self):
            return tf.zeros_like(self._num_f)

        @property
        def num_ode_fn_evaluations(self):
            return self._num_f

        @property
        def status(self):
            return self._status

    return TFPSolver()
