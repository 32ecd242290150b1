"""Neural optimal control: a network holds an unstable system at one.

The state (x, y) obeys x' = network(x, y) and y' = a y + b x, with (a, b) = (0.5, -0.5) at first and
(x, y) = (0, θ) at t = 0. Trained together: the 337 weights of a 2-16-16-1 network, θ (from 1.1), a
and b, so that y stays at 1 for 26 times up to t = 25: the loss is Σ (y - 1)². With a zero network
y grows like exp(t / 2) and the loss is 1.4e11, so the first steps of BFGS have to be short.

The line search ends on the noise of the step sequence. At rtol=1e-6 in float64 four of ten seeds
stop between 1e-12 and 1e-11; at 1e-8, as here, all ten end below 1e-15.

    python examples/03_neural_control.py [--seed 0] [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

TIMES = np.linspace(0.0, 25.0, 26)


def start(seed):
    """The parameters as a nest, and the network as a function of its weights."""
    keras.utils.set_random_seed(seed)
    dense = {"dtype": "float64"}
    network = keras.Sequential(
        [
            keras.Input((2,), dtype="float64"),
            keras.layers.Dense(16, "tanh", **dense),
            keras.layers.Dense(16, "tanh", **dense),
            keras.layers.Dense(1, **dense),
        ]
    )
    weights, apply = nde.flatten_parameters(network)
    p = {"theta": np.array(1.1), "weights": weights, "rates": np.array([0.5, -0.5])}
    return p, apply


def states(apply, p, times=TIMES):
    """The solution at `times`, `(n, 2)`."""

    def field(t, u, p):
        control = apply(p["weights"], u[None])[0]
        a, b = tf.unstack(p["rates"])
        return tf.concat([control, (a * u[1] + b * u[0])[None]], 0)

    y0 = tf.stack([tf.zeros_like(p["theta"]), p["theta"]])
    problem = nde.ODEProblem(field, y0, (0.0, 25.0), p)
    return nde.solve(problem, "tsit5", saveat=times, rtol=1e-8, atol=1e-8, throw=False).y


def run(seed=0, max_iters=None):
    """Minimizes: `(result, apply)`."""
    p, apply = start(seed)

    def loss(p):
        return tf.reduce_sum((states(apply, p)[:, 1] - 1.0) ** 2)

    bfgs = nde.optimizers.BFGS(initial_step_norm=0.01)
    return nde.minimize(loss, p, bfgs, max_iters=max_iters), apply


def draw(apply, p, path):
    """Both components of the controlled system."""
    import matplotlib.pyplot as plt

    times = np.linspace(0.0, 25.0, 251)
    u = states(apply, p, times).numpy()
    figure, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
    ax.plot(times, u[:, 0], "--", color="#D55E00", label="x, driven by the network")
    ax.plot(times, u[:, 1], color="#0072B2", label="y, to be held at 1")
    ax.set(xlabel="t", ylabel="state", ylim=(-0.2, 1.5), title="An unstable system held at one")
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
    result, apply = run(arguments.seed, 2 if arguments.smoke else None)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "neural_control.png"
    draw(apply, result.minimizer, path)
    print(result)
    print(f"  {'y at the start':<20} {float(result.minimizer['theta']):.6f}")
    print(f"  {path}")


if __name__ == "__main__":
    main()
