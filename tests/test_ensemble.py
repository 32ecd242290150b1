"""Ensembles: the same numbers as one by one, whatever the chunks; statistics; gradients."""

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde

P = np.array([1.5, 1.0, 3.0, 1.0])
TIMES = np.linspace(0.0, 2.0, 5)
TRAJECTORIES = 7


def one(t, y, p):
    """Lotka-Volterra for one trajectory, with a seasonal term and a shared weight."""
    a, b, d, g = tf.unstack(p["rates"])
    prey, predators = tf.unstack(y)
    wave = p["wave"] * tf.cos(t)
    return tf.stack([a * prey - b * prey * predators + wave, -d * predators + g * prey * predators])


def problem():
    p = {"rates": tf.constant(P), "wave": tf.constant(0.1, tf.float64), "nothing": None}
    return nde.ODEProblem(one, np.array([1.0, 1.0]), (0.0, 2.0), p)


def vary(problem, i, seed):
    # Integer bits are the same numbers with and without XLA; floats are not.
    bits = tf.random.stateless_uniform((4,), seed, None, None, tf.int32, alg="philox")
    scale = 1.0 + 0.1 * tf.cast(bits, tf.float64) / 2.0**31
    y0 = tf.stack([1.0 + 0.1 * tf.cast(i, tf.float64), tf.constant(1.0, tf.float64)])
    return problem.remake(y0=y0, p={**problem.p, "rates": problem.p["rates"] * scale})


def ensemble(**keywords):
    settings = {"vary": vary, "seed": 3, "saveat": TIMES, "rtol": 1e-8, "atol": 1e-8, **keywords}
    return nde.solve_ensemble(problem(), TRAJECTORIES, "tsit5", **settings)


@pytest.fixture(scope="module")
def solution():
    return ensemble()


def test_the_same_as_one_by_one(solution):
    assert solution.y.shape == (5, TRAJECTORIES, 2) and solution.status.shape == (TRAJECTORIES,)
    root = tf.constant([3, 0])
    for i in (0, 4):
        seed = tf.random.experimental.stateless_fold_in(root, i, alg="philox")
        alone = nde.solve(vary(problem(), tf.constant(i), seed), saveat=TIMES, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(solution.y[:, i], alone.y, rtol=1e-10)


@pytest.mark.parametrize("batch_size", [3, 7])
def test_chunks_change_nothing(solution, batch_size):
    chunked = ensemble(batch_size=batch_size)
    np.testing.assert_allclose(chunked.y, solution.y, rtol=1e-11)
    np.testing.assert_array_equal(chunked.stats.num_steps, solution.stats.num_steps)


def test_another_seed_is_another_ensemble(solution):
    assert np.all(np.abs(ensemble(seed=4).y[-1] - solution.y[-1]) > 1e-6)


def test_final_states_only(solution):
    final = ensemble(saveat=None, batch_size=4)
    assert final.y.shape == (TRAJECTORIES, 2)
    np.testing.assert_allclose(final.y, solution.y[-1], rtol=1e-6)
    np.testing.assert_allclose(final.summary().mean, np.mean(final.y, axis=0))


@pytest.mark.parametrize("batch_size", [3, TRAJECTORIES])
def test_as_many_times_as_trajectories(batch_size):
    """Shapes do not tell the axes apart."""
    times = np.linspace(0.0, 2.0, TRAJECTORIES)
    sol = ensemble(saveat=times, batch_size=batch_size)
    assert sol.y.shape == (TRAJECTORIES, TRAJECTORIES, 2)
    np.testing.assert_allclose(sol.summary().mean, np.mean(sol.y, axis=1))
    np.testing.assert_array_equal(sol.summary().t, times)


@pytest.mark.parametrize("batch_size", [3, TRAJECTORIES])
def test_one_number_as_save_time(solution, batch_size):
    sol = ensemble(saveat=TIMES[2], batch_size=batch_size)
    assert sol.y.shape == (TRAJECTORIES, 2) and sol.t == TIMES[2]
    np.testing.assert_allclose(sol.y, solution.y[2], rtol=1e-6)
    np.testing.assert_allclose(sol.summary().mean, np.mean(sol.y, axis=0))


def test_programs_are_shared_between_chunks_and_calls(solution):
    from keras_neuralde.execution import programs

    before = len(programs)
    ensemble(batch_size=TRAJECTORIES, seed=11)
    assert len(programs) == before


def test_summary(solution):
    summary = solution.summary(quantiles=(0.1, 0.9))
    y = solution.y.numpy()
    np.testing.assert_allclose(summary.mean, y.mean(axis=1))
    np.testing.assert_allclose(summary.var, y.var(axis=1, ddof=1), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(summary.median, np.median(y, axis=1))
    for level, values in zip((0.1, 0.9), summary.quantiles, strict=True):
        np.testing.assert_allclose(values, np.quantile(y, level, axis=1))
    np.testing.assert_array_equal(summary.t, TIMES)
    with pytest.raises(ValueError, match="between 0 and 1"):
        solution.summary(quantiles=(5, 95))


def test_failed_trajectories_are_left_out():
    blow_up = nde.ODEProblem(lambda t, y, p: p * y * y, 1.0, (0.0, 1.0), 0.5)
    sol = nde.solve_ensemble(
        blow_up,
        4,
        vary=lambda problem, i, seed: problem.remake(p=0.5 * tf.cast(i, tf.float32)),
        saveat=[0.0, 1.0],
        throw=False,
    )
    # y = 1 / (1 - p t): p = 1 and 1.5 blow up.
    np.testing.assert_array_equal(sol.success, [True, True, False, False])
    summary = sol.summary()
    assert summary.count == 2
    np.testing.assert_allclose(summary.mean, [1.0, 1.5], rtol=1e-2)


def test_failures_are_counted_without_the_copies_that_fill_a_chunk():
    problem = nde.ODEProblem(lambda t, y, p: y**2, 0.5, (0.0, 1.0))

    def vary(problem, i, seed):
        return problem.remake(y0=tf.where(i == 4, 2.0, 0.5))

    def solve(**keywords):
        return nde.solve_ensemble(problem, 5, vary=vary, batch_size=3, dt_min=1e-4, **keywords)

    with pytest.raises(nde.SolveError, match="1 of 2 trajectories.*Trajectory 4 stopped at t=0.49"):
        solve()
    assert solve(throw=False).success.numpy().tolist() == [True] * 4 + [False]


def test_mean_and_variance_train_parameters():
    """y = y0 exp(-p t) with y0 = 1, 2, 3: the mean is 2 exp(-p), the variance exp(-2p)."""

    def vary(problem, i, seed):
        return problem.remake(y0=1.0 + tf.cast(i, tf.float64))

    p = tf.constant(0.7, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(p)
        decay = nde.ODEProblem(lambda t, y, p: -p * y, np.array(1.0), (0.0, 1.0), p)
        sol = nde.solve_ensemble(decay, 3, vary=vary, saveat=[1.0], rtol=1e-10, atol=1e-10)
        summary = sol.summary()
        loss = summary.mean[0] + 3.0 * summary.var[0]
    np.testing.assert_allclose(loss, 2 * np.exp(-0.7) + 3 * np.exp(-1.4), rtol=1e-8)
    expected = -2 * np.exp(-0.7) - 6 * np.exp(-1.4)
    np.testing.assert_allclose(tape.gradient(loss, p), expected, rtol=1e-7)


def test_a_tape_changes_no_trajectory_and_gradients_pass_through_random_scales():
    def vary(problem, i, seed):
        return problem.remake(p=problem.p * tf.random.stateless_uniform((), seed, 0.5, 1.5))

    def final(p):
        decay = nde.ODEProblem(lambda t, y, p: -p * y, 1.0, (0.0, 1.0), p)
        return nde.solve_ensemble(decay, 5, vary=vary, seed=1, rtol=1e-5, atol=1e-7).y

    p = tf.constant(1.0)
    plain = final(p)
    with tf.GradientTape() as tape:
        tape.watch(p)
        y = final(p)
    np.testing.assert_allclose(y, plain, rtol=1e-6)
    # y = exp(-p s): dy/dp = -s y with s = -log(y) at p = 1.
    expected = np.sum(np.log(plain) * plain)
    np.testing.assert_allclose(tape.gradient(y, p), expected, rtol=1e-4)


def test_a_vary_that_xla_cannot_compile():
    def vary(problem, i, seed):
        return problem.remake(p=tf.random.stateless_gamma((), seed, 2.0))

    decay = nde.ODEProblem(lambda t, y, p: -p * y, 1.0, (0.0, 1.0), 1.0)
    y = nde.solve_ensemble(decay, 5, vary=vary, seed=1).y
    assert np.all((y > 0) & (y < 1)) and len(np.unique(y)) == 5


def test_plots(solution, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    ax = solution.plot(data=solution.y[:, 0], labels=["prey", "predators"])
    assert ax.get_xlabel() == "t" and len(ax.collections) == 2
    ax.figure.savefig(tmp_path / "ensemble.png")
    single = nde.solve(problem(), saveat=TIMES)
    assert len(single.plot().lines) == 2
    with pytest.raises(ValueError, match="save times"):
        nde.solve(problem()).plot()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"trajectories": 0}, ValueError, "trajectories"),
        ({"batch_size": 1.5}, ValueError, "batch_size"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"batch_ndims": 1}, ValueError, "batch axis itself"),
        ({"problem": 3}, TypeError, "ODEProblem"),
        ({"vary": 3}, TypeError, "vary"),
        ({"vary": lambda problem, i, seed: 3}, ValueError, "same functions"),
        ({"vary": lambda problem, i, seed: problem.remake(p=1.0)}, ValueError, "structure of `p`"),
        ({"saveat": np.zeros((7, 2))}, ValueError, "share their save times"),
    ],
)
def test_bad_input(change, error, match):
    arguments = {"problem": problem(), "trajectories": 3, "saveat": TIMES, **change}
    with pytest.raises(error, match=match):
        nde.solve_ensemble(**arguments)


def test_statistics_at_chosen_times():
    problem = nde.ODEProblem(lambda t, y, p: -p * y, 1.0, (0.0, 1.0), 1.0)

    def vary(problem, i, seed):
        return problem.remake(y0=tf.cast(i, tf.float32))

    sol = nde.solve_ensemble(problem, 5, vary=vary, seed=0, saveat=[0.25, 0.5, 1.0])
    whole, some, one = sol.summary(), sol.summary(at=[0.5, 1.0]), sol.summary(at=0.5)
    np.testing.assert_allclose(some.mean, whole.mean[1:])
    np.testing.assert_allclose(one.var, whole.var[1])
    np.testing.assert_allclose(one.t, 0.5)
    with pytest.raises(ValueError, match=r"\[0.3\] were not saved"):
        sol.summary(at=[0.3, 0.5])


class TestStochasticEquations:
    GRID = {"dt0": 0.125, "controller": "constant"}

    @staticmethod
    def problem():
        def f(t, y, p):
            return stack(p["rates"][0] * y[0], 0 * y[1])

        def g(t, y, p):
            return stack(p["rates"][1] * y[0], tf.ones_like(y[1]))

        def stack(*values):
            return tf.stack(values)

        p = {"rates": tf.constant([0.3, 0.4], tf.float64)}
        return nde.SDEProblem(f, g, np.array([1.0, 0.0]), (0.0, 1.0), p, noise="scalar")

    @pytest.mark.parametrize(
        ("solver", "keywords"), [("milstein", GRID), ("sosri", {"saveat": [0.3, 1.0]})]
    )
    def test_noise_depends_on_seed_and_number_alone(self, solver, keywords):
        def ensemble(trajectories, **more):
            return nde.solve_ensemble(
                self.problem(), trajectories, solver, seed=5, **keywords, **more
            ).y

        whole = ensemble(7)
        np.testing.assert_allclose(ensemble(7, batch_size=3), whole, rtol=1e-11)
        np.testing.assert_allclose(ensemble(4), whole[..., :4, :], rtol=1e-11)
        batch = self.problem()
        f, g, one = batch.f, batch.g, batch.y0

        def batched(function):
            return lambda t, y, p: tf.transpose(function(t, tf.unstack(y, axis=1), p))

        batch = batch.remake(f=batched(f), g=batched(g), y0=np.tile(one, (7, 1)))
        same = nde.solve(batch, solver, batch_ndims=1, seed=5, **keywords).y
        np.testing.assert_allclose(same, whole, rtol=1e-9)

    def test_moments_and_varied_parameters(self):
        n = 10_000
        sol = nde.solve_ensemble(
            self.problem(), n, "milstein", seed=1, saveat=[0.5, 1.0], batch_size=4000, **self.GRID
        )
        mean = sol.summary().mean.numpy()[:, 0]
        spread = np.exp(0.3) * np.sqrt(np.exp(0.16) - 1)
        # The mean of the method itself is (1 + 0.3 h)^n.
        assert abs(mean[1] - 1.0375**8) < 4 * spread / np.sqrt(n)
        assert abs(sol.summary().var.numpy()[1, 1] - 1.0) < 4 * np.sqrt(2 / n)

        def quiet(problem, i, seed):
            noise = tf.where(i == 1, tf.constant(0.0, tf.float64), problem.p["rates"][1])
            return problem.remake(p={"rates": tf.stack([problem.p["rates"][0], noise])})

        sol = nde.solve_ensemble(self.problem(), 3, "milstein", vary=quiet, seed=1, **self.GRID)
        np.testing.assert_allclose(sol.y[1, 0], 1.0375**8, rtol=1e-9)
        assert abs(sol.y[0, 0] - sol.y[1, 0]) > 1e-6

    def test_gradients_of_moments(self):
        rates = tf.constant([0.3, 0.4], tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(rates)
            problem = self.problem().remake(p={"rates": rates})
            sol = nde.solve_ensemble(problem, 2000, "milstein", seed=2, **self.GRID)
            mean = sol.summary().mean[0]
        bar = tape.gradient(mean, rates)
        np.testing.assert_allclose(bar[0], np.exp(0.3), rtol=0.06)
        assert abs(bar[1]) < 0.1

    def test_a_vary_that_changes_the_noise_is_refused(self):
        def vary(problem, i, seed):
            return problem.remake(g=lambda t, y, p: y)

        with pytest.raises(ValueError, match="same functions"):
            nde.solve_ensemble(self.problem(), 2, "milstein", vary=vary, seed=1, **self.GRID)


def test_mass_matrices_and_jacobians_are_those_of_the_problem():
    """0 = z - p x², x' = -z, so that x = 1 / (1 / x0 + p t)."""

    def field(t, y, p):
        return tf.stack([-y[1], y[1] - p * y[0] ** 2])

    def jacobian(t, y, p):
        zero, one = tf.zeros_like(p), tf.ones_like(p)
        return tf.stack([tf.stack([zero, -one]), tf.stack([-2.0 * p * y[0], one])])

    problem = nde.ODEProblem(
        field,
        np.array([0.5, 0.25]),
        (0.0, 1.0),
        1.0,
        mass_matrix=np.diag([1.0, 0.0]),
        jacobian=jacobian,
    )

    def vary(problem, i, seed):
        p = 1.0 + tf.cast(i, tf.float64)
        return problem.remake(p=p, y0=tf.stack([tf.constant(0.5, tf.float64), 0.25 * p]))

    sol = nde.solve_ensemble(problem, 3, "rodas5p", vary=vary, rtol=1e-8, atol=1e-8)
    p = np.arange(1.0, 4.0)
    x = 1.0 / (2.0 + p)
    np.testing.assert_allclose(sol.y, np.stack([x, p * x**2], -1), rtol=1e-7)
    with pytest.raises(ValueError, match="`mass_matrix` belongs to implicit"):
        nde.solve_ensemble(problem, 3, "tsit5", vary=vary)


# Means and standard deviations of the noisy spiral at five times in (0, 1), from 950,000
# paths of an independent NumPy program: Heun's drift with Milstein's noise, steps of 1/348.
SPIRAL_TIMES = np.array([5, 11, 17, 23, 29]) / 29
SPIRAL_MEAN = [
    [0.99957, 1.84551], [-1.34827, 1.44166], [-1.55313, -0.42414], [-0.51037, -1.31338],
    [0.57114, -1.00524],
]  # fmt: skip
SPIRAL_DEVIATION = [
    [0.15639, 0.15428], [0.45282, 0.27584], [0.28609, 0.82013], [0.93273, 0.52276],
    [0.95800, 0.76776],
]  # fmt: skip


def spiral_of_many_paths(drift_of_noise):
    """10,000 paths of dx = f dt + 0.2 x dW, with so much of the drift 0.2²/2 x added."""

    def f(t, u, p):
        x, y = tf.unstack(u**3)
        return tf.stack([-0.1 * x - 2.0 * y, 2.0 * x - 0.1 * y]) + drift_of_noise * 0.02 * u

    problem = nde.SDEProblem(f, lambda t, u, p: 0.2 * u, np.array([2.0, 0.0]), (0.0, 1.0))
    return nde.solve_ensemble(
        problem, 10_000, "sosri", seed=5, saveat=SPIRAL_TIMES, dt0=1 / 116, controller="constant"
    ).summary()


def test_the_mean_of_ten_thousand_paths_is_within_its_standard_error():
    """Within 3 standard errors, the reference's own included; the other integral is outside."""
    errors = np.array(SPIRAL_DEVIATION) * np.sqrt(1 / 10_000 + 1 / 950_000)
    found = spiral_of_many_paths(0.0)
    assert np.max(np.abs(found.mean - SPIRAL_MEAN) / errors) < 3.0
    # A variance of 10,000 paths is known to a few percent.
    np.testing.assert_allclose(np.sqrt(found.var), SPIRAL_DEVIATION, rtol=0.05)
    other = spiral_of_many_paths(1.0)
    assert np.max(np.abs(other.mean - SPIRAL_MEAN) / errors) > 6.0


@pytest.mark.parametrize("compiled", [False, True])
def test_a_graph_without_a_seed_draws_one_whenever_it_runs(compiled):
    noisy = nde.SDEProblem(lambda t, y, p: -y, lambda t, y, p: 0.5 + 0.0 * y, 1.0, (0.0, 1.0))

    @tf.function(jit_compile=compiled)
    def run():
        options = {"controller": "constant", "dt0": 0.25}
        return nde.solve_ensemble(noisy, 4, "euler_maruyama", batch_size=3, **options).y

    first, second = run().numpy(), run().numpy()
    assert len(np.unique(np.concatenate([first, second]))) == 8
