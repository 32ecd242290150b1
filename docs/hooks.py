"""Fills the tables of the pages from the methods and from the results of measurements."""

import itertools
import json
import math
import pathlib
import statistics

from keras_neuralde import solvers
from keras_neuralde.solvers.sde import STOCHASTIC
from keras_neuralde.tableaus import ESDIRK, EXPLICIT, ROSENBROCK

_RESULTS = pathlib.Path(__file__).parents[1] / "benchmarks" / "results"


def on_page_markdown(markdown, **_):
    """Replaces each marker by the lines that belong there."""
    for marker, lines in _TABLES.items():
        if marker in markdown:
            markdown = markdown.replace(marker, "\n".join(lines()))
    return markdown


def explicit_rows():
    """The rows of the explicit Runge-Kutta methods."""
    yield "| Name | Order | Error estimate | Evaluations a step | Interpolant | Source |"
    yield "|---|---|---|---|---|---|"
    for table in EXPLICIT.values():
        evaluations = table.num_stages - table.first_same_as_last
        extra = len(table.interpolant()[0])
        cells = [
            f"`{table.name}`",
            table.order,
            f"order {table.error_order}" if table.has_error else "none: fixed steps",
            f"{evaluations} (+{extra} to interpolate)" if extra else evaluations,
            f"order {table.dense_order}" if table.dense else "cubic Hermite",
            table.source,
        ]
        yield "| " + " | ".join(map(str, cells)) + " |"


def adjoint_rows():
    """Time, memory and error of each adjoint."""
    record = json.loads((_RESULTS / "adjoints.json").read_text())
    for case, results in record["results"].items():
        yield f"**{case.replace('_', '-').title()}**: {record['cases'][case]}."
        yield ""
        yield "| adjoint | compile | gradient | memory | error |"
        yield "|---|---|---|---|---|"
        for name, row in results.items():
            cells = [f"{row['compile']:.1f} s", f"{1e3 * row['time']:.3g} ms"]
            cells += [f"{row['memory']:.3g} MB", f"{row['error']:.0e}"]
            yield f"| `{name}` | " + " | ".join(cells) + " |"
        yield ""
    yield f"{record['machine']}."


def frozen_rows():
    """What frozen steps do for two examples."""
    record = json.loads((_RESULTS / "frozen_steps.json").read_text())
    titles = {
        "control": "**Control of the Lotka-Volterra equations**, BFGS; the true minimum is 0",
        "spiral": "**The cubic spiral**, L-BFGS after 300 steps of ADAM, at most 400 iterations",
    }
    for name, title in titles.items():
        yield title + ":"
        yield ""
        yield "| rtol | steps | iterations | evaluations | loss | at rtol 1e-10 |"
        yield "|---|---|---|---|---|---|"
        for row in record[name]:
            steps = "frozen" if row["frozen"] else "chosen anew"
            cells = [f"{row['rtol']:.0e}", steps, row["iterations"], row["evaluations"]]
            cells += [f"{row['loss']:.1e}", f"{row['true_loss']:.1e}"]
            yield "| " + " | ".join(map(str, cells)) + " |"
        yield ""


def fit_rows():
    """How long a whole training takes; nothing where it was not measured."""
    path = _RESULTS / "fit.json"
    if not path.exists():
        return
    record = json.loads(path.read_text())
    titles = {
        "keras_neuralde": "`model.fit` here",
        "keras_neuralde_short": "the same, `max_steps=256`",
        "diffrax": "a loop in diffrax and Optax",
        "diffrax_short": "the same, `max_steps=256`",
    }
    yield f"| {record['epochs']} epochs | from the first import | again | last loss |"
    yield "|---|---|---|---|"
    for name, runs in record["results"].items():
        cells = [titles[name]]
        for key, unit in (("whole_s", " s"), ("again_s", " s"), ("last_loss", "")):
            cells.append(f"{statistics.median(run[key] for run in runs):.3g}{unit}")
        yield "| " + " | ".join(cells) + " |"


def seed_rows():
    """What the trainings of the page on the README of 2020 come to, beside what was published."""
    record = json.loads((_RESULTS / "seed.json").read_text())
    published = {
        "lotka_volterra": (
            "control of Lotka-Volterra, BFGS",
            "2.0e-6; 6 iterations, 83 evaluations, 6 s; line search failed",
        ),
        "spiral": (
            "the spiral, ADAM, then L-BFGS",
            "0.203, then 0.198; 22 s and 12 s. A month later 0.0869, then 0.0143; 5 s and 4 s",
        ),
        "control": (
            "neural optimal control, BFGS",
            "6.6e-13; 23 iterations, 172 evaluations, 8 s",
        ),
    }
    yield "| block | published | here |"
    yield "|---|---|---|"
    for name, (block, theirs) in published.items():
        row = record["trainings"][name]
        if "first_stage" in row:
            ours = f"{row['first_stage']:.3f}, then {row['loss']:.5f}"
        else:
            ours = f"{row['loss']:.1e}; {row['iterations']} iterations, "
            ours += f"{row['evaluations']} evaluations"
            ours += "" if row["status"] == 0 else ", then no lower loss found"
        yield f"| {block} | {theirs} | {ours}; {row['seconds']:.0f} s |"
    yield ""
    yield (
        f"Seconds here are processor time of one core ({record['machine']['cpu']}), "
        f"{record['date']}, with tracing and compilation; the published machine is unnamed. "
        "Made by `python -m benchmarks.seed` from the blocks of this page."
    )


def serving_rows():
    """What a request costs a server; nothing where it was not measured."""
    path = _RESULTS / "serving.json"
    if not path.exists():
        return
    record = json.loads(path.read_text())
    yield "| rows of a request | plain | compiled |"
    yield "|---|---|---|"
    for row in record["rows"]:
        yield f"| {row['batch']} | {row['plain'] / 1e3:.3g} ms | {row['xla'] / 1e3:.3g} ms |"


def scaling_rows():
    """How memory, work and steps grow; nothing where they were not measured."""
    path = _RESULTS / "scaling.json"
    if not path.exists():
        return
    record = json.loads(path.read_text())
    yield "| steps | checkpoints | memory of the gradient | time |"
    yield "|---|---|---|---|"
    for row in record["memory"]:
        cells = [f"{row['steps']:,}", row["checkpoints"], f"{row['megabytes']:.3g} MB"]
        yield "| " + " | ".join(map(str, [*cells, f"{row['seconds']:.3g} s"])) + " |"
    yield ""
    yield "| states, Newton-Krylov | steps | time | time per step and state |"
    yield "|---|---|---|---|"
    for row in record["krylov"]:
        each = row["seconds"] / row["steps"] / row["states"]
        yield (
            f"| {row['states']:,} | {row['steps']} | {1e3 * row['seconds']:.3g} ms | "
            f"{1e9 * each:.3g} ns |"
        )
    yield ""
    yield "| batch of Van der Pol oscillators | steps of the first, on its own | with joint steps |"
    yield "|---|---|---|"
    for row in record["steps"]:
        yield f"| {row['batch']:,} | {row['per_sample']} | {row['joint']} |"
    yield ""
    said = [
        f"{row['seconds']:.2g} s with `max_steps={row['max_steps']}`" for row in record["compile"]
    ]
    traces = max(row["traces_after_new_values"] for row in record["compile"])
    yield (
        f"Tracing and compiling the gradient of the spiral took {' and '.join(said)}; new values, "
        f"times and tolerances led to {traces} more traces."
    )


def work_precision_rows():
    """Milliseconds for an error of 1e-5 on stiff problems, between the measured tolerances."""
    path = _RESULTS / "work_precision.json"
    if not path.exists():
        return
    record = json.loads(path.read_text())
    names = list(record["curves"])
    yield "Milliseconds for a relative error of 1e-5 at the end:"
    yield ""
    yield "| method | " + " | ".join(name.replace("_", " ") for name in names) + " |"
    yield "|---" * (1 + len(names)) + "|"
    for method in record["curves"][names[0]]:
        times = [time_for(record["curves"][name].get(method, []), 1e-5) for name in names]
        cells = ["–" if time is None else f"{1e3 * time:.3g}" for time in times]
        yield f"| {method} | " + " | ".join(cells) + " |"
    yield ""
    yield f"{record['date']}, {record['cores']} cores, load {record['load']:.1f}."


def equal_error_rows(cases=("values", "gradient"), base="`rodas5p`"):
    """The time that each tool takes for one error of a Brusselator and of its gradient."""
    path = _RESULTS / "equal_error.json"
    if not path.exists():
        yield "Measured by `python -m benchmarks.equal_error`."
        return
    found = json.loads(path.read_text())["cases"]
    yield f"| | tool | rtol = atol | error | call | × {base} |"
    yield "|---|---|---|---|---|---|"
    for case in (found[name] for name in cases if name in found):
        for tool, row in case["tools"].items():
            shown = "diffrax" if tool == "diffrax" else f"`{tool}`"
            cells = [case["title"], shown, f"{row['rtol']:.0e}", f"{row['error']:.0e}"]
            milliseconds = 1e3 * row["call"]
            shown = f"{milliseconds:.3g}" if milliseconds < 1e3 else f"{milliseconds:,.0f}"
            cells += [f"{shown} ms", f"{row['ratio']:.3g}"]
            yield "| " + " | ".join(cells) + " |"
    yield ""
    about = [found[name]["machine"] for name in cases if name in found]
    yield f"{' / '.join(dict.fromkeys(about))}. Made by `python -m benchmarks.equal_error`."


def network_at_equal_error_rows():
    """The same of the gradient of a network."""
    return equal_error_rows(("network",), "`tsit5`")


def time_for(points, error):
    """The least time for an error by linear interpolation of logarithms; `None` if out of range."""
    found = []
    for one, other in itertools.pairwise(points):
        low, high = sorted((one, other), key=lambda point: point["error"])
        if low["error"] <= error <= high["error"] and low["error"] > 0.0:
            span = math.log(high["error"] / low["error"]) or 1.0
            share = math.log(error / low["error"]) / span
            found.append(low["time"] ** (1.0 - share) * high["time"] ** share)
    return min(found, default=None)


def implicit_rows():
    """The rows of the Rosenbrock and ESDIRK methods."""
    yield "| Name | Kind | Order | Error estimate | Stages | Interpolant | Mass matrix | Source |"
    yield "|---|---|---|---|---|---|---|---|"
    for table in (*ROSENBROCK.values(), *ESDIRK.values()):
        solver = solvers.get(table.name)
        cells = [
            f"`{table.name}`",
            "Rosenbrock" if table.name in ROSENBROCK else "ESDIRK",
            table.order,
            f"falls like h^{table.error_order + 1}",
            table.num_stages,
            f"order {table.dense_order}" if table.dense else "cubic Hermite",
            "known numbers" if solver.inverts_mass else "any",
            table.source,
        ]
        yield "| " + " | ".join(map(str, cells)) + " |"


def delay_rows():
    """Times of delay equations."""
    names = {
        "keras_neuralde": "`tsit5` here",
        "keras_neuralde_tighter": "`tsit5` here, a tenth of the tolerances",
        "jitcdde": "JiTCDDE",
    }
    return _times("delay", names)


def event_rows():
    """Times of events and jumps."""
    names = {
        "keras_neuralde": "here",
        "diffrax": "diffrax, restarted at each event",
        "torchdiffeq": "torchdiffeq, `odeint_event` (in proportion, from a few balls)",
        "numpy": "a NumPy loop",
    }
    return _times("events", names)


def noise_rows():
    """Times of stochastic equations."""
    names = {
        "keras_neuralde": "here",
        "scan": "a plain compiled loop, noise drawn before",
        "diffrax": "diffrax, `VirtualBrownianTree`",
        "diffrax_unsafe": "diffrax, `UnsafeBrownianPath` (no gradient)",
        "diffrax_drawn": "diffrax, a path of one's own, increments drawn before",
        "torchsde": "torchsde",
    }
    return _times("stochastic", names)


def _times(name, names):
    """The table of one benchmark's record; how to make it where there is none."""
    path = _RESULTS / f"{name}.json"
    if not path.exists():
        yield f"Measured by `python -m benchmarks.{name}`."
        return
    record = json.loads(path.read_text())
    yield "| | tool | compile | call | largest error |"
    yield "|---|---|---|---|---|"
    for case in record["cases"].values():
        for tool, row in case["tools"].items():
            cells = [case["title"], names[tool], f"{row['compile']:.2g} s"]
            cells.append(f"{1e3 * row['call'] / row.get('share', 1.0):.3g} ms")
            cells.append(f"{row['error']:.0e}" if "error" in row else "")
            yield "| " + " | ".join(cells) + " |"
    yield ""
    yield f"{record['machine']}. Made by `python -m benchmarks.{name}`."


def stochastic_rows():
    """The rows of the methods for stochastic equations."""
    yield "| Name | Strong order | Weak | Additive noise | Integral | Noise | Steps | Source |"
    yield "|---|---|---|---|---|---|---|---|"
    for method in STOCHASTIC.values():
        cells = [
            f"`{method.name}`",
            method.strong_order,
            method.weak_order,
            f"{method.strong_order_additive or method.strong_order}, "
            f"{method.weak_order_additive or method.weak_order}",
            ", ".join(method.interpretations),
            ", ".join(method.noises),
            "fixed" if method.error_order is None else "adaptive",
            method.source,
        ]
        yield "| " + " | ".join(map(str, cells)) + " |"


_TABLES = {
    "<!-- explicit methods -->": explicit_rows,
    "<!-- implicit methods -->": implicit_rows,
    "<!-- work precision -->": work_precision_rows,
    "<!-- equal error -->": equal_error_rows,
    "<!-- network at equal error -->": network_at_equal_error_rows,
    "<!-- adjoints -->": adjoint_rows,
    "<!-- frozen steps -->": frozen_rows,
    "<!-- fit -->": fit_rows,
    "<!-- stochastic methods -->": stochastic_rows,
    "<!-- delay benchmark -->": delay_rows,
    "<!-- stochastic benchmark -->": noise_rows,
    "<!-- events benchmark -->": event_rows,
    "<!-- scaling -->": scaling_rows,
    "<!-- serving -->": serving_rows,
    "<!-- seed -->": seed_rows,
}
