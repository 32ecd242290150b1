"""Runs the suite in rounds, each with new worker processes.

TensorFlow keeps every program that it compiled for the life of a process; in one go the workers
would outgrow the memory of an ordinary machine. The last round takes what no other has named. Each
round says how large its largest process was: a worker should stay below 8 GB.

    python -m tests.rounds [arguments of pytest]
"""

import os
import subprocess
import sys
import time

_IMPLICIT = (
    "tests/solvers/test_algebraic.py",
    "tests/solvers/test_implicit.py",
    "tests/solvers/test_switching.py",
)
ROUNDS = (
    ("tests/adjoints/test_discrete.py",),
    ("tests/adjoints", "--ignore=tests/adjoints/test_discrete.py"),
    _IMPLICIT,
    ("tests/solvers", "tests/tableaus", *(f"--ignore={path}" for path in _IMPLICIT)),
    ("tests/layers",),
    ("tests/test_training.py", "tests/test_minimize.py", "tests/test_freezing.py"),
    ("tests/test_examples.py", "-k", "smoke"),
    ("tests/test_examples.py", "-k", "not smoke"),
    ("tests/test_export.py", "tests/test_distributed.py"),
    ("tests/test_docs.py", "tests/test_benchmarks.py", "tests/test_endurance.py"),
    ("tests/test_delay.py", "tests/test_events.py", "tests/test_jumps.py", "tests/test_solve.py"),
    ("keras_neuralde",),
)
_NOTHING_SELECTED = 5


def main(arguments):
    """Runs all rounds; returns 1 when a test failed."""
    named = {path for paths in ROUNDS for path in paths if path.startswith("tests")}
    rest = ("tests", *(f"--ignore={path}" for path in sorted(named)))
    failed, began = [], time.perf_counter()
    for number, paths in enumerate((*ROUNDS, rest), start=1):
        print(f"== round {number} of {len(ROUNDS) + 1}: {paths[0]}", flush=True)
        code, largest = _call([sys.executable, "-m", "pytest", *arguments, *paths])
        print(f"== largest process: {largest:.1f} GB", flush=True)
        if code not in (0, _NOTHING_SELECTED):
            failed.append(paths[0])
    print(f"== {time.perf_counter() - began:.0f} s; rounds with failures: {failed or 'none'}")
    return int(bool(failed))


def _call(command):
    """Its exit code, and the gigabytes of the largest process that it started or was."""
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return process.returncode, usage.ru_maxrss * unit / 1e9


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
