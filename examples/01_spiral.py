"""The cubic spiral: a first neural ODE, trained with ADAM and then with L-BFGS.

Thirty points of the spiral u' = (u³) A on 0 ≤ t ≤ 1.5 are fitted by u' = network(u³). ADAM finds
the valley in 300 steps, L-BFGS follows it to its end. Line searches need a smooth loss: at
rtol=1e-3 the step sequence changes with the weights and every search stalls, so the solve is done
in float64 at rtol=1e-6.

    python examples/01_spiral.py [--seed 0] [--output demo_output] [--smoke]
"""

import argparse
import pathlib
import time

START = time.perf_counter()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import keras_neuralde as nde  # noqa: E402

A = np.array([[-0.1, 2.0], [-2.0, -0.1]])
TIMES = np.linspace(0.0, 1.5, 30)
Y0 = np.array([[2.0, 0.0]])


def truth():
    """The data, `(30, 2)`: u' = (u³) A, solved to ten digits."""
    problem = nde.ODEProblem(lambda t, u, p: tf.linalg.matvec(p, u**3), Y0[0], (0.0, 1.5), A.T)
    return nde.solve(problem, saveat=TIMES, rtol=1e-10, atol=1e-10).y.numpy()


@keras.saving.register_keras_serializable("examples")
class Cube(keras.layers.Layer):
    """x³, the structure that the modeller knows."""

    def call(self, x):
        return x**3


def sum_of_squares(y_true, y_pred):
    """Σ (data - prediction)² over the 60 values."""
    return tf.reduce_sum(tf.square(y_true - y_pred))


def build(seed, adam_steps, rtol=1e-6, freeze_steps=False):
    """The compiled model."""
    keras.utils.set_random_seed(seed)
    field = keras.Sequential([Cube(), keras.layers.Dense(50, "tanh"), keras.layers.Dense(2)])
    inputs = keras.Input((2,))
    spiral = nde.NeuralODE(field, (0.0, 1.5), "tsit5", saveat=TIMES, rtol=rtol, atol=1e-6)
    model = nde.Model(inputs, spiral(inputs))
    optimizer = nde.optimizers.Chain(
        [
            keras.optimizers.Adam(0.05),
            nde.optimizers.LBFGS(initial_step_norm=0.01, freeze_steps=freeze_steps),
        ],
        steps=[adam_steps],
    )
    model.compile(optimizer, sum_of_squares)
    return model


def run(seed=0, adam_steps=300, lbfgs_steps=400, verbose=0, **settings):
    """Trains from one seed: `(model, losses, data)`."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        data = truth()
        model = build(seed, adam_steps, **settings)
        history = model.fit(Y0, data[None], epochs=adam_steps + lbfgs_steps, verbose=verbose)
        return model, np.array(history.history["loss"]), data
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


def draw(model, losses, data, adam_steps, path):
    """Prediction against data, and the loss over the train steps."""
    import matplotlib.pyplot as plt

    fine = np.linspace(0.0, 1.5, 200)
    curve = nde.NeuralODE(model.layers[-1].model, (0.0, 1.5), saveat=fine)(Y0)[0]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for i, (name, color) in enumerate((("$u_1$", "#0072B2"), ("$u_2$", "#D55E00"))):
        left.plot(fine, curve[:, i], color=color, label=f"{name} neural ODE")
        left.plot(TIMES, data[:, i], "o", color=color, mfc="none", label=f"{name} data")
    left.set(xlabel="time", ylabel="state", title="Cubic spiral")
    left.legend(fontsize=8)
    right.semilogy(losses, color="black")
    right.axvline(adam_steps, color="gray", ls=":")
    right.annotate("L-BFGS", (adam_steps, losses.max()), xytext=(5, -5), textcoords="offset points")
    right.set(xlabel="train step", ylabel="sum of squared errors", title="Loss")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    adam_steps, lbfgs_steps = (10, 5) if arguments.smoke else (300, 400)
    model, losses, data = run(arguments.seed, adam_steps, lbfgs_steps)
    after_adam = losses[min(adam_steps, len(losses) - 1)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw(model, losses, data, adam_steps, arguments.output / "spiral.png")
    print(f"seed {arguments.seed}: loss after ADAM {after_adam:.4g}, final {losses[-1]:.4g}")
    print(f"{len(losses)} train steps, {model.optimizer.message}")
    print(f"{time.perf_counter() - START:.1f} s from the start of the process, import included")


if __name__ == "__main__":
    main()
