"""Makes a notebook of each example, in notebooks/ (`make notebooks`)."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]

# A notebook has no command line: `main` reads this one.
LAST = """main()

from IPython.display import Image, display  # noqa: E402

for picture in sorted(pathlib.Path("demo_output").glob("{name}*.png")):
    display(Image(filename=str(picture)))"""
ARGUMENTS = 'import sys\n\nsys.argv = ["example"]  # add "--smoke" for a few steps only'


def cells(source, name):
    """Pairs of a kind and a text: the docstring, constants, each function, the call of `main`.

    Args:
        source: the script.
        name: with which the names of its pictures begin.
    """
    tree = ast.parse(source)
    lines = source.splitlines()
    yield "markdown", ast.get_docstring(tree)
    block: list = []
    previous = tree.body[0].end_lineno
    for node in tree.body[1:]:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        text = "\n".join(lines[previous : node.end_lineno]).strip("\n")
        whole = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        if whole and block:
            yield "code", "\n".join(block)
            block = []
        if _is_main_guard(node):
            break
        block.append(text if not whole else "\n".join(lines[first - 1 : node.end_lineno]))
        if whole:
            yield "code", "\n".join(block)
            block = []
        previous = node.end_lineno
    if block:
        yield "code", "\n".join(block)
    yield "code", ARGUMENTS
    yield "code", LAST.replace("{name}", name)


def _is_main_guard(node):
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def main():
    """Writes all notebooks."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    make = {"code": new_code_cell, "markdown": new_markdown_cell}
    folder = ROOT / "notebooks"
    folder.mkdir(exist_ok=True)
    for script in sorted((ROOT / "examples").glob("*.py")):
        source = script.read_text(encoding="utf-8").replace("__file__", repr(str(script)))
        name = script.stem.lstrip("0123456789_")
        notebook = new_notebook(cells=[make[kind](text) for kind, text in cells(source, name)])
        nbformat.validate(notebook)
        nbformat.write(notebook, folder / f"{script.stem}.ipynb")
        print(folder / f"{script.stem}.ipynb")


if __name__ == "__main__":
    main()
