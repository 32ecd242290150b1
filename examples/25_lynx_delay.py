"""A delay found in a real record: Hutchinson's equation on the lynx pelts of 1900 to 1920.

A population that is held back by how many it was some time ago: y' = r y (1 - y(t - τ) / K), the
delayed logistic equation (Hutchinson, "Circular causal systems in ecology", Annals of the New York
Academy of Sciences 50, 1948). It knows nothing of the hares. Its steady state K gives way to
lasting cycles where r τ > π/2. Fitted are r, τ, K and the level before 1900, four numbers for
twenty-one counts, in logarithms; gradients reach the lag through the solve.

The fit says what one equation of this kind can explain, not that lynx behave so: the delay of a
predator also stands for its prey, which the equation leaves out.

    python examples/25_lynx_delay.py [--output demo_output] [--smoke]

Data: examples/data (Hudson's Bay Company pelt records).
"""

import argparse
import pathlib

import numpy as np
import tensorflow as tf

import keras_neuralde as nde

DATA = pathlib.Path(__file__).parent / "data" / "hudson_bay_lynx_hare.csv"
# Logarithms of r, τ, K and the past, far from the answer.
START = np.log([0.9, 1.9, 15.0, 4.0])
NAMES = ("r", "τ", "K", "before 1900")


def record():
    """Years and thousands of lynx pelts."""
    table = np.genfromtxt(DATA, delimiter=",", names=True)
    return table["year"], table["lynx_thousands"]


def solve(p, times):
    """The logarithm of the population, from logarithms of the four numbers."""
    rate, lag, capacity = tf.exp(p[0]), tf.exp(p[1]), p[2]

    def f(t, x, h, q):
        return rate * (1.0 - tf.exp(h(t - lag) - capacity))

    problem = nde.DDEProblem(f, p[3], lambda t, q: p[3], (0.0, 20.0), lags=[lag])
    return nde.solve(problem, "tsit5", saveat=times, rtol=1e-6, atol=1e-8, max_record=512).y


def run(iterations=60):
    """Fits: the result of `minimize`."""
    years, counts = record()
    times, logarithms = years - years[0], np.log(counts)

    def loss(p):
        return tf.reduce_sum((solve(p, times) - logarithms) ** 2)

    bfgs = nde.optimizers.BFGS(initial_step_norm=0.1)
    return nde.minimize(loss, tf.constant(START), bfgs, max_iters=iterations)


def explained(result):
    """The share of the variance of the logarithms that the fit explains."""
    logarithms = np.log(record()[1])
    return 1.0 - float(result.minimum) / np.sum((logarithms - logarithms.mean()) ** 2)


def draw(result, path):
    """The counts and the fit."""
    import matplotlib.pyplot as plt

    years, counts = record()
    fine = np.linspace(0.0, 20.0, 401)
    figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    fit = np.exp(solve(result.minimizer, fine))
    ax.plot(years[0] + fine, fit, color="#0072B2", label="delayed logistic, fit")
    ax.plot(years, counts, "o", color="#D55E00", mfc="none", label="lynx pelts")
    ax.set(xlabel="year", ylabel="pelts (thousands)", xticks=np.arange(1900, 1921, 4))
    ax.set_yscale("log")
    ax.set_yticks([5, 10, 20, 40], labels=["5", "10", "20", "40"])
    ax.minorticks_off()
    ax.legend(loc="upper center")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    result = run(2 if arguments.smoke else 60)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "lynx_delay.png"
    draw(result, path)
    found = np.exp(result.minimizer)
    for name, value in zip(NAMES, found, strict=True):
        print(f"{name:12} {value:.4g}")
    print(f"r τ = {found[0] * found[1]:.3f}; lasting cycles above π/2 = {np.pi / 2:.3f}")
    print(f"{explained(result):.0%} of the variance of the logarithms; loss {result.minimum:.5g}")
    print(f"  {path}")


if __name__ == "__main__":
    main()
