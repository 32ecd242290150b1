"""The same numbers on a GPU; skipped without one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde

pytestmark = pytest.mark.gpu
Y0 = np.random.default_rng(0).normal(size=(64, 2))


def on(device, function):
    with tf.device(device):
        return np.asarray(function())


@pytest.mark.parametrize("solver", ["tsit5", "rosenbrock23"])
def test_a_solve_and_its_gradient(solver):
    def solve_and_differentiate():
        p = tf.constant([1.5, 0.5], tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(p)
            problem = nde.ODEProblem(lambda t, y, p: -p * y + tf.sin(y), Y0, (0.0, 2.0), p)
            sol = nde.solve(problem, solver, saveat=[1.0, 2.0], batch_ndims=1, rtol=1e-8)
            loss = tf.reduce_sum(sol.y**2)
        return tf.concat([tf.reshape(sol.y, [-1]), tape.gradient(loss, p)], 0)

    gpu, cpu = (on(device, solve_and_differentiate) for device in ("GPU:0", "CPU:0"))
    np.testing.assert_allclose(gpu, cpu, rtol=1e-9)


def test_noise_is_the_same():
    def paths():
        problem = nde.SDEProblem(lambda t, y, p: -y, lambda t, y, p: 0.3 * y, Y0, (0.0, 1.0))
        keywords = {"dt0": 0.0625, "controller": "constant", "batch_ndims": 1, "seed": 1}
        return nde.solve(problem, "euler_maruyama", **keywords).y

    np.testing.assert_allclose(on("GPU:0", paths), on("CPU:0", paths), rtol=1e-9)


def test_fit():
    def losses():
        keras.utils.set_random_seed(0)
        y0 = keras.Input((2,))
        field = keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])
        model = nde.Model(y0, nde.NeuralODE(field, (0.0, 1.0))(y0))
        model.compile(nde.optimizers.LBFGS(), "mse")
        x = Y0.astype("float32")
        return model.fit(x, 0.5 * x, batch_size=64, epochs=5, verbose=0).history["loss"]

    np.testing.assert_allclose(on("GPU:0", losses), on("CPU:0", losses), rtol=1e-2)


def test_an_ensemble():
    def spread(problem, i, seed):
        return problem.remake(p=problem.p + 0.01 * tf.cast(i, tf.float64))

    def final_states():
        problem = nde.ODEProblem(lambda t, y, p: -p * y, Y0[0], (0.0, 1.0), np.float64(1.0))
        return nde.solve_ensemble(problem, 1000, "tsit5", vary=spread, seed=0, rtol=1e-8).y

    np.testing.assert_allclose(on("GPU:0", final_states), on("CPU:0", final_states), rtol=1e-9)
