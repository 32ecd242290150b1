"""Jumps: their laws, and the gradients through flow, maps and rates.

A statistic of n paths is compared with its exact value in units of its standard error; each law has
a neighbour that the same test tells apart.
"""

import sys

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde.refusals import refuse_alone

PATHS = 3000


def up(t, y, p):
    return y + 1.0


def still(t, y, p):
    return 0.0 * y


def deviation(sample, mean):
    """How far the mean of a sample is from its expectation, in standard errors."""
    sample = np.asarray(sample, float)
    return abs(sample.mean() - mean) / (sample.std(ddof=1) / np.sqrt(len(sample)))


def season(t, y, p):
    return 1.0 + tf.sin(t)


@pytest.mark.slow
@pytest.mark.parametrize("bound", [2.0, None])
def test_a_rate_that_changes_in_time(bound):
    """The count is a Poisson number with the integral of the rate as mean, and in two halves."""
    problem = nde.JumpProblem(
        nde.ODEProblem(still, 0.0, (0.0, 4.0)), [nde.VariableRateJump(season, up, bound=bound)]
    )
    sol = nde.solve_ensemble(problem, PATHS, seed=1, saveat=[2.0, 4.0], rtol=1e-6, atol=1e-8)
    counts = sol.y.numpy().astype(float)
    first, second = counts[0], counts[1] - counts[0]
    means = [3.0 - np.cos(2.0), 2.0 + np.cos(2.0) - np.cos(4.0)]
    for sample, mean in zip((first, second), means, strict=True):
        assert deviation(sample, mean) < 4.0
        assert deviation((sample - mean) ** 2, mean) < 4.0
        # A rate that is larger by a tenth would be seen.
        assert deviation(sample, 1.1 * mean) > 4.0
    # Disjoint intervals are independent.
    assert deviation((first - means[0]) * (second - means[1]), 0.0) < 4.0
    assert np.all(np.isfinite(sol.log_likelihood))


def growth(jumps, **keywords):
    """Geometric Brownian motion with jumps; a = 0.5, s = 0.2."""
    problem = nde.SDEProblem(lambda t, y, p: 0.5 * y, lambda t, y, p: 0.2 * y, 1.0, (0.0, 1.0))
    return nde.solve_ensemble(nde.JumpProblem(problem, jumps), PATHS, seed=2, **keywords)


def test_halving_jumps_on_geometric_brownian_motion():
    """E y(t) = exp((a - λ/2) t), with adaptive steps."""
    halving = nde.ConstantRateJump(2.0, lambda t, y, p: 0.5 * y)
    sol = growth([halving], saveat=[0.5, 1.0], rtol=1e-3, atol=1e-3)
    for y, t in zip(sol.y, (0.5, 1.0), strict=True):
        assert deviation(y, np.exp(-0.5 * t)) < 4.0
        # Jumps that are missing at random, one in ten, would be seen.
        assert deviation(y, np.exp((0.5 - 0.9) * t)) > 4.0


@pytest.mark.slow
def test_marked_jumps_are_those_of_merton():
    """log y has mean (a - s²/2 + λ m) t and variance (s² + λ (m² + d²)) t."""
    lognormal = nde.ConstantRateJump(
        1.5, lambda t, y, p, mark: y * mark,
        mark_sampler=lambda u, t, y, p: tf.exp(-0.1 + 0.3 * tf.math.ndtri(u[..., 0])),
    )  # fmt: skip
    sol = growth([lognormal], solver="euler_maruyama", dt0=0.01, controller="constant")
    logs = np.log(sol.y.numpy().astype(float))
    mean, variance = 0.5 - 0.02 - 0.15, 0.04 + 1.5 * (0.01 + 0.09)
    assert deviation(logs, mean) < 4.0 and deviation((logs - mean) ** 2, variance) < 4.0
    assert deviation((logs - mean) ** 2, 0.04 + 1.5 * 0.09 * 0.5) > 4.0


@pytest.mark.slow
def test_birth_and_death_and_the_gradient_of_its_mean():
    """From 0, the count at t is a Poisson number with mean b (1 - exp(-d t)) / d."""
    problem = nde.JumpProblem(
        nde.ODEProblem(still, 0.0, (0.0, 3.0)),
        [
            nde.ConstantRateJump(lambda t, y, p: p[0], up),
            nde.ConstantRateJump(lambda t, y, p: p[1] * y, lambda t, y, p: y - 1.0),
        ],
    )
    b, d, t = 10.0, 0.7, 3.0
    gone = np.exp(-d * t)
    mean = b * (1.0 - gone) / d
    exact = np.array([(1.0 - gone) / d, -b * (1.0 - gone) / d**2 + b * t * gone / d])
    found = []
    for seed in range(5):
        p = tf.constant([b, d])
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(p)
            sol = nde.solve_ensemble(problem.remake(p=p), PATHS, seed=seed, checkpoints=256)
            value = nde.expectation(sol.y, sol.log_likelihood)
            paths = tf.reduce_mean(sol.y)
        np.testing.assert_allclose(value, paths, rtol=1e-6)
        found.append(tape.gradient(value, p).numpy())
        # The paths alone do not know: their jumps stay where they are.
        with pytest.raises(ValueError, match="keras_neuralde.expectation"):
            tape.gradient(paths, p)
    assert deviation(sol.y, mean) < 4.0 and deviation(sol.y, mean * 1.03) > 4.0
    assert deviation((sol.y.numpy() - mean) ** 2, mean) < 4.0
    for k in range(2):
        assert deviation([one[k] for one in found], exact[k]) < 5.0, (found, exact)
        np.testing.assert_allclose(np.mean(found, axis=0)[k], exact[k], rtol=0.1)


@pytest.mark.parametrize("between", [1.37, 1.3])
def test_gradients_of_flow_maps_and_marks_are_those_of_the_path(between):
    """Against finite differences with the same random numbers, on a stochastic equation.

    A save point off the grid of steps cuts one of them too.
    """

    def value(p):
        problem = nde.SDEProblem(
            lambda t, y, p: p[0] * y, lambda t, y, p: 0.2 * y, np.ones(3), (0.0, 2.0), p
        )
        jumps = [
            nde.ConstantRateJump(2.0, lambda t, y, p: p[1] * y + 0.1 * t),
            nde.VariableRateJump(
                lambda t, y, p: 1.0 + 0.5 * tf.cos(t), lambda t, y, p, m: y + m, bound=1.5,
                mark_sampler=lambda u, t, y, p: p[2] * u[..., 0],
            ),
        ]  # fmt: skip
        sol = nde.solve(
            nde.JumpProblem(problem, jumps), "euler_maruyama", dt0=0.1, controller="constant",
            batch_ndims=1, saveat=[0.5, between, 2.0], seed=4, checkpoints=16,
        )  # fmt: skip
        return tf.reduce_sum(tf.sin(sol.y) * [[1.0], [2.0], [3.0]])

    @tf.function(autograph=False)
    def gradient(p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            total = value(p)
        return total, tape.gradient(total, p)

    p = tf.constant([0.5, 0.6, 0.4], tf.float64)
    found = gradient(p)[1].numpy()
    assert np.all(found != 0.0)
    for k in range(3):
        h = 1e-6 * np.eye(3)[k]
        sides = [gradient(p + s * h)[0] for s in (1, -1)]
        np.testing.assert_allclose(found[k], (sides[0] - sides[1]) / 2e-6, rtol=1e-6)


def test_each_trajectory_has_its_own_jumps_whatever_the_batch():
    problem = nde.ODEProblem(still, tf.zeros(4, tf.float64), (0.0, 5.0))
    jump = nde.ConstantRateJump(1.0, lambda t, y, p: y + t)
    whole = nde.solve(nde.JumpProblem(problem, [jump]), batch_ndims=1, seed=7)
    plain = tf.function(
        lambda: nde.solve(nde.JumpProblem(problem, [jump]), batch_ndims=1, seed=7).y,
        jit_compile=False, autograph=False,
    )()  # fmt: skip
    np.testing.assert_allclose(whole.y, plain, rtol=1e-12)
    assert len(set(whole.y.numpy().tolist())) == 4
    part = problem.remake(y0=tf.zeros(2, tf.float64))
    part = nde.solve(nde.JumpProblem(part, [jump]), batch_ndims=1, seed=7)
    np.testing.assert_allclose(part.y, whole.y[:2], rtol=1e-12)
    assert whole.event_times is None


def test_bad_rates_end_with_a_status():
    problem = nde.ODEProblem(lambda t, y, p: 1.0 + 0.0 * y, tf.zeros(2), (0.0, 9.0))
    limits = tf.constant([100.0, 1.0])
    bounded = nde.VariableRateJump(lambda t, y, p: y + 1.0, lambda t, y, p: y, bound=10.5)
    negative = nde.ConstantRateJump(lambda t, y, p: limits - t, lambda t, y, p: y)
    for jump, bad in ((bounded, "either"), (negative, "second")):
        sol = nde.solve(
            nde.JumpProblem(problem.remake(t_span=(0.0, 30.0)), [jump]), batch_ndims=1, seed=0,
            throw=False,
        )  # fmt: skip
        codes = sol.status.numpy().tolist()
        assert codes[1] == nde.Status.BAD_RATE, codes
        assert codes[0] == (nde.Status.BAD_RATE if bad == "either" else 0), codes


def test_bad_jumps():
    ode = nde.ODEProblem(still, 0.0, (0.0, 1.0))
    sde = nde.SDEProblem(still, still, 0.0, (0.0, 1.0))
    jump = nde.ConstantRateJump(1.0, up)
    with pytest.raises(ValueError, match="must not be negative"):
        nde.ConstantRateJump(-1.0, up)
    with pytest.raises(ValueError, match="`bound` must not be negative"):
        nde.VariableRateJump(1.0, up, bound=float("nan"))
    with pytest.raises(TypeError, match="`affect` must be a function"):
        nde.ConstantRateJump(1.0, 2.0)
    with pytest.raises(TypeError, match="`mark_sampler` must be"):
        nde.ConstantRateJump(1.0, up, mark_sampler=1)
    with pytest.raises(TypeError, match="list of ConstantRateJump"):
        nde.JumpProblem(ode, [up])
    with pytest.raises(TypeError, match="ODEProblem or an SDEProblem"):
        nde.JumpProblem(jump, [jump])
    with pytest.raises(ValueError, match="needs a `bound`"):
        nde.solve(nde.JumpProblem(sde, [nde.VariableRateJump(1.0, up)]))
    with pytest.raises(ValueError, match="shape of `y`"):
        wrong = nde.ConstantRateJump(1.0, lambda t, y, p: tf.stack([y, y]))
        nde.solve(nde.JumpProblem(ode, [wrong]))
    with pytest.raises(ValueError, match="must not be negative"):
        nde.ConstantRateJump(tf.constant(-1.0), up)
    with pytest.raises(ValueError, match="must not be negative, infinite"):
        nde.ConstantRateJump(float("inf"), up)
    with pytest.raises(ValueError, match=r"affect\(t, y, p\) must return.*missing"):
        nde.solve(nde.JumpProblem(ode, [nde.ConstantRateJump(1.0, lambda t, y, p: None)]))
    for rate in (None, True, "1.0", tf.constant(True), [up]):
        with pytest.raises(TypeError, match="`rate` must be a number or a function"):
            nde.ConstantRateJump(rate, up)
    batch = nde.ODEProblem(still, tf.zeros(4), (0.0, 1.0))
    columns = lambda t, y, p: tf.ones((4, 1))  # noqa: E731
    for jump in (
        nde.ConstantRateJump(columns, up),
        nde.VariableRateJump(columns, up),
        nde.VariableRateJump(1.0, up, bound=columns),
        nde.ConstantRateJump([1.0, 2.0], up),
    ):
        with pytest.raises(ValueError, match=r"(rate|bound)\(t, y, p\) must return a number"):
            nde.solve(nde.JumpProblem(batch, [jump]), batch_ndims=1)
    with pytest.raises(TypeError, match=r"rate\(t, y, p\) must return a number"):
        nde.solve(nde.JumpProblem(ode, [nde.ConstantRateJump(lambda t, y, p: {"rate": y}, up)]))


def test_what_expectation_takes():
    for values, likelihood in (
        (tf.zeros(3), tf.zeros((2, 3))),
        (tf.zeros((2, 3)), tf.zeros((2, 4))),
        (tf.zeros((2, 3)), tf.zeros(())),
    ):
        with pytest.raises(ValueError, match="begin with the axes"):
            nde.expectation(values, likelihood)
    with pytest.raises(TypeError, match="one dtype.*float64 and float32"):
        nde.expectation(tf.zeros(3, tf.float64), tf.zeros(3))
    for values in ({"y": tf.zeros(3)}, tf.zeros(3, tf.int32)):
        with pytest.raises(TypeError, match="`values` must be a tensor of real numbers"):
            nde.expectation(values, tf.zeros(3))
    with pytest.raises(TypeError, match="`log_likelihood` must be a tensor"):
        nde.expectation(tf.zeros(3), None)


def test_a_span_that_turns_out_to_run_backwards_ends_with_a_status():
    jump = nde.ConstantRateJump(2.0, up)

    @tf.function(autograph=False)
    def run(t1):
        problem = nde.ODEProblem(still, tf.zeros(2), (tf.zeros(2), t1))
        sol = nde.solve(nde.JumpProblem(problem, [jump]), batch_ndims=1, seed=0)
        return sol.status, sol.y

    status, y = run(tf.constant([3.0, -3.0]))
    assert status.numpy().tolist() == [0, int(nde.Status.BAD_TIMES)]
    assert "JumpProblem" in nde.Status.BAD_TIMES.message
    assert np.isfinite(y[0]) and np.isnan(y[1])


def test_a_gradient_of_one_tensor_alone_is_refused():
    """What stands for the paths needs what stands for the likelihood, at each call of the tape."""

    def bars(paths, rate, growth):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([rate, growth])
            y, likelihood = refuse_alone({"y": growth * paths}, rate * growth, [rate], "Alone.")
            alone, together = tf.reduce_sum(y["y"]), tf.reduce_sum(y["y"]) + likelihood
        found = [tape.gradient(together, [rate, growth]) for _ in range(2)]
        with pytest.raises(ValueError, match="Alone"):
            tape.gradient(alone, rate)
        return [*found, tape.gradient(likelihood, [rate, growth])]

    arguments = tf.constant([1.0, 2.0]), tf.constant(5.0), tf.constant(7.0)
    for run in (bars, tf.function(bars, autograph=False)):
        first, second, likelihood = np.array(run(*arguments))
        assert first.tolist() == second.tolist() == [7.0, 8.0]
        assert likelihood.tolist() == [7.0, 5.0]


def test_what_only_rates_read_is_found(monkeypatch):
    """The birth-and-death test and those of the layer see the refusal through solves."""
    growth, captured, variable = tf.constant(0.3), tf.constant(2.0), tf.Variable(1.0)
    both, found = tf.Variable(0.5), []

    def note(y, likelihood, tensors, sentence):
        found.extend(tensors)
        return y, likelihood

    monkeypatch.setattr(sys.modules["keras_neuralde.solve"], "refuse_alone", note)

    def half(t, y, p):
        return 0.5 * y + 0.0 * both

    jumps = [
        nde.ConstantRateJump(lambda t, y, p: p["rate"] + both, half),
        nde.ConstantRateJump(lambda t, y, p: captured * tf.ones_like(t), half),
        nde.VariableRateJump(lambda t, y, p: variable + 0.0 * y, half, bound=p_bound),
    ]

    @tf.function(autograph=False, jit_compile=False)
    def end(rate, bound):
        p = {"growth": growth, "rate": rate, "bound": bound}
        problem = nde.ODEProblem(lambda t, y, p: p["growth"] * y, tf.ones(3), (0.0, 1.0), p)
        nde.solve(nde.JumpProblem(problem, jumps), batch_ndims=1, seed=3)
        names = {id(rate): "rate", id(bound): "bound", id(captured): "captured"}
        names[id(variable)] = "variable"
        found[:] = [names.get(id(tensor), tensor) for tensor in found]

    end(tf.constant(2.0), tf.constant(3.0))
    assert sorted(found) == ["bound", "captured", "rate", "variable"]


def p_bound(t, y, p):
    return p["bound"]


def test_problems_made_anew_find_their_programs():
    from keras_neuralde.execution import programs

    def solve(k, ensemble):
        jump = nde.VariableRateJump(lambda t, y, p: 2.0 + 0.0 * t, lambda t, y, p: 0.5 * y)
        y0 = 1.0 if ensemble else tf.ones(3)
        problem = nde.JumpProblem(nde.ODEProblem(lambda t, y, p: y, y0, (0.0, 1.0)), [jump])
        if ensemble:
            return nde.solve_ensemble(problem, 3, seed=k)
        return nde.solve(problem, batch_ndims=1, seed=k)

    for ensemble in (False, True):
        solve(0, ensemble)
        known = len(programs)
        solve(1, ensemble)
        assert len(programs) == known


def test_what_jumps_refuse():
    still = nde.ODEProblem(lambda t, y, p: 0.0 * y, 1.0, (5.0, 0.0))
    jump = nde.ConstantRateJump(2.0, lambda t, y, p: y + 1.0)
    with pytest.raises(ValueError, match="runs forwards in time"):
        nde.solve(nde.JumpProblem(still, [jump]), seed=0)
    negative = nde.VariableRateJump(lambda t, y, p: -1.0 + 0.0 * y, lambda t, y, p: y + 1.0)
    problem = nde.JumpProblem(still.remake(t_span=(0.0, 5.0)), [negative])
    sol = nde.solve(problem, seed=0, throw=False)
    assert sol.status == nde.Status.NON_FINITE


def test_a_jacobian_of_the_equation_does_not_stand_for_the_larger_one():
    @tf.function(autograph=False, jit_compile=False)
    def end(jacobian):
        problem = nde.ODEProblem(lambda t, y, p: -y, np.ones((3, 1)), (0.0, 1.0))
        if jacobian:
            given = {"jacobian": lambda t, y, p: -tf.ones((3, 1, 1), t.dtype)}
            problem = problem.remake(**given, jac_sparsity=np.eye(1))
        jump = nde.VariableRateJump(lambda t, y, p: 1.0 + y[..., 0], lambda t, y, p: 2.0 * y)
        options = {"batch_ndims": 1, "seed": 5, "dt0": 0.25, "controller": "constant"}
        return nde.solve(nde.JumpProblem(problem, [jump]), "rosenbrock23", **options).y

    np.testing.assert_array_equal(end(True), end(False))


def walk(y0, jumps, jit=True, saveat=(1.0,)):
    """Brownian motion in the first component, the sum of what it is at jumps in the second."""

    @tf.function(autograph=False, jit_compile=jit)
    def run():
        problem = nde.SDEProblem(
            lambda t, y, p: 0.0 * y,
            lambda t, y, p: tf.stack([tf.ones_like(t), tf.zeros_like(t)], -1),
            y0, (0.0, 1.0), noise="additive",
        )  # fmt: skip
        problem = nde.JumpProblem(problem, jumps) if jumps else problem
        options = {"dt0": 1.0, "controller": "constant", "saveat": saveat}
        return nde.solve(problem, "euler_maruyama", batch_ndims=1, seed=9, **options).y

    return run().numpy()


def test_noise_between_the_jumps_of_a_step():
    """S, the sum of W at the jumps, has E S² = λ / 2 + λ² / 3; all are in one step."""
    rate = 6.0
    jump = nde.ConstantRateJump(
        rate, lambda t, y, p: tf.stack([y[..., 0], y[..., 1] + y[..., 0]], -1)
    )
    y0 = tf.zeros((PATHS, 2), tf.float64)
    jumping, still = walk(y0, [jump]), walk(y0, [])
    # Jumps that leave W alone leave its path alone, which has the noise of steps that are not cut.
    np.testing.assert_allclose(jumping[..., 0], still[..., 0], atol=1e-13)
    assert np.abs(jumping[:, 1:, 0] - still[:, :-1, 0]).mean() > 0.1
    square = jumping[-1, :, 1] ** 2
    assert deviation(square, rate / 2 + rate**2 / 3) < 4.0
    # On the chord of the step it would be less.
    assert deviation(square, rate / 3 + rate**2 / 4) > 4.0
    np.testing.assert_allclose(walk(y0[:64], [jump], jit=False), jumping[:, :64], atol=1e-12)
    # Nor does it matter whether the save points are known when the program is made.
    times = tf.Variable([1.0], dtype=tf.float64)
    later = walk(y0[:64], [jump], jit=False, saveat=times)
    np.testing.assert_allclose(later, jumping[:, :64], atol=1e-12)


def affine(t, y, p):
    return p[:, 0] + p[:, 1] * y


# A bound that is the rate itself holds while y falls, until something happens.
@pytest.mark.parametrize("bound", [affine, None])
def test_a_rate_that_depends_on_what_flows_and_its_gradients(bound):
    """From 1, with a = b = 1, E y = 1 + t and E y² = 1 + 4 t + 3/2 t²; y falls between jumps.

    The derivatives of E y(t) are t for a and t + t² / 2 for b, through the paths and their law.
    """
    groups, each = 10, PATHS // 10
    jump = nde.VariableRateJump(affine, up, bound=bound)
    options = {"rtol": 1e-4, "atol": 1e-6, "saveat": [1.0, 2.0], "checkpoints": 256}
    y0 = tf.ones(groups * each, tf.float64)

    @tf.function(autograph=False, jit_compile=False)
    def run(p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            rates = tf.repeat(p, each, axis=0)
            problem = nde.ODEProblem(lambda t, y, p: -y, y0, (0.0, 2.0), rates)
            problem = nde.JumpProblem(problem, [jump])
            sol = nde.solve(problem, "tsit5", batch_ndims=1, seed=1, **options)
            shape = (2, groups, each)
            means = nde.expectation(
                *(tf.reshape(part, shape) for part in (sol.y, sol.log_likelihood))
            )
            total = tf.reduce_sum(means[-1])
        return sol.y, tape.gradient(total, p)

    y, bars = run(tf.ones((groups, 2), tf.float64))
    for sample, t in zip(y, (1.0, 2.0), strict=True):
        assert deviation(sample, 1.0 + t) < 4.0
        assert deviation(sample**2, 1.0 + 4.0 * t + 1.5 * t**2) < 4.0
    # A rate that forgets the decay since the last jump would make more.
    assert deviation(y[1], 3.3) > 4.0 and deviation(y[1] ** 2, 17.0) > 4.0
    for column, exact in enumerate((2.0, 4.0)):
        found = bars[:, column].numpy()
        assert deviation(found, exact) < 4.0, found
        # Neither part is enough.
        assert deviation(found, 0.5 * exact) > 4.0


def test_thinning_on_a_stochastic_equation():
    """Where W > 0 jumps come at the rate r: the time spent there has the arcsine law.

    So that the count has the mean r / 2, the variance r / 2 + r² / 8, and is zero with the
    probability exp(-r / 2) I₀(r / 2); all in a single step, whose noise the candidates cut.
    """
    rate = 6.0

    def count(t, y, p):
        return tf.stack([y[..., 0], y[..., 1] + 1.0], -1)

    def above(t, y, p):
        return rate * tf.cast(y[..., 0] > 0.0, t.dtype)

    jump = nde.VariableRateJump(above, count, bound=rate)
    counts = walk(tf.zeros((PATHS, 2), tf.float64), [jump], jit=False)[-1, :, 1]
    none = np.exp(-rate / 2) * np.i0(rate / 2)
    for sample, exact in (
        (counts, rate / 2), ((counts - rate / 2) ** 2, rate / 2 + rate**2 / 8), (counts == 0, none)
    ):  # fmt: skip
        assert deviation(sample, exact) < 4.0
    # A coin for each candidate instead of the path, and the end of the step instead of the path.
    assert deviation(counts == 0, np.exp(-rate / 2)) > 4.0
    assert deviation((counts - rate / 2) ** 2, rate / 2 + rate**2 / 4) > 4.0


def test_thinning_follows_time_and_what_has_happened_on_a_stochastic_equation():
    """Of n, each dies at the rate r (1 + sin 3t): a binomial number survives."""
    n, rate = 20, 0.8

    def death(t, y, p):
        return y[..., 1] * rate * (1.0 + tf.sin(3.0 * t))

    jump = nde.VariableRateJump(
        death, lambda t, y, p: tf.stack([y[..., 0], y[..., 1] - 1.0], -1),
        bound=lambda t, y, p: 2.0 * rate * y[..., 1],
    )  # fmt: skip
    y0 = tf.constant([[0.0, n]] * PATHS, tf.float64)
    left = walk(y0, [jump], jit=False)[-1, :, 1]
    share = np.exp(-rate * (1.0 + (1.0 - np.cos(3.0)) / 3.0))
    assert deviation(left, n * share) < 4.0
    assert deviation((left - n * share) ** 2, n * share * (1.0 - share)) < 4.0
    # Without the season, and as many as from a Poisson law.
    assert deviation(left, n * np.exp(-rate)) > 4.0
    assert deviation((left - n * share) ** 2, n * share) > 4.0
