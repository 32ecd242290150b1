"""Control: which rates hold a predator and its prey at one?

The Lotka-Volterra equations x' = αx - βxy, y' = -δy + γxy start at x = y = 1. `minimize` looks for
the (α, β, δ, γ) that keep both there: any with α = β and δ = γ does, so the true minimum of the
loss Σ (u - 1)² over 101 times is 0. BFGS gets there from (1.5, 1, 3, 1) in a few iterations.

A line search compares losses, and the step sequence of an adaptive solver changes with the
parameters: at rtol=1e-3 it stalls at 1e-3, at 1e-6 at 9e-10. The cure is `freeze_steps=True`: the
steps of the current point are kept during each line search, and BFGS ends below 1e-18 at the
default tolerance. (A tight tolerance helps too: 1e-17 at rtol=1e-10.)

    python examples/02_lotka_volterra_control.py [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import numpy as np
import tensorflow as tf

import keras_neuralde as nde

TIMES = np.linspace(0.0, 10.0, 101)
START = np.array([1.5, 1.0, 3.0, 1.0])


def lotka_volterra(t, u, p):
    """x' = αx - βxy, y' = -δy + γxy."""
    alpha, beta, delta, gamma = tf.unstack(p)
    x, y = tf.unstack(u)
    return tf.stack([alpha * x - beta * x * y, -delta * y + gamma * x * y])


def states(p, rtol=1e-3):
    """Prey and predators at `TIMES`, `(101, 2)`."""
    problem = nde.ODEProblem(lotka_volterra, np.ones(2), (0.0, 10.0), p)
    return nde.solve(problem, "tsit5", saveat=TIMES, rtol=rtol, atol=min(rtol, 1e-6)).y


def loss(p, rtol=1e-3):
    """The sum over the 202 values of (u - 1)²."""
    return tf.reduce_sum((states(p, rtol) - 1.0) ** 2)


def run(max_iters=None, rtol=1e-3, freeze_steps=True):
    """Minimizes: the result."""
    return nde.minimize(
        lambda p: loss(p, rtol),
        tf.constant(START),
        nde.optimizers.BFGS(initial_step_norm=1e-4),
        max_iters=max_iters,
        freeze_steps=freeze_steps,
    )


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
    axes[0].set_ylim(0.0, 9.0)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    result = run(3 if arguments.smoke else None)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "lotka_volterra_control.png"
    draw(states(tf.constant(START)).numpy(), states(result.minimizer).numpy(), path)
    print(result)
    print(f"  {'at rtol=1e-10':<20} {loss(result.minimizer, 1e-10):.3g}")
    print(f"  {'(α, β, δ, γ)':<20} {np.array2string(result.minimizer.numpy(), precision=7)}")
    print(f"  {path}")


if __name__ == "__main__":
    main()
