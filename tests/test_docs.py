"""What the pages and the README show runs, and comes out as their comments say."""

import ast
import decimal
import importlib.util
import inspect
import json
import pathlib
import re

import keras
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Other languages and other packages stand under tags of their own: ```julia, ```text, ```console.
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
# Pages that take more than ten seconds.
SLOW = {"README", "start", "data", "universal", "recipes", "long_series", "training", "seed"}


def blocks(page):
    """The Python blocks of a page, each with its first line's number."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        indent, code = match.groups()
        lines = [line.removeprefix(indent) for line in code.splitlines()]
        yield text.count("\n", 0, match.start(2)) + 1, "\n".join(lines)


def promised(line):
    """The literal of a comment such as `# (8, 4, 2): batch, times, state`, as text, or `None`."""
    comment = line.rpartition("  # ")[2] if "  # " in line else ""
    literal = re.match(r"[(\[].*?[)\]](?=$|:)|-?[\d.]+(e-?\d+)?(?=$|:)|True|False|'.*?'", comment)
    return literal and literal.group()


def agrees(value, literal):
    """Whether a value is what a literal says; decimals to half a unit of their last digit."""
    expected = ast.literal_eval(literal)
    if isinstance(expected, (tuple, list)):
        value = np.asarray(value)
        parts = [part for part in re.split(r"[\s,()\[\]]+", literal) if part]
        same_shape = value.shape == np.shape(expected)
        return same_shape and all(map(agrees, value.ravel().tolist(), parts))
    if isinstance(expected, float):
        digit = decimal.Decimal(literal).as_tuple().exponent
        return abs(float(value) - expected) <= 0.51 * 10.0**digit
    return value == expected


def run(code, where, names):
    """Executes a block statement by statement; values of expressions meet their comments."""
    lines = code.splitlines()
    for statement in ast.parse(code, where).body:
        literal = promised(lines[statement.end_lineno - 1])
        if isinstance(statement, ast.Expr) and literal:
            value = eval(compile(ast.Expression(statement.value), where, "eval"), names)
            assert agrees(value, literal), f"{where}: {value!r} is not {literal}"
        else:
            exec(compile(ast.Module([statement], []), where, "exec"), names)


@pytest.fixture(autouse=True)
def clean_slate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else [])
        for page in PAGES
        if any(blocks(page))
    ],
)
def test_page_runs(page):
    names = {"__name__": page.stem}
    for line, code in blocks(page):
        run(code, f"{page.name}, line {line}", names)
        history = names.pop("history", None)
        if isinstance(history, keras.callbacks.History):
            loss = history.history["loss"]
            assert loss[-1] < 0.5 * loss[0], f"{page.name}, line {line}: {loss[0]} to {loss[-1]}"


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    written = [str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(written)


def test_the_first_page_links_every_decision():
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\(adr/(.*?)\)", page)
    assert linked == sorted(path.name for path in (ROOT / "docs" / "adr").iterdir())


def test_every_table_has_its_place_and_its_rows():
    from docs import hooks

    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    marked = [mark for mark in re.findall(r"<!-- .*? -->", text) if "Made by" not in mark]
    assert sorted(marked) == sorted(hooks._TABLES)
    for mark in marked:
        rows = list(hooks._TABLES[mark]())
        assert any(row.startswith("|---") for row in rows) and "Measured by" not in rows[0], mark


def test_the_gallery_shows_what_was_kept():
    record = json.loads((ROOT / "docs" / "images" / "gallery.json").read_text())
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    shown = re.findall(r"\]\(images/(.*?)\)", page)
    assert sorted(shown) == sorted(name for kept in record.values() for name in kept["pictures"])
    for script, kept in record.items():
        assert (ROOT / "examples" / f"{script}.py").exists() and f"`examples/{script}.py`" in page
        for name in kept["pictures"]:
            assert (ROOT / "docs" / "images" / name).stat().st_size > 5000


def test_notebooks_hold_the_whole_script():
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "notebooks.py")
    notebooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebooks)
    for script in (ROOT / "examples").glob("*.py"):
        source = script.read_text(encoding="utf-8")
        code = "\n".join(
            text for kind, text in notebooks.cells(source, script.stem) if kind == "code"
        )
        held = {ast.dump(node) for node in ast.parse(code).body}
        body = ast.parse(source).body[1:]
        lost = [ast.unparse(node) for node in body[:-1] if ast.dump(node) not in held]
        assert not lost and isinstance(body[-1], ast.If), (script, lost)


def test_the_reference_has_every_public_name():
    from tests.test_arguments import public

    paths = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(), re.M)
    found = [
        importlib.import_module(p.rpartition(".")[0]).__dict__[p.rpartition(".")[2]] for p in paths
    ]
    modules = [value.__dict__ for value in found if inspect.ismodule(value)]
    shown = [id(value) for value in found]
    shown += [
        id(v) for m in modules for v in m.values() if getattr(v, "__module__", "") == m["__name__"]
    ]
    assert [name for name, value in public().items() if id(value) not in shown] == []


def test_promises_are_read():
    assert promised("layer(x).shape  # (8, 4, 2): batch, times, state") == "(8, 4, 2)"
    assert promised("sol(0.5)  # 0.368") == "0.368"
    assert promised("print(sol)  # status, minimum") is None
    assert agrees(0.3679, "0.368") and not agrees(0.3671, "0.368")
    assert agrees(np.ones((2, 3)).shape, "(2, 3)") and not agrees((2,), "(3,)")
    assert agrees(np.float32([0.3679, 2.0]), "[0.368, 2.0]") and not agrees(
        [0.1, 0.2], "[0.1, 0.3]"
    )
    assert agrees(1.02e-7, "1.0e-7") and not agrees(1.2e-7, "1.0e-7")
