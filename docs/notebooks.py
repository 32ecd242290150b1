"""Makes a notebook of each example, in notebooks/ (`make notebooks`)."""

import ast
import pathlib

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = pathlib.Path(__file__).resolve().parents[1]

# A notebook has no command line: `main` reads this one.
ARGUMENTS = 'import sys\n\nsys.argv = ["example"]  # add "--smoke" for a few steps only'


def cells(source):
    """The docstring as text, the imports and constants, each function, and the call of `main`."""
    tree = ast.parse(source)
    lines = source.splitlines()
    yield new_markdown_cell(ast.get_docstring(tree))
    block: list = []
    previous = tree.body[0].end_lineno
    for node in tree.body[1:]:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        text = "\n".join(lines[previous : node.end_lineno]).strip("\n")
        whole = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        if whole and block:
            yield new_code_cell("\n".join(block))
            block = []
        if _is_main_guard(node):
            break
        block.append(text if not whole else "\n".join(lines[first - 1 : node.end_lineno]))
        if whole:
            yield new_code_cell("\n".join(block))
            block = []
        previous = node.end_lineno
    if block:
        yield new_code_cell("\n".join(block))
    yield new_code_cell(ARGUMENTS)
    yield new_code_cell("main()")


def _is_main_guard(node):
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def main():
    """Writes all notebooks."""
    folder = ROOT / "notebooks"
    folder.mkdir(exist_ok=True)
    for script in sorted((ROOT / "examples").glob("*.py")):
        source = script.read_text(encoding="utf-8").replace("__file__", repr(str(script)))
        notebook = new_notebook(cells=list(cells(source)))
        nbformat.validate(notebook)
        nbformat.write(notebook, folder / f"{script.stem}.ipynb")
        print(folder / f"{script.stem}.ipynb")


if __name__ == "__main__":
    main()
