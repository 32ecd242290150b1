"""The time that an accuracy takes: the Brusselator of 128 states and its gradient beside diffrax.

Equal tolerances are not equal errors. Each tool gets the loosest tolerance, of four in a decade,
from which on its error stays below the one that is asked for: the largest distance from the
reference over the largest reference value. Values and gradients are judged each for itself. Every
tool runs in a process and on a core of its own; times are taken in rounds, one tool after the
other, and a ratio is the median over the rounds. The results go to
`benchmarks/results/equal_error.json`, from which the page on stiff equations makes its table.

Run from the checkout root:

    python -m benchmarks.equal_error
    python -m benchmarks.equal_error --smoke --peers
"""

import json
import pathlib
import sys

from benchmarks import reference, turns
from benchmarks.tools import TOOLS, python_of
from benchmarks.workloads import WORKLOADS, smoke

RESULTS = pathlib.Path(__file__).parent / "results" / "equal_error.json"
CASES = {"values": "brusselator_solve", "gradient": "brusselator_gradient"}
OURS = ("rodas5p", "kvaerno5")
ERROR = 1e-6


def main(arguments=None):
    """The command line."""
    options = turns.options(__doc__, ("diffrax",), 5, arguments)
    record = turns.new_record() | {"error": 1e-3 if options.smoke else ERROR}
    for name, workload in CASES.items():
        (given,) = (one for one in WORKLOADS if one.name == workload)
        if options.smoke and given.task == "gradient":
            continue
        given = smoke(given) if options.smoke else given
        case = {
            "spec": given.spec(),
            "arrays": str(reference.arrays(given)),
            "error": record["error"],
            "seconds": 0.0 if options.smoke else 0.5,
        }
        commands = {tool: _command(tool, case) for tool in (*OURS, *options.peers)}
        found = turns.measure(commands, options.rounds, OURS[0])
        record["cases"][name] = {"title": given.title, "tools": found}
        print(given.title, json.dumps(found, indent=1), flush=True)
    if not options.smoke:
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return record


def _command(tool, case):
    python = python_of(TOOLS[tool]) if tool in TOOLS else sys.executable
    return [python, "-m", "benchmarks.workers.equal_error", tool, json.dumps(case)]


if __name__ == "__main__":
    main()
