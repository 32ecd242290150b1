"""Randomised problems: an answer of the right shape, or a status that says why there is none."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import keras_neuralde as nde

MAX_STEPS = 300


def field(t, y, p):
    """Decay or growth, blow-up, forcing, and a root that has no value for negative states."""
    linear, square, forcing, root = tf.unstack(p)
    drive = forcing * tf.cos(3.0 * tf.reshape(t, tf.concat([tf.shape(t), [1]], 0)))
    return linear * y + square * y * y + drive + tf.where(root > 0, root * tf.sqrt(y), 0.0 * y)


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled; everything else is drawn.

    Attributes:
        solver: its name.
        batch: the shape of the batch axes.
        dtype: of state and times.
        saves: "none", "scalar", "shared" or "per_sample".
        keywords: further keywords of `solve`.
    """

    solver: str
    batch: tuple
    dtype: str
    saves: str
    keywords: tuple = ()


PROGRAMS = (
    Program("tsit5", (), "float64", "shared"),
    Program("tsit5", (3,), "float32", "per_sample"),
    Program("bosh3", (2, 2), "float64", "scalar", (("step_control", "joint"),)),
    Program("rk4", (3,), "float32", "none", (("controller", "constant"), ("dt0", 0.1))),
    Program("rosenbrock23", (3,), "float64", "shared"),
    Program("kvaerno3", (2,), "float32", "none"),
)
STATE, TIMES = 2, 3

numbers = st.floats(-3.0, 3.0).map(lambda x: round(x, 6))
coefficients = st.tuples(
    st.one_of(numbers, st.sampled_from([0.0, -1e4, 40.0])),
    st.one_of(st.just(0.0), numbers),
    st.one_of(st.just(0.0), numbers),
    st.sampled_from([0.0, 0.0, 1.0]),
)
lengths = st.one_of(
    st.just(0.0), st.floats(1e-6, 10.0), st.sampled_from([1e-9, 1e3]), st.floats(-10.0, -1e-6)
)
tolerances = st.sampled_from([1e-2, 1e-4, 1e-6])


@settings(
    max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(
    st.sampled_from(PROGRAMS), coefficients, st.lists(numbers, min_size=8, max_size=8), numbers,
    lengths, tolerances, st.lists(st.floats(0.0, 1.0), min_size=9, max_size=9),
)  # fmt: skip
@pytest.mark.slow
def test_an_answer_or_a_status(program, p, y0, t0, length, rtol, shares):
    shape = (*program.batch, STATE)
    y0 = np.resize(np.array(y0, program.dtype), shape)
    t0, t1 = np.array([t0, t0 + length], program.dtype)
    saveat, times = draw_times(program, t0, t1, shares)
    # A grid of equal steps must not be finer than the limit of steps for every length.
    keywords = dict(program.keywords)
    problem = nde.ODEProblem(field, y0, (t0, t1), np.array(p, program.dtype))
    sol = nde.solve(
        problem, program.solver, saveat=saveat, rtol=rtol, atol=rtol, max_steps=MAX_STEPS,
        batch_ndims=len(program.batch), throw=False, **keywords,
    )  # fmt: skip
    assert sol.y.shape == (*times, *shape) and sol.y.dtype.name == program.dtype
    assert sol.status.shape == program.batch == sol.stats.num_steps.shape
    status, y = sol.status.numpy(), sol.y.numpy()
    for code in np.unique(status):
        assert len(nde.Status(code).message) > 5
    # NaN where there is a reason, and nowhere else.
    axes = (*range(len(times)), y.ndim - 1)
    assert np.array_equal(np.isfinite(y).all(axes), status == 0)
    assert np.array_equal(np.isnan(y).all(axes), status != 0)
    stats = sol.stats
    steps = stats.num_accepted + stats.num_rejected
    assert np.array_equal(steps, stats.num_steps) and np.all(stats.num_steps <= MAX_STEPS)
    if not any(p[1:]) and times == () and rtol <= 1e-4:
        check_decay(program, p[0], y0, t1 - t0, rtol, y, status)


def draw_times(program, t0, t1, shares):
    """`saveat`, and the leading shape of its answer."""
    inside = np.sort(np.array(shares)) * (np.float64(t1) - np.float64(t0)) + np.float64(t0)
    inside = np.clip(inside, min(t0, t1), max(t0, t1)).astype(program.dtype)
    if program.saves == "none":
        return None, ()
    if program.saves == "scalar":
        return inside[4], ()
    if program.saves == "shared":
        return inside[::TIMES], (TIMES,)
    grid = inside.reshape(TIMES, TIMES)
    return np.resize(grid, (*program.batch, TIMES)), (TIMES,)


def check_decay(program, rate, y0, length, rtol, y, status):
    """A linear equation whose exact solution is known."""
    if program.solver == "rk4" or abs(rate * length) > 2.0 or status.any():
        return
    exact = y0 * np.exp(rate * length)
    assert np.all(np.abs(y - exact) <= 50 * rtol * (1.0 + np.abs(exact)))
