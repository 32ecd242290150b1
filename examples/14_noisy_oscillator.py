"""Stochastic control: a network steadies an oscillator that noise keeps kicking.

dx = v dt, dv = (-x + u(x, v)) dt + 0.5 dW, and every path pays ∫ x² + v² + 0.1 u² dt over (0, 5).
A network 2-16-1 in the drift is trained with ADAM on fresh paths. Because the oscillator is linear,
the best control is known: u = -K (x, v) with K(t) from the Riccati equation. The network does not
see the time; what it pays is compared with the best on the same 5,000 paths.

    python examples/14_noisy_oscillator.py [--seed 0] [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

SPAN, NOISE, PRICE, STEP = (0.0, 5.0), 0.5, 0.1, 0.05


@keras.saving.register_keras_serializable("examples")
class Oscillator(keras.layers.Layer):
    """The drift of (x, v, cost so far), with a model as the control."""

    def __init__(self, control, **keywords):
        super().__init__(**keywords)
        self.control = control

    def call(self, state):
        x, v = state[..., 0], state[..., 1]
        u = self.control(state[..., :2])[..., 0]
        return tf.stack([v, -x + u, x**2 + v**2 + PRICE * u**2], -1)


@keras.saving.register_keras_serializable("examples")
class Kick(keras.layers.Layer):
    """The diffusion: noise in the velocity only."""

    def call(self, state):
        zero = tf.zeros_like(state[..., 0])
        return tf.stack([zero, zero + NOISE, zero], -1)


def layer(control, trajectories, saveat=None, seed=0):
    """The controlled oscillator."""
    return nde.NeuralDSDE(
        Oscillator(control), Kick(), SPAN, "sosri", dt0=STEP, controller="constant",
        trajectories=trajectories, saveat=saveat, seed=seed,
    )  # fmt: skip


def starts(count, seed):
    """Starts (x, v, 0), normal numbers around zero."""
    random = np.random.default_rng(seed)
    y = np.concatenate([random.normal(size=(count, 2)), np.zeros((count, 1))], 1)
    return y.astype(np.float32)


def riccati():
    """The matrix P(t) on a fine grid, backwards from 0: P' = -A'P - PA - Q + P B B' P / r."""
    a, b, q = np.array([[0.0, 1.0], [-1.0, 0.0]]), np.array([0.0, 1.0]), np.eye(2)

    def slope(t, y, p):
        matrix = tf.reshape(y, (2, 2))
        gain = tf.linalg.matvec(matrix, b)
        quadratic = gain[:, None] * gain[None, :] / PRICE
        return tf.reshape(-(tf.transpose(a) @ matrix + matrix @ a + q - quadratic), [4])

    times = np.linspace(SPAN[1], SPAN[0], 501)
    sol = nde.solve(
        nde.ODEProblem(slope, np.zeros(4), SPAN[::-1], None), saveat=times, rtol=1e-8, atol=1e-10
    )
    return times[::-1], sol.y.numpy()[::-1].reshape(-1, 2, 2)


def best_cost(count):
    """The least mean cost from the starts: E y0' P(0) y0 + ∫ σ² P22 dt."""
    times, matrices = riccati()
    y0 = starts(count, 1)[:, :2]
    running = np.trapezoid(NOISE**2 * matrices[:, 1, 1], times)
    return np.mean(np.einsum("ni,ij,nj->n", y0, matrices[0], y0)) + running


def run(seed=0, steps=300, paths=64):
    """Trains: `(control, costs)`."""
    keras.utils.set_random_seed(seed)
    control = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)]
    )
    oscillator = layer(control, 4, seed=seed)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.03, steps))
    optimizer.build(control.trainable_variables)
    oscillator.build((None, 3))

    @tf.function(jit_compile=True)
    def step(y0):
        with tf.GradientTape() as tape:
            cost = tf.reduce_mean(oscillator(y0, training=True)[..., 2])
        weights = control.trainable_variables
        optimizer.apply(tape.gradient(cost, weights), weights)
        return cost

    costs = [float(step(starts(paths, [seed, k]))) for k in range(steps)]
    return control, np.array(costs)


def price(control, count):
    """The mean cost of a control on paths that training did not see, and its standard error."""
    cost = layer(control, 1, seed=99)(starts(count, 1)).numpy()[..., 2]
    return cost.mean(), cost.std() / np.sqrt(count)


def draw(control, costs, path):
    """Paths without and with control, and the costs in training."""
    import matplotlib.pyplot as plt

    times = np.linspace(*SPAN, 101)
    idle = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for ax, who, title in zip(axes, (idle, control), ("left alone", "controlled"), strict=False):
        y = layer(who, 30, times, seed=3)(np.array([[1.5, 0.0, 0.0]], np.float32))[0]
        ax.plot(times, y[:, :, 0].numpy().T, color="#0072B2", alpha=0.4, lw=0.8)
        ax.set(xlabel="t", ylabel="position x", title=title, ylim=(-4, 4))
    axes[2].plot(costs, color="black", lw=0.8)
    axes[2].set(xlabel="train step", ylabel="mean cost", title="cost of fresh paths")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    control, costs = run(arguments.seed, **({"steps": 2, "paths": 4} if arguments.smoke else {}))
    count = 50 if arguments.smoke else 5000
    mean, error = price(control, count)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "noisy_oscillator.png"
    draw(control, costs, path)
    print(f"mean cost {mean:.4f} ± {error:.4f}; the best there is: {best_cost(count):.4f}")
    print(f"  {path}")


if __name__ == "__main__":
    main()
