"""Files of strangers: loading a model runs no code that the file brings along."""

import pathlib
import re

import keras
import numpy as np
import pytest

import keras_neuralde as nde

ROOT = pathlib.Path(nde.__file__).parent


def of(layer, inputs=2):
    y0 = keras.Input((inputs,))
    return keras.Model(y0, layer(y0))


def refuse(model, path):
    model.save(path)
    with pytest.raises((ValueError, TypeError), match="(?i)lambda"):
        keras.models.load_model(path)


def test_a_lambda_inside_a_field_is_refused(tmp_path):
    field = keras.Sequential([keras.layers.Lambda(lambda y: -y)])
    refuse(of(nde.NeuralODE(field, (0.0, 1.0))), tmp_path / "model.keras")


def test_a_lambda_inside_a_diffusion_is_refused(tmp_path):
    diffusion = keras.Sequential([keras.layers.Lambda(lambda y: 0.1 * y)])
    layer = nde.NeuralDSDE(keras.layers.Dense(2), diffusion, (0.0, 1.0))
    refuse(of(layer), tmp_path / "model.keras")


def test_lambdas_as_constraint_and_as_history_are_refused(tmp_path):
    mass = [[1.0, 0.0], [0.0, 0.0]]
    layer = nde.NeuralODEMM(keras.layers.Dense(1), lambda y: y[:, 1:], (0.0, 1.0), mass)
    refuse(of(layer), tmp_path / "constraint.keras")
    layer = nde.NeuralCDDE(keras.layers.Dense(2), (0.0, 1.0), [0.1], history=lambda t, p: p)
    refuse(of(layer), tmp_path / "history.keras")


def test_the_package_reads_no_code():
    forbidden = re.compile(r"\b(pickle|marshal|dill|eval|exec|enable_unsafe_deserialization)\b\(?")
    found = [
        (path.name, line)
        for path in ROOT.rglob("*.py")
        for line in path.read_text().splitlines()
        if (match := forbidden.search(line)) and not line.lstrip().startswith(("#", '"'))
        and match.group().endswith("(")
    ]  # fmt: skip
    assert not found, found
    imports = re.compile(r"^\s*(import|from) (pickle|marshal|dill)\b", re.MULTILINE)
    assert not [path for path in ROOT.rglob("*.py") if imports.search(path.read_text())]


def test_what_is_saved_loads_again(tmp_path):
    model = of(nde.NeuralODE(keras.layers.Dense(2), (0.0, 1.0), "euler", dt0=0.5))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    x = np.ones((1, 2), "float32")
    np.testing.assert_allclose(loaded(x), model(x))
