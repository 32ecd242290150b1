"""Control under noise: which rates hold a noisy predator and its prey near one?

The Lotka-Volterra equations x' = αx - βxy, y' = -δy + γxy with the multiplicative noises 0.1 x dW1
and 0.1 y dW2, from x = y = 1 and the rates (2.2, 1, 2, 0.4), which let the prey run away. ADAM(0.1)
makes 100 steps on the mean over 32 paths of Σ (u - 1)² over 101 times; every step draws new paths.
What noise leaves cannot go to 0: the last loss is compared with that of rates that ignore noise.

    python examples/11_stochastic_control.py [--output demo_output] [--smoke]
"""

import argparse
import itertools
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

TIMES = np.linspace(0.0, 10.0, 101)
START = np.array([2.2, 1.0, 2.0, 0.4])


def drift(t, u, p):
    """(αx - βxy, -δy + γxy)."""
    alpha, beta, delta, gamma = tf.unstack(p)
    x, y = u[..., 0], u[..., 1]
    return tf.stack([alpha * x - beta * x * y, -delta * y + gamma * x * y], -1)


def noise(t, u, p):
    """A tenth of each population."""
    return 0.1 * u


def paths(p, count, seed):
    """Prey and predators, `(101, count, 2)`."""
    problem = nde.SDEProblem(drift, noise, np.ones((count, 2)), (0.0, 10.0), p)
    return nde.solve(
        problem, "milstein", saveat=TIMES, dt0=0.05, controller="constant", batch_ndims=1, seed=seed
    ).y


def loss(p, seed, count=32):
    """The mean over paths of the sum of (u - 1)² over the 202 values."""
    return tf.reduce_sum((paths(p, count, seed) - 1.0) ** 2) / count


def run(max_iters=100):
    """Minimizes: the result."""
    seeds = ((tf.constant([step, 0]),) for step in itertools.count())
    return nde.minimize(
        loss, tf.constant(START), keras.optimizers.Adam(0.1), max_iters=max_iters, batches=seeds
    )


def draw(before, after, path):
    """Twenty paths of both species, before and after."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for ax, u, title in zip(axes, (before, after), ("start", "after ADAM"), strict=True):
        for k, (name, color) in enumerate((("prey x", "#0072B2"), ("predators y", "#D55E00"))):
            ax.plot(TIMES, u[:, :20, k], color=color, alpha=0.3, lw=0.8)
            ax.plot(TIMES, u[:, :, k].mean(1), color=color, lw=2, label=f"{name}, mean")
        ax.axhline(1.0, color="black", ls=":", lw=1)
        ax.set(xlabel="t", title=title)
        ax.legend(loc="upper left")
    axes[0].set_ylabel("population")
    axes[1].set_ylim(0.0, 3.0)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    result = run(2 if arguments.smoke else 100)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "stochastic_control.png"
    start, best = tf.constant(START), result.minimizer
    draw(paths(start, 200, 1).numpy(), paths(best, 200, 1).numpy(), path)
    same = tf.constant([1.0, 1.0, 1.0, 1.0], tf.float64)
    print(f"rates {np.array2string(best.numpy(), precision=3)}")
    for name, p in (("start", start), ("after ADAM", best), ("all rates 1", same)):
        print(f"  loss over 200 new paths, {name}: {float(loss(p, tf.constant([1, 1]), 200)):.4g}")
    print(f"  {path}")


if __name__ == "__main__":
    main()
