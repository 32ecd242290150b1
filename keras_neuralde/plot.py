"""Pictures of solutions and ensembles, with Matplotlib (the extra `plot`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_neuralde import values
from keras_neuralde.checks import check_array, check_labels
from keras_neuralde.solution import Solution
from keras_neuralde.summary import Summary
from keras_neuralde.typing import Axes, Figure, Nest

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def solution(
    sol: Solution,
    data: Nest = None,
    ax: Axes | None = None,
    labels: Sequence[str] | None = None,
) -> Axes:
    """Draws every component of a solution over time.

    Args:
        sol: a `Solution` with save times; of a batch, one line a trajectory and component.
        data: measured states at `sol.t`, `(num_times, *state)`, drawn as dots.
        ax: Matplotlib axes; new ones by default.
        labels: names of the components.

    Returns:
        The axes.

    Raises:
        TypeError: for something that is no solution.
        ValueError: for a solution without a time axis.
    """
    if not isinstance(sol, Solution):
        raise TypeError(f"`sol` must be a Solution. Received: {sol!r} of type {type(sol).__name__}")
    t = np.asarray(sol.t)
    if t.ndim != 1:
        raise ValueError(
            "a plot needs shared save times: solve with saveat=[...]. "
            f"Received: times of shape {t.shape}"
        )
    batch = len(sol.status.shape)
    ax = _axes(ax)
    y = _components(sol.y, 1 + batch, "sol")
    for k, name in enumerate(_names(labels, y.shape[-1])):
        lines = y[..., k].reshape(len(t), -1)
        ax.plot(t, lines, color=COLORS[k % len(COLORS)], label=[name] + [None] * (len(lines.T) - 1))
    return _finish(ax, t, data)


def summary(
    statistics: Summary,
    data: Nest = None,
    ax: Axes | None = None,
    labels: Sequence[str] | None = None,
) -> Axes:
    """Draws the means of an ensemble and a ribbon between its outer quantiles.

    Args:
        statistics: a `Summary`.
        data: measured states at its times, `(num_times, *state)`, drawn as dots.
        ax: Matplotlib axes; new ones by default.
        labels: names of the components.

    Returns:
        The axes.

    Raises:
        TypeError: for something that is no summary.
        ValueError: for a summary without a time axis.
    """
    if not hasattr(statistics, "quantiles") or not hasattr(statistics, "levels"):
        raise TypeError(
            "`statistics` must be a Summary, as sol.summary() of an ensemble returns it. "
            f"Received: {statistics!r}"
        )
    t = np.asarray(statistics.t)
    if t.ndim != 1:
        raise ValueError("a plot needs save times: solve with saveat=[...]. Received: none")
    ax = _axes(ax)
    mean = _components(statistics.mean, 1, "statistics")
    levels = statistics.levels
    for k, name in enumerate(_names(labels, mean.shape[-1])):
        color = COLORS[k % len(COLORS)]
        ax.plot(t, mean[:, k], color=color, label=f"{name}, mean")
        if len(levels) >= 2:
            low, high = np.argmin(levels), np.argmax(levels)
            below, above = (
                _components(statistics.quantiles[i], 1, "statistics")[:, k] for i in (low, high)
            )
            label = f"{name}, {levels[low]:.0%} to {levels[high]:.0%}"
            ax.fill_between(t, below, above, color=color, alpha=0.2, linewidth=0, label=label)
    return _finish(ax, t, data)


def prediction(
    t: npt.ArrayLike,
    y: Nest,
    data: Nest = None,
    ax: Axes | None = None,
    labels: Sequence[str] | None = None,
) -> Axes:
    """Draws predicted states as lines and measured ones as dots.

    Args:
        t: the times, `(num_times,)`.
        y: the prediction, `(num_times, *state)`.
        data: measured states at these times, of the same shape; NaN where there are none.
        ax: Matplotlib axes; new ones by default.
        labels: names of the components.

    Returns:
        The axes.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    t, lines = check_array("t", t), _components(y, 1, "y")
    points = None if data is None else _components(data, 1, "data")
    if t.shape != lines.shape[:1] or (points is not None and points.shape != lines.shape):
        raise ValueError(
            "`t`, `y` and `data` must have one entry for each time, and `y` and `data` the same "
            f"components. Received: shapes {t.shape}, {np.shape(y)} and "
            f"{None if data is None else np.shape(data)}"
        )
    ax = _axes(ax)
    for k, name in enumerate(_names(labels, lines.shape[-1])):
        color = COLORS[k % len(COLORS)]
        ax.plot(t, lines[:, k], color=color, label=f"{name}, prediction")
        if points is not None:
            ax.plot(t, points[:, k], "o", color=color, ms=4, mfc="none", label=f"{name}, data")
    return _finish(ax, t, None)


def loss(history: Any, ax: Axes | None = None, stages: Sequence[int] = ()) -> Axes:
    """Draws the loss over the iterations, on a logarithmic axis if all of it is positive.

    Args:
        history: what `fit` returned, a `MinimizeResult`, or a sequence of losses.
        ax: Matplotlib axes; new ones by default.
        stages: iterations at which another optimizer took over, drawn as dotted lines.

    Returns:
        The axes.

    Raises:
        ValueError: for a history without losses.
    """
    record = getattr(history, "history", history)
    curves = {"loss": record}
    if isinstance(record, dict):
        curves = {name: record[name] for name in ("loss", "val_loss") if name in record}
    curves = {name: check_array("history", losses) for name, losses in curves.items()}
    marks = np.ravel(check_array("stages", stages))
    if not curves or any(losses.ndim != 1 or not losses.size for losses in curves.values()):
        raise ValueError(
            "`history` must hold losses: what `fit` or `minimize` returned, or a list of numbers. "
            f"Received: {history!r}"
        )
    ax = _axes(ax)
    for color, (name, losses) in zip(COLORS, curves.items(), strict=False):
        ax.plot(np.arange(1, len(losses) + 1), losses, color=color, label=name)
    if all(np.all(losses > 0) for losses in curves.values()):
        ax.set_yscale("log")
    for stage in marks:
        ax.axvline(stage, color="gray", ls=":", lw=1)
    ax.set(xlabel="iteration", ylabel="loss")
    if len(curves) > 1:
        ax.legend()
    return ax


def figure() -> Figure:
    """A Matplotlib figure that belongs to no window."""
    _pyplot()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _pyplot():
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plots need Matplotlib: pip install 'keras-neuralde[plot]'") from error
    return plt


def _axes(ax):
    if ax is None:
        return _pyplot().subplots(layout="constrained")[1]
    if not hasattr(ax, "plot") or not hasattr(ax, "set_xlabel"):
        raise TypeError(f"`ax` must be Matplotlib axes. Received: {ax!r}")
    return ax


def _components(nest, leading, name):
    """All components of all leaves along a last axis."""
    leaves = [nest] if values.is_number_tree(nest) else tf.nest.flatten(nest)
    leaves = [check_array(name, leaf) for leaf in leaves]
    if any(leaf.ndim < leading for leaf in leaves):
        shapes = [leaf.shape for leaf in leaves]
        raise ValueError(f"`{name}` must have an axis of times. Received shapes: {shapes}")
    return np.concatenate([leaf.reshape(*leaf.shape[:leading], -1) for leaf in leaves], axis=-1)


def _names(labels, count):
    if labels is None:
        return [f"y[{k}]" for k in range(count)]
    names = check_labels("labels", labels)
    if len(names) != count:
        raise ValueError(f"`labels` must name {count} components. Received: {names}")
    return names


def _finish(ax, t, data):
    if data is not None:
        points = _components(data, 1, "data")
        if len(points) != len(t):
            raise ValueError(
                f"`data` must hold a state for each of the {len(t)} times of the plot. "
                f"Received: {len(points)}"
            )
        for k in range(points.shape[-1]):
            ax.plot(t, points[:, k], "o", color=COLORS[k % len(COLORS)], markersize=4)
    ax.set_xlabel("t")
    ax.legend()
    return ax
