"""Doses of unknown size: a hybrid neural differential equation.

Two substances decay, u' = -u, and at t = 1, 2, 4 and 8 both get a dose of 1. The model knows the
decay and the times, not the dose: a second pair of states w, with w' = NN(u), says what u becomes
at a dose (u is replaced by w). A network 2-50-2 is trained with ADAM on 100 points of u; its
gradient goes through the doses.

    python examples/31_dosing.py [--seed 0] [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

SPAN, DOSES, START = (0.0, 10.5), [1.0, 2.0, 4.0, 8.0], np.array([2.0, 0.0])
TIMES = np.linspace(*SPAN, 100)


def truth():
    """The data, `(100, 2)`."""
    dose = nde.PresetTimeEvent(DOSES, lambda t, y, p: y + 1.0)
    problem = nde.ODEProblem(lambda t, y, p: -y, START, SPAN)
    return nde.solve(problem, saveat=TIMES, events=[dose], rtol=1e-9, atol=1e-10).y.numpy()


def model(seed):
    """The parameters of the network as a vector, and the model's prediction from them."""
    keras.utils.set_random_seed(seed)
    network = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(50, "tanh", dtype="float64"),
            keras.layers.Dense(2, dtype="float64"),
        ]
    )
    vector, apply = nde.flatten_parameters(network)

    def field(t, z, p):
        u = z[:2]
        return tf.concat([-u, apply(p, u[None])[0]], 0)

    switch = nde.PresetTimeEvent(DOSES, lambda t, z, p: tf.concat([z[2:], z[2:]], 0))
    start = np.concatenate([START, START])

    def predict(p):
        problem = nde.ODEProblem(field, start, SPAN, p)
        return nde.solve(problem, saveat=TIMES, events=[switch], rtol=1e-4, atol=1e-6).y

    return vector, predict


def run(seed=0, steps=200):
    """Trains: `(losses, prediction, data)`."""
    data = truth()
    vector, predict = model(seed)
    p = keras.Variable(vector, dtype="float64")
    optimizer = keras.optimizers.Adam(0.05)
    optimizer.build([p])

    @tf.function(jit_compile=True, autograph=False)
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((predict(p.value)[:, :2] - data) ** 2)
        optimizer.apply(tape.gradient(loss, [p.value]), [p])
        return loss

    losses = [float(step()) for _ in range(steps)]
    return np.array(losses), predict(tf.convert_to_tensor(p)).numpy(), data


def draw(losses, prediction, data, path):
    """Prediction against data, and the loss."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for k, colour in enumerate(("#0072B2", "#D55E00")):
        axes[0].plot(TIMES, data[:, k], ".", color=colour, ms=4, label=f"u{k + 1}, data")
        axes[0].plot(TIMES, prediction[:, k], color=colour, lw=1, label=f"u{k + 1}, model")
    axes[0].set(xlabel="t", ylabel="state")
    axes[0].legend(fontsize=8)
    axes[1].semilogy(losses, color="black", lw=1)
    axes[1].set(xlabel="train step", ylabel="sum of squares")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    losses, prediction, data = run(arguments.seed, 2 if arguments.smoke else 200)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "dosing.png"
    draw(losses, prediction, data, path)
    print(f"sum of squares: {losses[0]:.3g} at the start, {losses[-1]:.3g} at the end")
    print(f"  {path}")


if __name__ == "__main__":
    main()
