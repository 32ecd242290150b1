"""Imports run one way: a floor knows only the floors below it."""

import ast
import pathlib

import keras_neuralde

ROOT = pathlib.Path(keras_neuralde.__file__).parent

# From the ground up. A module may import from its own line and from the lines above it.
FLOORS = (
    (
        "values",
        "slice_gradients",
        "narrow_products",
        "checks",
        "bounds",
        "programs",
        "captures",
        "freezing",
        "observation",
        "tableaus",
        "typing",
    ),
    (
        "plot",
        "solution",
        "summary",
        "refusals",
        "parameters",
        "problems",
        "state",
        "rows",
        "brownian",
        "sparsity",
    ),
    ("events", "jumps"),
    ("arithmetic",),
    ("components",),
    (
        "controllers",
        "fields",
        "two_part_field",
        "stochastic_field",
        "split_field",
        "interpolation",
        "history",
    ),
    ("solvers", "consistency"),
    ("happenings",),
    ("save_points",),
    ("integrate",),
    ("passing",),
    ("adjoints",),
    ("options", "settings", "equations", "arguments", "execution"),
    ("solve",),
    ("spreading",),
    ("ensemble", "long_series", "environment", "initial_state", "tfp"),
    ("optimizers", "layers", "callbacks"),
    ("minimize_result", "minimize", "distributed", "training", "warmup", "export"),
)


def floor_of(module):
    """The number of the line that lists a module's file or folder."""
    room = module.split(".")[0]
    numbers = [i for i, rooms in enumerate(FLOORS) if room in rooms]
    assert numbers, f"keras_neuralde.{module} is on no floor: give it one in this file"
    return numbers[0]


def imports(path):
    """The package's modules that a file imports when it is loaded (not inside functions)."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras_neuralde"):
            base = node.module.removeprefix("keras_neuralde").strip(".")
            for name in node.names:
                yield base or name.name


def test_no_import_runs_upwards():
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module == "__init__":
            continue
        for target in imports(path):
            if floor_of(target) > floor_of(module):
                wrong.append(f"{module} imports {target}")
    assert not wrong, wrong


def test_solvers_and_the_loop_never_see_keras():
    for room in (
        "solvers",
        "integrate.py",
        "save_points.py",
        "tableaus",
        "interpolation.py",
        "controllers.py",
    ):
        path = ROOT / room
        files = path.rglob("*.py") if path.is_dir() else [path]
        for file in files:
            assert "import keras\n" not in file.read_text(), file
