"""Step sequences held during a line search."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde.freezing import freeze
from tests import problems

P = tf.constant(problems.LOTKA_VOLTERRA_P)
TIMES = np.linspace(0.0, 10.0, 101)


def states(p, **keywords):
    problem = nde.ODEProblem(problems.lotka_volterra, np.ones(2), (0.0, 10.0), p)
    return nde.solve(problem, saveat=TIMES, **keywords).y


def loss(p):
    return tf.reduce_sum((states(p) - 1.0) ** 2)


def roughness(function):
    """The largest second difference along a line, over that of its neighbours."""
    x = np.linspace(0.0, 1e-3, 41)
    values = [float(function(P * (1.0 + step))) for step in x]
    return np.abs(np.diff(values, 4)).max()


def test_a_frozen_solve_is_smooth_where_an_adaptive_one_is_not():
    assert roughness(freeze(loss, P)) < 1e-3 * roughness(loss)


def test_at_the_point_itself_nothing_changes():
    np.testing.assert_allclose(freeze(loss, P)(P), loss(P), rtol=1e-12)


def test_several_solves_keep_their_own_steps_and_fixed_ones_stay():
    def three(p):
        rough, fine = states(p), states(p, rtol=1e-6)
        fixed = states(p, dt0=0.05, controller="constant")
        return tf.stack([rough[-1], fine[-1], fixed[-1]])

    frozen = freeze(three, P)
    np.testing.assert_allclose(frozen(P), three(P), rtol=1e-10)
    calls = []

    def growing(p):
        calls.append(p)
        return [states(p) for _ in calls][0]

    with pytest.raises(ValueError, match="same solves"):
        freeze(growing, P)(P)


def test_control_at_loose_tolerance_reaches_the_minimum():
    """The true minimum is 0; without frozen steps the search stalls, or is far longer by luck."""

    def run(freeze_steps):
        bfgs = nde.optimizers.BFGS(initial_step_norm=1e-4)
        return nde.minimize(loss, P, bfgs, freeze_steps=freeze_steps)

    frozen = run(True)
    assert frozen.minimum < 1e-15
    assert float(tf.reduce_sum((states(frozen.minimizer, rtol=1e-10) - 1.0) ** 2)) < 1e-15
    rough = run(False)
    assert rough.minimum > 1e-6 or rough.evaluations > 1.5 * frozen.evaluations


def test_a_layer_in_fit():
    """With frozen steps the search goes on; without them it stalls (after 46 to 67 epochs)."""
    keras.utils.set_random_seed(0)
    y0 = np.array([[2.0, 0.0]])
    times = np.linspace(0.0, 1.5, 30)
    field = keras.Sequential([keras.layers.Dense(10, "tanh"), keras.layers.Dense(2)])
    y = np.stack([2.0 * np.cos(3 * times) * np.exp(-times / 5), np.sin(3 * times)], -1)[None]

    def fit(freeze_steps):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((2,), dtype="float64")
        model = keras.models.clone_model(field)
        outputs = nde.NeuralODE(model, (0.0, 1.5), saveat=times, dtype="float64")(inputs)
        whole = nde.Model(inputs, outputs)
        whole.compile(nde.optimizers.LBFGS(freeze_steps=freeze_steps), loss="mse")
        return whole.fit(y0, y, epochs=160, verbose=0).history["loss"]

    frozen, plain = fit(True), fit(False)
    assert frozen[-1] < 0.4 * plain[-1]
    assert len(plain) < len(frozen) == 160


def test_the_option_is_saved_and_checked():
    lbfgs = nde.optimizers.LBFGS(freeze_steps=True)
    assert nde.optimizers.LBFGS.from_config(lbfgs.get_config()).freeze_steps
    with pytest.raises(TypeError, match="freeze_steps"):
        nde.optimizers.BFGS(freeze_steps="yes")
