"""A bouncing ball: which restitution brings it to a height of 20 m after 15 s?

A ball falls from 50 m and loses speed at every bounce: v becomes -e v. The height h(15) is a smooth
function of e between the values where the number of bounces changes, and gradients go through the
bounces. Least squares from e = 0.8 ends at e = 0.866554, a published answer. It is a stationary
point and no solution: h(15) is 19.37 m there, and not higher for any e nearby. The solution, with
fewer bounces, is e = 0.988008; it is found from a start on its side.

    python examples/30_bouncing_ball.py [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import numpy as np
import tensorflow as tf

import keras_neuralde as nde

G, DROP, END, TARGET = 9.8, 50.0, 15.0, 20.0


def fall(t, y, e):
    """Height and velocity."""
    return tf.stack([y[..., 1], -G + 0.0 * y[..., 0]], -1)


def bounce(t, y, e):
    """The velocity turns round and loses a part."""
    return tf.stack([y[..., 0], -e * y[..., 1]], -1)


GROUND = nde.ContinuousEvent(lambda t, y, e: y[..., 0], bounce, direction=-1)


@tf.function(jit_compile=True, autograph=False)
def height(e):
    """h(15) for each of the restitutions `e`, its derivative, and how often the ball bounced."""
    with tf.GradientTape() as tape:
        tape.watch(e)
        y0 = tf.stack([DROP + 0.0 * e, 0.0 * e], -1)
        problem = nde.ODEProblem(fall, y0, (0.0, END), e)
        sol = nde.solve(problem, batch_ndims=1, events=[GROUND])
        h = sol.y[:, 0]
    return h, tape.gradient(h, e), sol.num_events


def fit(starts, steps=180):
    """Least squares from several starts at once, by Gauss and Newton; steps get shorter."""
    e = tf.constant(starts, tf.float64)
    for k in range(steps):
        h, slope, _ = height(e)
        wanted = (TARGET - h) * slope / (slope**2 + 1.0)
        e = e + tf.clip_by_value(wanted, -0.01 * 0.9**k, 0.01 * 0.9**k)
    return e.numpy(), height(e)[0].numpy()


def draw(path, count):
    """The height over the restitution, and the paths of the two answers."""
    import matplotlib.pyplot as plt

    e = np.linspace(0.66, 0.999, count)
    h, _, bounces = height(tf.constant(e))
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for number in np.unique(bounces):
        here = bounces.numpy() == number
        axes[0].plot(e[here], h.numpy()[here], color="#0072B2", lw=1.2)
    axes[0].axhline(TARGET, color="0.6", ls=":")
    axes[0].set(xlabel="restitution e", ylabel="height after 15 s (m)", title="one arc a bounce")
    times = np.linspace(0.0, END, 600)
    answers = (("published", 0.866554105436901, "#D55E00"), ("solution", 0.988008392, "#009E73"))
    for name, value, colour in answers:
        axes[0].plot(value, height(tf.constant([value], tf.float64))[0], "o", color=colour)
        problem = nde.ODEProblem(
            fall, tf.constant([DROP, 0.0], tf.float64), (0.0, END), tf.constant(value, tf.float64)
        )
        y = nde.solve(problem, saveat=times, events=[GROUND]).y
        axes[1].plot(times, y[:, 0], color=colour, lw=1.2, label=f"{name}, e = {value:.4f}")
    axes[1].plot(END, TARGET, "k*", label="wanted")
    axes[1].set(xlabel="t (s)", ylabel="height (m)", ylim=(-2.5, 65.0))
    axes[1].legend(loc="upper center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def run():
    """From 0.8 and from 0.98: `(restitutions, heights)`."""
    return fit([0.8, 0.98])


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    e, h = fit([0.8, 0.98], steps=2) if arguments.smoke else run()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "bouncing_ball.png"
    draw(path, 40 if arguments.smoke else 800)
    for start, value, reached in zip((0.8, 0.98), e, h, strict=True):
        print(f"from {start}: e = {value:.9f}, h(15) = {reached:.6f} m")
    print(f"  {path}")


if __name__ == "__main__":
    main()
