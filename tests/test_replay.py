"""Recorded step sequences, taken again."""

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from tests import problems
from tests.adjoints.test_discrete import central_differences

P = problems.LOTKA_VOLTERRA_P
TIMES = np.linspace(0.0, 10.0, 21)


def problem(y0=(1.0, 1.0), p=P, t_span=(0.0, 10.0)):
    return nde.ODEProblem(problems.lotka_volterra, tf.constant(y0, tf.float64), t_span, p)


def test_the_steps_of_a_solve_are_its_accepted_ones():
    sol = nde.solve(problem(), saveat=TIMES)
    steps = sol.steps.numpy()
    known = steps[np.isfinite(steps)]
    assert known.size == int(sol.stats.num_accepted) + 1
    assert known[0] == 0.0 and known[-1] == 10.0 and np.all(np.diff(known) > 0)
    np.testing.assert_array_equal(nde.solve(problem(), dense=True).steps, steps)


@pytest.mark.parametrize("keywords", [{}, {"saveat": TIMES}, {"dense": True}])
def test_a_replay_gives_the_same_numbers_and_rejects_nothing(keywords):
    first = nde.solve(problem(), **keywords)
    again = nde.solve(problem(), steps=first.steps, **keywords)
    np.testing.assert_allclose(again.y, first.y, rtol=1e-13)
    assert again.stats.num_rejected == 0
    assert again.stats.num_accepted == first.stats.num_accepted


def test_each_row_has_its_sequence_and_one_can_be_shared():
    y0 = [[1.0, 1.0], [1.2, 1.1], [2.0, 1.0]]
    first = nde.solve(problem(y0), batch_ndims=1)
    again = nde.solve(problem(y0), batch_ndims=1, steps=first.steps)
    np.testing.assert_allclose(again.y, first.y, rtol=1e-13)
    np.testing.assert_array_equal(again.stats.num_accepted, first.stats.num_accepted)
    shared = nde.solve(problem(y0), batch_ndims=1, steps=first.steps[:, 1])
    np.testing.assert_allclose(shared.y[1], first.y[1], rtol=1e-13)
    assert len(set(shared.stats.num_accepted.numpy())) == 1
    joint = nde.solve(problem(y0), batch_ndims=1, step_control="joint")
    once = nde.solve(problem(y0), batch_ndims=1, step_control="joint", steps=joint.steps)
    np.testing.assert_allclose(once.y, joint.y, rtol=1e-13)


def test_backwards_in_time_and_fixed_steps():
    back = problem(t_span=(10.0, 0.0))
    first = nde.solve(back, "dopri5", saveat=TIMES[::-1])
    again = nde.solve(back, "dopri5", saveat=TIMES[::-1], steps=first.steps)
    np.testing.assert_allclose(again.y, first.y, rtol=1e-12)
    fixed = nde.solve(problem(), "rk4", dt0=0.3, controller="constant")
    again = nde.solve(problem(), "rk4", steps=fixed.steps)
    np.testing.assert_allclose(again.y, fixed.y, rtol=1e-12)


def test_adaptive_gradients_at_loose_tolerance_are_those_of_the_replayed_sequence():
    y0 = np.array([1.0, 1.0])
    with tf.GradientTape() as tape:
        p, start = tf.constant(P), tf.constant(y0)
        span = tf.constant([0.0, 10.0], tf.float64)
        tape.watch([p, start, span])
        sol = nde.solve(problem(start, p, tf.unstack(span)))
        loss = tf.reduce_sum(sol.y**2)
    gradients = tape.gradient(loss, [p, start, span])
    steps = sol.steps

    def replayed(p, y0, span):
        y = nde.solve(problem(y0, p, list(span)), steps=steps).y
        return tf.reduce_sum(y**2)

    points = [P, y0, np.array([0.0, 10.0])]
    for i, gradient in enumerate(gradients):

        def along(x, i=i):
            return replayed(*[x if j == i else point for j, point in enumerate(points)])

        expected = central_differences(along, points[i])
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_new_values_of_the_steps_use_the_same_program():
    steps = nde.solve(problem(), rtol=1e-5).steps
    assert steps.shape[0] == 2 ** int(np.log2(steps.shape[0] - 1)) + 1
    traces = []

    @tf.function
    def run(steps):
        traces.append(steps)
        return nde.solve(problem(), steps=steps).y

    y = [run(s) for s in (steps, 10.0 * (steps / 10.0) ** 1.2)]
    assert len(traces) == 1 and np.abs(y[0] - y[1]).max() < 1e-2


def test_steps_inside_a_graph():
    @tf.function(jit_compile=True)
    def both(p):
        first = nde.solve(problem(p=p), max_record=200)
        return first.y, nde.solve(problem(p=p), steps=first.steps).y

    first, again = both(tf.constant(P))
    np.testing.assert_allclose(again, first, rtol=1e-12)


def test_a_field_that_fails_in_a_replay_ends_with_a_status():
    sol = nde.solve(problem(), steps=[0.0, 5.0, 10.0], throw=False)
    assert sol.status == nde.Status.NON_FINITE and np.isnan(sol.y).all()


def test_bad_input():
    with pytest.raises(ValueError, match="must be sorted"):
        nde.solve(problem(), steps=[0.0, 2.0, 1.0, 10.0])
    with pytest.raises(ValueError, match="at least two times"):
        nde.solve(problem(), steps=[0.0])
    with pytest.raises(ValueError, match="taken as they are"):
        nde.solve(problem(), steps=[0.0, 10.0], dt0=0.1)
    with pytest.raises(ValueError, match="batch"):
        nde.solve(problem(), steps=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="max_record"):
        _ = nde.solve(problem(), max_record=4).steps
    steps = tf.constant([0.0, 0.5, 1.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(steps)
        y = nde.solve(problem(t_span=(0.0, 1.0)), steps=steps).y
    with pytest.raises(ValueError, match="`steps`"):
        tape.gradient(y, steps)
