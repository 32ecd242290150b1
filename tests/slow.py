"""Writes `slow.txt`: which tests `make test-fast` leaves out because they took long.

make test PYTEST_ARGS="--durations=0 --durations-min=1" | tee log
python -m tests.slow log
"""

import pathlib
import re
import sys

#: Seconds above which a test is left out.
LONGEST = 4.0
_LINE = re.compile(r"^([\d.]+)s (?:call|setup) +(\S.*)$", re.MULTILINE)


def main(log):
    """Reads the durations in a log of pytest."""
    found = _LINE.findall(pathlib.Path(log).read_text(encoding="utf-8"))
    slow = sorted({name for seconds, name in found if float(seconds) > LONGEST})
    pathlib.Path(__file__).with_suffix(".txt").write_text("\n".join(slow) + "\n", encoding="utf-8")
    print(f"{len(slow)} tests above {LONGEST} s")


if __name__ == "__main__":
    main(sys.argv[1])
