"""Lynx and hare: a universal differential equation on the Hudson Bay counts, 1900 to 1920.

Known physics plus a network: hares grow, lynx die, both at rates with a name; what happens when
they meet is learned. With u and v the logarithms of the counts of hares and lynx (in thousands of
pelts),

    u' = growth - exp(n1(u, v)) v_count,    v' = -death + exp(n2(u, v)) u_count,

where n1, n2 are the outputs of one small network that starts as the constants of Lotka and
Volterra.

1. ADAM fits short windows of the record, each started on the data (multiple shooting), so that no
   trajectory is long enough to get lost.
2. ADAM, then L-BFGS, fit the whole record in one piece, the initial state included.

Writes a picture, a `.keras` file and a SavedModel, loads both back, and prints what it found.

    python examples/hudson_bay.py [--output demo_output] [--smoke]

Data: examples/data (Hudson's Bay Company pelt records). Start values of the four constants: the
posterior means of B. Carpenter, "Predator-Prey Population Dynamics: the Lotka-Volterra model in
Stan" (2018): growth 0.55, death 0.80, encounters 0.028 and 0.024.
"""

import argparse
import pathlib
import time

START = time.perf_counter()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import keras_neuralde as nde  # noqa: E402

DATA = pathlib.Path(__file__).parent / "data" / "hudson_bay_lynx_hare.csv"
SPECIES = ("hares", "lynx")
COLORS = ("#0072B2", "#D55E00")
WINDOW = 7
FORECAST = 12


@keras.saving.register_keras_serializable("examples")
class PredatorPrey(keras.layers.Layer):
    """The field in logarithms: two named rates and a network for what happens at an encounter."""

    def __init__(self, units=12, **keywords):
        super().__init__(**keywords)
        self.units = units
        self.encounters = keras.Sequential(
            [
                keras.layers.Dense(units, "tanh"),
                keras.layers.Dense(2, kernel_initializer="zeros"),
            ]
        )

    def build(self, input_shape):
        constant = keras.initializers.Constant
        self.growth = self.add_weight(shape=(), initializer=constant(0.55), name="growth")
        self.death = self.add_weight(shape=(), initializer=constant(0.80), name="death")
        self.encounters.build(input_shape)

    def call(self, y):
        rates = keras.ops.exp(self.encounters(y - 3.0)) * np.array([0.028, 0.024])
        eaten, born = keras.ops.split(rates * keras.ops.exp(y[:, ::-1]), 2, axis=1)
        return keras.ops.concatenate([self.growth - eaten, born - self.death], axis=1)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("examples")
class Start(keras.layers.Layer):
    """Shifts the initial state: the first count is as uncertain as any other."""

    def build(self, input_shape):
        self.shift = self.add_weight(shape=input_shape[1:], initializer="zeros", name="shift")

    def call(self, y):
        return y + self.shift


class Progress(keras.callbacks.Callback):
    """One progress bar for a whole `fit`; Keras draws one for each epoch."""

    def on_train_begin(self, logs=None):
        self.bar = keras.utils.Progbar(
            self.params["epochs"], stateful_metrics=["loss"], unit_name="epoch"
        )

    def on_epoch_end(self, epoch, logs=None):
        self.bar.update(epoch + 1, [("loss", logs["loss"])])

    def on_train_end(self, logs=None):
        print()


def shown(verbose):
    """Keywords of `fit` for one bar or none."""
    return {"verbose": 0, "callbacks": [Progress()] if verbose else []}


def read():
    """Years since 1900 and log counts, `(21,)` and `(21, 2)`."""
    table = np.loadtxt(DATA, delimiter=",", skiprows=1)
    return table[:, 0] - table[0, 0], np.log(table[:, 1:])


def solver(field, times):
    """A `NeuralODE` over `times`."""
    span = (float(times[0]), float(times[-1]))
    return nde.NeuralODE(field, span, "tsit5", saveat=times, rtol=1e-6, atol=1e-6)


def train_on_windows(field, log_counts, steps, verbose):
    """Stage 1: windows of the record, each started on its first data point."""
    if verbose:
        print("ADAM on windows of the record")
    starts = range(len(log_counts) - WINDOW + 1)
    inputs = keras.Input((2,))
    model = nde.Model(inputs, solver(field, np.arange(WINDOW))(inputs))
    model.compile(keras.optimizers.Adam(0.02), "mse")
    y0 = np.stack([log_counts[i] for i in starts])
    targets = np.stack([log_counts[i : i + WINDOW] for i in starts])
    return model.fit(y0, targets, epochs=steps, **shown(verbose)).history["loss"]


def train_on_record(field, years, log_counts, adam_steps, lbfgs_steps, verbose):
    """Stage 2: the whole record in one piece, ADAM and then L-BFGS in one `fit`."""
    if verbose:
        print("ADAM, then L-BFGS on the whole record")
    inputs = keras.Input((2,))
    model = nde.Model(inputs, solver(field, years)(Start()(inputs)))
    optimizer = nde.optimizers.Chain(
        [keras.optimizers.Adam(0.01), nde.optimizers.LBFGS()], steps=[adam_steps]
    )
    model.compile(optimizer, "mse")
    epochs = adam_steps + lbfgs_steps
    losses = model.fit(log_counts[:1], log_counts[None], epochs=epochs, **shown(verbose))
    return model, losses.history["loss"]


def r_squared(data, prediction):
    """The share of each species' variance of log counts that the curve explains."""
    residual = np.sum((data - prediction) ** 2, axis=0)
    return 1.0 - residual / np.sum((data - data.mean(axis=0)) ** 2, axis=0)


def forecast(model, years, log_counts):
    """A fine curve through the record and beyond it: `(times, log counts)`."""
    field, shift = model.layers[-1].model, model.layers[-2].shift
    times = np.linspace(years[0], years[-1] + FORECAST, 331)
    return times, solver(field, times)(log_counts[:1] + shift)[0].numpy()


def draw(times, curve, years, log_counts, scores, path):
    """Data, fit and forecast."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    inside = times <= years[-1]
    for i, (name, color) in enumerate(zip(SPECIES, COLORS, strict=True)):
        axes.plot(
            1900 + years, np.exp(log_counts[:, i]), "o", color=color, label=f"{name}, counted"
        )
        label = f"{name}, fitted (R² = {scores[i]:.2f})"
        axes.plot(1900 + times[inside], np.exp(curve[inside, i]), color=color, label=label)
        axes.plot(1900 + times[~inside], np.exp(curve[~inside, i]), "--", color=color)
    axes.axvspan(1900 + years[-1], 1900 + times[-1], color="0.93", zorder=0)
    axes.text(1900.5 + years[-1], 0.80, "forecast", transform=axes.get_xaxis_transform(), va="top")
    axes.set(
        xlabel="year", ylabel="pelts (thousands)", ylim=(0, 112), xlim=(1899.5, 1900 + times[-1])
    )
    axes.set_title("Hudson Bay lynx and hares: two known rates and a network")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(ncols=2, fontsize=9, loc="upper center")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_and_load(model, log_counts, output):
    """Saves both ways, loads both back, and returns the largest difference of their answers."""
    expected = model.predict(log_counts[:1], verbose=0)
    model.save(output / "hudson_bay.keras")
    model.export(output / "hudson_bay_saved_model", verbose=False)
    loaded = keras.models.load_model(output / "hudson_bay.keras").predict(log_counts[:1], verbose=0)
    served = tf.saved_model.load(str(output / "hudson_bay_saved_model"))
    served_answer = served.serve(tf.constant(log_counts[:1])).numpy()
    return max(np.abs(loaded - expected).max(), np.abs(served_answer - expected).max())


def run(window_steps=250, adam_steps=250, lbfgs_steps=200, seed=0, verbose=1):
    """Trains: `(model, table of results, years, log counts)`."""
    keras.utils.set_random_seed(seed)
    years, log_counts = read()
    field = PredatorPrey()
    windows = train_on_windows(field, log_counts, window_steps, verbose)
    model, record = train_on_record(field, years, log_counts, adam_steps, lbfgs_steps, verbose)
    scores = r_squared(log_counts, model.predict(log_counts[:1], verbose=0)[0])
    table = {
        "loss on windows, start": windows[0],
        "loss on windows, after ADAM": windows[-1],
        "loss on the record, start": record[0],
        "loss on the record, after ADAM": record[min(adam_steps, len(record) - 1)],
        "loss on the record, after L-BFGS": record[-1],
        "R² of log hares": scores[0],
        "R² of log lynx": scores[1],
        "growth rate of hares (1/year)": float(field.growth),
        "death rate of lynx (1/year)": float(field.death),
    }
    return model, table, years, log_counts, scores


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    steps = (5, 5, 3) if arguments.smoke else (250, 250, 200)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    model, table, years, log_counts, scores = run(*steps, seed=arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    times, curve = forecast(model, years, log_counts)
    draw(times, curve, years, log_counts, scores, arguments.output / "hudson_bay.png")
    difference = save_and_load(model, log_counts, arguments.output)
    table["largest difference after loading back"] = difference
    table["seconds, import included"] = time.perf_counter() - START
    print("\nHudson Bay lynx and hares")
    for name, value in table.items():
        print(f"  {name:<40} {value:10.4g}")
    for name in ("hudson_bay.png", "hudson_bay.keras", "hudson_bay_saved_model"):
        print(f"  {arguments.output / name}")


if __name__ == "__main__":
    main()
