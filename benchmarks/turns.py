"""Times of several tools taken in turn, each in a process of its own.

A worker answers with one JSON line when its first call is done, and with the seconds of a call for
every line that arrives on its standard input.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import time

from benchmarks.run import machine
from benchmarks.tools import ROOT


def options(description, peers, rounds, arguments=None, cases=()):
    """What the command line says.

    Args:
        description: the script's docstring.
        peers: names of other tools.
        rounds: how often each time is taken, by default.
        arguments: the command line; that of the process by default.
        cases: the names of cases, where single ones can be measured.

    Returns:
        A namespace with `smoke`, `peers` and `rounds`, and `cases` if there are any.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--peers", nargs="*", choices=peers, default=list(peers))
    parser.add_argument("--rounds", type=int, default=rounds)
    if cases:
        parser.add_argument("--cases", nargs="*", choices=cases, default=list(cases))
    return parser.parse_args(arguments)


def new_record():
    """What goes into a results file, without cases: the day and the machine."""
    about = machine()
    line = f"{datetime.date.today()}, {about['cpu']}, {about['cores']} cores, load "
    return {"machine": f"{line}{about['load_before']} before", "cases": {}}


def measure(commands, rounds, base="keras_neuralde"):
    """Times in rounds, one tool after the other, and ratios within the rounds.

    Args:
        commands: `{tool: command line}`.
        rounds: how often each time is taken.
        base: the tool whose times the others are divided by.

    Returns:
        `{tool: {"compile", "call", "ratio", **answer}}` in seconds, where `answer` is what else the
        worker said of its first call.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    workers = {
        tool: subprocess.Popen(command, text=True, cwd=ROOT, **pipes)
        for tool, command in commands.items()
    }
    try:
        answers = {tool: json.loads(worker.stdout.readline()) for tool, worker in workers.items()}
        times: dict = {tool: [] for tool in workers}
        for _ in range(rounds):
            for tool, worker in workers.items():
                worker.stdin.write("go\n")
                worker.stdin.flush()
                times[tool].append(json.loads(worker.stdout.readline()))
    finally:
        for worker in workers.values():
            worker.stdin.close()
            worker.wait(60)
    found = {}
    for tool, answer in answers.items():
        call = statistics.median(times[tool])
        pairs = zip(times[tool], times[base], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        found[tool] = {
            "compile": answer.pop("first") - call,
            "call": call,
            "ratio": ratio,
            **answer,
        }
    return found


def answer(call, seconds, lines, say, **more):
    """The worker's side: the first call, then one time for each line.

    Args:
        call: runs the case once, until the result is there.
        seconds: how long to repeat it for one time.
        lines: an iterable of lines, standard input.
        say: prints one line at once.
        **more: functions of the first result, whose outcomes go into the first answer.
    """
    began = time.perf_counter()
    result = call()
    first = time.perf_counter() - began
    say(json.dumps({"first": first} | {name: function(result) for name, function in more.items()}))
    times(call, seconds, lines, say)


def times(call, seconds, lines, say):
    """One time for each line: the median over as many calls as the seconds allow."""
    for _ in lines:
        samples, end = [], time.perf_counter() + seconds
        while not samples or time.perf_counter() < end:
            began = time.perf_counter()
            call()
            samples.append(time.perf_counter() - began)
        say(json.dumps(statistics.median(samples)))
