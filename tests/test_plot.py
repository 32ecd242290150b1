"""Pictures hold the numbers that were given."""

import types

import matplotlib.pyplot as plt
import numpy as np
import pytest

import keras_neuralde as nde

T = np.linspace(0.0, 1.0, 4)
Y = np.stack([T, T**2], -1)


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_prediction_has_a_line_and_dots_for_each_component(ax):
    assert nde.plot.prediction(T, Y, Y + 0.1, ax=ax, labels=["a", "b"]) is ax
    lines = [line.get_ydata() for line in ax.get_lines()]
    expected = [Y[:, 0], Y[:, 0] + 0.1, Y[:, 1], Y[:, 1] + 0.1]
    np.testing.assert_allclose(lines, expected)
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["a, prediction", "a, data", "b, prediction", "b, data"]


def test_prediction_refuses_shapes_that_differ(ax):
    with pytest.raises(ValueError, match="one entry for each time.*Received"):
        nde.plot.prediction(T[1:], Y, ax=ax)
    with pytest.raises(ValueError, match="one entry for each time.*Received"):
        nde.plot.prediction(T, Y, Y[:, :1], ax=ax)


@pytest.mark.parametrize(
    "history",
    [
        [4.0, 2.0, 1.0],
        types.SimpleNamespace(history=[4.0, 2.0, 1.0]),
        types.SimpleNamespace(history={"loss": [4.0, 2.0, 1.0], "lr": [1, 1, 1]}),
    ],
)
def test_loss_of_every_kind_of_history(ax, history):
    nde.plot.loss(history, ax=ax, stages=[2])
    np.testing.assert_array_equal(ax.get_lines()[0].get_xydata(), [[1, 4], [2, 2], [3, 1]])
    assert ax.get_yscale() == "log" and len(ax.get_lines()) == 2


def test_loss_with_validation_and_negative_values(ax):
    nde.plot.loss({"loss": [1.0, -1.0], "val_loss": [2.0, 0.0]}, ax=ax)
    assert ax.get_yscale() == "linear"
    assert ax.get_legend_handles_labels()[1] == ["loss", "val_loss"]


@pytest.mark.parametrize("history", [[], {"accuracy": [1.0]}, [[1.0], [2.0]]])
def test_loss_refuses_what_holds_none(ax, history):
    with pytest.raises(ValueError, match="`history` must hold losses.*Received"):
        nde.plot.loss(history, ax=ax)
