"""A neural PDE: the reaction and the stencil of the Fisher-KPP equation, both learned from data.

u_t = 0.01 u_xx + u (1 - u) on a ring, from a bump. The model knows that there is diffusion and a
reaction and no more: a stencil of three weights takes the place of u_xx, a 1-10-20-10-1 network of
u at a point that of the reaction. ADAM and then BFGS fit both to the field at 11 times; the sum of
squares is at most 1e-4. What comes out is the stencil 6.25 (1, -2, 1) and the parabola u (1 - u).

    python examples/20_fisher_kpp.py [--seed 0] [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

SPACING = 0.04
GRID = SPACING * np.arange(26)
TIMES = np.linspace(0.0, 5.0, 11)
DIFFUSION = 0.01
WIDTH = 0.2
START = 0.5 * (
    np.tanh((GRID - (0.5 - WIDTH / 2)) / (WIDTH / 10))
    - np.tanh((GRID - (0.5 + WIDTH / 2)) / (WIDTH / 10))
)
# A guess of the diffusivity over the square of the spacing, and of the stencil.
SCALE, STENCIL = 6.5, np.array([1.1, -2.5, 1.0])


def solve(field, p=None, tolerance=1e-6):
    """The field at `TIMES`, `(11, 26)`."""
    problem = nde.ODEProblem(field, START, (0.0, TIMES[-1]), p)
    keywords = {"saveat": TIMES, "rtol": tolerance, "atol": tolerance, "throw": False}
    return nde.solve(problem, "tsit5", **keywords).y


def data():
    """The field that the equation makes."""
    second = nde.FiniteDifference(2, SPACING, "periodic")
    return solve(lambda t, u, p: DIFFUSION * second(u[None])[0] + u * (1.0 - u), tolerance=1e-10)


def model(seed):
    """The parameters as a nest, the reaction `(u, weights)` and the field `(t, u, p)`."""
    keras.utils.set_random_seed(seed)
    dense = {"dtype": "float64"}
    network = keras.Sequential(
        [
            keras.Input((1,), dtype="float64"),
            keras.layers.Dense(10, "tanh", **dense),
            keras.layers.Dense(20, "tanh", **dense),
            keras.layers.Dense(10, "tanh", **dense),
            keras.layers.Dense(1, **dense),
        ]
    )
    weights, apply = nde.flatten_parameters(network)

    def reaction(u, weights):
        return apply(weights, u[:, None])[:, 0]

    def field(t, u, p):
        left, right = tf.roll(u, 1, 0), tf.roll(u, -1, 0)
        w = p["stencil"]
        diffusion = p["scale"] * (w[0] * left + w[1] * u + w[2] * right)
        return diffusion + reaction(u, p["weights"])

    start = {
        "weights": weights,
        "stencil": tf.constant(STENCIL),
        "scale": tf.constant(SCALE, "float64"),
    }
    return start, reaction, field


def run(seed=0, iterations=(400, 1000)):
    """Fits: `(result, reaction, states)`, the field at `TIMES` as the model makes it."""
    target = data()
    start, reaction, field = model(seed)

    def loss(p):
        # Diffusion leaves a constant alone: the weights of its stencil sum to zero.
        penalty = 100.0 * tf.reduce_sum(p["stencil"]) ** 2
        return tf.reduce_sum((solve(field, p) - target) ** 2) + penalty

    stages = [
        (keras.optimizers.Adam(0.003), iterations[0]),
        (nde.optimizers.BFGS(initial_step_norm=0.01), iterations[1]),
    ]
    result = nde.minimize(loss, start, stages)
    return result, reaction, solve(field, result.minimizer)


def draw(result, reaction, field, path):
    """Space-time maps of the data and of the error, and what was learned."""
    import matplotlib.pyplot as plt

    target = data().numpy()
    error = field.numpy() - target
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    extent = (0.0, TIMES[-1], 0.0, 1.0)
    largest = max(np.abs(error).max(), 1e-12)
    for ax, values, title in zip(
        axes.flat, (target, field.numpy(), error), ("data", "model", "model - data"), strict=False
    ):
        limits = (-largest, largest) if values is error else (0.0, 1.0)
        image = ax.imshow(
            values.T, origin="lower", aspect="auto", extent=extent, vmin=limits[0], vmax=limits[1],
            cmap="RdBu_r" if values is error else "viridis",
        )  # fmt: skip
        ax.set(xlabel="t", ylabel="x", title=title)
        figure.colorbar(image, ax=ax, label="u")
    u = np.linspace(0.0, 1.0, 101)
    axes[1, 1].plot(u, u * (1.0 - u), "k", label="u (1 - u)")
    learned = reaction(tf.constant(u), result.minimizer["weights"])
    axes[1, 1].plot(u, learned, "--", color="#D55E00", label="network")
    axes[1, 1].set(xlabel="u", ylabel="rate", title="reaction")
    axes[1, 1].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line; returns the result of the fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few iterations only")
    arguments = parser.parse_args()
    iterations = (20, 20) if arguments.smoke else (400, 1000)
    result, reaction, field = run(arguments.seed, iterations)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "fisher_kpp.png"
    draw(result, reaction, field, path)
    print(result)
    p = result.minimizer
    print("stencil:", np.round((p["scale"] * p["stencil"]).numpy(), 4), "for 6.25 (1, -2, 1)")
    print(f"  {path}")
    return result


if __name__ == "__main__":
    main()
