"""SciPy: solve_ivp with RK45; a batch is one large system, with one step size."""

import numpy as np
from scipy.integrate import solve_ivp

from benchmarks.workers.serve import Program, serve


def build(spec, arrays):
    """The workload in SciPy, which has no gradients; see `benchmarks.workers.serve.Program`."""
    if spec["task"] != "solve" or spec["field"] != "lotka_volterra":
        raise ValueError(f"SciPy only solves Lotka-Volterra. Received: {spec['name']}")
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


if __name__ == "__main__":
    serve(build, ("scipy", "numpy"))
