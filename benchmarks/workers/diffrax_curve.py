"""The curve of diffrax's Kvaerno5 for one problem: a question on stdin, the points on stdout."""

import json
import sys

import diffrax
import jax
import jax.numpy as jnp

from benchmarks import stiff
from benchmarks.work_precision import curve

jax.config.update("jax_enable_x64", True)


def main():
    """Answers one question."""
    question = json.loads(sys.stdin.read())
    case = stiff.PROBLEMS[question["name"]]
    term = diffrax.ODETerm(lambda t, y, p: jnp.stack([jnp.asarray(x) for x in case.components(*y)]))

    @jax.jit
    def solve(rtol, atol):
        solution = diffrax.diffeqsolve(
            term, diffrax.Kvaerno5(), 0.0, case.t1, None, jnp.asarray(case.y0),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            max_steps=100_000, throw=False,
        )  # fmt: skip
        return solution.ys[0], solution.result == diffrax.RESULTS.successful

    def call(rtol, atol):
        y, success = jax.device_get(solve(rtol, jnp.asarray(atol)))
        return y if success else None

    points = curve(call, question["name"], question["tolerances"], question["repeats"])
    print(json.dumps(points))


if __name__ == "__main__":
    main()
