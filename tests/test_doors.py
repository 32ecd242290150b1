"""What users get wrong, and the sentence that they find instead of a stack trace."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde

ONE = np.float64(1.0)


def decay(t, y, p):
    return -p * y


def problem(y0=ONE, t_span=(0.0, 1.0), p=ONE):
    return nde.ODEProblem(decay, y0, t_span, p)


def test_a_component_that_stays_zero_needs_no_absolute_tolerance():
    sol = nde.solve(problem(np.array([1.0, 0.0])), rtol=1e-6, atol=0.0)
    np.testing.assert_allclose(sol.y, [np.exp(-1.0), 0.0], rtol=1e-5)
    assert sol.stats.num_steps < 100


@pytest.mark.parametrize("setting", [{"dt0": np.nan}, {"rtol": np.nan}, {"atol": -1.0}])
def test_settings_that_make_no_sense_end_with_a_status_in_a_graph(setting):
    def run(value):
        (name,) = setting
        sol = nde.solve(problem(), **{name: value})
        return sol.y, sol.status, sol.stats.num_steps

    (value,) = setting.values()
    for jit in (True, False):
        y, status, steps = tf.function(run, jit_compile=jit)(tf.constant(value, tf.float64))
        assert status == nde.Status.BAD_TIMES and np.isnan(y) and steps == 0


def test_rows_in_opposite_directions_replay_their_steps():
    spans = (np.array([0.0, 1.0, 2.0]), np.array([1.0, 0.0, 4.0]))
    both = problem(np.array([1.0, 2.0, 3.0]), spans)
    first = nde.solve(both, batch_ndims=1)
    again = nde.solve(both, batch_ndims=1, steps=first.steps)
    np.testing.assert_allclose(again.y, first.y, rtol=1e-12)


def test_gradients_of_settings_are_refused_in_graphs_too():
    @tf.function
    def run(rtol):
        with tf.GradientTape() as tape:
            tape.watch(rtol)
            y = nde.solve(problem(), rtol=rtol).y
        return tape.gradient(y, rtol)

    with pytest.raises(ValueError, match="`rtol`"):
        run(tf.constant(1e-3, tf.float64))


def test_a_forgotten_return_is_named():
    with pytest.raises(ValueError, match="is a `return` missing"):
        nde.solve(nde.ODEProblem(lambda t, y, p: None, 1.0, (0.0, 1.0)))
    with pytest.raises(ValueError, match="is a `return` missing"):
        nde.minimize(lambda p: None, [1.0], nde.optimizers.BFGS())


@pytest.mark.parametrize(
    ("field", "error", "match"),
    [
        (lambda t, y: -y, TypeError, r"called as f\(t, y, p\). Received: one that takes \(t, y\)"),
        (lambda t, y, p: np.sin(y), TypeError, "`tf.sin` in place of `np.sin`"),
        (lambda t, y, p: [-y[0], -y[1]], ValueError, "`tf.stack` makes one tensor of a list"),
    ],
)
def test_fields_as_they_are_written_for_scipy(field, error, match):
    with pytest.raises(error, match=match):
        nde.solve(nde.ODEProblem(field, np.ones(2), (0.0, 1.0)))
    with pytest.raises(ValueError, match=r"must not be negative or NaN. Received: -1"):
        nde.solve(nde.ODEProblem(lambda t, y, p: -y, 1.0, (0.0, 1.0)), rtol=-1)


def test_functions_of_too_few_arguments_are_named():
    span, two = (0.0, 1.0), lambda t, y: y
    jump = nde.ConstantRateJump(two, decay)
    for call, form in (
        (lambda: nde.solve(problem(), events=[nde.ContinuousEvent(two)]), "condition(t, y, p)"),
        (lambda: nde.solve(problem(), events=[nde.DiscreteEvent(two)]), "condition(t, y, p)"),
        (lambda: nde.solve(problem(), events=[nde.PresetTimeEvent([0.5], two)]), "affect(t, y, p)"),
        (lambda: nde.solve(nde.JumpProblem(problem(), [jump]), seed=0), "rate(t, y, p)"),
        (lambda: nde.solve(nde.SDEProblem(decay, two, ONE, span, ONE), seed=0), "g(t, y, p)"),
        (
            lambda: nde.solve(nde.DDEProblem(decay, ONE, lambda t, p: p, span, ONE, lags=[0.1])),
            "f(t, y, h, p)",
        ),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert f"called as {form}. Received: one that takes (t, y" in str(caught.value), form


def test_minimize():
    def square(p):
        return tf.add_n([tf.reduce_sum(leaf**2) for leaf in tf.nest.flatten(p)])

    bfgs = nde.optimizers.BFGS
    for loss, words in ((1, "`loss` must be a function"), (square, "`callback` must be")):
        with pytest.raises(TypeError, match=words):
            nde.minimize(loss, [1.0], bfgs(), callback=None if loss == 1 else 2.0)
    with pytest.raises(ValueError, match="at least one batch"):
        nde.minimize(square, [1.0], bfgs(), batches=[])
    with pytest.raises(TypeError, match="`batches` must be an iterable"):
        nde.minimize(square, [1.0], bfgs(), batches=5)
    with pytest.raises(TypeError, match="one floating dtype"):
        nde.minimize(square, {"a": np.ones(2), "b": np.ones(2, np.float32)}, bfgs())
    with pytest.raises(ValueError, match="no parameters"):
        nde.minimize(square, None, bfgs())


def test_bounds_in_the_form_of_the_parameters():
    def square(p):
        return tf.add_n([tf.reduce_sum((leaf - 3.0) ** 2) for leaf in tf.nest.flatten(p)])

    def least(params, bounds):
        result = nde.minimize(square, params, nde.optimizers.BFGS(), bounds=bounds)
        return tf.nest.flatten(result.minimizer)[0]

    for params, upper in (
        ({"a": tf.zeros(2, tf.float64)}, {"a": [1.0, 2.0]}),
        ([keras.Variable(np.zeros(2), dtype="float64")], [np.array([1.0, 2.0])]),
        (keras.Variable(np.zeros(2), dtype="float64"), [1.0, 2.0]),
    ):
        np.testing.assert_allclose(least(params, (None, upper)), [1.0, 2.0], atol=1e-4)
    both = {"a": np.zeros(2), "b": np.zeros(2)}
    with pytest.raises(ValueError, match="must have the keys"):
        least(both, (None, {"x": [1.0, 1.0], "y": [1.0, 1.0]}))
    with pytest.raises(ValueError, match="must not be NaN"):
        least(np.zeros(2), (None, np.nan))


@pytest.mark.parametrize("adjoint", ["discrete", "forward", "interpolating"])
def test_parameters_that_the_field_does_not_read(adjoint):
    """A solve gives them no gradient, and `minimize` names them."""

    def final(p):
        ode = nde.ODEProblem(lambda t, y, p: -p["a"] * y, np.ones(1), (0.0, 1.0), p)
        return tf.reduce_sum(nde.solve(ode, adjoint=adjoint).y ** 2)

    p = {"a": tf.constant(1.0, tf.float64), "unread": tf.constant(2.0, tf.float64)}
    with tf.GradientTape() as tape:
        tape.watch(p)
        value = final(p)
    bars = tape.gradient(value, p)
    assert abs(float(bars["a"]) + 2 * np.exp(-2)) < 1e-3
    assert bars["unread"] is None
    with pytest.raises(ValueError, match="does not depend on these parameters.*unread"):
        nde.minimize(final, p, nde.optimizers.BFGS())


def test_no_numbers():
    with pytest.raises(TypeError, match="must be numbers"):
        nde.solve(problem(p="a"))
    with pytest.raises(ValueError, match="`bandwidth` must be a positive number"):
        nde.collocate(np.linspace(0.0, 1.0, 9), np.ones((9, 1)), bandwidth="a")
    with pytest.raises(ValueError, match="a state for each of the 3 times"):
        nde.solve(problem(), saveat=[0.0, 0.5, 1.0]).plot(data=np.ones((2, 1)))


def test_batches_that_hold_none():
    def square(p, x):
        return tf.reduce_sum(p**2) + 0.0 * tf.reduce_sum(x)

    with pytest.raises(ValueError, match="at least one batch"):
        nde.minimize(square, [1.0], keras.optimizers.Adam(0.1), batches=(x for x in ()))


def test_ensembles():
    with pytest.raises(ValueError, match="keeps no record"):
        nde.solve_ensemble(problem(), 3, dense=True)
    failed = nde.solve_ensemble(problem(), 3, saveat=[0.5, 1.0], max_steps=1, throw=False)
    with pytest.raises(ValueError, match="no trajectory succeeded"):
        failed.summary()


def test_series_that_are_not_known_when_the_loss_is_built():
    times = np.linspace(0.0, 1.0, 5)

    def loss(p, times, data):
        return nde.multiple_shooting(problem(p=p[0]), times, data, 3)

    with pytest.raises(ValueError, match="close over arrays"):
        nde.minimize(
            loss, np.ones(1), keras.optimizers.Adam(0.1), batches=[(times, times)], max_iters=1
        )
    with pytest.raises(ValueError, match="must return the shape of `y`"):
        wrong = nde.ODEProblem(lambda t, y, p: y[:1], np.ones(2), (0.0, 1.0))
        nde.collocation_loss(wrong, times, np.ones((5, 2)), np.ones((5, 2)))
