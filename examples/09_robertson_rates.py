"""Stiff: three reaction rates that span nine decades, from data.

Robertson's reactions A → B (rate k1), B + B → B + C (k2), B + C → A + C (k3) run over nine decades
of time, with rates of 0.04, 3e7 and 1e4. The fastest mode decays at more than 1e4, which would keep
explicit steps below 4e-4 all the way to t = 1e5. `rodas5p` takes about two hundred steps, and its
gradient goes through them by the implicit function theorem. The rates are fitted in their
logarithms, from exp(1) each, to the logarithms of the three concentrations at 46 times.

BFGS finds them to 1e-7 after twenty steps of ADAM and about twenty of its own.

    python examples/09_robertson_rates.py [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

TIMES = np.logspace(-4.0, 5.0, 46)
TRUE = np.array([0.04, 3e7, 1e4])
START = np.ones(3)
NAMES = ("A", "B · 10⁴", "C")


def robertson(t, y, p):
    """Robertson's three reactions."""
    a, b, c = tf.unstack(y)
    k1, k2, k3 = tf.unstack(p)
    r1, r2, r3 = k1 * a, k2 * b * b, k3 * b * c
    return tf.stack([-r1 + r3, r1 - r2 - r3, r2])


def states(p, rtol=1e-7):
    """The concentrations at `TIMES`, `(46, 3)`."""
    problem = nde.ODEProblem(robertson, np.array([1.0, 0.0, 0.0]), (0.0, TIMES[-1]), p)
    return nde.solve(problem, "rodas5p", saveat=TIMES, rtol=rtol, atol=1e-14).y


def loss_of(data):
    """The mean square of the difference of logarithms, as a function of log p."""
    target = tf.math.log(data)

    def loss(log_p):
        y = states(tf.exp(log_p))
        # Rates far off may leave concentrations at rounding errors, of either sign.
        return tf.reduce_mean((tf.math.log(tf.maximum(y, 1e-12)) - target) ** 2)

    return loss


def run(iterations=(20, 100)):
    """Fits: the result; its `minimizer` holds the logarithms of the rates."""
    stages = [
        (keras.optimizers.Adam(0.1), iterations[0]),
        (nde.optimizers.BFGS(initial_step_norm=0.1), iterations[1]),
    ]
    return nde.minimize(loss_of(states(TRUE, 1e-10)), tf.constant(START), stages)


def draw(p, path):
    """Data and fit over nine decades."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
    scale = np.array([1.0, 1e4, 1.0])
    data, fit, start = (states(tf.constant(q)) * scale for q in (TRUE, p, np.exp(START)))
    for i, (name, colour) in enumerate(zip(NAMES, ("#0072B2", "#D55E00", "#009E73"), strict=True)):
        ax.plot(TIMES, fit[:, i], color=colour, label=f"{name}, fitted")
        ax.plot(TIMES, data[:, i], "o", color=colour, markersize=4, alpha=0.5)
        if i != 1:
            ax.plot(TIMES, start[:, i], ":", color=colour, linewidth=1.2)
    ax.set(xscale="log", xlabel="t", ylabel="concentration", title="dots: data; dotted: the start")
    ax.legend(loc="center left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few iterations only")
    arguments = parser.parse_args()
    result = run((2, 2)) if arguments.smoke else run()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "robertson_rates.png"
    rates = np.exp(result.minimizer.numpy())
    draw(rates, path)
    print(result)
    print(f"  rates {rates}, off by {np.abs(rates / TRUE - 1).max():.1e}")
    print(f"  {path}")


if __name__ == "__main__":
    main()
