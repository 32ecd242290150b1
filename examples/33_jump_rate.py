"""When do things happen? The rate of events in time, learned from when they happened.

Calls come at the rate λ(t) = 3 + 2 sin(2πt) e^(-t/4) over the days 0 to 4. Of 200 such records only
the times are known. A network 3-32-32-1 of the time and of the hour of the day, with a softplus at
its end, gives λ; the likelihood of all records, Σ log λ(t_i) - n ∫ λ dt, is maximized by ADAM, the
integral solved as a differential equation. The records are drawn as jumps of an equation that
stands still; every jump writes its time into the state.

    python examples/33_jump_rate.py [--seed 0] [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

SPAN, MOST = (0.0, 4.0), 40


def true_rate(t):
    """The rate that made the data."""
    return 3.0 + 2.0 * np.sin(2.0 * np.pi * t) * np.exp(-t / 4.0)


def records(count, seed):
    """The times of all records in one array: jumps write them into the state."""

    def rate(t, y, p):
        return 3.0 + 2.0 * tf.sin(2.0 * np.pi * t) * tf.exp(-t / 4.0)

    def write(t, y, p):
        place = tf.one_hot(tf.cast(y[0], tf.int32), MOST, dtype=t.dtype)
        return tf.concat([y[:1] + 1.0, y[1:] + t * place], 0)

    still = nde.ODEProblem(lambda t, y, p: 0.0 * y, np.zeros(1 + MOST), SPAN)
    problem = nde.JumpProblem(still, [nde.VariableRateJump(rate, write, bound=5.0)])
    y = nde.solve_ensemble(problem, count, seed=seed).y.numpy()
    return np.concatenate([row[1 : 1 + int(row[0])] for row in y])


def run(seed=0, count=200, steps=400):
    """Trains: `(rate, losses, times)`; the first is the learned rate, a function of time."""
    times = records(count, seed)
    keras.utils.set_random_seed(seed)
    network = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(32, "tanh", dtype="float64"),
            keras.layers.Dense(32, "tanh", dtype="float64"),
            keras.layers.Dense(1, "softplus", dtype="float64"),
        ]
    )
    vector, apply = nde.flatten_parameters(network)

    def rate(t, p):
        t = tf.reshape(t, [-1, 1])
        angle = 2.0 * np.pi * t
        return apply(p, tf.concat([t - 2.0, tf.sin(angle), tf.cos(angle)], 1))[:, 0]

    def loss(p):
        problem = nde.ODEProblem(lambda t, y, p: rate(t, p)[0], 0.0 * p[0], SPAN, p)
        integral = nde.solve(problem, "tsit5", rtol=1e-5, atol=1e-6).y
        return integral - tf.reduce_sum(tf.math.log(rate(tf.constant(times), p))) / count

    result = nde.minimize(loss, vector, [(keras.optimizers.Adam(0.01), steps)], progress=False)
    return lambda t: rate(tf.constant(t), result.minimizer).numpy(), result, times


def draw(rate, times, count, path):
    """The rates, and how many events there were."""
    import matplotlib.pyplot as plt

    t = np.linspace(*SPAN, 400)
    figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    edges = np.linspace(*SPAN, 41)
    weights = np.full(len(times), 1.0 / (count * (edges[1] - edges[0])))
    ax.hist(times, edges, weights=weights, color="0.85", label="events")
    ax.plot(t, true_rate(t), "k:", lw=1.2, label="rate that made them")
    ax.plot(t, rate(t), color="#0072B2", lw=1.5, label="learned")
    ax.set(xlabel="t (days)", ylabel="events a day", ylim=(0, None))
    ax.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def error(rate):
    """The root mean square of what is wrong with a rate."""
    t = np.linspace(*SPAN, 400)
    return np.sqrt(np.mean((rate(t) - true_rate(t)) ** 2))


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    count = 20 if arguments.smoke else 200
    rate, result, times = run(arguments.seed, count, 2 if arguments.smoke else 400)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "jump_rate.png"
    draw(rate, times, count, path)
    print(f"{len(times)} events; the learned rate is off by {error(rate):.3f} events a day (rms)")
    print(f"  {path}")


if __name__ == "__main__":
    main()
