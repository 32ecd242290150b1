"""A neural delay equation learns the feedback and the delay of Mackey-Glass data.

White blood cells decay at a known rate and are made at one that depends on how many there were some
time ago: y' = 0.2 y(t - τ) / (1 + y(t - τ)^10) - 0.1 y with τ = 14 (Mackey & Glass, "Oscillation
and chaos in physiological control systems", Science 197, 1977). Neither the feedback nor τ is
known to the model: `NeuralCDDE` has a small network in place of the one, and a trainable lag, which
starts at 10. It is fitted to windows of a series, with ADAM and then L-BFGS; the past of each
window is part of the call.

    python examples/17_mackey_glass.py [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

TAU, START = 14.0, 10.0
PAST, AHEAD, SPACING = 20.0, 20.0, 0.5
WINDOWS = 12


def mackey_glass(t, y, h, p):
    """The truth."""
    late = h(t - TAU)
    return 0.2 * late / (1.0 + late**10) - 0.1 * y


def series():
    """Times and values of the truth, after it has forgotten its start."""
    times = np.arange(100.0, 300.0, SPACING)
    half = tf.constant(0.5, tf.float64)
    problem = nde.DDEProblem(mackey_glass, half, lambda t, p: half, (0.0, 300.0), lags=[TAU])
    return times, nde.solve(problem, saveat=times, rtol=1e-8, atol=1e-10).y.numpy()


def windows(values):
    """Inputs and targets of the layer: starts, pasts, and what comes after."""
    back, ahead = int(PAST / SPACING), int(AHEAD / SPACING)
    first = np.linspace(back, len(values) - ahead - 1, WINDOWS).astype(int)
    past = np.stack([values[i - back : i + 1] for i in first])[..., None]
    after = np.stack([values[i + 1 : i + ahead + 1] for i in first])[..., None]
    times = np.tile(np.arange(-back, 1) * SPACING, (WINDOWS, 1))
    return [past[:, -1], times, past], after


@keras.saving.register_keras_serializable("examples")
class Feedback(keras.layers.Layer):
    """network(y(t - τ)) - 0.1 y(t)."""

    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.network = keras.Sequential(
            [keras.layers.Dense(16, "tanh"), keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)]
        )

    def call(self, states):
        return self.network(states[:, 1:]) - 0.1 * states[:, :1]


def run(adam=1500, lbfgs=600, seed=0):
    """Trains: the layer and the losses."""
    keras.utils.set_random_seed(seed)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    inputs, after = windows(series()[1])
    saveat = np.arange(1, after.shape[1] + 1) * SPACING
    layer = nde.NeuralCDDE(
        Feedback(), (0.0, AHEAD), [START], history="sampled", trainable_lags=True, saveat=saveat,
        rtol=1e-4, atol=1e-6, max_record=512,
    )  # fmt: skip
    layer(inputs)
    stages = [
        (keras.optimizers.Adam(0.01), adam),
        (nde.optimizers.LBFGS(history_size=20), lbfgs),
    ]
    result = nde.minimize(
        lambda _: tf.reduce_mean((layer(inputs) - after) ** 2),
        list(layer.trainable_variables),
        stages,
        freeze_steps=True,
    )
    return layer, result


def draw(layer, inputs, after, path):
    """Windows and their fit, and the feedback beside the true one."""
    import matplotlib.pyplot as plt

    found = layer(inputs).numpy()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    ahead = np.arange(1, after.shape[1] + 1) * SPACING
    for row, colour in zip((0, 5, 10), ("#0072B2", "#D55E00", "#009E73"), strict=True):
        left.plot(inputs[1][row], inputs[2][row, :, 0], color=colour, alpha=0.35)
        left.plot(ahead, after[row, :, 0], "o", color=colour, markersize=2.5)
        left.plot(ahead, found[row, :, 0], color=colour)
    left.axvline(0.0, color="0.7", linewidth=0.8)
    left.set(xlabel="t", ylabel="y", title="three windows: past, data (dots), model (lines)")
    late = np.linspace(after.min(), after.max(), 100)
    right.plot(late, 0.2 * late / (1.0 + late**10), color="0.6", linewidth=4, label="truth")
    network = layer.model.network(late[:, None])[:, 0]
    right.plot(late, network, color="#D55E00", label="network")
    lag = float(np.exp(layer.log_lags.numpy()[0]))
    right.set(xlabel="y(t - τ)", ylabel="feedback", title=f"τ = {lag:.2f} (truth 14)")
    right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    layer, result = run(*(2, 2) if arguments.smoke else ())
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "mackey_glass.png"
    draw(layer, *windows(series()[1]), path)
    print(result)
    print(f"  {'τ':<20} {np.exp(layer.log_lags.numpy()[0]):.4f}")
    print(f"  {path}")


if __name__ == "__main__":
    main()
