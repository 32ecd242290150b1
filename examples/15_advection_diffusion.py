"""A neural PDE: the unknown flux of an advection-diffusion equation, by the method of lines.

u_t = ∂_z Φ(u) + 0.05 u_zz on (0, 1) with u = 0 at both ends, from a narrow bump. The diffusion is
known; the flux Φ(u) = cos(sin u³ + sin cos u²) is not. On 30 inner points of a grid, ∂_z becomes a
backward difference D1 and ∂_zz a central one D2, and a 30-8-30 network of the whole field takes the
place of Φ. ADAM and then BFGS fit it to the field at 30 times: the root of the mean square of the
difference ends near 0.001.

    python examples/15_advection_diffusion.py [--seed 0] [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

POINTS = 30
SPACING = 1.0 / (POINTS + 1)
GRID = SPACING * np.arange(1, POINTS + 1)
TIMES = np.linspace(0.0, 1.5, 30)
START = np.exp(-200.0 * (GRID - 0.75) ** 2)
DIFFUSION = 0.05

# Both with zeros beyond the ends.
D1 = (np.eye(POINTS) - np.eye(POINTS, k=-1)) / SPACING
D2 = (np.eye(POINTS, k=1) - 2.0 * np.eye(POINTS) + np.eye(POINTS, k=-1)) / SPACING**2


def true_flux(u):
    """The flux that made the data."""
    return tf.cos(tf.sin(u**3) + tf.sin(tf.cos(u**2)))


def states(flux, p=None, rtol=1e-6):
    """The field at `TIMES`, `(30, 30)`: time, then space; `flux(u, p)`."""

    def field(t, u, p):
        advection = tf.linalg.matvec(tf.constant(D1), flux(u, p))
        return advection + DIFFUSION * tf.linalg.matvec(tf.constant(D2), u)

    problem = nde.ODEProblem(field, START, (0.0, TIMES[-1]), p)
    return nde.solve(problem, "tsit5", saveat=TIMES, rtol=rtol, atol=rtol, throw=False).y


def data():
    """The field that the true flux makes."""
    return states(lambda u, p: true_flux(u), rtol=1e-10)


def network(seed):
    """The weights as a vector, and the flux as a function `(u, weights)`."""
    keras.utils.set_random_seed(seed)
    dense = {"dtype": "float64"}
    model = keras.Sequential(
        [
            keras.Input((POINTS,), dtype="float64"),
            keras.layers.Dense(8, "tanh", **dense),
            keras.layers.Dense(POINTS, "tanh", **dense),
        ]
    )
    weights, apply = nde.flatten_parameters(model)
    return weights, lambda u, p: apply(p, u[None])[0]


def run(seed=0, iterations=(200, 300)):
    """Fits: `(result, field)`, the field at `TIMES` as the network makes it."""
    target = data()
    weights, flux = network(seed)

    def loss(weights):
        return tf.reduce_mean((states(flux, weights) - target) ** 2)

    stages = [
        (keras.optimizers.Adam(0.01), iterations[0]),
        (nde.optimizers.BFGS(initial_step_norm=0.01), iterations[1]),
    ]
    result = nde.minimize(loss, weights, stages)
    return result, states(flux, result.minimizer)


def draw(field, path):
    """Space-time maps of the data, of the fit and of their difference."""
    import matplotlib.pyplot as plt

    target = data().numpy()
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout="constrained")
    error = field.numpy() - target
    largest = max(np.abs(error).max(), 1e-12)
    extent = (0.0, TIMES[-1], GRID[0], GRID[-1])
    for ax, values, title in zip(
        axes, (target, field.numpy(), error), ("data", "network", "network - data"), strict=True
    ):
        limits = (-largest, largest) if values is error else (0.0, target.max())
        image = ax.imshow(
            values.T, origin="lower", aspect="auto", extent=extent, vmin=limits[0], vmax=limits[1],
            cmap="RdBu_r" if values is error else "viridis",
        )  # fmt: skip
        ax.set(xlabel="t", title=title)
        figure.colorbar(image, ax=ax, label="u")
    axes[0].set_ylabel("z")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few iterations only")
    arguments = parser.parse_args()
    iterations = (2, 2) if arguments.smoke else (200, 300)
    result, field = run(arguments.seed, iterations)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "advection_diffusion.png"
    draw(field, path)
    print(result)
    print(f"  {path}")


if __name__ == "__main__":
    main()
