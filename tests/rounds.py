"""Runs the suite in rounds, each with new worker processes.

TensorFlow keeps every program that it compiled for the life of a process; in one go the workers
would outgrow the memory of an ordinary machine. The last round takes what no other has named.

    python -m tests.rounds [arguments of pytest]
"""

import subprocess
import sys
import time

ROUNDS = (
    ("tests/adjoints",),
    ("tests/solvers", "tests/tableaus"),
    ("tests/layers",),
    ("tests/test_training.py", "tests/test_minimize.py", "tests/test_freezing.py"),
    ("tests/test_examples.py",),
    ("tests/test_export.py", "tests/test_distributed.py"),
    ("keras_neuralde",),
)
_NOTHING_SELECTED = 5


def main(arguments):
    """Runs all rounds; returns 1 when a test failed."""
    named = [path for paths in ROUNDS for path in paths]
    rest = ("tests", *(f"--ignore={path}" for path in named if path.startswith("tests")))
    failed, began = [], time.perf_counter()
    for number, paths in enumerate((*ROUNDS, rest), start=1):
        print(f"== round {number} of {len(ROUNDS) + 1}: {paths[0]}", flush=True)
        code = subprocess.call([sys.executable, "-m", "pytest", *arguments, *paths])
        if code not in (0, _NOTHING_SELECTED):
            failed.append(paths[0])
    print(f"== {time.perf_counter() - began:.0f} s; rounds with failures: {failed or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
