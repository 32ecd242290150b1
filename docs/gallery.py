"""Runs the examples and keeps their pictures for the gallery.

    python docs/gallery.py            # all of them, at full size
    python docs/gallery.py 01 16      # those whose names begin so

Each script runs in a process of its own. Its pictures go to docs/images/, and to gallery.json there
the processor time it took, which depends little on what else the machine does. The page is made from
these and from the docstrings; see docs/hooks.py.
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


def scripts():
    """The examples, in order."""
    return sorted((ROOT / "examples").glob("*.py"))


def title_and_text(script):
    """The first line of a script's docstring, and its first paragraph after that."""
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    title, _, rest = docstring.partition("\n\n")
    return title.replace("\n", " "), rest.partition("\n\n")[0].replace("\n", " ")


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


if __name__ == "__main__":
    main(sys.argv[1:])
