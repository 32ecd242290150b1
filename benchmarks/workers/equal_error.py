"""One tool on one workload: `python -m benchmarks.workers.equal_error TOOL CASE`.

Finds the tolerance that the accuracy of the case takes and says it in one JSON line; then answers
every line on standard input with the seconds of a call.
"""

import json
import math
import os
import sys
import time

import numpy as np

from benchmarks import turns

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

#: From 1e-3 on, four in a decade.
TOLERANCES = 10.0 ** -np.arange(3.0, 12.0, 0.25)
#: So many tighter tolerances must keep below the error too: one may come near by chance.
ALSO = 2


def program(tool, spec, arrays):
    """The workload's result as a function of its tolerances."""
    if tool == "diffrax":
        from benchmarks.workers import diffrax_worker

        return diffrax_worker.at_tolerance(spec, arrays)
    from benchmarks.workers import ours

    return ours.at_tolerance(spec, arrays, tool)


def loosest(error_at, limit):
    """The loosest tolerance whose error, and that of the next tighter ones, is below a limit.

    Args:
        error_at: the error as a function of the tolerance.
        limit: what it must not exceed.

    Returns:
        The tolerance and its error.

    Raises:
        RuntimeError: if no tolerance is tight enough.
    """
    good: list = []
    for tolerance in TOLERANCES:
        error = error_at(float(tolerance))
        good = [*good, (float(tolerance), error)] if error <= limit else []
        if len(good) > ALSO:
            return good[0]
    raise RuntimeError(f"no tolerance down to {TOLERANCES[-1]:.0e} keeps the error below {limit}")


def main():
    """Builds, finds the tolerance, then answers with times."""
    tool, case = sys.argv[1], json.loads(sys.argv[2])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if case["spec"]["cores"] == 1 and hasattr(os, "sched_setaffinity"):
        # As in `benchmarks.run`: a second core only adds hand-overs between threads.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    arrays = dict(np.load(case["arrays"]))
    arrays["p"] = [arrays[f"p{i}"] for i in range(sum(key[0] == "p" for key in arrays))]
    exact = arrays["reference"]
    began = time.perf_counter()
    run = program(tool, case["spec"], arrays)

    def error_at(tolerance):
        try:
            values = run(tolerance)
        except Exception as problem:  # Some tools fail at loose tolerances, each in its own way.
            print(f"{tool} at {tolerance:.0e}: {type(problem).__name__}", file=sys.stderr)
            return math.inf
        return float(np.max(np.abs(values - exact)) / np.max(np.abs(exact)))

    error_at(float(TOLERANCES[0]))
    first = time.perf_counter() - began
    tolerance, error = loosest(error_at, case["error"])
    found = {"first": first, "rtol": tolerance, "error": error}
    print(json.dumps(found), file=out, flush=True)
    turns.times(
        lambda: run(tolerance),
        case["seconds"],
        sys.stdin,
        lambda line: print(line, file=out, flush=True),
    )


if __name__ == "__main__":
    main()
