"""What the README shows runs."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, block in enumerate(BLOCKS):
        names.pop("history", None)
        exec(compile(block, f"README.md, block {number + 1}", "exec"), names)
        if "history" in names:
            loss = names["history"].history["loss"]
            assert loss[-1] < 0.05 * loss[0]


def test_there_is_an_example():
    assert BLOCKS
