"""Control of a delay equation: rates that hold a predator and its prey at one.

Prey grow by the number of a tenth of a time unit ago: x' = (α - βy) x(t - 0.1), y' = (δx - γ) y.
Both were one until t = 0. `minimize` looks for the (α, β, δ, γ) that keep them there: ADAM from
(2.2, 1, 2, 0.4), where the loss Σ (u - 1)² over 101 times is 370, then BFGS. Any α = β and δ = γ
does, so that the true minimum is 0. The gradient goes through the past that every step reads.

    python examples/16_delay_control.py [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

TIMES = np.linspace(0.0, 10.0, 101)
START = np.array([2.2, 1.0, 2.0, 0.4])
LAG = 0.1


def lotka_volterra(t, u, h, p):
    """x' = (α - βy) x(t - 0.1), y' = (δx - γ) y."""
    alpha, beta, delta, gamma = tf.unstack(p)
    x, y = tf.unstack(u)
    return tf.stack([(alpha - beta * y) * h(t - LAG)[0], (delta * x - gamma) * y])


def ones(t, p):
    """The past."""
    return tf.ones(2, p.dtype)


def states(p, rtol=1e-3):
    """Prey and predators at `TIMES`, `(101, 2)`."""
    problem = nde.DDEProblem(lotka_volterra, np.ones(2), ones, (0.0, 10.0), p, lags=[LAG])
    return nde.solve(problem, saveat=TIMES, rtol=rtol, atol=min(rtol, 1e-6)).y


def loss(p, rtol=1e-3):
    """The sum over the 202 values of (u - 1)²."""
    return tf.reduce_sum((states(p, rtol) - 1.0) ** 2)


def run(adam=100, max_iters=None):
    """Minimizes: the result."""
    stages = [
        (keras.optimizers.Adam(0.1), adam),
        (nde.optimizers.BFGS(initial_step_norm=0.01), max_iters),
    ]
    return nde.minimize(loss, tf.constant(START), stages, freeze_steps=True)


def draw(before, after, path):
    """Both species before and after."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for ax, u, title in zip(axes, (before, after), ("start", "after BFGS"), strict=True):
        ax.plot(TIMES, u[:, 0], color="#0072B2", label="prey x")
        ax.plot(TIMES, u[:, 1], "--", color="#D55E00", label="predators y")
        ax.set(xlabel="t", title=title)
        ax.legend(loc="upper center", ncols=2)
    axes[0].set_ylabel("population")
    axes[0].set_ylim(0.0, 1.25 * before.max())
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    result = run(*(2, 2) if arguments.smoke else ())
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "delay_control.png"
    draw(states(tf.constant(START)).numpy(), states(result.minimizer).numpy(), path)
    print(result)
    print(f"  {'at rtol=1e-10':<20} {loss(result.minimizer, 1e-10):.3g}")
    print(f"  {'(α, β, δ, γ)':<20} {np.array2string(result.minimizer.numpy(), precision=7)}")
    print(f"  {path}")


if __name__ == "__main__":
    main()
