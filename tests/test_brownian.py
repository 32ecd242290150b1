"""Brownian paths: the law, the consistency of all queries, and the same bits everywhere."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from keras_neuralde.brownian import BrownianPath, CutGridPath, Increment, philox

ROWS = 40_000
SEED = tf.constant([11, 5])
DTYPES = [tf.float32, tf.float64]


def path(dtype=tf.float64, rows=ROWS, span=(0.0, 1.0), first=0, components=2, **keywords):
    ends = [tf.fill([rows], tf.constant(t, dtype)) for t in span]
    return BrownianPath(SEED, tf.range(first, first + rows), components, *ends, **keywords)


def ask(path, t, t_next, dtype=tf.float64, rows=ROWS, jit=False):
    key = id(path), jit
    if key not in queries:
        queries[key] = path, tf.function(path, jit_compile=jit, autograph=False)
    times = [tf.fill([rows], tf.constant(value, dtype)) for value in (t, t_next)]
    return Increment(*(values.numpy() for values in queries[key][1](*times)))


queries: dict = {}


def normal(sample, variance):
    """The p-value of the hypothesis that the sample is N(0, variance)."""
    return stats.kstest(np.ravel(sample) / np.sqrt(variance), "norm").pvalue


def integral(increment, h):
    return h * (0.5 * increment.w + increment.area)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
@pytest.mark.parametrize("jit", [True, False])
def test_philox_known_answers(counter, key, expected, jit):
    """The vectors that the authors of Philox published with Random123."""
    words = [tf.constant([word], tf.uint32) for word in counter]
    keys = [tf.constant([word], tf.uint32) for word in key]
    compiled = tf.function(philox, jit_compile=jit, autograph=False)
    assert [int(word[0]) for word in compiled(keys, words)] == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("span", [(0.0, 1.0), (-2.0, 1.5)])
def test_law_on_the_tree(dtype, span):
    whole = path(dtype, span=span)
    pieces = [(span[0], 0.1), (0.1, 0.1003), (0.1003, 0.75), (0.75, span[1])]
    sample = [ask(whole, a, b, dtype) for a, b in pieces]
    for (a, b), increment in zip(pieces, sample, strict=True):
        assert normal(increment.w, b - a) > 1e-3
        # In float32 the times themselves are that coarse.
        assert normal(increment.area, (b - a) / 12) > 1e-3
    columns = [values[:, k] for increment in sample for values in increment for k in range(2)]
    correlations = np.corrcoef(columns) - np.eye(16)
    assert np.max(np.abs(correlations)) < 5 / np.sqrt(ROWS)


def test_negative_controls():
    """The tests above can tell a wrong law."""
    whole = path()
    left, right = ask(whole, 0.0, 0.5), ask(whole, 0.5, 1.0)
    assert normal(left.w, 0.48) < 1e-3
    assert normal(left.area, 0.5 / 10) < 1e-3
    # A second half that is drawn anew instead of from the path has the wrong total.
    other = ask(path(first=ROWS), 0.0, 1.0)
    assert normal(other.w - left.w, 0.5) < 1e-3 < normal(right.w, 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_law_on_a_grid(dtype):
    grid = path(dtype, cell=tf.constant(0.25, dtype), split=False)
    sample = [ask(grid, k / 4, (k + 1) / 4, dtype) for k in range(4)]
    for increment in sample:
        assert normal(increment.w, 0.25) > 1e-3
        assert normal(increment.area, 0.25 / 12) > 1e-3
    columns = [values[:, k] for increment in sample for values in increment for k in range(2)]
    assert np.max(np.abs(np.corrcoef(columns) - np.eye(16))) < 5 / np.sqrt(ROWS)


@pytest.mark.parametrize("cell", [None, 0.3])
def test_increments_and_areas_add_up(cell):
    whole = path(cell=None if cell is None else tf.constant(cell, tf.float64))
    a, b, c = 0.6, 0.7123, 0.9
    first, second, both = ask(whole, a, b), ask(whole, b, c), ask(whole, a, c)
    np.testing.assert_allclose(first.w + second.w, both.w, atol=1e-14)
    sum_of_parts = integral(first, b - a) + (c - b) * first.w + integral(second, c - b)
    np.testing.assert_allclose(sum_of_parts, integral(both, c - a), atol=1e-14)


@pytest.mark.parametrize("x", [0.5, 0.3])
def test_conditional_law_inside_an_interval(x):
    """W(x) given the increment and the area of the whole is N(x w + 6x(1-x) H, ...)."""
    whole = path()
    w, area = ask(whole, 0.0, 1.0)
    part = ask(whole, 0.0, x).w
    y = 1 - x
    rest = part - x * w - 6 * x * y * area
    variance = x * y * (1 - 3 * x * y)
    assert normal(rest, variance) > 1e-3 > normal(part - x * w, variance)
    for known in (w, area):
        assert abs(np.corrcoef(np.ravel(rest), np.ravel(known))[0, 1]) < 5 / np.sqrt(2 * ROWS)


def test_many_queries_make_one_brownian_motion():
    """Quadratic variation and law of increments between arbitrary times of one path."""
    times = np.sort(np.random.default_rng(0).uniform(size=2001))
    once = path(rows=2000, components=1, span=(0.0, 1.0))
    # The same trajectory 2000 times, asked for another interval in each row.
    once._trajectory = tf.zeros_like(once._trajectory)
    w, area = once(tf.constant(times[:-1]), tf.constant(times[1:]))
    h = np.diff(times)
    assert normal(w[:, 0] / np.sqrt(h), 1.0) > 1e-3
    assert normal(area[:, 0] / np.sqrt(h / 12), 1.0) > 1e-3
    np.testing.assert_allclose(np.sum(np.square(w)), times[-1] - times[0], rtol=0.15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_everywhere(dtype):
    """Compiled, plain, eager; in chunks; with the area or without it."""
    tolerance = {"rtol": 0, "atol": 3e-7 if dtype == tf.float32 else 1e-14}
    for keywords in ({}, {"cell": tf.constant(0.4, dtype)}):
        compiled = ask(path(dtype, rows=64, **keywords), 0.1, 0.37, dtype, 64, jit=True)
        plain = ask(path(dtype, rows=64, **keywords), 0.1, 0.37, dtype, 64)
        chunk = ask(path(dtype, rows=8, first=16, **keywords), 0.1, 0.37, dtype, 8)
        times = [tf.fill([64], tf.constant(t, dtype)) for t in (0.1, 0.37)]
        eager = path(dtype, rows=64, **keywords)(*times)
        for a, b, c, d in zip(compiled, plain, chunk, eager, strict=True):
            np.testing.assert_allclose(a, b, **tolerance)
            np.testing.assert_allclose(a[16:24], c, **tolerance)
            np.testing.assert_allclose(a, d, **tolerance)


def test_seeds_trajectories_and_components_differ():
    sample = [
        BrownianPath(tf.constant(seed), tf.constant([row]), 3, tf.zeros(1), tf.ones(1))(
            tf.zeros(1), tf.ones(1)
        ).w.numpy()
        for seed in ([0, 0], [1, 0], [0, 1])
        for row in (0, 1, 2)
    ]
    assert len(np.unique(sample)) == 27


def test_a_seed_of_each_trajectory():
    seeds = tf.constant([[3, 4], [5, 6]])
    ends = tf.zeros(2), tf.ones(2)
    both = BrownianPath(seeds, tf.constant([0, 0]), 2, *ends)(*ends).w
    one = BrownianPath(seeds[1], tf.constant([0]), 2, tf.zeros(1), tf.ones(1))
    np.testing.assert_array_equal(both[1:], one(tf.zeros(1), tf.ones(1)).w)


@pytest.mark.parametrize("keywords", [{}, {"cell": 0.25}, {"cell": 0.25, "split": False}])
def test_backwards_is_the_same_path(keywords):
    keywords = {k: tf.constant(v, tf.float64) if k == "cell" else v for k, v in keywords.items()}
    forwards = ask(path(rows=64, **keywords), 0.25, 0.5, rows=64)
    backwards = ask(path(rows=64, span=(1.0, 0.0), **keywords), 0.5, 0.25, rows=64)
    np.testing.assert_allclose(backwards.w, -forwards.w, atol=1e-14)
    np.testing.assert_allclose(backwards.area, forwards.area, atol=1e-14)


def test_cells_whole_or_split_are_the_same_path():
    cell = tf.constant(0.3, tf.float64)
    # The last cell is shorter.
    for a, b in ((0.0, 0.3), (0.6, 0.9), (0.9, 1.0)):
        split, whole = path(rows=64, cell=cell), path(rows=64, cell=cell, split=False)
        for x, y in zip(ask(split, a, b, rows=64), ask(whole, a, b, rows=64), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-13)


def test_no_time_no_noise():
    for keywords in ({}, {"cell": tf.constant(0.5, tf.float64), "split": False}):
        w, area = ask(path(rows=8, **keywords), 0.3, 0.3, rows=8)
        np.testing.assert_array_equal(w, 0.0)
        np.testing.assert_array_equal(area, 0.0)
    ends = tf.ones(3)
    w, area = BrownianPath(SEED, tf.range(3), 1, ends, ends)(ends, ends)
    np.testing.assert_array_equal(w, 0.0)
    np.testing.assert_array_equal(area, 0.0)


def test_areas_of_short_steps_in_float32():
    """No digits are lost to the length of the path before."""
    h = 2.0**-13
    increment = ask(path(tf.float32), 0.5 + 100 * h, 0.5 + 101 * h, tf.float32)
    assert normal(increment.area, h / 12) > 1e-3
    exact = ask(path(tf.float64), 0.5 + 100 * h, 0.5 + 101 * h)
    assert normal(exact.area, h / 12) > 1e-3


CELLS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])


@functools.cache
def cut(dtype, span, rows=ROWS, seed=3, jit=False):
    """A path on four cells, of which the first is cut twice in each row and the third once.

    Returns:
        The lengths of the intervals, `(intervals, rows)`, their `Increment`s, and those of whole
        cells.
    """
    first = np.sort(np.random.default_rng(seed).uniform(0.0, 0.25, (2, rows)), axis=0)
    third = np.random.default_rng(seed + 1).uniform(0.5, 0.75, (1, rows))
    times = [np.full((1, rows), end) for end in CELLS]
    times = np.concatenate([times[0], first, *times[1:3], third, *times[3:]])
    times = span[0] + (span[1] - span[0]) * times
    ends = [tf.fill([rows], tf.constant(t, dtype)) for t in span]
    # One cell is a quarter of the span.
    cell = tf.constant(abs(span[1] - span[0]) / 4, dtype)

    path = CutGridPath(SEED, tf.range(rows), 2, *ends, cell=cell)
    draw = tf.function(path.draw, jit_compile=jit, autograph=False)
    rest, found = path.begin(), []
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        increment, rest = draw(tf.constant(t, dtype), tf.constant(t_next, dtype), rest)
        found.append(increment)
    whole = BrownianPath(SEED, tf.range(rows), 2, *ends, cell=cell, split=False)
    grid = span[0] + (span[1] - span[0]) * CELLS
    cells = [
        whole(*(tf.fill([rows], tf.constant(t, dtype)) for t in pair))
        for pair in zip(grid[:-1], grid[1:], strict=True)
    ]
    return np.abs(np.diff(times, axis=0)), found, cells


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("span", [(0.0, 1.0), (1.5, -2.0)])
def test_law_on_a_grid_that_is_cut(dtype, span):
    """All intervals are independent, and N(0, h) and N(0, h / 12); those of a cell make up it."""
    lengths, found, cells = cut(dtype, span)
    scaled = []
    for h, increment in zip(lengths, found, strict=True):
        w = increment.w.numpy() / np.sqrt(h)[:, None]
        area = increment.area.numpy() / np.sqrt(h / 12.0)[:, None]
        assert normal(w, 1.0) > 1e-3 and normal(area, 1.0) > 1e-3
        # Laws that are nearly right are told apart, and so is a chord instead of a bridge.
        assert normal(w, 1.1) < 1e-3 and normal(area, 1.1) < 1e-3
        scaled += [w[:, 0], w[:, 1], area[:, 0], area[:, 1]]
    chord = (
        cells[0].w.numpy() * lengths[0][:, None] / (lengths[0] + lengths[1] + lengths[2])[:, None]
    )
    assert normal(chord / np.sqrt(lengths[0])[:, None], 1.0) < 1e-3
    count = len(scaled)
    off = np.corrcoef(scaled) - np.eye(count)
    assert np.max(np.abs(off)) < 5 / np.sqrt(ROWS)
    # Not only uncorrelated: neither are squares, which a law with the wrong mixture would show.
    off = np.corrcoef(np.square(scaled)) - np.eye(count)
    assert np.max(np.abs(off)) < 5.5 / np.sqrt(ROWS)
    # The first cell again from its three parts, and the third from two.
    for cell, parts in ((0, (0, 1, 2)), (1, (3,)), (2, (4, 5)), (3, (6,))):
        w = area = 0.0
        size = sum(lengths[k] for k in parts)[:, None]
        sign = 1.0 if span[1] > span[0] else -1.0
        for k in parts:
            h = lengths[k][:, None] * sign
            area += h * (w + 0.5 * found[k].w + found[k].area)
            w += found[k].w
        tolerance = 1e-5 if dtype == tf.float32 else 1e-13
        np.testing.assert_allclose(w, cells[cell].w, atol=tolerance)
        mean = area / (sign * size) - 0.5 * w
        np.testing.assert_allclose(mean, cells[cell].area, atol=tolerance)


def test_a_cell_drawn_anew_at_a_cut_is_told_apart():
    """The negative control of the sums above."""
    lengths, found, cells = cut(tf.float64, (0.0, 1.0))
    other = cut(tf.float64, (0.0, 1.0), seed=8)[1]
    wrong = found[0].w + other[1].w + found[2].w - cells[0].w
    assert np.max(np.abs(wrong)) > 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_grid_that_is_cut_is_the_same_everywhere(dtype):
    plain, compiled = (cut(dtype, (0.0, 1.0), rows=64, jit=jit)[1] for jit in (False, True))
    for a, b in zip(plain, compiled, strict=True):
        tolerance = 3e-7 if dtype == tf.float32 else 1e-14
        np.testing.assert_allclose(a.w, b.w, rtol=0, atol=tolerance)
        np.testing.assert_allclose(a.area, b.area, rtol=0, atol=tolerance)


def test_rows_that_rest_keep_what_is_left():
    one, half = tf.ones(2, tf.float64), tf.constant([0.4, 0.4], tf.float64)
    path = CutGridPath(SEED, tf.constant([5, 5]), 1, 0.0 * one, one, tf.constant(1.0, tf.float64))
    first, rest = path.draw(0.0 * one, half, path.begin())
    pause, later = path.draw(half, tf.constant([0.4, 0.7], tf.float64), rest)
    assert float(pause.w[0, 0]) == float(pause.area[0, 0]) == 0.0
    for old, new in zip(rest, later, strict=True):
        np.testing.assert_array_equal(old[..., 0], new[..., 0])
    last, rest = path.draw(tf.constant([0.4, 0.7], tf.float64), one, later)
    np.testing.assert_allclose(first.w[0] + last.w[0], first.w[1] + pause.w[1] + last.w[1])
    np.testing.assert_array_equal(rest.w, 0.0)
    with pytest.raises(NotImplementedError, match="draw"):
        path(half, one)
