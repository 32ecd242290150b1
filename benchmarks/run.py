"""Measures every workload in every tool, in turn, and writes one JSON file per workload.

Each tool runs in a process and an environment of its own. All processes of a workload are started,
compiled and checked against the reference one after the other; then their times are taken in
rounds, one tool after the other in each round, so that a slow moment of the machine meets all of
them. A ratio is the median over the rounds of two times from the same round.

Run from the checkout root:

    python -m benchmarks.run
    python -m benchmarks.run --only lotka_volterra_gradient mlp_gradient --peers diffrax
    python -m benchmarks.run --smoke --peers scipy
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import sys

from benchmarks import reference, table
from benchmarks.tools import TOOLS, Failed, Worker
from benchmarks.workloads import WORKLOADS, smoke

RESULTS = pathlib.Path(__file__).parent / "results"
OURS = "keras_neuralde"
BUSY = 1.5  # the run itself leaves a load of about one behind


def main(arguments=None):
    """The command line; returns 1 when a tool failed."""
    options = _parser().parse_args(arguments)
    output = options.output or (RESULTS / "smoke" if options.smoke else RESULTS)
    output.mkdir(parents=True, exist_ok=True)
    rounds, seconds = (2, 0.0) if options.smoke else (options.rounds, options.seconds)
    failed = False
    for workload in WORKLOADS:
        if options.only and workload.name not in options.only:
            continue
        workload = smoke(workload) if options.smoke else workload
        names = [name for name in workload.tools if TOOLS[name].peer in (OURS, *options.peers)]
        record = measure(workload, names, rounds, seconds)
        (output / f"{workload.name}.json").write_text(json.dumps(record, indent=1) + "\n")
        print("\n".join(["", workload.title, *table.rows(record)]), flush=True)
        failed |= any("failed" in tool for tool in record["tools"].values())
    if output == RESULTS:
        table.write(RESULTS)
    return int(failed)


def _parser():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    peers = sorted({tool.peer for tool in TOOLS.values()} - {OURS})
    names = [workload.name for workload in WORKLOADS]
    parser.add_argument("--only", nargs="+", choices=names, help="these workloads")
    parser.add_argument("--peers", nargs="*", choices=peers, default=peers, help="these peers")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--rounds", type=int, default=7, help="how often each time is taken")
    parser.add_argument("--seconds", type=float, default=0.5, help="for one time of one tool")
    parser.add_argument("--output", type=pathlib.Path, help="the directory of the JSON files")
    return parser


def measure(workload, names, rounds, seconds):
    """One workload in several tools.

    Args:
        workload: a `Workload`.
        names: keys of `TOOLS`.
        rounds: how often each time is taken.
        seconds: how long a tool may repeat the program for one time.

    Returns:
        What goes into the results file, as a dict.
    """
    record = {
        "name": workload.name,
        "title": workload.title,
        "text": workload.text,
        "spec": workload.spec(),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "rounds": rounds,
    }
    if record["machine"]["load_before"] > BUSY:
        print(f"load {record['machine']['load_before']}: these times are not to be trusted")
    path = str(reference.arrays(workload))
    workers, tools = {}, {}
    for name in names:
        question = workload.spec() | {
            "arrays": path,
            "joint": TOOLS[name].joint,
            "chunked": TOOLS[name].chunked,
            "devices": TOOLS[name].devices,
            "numba": TOOLS[name].numba,
            "gpu": TOOLS[name].gpu,
        }
        try:
            workers[name] = Worker(name, workload.cores)
            tools[name] = workers[name].ask(question)
            if "skipped" not in tools[name]:
                tools[name] |= {"call_s": [], "loop_s": []}
        except Failed as problem:
            tools[name] = {"failed": str(problem)}
    _take_times(workers, tools, rounds, seconds)
    for worker in workers.values():
        worker.close()
    return record | {"tools": tools, "ratios": _ratios(tools)}


def _take_times(workers, tools, rounds, seconds):
    for _ in range(rounds):
        for name, worker in workers.items():
            for mode in _modes(tools[name]):
                try:
                    answer = worker.ask({"measure": mode, "seconds": seconds})
                    tools[name][f"{mode}_s"].append(answer["seconds"])
                except Failed as problem:
                    tools[name] = {"failed": str(problem)}
                    break


def _modes(tool):
    """What can be timed in a tool."""
    if "failed" in tool or "skipped" in tool:
        return ()
    return ("call",) if tool["loop_compile_s"] is None else ("call", "loop")


def _ratios(tools):
    """How many times longer than ours each tool takes: a call, and its fastest way.

    The fastest way is the loop where there is one, else a call.
    """
    ours = tools.get(OURS, {})
    if "call_s" not in ours:
        return {}
    found = {}
    for name, times in tools.items():
        if "call_s" in times:
            found[name] = {
                "call": _ratio(times["call_s"], ours["call_s"]),
                "fastest": _ratio(times["loop_s"] or times["call_s"], ours["loop_s"]),
            }
    return found


def _ratio(theirs, ours):
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def machine():
    """What this machine is, and how busy it was."""
    names = [
        line.split(":", 1)[1].strip()
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ] if pathlib.Path("/proc/cpuinfo").exists() else []  # fmt: skip
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


if __name__ == "__main__":
    sys.exit(main())
