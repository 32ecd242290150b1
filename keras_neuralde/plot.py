"""Pictures of solutions and ensembles, with Matplotlib (the extra `plot`)."""

import numpy as np
import tensorflow as tf

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def solution(sol, data=None, ax=None, labels=None):
    """Draws every component of a solution over time.

    Args:
        sol: a `Solution` with save times; of a batch, one line a trajectory and component.
        data: measured states at `sol.t`, `(num_times, *state)`, drawn as dots.
        ax: Matplotlib axes; new ones by default.
        labels: names of the components.

    Returns:
        The axes.

    Raises:
        ValueError: for a solution without a time axis.
    """
    t = np.asarray(sol.t)
    if t.ndim != 1:
        raise ValueError(
            "a plot needs shared save times: solve with saveat=[...]. "
            f"Received: times of shape {t.shape}"
        )
    batch = len(sol.status.shape)
    ax = _axes(ax)
    y = _components(sol.y, 1 + batch)
    for k, name in enumerate(_names(labels, y.shape[-1])):
        lines = y[..., k].reshape(len(t), -1)
        ax.plot(t, lines, color=COLORS[k % len(COLORS)], label=[name] + [None] * (len(lines.T) - 1))
    return _finish(ax, t, data)


def summary(statistics, data=None, ax=None, labels=None):
    """Draws the means of an ensemble and a ribbon between its outer quantiles.

    Args:
        statistics: a `Summary`.
        data: measured states at its times, `(num_times, *state)`, drawn as dots.
        ax: Matplotlib axes; new ones by default.
        labels: names of the components.

    Returns:
        The axes.

    Raises:
        ValueError: for a summary without a time axis.
    """
    t = np.asarray(statistics.t)
    if t.ndim != 1:
        raise ValueError("a plot needs save times: solve with saveat=[...]. Received: none")
    ax = _axes(ax)
    mean = _components(statistics.mean, 1)
    levels = statistics.levels
    for k, name in enumerate(_names(labels, mean.shape[-1])):
        color = COLORS[k % len(COLORS)]
        ax.plot(t, mean[:, k], color=color, label=f"{name}, mean")
        if len(levels) >= 2:
            low, high = np.argmin(levels), np.argmax(levels)
            below, above = (_components(statistics.quantiles[i], 1)[:, k] for i in (low, high))
            label = f"{name}, {levels[low]:.0%} to {levels[high]:.0%}"
            ax.fill_between(t, below, above, color=color, alpha=0.2, linewidth=0, label=label)
    return _finish(ax, t, data)


def _axes(ax):
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plots need Matplotlib: pip install 'keras-neuralde[plot]'") from error
    return plt.subplots(layout="constrained")[1]


def _components(nest, leading):
    """All components of all leaves along a last axis."""
    leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(nest)]
    return np.concatenate([leaf.reshape(*leaf.shape[:leading], -1) for leaf in leaves], axis=-1)


def _names(labels, count):
    names = [f"y[{k}]" for k in range(count)] if labels is None else list(labels)
    if len(names) != count:
        raise ValueError(f"`labels` must name {count} components. Received: {names}")
    return names


def _finish(ax, t, data):
    if data is not None:
        points = _components(data, 1)
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
