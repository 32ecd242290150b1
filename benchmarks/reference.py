"""Tight references: SciPy's DOP853 at 1e-13, and gradients from the adjoint equation.

The solver lands on every save time, so no interpolation enters. Gradients come from the continuous
adjoint (Pontryagin; Chen et al. 2018, equation 4), with the state restarted from the stored
forward values at every save time.

Stiff workloads have LSODA at 1e-12, and central differences of it: backwards in time a stiff
equation is unstable, and nobody can solve for the state that their adjoint needs.
"""

import hashlib
import json
import pathlib

import numpy as np
from scipy.integrate import solve_ivp

from benchmarks import workloads

_CACHE = pathlib.Path(__file__).parent / ".cache"


def arrays(workload):
    """Inputs, target and reference of a workload, computed once and kept in a file.

    Args:
        workload: a `Workload`.

    Returns:
        The path of an `.npz` file with `y0`, `times`, `p0`, `p1`, …, `target` (what the loss
        compares with, shape of the kept states, time first) and `reference` (the kept states, or
        the gradient with respect to all parameters as one vector).
    """
    path = _CACHE / f"{workload.name}-{_key(workload)}.npz"
    if not path.exists():
        _CACHE.mkdir(exist_ok=True)
        given = workloads.inputs(workload)
        leaves = {f"p{i}": leaf for i, leaf in enumerate(given["p"])}
        exact = _in_float64(given)
        target = np.asarray(_target(workload, exact), workload.dtype)
        kept = {"y0": given["y0"], "times": given["times"], "target": target}
        np.savez(path, **kept, **leaves, reference=_reference(workload, exact, target))
    return path


def _key(workload):
    sources = [
        pathlib.Path(__file__).read_bytes(),
        pathlib.Path(workloads.__file__).read_bytes(),
    ]
    text = json.dumps(workload.spec(), sort_keys=True).encode()
    return hashlib.sha256(b"".join([*sources, text])).hexdigest()[:12]


def _in_float64(given):
    return {
        "y0": given["y0"].astype(np.float64),
        "times": given["times"].astype(np.float64),
        "p": [leaf.astype(np.float64) for leaf in given["p"]],
    }


def _target(workload, given):
    """Lotka-Volterra is steered to 1, the spiral to the true spiral, the MLP to 0."""
    shape = given["times"].shape + given["y0"].shape
    if workload.field == "lotka_volterra":
        return np.ones(shape)
    if workload.power == 3:
        return states(_spiral, given["y0"], given["times"])
    return np.zeros(shape)


def _reference(workload, given, target):
    if workload.field in workloads.STIFF:
        return _stiff_reference(workload, given, target)
    if workload.field == "lorenz":
        times = given["times"][: workload.compared]
        return states(_lorenz(given["p"][0]), given["y0"], times)
    field, pullback = field_of(workload, given["p"])
    y = states(field, given["y0"], given["times"])
    if workload.task == "solve":
        return y
    scale = 2.0 / (workload.batch or 1)
    return gradient(field, pullback, given, y, scale * (y - target.astype(np.float64)))


def states(field, y0, times):
    """The solution of y' = field(y), y(0) = y0, at sorted times, time first."""
    y, kept = y0, []
    for start, end in zip(np.concatenate([[0.0], times[:-1]]), times, strict=True):
        y = y if end == start else _integrate(lambda z: field(z.reshape(y0.shape)), y, start, end)
        kept.append(y)
    return np.stack(kept)


def gradient(field, pullback, given, y, slopes):
    """The gradient of a loss with respect to all parameters, as one vector.

    Args:
        field: y' as a function of y.
        pullback: `pullback(y, a)`: the products of `a` with the field's derivatives with respect
            to y and to the parameters, the latter as one vector.
        given: `y0`, `times` and `p`.
        y: the states at `times`.
        slopes: the loss's derivative with respect to each of them.

    Returns:
        A vector.
    """
    shape, size = given["y0"].shape, given["y0"].size
    starts = np.concatenate([[0.0], given["times"][:-1]])
    adjoint = np.zeros(shape)
    total = np.zeros(sum(leaf.size for leaf in given["p"]))

    def backwards(z):
        state, a = z[:size].reshape(shape), z[size : 2 * size].reshape(shape)
        to_state, to_parameters = pullback(state, a)
        return np.concatenate([field(state).ravel(), -to_state.ravel(), -to_parameters])

    for start, end, state, slope in reversed(
        list(zip(starts, given["times"], y, slopes, strict=True))
    ):
        adjoint = adjoint + slope
        if end > start:
            z = np.concatenate([state.ravel(), adjoint.ravel(), total])
            z = _integrate(backwards, z, end, start)
            adjoint, total = z[size : 2 * size].reshape(shape), z[2 * size :]
    return total


def _integrate(field, y, start, end):
    found = solve_ivp(
        lambda t, z: field(z).ravel(),
        (start, end),
        y.ravel(),
        "DOP853",
        rtol=1e-13,
        atol=1e-13,
    )
    if not found.success:
        raise RuntimeError(f"the reference solution failed: {found.message}")
    return found.y[:, -1].reshape(y.shape)


def _stiff_reference(workload, given, target):
    """Final states by LSODA, or the gradient of their squares by extrapolated differences."""
    (p,) = given["p"]
    if workload.task == "solve":
        rows = zip(given["y0"], p, strict=True) if workload.batch else [(given["y0"], p)]
        y = np.stack([_stiff_state(workload, y0, q) for y0, q in rows])
        return y[None] if workload.batch else y

    def loss(q):
        return np.sum((_stiff_state(workload, given["y0"], q) - target[0]) ** 2)

    def slope(i, relative):
        step = np.zeros_like(p)
        step[i] = relative * p[i]
        return (loss(p + step) - loss(p - step)) / (2 * step[i])

    # Richardson: the error of a central difference falls like the square of its step.
    return np.array([(4 * slope(i, 1e-3) - slope(i, 2e-3)) / 3 for i in range(p.size)])


def _stiff_state(workload, y0, p):
    field = {"robertson": _robertson, "brusselator": _brusselator}[workload.field]
    found = solve_ivp(
        lambda t, y: field(y, p), (0.0, workload.t1), y0, "LSODA", rtol=1e-12, atol=1e-16
    )
    if not found.success:
        raise RuntimeError(f"the reference solution failed: {found.message}")
    return found.y[:, -1]


def _robertson(y, p):
    r1, r2, r3 = p[0] * y[0], p[1] * y[1] ** 2, p[2] * y[1] * y[2]
    return np.array([-r1 + r3, r1 - r2 - r3, r2])


def _brusselator(y, p):
    a, b, alpha = p
    u, v = np.split(y, 2)

    def spread(w, border):
        w = np.pad(w, 1, constant_values=border)
        return alpha * (u.size + 1) ** 2 * (w[:-2] - 2 * w[1:-1] + w[2:])

    react = u * u * v
    return np.concatenate([a + react - (b + 1) * u + spread(u, 1), b * u - react + spread(v, 3)])


def _spiral(y):
    cubed = y**3
    return np.stack(
        [
            -0.1 * cubed[..., 0] - 2 * cubed[..., 1],
            2 * cubed[..., 0] - 0.1 * cubed[..., 1],
        ],
        -1,
    )


def field_of(workload, p):
    """The field of a workload in NumPy, and its pullback (see `gradient`)."""
    if workload.field == "lotka_volterra":
        return _lotka_volterra(p[0])
    return _mlp(p, workload.power)


def _lotka_volterra(p):
    a, b, c, d = p[..., 0], p[..., 1], p[..., 2], p[..., 3]

    def field(y):
        u, v = y[..., 0], y[..., 1]
        return np.stack([a * u - b * u * v, -c * v + d * u * v], -1)

    def pullback(y, w):
        (u, v), (wu, wv) = y, w
        to_state = np.array([wu * (a - b * v) + wv * d * v, -wu * b * u + wv * (d * u - c)])
        return to_state, np.array([wu * u, -wu * u * v, -wv * v, wv * u * v])

    return field, pullback


def _lorenz(p):
    sigma, rho, beta = p[..., 0], p[..., 1], p[..., 2]

    def field(y):
        a, b, c = y[..., 0], y[..., 1], y[..., 2]
        return np.stack([sigma * (b - a), a * (rho - c) - b, a * b - beta * c], -1)

    return field


def _mlp(p, power):
    weights, biases = p[::2], p[1::2]

    def activations(y):
        seen = [y**power]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            seen.append(np.tanh(seen[-1] @ weight + bias))
        return seen

    def field(y):
        return activations(y)[-1] @ weights[-1] + biases[-1]

    def pullback(y, w):
        seen, parts = activations(y), []
        for layer in reversed(range(len(weights))):
            parts = [seen[layer].T @ w, w.sum(0), *parts]
            w = w @ weights[layer].T
            w = w * (1 - seen[layer] ** 2) if layer else w * power * y ** (power - 1)
        return w, np.concatenate([part.ravel() for part in parts])

    return field, pullback
