"""One tool on one case with events: `python -m benchmarks.workers.events TOOL CASE`.

See `benchmarks.turns` for how it answers.
"""

import json
import os
import sys

import numpy as np

from benchmarks import turns

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

GRAVITY, HEIGHT, END, RTOL, ATOL = 9.8, 50.0, 15.0, 1e-6, 1e-6
BOUNCES = 8
DRIFT, NOISE, RATE = 0.5, 0.2, 2.0


def restitutions(count):
    """One for each ball."""
    return np.linspace(0.7, 0.9, count)


def exact(count, gradient):
    """Heights at the end, or their derivatives over the number of balls."""
    found = []
    for e in restitutions(count):
        t, v = np.sqrt(2 * HEIGHT / GRAVITY), np.sqrt(2 * HEIGHT * GRAVITY)
        dt, dv = 0.0, 0.0
        while True:
            dv, v = v + e * dv, e * v
            flight = 2 * v / GRAVITY
            if t + flight > END:
                break
            t, dt = t + flight, dt + 2 * dv / GRAVITY
        s = END - t
        height = v * s - 0.5 * GRAVITY * s**2
        slope = dv * s + (v - GRAVITY * s) * -dt
        found.append(slope / count if gradient else height)
    return np.array(found)


def ours(case):
    """keras_neuralde: `tsit5`, each ball with its own steps and events."""
    import tensorflow as tf

    import keras_neuralde as nde

    if case["kind"] == "jumps":
        return _our_jumps(tf, nde, case)
    bounce = nde.ContinuousEvent(
        lambda t, y, e: y[:, 0],
        lambda t, y, e: tf.stack([y[:, 0], -e * y[:, 1]], 1),
        direction=-1,
        max_events=BOUNCES,
    )
    e = tf.constant(restitutions(case["count"]))
    y0 = tf.tile([[HEIGHT, 0.0]], [case["count"], 1])
    y0 = tf.cast(y0, e.dtype)

    def fall(t, y, e):
        return tf.stack([y[:, 1], -GRAVITY * tf.ones_like(t)], 1)

    def heights(e):
        problem = nde.ODEProblem(fall, y0, (0.0, END), e)
        sol = nde.solve(problem, "tsit5", rtol=RTOL, atol=ATOL, batch_ndims=1, events=[bounce])
        return sol.y[:, 0]

    def slopes(e):
        with tf.GradientTape() as tape:
            tape.watch(e)
            mean = tf.reduce_mean(heights(e))
        return tape.gradient(mean, e)

    run = tf.function(slopes if case["gradient"] else heights, jit_compile=True)
    return lambda: run(e).numpy()


def _our_jumps(tf, nde, case):
    halve = nde.ConstantRateJump(RATE, lambda t, y, p: 0.5 * y)

    start = tf.ones([case["count"]])
    sde = nde.SDEProblem(
        lambda t, y, p: DRIFT * y, lambda t, y, p: NOISE * y, start, (0.0, 1.0)
    )  # fmt: skip
    # The functions are made once: new ones would be compiled anew.
    problem = nde.JumpProblem(sde, [halve])

    def run():
        return nde.solve(
            problem, "euler_maruyama", dt0=1.0 / case["steps"], controller="constant",
            batch_ndims=1, seed=0, throw=False,
        ).y  # fmt: skip

    return lambda: run().numpy()


def plain(case):
    """NumPy: a loop over equal steps, jumps drawn at the end of each."""
    random, h = np.random.default_rng(0), 1.0 / case["steps"]

    def run():
        y = np.ones(case["count"], np.float32)
        for _ in range(case["steps"]):
            dw = np.sqrt(h) * random.standard_normal(case["count"], np.float32)
            y = y + h * DRIFT * y + NOISE * y * dw
            y = np.where(random.random(case["count"], np.float32) < RATE * h, 0.5 * y, y)
        return y

    return run


def diffrax(case):
    """diffrax: `Tsit5`, restarted at each event, `vmap` over the balls."""
    import diffrax as dfx
    import jax
    import jax.numpy as jnp
    import optimistix

    jax.config.update("jax_enable_x64", True)
    event = dfx.Event(lambda t, y, args, **_: y[0], optimistix.Newton(1e-8, 1e-8), direction=False)
    controller = dfx.PIDController(rtol=RTOL, atol=ATOL)

    def one(e):
        def flight(state, _):
            t, y = state
            sol = dfx.diffeqsolve(
                dfx.ODETerm(lambda t, y, args: jnp.array([y[1], -GRAVITY])), dfx.Tsit5(), t0=t,
                t1=END, dt0=None, y0=y, stepsize_controller=controller, event=event,
            )  # fmt: skip
            hit = sol.result == dfx.RESULTS.event_occurred
            y = sol.ys[-1]
            y = jnp.where(hit, jnp.array([y[0], -e * y[1]]), y)
            return (sol.ts[-1], y), None

        start = (jnp.zeros(()), jnp.array([HEIGHT, 0.0]))
        return jax.lax.scan(flight, start, length=BOUNCES)[0][1][0]

    e = jnp.asarray(restitutions(case["count"]))

    def mean(e):
        return jnp.mean(jax.vmap(one)(e))

    run = jax.jit(jax.grad(mean) if case["gradient"] else jax.vmap(one))
    return lambda: np.asarray(run(e))


def torchdiffeq(case):
    """torchdiffeq: `odeint_event`, one ball after the other; a few of them stand for all."""
    import torch
    from torchdiffeq import odeint, odeint_event

    few = min(case["few"], case["count"])
    chosen = np.linspace(0, case["count"] - 1, few).astype(int)
    tolerances = {"rtol": RTOL, "atol": ATOL}

    def fall(t, y):
        return torch.stack([y[1], -GRAVITY * torch.ones_like(y[0])])

    def one(e):
        t, y = torch.zeros((), dtype=e.dtype), torch.tensor([HEIGHT, 0.0], dtype=e.dtype)
        while True:
            hit, states = odeint_event(
                fall, y, t, event_fn=lambda t, y: torch.minimum(y[0], END - t),
                odeint_interface=odeint, **tolerances,
            )  # fmt: skip
            y = states[-1]
            if hit >= END - 1e-6:
                return y[0]
            # A little off the ground, or the same root would be found again.
            t, y = hit, torch.stack([torch.full_like(y[0], 1e-9), -e * y[1]])

    def run():
        e = torch.tensor(restitutions(case["count"])[chosen], requires_grad=case["gradient"])
        heights = torch.stack([one(x) for x in e])
        values = np.full(case["count"], np.nan)
        if case["gradient"]:
            heights.sum().backward()
            values[chosen] = e.grad.numpy() / case["count"]
        else:
            values[chosen] = heights.detach().numpy()
        return values

    return run


TOOLS = {"keras_neuralde": ours, "numpy": plain, "diffrax": diffrax, "torchdiffeq": torchdiffeq}


def main():
    """The command line."""
    tool, case = sys.argv[1], json.loads(sys.argv[2])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def error(values):
        if case["kind"] == "jumps":
            # The law of the mean: exp((drift - rate / 2) t).
            return float(abs(values.mean() - np.exp(DRIFT - RATE / 2)))
        distance = np.abs(values - exact(case["count"], case["gradient"]))
        return float(np.nanmax(distance) * (case["count"] if case["gradient"] else 1))

    def say(line):
        print(line, file=out, flush=True)

    share = min(case["few"], case["count"]) / case["count"] if tool == "torchdiffeq" else 1.0
    more = {"error": error, "share": lambda _: share}
    turns.answer(TOOLS[tool](case), case["seconds"], sys.stdin, say, **more)


if __name__ == "__main__":
    main()
