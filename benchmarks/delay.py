"""Measures delay equations in this package and in JiTCDDE, which compiles them as C.

The Mackey-Glass equation y' = 0.2 y(t - 14) / (1 + y(t - 14)^10) - 0.1 y from constant pasts to
t = 500, at rtol 1e-6 and atol 1e-8, against the classical Runge-Kutta method with steps of 1/50.
Each tool runs in a process of its own; times are taken in rounds, one tool after the other, and a
ratio is the median over the rounds. The results go to `benchmarks/results/delay.json`, from which
the page on delay equations makes its table.

Run from the checkout root:

    python -m benchmarks.delay
    python -m benchmarks.delay --smoke --peers
"""

import json
import pathlib
import sys

import numpy as np

from benchmarks import turns
from benchmarks.tools import Tool, python_of
from benchmarks.workers.delay import LAG, pasts

RESULTS = pathlib.Path(__file__).parent / "results" / "delay.json"
CASES = {
    "one": ("Mackey-Glass to t = 500, one trajectory", {"batch": 1, "end": 500.0}),
    "batch": ("The same from 1,000 pasts", {"batch": 1000, "end": 500.0}),
}
OURS = ("keras_neuralde", "keras_neuralde_tighter")  # the second at a tenth of the tolerances
PEERS = {
    "jitcdde": Tool(
        "jitcdde", "jitcdde_worker", ("jitcdde", "numpy", "scipy", "setuptools", "sympy")
    )
}


def main(arguments=None):
    """The command line."""
    options = turns.options(__doc__, PEERS, 5, arguments)
    record = turns.new_record()
    for name, (title, case) in CASES.items():
        case = case | {"seconds": 0.0 if options.smoke else 0.5}
        if options.smoke:
            case |= {"batch": min(case["batch"], 3), "end": 30.0}
        found = measure(case, [*OURS, *options.peers], options.rounds)
        record["cases"][name] = {"title": title, "tools": found}
        print(title, json.dumps(found, indent=1), flush=True)
    if not options.smoke:
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return record


def measure(case, tools, rounds):
    """Times of one case: `{tool: {"compile", "call", "ratio", "error"}}`, in seconds."""
    exact = reference(case)
    found = turns.measure({tool: _command(tool, case) for tool in tools}, rounds)
    for row in found.values():
        row["error"] = float(np.max(np.abs(np.array(row.pop("values")) - exact)))
    return found


def reference(case, h=0.02):
    """The final values, by the classical Runge-Kutta method and Hermite interpolation."""
    start = pasts(case)
    n, late = round(case["end"] / h), round(LAG / h)
    y, slope = [start], []

    def rate(now, past):
        return 0.2 * past / (1 + past**10) - 0.1 * now

    def at(i, half):
        i -= late
        if i < 0:
            return start
        if not half:
            return y[i]
        return (y[i] + y[i + 1]) / 2 + h / 8 * (slope[i] - slope[i + 1])

    for i in range(n):
        a, b, c = at(i, False), at(i, True), at(i + 1, False)
        k1 = rate(y[i], a)
        slope.append(k1)
        k2 = rate(y[i] + h / 2 * k1, b)
        k3 = rate(y[i] + h / 2 * k2, b)
        k4 = rate(y[i] + h * k3, c)
        y.append(y[i] + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    return y[-1]


def _command(tool, case):
    python = python_of(PEERS[tool]) if tool in PEERS else sys.executable
    return [python, "-m", "benchmarks.workers.delay", tool, json.dumps(case)]


if __name__ == "__main__":
    main()
