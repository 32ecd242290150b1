"""A neural ODE with a mass matrix: a network learns two rates, a constraint gives the third state.

The three concentrations of Robertson's reactions add up to one. Here a 3-64-2 network stands for
the rates of the first two, and the third row is the algebraic equation y1 + y2 + y3 - 1 = 0: the
mass matrix is diag(1, 1, 0), and `NeuralODEMM` solves the differential-algebraic equation with
`rodas5p`. The sum is one at every time, whatever the weights. The data are the concentrations at
eleven times up to t = 1; BFGS brings the sum of squared errors to 1e-8. The second concentration
is five decades smaller than the others and hardly counts in this sum: the fit leaves it free.

    python examples/10_robertson_constrained.py [--seed 0] [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

TIMES = np.linspace(0.0, 1.0, 11)
Y0 = np.array([[1.0, 0.0, 0.0]])
MASS = np.diag([1.0, 1.0, 0.0])


def data():
    """Robertson's concentrations at `TIMES`, `(11, 3)`."""

    def robertson(t, y, p):
        a, b, c = tf.unstack(y)
        r1, r2, r3 = 0.04 * a, 3e7 * b * b, 1e4 * b * c
        return tf.stack([-r1 + r3, r1 - r2 - r3, r2])

    problem = nde.ODEProblem(robertson, Y0[0], (0.0, 1.0))
    return nde.solve(problem, "rodas5p", saveat=TIMES, rtol=1e-10, atol=1e-14).y


def conserved(y):
    """Zero where the concentrations add up to one."""
    return tf.reduce_sum(y, axis=-1, keepdims=True) - 1.0


def make(seed=0):
    """The model: a layer that solves the equation, `(batch, 3)` → `(batch, 11, 3)`."""
    keras.utils.set_random_seed(seed)
    dense = {"dtype": "float64"}
    rates = keras.Sequential(
        [
            keras.Input((3,), dtype="float64"),
            keras.layers.Dense(64, "tanh", **dense),
            keras.layers.Dense(2, **dense),
        ]
    )
    layer = nde.NeuralODEMM(
        rates, conserved, (0.0, 1.0), MASS, "rodas5p",
        saveat=TIMES, rtol=1e-8, atol=1e-8, dtype="float64",
    )  # fmt: skip
    return keras.Sequential([keras.Input((3,), dtype="float64"), layer])


def run(seed=0, max_iters=100):
    """Trains: `(model, result)`."""
    model, target = make(seed), data()

    def loss(model):
        return tf.reduce_sum((model(Y0)[0] - target) ** 2)

    bfgs = nde.optimizers.BFGS(initial_step_norm=1e-3)
    return model, nde.minimize(loss, model, bfgs, max_iters=max_iters)


def draw(model, path):
    """Data and fit, each concentration on a scale of its own."""
    import matplotlib.pyplot as plt

    y, target = model(Y0)[0].numpy(), data().numpy()
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    colours = ("#0072B2", "#D55E00", "#009E73")
    for i, (ax, colour) in enumerate(zip(axes, colours, strict=True)):
        ax.plot(TIMES, y[:, i], color=colour, label="network under the constraint")
        ax.plot(TIMES, target[:, i], "o", color=colour, markersize=4, alpha=0.5, label="data")
        ax.set(xlabel="t", title=f"y{i + 1}")
    axes[0].set_ylabel("concentration")
    axes[2].legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few iterations only")
    arguments = parser.parse_args()
    model, result = run(arguments.seed, 3 if arguments.smoke else 100)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "robertson_constrained.png"
    draw(model, path)
    print(result)
    total = tf.reduce_sum(model(Y0)[0], axis=-1)
    print(f"  the sum of the concentrations is off by {np.abs(total - 1.0).max():.1e}")
    print(f"  {path}")


if __name__ == "__main__":
    main()
