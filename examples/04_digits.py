"""Handwritten digits: a flow between two linear maps.

The 1797 digits of scikit-learn, 8 × 8 pixels each, go through a dense layer without activation, a
`NeuralODE` block and another dense layer: the flow is the only part of the classifier that is not
linear. Every image takes steps of its own. Two thirds of the digits train with `model.fit`, one
third is held out, and a linear classifier trained in the same way shows what the flow is worth.

The trained model is saved as a `.keras` file and exported as a SavedModel; both are loaded back and
compared with it. The `.keras` file answers with the same numbers. The SavedModel runs without the
compiler, whose float32 rounding chooses slightly other steps: its answers differ by less than the
solver's tolerance.

    python examples/04_digits.py [--seed 0] [--output demo_output] [--smoke]
"""

import argparse
import pathlib
import time

START = time.perf_counter()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import keras_neuralde as nde  # noqa: E402

BATCH = 64
UNITS = 64
# Every point is drawn as its digit; five colours, told apart by every eye, part neighbours.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
COLOR_OF_DIGIT = (0, 1, 2, 0, 3, 2, 4, 1, 3, 4)


def read(seed):
    """`(train, test)`, each `(pixels (n, 64) in 0 .. 1, labels (n,))`; a third is held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.data / 16.0).astype("float32")
    x_train, x_test, y_train, y_test = train_test_split(
        pixels, digits.target, test_size=1 / 3, stratify=digits.target, random_state=seed
    )
    return (x_train, y_train), (x_test, y_test)


def build(seed, steps, flow=True):
    """The compiled classifier; without the flow it is linear."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((64,), name="pixels")
    y = keras.layers.GaussianNoise(0.25)(inputs)
    y = keras.layers.Dense(UNITS, name="encode")(y)
    if flow:
        field = keras.Sequential([keras.layers.Dense(128, "tanh"), keras.layers.Dense(UNITS)])
        y = nde.NeuralODE(field, (0.0, 1.0), "tsit5", name="flow")(y)
    y = keras.layers.Dropout(0.2)(y)
    model = nde.Model(inputs, keras.layers.Dense(10, name="digit")(y))
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def run(seed=0, epochs=60, flow=True):
    """Trains from one seed: `(model, history, test)`."""
    train, test = read(seed)
    # Whole batches only: a batch of another size would be compiled once more.
    batches = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[1]), seed=seed)
    batches = batches.batch(BATCH, drop_remainder=True)
    model = build(seed, epochs * len(batches), flow)
    history = model.fit(batches, epochs=epochs, validation_data=test, shuffle=False, verbose=0)
    return model, history.history, test


def save_and_load(model, pixels, output):
    """Saves both ways, loads both back, and returns the largest difference of each."""
    expected = model.predict(pixels, verbose=0)
    model.save(output / "digits.keras")
    model.export(output / "digits_saved_model", verbose=False)
    loaded = keras.models.load_model(output / "digits.keras").predict(pixels, verbose=0)
    served = tf.saved_model.load(str(output / "digits_saved_model"))
    answer = served.serve(tf.constant(pixels)).numpy()
    return np.abs(loaded - expected).max(), np.abs(answer - expected).max()


def paths(model, pixels, times):
    """The states of the flow at `times`, `(n, len(times), UNITS)`."""
    flow = model.get_layer("flow")
    y0 = model.get_layer("encode")(pixels)
    return nde.NeuralODE(flow.model, flow.t_span, saveat=times)(y0).numpy()


def draw(model, history, linear, test, path):
    """Accuracies over the epochs, and the states before and after the flow, two views of them."""
    import matplotlib.pyplot as plt
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    pixels, labels = test
    states = paths(model, pixels, [0.0, 1.0])
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    epochs = np.arange(1, len(history["accuracy"]) + 1)
    for scores, color, name in ((history, "#0072B2", "with the flow"), (linear, "0.5", "linear")):
        label = f"{name}: {scores['val_accuracy'][-1]:.1%}"
        axes[0].plot(epochs, scores["val_accuracy"], color=color, label=label)
    axes[0].set(xlabel="epoch", ylabel="accuracy on the held-out third", ylim=(0.8, 1.0))
    axes[0].legend(loc="lower right")
    for ax, y, title in zip(axes[1:], states.transpose(1, 0, 2), ("0", "1"), strict=True):
        view = LinearDiscriminantAnalysis(n_components=2).fit_transform(y, labels)
        for digit, color in enumerate(COLOR_OF_DIGIT):
            points = view[labels == digit].T
            ax.scatter(*points, s=26, marker=f"${digit}$", color=COLORS[color], linewidths=0.2)
        ax.set(title=f"states at t = {title}", xlabel="discriminant 1", ylabel="discriminant 2")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    epochs = 2 if arguments.smoke else 60
    _, linear, _ = run(arguments.seed, epochs, flow=False)
    model, history, test = run(arguments.seed, epochs)
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw(model, history, linear, test, arguments.output / "digits.png")
    differences = save_and_load(model, test[0], arguments.output)
    largest = np.abs(model.predict(test[0], verbose=0)).max()
    print(f"seed {arguments.seed}: {len(test[1])} digits held out")
    print(f"  accuracy, linear                          {linear['val_accuracy'][-1]:.4f}")
    print(f"  accuracy, with the flow                   {history['val_accuracy'][-1]:.4f}")
    print(f"  largest logit                             {largest:.3g}")
    print(f"  largest difference of the .keras file     {differences[0]:.2g}")
    print(f"  largest difference of the SavedModel      {differences[1]:.2g}")
    print(f"  seconds, import included                  {time.perf_counter() - START:.1f}")
    for name in ("digits.png", "digits.keras", "digits_saved_model"):
        print(f"  {arguments.output / name}")


if __name__ == "__main__":
    main()
