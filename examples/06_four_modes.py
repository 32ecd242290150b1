"""Four ways to put a differential equation and a network together.

1. An activation defined by an equation: z' = -c z³ from z(0) = x, read at t = 1, with a trainable
   c. It saturates at ±1/√(2c); the exact answer is x / √(1 + 2cx²). A network with it learns
   sin 3x.
2. A layer that is a solve: an encoder reads 20 samples of a damped oscillation and puts out the two
   rates of the equation x'' = -ω²x - cx', whose solution is the decoder. Trained to reproduce its
   input, without labels, the encoder puts out the true rates.
3. An equation with a network as a term: a body falls by v' = g - network(v). From three falls the
   network learns the drag 0.3 v + 0.05 v².
4. A cost function on an equation: x'' = -k₁x - k₂x' starts at x = 1, x' = 0, and the gains are to
   make ∫ x² + (k₁x + k₂x')² dt small. The exact answer (Riccati's equation) is k = (1, √2), and the
   cost is √2.

    python examples/06_four_modes.py [--seed 0] [--output demo_output] [--smoke]
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_neuralde as nde

BLUE, ORANGE = "#0072B2", "#D55E00"


def optimizer(adam_steps):
    """ADAM, then L-BFGS, in one `fit`."""
    return nde.optimizers.Chain(
        [keras.optimizers.Adam(0.01), nde.optimizers.LBFGS()], steps=[adam_steps]
    )


def fit(model, x, y, steps):
    """Trains on the whole of the data at once; returns the last loss."""
    model.compile(optimizer(steps[0]), "mse")
    return model.fit(x, y, batch_size=len(x), epochs=sum(steps), verbose=0).history["loss"][-1]


@keras.saving.register_keras_serializable("examples")
class Saturation(keras.layers.Layer):
    """z(1) of z' = -c z³, z(0) = x, for every element of x; c stays positive."""

    def build(self, input_shape):
        self.raw = self.add_weight(shape=(), initializer="ones", name="raw")

    @property
    def c(self):
        return keras.ops.softplus(self.raw)

    def call(self, x):
        problem = nde.ODEProblem(lambda t, z, c: -c * z**3, x, (0.0, 1.0), self.c)
        return nde.solve(problem, "tsit5", rtol=1e-6, atol=1e-8, batch_ndims=len(x.shape)).y


def activation(seed, steps):
    """Mode 1: `(model, x, y, loss)`."""
    keras.utils.set_random_seed(seed)
    x = np.linspace(-1.5, 1.5, 64)[:, None]
    inputs = keras.Input((1,))
    hidden = Saturation(name="saturation")(keras.layers.Dense(12)(inputs))
    model = nde.Model(inputs, keras.layers.Dense(1)(hidden))
    loss = fit(model, x, np.sin(3.0 * x), steps)
    return model, x, np.sin(3.0 * x), loss


@keras.saving.register_keras_serializable("examples")
class Oscillation(keras.layers.Layer):
    """x at `TIMES` of x'' = -ω²x - cx' from x = 1 at rest, for rows of rates (ω, c)."""

    TIMES = np.linspace(0.0, 3.0, 20)

    def call(self, rates):
        def field(t, y, rates):
            x, v = tf.unstack(y, axis=-1)
            omega, c = tf.unstack(rates, axis=-1)
            return tf.stack([v, -(omega**2) * x - c * v], -1)

        y0 = tf.ones_like(rates) * [1.0, 0.0]
        problem = nde.ODEProblem(field, y0, (0.0, 3.0), rates)
        y = nde.solve(problem, "tsit5", saveat=self.TIMES, rtol=1e-5, atol=1e-6, batch_ndims=1).y
        return tf.transpose(y[..., 0])


def oscillations(seed, count):
    """Rates `(count, 2)` with 1 ≤ ω ≤ 3, 0.1 ≤ c ≤ 1, and their curves by the closed form."""
    rates = np.random.default_rng(seed).uniform([1.0, 0.1], [3.0, 1.0], (count, 2))
    omega, c = rates.T[..., None]
    t, shifted = Oscillation.TIMES, np.sqrt(omega**2 - c**2 / 4.0)
    wave = np.cos(shifted * t) + c / (2.0 * shifted) * np.sin(shifted * t)
    return rates, np.exp(-c * t / 2.0) * wave


def layer(seed, steps):
    """Mode 2: `(encoder, loss)`."""
    keras.utils.set_random_seed(seed)
    _, curves = oscillations(seed, 256)
    inputs = keras.Input((20,))
    hidden = keras.layers.Dense(32, "tanh")(inputs)
    rates = keras.layers.Dense(2, "softplus", name="rates")(hidden)
    loss = fit(nde.Model(inputs, Oscillation()(rates)), curves, curves, steps)
    return keras.Model(inputs, rates), loss


@keras.saving.register_keras_serializable("examples")
class Fall(keras.layers.Layer):
    """v' = g - network(v): gravity is known, the drag is not."""

    def build(self, input_shape):
        self.drag = keras.Sequential([keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)])
        self.drag.build(input_shape)

    def call(self, v):
        return 9.81 - self.drag(v / 10.0)


def true_drag(v):
    return 0.3 * v + 0.05 * v**2


def term(seed, steps):
    """Mode 3: `(fall, velocities (3, 31), loss)`."""
    keras.utils.set_random_seed(seed)
    times, v0 = np.linspace(0.0, 2.0, 31), np.array([[0.0], [10.0], [20.0]])
    problem = nde.ODEProblem(lambda t, v, p: 9.81 - true_drag(v), v0, (0.0, 2.0))
    data = nde.solve(problem, saveat=times, rtol=1e-9, atol=1e-9, batch_ndims=1).y.numpy()
    data = data.transpose(1, 0, 2)
    fall, inputs = Fall(), keras.Input((1,))
    curve = nde.NeuralODE(fall, (0.0, 2.0), saveat=times, rtol=1e-6, atol=1e-6)
    loss = fit(nde.Model(inputs, curve(inputs)), v0, data, steps)
    return fall, data, loss


def regulated(k, times=None):
    """x, x' and the cost so far, at t = 20 or at `times`."""

    def field(t, y, k):
        x, v, _ = tf.unstack(y)
        force = k[0] * x + k[1] * v
        return tf.stack([v, -force, x**2 + force**2])

    problem = nde.ODEProblem(field, np.array([1.0, 0.0, 0.0]), (0.0, 20.0), k)
    return nde.solve(problem, "tsit5", saveat=times, rtol=1e-9, atol=1e-9, throw=False).y


def cost(max_iters=None):
    """Mode 4: what `minimize` found."""
    bfgs = nde.optimizers.BFGS(initial_step_norm=0.1)
    start = tf.constant([0.3, 0.3], tf.float64)
    return nde.minimize(lambda k: regulated(k)[2], start, bfgs, max_iters=max_iters)


def run(seed=0, steps=(300, 200), max_iters=None):
    """All four: a dictionary of what each returned."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        return {
            "activation": activation(seed, steps),
            "layer": layer(seed, steps),
            "term": term(seed, steps),
            "cost": cost(max_iters),
        }
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


def draw(found, path):
    """One picture for each mode."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
    model, x, y, _ = found["activation"]
    axes[0, 0].plot(x, y, color="0.7", lw=5, label="sin 3x")
    axes[0, 0].plot(x, model.predict(x, verbose=0), color=BLUE, label="network")
    z = np.linspace(-3.0, 3.0, 101)
    saturation = model.get_layer("saturation")
    axes[0, 0].plot(z, saturation(z[:, None]), "--", color=ORANGE, label="its activation")
    axes[0, 0].set(title="1. Activation: z' = -c z³", xlabel="x", ylabel="y", xlim=(-3, 3))
    axes[0, 0].set_ylim(-1.1, 1.5)
    axes[0, 0].legend(loc="upper center", ncols=3, fontsize=9)

    rates, curves = oscillations(1000, 200)
    guessed = found["layer"][0].predict(curves, verbose=0)
    for k, (name, color) in enumerate((("ω", BLUE), ("c", ORANGE))):
        axes[0, 1].plot(rates[:, k], guessed[:, k], ".", color=color, label=name)
    axes[0, 1].axline((1, 1), slope=1, color="0.7", zorder=0)
    axes[0, 1].set(title="2. Layer: a solve as decoder", xlabel="true rate", ylabel="encoded rate")
    axes[0, 1].legend()

    fall, data, _ = found["term"]
    v = np.linspace(0.0, 20.0, 100)
    axes[1, 0].plot(v, true_drag(v), color="0.7", lw=5, label="true drag")
    axes[1, 0].plot(v, fall.drag(v[:, None] / 10.0), color=BLUE, label="network")
    axes[1, 0].plot(data.ravel(), np.zeros(data.size), "|", color=ORANGE, label="velocities seen")
    axes[1, 0].set(title="3. Term: v' = g - network(v)", xlabel="v (m/s)", ylabel="drag (m/s²)")
    axes[1, 0].legend()

    times = np.linspace(0.0, 10.0, 200)
    for k, color, name in (
        (tf.constant([0.3, 0.3], tf.float64), ORANGE, "start"),
        (found["cost"].minimizer, BLUE, "after BFGS"),
    ):
        label = f"{name}: cost {float(regulated(k)[2]):.4f}"
        axes[1, 1].plot(times, regulated(k, times)[:, 0], color=color, label=label)
    axes[1, 1].set(title="4. Cost: gains of a regulator", xlabel="t", ylabel="x")
    axes[1, 1].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    found = run(arguments.seed, *(((3, 2), 2) if arguments.smoke else ()))
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "four_modes.png"
    draw(found, path)
    model, _, _, loss = found["activation"]
    print(f"1. activation: mse {loss:.2g}, c = {float(model.get_layer('saturation').c):.4f}")
    rates, curves = oscillations(1000, 200)
    error = np.abs(found["layer"][0].predict(curves, verbose=0) - rates).mean(axis=0)
    print(
        f"2. layer: mse {found['layer'][1]:.2g}, mean error of ω {error[0]:.2g}, c {error[1]:.2g}"
    )
    fall, data, loss = found["term"]
    v = np.linspace(data.min(), data.max(), 100)[:, None]
    error = np.abs(fall.drag(v / 10.0) - true_drag(v)).max()
    print(f"3. term: mse {loss:.2g}, largest error of the drag {error:.2g} of {true_drag(20.0)}")
    print(f"4. cost: {found['cost'].minimum:.10f} at k = {found['cost'].minimizer.numpy()}")
    print(f"  {path}")


if __name__ == "__main__":
    main()
