"""The worker's side of a run: read a workload, answer with its error, then with times.

One JSON object per line. The first line on standard input is the workload's settings with the path
of its arrays; the answer says how long the first calls took and how far the result is from the
reference. A tool that cannot run here answers `{"skipped": why}`.
Every further line, `{"measure": "call" or "loop", "seconds": budget}`, is answered with
the median time of one call.
"""

import dataclasses
import importlib.metadata
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Program:
    """A workload as one tool runs it.

    Args:
        call: runs the workload once, until the result is there, and returns it.
        values: turns the result of `call` into what is compared with the reference.
        loop: runs the workload `spec["loop"]` times in one compiled loop and returns one number
            that `check_loop` can judge: the sum of all results, or the last loss of a training
            (which an eager tool may run in a Python loop); `None` if there is no such loop.
        check_loop: takes the results of `call` and of `loop`; raises when they do not agree.
        device: what it runs on, where that is not the CPU.
    """

    call: Callable
    values: Callable
    loop: Callable | None = None
    check_loop: Callable | None = None
    device: str | None = None


class Skipped(RuntimeError):
    """The workload cannot run on this machine; the message says why."""


def serve(build, packages, versions=None):
    """Talks to the harness until it closes the line.

    Args:
        build: `build(spec, arrays)` returns a `Program`, or raises `Skipped`; `spec` is a dict,
            `arrays` too.
        packages: the distributions whose versions are reported.
        versions: further versions, by name.
    """
    out = _private_output()
    spec = json.loads(sys.stdin.readline())
    arrays = dict(np.load(spec["arrays"]))
    arrays["p"] = [arrays[f"p{i}"] for i in range(sum(key[0] == "p" for key in arrays))]
    try:
        program = build(spec, arrays)
    except Skipped as why:
        _send(out, {"skipped": str(why)})
        return
    known = (versions or {}) | {name: importlib.metadata.version(name) for name in packages}
    known["python"] = sys.version.split()[0]
    _send(out, _prepare(program, arrays, spec["compared"]) | {"versions": known})
    for line in sys.stdin:
        order = json.loads(line)
        if order["measure"] == "call":
            seconds = _median_time(program.call, order["seconds"])
        else:
            seconds = _median_time(program.loop, order["seconds"]) / spec["loop"]
        _send(out, {"seconds": seconds})


def agree(once, total, count):
    """Raises unless `count` turns of a loop gave `count` times the sum of one call's result."""
    expected = count * float(once)
    if not np.isclose(total, expected, rtol=1e-3, atol=1e-6):
        raise RuntimeError(f"the compiled loop gave {total}, {count} calls give {expected}")


def decreased(first, last):
    """Raises unless a training loop ended with a smaller loss than it began with."""
    if not last < first:
        raise RuntimeError(f"training went from loss {first} to {last}")


def _private_output():
    """Keeps standard output for answers; whatever a library prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def _send(out, answer):
    print(json.dumps(answer), file=out, flush=True)


def _prepare(program, arrays, compared):
    first, result = _timed(program.call)
    answer = {
        "compile_s": max(0.0, first - _warm(program.call)),
        "error": _error(program.values(result)[:compared], arrays["reference"]),
        "loop_compile_s": None,
    }
    if program.device:
        answer["device"] = program.device
    if program.loop is not None:
        first, looped = _timed(program.loop)
        program.check_loop(result, looped)
        answer["loop_compile_s"] = max(0.0, first - _warm(program.loop))
    return answer


def _timed(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def _warm(function):
    return statistics.median(_timed(function)[0] for _ in range(3))


def _median_time(function, budget):
    """The median time of a call, over as many calls as the budget allows, at least one."""
    samples, end = [], time.perf_counter() + budget
    while not samples or time.perf_counter() < end:
        samples.append(_timed(function)[0])
    return statistics.median(samples)


def _error(values, reference):
    """Largest and root-mean-square distance, both relative to the largest reference value."""
    values = np.asarray(values, np.float64)
    if values.shape != reference.shape:
        raise RuntimeError(f"expected values of shape {reference.shape}, got {values.shape}")
    distance = np.abs(values - reference) / np.abs(reference).max()
    return {"max": float(distance.max()), "rms": float(np.sqrt(np.mean(distance**2)))}
