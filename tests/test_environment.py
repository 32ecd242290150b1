"""What the package tells of itself: versions, and records as text."""

import importlib.metadata
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde


def test_versions(capsys):
    nde.show_versions()
    printed = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert printed["keras-neuralde"] == nde.__version__
    for name in ("tensorflow", "keras", "numpy"):
        assert printed[name].strip() == importlib.metadata.version(name)
    assert "CPU:0" in printed["devices"]


def test_the_version_is_the_same_everywhere():
    root = pathlib.Path(__file__).resolve().parents[1]
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    date = re.search(r"^date-released: (.*)$", citation, re.MULTILINE).group(1)
    assert f"\nversion: {nde.__version__}\n" in citation
    assert f"\n## [{nde.__version__}] - {date}\n" in changes
    for heading in re.findall(r"^## \[(.*?)\]", changes, re.MULTILINE):
        assert f"\n[{heading}]: " in changes, heading
    assert "version = attr: keras_neuralde.__version__" in (root / "setup.cfg").read_text()


def rotation(t, y, p):
    return y


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (
            nde.ODEProblem(rotation, tf.ones((3, 2)), (0.0, 1.0), {"a": np.float64(2.0)}),
            "ODEProblem(f=rotation, y0=<float32 (3, 2)>, t_span=(0.0, 1.0), p={'a': 2})",
        ),
        (
            nde.ODEProblem(rotation, list(range(9)), (0.0, 1.0), mass_matrix=np.eye(9)),
            "ODEProblem(f=rotation, y0=9 numbers, t_span=(0.0, 1.0), mass_matrix=<float64 (9, 9)>)",
        ),
        (
            nde.SDEProblem(rotation, rotation, 1.0, (0.0, 1.0), noise="scalar"),
            "SDEProblem(f=rotation, g=rotation, y0=1.0, t_span=(0.0, 1.0), noise='scalar')",
        ),
    ],
)
def test_problems_print_shapes_not_numbers(problem, text):
    assert repr(problem) == text


def test_events_jumps_and_optimizers_print_settings_and_names():
    import keras

    assert repr(nde.ContinuousEvent(rotation, terminal=True)) == (
        "ContinuousEvent(condition=rotation, terminal=True)"
    )
    jump = nde.ConstantRateJump(2.0, rotation)
    problem = nde.ODEProblem(rotation, 1.0, (0.0, 1.0))
    assert repr(nde.JumpProblem(problem, [jump])) == (
        f"JumpProblem(problem={problem!r}, jumps=(ConstantRateJump(rate=2.0, affect=rotation)))"
    )
    lbfgs = nde.optimizers.LBFGS(20, freeze_steps=True)
    assert repr(lbfgs) == "LBFGS(freeze_steps=True, history_size=20)"
    assert repr(nde.optimizers.BFGS()) == "BFGS()"
    assert repr(nde.optimizers.Chain([keras.optimizers.Adam(), lbfgs], steps=[300])) == (
        f"<Chain: Adam for 300 steps, then {lbfgs!r}>"
    )


def test_layers_print_what_they_solve():
    import keras

    layer = nde.NeuralODE(
        keras.layers.Dense(2), (0.0, 2.0), saveat=[1.0, 2.0], rtol=1e-5, name="flow"
    )
    assert repr(layer) == (
        "<NeuralODE 'flow', t from 0 to 2, tsit5, 2 save times, rtol=1e-05, not built>"
    )
    layer.build((None, 2))
    assert repr(layer).endswith("6 parameters>")


def test_solutions_and_summaries_print_ranges(capsys):
    problem = nde.ODEProblem(lambda t, y, p: -p * y, 1.0, (0.0, 1.0), 1.0)

    def vary(problem, i, seed):
        return problem.remake(p=tf.cast(i, tf.float32))

    sol = nde.solve_ensemble(problem, 5, vary=vary, saveat=[0.5, 1.0], batch_size=2, seed=0)
    assert capsys.readouterr().out == "", "no terminal, no bar"
    assert repr(sol).startswith("EnsembleSolution(y: (2, 5), t: (2,))")
    low, high = int(np.min(sol.stats.num_steps)), int(np.max(sol.stats.num_steps))
    assert f"num_steps: {low} to {high}, " in repr(sol.stats)
    assert repr(sol.summary()) == (
        "Summary(of 5 trajectories at (2,) times; mean, var, median: (2,), quantiles (0.05, 0.95))"
    )


def test_a_bar_counts_the_chunks(monkeypatch):
    drawn = []
    monkeypatch.setattr("keras_neuralde.ensemble.progress_bar", lambda: drawn.append)
    problem = nde.ODEProblem(lambda t, y, p: -y, 1.0, (0.0, 1.0))
    nde.solve_ensemble(problem, 5, batch_size=2)
    assert drawn == [0.4, 0.8, 1.0]
    nde.solve_ensemble(problem, 5, batch_size=2, progress=False)
    nde.solve_ensemble(problem, 5, batch_size=5)
    tf.function(lambda: nde.solve_ensemble(problem, 5, batch_size=2, seed=0).y)()
    assert len(drawn) == 3, "nothing when not wanted, over a single chunk, or while tracing"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_counts_the_iterations(terminal, monkeypatch, capsys):
    import sys

    drawn = []

    class Bar:
        def __init__(self, target, **_):
            self.target = target
            drawn.append(target)

        def update(self, done, values, finalize=None):
            drawn.append((done, *values, finalize))

    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("keras.utils.Progbar", Bar)
    keywords = {"max_iters": 2, "jit_compile": False}
    result = nde.minimize(lambda p: p**2, np.float64(3.0), nde.optimizers.BFGS(0.1), **keywords)
    expected = [2, *((i + 1, ("loss", loss), None) for i, loss in enumerate(result.history))]
    assert drawn == (expected if terminal else [])
    assert capsys.readouterr().out == ""
    drawn.clear()
    result = nde.minimize(lambda p: p**2, np.float64(3.0), nde.optimizers.BFGS(0.1))
    last = (result.iterations, ("loss", result.minimum), True)
    assert drawn[-1:] == ([last] if terminal else []), "where it ends by itself, the end is drawn"
