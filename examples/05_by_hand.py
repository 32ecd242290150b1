"""A neural ODE made by hand: a network inside `f(t, y, p)`, its weights in `p`.

`flatten_parameters` turns a Keras network into a vector and a function of that vector. Inside the
field of an `ODEProblem` the function is a neural ODE; whatever else the equation needs can stand
beside it. Here the field is network(u³), the data are thirty points of the spiral u' = (u³) A, and
`minimize` trains the vector with ADAM and then with BFGS.

`NeuralODE` packs the same steps into a layer. The example puts the trained vector back into the
network, hands the network to the layer, and compares the two answers and the two gradients.

    python examples/05_by_hand.py [--seed 0] [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

TIMES = np.linspace(0.0, 1.5, 30)
Y0 = np.array([2.0, 0.0])
A = np.array([[-0.1, 2.0], [-2.0, -0.1]])
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}


@keras.saving.register_keras_serializable("examples")
class Cubed(keras.layers.Layer):
    """x³, the structure that the modeller knows."""

    def call(self, x):
        return x**3


def start(seed):
    """The network, its weights as one vector, and the network as a function of that vector."""
    keras.utils.set_random_seed(seed)
    dense = {"dtype": "float64"}
    network = keras.Sequential(
        [
            keras.Input((2,), dtype="float64"),
            Cubed(**dense),
            keras.layers.Dense(50, "tanh", **dense),
            keras.layers.Dense(2, **dense),
        ]
    )
    return network, *nde.flatten_parameters(network)


def truth():
    """The data, `(30, 2)`."""
    problem = nde.ODEProblem(lambda t, u, p: tf.linalg.matvec(p, u**3), Y0, (0.0, 1.5), A.T)
    return nde.solve(problem, saveat=TIMES, rtol=1e-10, atol=1e-10).y.numpy()


def states(apply, p, times=TIMES):
    """The neural ODE by hand: its solution at `times`, `(n, 2)`."""
    problem = nde.ODEProblem(lambda t, u, p: apply(p, u[None])[0], Y0, (0.0, 1.5), p)
    return nde.solve(problem, "tsit5", saveat=times, throw=False, **TOLERANCE).y


def run(seed=0, adam_steps=300, bfgs_steps=400):
    """Trains from one seed: `(result, network, apply, data)`."""
    network, p, apply = start(seed)
    data = truth()

    def loss(p):
        return tf.reduce_sum((states(apply, p) - data) ** 2)

    bfgs = nde.optimizers.BFGS(initial_step_norm=0.01)
    stages = [(keras.optimizers.Adam(0.05), adam_steps), (bfgs, bfgs_steps)]
    return nde.minimize(loss, p, stages), network, apply, data


def compare_with_layer(network, apply, p, data):
    """Largest differences between the hand-made model and the layer: `(states, gradients)`."""
    p = tf.convert_to_tensor(p)
    sizes = [v.shape.num_elements() for v in network.trainable_variables]
    for variable, value in zip(network.trainable_variables, tf.split(p, sizes), strict=True):
        variable.assign(tf.reshape(value, variable.shape))
    layer = nde.NeuralODE(network, (0.0, 1.5), saveat=TIMES, dtype="float64", **TOLERANCE)
    with tf.GradientTape() as tape:
        by_layer = layer(Y0[None])[0]
        loss = tf.reduce_sum((by_layer - data) ** 2)
    bars = tape.gradient(loss, [v.value for v in network.trainable_variables])
    bars = tf.concat([tf.reshape(bar, [-1]) for bar in bars], 0)
    with tf.GradientTape() as tape:
        tape.watch(p)
        by_hand = states(apply, p)
        loss = tf.reduce_sum((by_hand - data) ** 2)
    bar = tape.gradient(loss, p)
    return np.abs(by_layer - by_hand).max(), np.abs(bars - bar).max()


def draw(result, apply, data, path):
    """Prediction against data, and the loss over the iterations."""
    import matplotlib.pyplot as plt

    fine = np.linspace(0.0, 1.5, 200)
    curve = states(apply, result.minimizer, fine).numpy()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for i, color in enumerate(("#0072B2", "#D55E00")):
        left.plot(fine, curve[:, i], color=color, label=f"$u_{i + 1}$ by hand")
        left.plot(TIMES, data[:, i], "o", color=color, mfc="none", label=f"$u_{i + 1}$ data")
    left.set(xlabel="time", ylabel="state", title="A neural ODE made by hand")
    left.legend(fontsize=8)
    right.semilogy(result.history, color="black")
    right.set(xlabel="iteration", ylabel="sum of squared errors", title="ADAM, then BFGS")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    result, network, apply, data = run(arguments.seed, *((5, 3) if arguments.smoke else ()))
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "by_hand.png"
    draw(result, apply, data, path)
    differences = compare_with_layer(network, apply, result.minimizer, data)
    print(result)
    print(f"  {'states, from layer':<20} differ by {differences[0]:.2g} at most")
    print(f"  {'gradient, from layer':<20} differs by {differences[1]:.2g} at most")
    print(f"  {path}")


if __name__ == "__main__":
    main()
