"""Growing horizons, multiple shooting and collocation, against numbers known exactly."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde.long_series import KERNELS
from tests.problems import LOTKA_VOLTERRA_P, decay, lotka_volterra, seasonal

TIMES = np.linspace(0.0, 2.0, 11)
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def one_decay(p=1.0):
    return nde.ODEProblem(decay, 1.0, (0.0, 2.0), tf.constant(p, tf.float64))


# Growing horizons


def test_horizons_grow_and_shapes_stay():
    data = np.stack([TIMES, TIMES**2], 1)
    stages = nde.growing_horizons(TIMES, data, (0.4, 1.1, 2.0), (1, 3, 2))
    assert len(stages) == 6
    seen = [int(weights.sum()) for _, _, weights in stages]
    assert seen == [3, 6, 6, 6, 11, 11]
    for times, values, weights in stages:
        assert times.shape == weights.shape == (11,) and values is data
        np.testing.assert_array_equal(times[weights == 1], TIMES[weights == 1])
    np.testing.assert_array_equal(stages[0][0][3:], 0.4)
    np.testing.assert_array_equal(stages[-1][0], TIMES)


def test_horizons_are_one_program_for_minimize():
    """The stages end where the data were made, and the loss is traced once."""
    traces = []
    problem = one_decay()

    def loss(p, times, data, weights):
        traces.append(1)
        y = nde.solve(problem.remake(p=p[0], t_span=(0.0, times[-1])), saveat=times, **TIGHT).y
        return tf.reduce_sum(weights * (y - data) ** 2)

    stages = nde.growing_horizons(TIMES, np.exp(-1.5 * TIMES), (0.5, 1.0, 2.0), 60)
    start = tf.constant([0.2], tf.float64)
    result = nde.minimize(loss, start, keras.optimizers.Adam(0.05), batches=stages)
    assert len(traces) == 1 and result.iterations == 180
    np.testing.assert_allclose(result.minimizer[0], 1.5, atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TIMES[::-1], TIMES, (2.0,), 1), "increasing"),
        ((TIMES, TIMES[:5], (2.0,), 1), "11 times"),
        ((TIMES, TIMES * np.nan, (2.0,), 1), "finite"),
        ((TIMES, TIMES, (2.0, 1.0), 1), "increasing times"),
        ((TIMES, TIMES, (0.1, 2.0), 1), "second time is 0.2"),
        ((TIMES, TIMES, (1.0, 2.0), 0), "iterations"),
        ((TIMES, TIMES, (1.0, 2.0), 1.5), "iterations"),
    ],
)
def test_horizons_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        nde.growing_horizons(*arguments)


# Multiple shooting


def test_groups():
    assert nde.shooting_groups(10, 5) == [(0, 4), (4, 8), (8, 9)]
    assert nde.shooting_groups(9, 5) == [(0, 4), (4, 8)]
    assert nde.shooting_groups(4, 2) == [(0, 1), (1, 2), (2, 3)]
    assert nde.shooting_groups(4, 4) == [(0, 3)]
    for size in (1, 11, 2.0, True):
        with pytest.raises(ValueError, match="from 2 to the number of points, 10"):
            nde.shooting_groups(10, size)


def exact_shooting(p, data, group_size, continuity, starts=None):
    """The same loss for y' = -p y with the closed form, group by group."""
    groups = nde.shooting_groups(len(data), group_size)
    starts = data[[first for first, _ in groups]] if starts is None else starts
    value, end = 0.0, None
    for (first, last), start in zip(groups, starts, strict=True):
        y = start * np.exp(-p * (TIMES[first : last + 1] - TIMES[first]))
        value += np.sum((y - data[first : last + 1]) ** 2)
        value += 0.0 if end is None else continuity * np.abs(end - start)
        end = y[-1]
    return value


@pytest.mark.parametrize("group_size", [2, 4, 11])
def test_shooting_has_the_value_of_the_closed_form(group_size):
    data = np.cos(TIMES)
    loss, predictions = nde.multiple_shooting(
        one_decay(0.7), TIMES, data, group_size, continuity=3.0, **TIGHT
    )
    np.testing.assert_allclose(loss, exact_shooting(0.7, data, group_size, 3.0), rtol=1e-8)
    groups = nde.shooting_groups(11, group_size)
    assert predictions.shape == (len(groups), group_size)
    sizes = np.isfinite(predictions).sum(axis=1)
    np.testing.assert_array_equal(sizes, [last - first + 1 for first, last in groups])


def test_shooting_gradients_and_starts():
    """With respect to p and the starts, a short last piece included; mapped or vectorized."""
    data = np.cos(TIMES)
    p, starts = tf.constant(0.7, tf.float64), tf.constant([0.9, 0.8, 0.3, -0.2], tf.float64)
    problem = one_decay()

    def gradients(**keywords):
        with tf.GradientTape() as tape:
            tape.watch([p, starts])
            loss, _ = nde.multiple_shooting(
                problem.remake(p=p), TIMES, data, 4, starts=starts, **keywords, **TIGHT
            )
        return loss, *tape.gradient(loss, [p, starts])

    loss, p_bar, starts_bar = gradients()
    exact = lambda p, starts: exact_shooting(p, data, 4, 100.0, starts)  # noqa: E731
    np.testing.assert_allclose(loss, exact(0.7, starts.numpy()), rtol=1e-8)
    h = 1e-6
    slope = (exact(0.7 + h, starts.numpy()) - exact(0.7 - h, starts.numpy())) / (2 * h)
    np.testing.assert_allclose(p_bar, slope, rtol=1e-6)
    for i in range(4):
        step = h * np.eye(4)[i]
        slope = (exact(0.7, starts + step) - exact(0.7, starts - step)) / (2 * h)
        np.testing.assert_allclose(starts_bar[i], slope, rtol=1e-6)
    for a, b in zip(gradients(vectorized=True), (loss, p_bar, starts_bar), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_shooting_sees_the_time():
    """A field that depends on time runs through each group at the group's own times."""
    problem = nde.ODEProblem(seasonal, np.ones(1), (0.0, 2.0))
    data = np.exp(np.sin(TIMES))[:, None]
    loss, _ = nde.multiple_shooting(problem, TIMES, data, 3, **TIGHT)
    assert loss < 1e-7


def test_shooting_with_a_loss_of_ones_own():
    """The truth has a loss of 0 under any norm; the pieces come with their own lengths."""
    problem = nde.ODEProblem(lotka_volterra, np.ones(2), (0.0, 2.0), tf.constant(LOTKA_VOLTERRA_P))
    data = nde.solve(problem, saveat=TIMES, **TIGHT).y.numpy()
    sizes = []

    def largest(data, prediction):
        sizes.append(prediction.shape[0])
        return tf.reduce_max(tf.abs(data - prediction))

    loss, _ = nde.multiple_shooting(problem, TIMES, data, 4, loss=largest, **TIGHT)
    assert sizes == [4, 4, 4, 2] and 0.0 < loss < 1e-5


def test_a_failed_piece_makes_the_loss_nan():
    problem = nde.ODEProblem(lambda t, y, p: p * y**2, 1.0, (0.0, 2.0), tf.constant(50.0))
    data = np.ones(11, np.float32)
    loss, predictions = nde.multiple_shooting(problem, TIMES, data, 6)
    assert np.isnan(loss) and np.isnan(predictions[0, -1])


def test_shooting_refuses():
    data = np.cos(TIMES)
    with pytest.raises(TypeError, match="ODEProblem"):
        nde.multiple_shooting(decay, TIMES, data, 4)
    with pytest.raises(ValueError, match="saveat"):
        nde.multiple_shooting(one_decay(), TIMES, data, 4, saveat=[1.0])
    with pytest.raises(ValueError, match=r"each of the 4 groups"):
        nde.multiple_shooting(one_decay(), TIMES, data, 4, starts=tf.zeros(3, tf.float64))


# Collocation


def test_collocation_against_published_figures():
    """4.4 exp(-0.001 (t - 7)) in 62 components at 157 times of 7 to 84.

    418.3400017500223 is the figure in the documentation of DiffEqFlux 1 (a bandwidth in units of
    time); with the bandwidth relative to the length of the series it is 418.3565.
    """
    times = np.linspace(7.0, 84.0, 157)
    data = np.repeat(4.4 * np.exp(-0.001 * (times - 7.0))[:, None], 62, axis=1)
    n = 157
    bandwidth = n ** (-1 / 5) * n ** (-3 / 35) * np.log(n) ** (-1 / 16)
    y, dy = nde.collocate(times, data, "sigmoid", bandwidth)
    np.testing.assert_allclose(np.linalg.norm(dy - y), 418.3400017515, rtol=1e-12)
    assert np.sum((y - data) ** 2) < 1e-8
    y, dy = nde.collocate(times, data, "sigmoid")
    np.testing.assert_allclose(np.linalg.norm(dy - y), 418.3565, atol=5e-5)


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_kernels_are_exact_for_lines_and_slopes_of_parabolas(kernel):
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(-1.0, 3.0, 30))
    between = np.linspace(times[0], times[-1], 7)
    line = np.stack([2.0 - 3.0 * times, times], 1)
    y, dy = nde.collocate(times, line, kernel, 1.5, at=between)
    np.testing.assert_allclose(y[:, 0], 2.0 - 3.0 * between, atol=1e-9)
    np.testing.assert_allclose(dy, np.tile([-3.0, 1.0], (7, 1)), atol=1e-8)
    _, dy = nde.collocate(times, times**2 - times, kernel, 1.5, at=between)
    np.testing.assert_allclose(dy, 2.0 * between - 1.0, atol=1e-8)


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_kernels_are_even_densities(kernel):
    x = np.linspace(-40.0, 40.0, 800_001)
    weights = KERNELS[kernel](x)
    np.testing.assert_allclose(np.sum(weights) * 1e-4, 1.0, rtol=1e-4)
    np.testing.assert_allclose(weights, weights[::-1], atol=1e-12)
    assert weights.min() >= 0.0


def test_kernels_differ():
    """Each smooths a sine in its own way."""
    y = [nde.collocate(TIMES, np.sin(3.0 * TIMES), name, 0.7).y for name in KERNELS]
    gaps = [np.abs(a - b).max() for i, a in enumerate(y) for b in y[:i]]
    assert min(gaps) > 1e-6


def test_wider_smooths_more():
    rng = np.random.default_rng(1)
    times = np.linspace(0.0, 1.0, 400)
    noisy = 1.0 + rng.normal(0.0, 0.1, 400)
    narrow, wide = (nde.collocate(times, noisy, bandwidth=h).y.std() for h in (0.02, 0.3))
    assert wide < 0.4 * narrow and narrow < 0.08


def test_collocation_keeps_shapes_and_types():
    y, dy = nde.collocate(TIMES, np.zeros((11, 2, 3), np.float32))
    assert y.shape == dy.shape == (11, 2, 3) and y.dtype == dy.dtype == np.float32


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"kernel": "box"}, "must be one of"),
        ({"bandwidth": 0.0}, "positive"),
        ({"bandwidth": np.nan}, "positive"),
        ({"bandwidth": 0.1}, "take a wider one"),
    ],
)
def test_collocation_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        nde.collocate(TIMES, TIMES, **keywords)


def test_collocation_loss_is_the_mean_of_squares():
    y, dy = np.sin(TIMES) + 2.0, np.cos(TIMES)
    exact = np.mean((-0.7 * y - dy) ** 2)
    for vectorized in (False, True):
        loss = nde.collocation_loss(one_decay(0.7), TIMES, y, dy, vectorized=vectorized)
        np.testing.assert_allclose(loss, exact, rtol=1e-12)
    with pytest.raises(ValueError, match="shape of `y`"):
        nde.collocation_loss(one_decay(), TIMES, y, dy[:5])
