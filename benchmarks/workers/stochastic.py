"""One tool on one stochastic case: `python -m benchmarks.workers.stochastic TOOL CASE`.

Answers with one JSON line when the first calls are done, and with the seconds of a call for every
line that arrives on standard input. All tools take Euler-Maruyama steps of 1/steps from t = 0 to 1.
"""

import json
import os
import sys
import time

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

RATE, NOISE = -1.0, 0.3


def inputs(case):
    """Start and weights: two networks 2-50-2 for drift and diffusion."""
    random = np.random.default_rng(0)

    def network():
        weights = []
        for n_in, n_out in ((2, 50), (50, 2)):
            weights += [random.normal(size=(n_in, n_out)) / n_in**0.5, np.zeros(n_out)]
        return [weight.astype(np.float32) for weight in weights]

    return np.ones((case["batch"], 2), np.float32), network(), network()


def ours(case):
    """keras_neuralde: fixed steps, noise from counters."""
    import tensorflow as tf

    import keras_neuralde as nde

    keywords = {"dt0": 1.0 / case["steps"], "controller": "constant", "seed": 1}
    if case["field"] == "scalar":

        def scalar(y0):
            sde = nde.SDEProblem(
                lambda t, y, p: RATE * y, lambda t, y, p: NOISE * y, y0, (0.0, 1.0)
            )
            return nde.solve(sde, "euler_maruyama", **keywords).y

        run = tf.function(scalar, jit_compile=True)
        start = tf.constant(1.0)
        return lambda: run(start).numpy()

    def network(y, w):
        return tf.tanh(y @ w[0] + w[1]) @ w[2] + w[3]

    def final(y0, drift, diffusion):
        sde = nde.SDEProblem(
            lambda t, y, p: network(y, p[0]), lambda t, y, p: network(y, p[1]), y0, (0.0, 1.0),
            (drift, diffusion),
        )  # fmt: skip
        return nde.solve(sde, "euler_maruyama", batch_ndims=1, **keywords).y

    def gradient(y0, drift, diffusion):
        with tf.GradientTape() as tape:
            tape.watch([drift, diffusion])
            loss = tf.reduce_mean(final(y0, drift, diffusion) ** 2)
        return loss, tape.gradient(loss, [drift, diffusion])

    y0, *weights = inputs(case)
    arguments = tf.constant(y0), *([tf.constant(w) for w in group] for group in weights)
    run = tf.function(gradient if case["gradient"] else final, jit_compile=True)
    return lambda: tf.nest.map_structure(lambda leaf: leaf.numpy(), run(*arguments))


def scan(case):
    """A plain loop in TensorFlow under XLA, with increments drawn beforehand."""
    import tensorflow as tf

    h = 1.0 / case["steps"]
    increments = tf.random.stateless_normal((case["steps"],), (1, 0)) * h**0.5

    @tf.function(jit_compile=True)
    def run(y, increments):
        def step(k, y):
            return k + 1, y + h * RATE * y + NOISE * y * increments[k]

        return tf.while_loop(lambda k, _: k < case["steps"], step, (0, y))[1]

    start = tf.constant(1.0)
    return lambda: run(start, increments).numpy()


def diffrax(case, path="tree"):
    """diffrax: `Euler` with `VirtualBrownianTree`, its noise that can be differentiated through."""
    import diffrax
    import jax
    import jax.numpy as jnp

    steps, batched = case["steps"], case["field"] != "scalar"
    h = 1.0 / steps
    unsafe = path == "unsafe"
    adjoint = diffrax.ForwardMode() if unsafe else diffrax.RecursiveCheckpointAdjoint()

    class Drawn(diffrax.AbstractPath):
        """Increments of equal steps."""

        increments: jax.Array
        t0: float = 0.0
        t1: float = 1.0

        def evaluate(self, t0, t1=None, left=True, use_levy=False):
            return self.increments[jnp.round(t0 * steps).astype(int)]

    def noise_of(shape, key):
        if path == "tree":
            return diffrax.VirtualBrownianTree(0.0, 1.0, 0.5 * h, shape, key)
        if unsafe:
            return diffrax.UnsafeBrownianPath(shape, key)
        return Drawn(jax.random.normal(key, (steps, *shape)) * h**0.5)

    def network(y, w):
        return jnp.tanh(y @ w[0] + w[1]) @ w[2] + w[3]

    def final(y0, p, key):
        if batched:
            drift = diffrax.ODETerm(lambda t, y, p: network(y, p[0]))

            def diffusion(t, y, p):
                return lineax_diagonal(network(y, p[1]))
        else:
            drift = diffrax.ODETerm(lambda t, y, p: RATE * y)

            def diffusion(t, y, p):
                return NOISE * y

        noise = diffrax.ControlTerm(diffusion, noise_of(y0.shape, key))
        return diffrax.diffeqsolve(
            diffrax.MultiTerm(drift, noise), diffrax.Euler(), 0.0, 1.0, h, y0, p,
            max_steps=steps + 1, adjoint=adjoint,
        ).ys[0]  # fmt: skip

    def lineax_diagonal(vector):
        import lineax

        return lineax.DiagonalLinearOperator(vector)

    key = jax.random.key(1)
    if not batched:
        run = jax.jit(lambda y: final(y, None, key))
        return lambda: np.asarray(run(jnp.ones(())))
    y0, *weights = inputs(case)
    keys = jax.random.split(key, len(y0))
    finals = jax.vmap(final, (0, None, 0))
    arguments = jnp.asarray(y0), [[jnp.asarray(w) for w in group] for group in weights]
    if case["gradient"]:
        run = jax.jit(jax.value_and_grad(lambda p, y: jnp.mean(finals(y, p, keys) ** 2)))
        return lambda: jax.tree.map(np.asarray, run(*arguments[::-1]))
    run = jax.jit(lambda y, p: finals(y, p, keys))
    return lambda: np.asarray(run(*arguments))


def diffrax_unsafe(case):
    """The same with `UnsafeBrownianPath`: for fixed steps, and refused by reverse mode."""
    return diffrax(case, "unsafe")


def diffrax_drawn(case):
    """The same with a path of one's own: all increments of a solve, drawn before it."""
    return diffrax(case, "drawn")


def torchsde(case):
    """torchsde: `euler`, backpropagation through the solver, eager."""
    import torch
    import torchsde

    class Equation(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def __init__(self, *weights):
            super().__init__()
            self.networks = torch.nn.ModuleList(
                torch.nn.ParameterList(torch.tensor(w) for w in group) for group in weights
            )

        def run(self, y, w):
            return torch.tanh(y @ w[0] + w[1]) @ w[2] + w[3]

        def f(self, t, y):
            return self.run(y, self.networks[0]) if len(self.networks) else RATE * y

        def g(self, t, y):
            return self.run(y, self.networks[1]) if len(self.networks) else NOISE * y

    if case["field"] == "scalar":
        equation, start = Equation(), torch.ones((1, 1))
    else:
        y0, *weights = inputs(case)
        equation, start = Equation(*weights), torch.tensor(y0)
    times = torch.tensor([0.0, 1.0])

    def final():
        return torchsde.sdeint(equation, start, times, method="euler", dt=1.0 / case["steps"])[-1]

    if not case["gradient"]:

        def call():
            with torch.no_grad():
                return final().numpy()

        return call

    def gradient():
        equation.zero_grad()
        loss = (final() ** 2).mean()
        loss.backward()
        return loss.detach().numpy(), [p.grad.numpy() for p in equation.parameters()]

    return gradient


def main():
    """Builds, warms up, then answers with times."""
    tool, case = sys.argv[1], json.loads(sys.argv[2])
    tools = {
        "keras_neuralde": ours,
        "scan": scan,
        "diffrax": diffrax,
        "diffrax_unsafe": diffrax_unsafe,
        "diffrax_drawn": diffrax_drawn,
        "torchsde": torchsde,
    }
    call = tools[tool](case)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    start = time.perf_counter()
    result = call()
    first = time.perf_counter() - start
    # The loss, or the mean square of the final states: the same number up to sampling.
    value = float(result[0]) if case["gradient"] else float(np.mean(np.square(result)))
    print(json.dumps({"first": first, "value": value}), file=out, flush=True)
    for _ in sys.stdin:
        samples, end = [], time.perf_counter() + case["seconds"]
        while not samples or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            samples.append(time.perf_counter() - start)
        print(json.dumps(float(np.median(samples))), file=out, flush=True)


if __name__ == "__main__":
    main()
