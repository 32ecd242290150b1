"""The benchmarks run: tiny sizes, this package and SciPy, accuracy but never times."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("scipy")

from benchmarks import reference, table, workloads

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = [workload.name for workload in workloads.WORKLOADS]
# Largest error relative to the largest reference value, at the tolerances of each workload.
BOUNDS = {
    "lotka_volterra_solve": 1e-5,
    "lotka_volterra_gradient": 1e-4,
    "spiral_train_1": 1e-2,
    "spiral_train_64": 1e-2,
    "ensemble_final": 1e-5,
    "ensemble_101": 1e-5,
    "ensemble_100k": 1e-5,
    "mlp_gradient": 1e-2,
    "lorenz_solve": 1e-4,
    "lorenz_ensemble": 1e-4,
    "robertson_solve": 1e-5,
    "robertson_gradient": 1e-4,
    "robertson_ensemble": 1e-5,
    "brusselator_solve": 1e-4,
    "brusselator_gradient": 1e-3,
}
#: One of each kind; `TEST_WHOLE=1 make test` runs them all.
KINDS = (
    "spiral_train_64", "ensemble_final", "mlp_gradient", "lorenz_solve", "robertson_gradient",
    "brusselator_solve",
)  # fmt: skip


def workload(name):
    return workloads.smoke(next(w for w in workloads.WORKLOADS if w.name == name))


def run(tmp_path, names):
    command = [sys.executable, "-m", "benchmarks.run", "--smoke", "--peers", "scipy"]
    command += ["c"] if shutil.which("cc") else []
    done = subprocess.run(
        [*command, "--output", str(tmp_path), "--only", *names],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in names}


def check(record):
    assert record["machine"]["cores"] >= 1
    assert record["spec"]["name"] == record["name"]
    assert record["tools"]["keras_neuralde"]["versions"]["tensorflow"]
    given = next(w for w in workloads.WORKLOADS if w.name == record["name"])
    assert ("scipy" in record["tools"]) == ("scipy" in given.tools)
    for name, tool in record["tools"].items():
        if name == "keras_neuralde_gpu" and "skipped" in tool:
            assert tool == {"skipped": "TensorFlow sees no GPU on this machine"}
            assert "skipped: TensorFlow sees no GPU" in "".join(table.rows(record))
            continue
        assert tool["error"]["rms"] <= tool["error"]["max"] <= BOUNDS[record["name"]], name
        assert len(tool["call_s"]) == record["rounds"]
        assert record["ratios"][name].keys() == {"call", "fastest"}
    assert len(record["tools"]["keras_neuralde"]["loop_s"]) == record["rounds"]


def test_one_workload_runs_and_is_accurate(tmp_path):
    record = run(tmp_path, ["lotka_volterra_solve"])["lotka_volterra_solve"]
    check(record)
    assert record["ratios"]["keras_neuralde"] == {"call": 1.0, "fastest": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES if os.environ.get("TEST_WHOLE") else KINDS)
def test_every_kind_of_workload_runs_and_is_accurate(name, tmp_path):
    check(run(tmp_path, [name])[name])


def test_a_failed_tool_is_reported_and_fails_the_run(tmp_path, monkeypatch):
    from benchmarks import run as harness

    broken = dict.fromkeys(harness.TOOLS, harness.TOOLS["scipy"])  # SciPy has no gradients
    monkeypatch.setattr("benchmarks.tools.TOOLS", broken)
    monkeypatch.setattr(harness, "TOOLS", broken)
    names = ["--only", "lotka_volterra_gradient"]
    assert harness.main(["--smoke", "--output", str(tmp_path), *names]) == 1
    record = json.loads((tmp_path / "lotka_volterra_gradient.json").read_text())
    assert "SciPy only solves" in record["tools"]["diffrax"]["failed"]


def test_the_page_shows_every_result(tmp_path, monkeypatch):
    tools = {
        "keras_neuralde": sample([1e-4, 2e-4, 3e-4], [5e-5, 6e-5, 7e-5]),
        "scipy": sample([1e-2, 2e-2, 3e-2], []),
        "diffrax": {"failed": "no | environment"},
    }
    ratios = {
        "keras_neuralde": {"call": 1.0, "fastest": 1.0},
        "scipy": {"call": 100.0, "fastest": 333.0},
    }
    given = next(w for w in workloads.WORKLOADS if w.name == NAMES[0])
    record = {
        "title": given.title,
        "text": given.text,
        "spec": given.spec(),
        "date": "2026-01-01",
        "machine": {"cpu": "a CPU", "cores": 2, "load_before": 0.1},
        "tools": tools,
        "ratios": ratios,
    }
    (tmp_path / f"{NAMES[0]}.json").write_text(json.dumps(record))
    monkeypatch.setattr(table, "PAGE", tmp_path / "docs" / "benchmarks.md")
    table.write(tmp_path)
    page = table.PAGE.read_text()
    assert "| keras_neuralde | 1.5 s | 200 µs | 60 µs | 1 | 1 | 2e-06 |" in page
    assert "| scipy | 1.5 s | 20 ms | – | 100 | 333 | 2e-06 |" in page
    assert "failed: no / environment" in page
    assert "a CPU, 2 cores" in page


def sample(call, loop):
    return {
        "compile_s": 1.5,
        "loop_compile_s": 2.0 if loop else None,
        "call_s": call,
        "loop_s": loop,
        "error": {"max": 2e-6, "rms": 1e-6},
        "versions": {"numpy": "2"},
    }


@pytest.mark.parametrize("name", ["lotka_volterra_gradient", "spiral_train_1", "mlp_gradient"])
def test_reference_gradients_agree_with_finite_differences(name):
    given = workload(name)
    exact = reference._in_float64(workloads.inputs(given))
    target = reference._target(given, exact)
    gradient = reference._reference(given, exact, target)

    def loss(shift):
        p, start = [], 0
        for leaf in exact["p"]:
            p.append(leaf + shift[start : start + leaf.size].reshape(leaf.shape))
            start += leaf.size
        field, _ = reference.field_of(given, p)
        y = reference.states(field, exact["y0"], exact["times"])
        return np.sum((y - target) ** 2) / (given.batch or 1)

    direction = np.random.default_rng(1).standard_normal(gradient.size)
    slope = (loss(1e-5 * direction) - loss(-1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(gradient @ direction, slope, rtol=1e-7)


def test_reference_gradient_of_lotka_volterra_at_full_size():
    given = next(w for w in workloads.WORKLOADS if w.name == "lotka_volterra_gradient")
    found = np.load(reference.arrays(given))["reference"]
    expected = [52.94298897335, -786.15367143663, 880.25188338715, -2948.62767698706]
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_stochastic_equations_run_and_agree():
    """The forward solve and the gradient of one workload see the same paths."""
    from benchmarks import stochastic

    record = stochastic.main(["--smoke", "--peers", "--rounds", "1"])
    assert record["cases"].keys() == stochastic.CASES.keys()
    forward, gradient = (record["cases"][f"neural_{name}"] for name in ("forward", "gradient"))
    ours = "keras_neuralde"
    np.testing.assert_allclose(
        forward["tools"][ours]["value"], gradient["tools"][ours]["value"], rtol=1e-4
    )
    assert record["cases"]["scalar"]["tools"]["scan"]["ratio"] > 0


@pytest.mark.parametrize("name", ["neural_forward", "neural_gradient"])
def test_the_recorded_tools_solved_the_same_equation(name):
    """Their mean squares over 1,024 paths of their own differ by sampling only, some 3% of it."""
    record = json.loads((ROOT / "benchmarks" / "results" / "stochastic.json").read_text())
    tools = record["cases"][name]["tools"]
    values = [tool["value"] for tool in tools.values()]
    assert {"keras_neuralde", "diffrax", "torchsde"} <= tools.keys()
    np.testing.assert_allclose(values, tools["keras_neuralde"]["value"], rtol=0.1)


def test_the_parts_of_a_stochastic_solve():
    from benchmarks import noise_floor

    found = noise_floor.main(["--smoke"])
    assert len(found) == 6 and min(found.values()) > 0.0, found


@pytest.mark.slow
def test_scaling_runs(tmp_path):
    path = tmp_path / "scaling.json"
    command = [sys.executable, "-m", "benchmarks.scaling", "--smoke", "--output", str(path)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=600)
    record = json.loads(path.read_text())
    assert record["memory"][0]["megabytes"] > 0
    assert record["krylov"][0]["steps"] > 1
    alone, among = record["steps"]
    assert alone["per_sample"] == among["per_sample"]
    assert record["compile"][0]["traces_after_new_values"] == 0


@pytest.mark.slow
def test_delay_equations_run_and_are_accurate():
    from benchmarks import delay

    record = delay.main(["--smoke", "--peers", "--rounds", "1"])
    assert record["cases"].keys() == delay.CASES.keys()
    for case in record["cases"].values():
        tools = case["tools"]
        assert tools["keras_neuralde"]["error"] < 1e-6
        assert tools["keras_neuralde_tighter"]["error"] < 1e-7


@pytest.mark.slow
def test_whole_training_runs(tmp_path):
    path = tmp_path / "fit.json"
    command = [sys.executable, "-m", "benchmarks.fit", "--smoke", "--output", str(path)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=600)
    (run,) = json.loads(path.read_text())["results"]["keras_neuralde_short"]
    assert run["last_loss"] < run["first_loss"]


def test_work_precision_curves(tmp_path):
    """Tighter tolerances make smaller errors, in every tool."""
    from benchmarks import work_precision

    arguments = ["--smoke", "--peers", "scipy", "--repeats", "1", "--output", str(tmp_path)]
    record = work_precision.main(arguments)
    assert json.loads((tmp_path / "work_precision.json").read_text()) == record
    assert (tmp_path / "work_precision.png").stat().st_size > 10_000
    curves = record["curves"]["robertson"]
    assert curves.keys() == {"rodas5p", "SciPy BDF", "SciPy Radau", "SciPy LSODA"}
    for method, (loose, tight) in curves.items():
        assert tight["error"] < loose["error"] < 0.1, method
        assert loose["time"] > 0.0


@pytest.mark.slow
def test_equal_errors():
    from benchmarks import equal_error

    record = equal_error.main(["--smoke", "--peers", "--rounds", "1"])
    assert record["cases"].keys() == equal_error.CASES.keys() - {"gradient"}
    for name, case in record["cases"].items():
        assert case["tools"].keys() == set(equal_error.CASES[name].methods)
        for row in case["tools"].values():
            assert row["error"] <= case["error"] and row["call"] > 0.0


def test_the_tolerance_of_an_error():
    """One that comes near by chance does not count."""
    from benchmarks.workers import equal_error

    def error_at(tolerance):
        return 1e-9 if tolerance == 1e-4 else 10.0 * tolerance

    tolerance, error = equal_error.loosest(error_at, 1.0001e-6)
    np.testing.assert_allclose([tolerance, error], [1e-7, 1e-6], rtol=1e-9)
    with pytest.raises(RuntimeError, match="no tolerance"):
        equal_error.loosest(lambda tolerance: 1.0, 1e-6)


def test_the_time_for_an_error():
    from docs import hooks

    points = [{"error": 1e-3, "time": 1.0}, {"error": 1e-5, "time": 100.0}]
    assert hooks.time_for(points, 1e-4) == pytest.approx(10.0)
    assert hooks.time_for(points, 1e-6) is None and hooks.time_for([], 1e-4) is None


@pytest.mark.slow
def test_events_run_and_are_accurate():
    from benchmarks import events

    record = events.main(["--smoke", "--peers", "--rounds", "1"])
    assert record["cases"].keys() == events.CASES.keys()
    for name in ("balls", "balls_gradient"):
        assert record["cases"][name]["tools"]["keras_neuralde"]["error"] < 1e-6


def test_the_trainings_of_the_seed_page_are_found():
    from benchmarks import seed

    found = [training for _, training in seed.statements() if training]
    assert found == list(seed.TRAININGS.values())
    record = json.loads(seed.RESULTS.read_text())
    assert list(record["trainings"]) == found
