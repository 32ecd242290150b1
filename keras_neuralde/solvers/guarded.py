"""TFP's own ODE solvers with rails: the same steps, but they always end and always say how.

The stock loops trust their input. A value that is not finite makes `DormandPrince` turn for ever
and `BDF` shrink its step until its budget is spent, and both ask the field for times beyond the
end. The classes here hook into one step (`DormandPrince`) or into the field (`BDF`), so that

* the field is asked only for times inside the span, going forwards and in the adjoint;
* a trial that is not finite is tried again with a smaller step, as an error too large is;
* a step below the resolution of time, or too many of them, ends the solve with a `Status`;
* save times equal to the start, or to one another, are fine.

They lean on the private `_solve`, `_step` and `_initialize_solver_internal_state` of TFP 0.25, the
last release. This module imports TFP: import it inside functions.
"""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from keras_neuralde.solution import Status

_TINY = 1e-30


class _WithinSpan:
    """A field that is never asked for a time outside `start <= t <= end`."""

    def __init__(self, ode_fn, start, end):
        self._ode_fn = ode_fn
        self.start, self.end = start, end

    def __call__(self, t, state):
        return self._ode_fn(tf.clip_by_value(t, self.start, self.end), state)


class _Guarded:
    """What both solvers share.

    Args:
        max_steps: attempted steps before the solve ends with a status.
        adjoint: makes the solver of TFP's adjoint equations; `None`: one like this.
        gradient: whether this solver serves adjoint equations. Its failure makes NaN, a gradient
            nobody can overlook. Failure of the equation itself is reported by its status, and is
            given a gradient of zero: the state is then the start, at the start.
        **options: what the TFP class takes.
    """

    def __init__(self, max_steps, adjoint=None, gradient=False, **options):
        own = options.pop("max_num_steps", None)
        self._limit = max_steps if own is None else min(own, max_steps)
        self._gradient = gradient

        def like_this():
            return type(self)(max_steps, gradient=True, max_num_steps=own, **options)

        super().__init__(**options, make_adjoint_solver_fn=adjoint or like_this)

    def _initialize_solver_internal_state(self, ode_fn, initial_time, initial_state):
        # TFP's adjoint asks for this with the wrong sign of time, and only for its structure.
        zero = tf.zeros((), tf.nest.flatten(initial_state)[0].dtype)
        return zero, zero

    def _first_internal_state(self, field, start, state):
        return super()._initialize_solver_internal_state(field, start, state)

    def _answer(self, results, status, stopped, start, initial_state):
        """Results with a `Status`; their internal state says where the solver stopped."""
        failed = status != int(Status.SUCCESS)
        times, states = results.times, results.states
        if self._gradient:
            states = tf.nest.map_structure(
                lambda s: tf.where(failed, tf.constant(float("nan"), s.dtype), s), states
            )
        else:
            times = tf.where(failed, start, times)
            states = tf.nest.map_structure(
                lambda s, first: tf.where(failed, first[None], s), states, initial_state
            )
        diagnostics = results.diagnostics._replace(status=status)
        return tfp.math.ode.Results(times, states, diagnostics, stopped)


class GuardedDormandPrince(_Guarded, tfp.math.ode.DormandPrince):
    """`tfp.math.ode.DormandPrince` on rails; see `_Guarded`."""

    def _solve(self, ode_fn, initial_time, initial_state, solution_times, **_):
        start, end = initial_time, solution_times[-1]
        field = _WithinSpan(ode_fn, start, end)
        stock = self._first_internal_state(field, start, initial_state)
        # The stock loop runs while its time is not beyond the next save time: nothing to do.
        time = tf.where(end > start, start, tf.constant(np.inf, start.dtype))
        results = super()._solve(
            field,
            start,
            initial_state,
            solution_times,
            previous_solver_internal_state=stock._replace(current_time=time),
        )
        last = results.solver_internal_state
        status = tf.convert_to_tensor(results.diagnostics.status)
        stopped = (last.last_step_start, last.step_size)
        return self._answer(results, status, stopped, start, initial_state)

    def _step(self, solver_state, diagnostics, ode_fn, dfactor, **settings):
        t, end = solver_state.current_time, ode_fn.end
        eps = np.finfo(t.dtype.as_numpy_dtype).eps
        # The stock loop ends beyond the last time; a few roundings beyond are enough.
        left = end - t
        beyond = 4 * eps * (tf.abs(end) + tf.abs(left)) + _TINY
        dt = tf.minimum(solver_state.step_size, left + beyond)
        new, diagnostics = super()._step(
            solver_state._replace(step_size=dt),
            diagnostics,
            ode_fn=ode_fn,
            dfactor=dfactor,
            **settings,
        )
        finite = tf.math.is_finite(new.step_size)
        dt = tf.where(finite, new.step_size, dfactor * dt)
        # Written so that a NaN is hopeless too.
        hopeless = ~(dt > 4 * eps * tf.abs(t) + _TINY)
        attempts = diagnostics.num_ode_fn_evaluations // self.ODE_FN_EVALS_PER_STEP
        status = tf.where(attempts >= self._limit, int(Status.MAX_STEPS), int(Status.SUCCESS))
        failure = tf.where(finite, int(Status.STEP_TOO_SMALL), int(Status.NON_FINITE))
        status = tf.where(hopeless, failure, status)
        status = tf.where(new.current_time > end, int(Status.SUCCESS), status)
        time = tf.where(
            status == int(Status.SUCCESS), new.current_time, tf.constant(np.inf, t.dtype)
        )
        new = new._replace(step_size=dt, current_time=time)
        return new, diagnostics._replace(status=status)


class GuardedBDF(_Guarded, tfp.math.ode.BDF):
    """`tfp.math.ode.BDF` on rails; see `_Guarded`.

    Its steps cannot be hooked, so two numbers travel with the state, too small to count in an
    error norm: an alarm that runs from the moment when the field or the state is not finite, and
    then holds the state still, and a clock.
    """

    def __init__(self, max_steps, **options):
        super().__init__(max_steps, **options)
        self._max_num_steps = self._limit

    def _solve(self, ode_fn, initial_time, initial_state, solution_times, **_):
        start, end = initial_time, solution_times[-1]
        rate = self._unnoticed_rate(start, end)
        field = _with_alarm(_WithinSpan(ode_fn, start, end), rate)
        extended = (initial_state, tf.zeros(2, start.dtype))
        stock = self._first_internal_state(field, start, extended)
        results = super()._solve(
            field, start, extended, solution_times, previous_solver_internal_state=stock
        )
        last = results.solver_internal_state
        alarm, clock = tf.unstack(last.backward_differences[0, -2:])
        status = tf.where(
            tf.equal(results.diagnostics.status, 0), int(Status.SUCCESS), int(Status.MAX_STEPS)
        )
        status = tf.where(alarm == 0.0, status, int(Status.NON_FINITE))
        results = results._replace(states=results.states[0])
        stopped = (start + (clock - alarm) / rate, last.step_size)
        return self._answer(results, status, stopped, start, initial_state)

    def _unnoticed_rate(self, start, end):
        """A speed at which the numbers of our own stay far below the tolerance."""
        span = tf.where(end > start, end - start, tf.ones_like(start))
        return 1e-3 * tf.cast(self._atol, start.dtype) / span


def _with_alarm(ode_fn, rate):
    def field(t, extended):
        state, (alarm, _) = extended[0], tf.unstack(extended[1])
        slopes = ode_fn(t, tf.nest.map_structure(_finite_jacobian, state))
        healthy = alarm <= 0.0
        for value, slope in zip(tf.nest.flatten(state), tf.nest.flatten(slopes), strict=True):
            largest = slope.dtype.max**0.5
            bounded = (tf.abs(value) < largest) & (tf.abs(slope) < largest)
            healthy &= tf.reduce_all(bounded)
        slopes = tf.nest.map_structure(lambda s: tf.where(healthy, s, tf.zeros_like(s)), slopes)
        return slopes, tf.stack([tf.where(healthy, 0.0 * rate, rate), rate])

    return field


@tf.custom_gradient
def _finite_jacobian(value):
    """`value`; entries of a Jacobian that are not finite count as zero, Newton then goes slower."""

    def gradient(bar):
        return tf.where(tf.math.is_finite(bar), bar, tf.zeros_like(bar))

    return tf.identity(value), gradient
