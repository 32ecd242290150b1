"""Runs the examples and keeps their pictures for the gallery.

    python docs/gallery.py            # all of them, at full size
    python docs/gallery.py 01 16      # those whose names begin so
    python docs/gallery.py page       # none, only the page

Each script runs in a process of its own. Its pictures go to docs/images/, and to gallery.json there
the processor time it took, which depends little on what else the machine does. The page,
docs/gallery.md, is made from these and from the docstrings.
"""

import ast
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
RECORD = IMAGES / "gallery.json"

HEAD = """# Gallery

<!-- Made by docs/gallery.py from the scripts and their pictures; edits here are lost. -->

The pictures of the scripts in `examples/`, as they come out at full size. [Examples](examples.md)
has the figures that belong to them. `make notebooks` makes a notebook of each.
"""


def scripts():
    """The examples, in order."""
    return sorted((ROOT / "examples").glob("*.py"))


def title_and_text(script):
    """The first line of a docstring, and the paragraphs after it to the end of a sentence."""
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    title, *paragraphs = docstring.split("\n\n")
    ends = [i + 1 for i, paragraph in enumerate(paragraphs) if paragraph.endswith(".")]
    return title.replace("\n", " "), "\n\n".join(paragraphs[: ends[0]])


def run(script):
    """Runs one example: names of its pictures, and seconds of processor time."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, str(script), "--output", folder]
        subprocess.run(command, check=True, env=environment, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        pictures = sorted(pathlib.Path(folder).glob("*.png"))
        for picture in pictures:
            shutil.copy(picture, IMAGES / f"{script.stem}_{picture.name}")
        return [f"{script.stem}_{picture.name}" for picture in pictures], seconds


def page():
    """The page of the gallery."""
    record = json.loads(RECORD.read_text())
    lines = [HEAD]
    for script in scripts():
        if script.stem not in record:
            continue
        kept = record[script.stem]
        title, text = title_and_text(script)
        lines += [f"## {title.rstrip('.')}", "", f"`examples/{script.name}`", "", text, ""]
        for picture in kept["pictures"]:
            lines += [f"![{title}](images/{picture})", ""]
        if "seconds" in kept:
            seconds = kept["seconds"]
            lines += [f"*{seconds} s of processor time, compilation and pictures included.*", ""]
    return "\n".join(lines)


def draw_start():
    """The picture of the page `start.md`, from its first block."""
    import matplotlib

    matplotlib.use("Agg")
    page = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(page.partition("```python\n")[2].partition("```")[0], names)
    ax = names["sol"].plot(labels=["prey", "predators"])
    ax.set(xlabel="time", ylabel="population")
    ax.figure.set_size_inches(6.0, 3.2)
    ax.figure.savefig(IMAGES / "start_solution.png", dpi=110)


def main(wanted):
    """Command line."""
    IMAGES.mkdir(exist_ok=True)
    if not wanted or "start" in wanted:
        draw_start()
    for script in scripts():
        if wanted and not script.stem.startswith(tuple(wanted)):
            continue
        pictures, seconds = run(script)
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        record[script.stem] = {"pictures": pictures, "seconds": round(seconds)}
        RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        print(f"{script.stem}: {', '.join(pictures)}, {seconds:.0f} s")
    (ROOT / "docs" / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
