"""Measures stochastic equations in this package, diffrax and torchsde, and beside a plain loop.

Each tool runs in a process of its own; times are taken in rounds, one tool after the other, and a
ratio is the median over the rounds. The results go to `benchmarks/results/stochastic.json`, from
which the page on stochastic equations makes its table.

Run from the checkout root:

    python -m benchmarks.stochastic
    python -m benchmarks.stochastic --smoke --peers
"""

import json
import pathlib
import sys

from benchmarks import turns
from benchmarks.tools import TOOLS, python_of

RESULTS = pathlib.Path(__file__).parent / "results" / "stochastic.json"
_NEURAL = {"field": "neural", "batch": 1024, "steps": 100, "gradient": False}
CASES = {
    "neural_forward": ("Neural SDE 2-50-2, 1,024 paths, 100 Euler steps, float32", _NEURAL),
    "neural_gradient": ("The same with the gradient of mean y(1)²", _NEURAL | {"gradient": True}),
    "scalar": (
        "One path of a scalar equation, 1,000 Euler steps, float32",
        {"field": "scalar", "batch": None, "steps": 1000, "gradient": False},
    ),
}
# The tools in whose environments they live.
PEERS = {
    "diffrax": "diffrax",
    "diffrax_unsafe": "diffrax",
    "diffrax_drawn": "diffrax",
    "torchsde": "torchdiffeq",
}
# diffrax refuses: "Cannot reverse-mode autodifferentiate when using `UnsafeBrownianPath`", whatever
# the adjoint. `diffrax_drawn` is what remains to those who want its speed and a gradient.
WITHOUT_GRADIENT = ("diffrax_unsafe",)


def main(arguments=None):
    """The command line."""
    options = turns.options(__doc__, PEERS, 7, arguments)
    record = turns.new_record()
    for name, (title, case) in CASES.items():
        case = case | {"seconds": 0.0 if options.smoke else 0.5}
        if options.smoke:
            case |= {"steps": 10, "batch": case["batch"] and 4}
        tools = ["keras_neuralde", *(["scan"] if name == "scalar" else []), *options.peers]
        if case["gradient"]:
            tools = [tool for tool in tools if tool not in WITHOUT_GRADIENT]
        commands = {tool: _command(tool, case) for tool in tools}
        found = turns.measure(commands, options.rounds)
        record["cases"][name] = {"title": title, "tools": found}
        print(title, json.dumps(record["cases"][name]["tools"], indent=1), flush=True)
    if not options.smoke:
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return record


def _command(tool, case):
    python = python_of(TOOLS[PEERS[tool]]) if tool in PEERS else sys.executable
    return [python, "-m", "benchmarks.workers.stochastic", tool, json.dumps(case)]


if __name__ == "__main__":
    main()
