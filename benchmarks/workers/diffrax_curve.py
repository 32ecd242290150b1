"""The curve of diffrax's Kvaerno5 for one problem: a question on stdin, the points on stdout."""

import json
import sys

import diffrax
import jax
import jax.numpy as jnp

from benchmarks import stiff
from benchmarks.work_precision import curve

jax.config.update("jax_enable_x64", True)


#: The first step where diffrax's own choice leads nowhere, as a part of the time span.
FIRST_STEP = 1e-8


def main():
    """Answers one question.

    For the Van der Pol oscillator none of 100,000 attempts is accepted, at any tolerance, when
    diffrax chooses the first step itself (0.7.2: `dt0=None`); from a given one, of any size from
    1e-12 to 1e-4, it arrives. Such a curve is measured with a given one.
    """
    question = json.loads(sys.stdin.read())
    case = stiff.PROBLEMS[question["name"]]
    points = []
    for dt0 in (None, FIRST_STEP * case.t1):
        points = points or measured(question, case, dt0)
    print(json.dumps(points))


def measured(question, case, dt0):
    """The points of the curve for a first step; `None` leaves it to diffrax."""
    term = diffrax.ODETerm(lambda t, y, p: jnp.stack([jnp.asarray(x) for x in case.components(*y)]))

    @jax.jit
    def solve(rtol, atol):
        solution = diffrax.diffeqsolve(
            term, diffrax.Kvaerno5(), 0.0, case.t1, dt0, jnp.asarray(case.y0),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            max_steps=100_000, throw=False,
        )  # fmt: skip
        return solution.ys[0], solution.result == diffrax.RESULTS.successful

    def call(rtol, atol):
        y, success = jax.device_get(solve(rtol, jnp.asarray(atol)))
        return y if success else None

    return curve(call, question["name"], question["tolerances"], question["repeats"])


if __name__ == "__main__":
    main()
