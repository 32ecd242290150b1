"""Solves an ensemble on one device, two devices or one of several workers; run by the tests.

python -m tests.distribution.ensemble {one,mirrored,worker} FILE
"""

import sys

import numpy as np
import tensorflow as tf

import keras_neuralde as nde
from tests.distribution.train import strategy_of


def main(kind, file):
    strategy = strategy_of(kind)
    problem = nde.SDEProblem(
        lambda t, y, p: -p * y,
        lambda t, y, p: 0.3 * y,
        tf.ones(2, tf.float64),
        (0.0, 1.0),
        tf.constant(1.0, tf.float64),
    )

    def vary(problem, i, seed):
        return problem.remake(p=problem.p + 0.1 * tf.cast(i, tf.float64))

    keywords = {
        "vary": vary, "saveat": [0.5, 1.0], "dt0": 0.125, "controller": "constant", "batch_size": 3,
        "strategy": strategy,
    }  # fmt: skip
    # Seven do not divide by two.
    sol = nde.solve_ensemble(problem, 7, "euler_maruyama", seed=3, **keywords)
    fresh = nde.solve_ensemble(problem, 2, "euler_maruyama", **keywords)
    said = ""
    try:
        nde.solve_ensemble(problem, 7, "euler_maruyama", seed=3, max_steps=2, **keywords)
    except nde.SolveError as error:
        said = str(error)
    np.savez(
        file, y=sol.y, t=sol.t, steps=sol.stats.num_steps, status=sol.status, fresh=fresh.y,
        said=said,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
