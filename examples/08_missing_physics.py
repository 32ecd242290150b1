"""Missing physics: a network takes the place of an unknown interaction, and a formula its place.

Of the Lotka-Volterra equations only growth of the prey and death of the predators are known:

    x' = 1.3 x + U₁(x, y),    y' = -1.8 y + U₂(x, y),

with U a network 2-5-5-5-2 and Gaussian activations exp(-x²). The truth is U₁ = -0.9 xy and
U₂ = 0.8 xy. Data: 31 points of 0 ≤ t ≤ 3 from (0.44249296, 4.6280594), with normal noise of 0.5% of
each species' mean. ADAM(0.1) makes 200 iterations, BFGS follows; the loss is the sum of squares.

Then a sparse regression reads a formula off the network: the best monomials up to degree 2, one
more only where it divides the residual by three. BFGS fits the coefficients to the data. The
equation with the formula runs to t = 9, three times as long as the data, and its error is plotted
beside that of the network, which knows nothing of states that it has not seen.

The set-up is scenario 1 of C. Rackauckas et al., "Universal Differential Equations for Scientific
Machine Learning" (2020), https://github.com/ChrisRackauckas/universal_differential_equations.

    python examples/08_missing_physics.py [--seed 0] [--output demo_output] [--smoke]
"""

import argparse
import itertools
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

GROWTH, EATEN, BORN, DEATH = 1.3, 0.9, 0.8, 1.8
Y0 = np.array([0.44249296, 4.6280594])
TIMES = np.linspace(0.0, 3.0, 31)
HORIZON = 9.0
MONOMIALS = ("1", "x", "y", "x²", "xy", "y²")


def interaction(y):
    """The truth that the model does not know: (-0.9 xy, 0.8 xy)."""
    xy = y[..., :1] * y[..., 1:]
    return tf.concat([-EATEN * xy, BORN * xy], -1)


def hybrid(unknown, y0=Y0, t_end=3.0, p=None):
    """Growth and death, and `unknown(y, p)` for what happens between the species."""

    def field(t, y, p):
        return tf.constant([GROWTH, -DEATH], tf.float64) * y + unknown(y, p)

    return nde.ODEProblem(field, y0, (0.0, t_end), p)


def truth(times):
    """Prey and predators at `times`, `(n, 2)`."""
    problem = hybrid(lambda y, p: interaction(y), t_end=float(times[-1]))
    return nde.solve(problem, "tsit5", saveat=times, rtol=1e-11, atol=1e-11).y.numpy()


def measured(seed, noise=0.005):
    """The data, `(31, 2)`."""
    clean = truth(TIMES)
    deviation = noise * clean.mean(axis=0)
    return clean + deviation * np.random.default_rng(seed).normal(size=clean.shape)


def gaussian(x):
    """The activation exp(-x²)."""
    return tf.exp(-(x**2))


def start(seed):
    """The weights as a vector, and the network as a function of them."""
    keras.utils.set_random_seed(seed)
    dense = {"dtype": "float64"}
    hidden = [keras.layers.Dense(5, gaussian, **dense) for _ in range(3)]
    return nde.flatten_parameters(
        keras.Sequential(
            [keras.Input((2,), dtype="float64"), *hidden, keras.layers.Dense(2, **dense)]
        )
    )


def run(seed=0, adam_steps=200, bfgs_steps=2000):
    """Trains from one seed of noise and weights: `(result, network(y, p), data)`."""
    data = measured(seed)
    p, apply = start(seed)

    def network(y, p):
        return tf.reshape(apply(p, tf.reshape(y, (-1, 2))), tf.shape(y))

    problem = hybrid(network, data[0], p=p)

    def loss(p):
        sol = nde.solve(
            problem.remake(p=p), "tsit5", saveat=TIMES, rtol=1e-7, atol=1e-7, throw=False
        )
        return tf.reduce_sum((sol.y - data) ** 2)

    bfgs = nde.optimizers.BFGS(initial_step_norm=0.01)
    stages = [(keras.optimizers.Adam(0.1), adam_steps), (bfgs, bfgs_steps)]
    return nde.minimize(loss, p, stages), network, data


def library(y):
    """The monomials at states `(n, 2)`: `(n, 6)`."""
    x, y = y.T
    return np.stack([np.ones_like(x), x, y, x**2, x * y, y**2], 1)


def regress(y, values, gain=3.0):
    """The sparsest good fit of the monomials: coefficients `(6, 2)`, most of them zero.

    Along one trajectory the monomials are nearly dependent, and thresholding a fit of all of them
    can lose the right one. There are few: all sets are tried.
    """
    terms = library(y)
    coefficients = np.zeros((terms.shape[1], 2))
    for k, target in enumerate(values.T):
        residual = np.linalg.norm(target)
        for size in range(1, terms.shape[1] + 1):
            fits = []
            for kept in itertools.combinations(range(terms.shape[1]), size):
                solved = np.linalg.lstsq(terms[:, kept], target, rcond=None)[0]
                fits.append((np.linalg.norm(terms[:, kept] @ solved - target), kept, solved))
            smaller, kept, solved = min(fits, key=lambda fit: fit[0])
            if residual <= 1e-9 * np.linalg.norm(target) or smaller > residual / gain:
                break
            residual = smaller
            coefficients[:, k] = 0.0
            coefficients[list(kept), k] = solved
    return coefficients


def formula(y, p):
    """U from coefficients `(6, 2)` of the monomials."""
    x, z = y[..., :1], y[..., 1:]
    terms = tf.concat([tf.ones_like(x), x, z, x**2, x * z, z**2], -1)
    return tf.linalg.matvec(p, terms, transpose_a=True)


def refine(coefficients, data):
    """The coefficients that are not zero, fitted to the data."""
    kept = tf.constant((coefficients != 0.0).astype(float))
    problem = hybrid(formula, data[0])

    def loss(p):
        sol = nde.solve(
            problem.remake(p=kept * p), "tsit5", saveat=TIMES, rtol=1e-7, atol=1e-7, throw=False
        )
        return tf.reduce_sum((sol.y - data) ** 2)

    bfgs = nde.optimizers.BFGS(initial_step_norm=0.01)
    return nde.minimize(loss, tf.constant(coefficients), bfgs, max_iters=100).minimizer.numpy()


def recover(result, network, data):
    """What the network learned and the formula read off it: a dictionary."""
    fine = np.linspace(0.0, 3.0, 61)
    problem = hybrid(network, data[0], p=result.minimizer)
    y = nde.solve(problem, saveat=fine, rtol=1e-8, atol=1e-8).y.numpy()
    learned, true = network(y, result.minimizer).numpy(), interaction(y).numpy()
    read = regress(y, learned)
    coefficients = refine(read, data)
    long = np.linspace(0.0, HORIZON, 361)
    reference = truth(long)
    curves = {}
    for name, unknown, p in (
        ("network", network, result.minimizer),
        ("formula", formula, tf.constant(coefficients)),
    ):
        sol = nde.solve(
            hybrid(unknown, Y0, HORIZON, p), saveat=long, rtol=1e-8, atol=1e-8, throw=False
        )
        curves[name] = sol.y.numpy()
    return {
        "fine": fine,
        "learned": learned,
        "true": true,
        "read": read,
        "coefficients": coefficients,
        "long": long,
        "reference": reference,
        "curves": curves,
        "errors": {name: np.abs(y - reference).max(axis=1) for name, y in curves.items()},
    }


def written(coefficients):
    """The formulas as text."""

    def one(column):
        terms = zip(column, MONOMIALS, strict=True)
        return " ".join(f"{c:+.4f} {name}" for c, name in terms if c) or "0"

    return [f"U{index} = {one(column)}" for index, column in zip("₁₂", coefficients.T, strict=True)]


def draw(result, data, found, adam_steps, path):
    """Loss, interaction, extrapolation, error."""
    import matplotlib.pyplot as plt

    blue, orange, green = "#0072B2", "#D55E00", "#009E73"
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    axes[0, 0].loglog(np.arange(1, len(result.history) + 1), result.history, color="black")
    axes[0, 0].axvline(adam_steps, color="gray", ls=":")
    axes[0, 0].set(xlabel="iteration", ylabel="sum of squared errors", title="ADAM, then BFGS")
    for k, color in enumerate((blue, orange)):
        axes[0, 1].plot(found["fine"], found["true"][:, k], color="0.75", lw=5)
        axes[0, 1].plot(found["fine"], found["learned"][:, k], color=color, label=f"U{'₁₂'[k]}")
        axes[1, 0].plot(found["long"], found["reference"][:, k], color="0.75", lw=5)
        axes[1, 0].plot(found["long"], found["curves"]["formula"][:, k], color=color)
        axes[1, 0].plot(TIMES, data[:, k], "o", color=color, ms=4, label=("prey", "predators")[k])
    axes[0, 1].set(xlabel="t", ylabel="rate", title="The interaction: network, and truth in gray")
    axes[1, 0].set(xlabel="t", ylabel="population")
    axes[1, 0].set_title("The formula, to three times the time of the data")
    for name, color in (("network", blue), ("formula", green)):
        axes[1, 1].semilogy(found["long"], found["errors"][name] + 1e-12, color=color, label=name)
    axes[1, 1].set(xlabel="t", ylabel="largest error of both species", ylim=(1e-5, 1e2))
    axes[1, 1].set_title("Error against the truth")
    for ax in axes[1]:
        ax.axvspan(0.0, TIMES[-1], color="0.93", zorder=0)
    for ax in axes.ravel()[1:]:
        ax.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    steps = (5, 3) if arguments.smoke else (200, 2000)
    result, network, data = run(arguments.seed, *steps)
    found = recover(result, network, data)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "missing_physics.png"
    draw(result, data, found, steps[0], path)
    after_adam = result.history[min(steps[0], len(result.history)) - 1]
    print(result)
    print(f"  loss after ADAM      {after_adam:.4g}")
    print("  truth                U₁ = -0.9 xy, U₂ = +0.8 xy")
    print("  read off the network " + ", ".join(written(found["read"])))
    print("  fitted to the data   " + ", ".join(written(found["coefficients"])))
    for name, error in found["errors"].items():
        inside = error[found["long"] <= 3.0].max()
        print(f"  error of the {name}: {inside:.2g} to t = 3, {error.max():.2g} to t = {HORIZON:g}")
    print(f"  {path}")


if __name__ == "__main__":
    main()
