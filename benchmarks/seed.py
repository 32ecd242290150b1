"""Times the trainings of the page `docs/seed.md`, from its own blocks.

The blocks run in order in one process; what is timed is each call of `minimize` and `fit` that has
a published figure, tracing and compilation included. Times are processor time, so that other
programs on the machine hardly matter; keep the process to one core:

    taskset -c 0 python -m benchmarks.seed

The results go to `benchmarks/results/seed.json`, from which the page has its table.
"""

import argparse
import ast
import datetime
import json
import os
import pathlib
import re
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "seed.md"
RESULTS = ROOT / "benchmarks" / "results" / "seed.json"
# The optimizer's text, by which a statement of the page is known, and its name in the results.
TRAININGS = {
    "BFGS(initial_step_norm=0.0001)": "lotka_volterra",
    "model.fit(u0, ode_data": "spiral",
    "BFGS(initial_step_norm=0.01)": "control",
}


def statements():
    """The statements of the page, in order, each with the name of the training it holds."""
    text = PAGE.read_text(encoding="utf-8")
    for code in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for node in ast.parse(code).body:
            source = ast.unparse(node)
            name = next((TRAININGS[mark] for mark in TRAININGS if mark in source), None)
            yield compile(ast.Module([node], []), PAGE.name, "exec"), name


def measured(names):
    """What the statement that just ran has left in the namespace of the page."""
    found = names.get("res")
    if found is not None:
        return {
            "loss": float(found.minimum),
            "iterations": int(found.iterations),
            "evaluations": int(found.evaluations),
            "status": int(found.status),
        }
    return {"first_stage": names["losses"][299], "loss": names["losses"][-1]}


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS, help="the JSON file")
    options = parser.parse_args(arguments)
    os.environ.setdefault("MPLBACKEND", "Agg")
    import keras

    from benchmarks.run import machine

    record = {"date": str(datetime.date.today()), "machine": machine(), "trainings": {}}
    keras.utils.set_random_seed(0)
    names: dict = {"__name__": "seed"}
    output = options.output.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for code, training in statements():
            if len(record["trainings"]) == len(TRAININGS):
                break
            if training:
                names.pop("res", None)
            began = time.process_time()
            exec(code, names)
            seconds = time.process_time() - began
            if training:
                record["trainings"][training] = {"seconds": seconds, **measured(names)}
                print(training, record["trainings"][training], flush=True)
        os.chdir(ROOT)
    output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
