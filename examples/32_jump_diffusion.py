"""A neural jump diffusion: what a noisy spiral does at its jumps, from means.

du = f dt + 0.2 u dW from (2, 0), f the cubic spiral; at the rate 2 the first component is halved.
The data are the means of 10,000 paths at 30 times. The model has a drift (u³ through 2-50-2), the
known noise and rate, and a network 2-50-2 as the map of the jumps; it is trained with ADAM on the
means of fresh paths. No single path is ever seen.

    python examples/32_jump_diffusion.py [--seed 0] [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

SPAN, START, RATE, NOISE = (0.0, 1.0), np.array([2.0, 0.0], np.float32), 2.0, 0.2
TIMES = np.linspace(*SPAN, 30)
STEPS = {"dt0": 1.0 / 29.0, "controller": "constant"}
A = np.array([[-0.1, 2.0], [-2.0, -0.1]], np.float32)


def truth(paths, seed):
    """The means of the data, `(30, 2)`, and their standard deviations."""
    spiral = nde.SDEProblem(
        lambda t, u, p: tf.linalg.matvec(A, u**3, transpose_a=True), lambda t, u, p: NOISE * u,
        START, SPAN,
    )  # fmt: skip
    halving = nde.ConstantRateJump(RATE, lambda t, u, p: u * tf.constant([0.5, 1.0]))
    problem = nde.JumpProblem(spiral, [halving])
    sol = nde.solve_ensemble(
        problem, paths, "euler_maruyama", saveat=TIMES, seed=seed, dt0=1.0 / 145.0,
        controller="constant",
    )  # fmt: skip
    summary = sol.summary()
    return summary.mean.numpy(), np.sqrt(summary.var.numpy())


@keras.saving.register_keras_serializable("examples")
class Cube(keras.layers.Layer):
    """u³."""

    def call(self, u):
        return u**3


@keras.saving.register_keras_serializable("examples")
class KnownNoise(keras.layers.Layer):
    """The diffusion of the data."""

    def call(self, u):
        return NOISE * u


def model(paths, seed):
    """The layer, whose output is `(1, paths, 30, 2)`."""
    keras.utils.set_random_seed(seed)
    drift = keras.Sequential([Cube(), keras.layers.Dense(50, "tanh"), keras.layers.Dense(2)])
    jump = keras.Sequential([keras.layers.Dense(50, "tanh"), keras.layers.Dense(2)])
    layer = nde.NeuralJumpSDE(
        drift, KnownNoise(), jump, RATE, SPAN, "euler_maruyama", saveat=TIMES, trajectories=paths,
        seed=seed, **STEPS,
    )  # fmt: skip
    layer.build((None, 2))
    return layer


def run(seed=0, steps=400, paths=200, data_paths=10_000):
    """Trains: `(layer, losses, before, after, data)`; the latter are means and deviations."""
    data = truth(data_paths, seed)
    layer = model(paths, seed)
    weights = layer.trainable_variables
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.02, steps))
    optimizer.build(weights)
    start = tf.constant(START[None])

    @tf.function(jit_compile=True)
    def step():
        with tf.GradientTape() as tape:
            mean = tf.reduce_mean(layer(start, training=True)[0], axis=0)
            loss = tf.reduce_sum((mean - data[0]) ** 2)
        optimizer.apply(tape.gradient(loss, weights), weights)
        return loss

    def ribbon():
        y = layer(start)[0].numpy()
        return y.mean(0), y.std(0)

    before = ribbon()
    losses = [float(step()) for _ in range(steps)]
    return layer, np.array(losses), before, ribbon(), data


def draw(losses, before, after, data, path):
    """Means and ribbons before and after, and the loss."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for ax, (mean, spread), title in zip(axes, (before, after), ("before", "after"), strict=False):
        for k, colour in enumerate(("#0072B2", "#D55E00")):
            low, high = mean[:, k] - spread[:, k], mean[:, k] + spread[:, k]
            ax.fill_between(TIMES, low, high, color=colour, alpha=0.2, lw=0)
            ax.plot(TIMES, mean[:, k], color=colour, lw=1.2, label=f"u{k + 1}, model")
            ax.plot(TIMES, data[0][:, k], ".", color=colour, ms=4, label=f"u{k + 1}, data")
        ax.set(xlabel="t", ylabel="mean and deviation", title=title)
    axes[0].legend(fontsize=8)
    axes[2].semilogy(losses, color="black", lw=0.8)
    axes[2].set(xlabel="train step", ylabel="sum of squares of the means")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    small = {"steps": 2, "paths": 8, "data_paths": 50} if arguments.smoke else {}
    _, losses, before, after, data = run(arguments.seed, **small)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "jump_diffusion.png"
    draw(losses, before, after, data, path)
    print(f"loss {losses[0]:.3g} at the start, {np.mean(losses[-20:]):.3g} over the last 20 steps")
    print(f"  {path}")


if __name__ == "__main__":
    main()
