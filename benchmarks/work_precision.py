"""Work against precision on stiff problems: our methods, SciPy's and diffrax's.

Each method solves each problem at several tolerances; what counts is the time that an error takes,
not the tolerance. Errors are those at the end against published values (`benchmarks.stiff`).

    python -m benchmarks.work_precision [--smoke] [--only robertson] [--peers scipy diffrax]

writes `results/work_precision.json`, and `docs/images/work_precision.png` for the docs.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np

from benchmarks import stiff
from benchmarks.tools import ROOT, TOOLS, python_of

RESULTS = pathlib.Path(__file__).parent / "results"
PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "images" / "work_precision.png"
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
OURS = ("rodas5p", "rosenbrock23", "kvaerno5", "kencarp4", "auto")
SCIPY = ("BDF", "Radau", "LSODA")
#: Colour, marker and line of each method, apart for all eyes; others are drawn in gray.
STYLES = {
    "rodas5p": ("#0072B2", "o", "-"),
    "rosenbrock23": ("#E69F00", "v", "-"),
    "kvaerno5": ("#009E73", "D", "-"),
    "kencarp4": ("#D55E00", "p", "-"),
    "auto": ("#000000", "*", "-"),
    "SciPy BDF": ("#56B4E9", "s", "--"),
    "SciPy Radau": ("#CC79A7", "x", "--"),
    "SciPy LSODA": ("#888888", "+", "--"),
    "diffrax Kvaerno5": ("#8B5A2B", "^", ":"),
}
#: Seconds after which a method does not go on to the next tolerance.
PATIENCE = 20.0


def main(arguments=None):
    """Command line; returns the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(stiff.PROBLEMS), default=None)
    parser.add_argument("--peers", nargs="*", choices=("scipy", "diffrax"), default=None)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true", help="one problem, two tolerances")
    given = parser.parse_args(arguments)
    peers = ("scipy", "diffrax") if given.peers is None else given.peers
    names = given.only or (["robertson"] if given.smoke else list(stiff.PROBLEMS))
    tolerances = TOLERANCES[1:5:3] if given.smoke else TOLERANCES
    ours = OURS[:1] if given.smoke else OURS
    curves: dict = {}
    for name in names:
        found = {}
        for method in ours:
            found[method] = curve(our_call(name, method), name, tolerances, given.repeats)
        for method in SCIPY if "scipy" in peers else ():
            found[f"SciPy {method}"] = curve(scipy_call(name, method), name, tolerances, 3)
        if "diffrax" in peers:
            found["diffrax Kvaerno5"] = ask_diffrax(name, tolerances, given.repeats)
        curves[name] = found
        print(name, *(f"{method}: {len(points)}" for method, points in found.items()), flush=True)
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "curves": curves,
    }
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "work_precision.json").write_text(json.dumps(record, indent=1) + "\n")
    picture = given.output / "work_precision.png"
    draw(record, PICTURE if given.output == RESULTS and not given.smoke else picture)
    return record


def curve(call, name, tolerances, repeats):
    """The points of one method: a list of `{"rtol", "error", "time"}`.

    Args:
        call: `call(rtol, atol)` → the state at the end, `None` where the method failed.
        name: of the problem.
        tolerances: relative tolerances, from the loosest.
        repeats: calls of which the median time counts; the first one, which may compile, does not.
    """
    case, points = stiff.PROBLEMS[name], []
    for rtol in tolerances:
        atol = np.broadcast_to(np.asarray(case.atol) * (rtol / 1e-8), case.y0.shape)
        y = call(rtol, atol)
        times = []
        while y is not None and len(times) < repeats and sum(times) < PATIENCE:
            began = time.perf_counter()
            call(rtol, atol)
            times.append(time.perf_counter() - began)
        error = np.inf if y is None else float(np.max(np.abs(np.asarray(y) / case.y1 - 1.0)))
        if np.isfinite(error):
            points.append({"rtol": rtol, "error": error, "time": statistics.median(times)})
        if sum(times) >= PATIENCE:
            break
    return points


def our_call(name, method):
    """The eager solve of a problem, as `curve` calls it."""
    import tensorflow as tf

    import keras_neuralde as nde

    case = stiff.PROBLEMS[name]

    def field(t, y, p):
        return tf.stack(case.components(*tf.unstack(y)))

    problem = nde.ODEProblem(field, tf.constant(case.y0), (0.0, case.t1))

    def call(rtol, atol):
        sol = nde.solve(problem, method, rtol=rtol, atol=atol, throw=False)
        return sol.y.numpy() if sol.success else None

    return call


def scipy_call(name, method):
    """The same by `scipy.integrate.solve_ivp`."""
    from scipy.integrate import solve_ivp

    case = stiff.PROBLEMS[name]

    def call(rtol, atol):
        solution = solve_ivp(
            lambda t, y: np.array(case.components(*y)), (0.0, case.t1), case.y0, method,
            rtol=rtol, atol=atol,
        )  # fmt: skip
        return solution.y[:, -1] if solution.success else None

    return call


def ask_diffrax(name, tolerances, repeats):
    """The curve of diffrax's Kvaerno5, from a process of its own."""
    question = json.dumps({"name": name, "tolerances": tolerances, "repeats": repeats})
    done = subprocess.run(
        [python_of(TOOLS["diffrax"]), "-m", "benchmarks.workers.diffrax_curve"],
        input=question, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        print(f"diffrax: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return []
    return json.loads(done.stdout.splitlines()[-1])


def draw(record, path):
    """Time over error, one panel for each problem."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(record["curves"])
    rows = -(-(len(names) + 1) // 3)  # a place for each problem, and one for the legend
    figure, axes = plt.subplots(rows, 3, figsize=(9, 3.3 * rows), layout="constrained")
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for ax, name in zip(axes.flat, names, strict=False):
        for method, points in record["curves"][name].items():
            color, marker, line = STYLES.get(method, ("0.6", ".", "-"))
            errors, times = ([point[key] for point in points] for key in ("error", "time"))
            ax.loglog(errors, times, line, color=color, marker=marker, label=method, ms=5)
        ax.invert_xaxis()
        ax.set(title=name.replace("_", " "), xlabel="largest relative error", ylabel="seconds")
        ax.grid(alpha=0.3)
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
