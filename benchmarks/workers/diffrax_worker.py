"""diffrax: Tsit5 or Kvaerno5 with its PID controller and its default, checkpointed adjoint.

All arguments are arrays, so `jax.jit` does; `equinox.filter_jit` costs 130 µs more for each call.
"""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.workers.serve import Program, agree, decreased, serve
from benchmarks.workloads import STIFF

jax.config.update("jax_enable_x64", True)


def build(spec, arrays):
    """The workload in diffrax; see `benchmarks.workers.serve.Program`."""
    y0, p = jnp.asarray(arrays["y0"]), [jnp.asarray(leaf) for leaf in arrays["p"]]
    states = _states(spec, jnp.asarray(arrays["times"]))
    if spec["task"] == "train":
        return _training(spec, states, _target(spec, arrays), y0, p)
    task = states if spec["task"] == "solve" else _gradient(states, _target(spec, arrays))
    return _evaluation(spec, task, y0, p)


def at_tolerance(spec, arrays):
    """The result of a workload as a function of its tolerances, compiled once.

    Args:
        spec: the workload's settings, its tolerances left out.
        arrays: its arrays.

    Returns:
        A function of one number, rtol and atol.
    """
    y0, p = jnp.asarray(arrays["y0"]), [jnp.asarray(leaf) for leaf in arrays["p"]]
    times, general = jnp.asarray(arrays["times"]), spec | {"joint": False}
    target = _target(general, arrays)

    @jax.jit
    def run(tolerance):
        tolerance = jnp.asarray(tolerance, y0.dtype)
        states = _states(general | {"rtol": tolerance, "atol": tolerance}, times)
        if spec["task"] == "solve":
            return states(y0, p)
        return jnp.concatenate([leaf.ravel() for leaf in _gradient(states, target)(y0, p)])

    return lambda tolerance: np.asarray(run(tolerance))


def _batched(spec):
    """Whether trajectories are vectorised with vmap, each with its own steps."""
    return spec["batch"] not in (None, 1) and not spec["joint"]


def _fields(spec):
    def lotka_volterra(t, y, p):
        u, v = y[..., 0], y[..., 1]
        p = p[0]
        a, b, c, d = p[..., 0], p[..., 1], p[..., 2], p[..., 3]
        return jnp.stack([a * u - b * u * v, -c * v + d * u * v], -1)

    def lorenz(t, y, p):
        a, b, c = y
        sigma, rho, beta = p[0]
        return jnp.stack([sigma * (b - a), a * (rho - c) - b, a * b - beta * c])

    def mlp(t, y, p):
        x = y ** spec["power"]
        for weight, bias in zip(p[:-2:2], p[1:-2:2], strict=True):
            x = jnp.tanh(x @ weight + bias)
        return x @ p[-2] + p[-1]

    def robertson(t, y, p):
        k1, k2, k3 = p[0]
        r1, r2, r3 = k1 * y[0], k2 * y[1] ** 2, k3 * y[1] * y[2]
        return jnp.stack([-r1 + r3, r1 - r2 - r3, r2])

    def brusselator(t, y, p):
        a, b, alpha = p[0]
        u, v = jnp.split(y, 2)

        def spread(w, border):
            w = jnp.pad(w, 1, constant_values=border)
            return alpha * (u.size + 1) ** 2 * (w[:-2] - 2 * w[1:-1] + w[2:])

        react = u * u * v
        du = a + react - (b + 1) * u + spread(u, 1)
        return jnp.concatenate([du, b * u - react + spread(v, 3)])

    fields = {"lotka_volterra": lotka_volterra, "lorenz": lorenz, "mlp": mlp}
    return (fields | {"robertson": robertson, "brusselator": brusselator})[spec["field"]]


def _states(spec, times):
    """A function of y0 and p that returns the kept states: (times, ...), or (batch, times, ...)."""
    final = spec["num_saves"] is None
    saveat = diffrax.SaveAt(t1=True) if final else diffrax.SaveAt(ts=times)
    controller = diffrax.PIDController(rtol=spec["rtol"], atol=spec["atol"])

    def solve(y0, p):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(_fields(spec)),
            diffrax.Kvaerno5() if spec["field"] in STIFF else diffrax.Tsit5(),
            t0=0.0,
            t1=spec["t1"],
            dt0=None,
            y0=y0,
            args=p,
            saveat=saveat,
            stepsize_controller=controller,
            max_steps=16**4 if spec["field"] == "lorenz" else 4096,
        ).ys

    if not _batched(spec):
        if spec["batch"] == 1:
            return lambda y0, p: solve(y0[0], p)[:, None]
        return solve
    own_p = spec["field"] in ("lotka_volterra", "lorenz", "robertson")
    return jax.vmap(solve, in_axes=(0, 0 if own_p else None))


def _target(spec, arrays):
    target = arrays["target"]
    return jnp.asarray(np.swapaxes(target, 0, 1) if _batched(spec) else target)


def _loss(states, target, y0, p):
    batch = y0.shape[0] if y0.ndim > 1 else 1
    return jnp.sum((states(y0, p) - target) ** 2) / batch


def _gradient(states, target):
    return jax.grad(functools.partial(_loss, states, target), argnums=1)


def _total(spec, result, add):
    """The sum of what is compared: of chaos behind it, two equal calls say different things."""
    if spec["task"] == "solve" and spec["compared"] is not None:
        kept = slice(None, spec["compared"])
        result = result[:, kept] if _batched(spec) else result[kept]
    return sum(add(leaf) for leaf in jax.tree.leaves(result))


def _evaluation(spec, task, y0, p):
    """Solves and gradients: a call is compiled alone, the loop feeds each result to the next."""
    task_jit = jax.jit(task)

    @jax.jit
    def loop(y0, p, count):
        def turn(_, carry):
            y0, total = carry
            result = _total(spec, task(y0, p), jnp.sum)
            return y0 + 1e-20 * result, total + result

        return jax.lax.fori_loop(0, count, turn, (y0, jnp.zeros((), y0.dtype)))[1]

    def values(result):
        if spec["task"] == "gradient":
            return np.concatenate([np.ravel(leaf) for leaf in result])
        result = np.asarray(result)
        return np.swapaxes(result, 0, 1) if _batched(spec) else result

    def check(result, total):
        agree(_total(spec, result, np.sum), total, spec["loop"])

    count = jnp.asarray(spec["loop"])
    return Program(
        call=lambda: jax.block_until_ready(task_jit(y0, p)),
        values=values,
        loop=lambda: float(loop(y0, p, count)),
        check_loop=check,
    )


def _training(spec, states, target, y0, p):
    optimizer = optax.adam(spec["learning_rate"])
    start = (p, optimizer.init(p))

    def step(y0, p, moments):
        loss, slopes = jax.value_and_grad(functools.partial(_loss, states, target, y0))(p)
        updates, moments = optimizer.update(slopes, moments)
        return optax.apply_updates(p, updates), moments, loss

    step_jit = jax.jit(step)

    @jax.jit
    def loop(y0, p, moments, count):
        carry = (p, moments, jnp.zeros((), y0.dtype))
        return jax.lax.fori_loop(0, count, lambda _, c: step(y0, c[0], c[1]), carry)[2]

    def values(result):
        """The gradient, from the first moment after one step: m = (1 - 0.9) g."""
        return np.concatenate([np.ravel(leaf) for leaf in result[1][0].mu]) / (1 - 0.9)

    count = jnp.asarray(spec["loop"])
    return Program(
        call=lambda: jax.block_until_ready(step_jit(y0, *start)),
        values=values,
        loop=lambda: float(loop(y0, *start, count)),
        check_loop=lambda result, last: decreased(float(result[2]), last),
    )


if __name__ == "__main__":
    serve(build, ("diffrax", "jax", "jaxlib", "equinox", "optax", "numpy"))
