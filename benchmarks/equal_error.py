"""The time that an accuracy takes, beside diffrax: a Brusselator and gradients at equal errors.

Equal tolerances are not equal errors. Each tool gets the loosest tolerance, of four in a decade,
from which on its error stays below the one that is asked for: the largest distance from the
reference over the largest reference value. Values and gradients are judged each for itself. Every
tool runs in a process and on a core of its own; times are taken in rounds, one tool after the
other, and a ratio is the median over the rounds. The results go to
`benchmarks/results/equal_error.json`, from which the page on stiff equations makes its table.

Run from the checkout root:

    python -m benchmarks.equal_error
    python -m benchmarks.equal_error --cases network
    python -m benchmarks.equal_error --smoke --peers
"""

import json
import pathlib
import sys
from typing import NamedTuple

from benchmarks import reference, turns
from benchmarks.tools import TOOLS, python_of
from benchmarks.workloads import WORKLOADS, smoke

RESULTS = pathlib.Path(__file__).parent / "results" / "equal_error.json"
STIFF = ("rodas5p", "kvaerno5")


class Case(NamedTuple):
    """A workload, our methods for it, and the error that all tools keep below."""

    workload: str
    methods: tuple
    error: float


CASES = {
    "values": Case("brusselator_solve", STIFF, 1e-6),
    "gradient": Case("brusselator_gradient", STIFF, 1e-6),
    "network": Case("mlp_gradient", ("tsit5",), 1e-5),
}


def main(arguments=None):
    """The command line; cases that are not measured stay as they were."""
    options = turns.options(__doc__, ("diffrax",), 5, arguments, tuple(CASES))
    record = {"cases": {}}
    if RESULTS.exists() and not options.smoke:
        record = json.loads(RESULTS.read_text())
    for name in options.cases:
        (given,) = (one for one in WORKLOADS if one.name == CASES[name].workload)
        if options.smoke and name == "gradient":
            continue
        given = smoke(given) if options.smoke else given
        case = {
            "spec": given.spec(),
            "arrays": str(reference.arrays(given)),
            "error": 1e-3 if options.smoke else CASES[name].error,
            "seconds": 0.0 if options.smoke else 0.5,
        }
        about = turns.new_record()["machine"]
        tools = (*CASES[name].methods, *options.peers)
        commands = {tool: _command(tool, case) for tool in tools}
        found = turns.measure(commands, options.rounds, tools[0])
        about = {"title": given.title, "machine": about, "error": case["error"]}
        record["cases"][name] = {**about, "tools": found}
        print(given.title, json.dumps(found, indent=1), flush=True)
    if not options.smoke:
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return record


def _command(tool, case):
    python = python_of(TOOLS[tool]) if tool in TOOLS else sys.executable
    return [python, "-m", "benchmarks.workers.equal_error", tool, json.dumps(case)]


if __name__ == "__main__":
    main()
