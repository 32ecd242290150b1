"""Delay equations: exact solutions, discontinuities, gradients, and what is refused."""

import math

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde

TIGHT = {"rtol": 1e-11, "atol": 1e-12}


def one(t, p):
    """The constant past 1 of a scalar, or of a batch of scalars."""
    return tf.ones_like(t)


def delayed_decay(t, y, h, p):
    """y' = -y(t - 1)."""
    return -h(t - 1.0)


def delayed_decay_solution(t):
    """From a past of 1, by steps: Σ_k (-1)^k (t - k + 1)^k / k!, k to ⌊t⌋ + 1."""
    terms = range(math.floor(t) + 2)
    return sum((-1) ** k * (t - k + 1) ** k / math.factorial(k) for k in terms)


def two_lags(t, y, h, p):
    return -h(t - 1 / 3) - h(t - 1 / 5)


def two_lags_solution(t):
    """From 1 with a past of 0: the series of 1 / (s + e^(-s/3) + e^(-s/5)), its transform."""
    total = 0.0
    for n in range(6 * math.ceil(t) + 2):
        for j in range(n + 1):
            since = t - j / 3 - (n - j) / 5
            if since > 0 or n == 0:
                total += (-1) ** n * math.comb(n, j) * since**n / math.factorial(n)
    return total


def float64(value):
    return tf.constant(value, tf.float64)


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_one_lag_has_its_closed_form_forwards_and_backwards(direction):
    def f(t, y, h, p):
        return -direction * h(t - direction * 1.0)

    problem = nde.DDEProblem(f, float64(1.0), one, (0.0, direction * 4.0), lags=[1.0])
    times = np.linspace(0.0, 4.0, 9)
    sol = nde.solve(problem, saveat=direction * times, **TIGHT)
    np.testing.assert_allclose(sol.y, [delayed_decay_solution(t) for t in times], atol=1e-13)
    ends = set(np.abs(sol.steps.numpy()))
    assert {1.0, 2.0, 3.0, 4.0} <= ends  # every kink ends a step


def test_a_jump_at_the_start_and_two_lags():
    problem = nde.DDEProblem(
        two_lags, float64(1.0), lambda t, p: tf.zeros_like(t), (0.0, 1.0), lags=[1 / 3, 1 / 5]
    )
    times = np.linspace(0.0, 1.0, 21)
    sol = nde.solve(problem, saveat=times, **TIGHT)
    np.testing.assert_allclose(sol.y, [two_lags_solution(t) for t in times], atol=1e-10)
    for stop in (1 / 5, 1 / 3, 2 / 5, 8 / 15, 2 / 3):
        assert np.nanmin(np.abs(sol.steps.numpy() - stop)) < 1e-15


def test_a_state_dependent_lag_that_vanishes():
    """y1 = ln t, y2 = 1/t; the lag t - exp(1 - y2) is zero at t = 1."""

    def f(t, y, h, p):
        late = tf.exp(1.0 - y[1])
        return tf.stack([y[1], -h(late)[1] * y[1] ** 2 * late])

    def past(t, p):
        return tf.stack([tf.math.log(t), 1 / t])

    start = float64([math.log(0.1), 10.0])
    lag = lambda t, y, p: t - tf.exp(1.0 - y[1])  # noqa: E731
    problem = nde.DDEProblem(f, start, past, (0.1, 5.0), lags=[lag])
    sol = nde.solve(problem, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(sol.y, [math.log(5.0), 0.2], atol=2e-7)


def delayed_lotka_volterra(t, y, h, p):
    a, b, c, d = tf.unstack(p)
    x, z = tf.unstack(y)
    return tf.stack([(a - b * z) * h(t - 0.1)[0], (c * x - d) * z])


def test_delayed_lotka_volterra_with_a_lag_shorter_than_its_steps():
    problem = nde.DDEProblem(
        delayed_lotka_volterra, float64([1.0, 1.0]), lambda t, p: tf.ones(2, tf.float64),
        (0.0, 10.0), float64([2.2, 1.0, 2.0, 0.4]), lags=[0.1],
    )  # fmt: skip
    sol = nde.solve(problem, **TIGHT)
    np.testing.assert_allclose(sol.y, [1.2133701191, 3.4159429442], atol=2e-10)

    def loss(p):
        y = nde.solve(problem.remake(p=p), saveat=np.linspace(0.0, 10.0, 101), **TIGHT).y
        return tf.reduce_sum((y - 1.0) ** 2)

    with tf.GradientTape() as tape:
        tape.watch(problem.p)
        value = loss(problem.p)
    # Computed independently to more digits.
    np.testing.assert_allclose(value, 369.979205085226527, rtol=1e-9)
    expected = [331.171448972, -743.736809413, 12.1073306338, 639.636305691]
    np.testing.assert_allclose(tape.gradient(value, problem.p), expected, rtol=1e-8)

    loose = nde.solve(problem, rtol=1e-4, atol=1e-6)
    assert np.nanmax(np.diff(loose.steps)) > 0.2
    np.testing.assert_allclose(loose.y, [1.2133701191, 3.4159429442], rtol=2e-2)


def mackey_glass(t, y, h, p):
    late = h(t - 14.0)
    return 0.2 * late / (1.0 + late**10) - 0.1 * y


def mackey_glass_by_fixed_steps(h=0.02):
    """At t = 500, by the classical Runge-Kutta method and Hermite interpolation of the past."""
    n, late = round(500 / h), round(14 / h)
    y, slope = [0.5], []

    def rate(now, past):
        return 0.2 * past / (1 + past**10) - 0.1 * now

    def at(i, half):
        i -= late
        if i < 0:
            return 0.5
        if not half:
            return y[i]
        # The slope at the right end of a step is the next one's.
        return (y[i] + y[i + 1]) / 2 + h / 8 * (slope[i] - slope[i + 1])

    for i in range(n):
        a, b, c = at(i, False), at(i, True), at(i + 1, False)
        k1 = rate(y[i], a)
        slope.append(k1)
        k2 = rate(y[i] + h / 2 * k1, b)
        k3 = rate(y[i] + h / 2 * k2, b)
        k4 = rate(y[i] + h * k3, c)
        y.append(y[i] + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    return y[-1]


def test_mackey_glass_to_500():
    problem = nde.DDEProblem(
        mackey_glass, float64(0.5), lambda t, p: tf.fill(tf.shape(t), float64(0.5)), (0.0, 500.0),
        lags=[14.0],
    )  # fmt: skip
    sol = nde.solve(problem, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(sol.y, mackey_glass_by_fixed_steps(), atol=1e-7)


def test_rows_have_their_own_steps_lags_and_pasts():
    lags = float64([1.0, 0.5, 0.25])

    def f(t, y, h, p):
        return -h(t - p)

    problem = nde.DDEProblem(
        f, tf.ones(3, tf.float64), one, (0.0, tf.constant([2.0, 1.0, 0.5], tf.float64)), lags,
        lags=[lags],
    )  # fmt: skip
    sol = nde.solve(problem, batch_ndims=1, **TIGHT)
    for row, (lag, end) in enumerate([(1.0, 2.0), (0.5, 1.0), (0.25, 0.5)]):
        alone = nde.DDEProblem(f, float64(1.0), one, (0.0, end), float64(lag), lags=[float64(lag)])
        same = nde.solve(alone, **TIGHT)
        np.testing.assert_allclose(sol.y[row], same.y, atol=1e-12)
        assert sol.stats.num_steps[row] == same.stats.num_steps
    np.testing.assert_allclose(sol.y[0], delayed_decay_solution(2.0), atol=1e-12)


class Learned:
    """A problem in which everything that can have a gradient has one, and its loss."""

    values = (
        float64([1.0, 1.2]), float64([1.2, 1.0, 0.9, 0.7]), float64([1.1, 0.8]), float64(0.45),
        float64(0.1), float64(3.0),
    )  # fmt: skip

    @staticmethod
    def f(t, y, h, p):
        a = p["a"]
        x, z = tf.unstack(y)
        late, later = h(t - p["lag"])[0], h(t - 1.3)[1]
        return tf.stack([(a[0] - a[1] * later) * late, (a[2] * x - a[3]) * z])

    @staticmethod
    def past(t, p):
        # Not y0 at the start, so that the solution jumps there.
        return p["past"] * tf.stack([tf.cos(0.3 * t), tf.exp(0.2 * t)])

    @classmethod
    def loss(cls, y0, a, past, lag, t0, t1):
        p = {"a": a, "past": past, "lag": lag}
        problem = nde.DDEProblem(cls.f, y0, cls.past, (t0, t1), p, lags=[lag, 1.3])
        y = nde.solve(problem, saveat=tf.stack([0.5 * t1, t1]), **TIGHT).y
        return tf.reduce_sum(y * float64([1.0, 2.0]))


def test_gradients_of_state_parameters_past_lag_and_times():
    values = Learned.values
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = Learned.loss(*values)
    gradient = tape.gradient(loss, values)

    for i, value in enumerate(values):
        flat = tf.reshape(value, [-1])
        for j in range(flat.shape[0]):
            sides = []
            for step in (1e-5, -1e-5):
                moved = tf.reshape(tf.tensor_scatter_nd_add(flat, [[j]], [step]), value.shape)
                sides.append(Learned.loss(*values[:i], moved, *values[i + 1 :]))
            expected = (sides[0] - sides[1]) / 2e-5
            np.testing.assert_allclose(
                tf.reshape(gradient[i], [-1])[j], expected, rtol=1e-5, atol=1e-6
            )


def sawtooth(t, y, h, p):
    """y' = -p0 y'(t - p1)."""
    return -p[0] * h(t - p[1], derivative=True)


def sawtooth_solution(rate, lag, slope):
    """From the past 1 + slope t, at t = 3.5, inside the fourth lag."""
    slopes = [-rate * slope * (-rate) ** k for k in range(4)]
    return 1.0 + lag * sum(slopes[:3]) + (3.5 - 3 * lag) * slopes[3]


def test_a_neutral_equation_jumps_after_every_lag():
    """A low-order method, so that the jumps go on past its order; with all gradients."""

    def solve(rate, lag, slope):
        problem = nde.DDEProblem(
            sawtooth, float64(1.0), lambda t, p: 1.0 + p[2] * t, (0.0, 3.5),
            tf.stack([rate, lag, slope]), lags=[lag],
        )  # fmt: skip
        return nde.solve(problem, "heun", rtol=1e-8, atol=1e-8)

    values = float64(0.8), float64(0.9), float64(1.5)
    with tf.GradientTape() as tape:
        tape.watch(values)
        sol = solve(*values)
    np.testing.assert_allclose(sol.y, sawtooth_solution(*(v.numpy() for v in values)), rtol=1e-12)
    for stop in (0.9, 1.8, 2.7):
        assert np.nanmin(np.abs(sol.steps.numpy() - stop)) < 1e-14
    found = tape.gradient(sol.y, values)
    for i, bar in enumerate(found):
        sides = []
        for step in (1e-5, -1e-5):
            moved = [float(v) + step * (i == j) for j, v in enumerate(values)]
            sides.append(sawtooth_solution(*moved))
        np.testing.assert_allclose(bar, (sides[0] - sides[1]) / 2e-5, rtol=1e-8)


def test_a_neutral_equation_with_a_smooth_solution():
    """y' = y'(t - 1/2)/2 + cos t - cos(t - 1/2)/2 has y = sin t; the past is differentiated too."""

    def f(t, y, h, p):
        return 0.5 * h(t - 0.5, derivative=True) + tf.cos(t) - 0.5 * tf.cos(t - 0.5)

    problem = nde.DDEProblem(f, float64(0.0), lambda t, p: tf.sin(t), (0.0, 3.0), lags=[0.5])
    sol = nde.solve(problem, "vern7", rtol=1e-10, atol=1e-12, saveat=[0.7, 3.0])
    np.testing.assert_allclose(sol.y, np.sin([0.7, 3.0]), atol=1e-8)


STIFF = float64([1e6, 3.0, 1.0])


def stiff_delay(p):
    """y' = -k (y - cos t) - sin t + c (y(t - lag) - cos(t - 1)), y = cos t where lag = 1."""

    def f(t, y, h, p):
        late = h(t - p[2]) - tf.cos(t - 1.0)
        return -p[0] * (y - tf.cos(t)) - tf.sin(t) + p[1] * late

    return nde.DDEProblem(f, float64(1.0), lambda t, p: tf.cos(t), (0.0, 5.0), p, lags=[p[2]])


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("rosenbrock23", 1e-4),
        pytest.param("kvaerno3", 1e-4, marks=pytest.mark.slow),
        pytest.param("rodas5p", 1e-6, marks=pytest.mark.slow),
    ],
)
def test_a_stiff_equation_with_a_delay(name, tolerance):
    """An explicit method would need a million steps; these take some of length 1."""
    inside = np.array([2.2, 5.0])
    sol = nde.solve(stiff_delay(STIFF), name, rtol=tolerance, atol=tolerance, saveat=inside)
    steps = sol.steps.numpy()
    steps = steps[np.isfinite(steps)]
    assert sol.stats.num_steps < 300
    # At the ends of steps, of which 5 is one, the tolerance holds.
    np.testing.assert_allclose(sol.y[1], np.cos(5.0), atol=tolerance)
    # Between them the interpolant says what it can, however small the error at the ends is: the
    # cubic one h⁴ θ²(1-θ)²/24, and an error e at an end is one of k e in the slope there. That of
    # rodas5p has order 4: ten times the tolerance in a step of length 1.
    i = np.searchsorted(steps, 2.2) - 1
    h = steps[i + 1] - steps[i]
    theta = (2.2 - steps[i]) / h
    cubic = h**4 / 24 * theta**2 * (1 - theta) ** 2
    ends = nde.solve(
        stiff_delay(STIFF), name, rtol=tolerance, atol=tolerance, saveat=steps[i : i + 2]
    )
    slopes = STIFF[0] * np.abs(ends.y - np.cos(steps[i : i + 2]))
    cubic += h * theta * (1 - theta) * ((1 - theta) * slopes[0] + theta * slopes[1])
    bound = {"kvaerno3": cubic, "rosenbrock23": tolerance, "rodas5p": 9.0 * tolerance}[name]
    assert abs(sol.y[0] - np.cos(2.2)) < float(bound) + tolerance


@pytest.mark.parametrize(
    ("name", "lag"),
    [
        ("tsit5", 0.93),
        pytest.param("rosenbrock23", 0.93, marks=pytest.mark.slow),
        pytest.param("rosenbrock23", 0.043, marks=pytest.mark.slow),
        pytest.param("kvaerno3", 0.43, marks=pytest.mark.slow),
    ],
)
def test_gradients_with_equal_steps_and_implicit_methods(name, lag):
    """With steps of 1/8, cut where the lag carries a jump: the grid stays, what cuts it moves.

    The shortest lag lies inside of the steps.
    """
    p = float64([30.0, 3.0, lag])

    def f(t, y, h, p):
        return -p[0] * (y - tf.cos(t)) + p[1] * h(t - p[2]) * y

    def loss(p):
        problem = nde.DDEProblem(
            f, float64(1.0), lambda t, p: tf.cos(t), (0.0, 2.0), p, lags=[p[2]]
        )
        steps = {"dt0": 0.125, "controller": "constant"}
        sol = nde.solve(problem, name, saveat=[1.3, 2.0], **steps)
        return tf.reduce_sum(float64([1.0, 2.0]) * sol.y)

    with tf.GradientTape() as tape:
        tape.watch(p)
        value = loss(p)
    found = tape.gradient(value, p)
    for j in range(3):
        sides = [loss(tf.tensor_scatter_nd_add(p, [[j]], [s])) for s in (1e-5, -1e-5)]
        np.testing.assert_allclose(found[j], (sides[0] - sides[1]) / 2e-5, rtol=1e-5, atol=1e-9)


def test_an_ensemble_varies_parameters_past_and_lags():
    """Written for one trajectory; one time that is read depends on what another read found."""

    def f(t, y, h, p):
        x, z = tf.unstack(y)
        late = h(t - p["lag"])
        later = h(t - 0.3 - 0.1 * late[1])
        return tf.stack([(p["a"][0] - z) * late[0], (p["a"][1] * x - 0.4) * later[1]])

    def past(t, p):
        return p["a"] * tf.stack([tf.cos(0.1 * t), tf.ones_like(t)])

    def lag_of(i):
        return 0.3 + 0.1 * tf.cast(i, tf.float64)

    def vary(problem, i, seed):
        p = problem.p | {"lag": lag_of(i)}
        return problem.remake(p=p, lags=[lag_of(i), problem.lags[1]])

    start = {"a": float64([1.2, 0.9]), "lag": float64(0.3)}
    evaluated = lambda t, y, p: 0.3 + 0.1 * y[1]  # noqa: E731
    problem = nde.DDEProblem(
        f, float64([1.0, 1.0]), past, (0.0, 2.0), start, lags=[float64(0.3), evaluated]
    )
    keywords = {"saveat": [1.0, 2.0], "rtol": 1e-8, "atol": 1e-8}
    sol = nde.solve_ensemble(problem, 5, vary=vary, batch_size=3, **keywords)
    assert sol.y.shape == (2, 5, 2)
    for i in (0, 4):
        alone = nde.solve(vary(problem, i, None), **keywords)
        np.testing.assert_allclose(sol.y[:, i], alone.y, atol=1e-12)
        assert sol.stats.num_steps[i] == alone.stats.num_steps
    with pytest.raises(ValueError, match="number of lags.*Received"):
        nde.solve_ensemble(problem, 2, vary=lambda one, i, seed: one.remake(lags=[1.0]))


def test_what_is_refused():
    def problem(f=delayed_decay, y0=1.0, past=one, lags=(1.0,), **keywords):
        return nde.DDEProblem(f, y0, past, (0.0, 1.0), lags=list(lags), **keywords)

    with pytest.raises(ValueError, match=r"lags\[0\].*positive.*Received: 0.0"):
        nde.solve(problem(lags=[0.0]))
    with pytest.raises(ValueError, match="at least one lag.*Received"):
        problem(lags=[])
    with pytest.raises(TypeError, match="`history` must be a function.*Received: 1.0"):
        problem(past=1.0)
    with pytest.raises(ValueError, match=r"history\(t, p\) must return the shape.*: \(2,\)"):
        nde.solve(problem(past=lambda t, p: tf.ones(2)))
    with pytest.raises(ValueError, match="takes a time of the shape of `t`.*Received shape"):
        nde.solve(problem(f=lambda t, y, h, p: h(tf.stack([t, t]))))
    with pytest.raises(ValueError, match="step_control='joint'"):
        nde.solve(problem(y0=tf.ones(2)), batch_ndims=1, step_control="joint")
    with pytest.raises(ValueError, match="adjoint='discrete' only"):
        nde.solve(problem(), adjoint="backsolve")
    with pytest.raises(ValueError, match="one-step method that interpolates.*'sosri'"):
        nde.solve(problem(), "sosri")
    with pytest.raises(ValueError, match=r"lags\[0\].*positive.*Received: -1.0"):
        nde.solve(problem(lags=[-1.0]))
    with pytest.raises(TypeError, match=r"`f` must be a function f\(t, y, h, p\).*Received: 2.0"):
        problem(f=2.0)
    with pytest.raises(ValueError, match="MethodOfSteps is for a DDEProblem"):
        nde.solve(nde.ODEProblem(lambda t, y, p: -y, 1.0, (0.0, 1.0)), nde.solvers.MethodOfSteps())


def test_statuses():
    def future(t, y, h, p):
        return -h(t + 0.1)

    sol = nde.solve(
        nde.DDEProblem(future, 1.0, one, (0.0, 1.0), lags=[lambda t, y, p: -0.1]), throw=False
    )
    assert sol.status == nde.Status.BAD_LAG and np.isnan(sol.y)
    assert "negative" in nde.Status(int(sol.status)).message

    problem = nde.DDEProblem(delayed_decay, 1.0, one, (0.0, 50.0), lags=[1.0])
    sol = nde.solve(problem, max_record=8, throw=False)
    assert sol.status == nde.Status.RECORD_FULL
    assert "max_record" in nde.Status(int(sol.status)).message


def test_a_failed_row_leaves_the_gradient_of_the_others_alone():
    y0, p = tf.ones(2, tf.float64), float64(0.7)

    def lag(t, y, p):
        # Negative in the second row from t = 1 on.
        return 1.0 - float64([0.0, 1.0]) * t

    def f(t, y, h, p):
        return -p * h(t - lag(t, y, p)) ** 2

    with tf.GradientTape() as tape:
        tape.watch([y0, p])
        problem = nde.DDEProblem(f, y0, one, (0.0, 3.0), p, lags=[1.0, lag])
        sol = nde.solve(problem, batch_ndims=1, throw=False, rtol=1e-6)
        loss = sol.y[0]
    assert sol.status.numpy().tolist() == [0, nde.Status.BAD_LAG] and np.isnan(sol.y[1])
    y0_bar, p_bar = tape.gradient(loss, [y0, p])

    alone = nde.DDEProblem(
        lambda t, y, h, p: -p * h(t - 1.0) ** 2, float64(1.0), one, (0.0, 3.0), p, lags=[1.0]
    )
    with tf.GradientTape() as tape:
        tape.watch([alone.y0, p])
        y = nde.solve(alone, **TIGHT).y
    expected = tape.gradient(y, [alone.y0, p])
    np.testing.assert_allclose(y0_bar, [expected[0], 0.0], atol=1e-4)
    np.testing.assert_allclose(p_bar, expected[1], rtol=1e-4)


def test_solver_config_round_trip():
    solver = nde.solvers.MethodOfSteps("bosh3")
    again = nde.solvers.get(nde.solvers.serialize(solver))
    assert again == solver and again.solver == nde.solvers.get("bosh3")


def test_graphs_variables_closures_and_free_batches_have_the_same_gradient():
    """y' = a y(t - lag) + b sin y, with b closed over and a in a variable, three ways."""
    scale = tf.Variable(-0.8, dtype=tf.float64)

    def loss(y0, lag, b):
        def f(t, y, h, p):
            return scale * h(t - p) + b * tf.sin(y)

        problem = nde.DDEProblem(f, y0, lambda t, p: b * tf.cos(t), (0.0, 2.0), lag, lags=[lag])
        sol = nde.solve(problem, batch_ndims=1, **TIGHT, dense=True)
        return tf.reduce_sum(sol.y * sol(1.1))

    def gradient(*values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            value = loss(*values)
        return tape.gradient(value, [*values, scale])

    values = float64([1.0, 0.5]), float64([0.7, 0.4]), float64(0.6)
    free = [tf.TensorSpec([None], tf.float64)] * 2 + [tf.TensorSpec([], tf.float64)]
    graph = tf.function(gradient, input_signature=free)(*values)
    compiled = tf.function(gradient, jit_compile=True)(*values)
    for one_way, other in zip(graph, compiled, strict=True):
        np.testing.assert_allclose(one_way, other, rtol=1e-10)

    run = tf.function(loss, jit_compile=True)
    for i, direction in enumerate([[1.0, 0.0], [0.0, 1.0], None]):
        moved = list(values)
        which = min(i, 2) if direction is None else 1
        change = 1e-5 * float64(1.0 if direction is None else direction)
        moved[which] = values[which] + change
        upper = run(*moved)
        moved[which] = values[which] - change
        expected = (upper - run(*moved)) / 2e-5
        found = graph[which] if direction is None else graph[which][i]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    sides = []
    for step in (1e-5, -2e-5):
        scale.assign_add(step)
        sides.append(run(*values))
    np.testing.assert_allclose(graph[3], (sides[0] - sides[1]) / 2e-5, rtol=1e-5)


def test_equal_steps_and_replayed_steps():
    problem = nde.DDEProblem(delayed_decay, float64(1.0), one, (0.0, 2.0), lags=[1.0])
    errors = []
    for dt0 in (0.3, 0.15):
        sol = nde.solve(problem, "bosh3", dt0=dt0, controller="constant")
        assert 1.0 in sol.steps.numpy()  # beside the grid of equal steps
        errors.append(abs(sol.y - delayed_decay_solution(2.0)))
    assert errors[1] < errors[0] / 6 or errors[1] < 1e-14
    first = nde.solve(problem, rtol=1e-4)
    again = nde.solve(problem, steps=first.steps)
    np.testing.assert_allclose(again.y, first.y, rtol=1e-14)


def test_gradients_of_lags_whose_sums_meet():
    """3 · 0.3 is 0.9 but for rounding: the jumps that came to both belong to the lag itself."""

    @tf.function(jit_compile=True)
    def final(lags):
        problem = nde.DDEProblem(
            lambda t, y, h, p: -h(t - p[0]) - 2.0 * h(t - p[1]) ** 2,
            tf.constant(2.0, tf.float64),
            lambda t, p: 1.0 + 0.0 * t,
            (0.0, 1.7),
            lags,
            lags=tf.unstack(lags),
        )
        return nde.solve(problem, "tsit5", rtol=1e-10, atol=1e-12).y

    @tf.function(jit_compile=True)
    def slope(lags):
        with tf.GradientTape() as tape:
            tape.watch(lags)
            value = final(lags)
        return tape.gradient(value, lags)

    lags = tf.constant([0.3, 0.9], tf.float64)
    steps = 1e-5 * tf.eye(2, dtype=tf.float64)
    differences = [(final(lags + step) - final(lags - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(slope(lags), differences, rtol=1e-4)


def test_sums_of_lags_that_are_equal_but_for_rounding_are_one_stop():
    problem = nde.DDEProblem(
        lambda t, y, h, p: -h(t - 0.1) - h(t - 0.2) - h(t - 0.3), np.ones(1),
        lambda t, p: np.ones(1), (0.0, 2.0), lags=[0.1, 0.2, 0.3],
    )  # fmt: skip
    sol = nde.solve(problem, "tsit5", rtol=1e-6)
    steps = np.diff(sol.steps)
    assert np.nanmin(steps) > 1e-6


def test_reading_the_past_at_the_door():
    def problem(f, lags=(1.0,)):
        return nde.DDEProblem(f, np.ones(1), lambda t, p: np.ones(1), (0.0, 1.0), lags=list(lags))

    for past in (None, "a"):
        with pytest.raises(TypeError, match="takes a time of the dtype"):
            nde.solve(problem(lambda t, y, h, p, past=past: h(past)))
    with pytest.raises(TypeError, match="positional"):
        nde.solve(problem(lambda t, y, h, p: h(t - 1.0, 1)))
    with pytest.raises(ValueError, match="`lags` must differ"):
        nde.solve(problem(lambda t, y, h, p: h(t - 1.0), (1.0, 1.0)))
