"""Times a whole training: 300 epochs of `model.fit` beside an equal loop in diffrax and Optax.

The cubic spiral with 30 save points, one trajectory, ADAM(0.05), the sum of squares: the same data,
the same initial weights, tolerances and method, at the default bounds of steps and with at most 256
(`short`), for which there is less to compile. Each runs in a process of its own and reports the
time from its first import to the trained weights, and that of a second training in the same
process, when everything is compiled. The results go to `benchmarks/results/fit.json`.

Run from the checkout root:

    python -m benchmarks.fit
    python -m benchmarks.fit --smoke
"""

import argparse
import functools
import json
import pathlib
import statistics
import subprocess
import time

RESULTS = pathlib.Path(__file__).parent / "results" / "fit.json"
RTOL, ATOL, RATE = 1e-3, 1e-6, 0.05
SHORT = 256


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="two epochs, without diffrax")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS, help="the JSON file")
    options = parser.parse_args()
    if options.one:
        tool, epochs = options.one
        print(json.dumps(TOOLS[tool](int(epochs))))
        return
    from benchmarks.run import machine
    from benchmarks.tools import TOOLS as ENVIRONMENTS
    from benchmarks.tools import python_of

    epochs, rounds = (2, 1) if options.smoke else (300, 3)
    names = ["keras_neuralde_short"] if options.smoke else list(TOOLS)
    record = {"machine": machine(), "epochs": epochs, "results": {name: [] for name in names}}
    for _ in range(rounds):
        for name in names:
            tool = ENVIRONMENTS[name.removesuffix("_short")]
            command = [python_of(tool), "-m", "benchmarks.fit"]
            done = subprocess.run(
                [*command, "--one", name, str(epochs)],
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            record["results"][name].append(json.loads(done.stdout.splitlines()[-1]))
    for name, runs in record["results"].items():
        print(name, {key: statistics.median(run[key] for run in runs) for key in runs[0]})
    if not options.smoke or options.output != RESULTS:
        options.output.write_text(json.dumps(record, indent=1) + "\n")


def _setting():
    """Times, data and initial weights of the spiral."""
    import numpy as np

    times = np.linspace(0.0, 1.5, 30)

    def field(y):
        return np.array([-0.1 * y[0] ** 3 - 2 * y[1] ** 3, 2 * y[0] ** 3 - 0.1 * y[1] ** 3])

    y, data = np.array([2.0, 0.0]), []
    h = times[1] / 200
    for _ in times:
        data.append(y)
        for _ in range(200):
            k1 = field(y)
            k2 = field(y + 0.5 * h * k1)
            k3 = field(y + 0.5 * h * k2)
            y = y + h * (k1 + 2 * k2 + 2 * k3 + field(y + h * k3)) / 6
    rng = np.random.default_rng(0)
    limit = np.sqrt(6 / 52)
    weights = [
        rng.uniform(-limit, limit, (2, 50)), np.zeros(50), rng.uniform(-limit, limit, (50, 2)),
        np.zeros(2),
    ]  # fmt: skip
    return [np.asarray(x, np.float32) for x in (times, np.stack(data))], [
        w.astype(np.float32) for w in weights
    ]


def _ours(epochs, **bounds):
    began = time.perf_counter()
    import keras

    import keras_neuralde as nde

    (times, data), weights = _setting()

    def train():
        keras.backend.clear_session()
        inner = keras.Sequential(
            [
                keras.layers.Lambda(lambda y: y**3),
                keras.layers.Dense(50, activation="tanh"),
                keras.layers.Dense(2),
            ]
        )
        inputs = keras.Input((2,))
        layer = nde.NeuralODE(inner, (0.0, 1.5), saveat=times, rtol=RTOL, atol=ATOL, **bounds)
        model = nde.Model(inputs, layer(inputs))
        inner.set_weights(weights)

        def loss(truth, guess):
            return keras.ops.sum((truth - guess) ** 2)

        model.compile(keras.optimizers.Adam(RATE), loss=loss)
        history = model.fit(data[:1], data[None], epochs=epochs, verbose=0)
        return history.history["loss"]

    return _report(began, train)


def _diffrax(epochs, **bounds):
    began = time.perf_counter()
    import diffrax
    import jax
    import jax.numpy as jnp
    import optax

    (times, data), weights = _setting()
    controller = diffrax.PIDController(rtol=RTOL, atol=ATOL)
    optimizer = optax.adam(RATE)

    def field(t, y, p):
        return jnp.tanh(y**3 @ p[0] + p[1]) @ p[2] + p[3]

    def loss(p):
        ys = diffrax.diffeqsolve(
            diffrax.ODETerm(field), diffrax.Tsit5(), t0=0.0, t1=1.5, dt0=None, y0=data[0], args=p,
            saveat=diffrax.SaveAt(ts=times), stepsize_controller=controller, **bounds,
        ).ys  # fmt: skip
        return jnp.sum((ys - data) ** 2)

    def train():
        @jax.jit
        def step(p, moments):
            value, slopes = jax.value_and_grad(loss)(p)
            updates, moments = optimizer.update(slopes, moments)
            return optax.apply_updates(p, updates), moments, value

        p = [jnp.asarray(w) for w in weights]
        moments, losses = optimizer.init(p), []
        for _ in range(epochs):
            p, moments, value = step(p, moments)
            losses.append(float(value))
        return losses

    return _report(began, train)


def _report(began, train):
    """Times of a first training with its imports, and of a second one."""
    losses = train()
    whole = time.perf_counter() - began
    began = time.perf_counter()
    train()
    return {
        "whole_s": whole,
        "again_s": time.perf_counter() - began,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


TOOLS = {
    "keras_neuralde": _ours,
    "keras_neuralde_short": functools.partial(_ours, max_steps=SHORT),
    "diffrax": _diffrax,
    "diffrax_short": functools.partial(_diffrax, max_steps=SHORT),
}


if __name__ == "__main__":
    main()
