"""Long series: where plain training fails, and three ways that succeed.

A stiffening spring, x'' = -ax - bx³, is measured 241 times over 13 swings, with noise. Its two
parameters are to be found from random starts. The valley of the truth is narrow: a swing too many
or too few, and the squared error of the whole series is flat but for small dents. Single shooting
strays there and does not find it. Three remedies lead into the valley:

- growing horizons fit the beginning first and more of the series later;
- multiple shooting fits pieces of nine points, each started on the data;
- collocation smooths the data and fits the equation to their slopes, without a solver.

Each method has the same iterations of ADAM, and then of BFGS on the whole series. All starts are
trained at once: the state holds a spring for each of them, and their losses are added.

    python examples/07_long_series.py [--starts 8] [--output demo_output] [--smoke]
"""

import argparse
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

TIMES = np.linspace(0.0, 60.0, 241)
Y0 = np.array([2.0, 0.0])
TRUTH = np.array([1.0, 0.3])
NOISE = 0.05
METHODS = ("single shooting", "growing horizons", "multiple shooting", "collocation")


def spring(t, y, p):
    """x'' = -ax - bx³; `y` is `(..., starts, 2)` and `p` is `(starts, 2)`."""
    x, velocity = y[..., 0], y[..., 1]
    return tf.stack([velocity, -p[:, 0] * x - p[:, 1] * x**3], -1)


PROBLEM = nde.ODEProblem(spring, Y0[None], (0.0, TIMES[-1]), TRUTH[None])


def states(p, times=TIMES):
    """Position and velocity at `times`, `(n, starts, 2)`."""
    y0 = tf.tile(Y0[None], (p.shape[0], 1))
    problem = PROBLEM.remake(y0=y0, p=p, t_span=(0.0, times[-1]))
    return nde.solve(problem, "tsit5", saveat=times, rtol=1e-7, atol=1e-7, throw=False).y


def measured(starts, seed=0):
    """The data, `(241, starts, 2)`, the same for each start."""
    noise = np.random.default_rng(seed).normal(0.0, NOISE, (len(TIMES), 1, 2))
    return np.tile(states(TRUTH[None]).numpy() + noise, (1, starts, 1))


def random_starts(starts, seed=0):
    """a between 0.3 and 3, b between 0.1 and 1."""
    return np.random.default_rng(100 + seed).uniform([0.3, 0.1], [3.0, 1.0], (starts, 2))


def errors(p, data):
    """The mean squared error of the whole series, from each start."""
    return tf.reduce_mean((states(p) - data) ** 2, axis=(0, 2))


def growing(data):
    """The loss of a batch of growing horizons."""

    def loss(p, times, data, weights):
        error = weights[:, None, None] * (states(p, times) - data) ** 2
        return tf.reduce_sum(error) / tf.reduce_sum(2.0 * weights)

    return loss


def shooting(data):
    """The loss of short pieces and the gaps between them."""

    def loss(p):
        return nde.multiple_shooting(
            PROBLEM.remake(p=p),
            TIMES,
            data,
            9,
            continuity=0.1,
            solver="tsit5",
            vectorized=True,
            rtol=1e-5,
        )

    return loss


def slopes(data):
    """The loss of the field on slopes of the smoothed data."""
    y, dy = nde.collocate(TIMES, data, "epanechnikov", bandwidth=0.6)
    return lambda p: nde.collocation_loss(PROBLEM.remake(p=p), TIMES, y, dy, vectorized=True)


def run(starts=8, adam_steps=400, bfgs_steps=100, methods=METHODS):
    """From every start by each method: `({name: (p (starts, 2), errors (starts,))}, data)`."""
    data = measured(starts)

    def whole(p):
        return tf.reduce_sum(errors(p, data))

    found = {}
    for name in methods:
        p, adam = tf.constant(random_starts(starts)), keras.optimizers.Adam(0.01)
        if name == "growing horizons":
            horizons = (3.0, 10.0, 25.0, 60.0)
            batches = nde.growing_horizons(TIMES, data, horizons, max(1, adam_steps // 4))
            first = nde.minimize(growing(data), p, adam, batches=batches)
        else:
            losses = {"multiple shooting": shooting, "collocation": slopes}
            loss = losses[name](data) if name in losses else whole
            first = nde.minimize(loss, p, adam, max_iters=adam_steps)
        bfgs = nde.optimizers.BFGS(initial_step_norm=0.01)
        p = nde.minimize(whole, first.minimizer, bfgs, max_iters=bfgs_steps).minimizer
        found[name] = p.numpy(), errors(p, data).numpy()
    return found, data


def landscape(data, a):
    """The error of the whole series at many values of a, with the true b."""
    p = tf.constant(np.stack([a, np.full_like(a, TRUTH[1])], 1))
    return errors(p, data[:, :1]).numpy()


def draw(found, data, path):
    """The error as a function of a, with the ends of all runs, and two of the ends as curves."""
    import matplotlib.pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 6.5), layout="constrained")
    left = min(0.0, *(ends[:, 0].min() for ends, _ in found.values())) - 0.5
    a = np.linspace(left, 3.2, 1501)
    top.semilogy(a, landscape(data, a), color="0.6", label="whole series, at the true b")
    markers = dict(zip(METHODS, ("x", "o", "s", "^"), strict=True))
    colors = dict(zip(METHODS, ("#D55E00", "#009E73", "#0072B2", "#CC79A7"), strict=True))
    for k, (name, (ends, scores)) in enumerate(found.items()):
        size = 13 - 3 * k
        top.plot(
            ends[:, 0], scores, markers[name], color=colors[name], mfc="none", ms=size, label=name
        )
    top.set(xlabel="a", ylabel="mean squared error")
    top.set_title("A narrow valley, and where the runs from random starts end")
    top.legend(fontsize=8, ncols=2)
    fine = np.linspace(0.0, TIMES[-1], 800)
    bottom.plot(TIMES, data[:, 0, 0], ".", color="0.6", ms=4, label="data")
    for name in ("single shooting", "multiple shooting"):
        ends, scores = found[name]
        label = f"{name}, worst start: error {scores.max():.2g}"
        curve = states(tf.constant(ends[[scores.argmax()]]), fine)
        bottom.plot(fine, curve[:, 0, 0], color=colors[name], label=label)
    bottom.set(xlabel="time", ylabel="x", ylim=(-3.5, 4.5))
    bottom.legend(fontsize=8, ncols=3, loc="upper center")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    began = time.perf_counter()
    found, data = run(*((2, 4, 1) if arguments.smoke else (arguments.starts,)))
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "long_series.png"
    draw(found, data, path)
    print(f"mean squared errors from each start; the variance of the noise is {NOISE**2:.4f}")
    for name, (_, scores) in found.items():
        print(f"  {name:<18} " + " ".join(f"{score:8.4f}" for score in scores))
    print(f"  {time.perf_counter() - began:.0f} s, {path}")


if __name__ == "__main__":
    main()
