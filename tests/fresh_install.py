"""Installs built files into fresh environments and follows README, start and serving page there.

    python -m tests.fresh_install dist/*.whl dist/*.tar.gz

Each file gets an environment with what it declares and nothing else.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
import venv

from tests.test_docs import ROOT, blocks

PAGES = ("docs/start", "README", "docs/serving")
PROLOGUE = """
import importlib.util, pathlib, keras_neuralde
assert importlib.util.find_spec("matplotlib") is None, "only what is declared is installed"
assert "site-packages" in keras_neuralde.__file__, keras_neuralde.__file__
keras_neuralde.show_versions()
"""


def follow_the_pages(file):
    """Seconds that the installation and the blocks of the pages took."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        venv.create(folder / "env", with_pip=True)
        python = str(folder / "env" / "bin" / "python")
        # Nothing of the environment that builds may be seen in there.
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        begin = time.perf_counter()
        install = [python, "-m", "pip", "install", "--quiet", str(file)]
        subprocess.run(install, check=True, cwd=folder, env=clean)
        installed = time.perf_counter()
        for page in PAGES:
            codes = [code for _, code in blocks(ROOT / f"{page}.md")]
            script = folder / f"{pathlib.PurePath(page).name}.py"
            script.write_text("\n".join([PROLOGUE, *codes]), encoding="utf-8")
            subprocess.run([python, script.name], check=True, cwd=folder, env=clean)
        return installed - begin, time.perf_counter() - installed


def main(files):
    """Command line."""
    for file in map(pathlib.Path, files):
        install, run = follow_the_pages(file.resolve())
        print(f"{file.name}: installed in {install:.0f} s, the pages ran in {run:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
