"""Derivatives in space: exact where they promise it, and of the order that they promise."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src import testing

import keras_neuralde as nde


def bump(x):
    """A smooth function without symmetry, with its first two derivatives."""
    return (
        np.exp(np.sin(3.0 * x)),
        3.0 * np.cos(3.0 * x) * np.exp(np.sin(3.0 * x)),
        (9.0 * (np.cos(3.0 * x) ** 2 - np.sin(3.0 * x)) * np.exp(np.sin(3.0 * x))),
    )


def grid(border, n, length):
    """Points and their spacing."""
    if border == "periodic":
        return length / n * np.arange(n), length / n
    if border == "neumann":
        return np.linspace(0.0, length, n), length / (n - 1)
    return length / (n + 1) * np.arange(1, n + 1), length / (n + 1)


class TestFiniteDifference:
    @pytest.mark.parametrize("border", ["periodic", "dirichlet", "neumann"])
    @pytest.mark.parametrize("derivative", [1, 2])
    def test_error_falls_with_the_square_of_the_spacing(self, border, derivative):
        # 2π/3 is a period; elsewhere the ends differ.
        length = 2.0 * np.pi / 3.0 if border == "periodic" else 1.7
        ends = bump(np.array([0.0, length]))
        value = {"periodic": 0.0, "dirichlet": ends[0], "neumann": ends[1]}[border]
        errors = []
        for n in (50, 100, 200):
            x, h = grid(border, n, length)
            u, *exact = bump(x)
            found = nde.layers.FiniteDifference(derivative, h, border, value)(u[None])[0]
            error = np.abs(found - exact[derivative - 1])
            errors.append([error.max(), error[1:-1].max()])
        # The spacing falls by a factor close to 2.
        orders = np.log2(errors[:-1]) - np.log2(errors[1:])
        on_border = 1.0 if (border, derivative) == ("neumann", 2) else 2.0
        np.testing.assert_allclose(orders, [[on_border, 2.0]] * 2, atol=0.15)

    def test_solutions_with_slopes_on_the_border(self):
        """Steady heat, u'' = -sin x with u' = cos x on the border and a mean of its own."""
        errors = []
        for n in (20, 40):
            x, h = grid("neumann", n, 2.0)
            second = nde.layers.FiniteDifference(2, h, "neumann", (1.0, np.cos(2.0)))
            constant = second(np.zeros((1, n)))[0].numpy()
            matrix = second(np.eye(n)).numpy().T - constant[:, None]
            # Solutions are unique up to a constant, which the least norm of the residual leaves.
            u = np.linalg.lstsq(matrix, -np.sin(x) - constant, rcond=None)[0]
            errors.append(np.abs((u - u[0]) - np.sin(x)).max())
        assert abs(np.log2(errors[0] / errors[1]) - 2.0) < 0.2

    @pytest.mark.parametrize("border", ["dirichlet", "neumann"])
    def test_exact_on_parabolas_and_along_any_axis(self, border):
        x, h = grid(border, 9, 2.0)
        u = 1.0 - 3.0 * x + 0.5 * x**2
        value = (1.0, -3.0) if border == "dirichlet" else (-3.0, -1.0)
        field = np.stack([u, 2.0 * u], axis=-1)[None]
        if border == "dirichlet":
            field = field[..., :1]
        first, second = (
            nde.layers.FiniteDifference(k, h, border, value, axis=-2)(field)[0, :, 0]
            for k in (1, 2)
        )
        np.testing.assert_allclose(first, x - 3.0, atol=1e-12)
        np.testing.assert_allclose(second, np.ones(9), atol=1e-11)

    def test_neumann_borders_conserve(self):
        """With slopes of zero the trapezoidal sum of the second derivative is zero."""
        u = np.random.default_rng(0).normal(size=(1, 12))
        rate = nde.layers.FiniteDifference(2, 0.1, "neumann")(u)[0].numpy()
        assert abs(rate.sum() - 0.5 * (rate[0] + rate[-1])) < 1e-10

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"derivative": 3}, "`derivative` must be 1 or 2"),
            ({"spacing": 0.0}, "`spacing` must be a positive number"),
            ({"border": "open"}, "`border` must be one of"),
            ({"value": [1.0, 2.0, 3.0]}, "`value` must be a number or a pair"),
            ({"axis": 1.5}, "`axis` must be an integer"),
        ],
    )
    def test_refusals(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            nde.layers.FiniteDifference(**{"derivative": 1, "spacing": 0.1, **arguments})

    def test_too_few_points(self):
        with pytest.raises(ValueError, match="at least 3 points"):
            nde.layers.FiniteDifference(1, 0.1)(np.ones((1, 2)))


class TestLaplacian:
    def test_of_the_plane_with_a_border_for_each_axis(self):
        """Exact for sums of parabolas: u = x² + 3 y², Δu = 8; y is given at the ends, x's slope."""
        x, hx = grid("neumann", 7, 1.0)
        y, hy = grid("dirichlet", 5, 2.0)
        u = x[:, None] ** 2 + 3.0 * y**2
        along_x = nde.layers.FiniteDifference(2, hx, "neumann", (0.0, 2.0), axis=-2)(u[None])[0]
        np.testing.assert_allclose(along_x, 2.0 * np.ones_like(u), atol=1e-11)
        laplacian = nde.layers.Laplacian(
            [hx, hy], ["neumann", "dirichlet"], [(0.0, 2.0), (0.0, 12.0)]
        )
        # The border of y carries x² too, which the constant border value does not know: x = 0 does.
        np.testing.assert_allclose(laplacian(u[None])[0, 0], 8.0 * np.ones(5), atol=1e-11)

    def test_order_on_the_periodic_plane(self):
        errors = []
        for n in (16, 32):
            x = 2.0 * np.pi / n * np.arange(n)
            u = np.sin(x)[:, None] * np.cos(2.0 * x)
            found = nde.layers.Laplacian([x[1], x[1]])(u[None])[0]
            errors.append(np.abs(found + 5.0 * u).max())
        assert abs(np.log2(errors[0] / errors[1]) - 2.0) < 0.1

    def test_channels_last_and_one_axis(self):
        u = np.random.default_rng(1).normal(size=(2, 6, 7, 3))
        plane = nde.layers.Laplacian([0.1, 0.2], "neumann", axis=-2)(u)
        by_channel = [nde.layers.Laplacian([0.1, 0.2], "neumann")(u[..., c]) for c in range(3)]
        np.testing.assert_allclose(plane, np.stack(by_channel, -1), rtol=1e-12)
        line = nde.layers.Laplacian(0.2, "dirichlet", 1.0)(u[..., 0])
        same = nde.layers.FiniteDifference(2, 0.2, "dirichlet", 1.0)(u[..., 0])
        np.testing.assert_array_equal(line, same)

    def test_refusals(self):
        with pytest.raises(ValueError, match="one entry for each axis"):
            nde.layers.Laplacian([0.1, 0.1], ["periodic"])


class TestSpectralDerivative:
    @pytest.mark.parametrize("n", [15, 16])
    @pytest.mark.parametrize("derivative", [1, 2, 3])
    def test_exact_on_every_wave_that_is_resolved(self, n, derivative):
        x = 3.0 / n * np.arange(n)
        rotation = np.exp(0.5j * np.pi * derivative)
        for k in range(1, (n - 1) // 2 + 1):
            w = 2.0 * np.pi * k / 3.0
            wave = np.exp(1j * (w * x + 0.3))
            found = nde.layers.SpectralDerivative(derivative, 3.0)(wave.real[None])[0]
            exact = (w**derivative * rotation * wave).real
            np.testing.assert_allclose(found, exact, atol=1e-12 * w**derivative * n)

    @pytest.mark.parametrize("border", ["dirichlet", "neumann"])
    @pytest.mark.parametrize("derivative", [1, 2, 3])
    def test_exact_between_borders(self, border, derivative):
        """On sums of sines or cosines, and on what meets other values than zero."""
        length, n, value = 3.0, 9, (0.7, -0.4)
        points = np.linspace(0.0, length, n + 2)[1:-1]
        shift = 0.0
        if border == "neumann":
            points, shift = np.linspace(0.0, length, n), 0.5 * np.pi
        rise = (value[1] - value[0]) / length
        line = [value[0], rise] if border == "dirichlet" else [0.0, value[0], 0.5 * rise]
        line = np.polynomial.Polynomial(line)
        layer = nde.layers.SpectralDerivative(derivative, length, border=border, value=value)
        plain = nde.layers.SpectralDerivative(derivative, length, border=border)
        for k in range(1, n - 1):
            w = np.pi * k / length
            wave = np.sin(w * points + shift)
            exact = w**derivative * np.sin(w * points + shift + 0.5 * np.pi * derivative)
            bound = {"atol": 1e-12 * w**derivative * n}
            np.testing.assert_allclose(plain(wave[None])[0], exact, **bound)
            found = layer((wave + line(points))[None])[0]
            np.testing.assert_allclose(found, exact + line.deriv(derivative)(points), **bound)

    def test_along_another_axis_and_in_single_precision(self):
        x = 0.25 * np.arange(4)
        u = np.sin(2.0 * np.pi * x)[:, None] * np.ones(3)
        layer = nde.layers.SpectralDerivative(1, 1.0, axis=-2)
        exact = 2.0 * np.pi * np.cos(2.0 * np.pi * x)[:, None] * np.ones(3)
        np.testing.assert_allclose(layer(u[None])[0], exact, atol=1e-12)
        single = layer(u[None].astype("float32"))
        assert single.dtype == tf.float32
        np.testing.assert_allclose(single[0], exact, atol=1e-5)

    def test_refusals(self):
        with pytest.raises(ValueError, match="`derivative` must be an integer of at least 1"):
            nde.layers.SpectralDerivative(0, 1.0)
        with pytest.raises(ValueError, match="`length` must be a positive number"):
            nde.layers.SpectralDerivative(1, -1.0)


class TestAsLayers(testing.TestCase):
    def test_conformance(self):
        cases = [
            (nde.layers.FiniteDifference, {"derivative": 2, "spacing": 0.1, "border": "neumann"}),
            (nde.layers.Laplacian, {"spacing": [0.1, 0.2], "border": "dirichlet", "value": 1.0}),
            (nde.layers.SpectralDerivative, {"derivative": 1, "length": 2.0}),
            (
                nde.layers.SpectralDerivative,
                {"derivative": 2, "length": 2.0, "border": "neumann", "value": [0.5, 1.0]},
            ),
        ]
        for layer, keywords in cases:
            self.run_layer_test(
                layer, keywords, input_shape=(2, 5, 6), expected_output_shape=(2, 5, 6),
                expected_num_trainable_weights=0, expected_num_non_trainable_weights=0,
                run_mixed_precision_check=False,
            )  # fmt: skip

    def test_inside_an_equation(self):
        """A wave of the heat equation decays at the rate of the discrete operator."""
        n = 16
        x = 2.0 * np.pi / n * np.arange(n)
        laplacian = nde.layers.Laplacian(x[1])
        problem = nde.ODEProblem(lambda t, u, p: laplacian(u[None])[0], np.sin(x), (0.0, 1.0))
        rate = (2.0 * np.sin(0.5 * x[1]) / x[1]) ** 2
        sol = nde.solve(problem, "tsit5", rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(sol.y, np.exp(-rate) * np.sin(x), atol=1e-8)
        model = keras.Sequential([keras.Input((n,), dtype="float64"), laplacian])
        layer = nde.NeuralODE(model, (0.0, 1.0), rtol=1e-8, atol=1e-9, dtype="float64")
        np.testing.assert_allclose(layer(np.sin(x)[None])[0], sol.y, atol=1e-6)
