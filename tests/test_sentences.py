"""Error sentences as a set: each names what came."""

import ast
import pathlib

import keras_neuralde

ROOT = pathlib.Path(keras_neuralde.__file__).parent


def sentences():
    """Where a ValueError or TypeError is raised with a sentence, and the source of the sentence."""
    for path in sorted(ROOT.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("ValueError", "TypeError"):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", call.args[0]


def test_every_sentence_names_what_came():
    """By "Received: ...", by a value in the sentence, or by the argument that it is about."""
    silent = []
    for place, sentence in sentences():
        text = ast.unparse(sentence)
        names = [n for n in ast.walk(sentence) if isinstance(n, ast.FormattedValue)]
        if not names and not any(mark in text for mark in ("Received", "`", "=")):
            silent.append(f"{place}: {text}")
    # What users cannot cause, a condition of a solution that has no argument to name, and a
    # sentence made elsewhere, which names the setting.
    allowed = ("solvers/factorization.py", "no trajectory succeeded", "which steps were taken")
    allowed += ("refusals.py",)
    assert not [one for one in silent if not any(part in one for part in allowed)], silent


def test_what_was_received_comes_last():
    """One form: what was expected, then "Received: " and the value."""
    wrong = []
    for place, sentence in sentences():
        text = "".join(
            part.value
            for part in ast.walk(sentence)
            if isinstance(part, ast.Constant) and isinstance(part.value, str)
        )
        if "eceived" in text and not any(f"Received{mark}" in text for mark in (": ", " shape")):
            wrong.append(f"{place}: {text}")
    assert not wrong, wrong
