"""Runs the examples and keeps their pictures for the gallery.

    python docs/gallery.py            # all of them, at full size
    python docs/gallery.py 01 16      # those whose names begin so

Each script runs in a process of its own; its pictures go to docs/images/, its run time to
docs/images/gallery.json. The page is made from these and from the docstrings; see docs/hooks.py.
"""

import ast
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

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
    """Runs one example: names of its pictures, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
        start = time.perf_counter()
        command = [sys.executable, str(script), "--output", folder]
        subprocess.run(command, check=True, env=environment, cwd=ROOT)
        seconds = time.perf_counter() - start
        pictures = sorted(pathlib.Path(folder).glob("*.png"))
        for picture in pictures:
            shutil.copy(picture, IMAGES / f"{script.stem}_{picture.name}")
        return [f"{script.stem}_{picture.name}" for picture in pictures], seconds


def main(wanted):
    """Command line."""
    IMAGES.mkdir(exist_ok=True)
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
