"""The page docs/benchmarks.md, made from the JSON files of the last run.

Run from the checkout root:

    python -m benchmarks.table
"""

import json
import pathlib
import statistics

from benchmarks.tools import TOOLS
from benchmarks.workloads import WORKLOADS

_HERE = pathlib.Path(__file__).parent
PAGE = _HERE.parent / "docs" / "benchmarks.md"
_INTRODUCTION = """\
# Benchmarks

<!-- Made by `python -m benchmarks.table` from benchmarks/results; edits here are lost. -->

Each table is one run on one machine, which is named below it: each tool in a process and an
environment of its own, times taken in rounds, one tool after the other. Tolerances are the same
numbers for every tool; what each of them made of these numbers stands in the error column. Where a
line says "one core", every tool is kept to one, which costs none of them more than a few percent
and makes some twice as fast. Measure on your own machine with `make bench`.

- **compile**: what the first call takes longer than the next ones.
- **call**: one call from Python, with its result ready.
- **in a loop**: one of many calls inside one compiled loop, each depending on the one before. For a
  training step these are the first 100 steps of a training, which need more work than the first
  step alone; `torchdiffeq` makes them in a Python loop.
- **× call**, **× fastest**: how many times longer than `keras_neuralde` (above 1: slower than it),
  for a call, and for the loop (a call where a tool has no loop).
- **error**: largest distance from a reference (DOP853 at 1e-13, gradients from its adjoint
  equation), divided by the largest reference value; for a training step, that of the gradient.
"""
_SCALING = """\
## What grows with what

`python -m benchmarks.scaling`: the memory of a gradient (64 trajectories of 16 components, equal
steps of RK4) with its steps and checkpoints; a reaction and diffusion on a line by Newton-Krylov;
the steps of one oscillator in batches of others; the time to compile.

<!-- scaling -->
"""
_EQUAL = """\
## A network's gradient at equal errors

The gradient of the wide network, each tool at the loosest tolerance that keeps its error below
1e-5. Stiff equations at equal errors are on [their page](stiff.md).

<!-- network at equal error -->
"""
_HEADER = (
    "| tool | compile | call | in a loop | × call | × fastest | error |\n"
    "|---|---|---|---|---|---|---|"
)


def rows(record):
    """The lines of one workload's table, without its header.

    Args:
        record: the content of a results file.

    Returns:
        A list of strings.
    """
    return [_row(name, tool, record["ratios"]) for name, tool in record["tools"].items()]


def _row(name, tool, ratios):
    for what in ("failed", "skipped"):
        if what in tool:
            said = tool[what].replace("|", "/")[:300]
            return f"| {name} | {what}: {said} | | | | | |"
    ratio = ratios.get(name, {})
    cells = [
        f"{name}, {tool['device']}" if tool.get("device") else name,
        _time(tool["compile_s"]),
        _time(_median(tool["call_s"])),
        _time(_median(tool["loop_s"])),
        _times(ratio.get("call")),
        _times(ratio.get("fastest")),
        f"{tool['error']['max']:.0e}",
    ]
    return f"| {' | '.join(cells)} |"


def _median(samples):
    return statistics.median(samples) if samples else None


def _time(seconds):
    if seconds is None:
        return "–"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def _times(ratio):
    return "–" if ratio is None else f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"


def write(results):
    """Writes the page.

    Args:
        results: the directory of the JSON files.
    """
    paths = [pathlib.Path(results) / f"{workload.name}.json" for workload in WORKLOADS]
    records = [json.loads(path.read_text()) for path in paths if path.exists()]
    parts = [_INTRODUCTION, _tools_text(records)]
    for record in records:
        spec = record["spec"]
        cores = ", one core" if spec["cores"] == 1 else ""
        settings = f"{spec['dtype']}, rtol {spec['rtol']:g}, atol {spec['atol']:g}{cores}"
        parts.append(f"## {record['title']}\n\n{record['text']} {settings}.\n")
        parts.append("\n".join([_HEADER, *rows(record), ""]))
        parts.append(_circumstances(record))
        if spec["name"] == "lorenz_ensemble":
            parts.append(_beside_one(record, records))
    parts += [_EQUAL, _SCALING]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(parts))


def _tools_text(records):
    names = [name for name in TOOLS if any(name in record["tools"] for record in records)]
    return "\n".join([f"- `{name}`: {TOOLS[name].text}." for name in names] + [""])


def _beside_one(ensemble, records):
    """What a trajectory of an ensemble takes, beside one trajectory in torchdiffeq."""
    alone = [one["tools"] for one in records if one["spec"]["name"] == "lorenz_solve"]
    slow = _median(alone[0].get("torchdiffeq", {}).get("call_s", [])) if alone else None
    if slow is None:
        return ""
    count, said = ensemble["spec"]["batch"], []
    for name, tool in ensemble["tools"].items():
        if name.startswith("keras_neuralde") and "call_s" in tool:
            each = _median(tool["call_s"]) / count
            said.append(f"`{name}` takes {_time(each)}, of which {slow / each:,.0f} fit into it")
    return (
        f"What is compared: `torchdiffeq` takes {_time(slow)} for the one trajectory above, on one "
        f"core. For one trajectory of this ensemble, its whole time on all cores divided by "
        f"{count:,}, {'; '.join(said)}. A batch in `torchdiffeq`, which has one step size for all "
        "of it, is not measured here; in the ensembles of Lotka-Volterra it is.\n"
    )


def _circumstances(record):
    machine = record["machine"]
    versions = {}
    for tool in record["tools"].values():
        versions |= tool.get("versions", {})
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{record['date']}, {machine['cpu']}, {machine['cores']} cores, load "
        f"{machine['load_before']} before; {listed}.\n"
    )


def main():
    """The command line."""
    write(_HERE / "results")
    print(PAGE)


if __name__ == "__main__":
    main()
