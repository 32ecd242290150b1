"""SciPy: solve_ivp with RK45, or LSODA for stiff fields; a batch is one large system.

With Numba, the field is compiled; one trajectory only.
"""

import numpy as np
from scipy.integrate import solve_ivp

from benchmarks import reference
from benchmarks.workers.serve import Program, serve
from benchmarks.workloads import STIFF


def build(spec, arrays):
    """The workload in SciPy, which has no gradients; see `benchmarks.workers.serve.Program`."""
    if spec["task"] == "solve" and spec["field"] in STIFF:
        return _stiff(spec, arrays)
    if spec["task"] != "solve" or spec["field"] not in ("lotka_volterra", "lorenz"):
        raise ValueError(f"SciPy only solves some of the equations. Received: {spec['name']}")
    if spec["numba"] or spec["field"] == "lorenz":
        return _single(spec, arrays)
    y0, (p,) = arrays["y0"], arrays["p"]
    a, b, c, d = (np.ascontiguousarray(p[..., i]) for i in range(4))
    shape = y0.T.shape

    def field(t, y):
        u, v = y.reshape(shape)
        uv = u * v
        return np.concatenate([np.atleast_1d(a * u - b * uv), np.atleast_1d(d * uv - c * v)])

    def call():
        return solve_ivp(
            field,
            (0.0, spec["t1"]),
            y0.T.ravel(),
            "RK45",
            t_eval=arrays["times"],
            rtol=spec["rtol"],
            atol=spec["atol"],
        ).y

    return Program(call, values=lambda y: np.moveaxis(y.reshape(*shape, -1), (0, -1), (-1, 0)))


def _single(spec, arrays):
    """One trajectory, its field compiled where Numba is there."""
    p = tuple(float(value) for value in arrays["p"][0])

    def lotka_volterra(t, y):
        a, b, c, d = p
        return np.array([a * y[0] - b * y[0] * y[1], -c * y[1] + d * y[0] * y[1]])

    def lorenz(t, y):
        sigma, rho, beta = p
        return np.array(
            [sigma * (y[1] - y[0]), y[0] * (rho - y[2]) - y[1], y[0] * y[1] - beta * y[2]]
        )

    field = {"lotka_volterra": lotka_volterra, "lorenz": lorenz}[spec["field"]]
    if spec["numba"]:
        import numba

        field = numba.njit(field)
    keywords = {"t_eval": arrays["times"], "rtol": spec["rtol"], "atol": spec["atol"]}

    def call():
        return solve_ivp(field, (0.0, spec["t1"]), arrays["y0"], "RK45", **keywords).y

    return Program(call, values=lambda y: y.T)


def _stiff(spec, arrays):
    field = {"robertson": reference._robertson, "brusselator": reference._brusselator}
    field, y0, (p,) = field[spec["field"]], arrays["y0"], arrays["p"]
    keywords = {"rtol": spec["rtol"], "atol": spec["atol"]}

    def call():
        return solve_ivp(lambda t, y: field(y, p), (0.0, spec["t1"]), y0, "LSODA", **keywords).y

    return Program(call, values=lambda y: y[:, -1][None])


if __name__ == "__main__":
    serve(build, ("scipy", "numpy"))
