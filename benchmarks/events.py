"""Measures events and jumps: bouncing balls beside diffrax and torchdiffeq, and jump diffusions.

Every ball falls from 50 m and bounces with a restitution of its own, 0.7 to 0.9; its height after
15 s, and the derivative of the mean height with respect to every restitution, are compared with the
closed form. diffrax is restarted at each event, a fixed number of times for all balls; torchdiffeq
takes one ball after the other. The jump diffusions have no peer: beside them runs a NumPy loop over
the same number of Euler steps, which draws in each whether a jump comes.

The results go to `benchmarks/results/events.json`, from which the page on events makes its table.

Run from the checkout root:

    python -m benchmarks.events
    python -m benchmarks.events --smoke --peers
"""

import json
import pathlib
import sys

from benchmarks import turns
from benchmarks.tools import TOOLS, python_of

RESULTS = pathlib.Path(__file__).parent / "results" / "events.json"
_BALLS = {"kind": "balls", "count": 1000, "gradient": False}
CASES = {
    "balls": ("1,000 bouncing balls, height after 15 s, rtol 1e-6", _BALLS),
    "balls_gradient": ("The same with the gradient", _BALLS | {"gradient": True}),
    "jumps": (
        "10,000 jump diffusions, 100 Euler steps, halved at a rate of 2",
        {"kind": "jumps", "count": 10_000, "steps": 100},
    ),
}
PEERS = ("diffrax", "torchdiffeq")
#: torchdiffeq takes one ball at a time: so many, and the time is that of all, in proportion.
FEW = 10


def main(arguments=None):
    """The command line."""
    options = turns.options(__doc__, PEERS, 5, arguments)
    record = turns.new_record()
    for name, (title, case) in CASES.items():
        case = case | {"seconds": 0.0 if options.smoke else 0.5}
        if options.smoke:
            case |= {"count": 4}
        tools = options.peers if case["kind"] == "balls" else ["numpy"]
        found = turns.measure(
            {tool: _command(tool, case) for tool in ("keras_neuralde", *tools)}, options.rounds
        )
        record["cases"][name] = {"title": title, "tools": found}
        print(title, json.dumps(found, indent=1), flush=True)
    if not options.smoke:
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return record


def _command(tool, case):
    python = python_of(TOOLS[tool]) if tool in TOOLS else sys.executable
    return [python, "-m", "benchmarks.workers.events", tool, json.dumps(case | {"few": FEW})]


if __name__ == "__main__":
    main()
