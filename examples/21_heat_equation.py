"""Two coefficients of a heat equation, constrained by the equation itself.

u_t = 2 a₀ u + a₁ u_xx on 1,001 points of [0, 10], from a bump at x = 3, with a source alone at the
two ends. From the field at 1,001 times up to 0.04, ADAM and then BFGS recover a = (1, 1) from
(0.1, 0.2), where the sum of squares is 153.747: to nine digits.

    python examples/21_heat_equation.py [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

SPACING = 0.01
GRID = SPACING * np.arange(1001)
START = np.exp(-((GRID - 3.0) ** 2))
TIMES = 0.4 * SPACING**2 * np.arange(1001)
TRUTH, GUESS = np.array([1.0, 1.0]), np.array([0.1, 0.2])

_second = nde.FiniteDifference(2, SPACING, "dirichlet")
_inside = np.ones(1001)
_inside[[0, -1]] = 0.0


def field(t, u, a):
    """The method of lines; nothing diffuses through the ends."""
    return 2.0 * a[0] * u + a[1] * tf.constant(_inside) * _second(u[None])[0]


def states(a, tolerance=1e-6):
    """The field at `TIMES`, `(1001, 1001)`: time, then space."""
    problem = nde.ODEProblem(field, START, (0.0, TIMES[-1]), a)
    return nde.solve(problem, "tsit5", saveat=TIMES, rtol=tolerance, atol=tolerance).y


def loss_function(target):
    """The sum of squares as a function of a."""
    return lambda a: tf.reduce_sum((states(a) - target) ** 2)


def run(iterations=(100, 50)):
    """Fits, and returns the result of `minimize`."""
    target = states(TRUTH)
    stages = [
        (keras.optimizers.Adam(0.01), iterations[0]),
        (nde.optimizers.BFGS(initial_step_norm=0.01), iterations[1]),
    ]
    return nde.minimize(loss_function(target), GUESS, stages)


def draw(result, path):
    """Space-time maps of the data and of what is left of it at the guess and at the end."""
    import matplotlib.pyplot as plt

    target = states(TRUTH).numpy()
    panels = [
        ("data", target),
        (f"a = {tuple(GUESS.tolist())}: difference", states(GUESS).numpy() - target),
        ("a fitted: difference", states(result.minimizer).numpy() - target),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), sharey=True, layout="constrained")
    for ax, (title, values) in zip(axes, panels, strict=True):
        signed = title != "data"
        largest = np.abs(values).max()
        image = ax.imshow(
            values.T, origin="lower", aspect="auto", extent=(0.0, TIMES[-1], 0.0, 10.0),
            vmin=-largest if signed else 0.0, vmax=largest, cmap="RdBu_r" if signed else "viridis",
        )  # fmt: skip
        ax.set(xlabel="t", title=title)
        figure.colorbar(image, ax=ax, label="u")
    axes[0].set_ylabel("x")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few iterations only")
    arguments = parser.parse_args()
    result = run((2, 1) if arguments.smoke else (100, 50))
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "heat_equation.png"
    draw(result, path)
    print(result)
    print("a:", result.minimizer.numpy())
    print(f"  {path}")


if __name__ == "__main__":
    main()
