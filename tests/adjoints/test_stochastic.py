"""Gradients of stochastic solves, path by path: the noise is drawn again on the way back."""

import math
import re

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


NOISES = {
    "diagonal": lambda t, y, p, v: p[1] * tf.cos(y) + 0.1 * v,
    "general": lambda t, y, p, v: tf.stack([p[1] * tf.cos(y), 0.3 * y, 0.1 * v + 0.0 * y], -1),
}
# On every grid below; the start and one time twice among them.
SAVES = [0.0, 0.25, 0.5, 0.5, 1.0]


class Swinging:
    """A loss with gradients to the state, parameters, a closed-over tensor and a variable."""

    def __init__(self, noise="diagonal", interpretation="stratonovich"):
        self.noise, self.interpretation = noise, interpretation
        self.variable = tf.Variable(1.3, dtype=tf.float64)
        self.y0 = tf.constant(np.linspace(0.5, 1.5, 8).reshape(4, 2))
        self.p = tf.constant([0.7, 0.5], tf.float64)
        self.closed = tf.constant(0.2, tf.float64)

    def problem(self, y0, p, closed):
        def f(t, y, p):
            return p[0] * tf.sin(y) + closed * tf.cos(t)[..., None]

        def g(t, y, p):
            return NOISES[self.noise](t, y, p, self.variable)

        return nde.SDEProblem(
            f, g, y0, (0.0, 1.0), p, noise=self.noise, interpretation=self.interpretation
        )

    def program(self, adjoint, solver, jit=True, **keywords):
        """From the step size to all gradients, in one row."""

        @tf.function(jit_compile=jit, autograph=False)
        def run(dt0, y0, p, closed):
            with tf.GradientTape() as tape:
                tape.watch([y0, p, closed])
                step = {"dt0": dt0, "controller": "constant"}
                y = nde.solve(
                    self.problem(y0, p, closed), solver, batch_ndims=1, seed=3, adjoint=adjoint,
                    **(step | keywords),
                ).y  # fmt: skip
                loss = tf.reduce_sum(y * y)
            bars = tape.gradient(loss, [y0, p, closed, self.variable])
            return tf.concat([tf.reshape(bar, [-1]) for bar in bars], 0)

        return run

    def gradients(self, adjoint, solver, **keywords):
        """The same once, for a step size that is known when the program is built."""
        program = self.program(adjoint, solver, **keywords)
        return program(tf.constant(0.0, tf.float64), self.y0, self.p, self.closed).numpy()


@pytest.mark.parametrize("noise", NOISES)
def test_undone_steps_give_the_discrete_gradient(noise):
    swinging = Swinging(noise)
    fixed = {"saveat": SAVES, "dt0": 1 / 64, "checkpoints": 4}
    exact = swinging.gradients("discrete", "reversible_heun", **fixed)
    undone = swinging.gradients("reversible", "reversible_heun", **fixed)
    np.testing.assert_allclose(undone, exact, rtol=1e-12)
    if noise == "diagonal":
        plain = swinging.gradients("reversible", "reversible_heun", jit=False, **fixed)
        np.testing.assert_allclose(plain, exact, rtol=1e-12)


def test_undone_steps_need_no_memory_of_them():
    """One program for any number of steps; none of its arrays holds more than a few states."""
    swinging = Swinging()
    programs = {
        name: swinging.program(name, "reversible_heun") for name in ("discrete", "reversible")
    }
    arguments = swinging.y0, swinging.p, swinging.closed
    for steps in (10, 1000):
        dt0 = tf.constant(1 / steps, tf.float64)
        exact, undone = (program(dt0, *arguments) for program in programs.values())
        np.testing.assert_allclose(undone, exact, rtol=1e-10)
    largest = {}
    for name, program in programs.items():
        assert program.experimental_get_tracing_count() == 1
        text = program.experimental_get_compiler_ir(dt0, *arguments)(stage="optimized_hlo")
        shapes = re.findall(r"f64\[([0-9,]+)\]", text)
        largest[name] = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    state = 2 * tf.size(swinging.y0).numpy()
    assert largest["reversible"] <= 4 * state
    # Checkpoints and the record of a segment, but no noise of a thousand steps.
    assert 64 * state <= largest["discrete"] <= 128 * state


def test_rows_that_end_early_or_fail_are_undone_too():
    ends, y0 = np.array([1.0, 0.3, 1.0]), tf.constant([[0.5], [0.7], [9.0]], tf.float64)
    bars = []
    for adjoint in ("discrete", "reversible", "backsolve"):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            problem = nde.SDEProblem(
                lambda t, y, p: y * y - y, lambda t, y, p: 0.1 * y, y0, (0.0, ends),
                interpretation="stratonovich",
            )  # fmt: skip
            solver = "stochastic_heun" if adjoint == "backsolve" else "reversible_heun"
            y = nde.solve(
                problem, solver, dt0=1 / 256, controller="constant", batch_ndims=1, seed=1,
                adjoint=adjoint, throw=False,
            ).y  # fmt: skip
            loss = tf.reduce_sum(tf.where(tf.math.is_finite(y), y, 0.0))
        assert np.isnan(y[2, 0]) and np.all(np.isfinite(y[:2]))
        bars.append(tape.gradient(loss, y0).numpy())
    assert bars[0][2, 0] == 0.0
    np.testing.assert_allclose(bars[1], bars[0], rtol=1e-12)
    np.testing.assert_allclose(bars[2], bars[0], rtol=1e-3)


@pytest.mark.parametrize(
    ("noise", "solver"),
    [
        pytest.param("diagonal", "sosri", marks=pytest.mark.slow),
        ("general", "stochastic_heun"),
    ],
)
def test_forward_mode_gives_the_same_numbers(noise, solver):
    adaptive = solver == "sosri"
    swinging = Swinging(noise, "ito" if adaptive else "stratonovich")
    # Save points off every grid for adaptive steps.
    steps = {"dt0": None, "controller": None, "saveat": [0.0, 0.31, 1.0]} if adaptive else {}
    steps = {"saveat": SAVES, "dt0": 1 / 16} | steps
    exact = swinging.gradients("discrete", solver, **steps)
    np.testing.assert_allclose(swinging.gradients("forward", solver, **steps), exact, rtol=1e-11)


@pytest.mark.parametrize("noise", ["diagonal", pytest.param("general", marks=pytest.mark.slow)])
def test_backsolve_converges_to_the_discrete_gradient(noise):
    """On the same paths: each gradient is one of the same path's exact solution, and an error."""
    swinging = Swinging(noise)
    programs = [swinging.program(name, "stochastic_heun") for name in ("discrete", "backsolve")]
    errors = []
    for steps in (32, 128, 512, 2048):
        dt0 = tf.constant(1 / steps, tf.float64)
        exact, found = (run(dt0, swinging.y0, swinging.p, swinging.closed) for run in programs)
        errors.append(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    order = -np.polyfit(np.log([32, 128, 512, 2048]), np.log(errors), 1)[0]
    # Noises that do not commute cost Heun's method half an order.
    least = 0.85 if noise == "diagonal" else 0.4
    assert order > least and errors[-1] < (1e-4 if noise == "diagonal" else 5e-3), errors


def test_backsolve_takes_up_save_points():
    swinging = Swinging()
    fixed = {"saveat": SAVES, "dt0": 1 / 1024}
    exact = swinging.gradients("discrete", "stochastic_heun", **fixed)
    found = swinging.gradients("backsolve", "stochastic_heun", **fixed)
    np.testing.assert_allclose(found, exact, rtol=2e-3)


def test_what_is_refused():
    heun = {"controller": "constant", "dt0": 0.1}
    stratonovich = {"interpretation": "stratonovich"}
    for solver, equation, keywords, words in (
        ("sosri", {}, {"dense": True}, "dense"),
        ("sosri", {}, {"adjoint": "interpolating"}, "has the gradients.*Received"),
        ("sosri", {}, {"adjoint": "backsolve"}, "Stratonovich.*Received: interpretation='ito'"),
        ("sosri", {}, {"adjoint": "reversible"}, "needs the solver 'reversible_heun'.*'sosri'"),
        ("stochastic_heun", stratonovich, heun | {"adjoint": "backsolve", "saveat": 0.55}, "grid"),
        ("reversible_heun", stratonovich, heun | {"adjoint": "reversible", "saveat": 0.55}, "grid"),
    ):
        problem = geometric(tf.constant(RATES), start(), **equation)
        with pytest.raises(ValueError, match=words), tf.GradientTape() as tape:
            tape.watch(problem.p)
            nde.solve(problem, solver, batch_ndims=1, seed=1, **keywords)
    recorded = np.linspace(0.0, 1.0, 11)
    problem = geometric(tf.constant(RATES), start(), **stratonovich)
    with pytest.raises(ValueError, match="controller='constant'"), tf.GradientTape() as tape:
        tape.watch(problem.p)
        nde.solve(
            problem, "reversible_heun", batch_ndims=1, seed=1, steps=recorded, adjoint="reversible"
        )
    with pytest.raises(ValueError, match="needs the solver 'reversible_heun'.*'tsit5'"):
        ordinary = nde.ODEProblem(lambda t, y, p: -y, tf.ones(2), (0.0, 1.0))
        with tf.GradientTape() as tape:
            tape.watch(ordinary.y0)
            nde.solve(ordinary, adjoint="reversible")
