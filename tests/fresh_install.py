"""Installs built files into fresh environments and follows the five-minute start there.

    python -m tests.fresh_install dist/*.whl dist/*.tar.gz

Each file gets an environment with what it declares and nothing else.
"""

import pathlib
import subprocess
import sys
import tempfile
import time
import venv

from tests.test_docs import ROOT, blocks

PROLOGUE = """
import importlib.util, pathlib, keras_neuralde
assert importlib.util.find_spec("matplotlib") is None, "only what is declared is installed"
assert "site-packages" in keras_neuralde.__file__, keras_neuralde.__file__
keras_neuralde.show_versions()
"""


def follow_the_start(file):
    """Seconds that the installation and the blocks of the start took."""
    program = "\n".join([PROLOGUE, *(code for _, code in blocks(ROOT / "docs" / "start.md"))])
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        venv.create(folder / "env", with_pip=True)
        python = str(folder / "env" / "bin" / "python")
        begin = time.perf_counter()
        subprocess.run([python, "-m", "pip", "install", "--quiet", str(file)], check=True)
        installed = time.perf_counter()
        (folder / "start.py").write_text(program, encoding="utf-8")
        subprocess.run([python, "start.py"], check=True, cwd=folder)
        return installed - begin, time.perf_counter() - installed


def main(files):
    """Command line."""
    for file in map(pathlib.Path, files):
        install, run = follow_the_start(file.resolve())
        print(f"{file.name}: installed in {install:.0f} s, the start ran in {run:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
