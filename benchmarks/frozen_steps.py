"""Measures what frozen step sequences do for line searches: iterations, evaluations, final loss.

Two of the examples, at three tolerances, with and without: the control of the Lotka-Volterra
equations by BFGS, whose true minimum is 0, and the cubic spiral by ADAM and L-BFGS. Every final
point is judged by its loss at rtol 1e-10 too. Results go to
`benchmarks/results/frozen_steps.json`, from which the page on training makes its tables.

Run from the checkout root:

    python -m benchmarks.frozen_steps
"""

import argparse
import importlib
import json
import pathlib
import sys
import time

_HERE = pathlib.Path(__file__).parent
RESULTS = _HERE / "results" / "frozen_steps.json"
TOLERANCES = (1e-3, 1e-6, 1e-9)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few iterations, nothing is written")
    smoke = parser.parse_args().smoke
    sys.path.insert(0, str(_HERE.parent / "examples"))
    record = {"control": [], "spiral": []}
    for rtol in TOLERANCES[: 1 if smoke else None]:
        for frozen in (False, True):
            for name, measure in (("control", control), ("spiral", spiral)):
                began = time.perf_counter()
                row = {"rtol": rtol, "frozen": frozen, **measure(rtol, frozen, smoke)}
                row["seconds"] = time.perf_counter() - began
                record[name].append(row)
                print(name, row, flush=True)
    if not smoke:
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")


def control(rtol, frozen, smoke):
    """BFGS on the control problem."""
    example = importlib.import_module("02_lotka_volterra_control")
    result = example.run(3 if smoke else None, rtol, frozen)
    return {
        "iterations": result.iterations,
        "evaluations": result.evaluations,
        "loss": float(result.minimum),
        "true_loss": float(example.loss(result.minimizer, 1e-10)),
    }


def spiral(rtol, frozen, smoke):
    """300 steps of ADAM, then L-BFGS until it ends, at most 400 iterations."""
    import numpy as np

    import keras_neuralde as nde

    example = importlib.import_module("01_spiral")
    steps = (5, 3) if smoke else (300, 400)
    model, losses, data = example.run(0, *steps, rtol=rtol, freeze_steps=frozen)
    field = model.layers[-1].model
    exact = nde.NeuralODE(
        field, (0.0, 1.5), saveat=example.TIMES, rtol=1e-10, atol=1e-10, dtype="float64"
    )
    return {
        "iterations": len(losses) - steps[0],
        "evaluations": model.optimizer.closure_stage().num_evaluations,
        "loss": float(losses[-1]),
        "true_loss": float(np.sum((data - exact(example.Y0)[0].numpy()) ** 2)),
    }


if __name__ == "__main__":
    main()
