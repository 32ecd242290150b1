"""Gradients of stochastic solves, path by path: the noise is drawn again on the way back."""

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde

ROWS, STEPS = 5, 16
GRID = {"dt0": 1.0 / STEPS, "controller": "constant", "batch_ndims": 1, "seed": 21}
RATES = np.array([0.7, 0.5])


def geometric(p, y0, **keywords):
    """dx = a x dt + b x dW with w beside it."""

    def f(t, y, p):
        return tf.stack([p[0] * y[..., 0], tf.zeros_like(y[..., 1])], -1)

    def g(t, y, p):
        return tf.stack([p[1] * y[..., 0], tf.ones_like(y[..., 1])], -1)

    return nde.SDEProblem(f, g, y0, (0.0, 1.0), p, noise="scalar", **keywords)


def start():
    return tf.constant(np.stack([np.linspace(0.5, 1.5, ROWS), np.zeros(ROWS)], 1))


def by_hand(jit):
    """Value and gradients of Σ x(T)² by the discrete adjoint."""

    def run(y0, p):
        with tf.GradientTape() as tape:
            tape.watch([y0, p])
            y = nde.solve(geometric(p, y0), "euler_maruyama", checkpoints=2, **GRID).y
            loss = tf.reduce_sum(y[:, 0] ** 2)
        return y, *tape.gradient(loss, [y0, p])

    if jit is not None:
        run = tf.function(run, jit_compile=jit, autograph=False)
    return run(start(), tf.constant(RATES))


@pytest.mark.parametrize("jit", [None, True, False])
def test_against_the_recursion(jit):
    """Euler's path is y0 Π (1 + a h + b ΔW_k): its derivatives are sums over the steps."""
    y, y0_bar, p_bar = by_hand(jit)
    times = np.linspace(0.0, 1.0, STEPS + 1)
    path = nde.solve(geometric(RATES, start()), "euler_maruyama", saveat=times, **GRID)
    increments = np.diff(path.y[:, :, 1].numpy(), axis=0)
    h = 1.0 / STEPS
    factors = 1.0 + RATES[0] * h + RATES[1] * increments
    x0 = start().numpy()[:, 0]
    x = x0 * np.prod(factors, axis=0)
    np.testing.assert_allclose(y[:, 0], x, rtol=1e-12)
    np.testing.assert_allclose(y0_bar[:, 0], 2 * x * x / x0, rtol=1e-11)
    by_a = np.sum(2 * x * x * np.sum(h / factors, axis=0))
    by_b = np.sum(2 * x * x * np.sum(increments / factors, axis=0))
    np.testing.assert_allclose(p_bar, [by_a, by_b], rtol=1e-11)


@pytest.mark.parametrize(
    ("name", "interpretation"),
    [("sosri", "ito"), ("milstein", "ito"), ("stochastic_heun", "stratonovich"),
     ("milstein", "stratonovich"), ("reversible_heun", "stratonovich")],
)  # fmt: skip
def test_against_the_closed_form(name, interpretation):
    """x = x0 exp((a - b²/2) T + b W): dx/da = T x, dx/db = (W - b T) x, without b T for the other
    integral."""
    p, y0 = tf.constant(RATES), start()
    adaptive = {"rtol": 1e-5, "atol": 1e-5, "batch_ndims": 1, "seed": 21}
    keywords = adaptive if name == "sosri" else {**GRID, "dt0": 2.0**-10}
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([y0, p])
        problem = geometric(p, y0, interpretation=interpretation)
        y = nde.solve(problem, name, **keywords).y
        x = tf.unstack(y[:, 0])
    x0, w = y0.numpy()[:, 0], y.numpy()[:, 1]
    tolerance = 2e-3 if name == "sosri" else 0.03
    np.testing.assert_allclose(
        np.stack([tape.gradient(one, y0)[k, 0] for k, one in enumerate(x)]),
        y[:, 0] / x0, rtol=1e-9,
    )  # fmt: skip
    bars = np.stack([tape.gradient(one, p) for one in x])
    shift = RATES[1] if interpretation == "ito" else 0.0
    size = np.max(np.abs(x))
    np.testing.assert_allclose(bars[:, 0], x, atol=tolerance * size)
    np.testing.assert_allclose(bars[:, 1], (w - shift) * np.array(x), atol=tolerance * size)


@pytest.mark.parametrize("jit", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_closures_variables_and_save_points_of_adaptive_steps(jit):
    """Against differences of the same path on the same steps, with save points off every grid."""
    times = np.array([0.0, 0.31, 0.77, 1.0])
    y0 = tf.constant(np.linspace(0.5, 1.5, 6).reshape(3, 2))
    noise = tf.Variable([0.4, 0.6], dtype=tf.float64)

    def solve(y0, shift, p, steps=None):
        problem = nde.SDEProblem(
            lambda t, y, p: p * tf.sin(y) + shift,
            lambda t, y, p: noise * tf.cos(y) + 0.1,
            y0, (0.0, 1.0), p,
        )  # fmt: skip
        tolerances = {"rtol": 1e-2, "atol": 1e-2}
        return nde.solve(
            problem, "sosri", saveat=times, steps=steps, batch_ndims=1, seed=5, **tolerances
        )

    weights = np.array([0.3, 1.0, -0.7, 2.0])[:, None, None]

    @tf.function(jit_compile=jit, autograph=False)
    def gradients(y0, shift, p):
        sources = [y0, shift, p, noise]
        with tf.GradientTape() as tape:
            tape.watch(sources[:3])
            loss = tf.reduce_sum(weights * solve(y0, shift, p).y ** 2)
        return tape.gradient(loss, sources)

    shift, p = tf.constant(0.2, tf.float64), tf.constant(0.8, tf.float64)
    bars = gradients(y0, shift, p)
    steps = solve(y0, shift, p).steps

    def loss(y0, shift, p):
        return float(tf.reduce_sum(weights * solve(y0, shift, p, steps).y ** 2))

    eps = 1e-5
    for index, base in enumerate((y0, shift, p)):
        direction = np.ones(base.shape)
        arguments = [y0, shift, p]
        values = []
        for sign in (1, -1):
            arguments[index] = base + sign * eps * direction
            values.append(loss(*arguments))
        slope = (values[0] - values[1]) / (2 * eps)
        np.testing.assert_allclose(np.sum(bars[index]), slope, rtol=1e-6)
    values = []
    for sign in (1, -1):
        noise.assign([0.4 + sign * eps, 0.6])
        values.append(loss(y0, shift, p))
    np.testing.assert_allclose(bars[3][0], (values[0] - values[1]) / (2 * eps), rtol=1e-6)


def test_the_gradient_of_the_loss_of_a_failed_row_is_zero():
    y0 = tf.constant([[10.0], [0.1]], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        problem = nde.SDEProblem(lambda t, y, p: y * y, lambda t, y, p: 0.1 * y, y0, (0.0, 1.0))
        y = nde.solve(problem, "sosri", batch_ndims=1, seed=1, throw=False).y
        loss = tf.reduce_sum(tf.where(tf.math.is_finite(y), y, 0.0))
    bar = tape.gradient(loss, y0)
    assert bar[0, 0] == 0.0 and np.isfinite(bar[1, 0]) and bar[1, 0] > 1.0


@pytest.mark.parametrize("graph", [False, True])
def test_times_have_no_gradient(graph):
    end = tf.constant(1.0, tf.float64)

    def run(end):
        with tf.GradientTape() as tape:
            tape.watch(end)
            problem = geometric(RATES, start()).remake(t_span=(0.0, end))
            loss = tf.reduce_sum(nde.solve(problem, "sosri", batch_ndims=1, seed=1).y)
        return tape.gradient(loss, end)

    with pytest.raises(ValueError, match="t_span"):
        (tf.function(run, autograph=False) if graph else run)(end)


def test_other_adjoints_are_refused():
    for keywords, words in (({"adjoint": "backsolve"}, "discrete"), ({"dense": True}, "dense")):
        with pytest.raises(ValueError, match=words):
            nde.solve(geometric(RATES, start()), "sosri", batch_ndims=1, seed=1, **keywords)
