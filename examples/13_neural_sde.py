"""A neural SDE: drift and diffusion of a noisy spiral from its moments.

The cubic spiral u1' = -0.1 u1³ - 2 u2³, u2' = 2 u1³ - 0.1 u2³ with the noise 0.2 u dW is known
through the means and variances of 10,000 paths at 30 times on (0, 1). A `NeuralDSDE` has a network
2-50-2 of u³ as drift and a linear layer as diffusion. ADAM(0.025) minimizes the squared distances
of means and variances over fresh paths: 100 steps with 10 paths, then 100 steps with 100, and
`--more` of them on request. The loss before and after is measured on 2,000 fixed paths that
training never saw.

Gradients are clipped to a norm of 10. The first ones, of an untrained and loud diffusion, are far
larger, and ADAM's average of squares remembers them for longer than 200 steps: without clipping the
same steps end at a loss of 23 instead of 0.8.

    python examples/13_neural_sde.py [--seed 0] [--more 400] [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

TIMES = np.linspace(0.0, 1.0, 30)
Y0 = np.array([[2.0, 0.0]], np.float32)


def spiral(t, u, p):
    """(-0.1 u1³ - 2 u2³, 2 u1³ - 0.1 u2³)."""
    cube = u**3
    x, y = cube[..., 0], cube[..., 1]
    return tf.stack([-0.1 * x - 2.0 * y, 2.0 * x - 0.1 * y], -1)


def truth(count=10_000):
    """Means and variances of the data, each `(30, 2)`."""
    problem = nde.SDEProblem(spiral, lambda t, u, p: 0.2 * u, Y0[0], (0.0, 1.0))
    sol = nde.solve_ensemble(problem, count, "sosri", seed=1, saveat=TIMES, dt0=1 / 58,
                             controller="constant")  # fmt: skip
    summary = sol.summary()
    return summary.mean, summary.var


@keras.saving.register_keras_serializable("examples")
class Cube(keras.layers.Layer):
    """u³."""

    def call(self, u):
        return u**3


def build(seed):
    """Drift and diffusion."""
    keras.utils.set_random_seed(seed)
    drift = keras.Sequential([Cube(), keras.layers.Dense(50, "tanh"), keras.layers.Dense(2)])
    return drift, keras.layers.Dense(2)


def layer(models, trajectories, seed):
    """The neural SDE, with that many paths from each start."""
    return nde.NeuralDSDE(
        *models, (0.0, 1.0), "sosri", dt0=1 / 58, controller="constant", saveat=TIMES,
        trajectories=trajectories, seed=seed,
    )  # fmt: skip


def loss(paths, data):
    """Σ (means apart)² + Σ (variances apart)²; paths are `(1, n, 30, 2)`."""
    found = tf.nn.moments(paths[0], axes=[0])
    return tf.add_n([tf.reduce_sum((a - b) ** 2) for a, b in zip(found, data, strict=True)])


def run(seed=0, stages=((10, 100), (100, 100)), held_out=2000):
    """Trains: `(models, losses, validation losses before and after, validation layer, data)`."""
    data = truth()
    models = build(seed)
    validation = layer(models, held_out, seed=10_000)
    before = validation(Y0).numpy()
    optimizer = keras.optimizers.Adam(0.025, global_clipnorm=10.0)
    losses = []
    for trajectories, steps in stages:
        paths = layer(models, trajectories, seed)

        @tf.function(jit_compile=True)
        def step(paths=paths):
            weights = [*models[0].trainable_variables, *models[1].trainable_variables]
            with tf.GradientTape() as tape:
                value = loss(paths(Y0, training=True), data)
            optimizer.apply(tape.gradient(value, weights), weights)
            return value

        paths.build(Y0.shape)
        optimizer.build([*models[0].trainable_variables, *models[1].trainable_variables])
        losses += [float(step()) for _ in range(steps)]
    after = validation(Y0).numpy()
    return models, np.array(losses), before, after, data


def draw(before, after, losses, data, path):
    """Ribbons of two standard deviations before and after, and the loss."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 4.0), layout="constrained")
    mean, variance = (np.asarray(moment) for moment in data)
    for ax, paths, title in zip(axes, (before, after), ("before", "after"), strict=False):
        for k, (name, color) in enumerate((("$u_1$", "#0072B2"), ("$u_2$", "#D55E00"))):
            found, spread = paths[0, :, :, k].mean(0), paths[0, :, :, k].std(0)
            ax.plot(TIMES, found, color=color, label=f"{name} neural SDE, ± 2σ")
            ax.fill_between(TIMES, found - 2 * spread, found + 2 * spread, color=color, alpha=0.2)
            ax.errorbar(TIMES, mean[:, k], 2 * np.sqrt(variance[:, k]), fmt="o", ms=3, lw=1,
                        color=color, mfc="none", label=f"{name} data, ± 2σ")  # fmt: skip
        ax.set(xlabel="t", title=title)
    axes[0].set_ylabel("state")
    handles = axes[1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4)
    axes[2].semilogy(losses, color="black", lw=1)
    axes[2].set(xlabel="train step", ylabel="loss", title="loss over fresh paths")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--more", type=int, default=0, help="further steps with 100 paths")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    keywords = {"stages": ((10, 100), (100, 100 + arguments.more))}
    if arguments.smoke:
        keywords = {"stages": ((3, 2), (5, 2)), "held_out": 20}
    _, losses, before, after, data = run(arguments.seed, **keywords)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "neural_sde.png"
    draw(before, after, losses, data, path)
    for name, paths in (("before", before), ("after", after)):
        print(f"loss on held-out paths {name}: {float(loss(tf.constant(paths), data)):.4g}")
    print(f"  {path}")


if __name__ == "__main__":
    main()
