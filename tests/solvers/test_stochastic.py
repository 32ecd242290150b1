"""Stochastic methods: observed orders, interpretations, adaptive steps, refusals."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import keras_neuralde as nde
from keras_neuralde import solvers
from keras_neuralde.equations import stochastic
from keras_neuralde.solvers.sde import STOCHASTIC, LambaEM
from keras_neuralde.tableaus.stochastic import SOSRI

ROWS = 1000
GROWTH, VOLATILITY = 0.7, 0.5


def stack(*columns):
    return tf.stack(columns, -1)


# Each problem carries its Brownian motion w along, so that its solution is known path by path.
class Geometric:
    """dx = a x dt + b x dW."""

    y0, span = [1.0, 0.0], (0.0, 1.0)
    noises = ("scalar", "general")

    @staticmethod
    def f(t, y, p):
        return stack(p[0] * y[..., 0], tf.zeros_like(y[..., 1]))

    @staticmethod
    def g(t, y, p):
        return stack(p[1] * y[..., 0], tf.ones_like(y[..., 1]))

    @staticmethod
    def exact(t, w, ito):
        return np.exp((GROWTH - ito * VOLATILITY**2 / 2) * t + VOLATILITY * w)


class Arctangent:
    """dx = -b² sin x cos³ x dt + b cos² x dW in the Itô sense, without drift in the other."""

    y0, span = [0.3, 0.0], (0.0, 1.0)
    noises = ("scalar", "general")

    @staticmethod
    def f(t, y, p):
        x = y[..., 0]
        drift = -p[2] * p[1] ** 2 * tf.sin(x) * tf.cos(x) ** 3
        return stack(drift, tf.zeros_like(x))

    @staticmethod
    def g(t, y, p):
        return stack(p[1] * tf.cos(y[..., 0]) ** 2, tf.ones_like(y[..., 1]))

    @staticmethod
    def exact(t, w, ito):
        return np.arctan(VOLATILITY * w + np.tan(0.3))


class Additive:
    """dx = (b/√(1+t) - x/(2(1+t))) dt + a b/√(1+t) dW, with a = growth and b = volatility."""

    y0, span = [1.0, 0.0], (0.0, 1.0)
    noises = ("additive",)

    @staticmethod
    def f(t, y, p):
        t = t[..., None]
        x = y[..., :1]
        return tf.concat([p[1] / tf.sqrt(1 + t) - x / (2 * (1 + t)), tf.zeros_like(x)], -1)

    @staticmethod
    def g(t, y, p):
        return stack(p[0] * p[1] / tf.sqrt(1 + t), tf.ones_like(t))

    @staticmethod
    def exact(t, w, ito):
        return (1.0 + VOLATILITY * (t + GROWTH * w)) / np.sqrt(1 + t)


def problem(kind, noise, interpretation="ito", rows=ROWS, dtype=np.float64):
    matrix = noise in ("general", "additive")
    # The last parameter switches the Itô drift of the arctangent.
    p = np.array([GROWTH, VOLATILITY, interpretation == "ito"], dtype)
    y0 = np.tile(np.array(kind.y0, dtype), (rows, 1))
    g = (lambda t, y, p: kind.g(t, y, p)[..., None]) if matrix else kind.g
    columns = {"noise_dim": 1} if matrix else {}
    return nde.SDEProblem(
        kind.f, g, y0, kind.span, p, noise=noise, interpretation=interpretation, **columns
    )


def error(problem, kind, sol, t=None):
    """The root mean square error over the paths, at each save time."""
    x, w = sol.y[..., 0].numpy(), sol.y[..., 1].numpy()
    t = sol.t.numpy()[:, None] if t is None else t
    exact = kind.exact(t, w, problem.interpretation == "ito")
    return np.sqrt(np.mean((x - exact) ** 2, axis=-1))


def cases():
    found = []
    for name, method in STOCHASTIC.items():
        for interpretation in method.interpretations:
            for kind in (Geometric, Arctangent, Additive):
                noise = next((noise for noise in kind.noises if noise in method.noises), None)
                if noise is not None and not (name == "sosri" and kind is Arctangent):
                    label = f"{name}-{interpretation}-{noise}-{kind.__name__}"
                    found.append(pytest.param(name, interpretation, kind, noise, id=label))
    return found


@pytest.mark.parametrize(("name", "interpretation", "kind", "noise"), cases())
def test_strong_order(name, interpretation, kind, noise):
    """The error of single paths falls as promised when steps are halved."""
    method = STOCHASTIC[name]
    equation = problem(kind, noise, interpretation)
    errors = [
        error(
            equation,
            kind,
            nde.solve(equation, name, dt0=dt, controller="constant", batch_ndims=1, seed=1),
            1.0,
        )
        for dt in (2.0**-4, 2.0**-6, 2.0**-8)
    ]
    observed = np.log2(errors[0] / errors[-1]) / 4
    # One noise alone commutes: the methods for the Stratonovich integral gain half an order.
    promised = 1.0 if interpretation == "stratonovich" else method.strong_order
    promised = max(promised, method.strong_order)
    if noise == "additive" and method.strong_order_additive:
        promised = method.strong_order_additive
    assert observed > promised - 0.12, errors
    if kind is not Additive:
        # (The additive equation is so simple that Heun's method does better than promised.)
        assert observed < promised + 0.45, errors


def test_sosri_on_the_arctangent():
    """Its error constant is large there: the order shows at smaller steps."""
    equation = problem(Arctangent, "scalar")
    errors = [
        error(
            equation,
            Arctangent,
            nde.solve(equation, "sosri", dt0=dt, controller="constant", batch_ndims=1, seed=1),
            1.0,
        )
        for dt in (2.0**-6, 2.0**-9)
    ]
    assert 1.35 < np.log2(errors[0] / errors[1]) / 3 < 1.9, errors


# Three equations side by side, each with rates and a Brownian motion of its own.
GROWTHS, VOLATILITIES = np.array([0.7, -0.3, 0.2]), np.array([0.5, 0.3, 0.6])
COMPONENTS = {
    # dx = a x dt + b x dW
    "diagonal": (
        lambda t, y, p: GROWTHS * y,
        lambda t, y, p: VOLATILITIES * y,
        lambda w, ito: np.exp(GROWTHS - ito * VOLATILITIES**2 / 2 + VOLATILITIES * w),
    ),
    # Those of `Additive`.
    "additive": (
        lambda t, y, p: VOLATILITIES / tf.sqrt(1 + t)[:, None] - y / (2 * (1 + t)[:, None]),
        lambda t, y, p: GROWTHS * VOLATILITIES / tf.sqrt(1 + t)[:, None],
        lambda w, ito: (1.0 + VOLATILITIES * (1.0 + GROWTHS * w)) / np.sqrt(2.0),
    ),
}


@functools.cache
def ends_of_three(dt):
    """W(1) on the grid of a step size, `(ROWS, 3)`."""
    sde = nde.SDEProblem(
        lambda t, y, p: tf.zeros_like(y), lambda t, y, p: tf.ones_like(y),
        np.zeros((ROWS, 3)), (0.0, 1.0),
    )  # fmt: skip
    sol = nde.solve(sde, "euler_maruyama", dt0=dt, controller="constant", batch_ndims=1, seed=2)
    return sol.y.numpy()


def three():
    for name, method in STOCHASTIC.items():
        noise = next((one for one in COMPONENTS if one in method.noises), None)
        for interpretation in method.interpretations if noise else ():
            label = f"{name}-{interpretation}-{noise}"
            yield pytest.param(name, interpretation, noise, id=label)


@pytest.mark.parametrize(("name", "interpretation", "noise"), list(three()))
def test_strong_order_of_three_components(name, interpretation, noise):
    """Each keeps the order, and hears its own Brownian motion."""
    f, g, exact = COMPONENTS[noise]
    sde = nde.SDEProblem(
        f, g, np.ones((ROWS, 3)), (0.0, 1.0), noise=noise, interpretation=interpretation
    )
    sizes = (2.0**-4, 2.0**-6, 2.0**-8)
    errors, swapped = [], []
    for dt in sizes:
        y = nde.solve(sde, name, dt0=dt, controller="constant", batch_ndims=1, seed=2).y.numpy()
        w = ends_of_three(dt)
        for found, motion in ((errors, w), (swapped, np.roll(w, 1, axis=1))):
            apart = y - exact(motion, interpretation == "ito")
            found.append(np.sqrt(np.mean(apart**2, axis=0)))
    assert np.max(np.abs(np.corrcoef(w.T) - np.eye(3))) < 5 / np.sqrt(ROWS)
    method = STOCHASTIC[name]
    promised = max(method.strong_order, 1.0 if interpretation == "stratonovich" else 0.0)
    observed = np.log2(errors[0] / errors[-1]) / 4
    assert np.all(observed > promised - 0.12), errors
    if noise != "additive":
        # (As above: these equations are so simple that `sra1` does better.)
        assert np.all(observed < promised + 0.45), errors
    assert np.all(swapped[-1] > 0.05), swapped


def area_equation(rows=ROWS, interpretation="ito", noise="general"):
    """dx = dW1, dv = x dW2, the same in either sense; v is no function of W(T)."""

    def g(t, y, p):
        one, x = tf.ones_like(y[:, 0]), y[:, 0]
        return tf.stack([stack(one, 0 * one), stack(0 * one, x)], 1)

    if noise == "diagonal":
        return nde.SDEProblem(
            lambda t, y, p: tf.zeros_like(y), lambda t, y, p: tf.linalg.diag_part(g(t, y, p)),
            np.zeros((rows, 2)), (0.0, 1.0), interpretation=interpretation,
        )  # fmt: skip
    return nde.SDEProblem(
        lambda t, y, p: tf.zeros_like(y), g, np.zeros((rows, 2)), (0.0, 1.0),
        noise="general", noise_dim=2, interpretation=interpretation,
    )  # fmt: skip


FINEST = 256


@functools.cache
def along_the_tree(name, interpretation, steps=FINEST):
    """The states at the end of equal steps, along one path whatever their number.

    Replayed steps ask the tree, so that the path is that of adaptive steps of the same seed.
    """
    noise = "general" if "general" in STOCHASTIC[name].noises else "diagonal"
    times = np.full(FINEST + 1, np.nan)
    times[: steps + 1] = np.linspace(0.0, 1.0, steps + 1)
    equation = AREAS.setdefault((noise, interpretation), area_equation(ROWS, interpretation, noise))
    return nde.solve(equation, name, steps=times, batch_ndims=1, seed=4).y.numpy()


def ornstein_uhlenbeck(interpretation, noise, rows=ROWS):
    """dx = -2 x dt + dW, the same in either sense."""

    def g(t, y, p):
        return tf.ones_like(y)[..., None] if noise == "additive" else tf.ones_like(y)

    columns = {"noise_dim": 1} if noise == "additive" else {}
    return nde.SDEProblem(
        lambda t, y, p: -2.0 * y, g, np.ones((rows, 1)), (0.0, 1.0),
        noise=noise, interpretation=interpretation, **columns,
    )  # fmt: skip


@pytest.mark.parametrize("name", STOCHASTIC)
def test_strong_order_of_the_ornstein_uhlenbeck_process(name):
    """Against the finest steps on the same path, and these against the law at the end."""
    method = STOCHASTIC[name]
    noise = "additive" if "additive" in method.noises else "diagonal"
    equation = ornstein_uhlenbeck(method.interpretations[0], noise)

    def at_the_end(steps):
        times = np.full(FINEST + 1, np.nan)
        times[: steps + 1] = np.linspace(0.0, 1.0, steps + 1)
        return nde.solve(equation, name, steps=times, batch_ndims=1, seed=4).y.numpy()[:, 0]

    finest = at_the_end(FINEST)
    errors = [np.sqrt(np.mean((at_the_end(n) - finest) ** 2)) for n in (8, 32)]
    promised = max(1.0, method.strong_order_additive or method.strong_order)
    # What the finest steps lack, too, is known for the order that is promised.
    sizes = [n**-promised - FINEST**-promised for n in (8, 32)]
    observed = promised * np.log(errors[0] / errors[1]) / np.log(sizes[0] / sizes[1])
    assert observed > promised - 0.15, errors
    mean, variance = np.exp(-2.0), (1.0 - np.exp(-4.0)) / 4.0
    assert abs(np.mean(finest) - mean) < 4.0 * np.sqrt(variance / ROWS)
    assert abs(np.var(finest) / variance - 1.0) < 4.0 * np.sqrt(2.0 / ROWS)


# The equations, so that programs are used again.
AREAS: dict = {}
# What v lacks after a step of size h has the variance h²/2 where x is read at its start, the
# integral of W1 - W1(t) over W2; h²/4 where both ends are read, the Lévy area; and for Itô's
# `milstein`, which takes x dW2 for a diagonal noise that commutes, h²/2 more.
VARIANCES = {
    "euler_maruyama": 0.5, "lamba_em": 0.5, "euler_heun": 0.25, "stochastic_heun": 0.25,
    "reversible_heun": 0.25, "milstein-ito": 1.0, "milstein-stratonovich": 0.25,
}  # fmt: skip


def not_commuting():
    for name, method in STOCHASTIC.items():
        if "general" in method.noises or "diagonal" in method.noises:
            for interpretation in method.interpretations:
                yield pytest.param(name, interpretation, id=f"{name}-{interpretation}")


@pytest.mark.parametrize(("name", "interpretation"), list(not_commuting()))
def test_strong_order_of_noise_that_does_not_commute(name, interpretation):
    """½ whatever the method, against the finest steps on the same path."""
    finest, counts = along_the_tree(name, interpretation), np.array([4, 32])
    apart = np.array([along_the_tree(name, interpretation, n) - finest for n in counts])
    np.testing.assert_allclose(apart[..., 0], 0.0, atol=1e-12)
    square, sizes = np.mean(apart[..., 1] ** 2, axis=1), 1 / counts - 1 / FINEST
    observed = np.log(square[0] / square[1]) / np.log(sizes[0] / sizes[1]) / 2
    assert abs(observed - 0.5) < 0.06, observed
    variance = VARIANCES.get(name, VARIANCES.get(f"{name}-{interpretation}"))
    if variance:
        np.testing.assert_allclose(square, variance * sizes, rtol=0.15)
    # All methods and both integrals converge to one solution.
    euler = along_the_tree("euler_maruyama", "ito")
    assert np.sqrt(np.mean((finest - euler) ** 2)) < 2.5 / np.sqrt(FINEST)
    if "general" in STOCHASTIC[name].noises:
        assert STOCHASTIC[name].strong_order == 0.5


def test_chosen_steps_converge_where_noises_do_not_commute():
    """The error falls with the root of the steps that the tolerance takes."""
    finest = along_the_tree("lamba_em", "ito")
    errors, steps = [], []
    for tolerance in (0.2, 0.05, 0.0125):
        sol = nde.solve(
            area_equation(), "lamba_em", rtol=0.0, atol=tolerance, batch_ndims=1, seed=4
        )
        errors.append(np.sqrt(np.mean((sol.y[:, 1] - finest[:, 1]) ** 2)))
        steps.append(np.mean(sol.stats.num_accepted))
        np.testing.assert_allclose(sol.y[:, 0], finest[:, 0], atol=1e-12)
    observed = -np.log(errors[-1] / errors[0]) / np.log(steps[-1] / steps[0])
    assert steps[-1] > 2.0 * steps[0] and observed > 0.4, (errors, steps)


def test_ito_and_stratonovich_differ_by_the_known_drift():
    """x_S = x_I exp(b² T / 2) on the same Brownian path."""
    ends = [
        nde.solve(
            problem(Geometric, "scalar", interpretation),
            "milstein",
            dt0=2.0**-9,
            controller="constant",
            batch_ndims=1,
            seed=3,
        ).y[:, 0]
        for interpretation in ("ito", "stratonovich")
    ]
    ratio = np.log(ends[1] / ends[0])
    np.testing.assert_allclose(ratio, VOLATILITY**2 / 2, atol=0.02)
    assert abs(np.mean(ratio) - VOLATILITY**2 / 2) < 2e-3


def test_general_noise_that_does_not_commute():
    """dx = dW1, dv = x dW2: E v² = T²/2, E x²v² = T³/2 + 2T³/3, and v is no function of W(T)."""
    sde = area_equation(100_000)
    n = 64
    y = nde.solve(sde, "euler_maruyama", dt0=1 / n, controller="constant", batch_ndims=1, seed=4).y
    x, v = y.numpy().T
    assert stats.kstest(x, "norm").pvalue > 1e-3
    # The variance of the Euler solution is Σ h t_k, and E x²v² = Σ h (t_k + 2 t_k²).
    t = np.arange(n) / n
    np.testing.assert_allclose(np.mean(v**2), t.mean(), rtol=0.03)
    np.testing.assert_allclose(np.mean((x * v) ** 2), np.mean(t + 2 * t**2), rtol=0.08)


def test_order_conditions_of_sosri():
    """Rößler (2010), theorem 6.2: the 25 conditions for strong order 1.5."""

    def full(rows):
        return np.array([[*row, *[0.0] * (4 - len(row))] for row in rows])

    a0, a1, b0, b1 = (full(rows) for rows in (SOSRI.a0, SOSRI.a1, SOSRI.b0, SOSRI.b1))
    alpha, beta = np.array(SOSRI.alpha), np.array(SOSRI.beta)
    e = np.ones(4)
    r0, r1 = b0 @ e, b1 @ e
    conditions = [
        (alpha @ e, 1), (alpha @ a0 @ e, 1 / 2), (alpha @ r0, 1), (alpha @ r0**2, 3 / 2),
        *zip(beta @ e, (1, 0, 0, 0), strict=True),
        *zip(beta @ r1, (0, 1, 0, 0), strict=True),
        *zip(beta @ a1 @ e, (1, 0, -1, 0), strict=True),
        *zip(beta @ r1**2, (1, 0, -1, 2), strict=True),
        *zip(beta @ b1 @ r1, (0, 0, 0, 1), strict=True),
        (beta[0] @ a1 @ r0 / 2 + beta[2] @ a1 @ r0 / 3, 0),
    ]  # fmt: skip
    assert len(conditions) == 25
    for found, expected in conditions:
        assert abs(found - expected) < 1e-12


class TestAdaptiveSteps:
    @pytest.mark.parametrize(
        ("name", "kind", "noise"),
        [
            ("sosri", Geometric, "scalar"),
            ("sra1", Additive, "additive"),
            ("lamba_em", Geometric, "general"),
        ],
    )
    def test_errors_follow_the_tolerance(self, name, kind, noise):
        equation = problem(kind, noise, rows=300)
        errors, steps = [], []
        for tolerance in (1e-1, 1e-2, 1e-3):
            sol = nde.solve(equation, name, rtol=tolerance, atol=tolerance, batch_ndims=1, seed=5)
            errors.append(error(equation, kind, sol, 1.0))
            steps.append(np.mean(sol.stats.num_steps))
        assert errors[0] > errors[1] > errors[2] and steps[0] < steps[1] < steps[2]
        assert errors[2] < (0.1 if name == "lamba_em" else 0.02)

    def test_the_path_does_not_know_the_steps(self):
        """W(T) is the same to rounding at any tolerance, and has the right law."""
        equation = problem(Geometric, "scalar", rows=4000)
        found = [
            nde.solve(equation, "sosri", rtol=tol, atol=tol, batch_ndims=1, seed=6)
            for tol in (0.3, 1e-3)
        ]
        assert np.mean(found[1].stats.num_rejected) > 0.5
        ends = [sol.y[:, 1].numpy() for sol in found]
        np.testing.assert_allclose(*ends, atol=1e-12)
        assert stats.kstest(ends[1], "norm").pvalue > 1e-3

    def test_rejections_do_not_tilt_the_law(self):
        """Without drift x stays a martingale under Euler's method, E x(T) = 1, with any steps that
        are chosen before their noise is seen."""
        rows = 20_000
        sde = nde.SDEProblem(
            lambda t, y, p: tf.zeros_like(y), lambda t, y, p: y, np.ones((rows, 1)), (0.0, 1.0)
        )

        def mean(solver):
            sol = nde.solve(sde, solver, rtol=0.05, atol=0.05, batch_ndims=1, seed=7)
            assert np.mean(sol.stats.num_rejected) > 0.5
            y = sol.y.numpy()
            return np.mean(y), np.std(y) / np.sqrt(rows)

        fair, noise = mean(LambaEM())
        assert abs(fair - 1.0) < 4 * noise
        tilted, noise = mean(Peeking())
        assert abs(tilted - 1.0) > 6 * noise

    def test_defaults(self):
        """`auto` is sosri where it applies; tolerances are 1e-2."""
        equation = problem(Geometric, "scalar", rows=5)
        chosen = nde.solve(equation, batch_ndims=1, seed=8)
        named = nde.solve(equation, "sosri", rtol=1e-2, atol=1e-2, batch_ndims=1, seed=8)
        np.testing.assert_array_equal(chosen.y, named.y)
        general = problem(Geometric, "general", rows=5)
        chosen = nde.solve(general, batch_ndims=1, seed=8)
        named = nde.solve(general, "lamba_em", rtol=1e-2, atol=1e-2, batch_ndims=1, seed=8)
        np.testing.assert_array_equal(chosen.y, named.y)


class Peeking(LambaEM):
    """Judges a step by its noise: what `lamba_em` must not do."""

    name = "peeking"
    previsible = False

    def _propose(self, g, t, t_next, y, h):
        w = g.noise(t, t_next).w
        y1, _ = super()._propose(g, t, t_next, y, h)
        return y1, 0.5 * y * (w * w - tf.abs(h))


class TestSavePoints:
    TIMES = np.array([0.0, 0.07, 0.0701, 0.5, 0.93, 1.0])

    @pytest.mark.parametrize("name", ["milstein", "sosri"])
    @pytest.mark.parametrize("adaptive", [False, True])
    def test_law_and_order_between_the_steps(self, name, adaptive):
        if adaptive and name == "milstein":
            pytest.skip("fixed steps only")
        equation = problem(Geometric, "scalar", rows=4000)
        keywords = {"rtol": 1e-3, "atol": 1e-3} if adaptive else {"controller": "constant"}

        def solve(dt):
            fixed = {} if adaptive else {"dt0": dt}
            return nde.solve(
                equation, name, saveat=self.TIMES, batch_ndims=1, seed=9, **keywords, **fixed
            )

        coarse = solve(2.0**-4)
        w = coarse.y[:, :, 1].numpy()
        np.testing.assert_array_equal(w[0], 0.0)
        steps = np.diff(w, axis=0) / np.sqrt(np.diff(self.TIMES))[:, None]
        assert min(stats.kstest(row, "norm").pvalue for row in steps) > 1e-3
        assert np.max(np.abs(np.corrcoef(steps) - np.eye(5))) < 5 / np.sqrt(4000)
        errors = error(equation, Geometric, coarse)
        if adaptive:
            assert np.all(errors < 5e-3)
            return
        observed = np.log2(errors[1:] / error(equation, Geometric, solve(2.0**-7))[1:]) / 3
        assert np.all(observed[2:] > STOCHASTIC[name].strong_order - 0.15), observed

    def test_more_save_points_are_the_same_path(self):
        equation = problem(Geometric, "scalar", rows=50)
        keywords = {"rtol": 1e-3, "atol": 1e-3, "batch_ndims": 1, "seed": 10}
        few = nde.solve(equation, "sosri", **keywords)
        many = nde.solve(equation, "sosri", saveat=self.TIMES, **keywords)
        np.testing.assert_allclose(few.y[:, 1], many.y[-1, :, 1], atol=1e-12)
        np.testing.assert_allclose(few.y, many.y[-1], rtol=0.02)

    def test_on_the_grid_nothing_changes(self):
        """Save points that end steps cost no step, and the path is that of the grid."""
        equation = problem(Geometric, "scalar", rows=20)
        keywords = {"dt0": 0.1, "controller": "constant", "batch_ndims": 1, "seed": 11}
        final = nde.solve(equation, "euler_maruyama", **keywords)
        grid = nde.solve(equation, "euler_maruyama", saveat=[0.3, 0.7, 1.0], **keywords)
        np.testing.assert_allclose(grid.y[-1], final.y, rtol=1e-12)
        np.testing.assert_array_equal(grid.stats.num_steps, 10)
        off = nde.solve(equation, "euler_maruyama", saveat=[0.3, 0.72, 1.0], **keywords)
        np.testing.assert_array_equal(off.stats.num_steps, 11)
        np.testing.assert_allclose(off.y[0], grid.y[0], rtol=1e-12)
        np.testing.assert_allclose(off.y[-1, :, 1], final.y[:, 1], atol=1e-12)

    def test_times_of_each_trajectory(self):
        equation = problem(Geometric, "scalar", rows=3)
        times = np.array([[0.2, 0.9], [0.5, np.nan], [0.05, 1.0]])
        keywords = {"rtol": 1e-4, "atol": 1e-4, "batch_ndims": 1, "seed": 12}
        sol = nde.solve(equation, "sosri", saveat=times, **keywords)
        shared = nde.solve(equation, "sosri", saveat=[0.05, 0.2, 0.5, 0.9, 1.0], **keywords)
        w = shared.y[:, :, 1].numpy()
        expected = [[w[1, 0], w[2, 1], w[0, 2]], [w[3, 0], np.nan, w[4, 2]]]
        np.testing.assert_allclose(sol.y[:, :, 1], expected, atol=1e-12)
        assert np.all(error(equation, Geometric, sol, times.T)[0] < 1e-2)


class TestTheSameEverywhere:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize(
        ("name", "keywords"),
        [
            ("sosri", {"rtol": 1e-2, "atol": 1e-2, "saveat": [0.3, 1.0]}),
            ("euler_maruyama", {"dt0": 0.1, "controller": "constant"}),
        ],
    )
    def test_compiled_plain_and_alone(self, name, keywords, dtype):
        equation = problem(Geometric, "scalar", rows=4, dtype=dtype)

        def solve(y0, seed):
            return nde.solve(equation.remake(y0=y0), name, batch_ndims=1, seed=seed, **keywords).y

        y0 = tf.constant(equation.y0)
        eager = solve(y0, 13)
        plain = tf.function(solve, autograph=False)(y0, tf.constant([13, 0]))
        compiled = tf.function(solve, autograph=False, jit_compile=True)(y0, tf.constant([13, 0]))
        tolerance = 1e-5 if dtype == np.float32 else 1e-12
        np.testing.assert_allclose(eager, plain, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(eager, compiled, rtol=tolerance, atol=tolerance)
        first = solve(y0[:2], 13)
        np.testing.assert_allclose(eager[..., :2, :], first, rtol=tolerance, atol=tolerance)
        assert not np.allclose(eager, solve(y0, 14))

    def test_a_dynamic_batch_and_a_new_seed_do_not_retrace(self):
        equation = problem(Geometric, "scalar", rows=4)
        traces = []

        @tf.function(autograph=False, input_signature=[
            tf.TensorSpec((None, 2), tf.float64), tf.TensorSpec((2,), tf.int32)
        ])  # fmt: skip
        def solve(y0, seed):
            traces.append(1)
            return nde.solve(equation.remake(y0=y0), "sosri", batch_ndims=1, seed=seed).y

        four = solve(equation.y0, tf.constant([13, 0]))
        two = solve(equation.y0[:2], tf.constant([13, 0]))
        np.testing.assert_allclose(four[:2], two, rtol=1e-12)
        assert len(traces) == 1 and not np.allclose(four, solve(equation.y0, tf.constant([1, 0])))

    def test_without_a_seed_every_call_is_another_path(self):
        equation = problem(Geometric, "scalar", rows=4)
        keywords = {"dt0": 0.1, "controller": "constant", "batch_ndims": 1}

        def solve():
            return nde.solve(equation, "euler_maruyama", **keywords).y

        compiled = tf.function(solve, autograph=False, jit_compile=True)
        for run in (solve, compiled):
            assert np.all(np.abs(run() - run()) > 1e-9)

    def test_seeds_of_each_trajectory(self):
        equation = problem(Geometric, "scalar", rows=2)
        keywords = {"dt0": 0.1, "controller": "constant"}
        seeds = tf.constant([[5, 0], [6, 0]])
        both = nde.solve(equation, "milstein", batch_ndims=1, seed=seeds, **keywords).y
        for row, seed in enumerate((5, 6)):
            alone = nde.solve(
                equation.remake(y0=equation.y0[row]), "milstein", seed=seed, **keywords
            )
            np.testing.assert_allclose(both[row], alone.y, rtol=1e-12)


def test_nests_and_matrices():
    """A nest of states with a general diffusion, and one number as state."""
    y0 = {"a": np.ones((3,)), "b": np.ones((3, 2))}
    sde = nde.SDEProblem(
        lambda t, y, p: {"a": -y["a"], "b": -y["b"]},
        lambda t, y, p: {"a": tf.stack([y["a"], y["a"]], -1), "b": tf.stack([y["b"]] * 2, -1)},
        y0,
        (0.0, 1.0),
        noise="general",
    )
    y = nde.solve(sde, "euler_maruyama", dt0=0.1, controller="constant", batch_ndims=1, seed=1).y
    assert y["a"].shape == (3,) and y["b"].shape == (3, 2)
    np.testing.assert_allclose(y["b"], np.stack([y["a"]] * 2, -1), rtol=1e-12)
    one = nde.SDEProblem(lambda t, y, p: -y, lambda t, y, p: 0.1 * y, 1.0, (0.0, 1.0))
    assert nde.solve(one, seed=1).y.shape == ()


def test_backwards_along_the_same_path():
    """The Stratonovich solution, followed forwards and back, is where it was."""
    keywords = {"dt0": 2.0**-9, "controller": "constant", "batch_ndims": 1, "seed": 15}
    there = problem(Geometric, "scalar", "stratonovich", rows=100)
    end = nde.solve(there, "stochastic_heun", **keywords).y
    back = nde.solve(there.remake(y0=end, t_span=(1.0, 0.0)), "stochastic_heun", **keywords).y
    np.testing.assert_allclose(back[:, 1], 0.0, atol=1e-12)
    np.testing.assert_allclose(back[:, 0], 1.0, atol=0.01)
    again = nde.solve(there.remake(y0=end, t_span=(1.0, 0.0)), "reversible_heun", **keywords).y
    np.testing.assert_allclose(again[:, 0], 1.0, atol=0.01)


def test_backwards_with_adaptive_steps():
    """There and back along one path, each way with steps of its own; noise that is additive."""
    keywords = {"rtol": 1e-6, "atol": 1e-6, "batch_ndims": 1, "seed": 15}
    there = problem(Additive, "additive", rows=100)
    end = nde.solve(there, "sra1", **keywords)
    back = nde.solve(there.remake(y0=end.y, t_span=Additive.span[::-1]), "sra1", **keywords)
    assert np.any(back.stats.num_steps != end.stats.num_steps)
    np.testing.assert_allclose(back.y[:, 1], Additive.y0[1], atol=1e-12)
    np.testing.assert_allclose(back.y[:, 0], Additive.y0[0], atol=1e-3)
    assert np.all(np.abs(end.y[:, 0] - Additive.y0[0]) > 0.0)


def test_a_failed_trajectory_is_alone():
    sde = nde.SDEProblem(
        lambda t, y, p: y * y, lambda t, y, p: 0.1 * y, np.array([[10.0], [0.1]]), (0.0, 1.0)
    )
    sol = nde.solve(sde, "sosri", batch_ndims=1, seed=1, throw=False)
    assert sol.status[0] != 0 and sol.status[1] == 0
    assert np.isnan(sol.y[0, 0]) and np.isfinite(sol.y[1, 0])


def plain(**fields):
    fields = {
        "f": lambda t, y, p: -y, "g": lambda t, y, p: y, "y0": np.ones((3, 2)),
        "t_span": (0.0, 1.0), **fields,
    }  # fmt: skip
    return nde.SDEProblem(**fields)


def matrix(t, y, p):
    return tf.stack([y, y, y], -1)


@pytest.mark.parametrize(
    ("fields", "solver", "keywords", "words"),
    [
        ({"g": lambda t, y, p: y[:, :1]}, "sosri", {}, "shape of y"),
        ({"g": matrix}, "sosri", {}, "shape of y"),
        ({"g": lambda t, y, p: None}, "sosri", {}, "shape of y.*is a `return` missing"),
        ({"g": lambda t, y, p: y, "noise": "general"}, "lamba_em", {}, "noise_dim"),
        ({"g": matrix, "noise": "general", "noise_dim": 2}, "lamba_em", {}, "noise_dim"),
        ({"noise": "additive"}, "sra1", {}, "does not depend on y"),
        ({"g": matrix, "noise": "general"}, "sosri", {}, "lamba_em"),
        ({"g": matrix, "noise": "general"}, "milstein", {"dt0": 0.1}, "takes the noise types"),
        ({"interpretation": "stratonovich"}, "sosri", {}, "stratonovich"),
        ({"interpretation": "stratonovich"}, "auto", {}, "stochastic_heun"),
        ({}, "euler_heun", {"dt0": 0.1}, "stratonovich"),
        ({}, "tsit5", {}, "stochastic equations"),
        ({}, "sra1", {}, "additive"),
        ({}, "euler_maruyama", {}, "dt0"),
        ({}, "euler_maruyama", {"dt0": 0.1, "controller": "I"}, "no error estimate"),
        ({}, "sosri", {"step_control": "joint"}, "joint"),
        ({}, "sosri", {"seed": tf.zeros((3,), tf.int32)}, "`seed`"),
    ],
)  # fmt: skip
def test_refusals(fields, solver, keywords, words):
    with pytest.raises(ValueError, match=words):
        nde.solve(plain(**fields), solver, batch_ndims=1, **keywords)


def test_refusals_of_types_and_fields():
    with pytest.raises(TypeError, match="`g`"):
        plain(g=1.0)
    for fields in (
        {"noise": "pink"},
        {"interpretation": "marcus"},
        {"noise_dim": 2},
        {"noise": "general", "noise_dim": 0},
    ):
        with pytest.raises(ValueError, match="Received"):
            plain(**fields)
    for seed in (1.5, "a", tf.constant([1.0, 2.0])):
        with pytest.raises(TypeError, match="`seed`"):
            nde.solve(plain(), batch_ndims=1, seed=seed)
    with pytest.raises(TypeError, match="dtype of `y`"):
        nde.solve(plain(g=lambda t, y, p: tf.cast(y, tf.float32)), batch_ndims=1)
    with pytest.raises(ValueError, match="SDEProblem"):
        nde.solve(nde.ODEProblem(lambda t, y, p: -y, 1.0, (0.0, 1.0)), "sosri")


def test_determinism_wants_a_seed(monkeypatch):
    monkeypatch.setattr(stochastic, "op_determinism_is_enabled", lambda: True)
    with pytest.raises(ValueError, match="give this solve a `seed`"):
        nde.solve(plain(), batch_ndims=1)
    with pytest.raises(ValueError, match="give this solve a `seed`"):
        nde.solve_ensemble(plain(y0=np.ones(2)), 3)
    nde.solve(plain(), batch_ndims=1, seed=1)


@pytest.mark.parametrize("name", list(STOCHASTIC))
def test_configs(name):
    solver = solvers.get(name)
    assert solvers.get(solvers.serialize(solver)) == solver
    assert solver.strong_order > 0 and solver.noises and solver.interpretations and solver.source
