"""Rosenbrock and ESDIRK methods on equations with known solutions, stiff ones among them."""

import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde.fields import colour_rows
from keras_neuralde.tableaus import ESDIRK, ROSENBROCK
from tests import problems
from tests.adjoints.test_discrete import central_differences, check
from tests.stiff_problems import PROBLEMS

METHODS = pytest.mark.parametrize("name", [*ROSENBROCK, *ESDIRK])


def column(t):
    """Time as a column beside a state of one axis."""
    return tf.reshape(t, tf.concat([tf.shape(t), [1]], 0))


def chase(t, y, p):
    """y' = -p (y - cos t) - sin t (1 + (y - cos t)²), solved by cos t; stiff for a large p."""
    away = y - tf.cos(column(t))
    return -p * away - tf.sin(column(t)) * (1.0 + away * away)


def logistic(t, y, p):
    """y' = y (1 - y) (1 + cos t), solved by 1 / (1 + exp(-t - sin t)) from 1/2."""
    return y * (1.0 - y) * (1.0 + tf.cos(column(t)))


class TestOrder:
    STEPS = {1: 80, 2: 40, 3: 40, 4: 20, 5: 20}
    ENDS = np.array([0.5, 1.0, 1.5, 2.0])
    TIMES = np.sort(np.concatenate([ENDS, np.linspace(0.01, 1.99, 60)]))

    @METHODS
    def test_at_the_ends_and_within(self, name):
        solver = nde.solvers.get(name)
        exact = 1.0 / (1.0 + np.exp(-self.TIMES - np.sin(self.TIMES)))
        at_ends = np.isin(self.TIMES, self.ENDS)
        errors = []
        for count in (self.STEPS[solver.order], 2 * self.STEPS[solver.order]):
            problem = nde.ODEProblem(logistic, np.array([0.5]), (0.0, 2.0))
            keywords = {"dt0": 2.0 / count, "controller": "constant", "saveat": self.TIMES}
            error = np.abs(nde.solve(problem, name, **keywords).y[:, 0] - exact)
            errors.append([error[at_ends].max(), error.max()])
        assert np.min(errors) > 1e-11, "the errors must stay clear of rounding"
        table = {**ROSENBROCK, **ESDIRK}[name]
        expected = [solver.order, min(solver.order, (table.dense_order or 3) + 1)]
        np.testing.assert_allclose(np.log2(errors[0]) - np.log2(errors[1]), expected, atol=0.4)


class TestStiffness:
    @METHODS
    def test_large_steps_across_a_fast_transient(self, name):
        """Prothero & Robinson's equation with λ = -1e6 and steps of 0.1."""
        problem = nde.ODEProblem(chase, np.array([1.5]), (0.0, 3.0), 1e6)
        y = nde.solve(problem, name, dt0=0.1, controller="constant").y
        np.testing.assert_allclose(y, [np.cos(3.0)], atol=1e-3)

    @METHODS
    def test_adaptive_steps_keep_the_tolerance_and_stay_few(self, name):
        tolerance = 1e-3 if name == "implicit_euler" else 1e-4
        problem = nde.ODEProblem(chase, np.array([1.5]), (0.0, 3.0), 1e5)
        sol = nde.solve(problem, name, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(sol.y, [np.cos(3.0)], atol=20 * tolerance)
        # An explicit method needs about 1e5 · 3 / 3.3 steps.
        assert sol.stats.num_steps < 400

    @pytest.mark.parametrize("name", ["rodas5p", "kvaerno5", "kencarp4"])
    def test_single_precision(self, name):
        problem = nde.ODEProblem(chase, np.array([1.5], np.float32), (0.0, 3.0), np.float32(1e3))
        sol = nde.solve(problem, name, rtol=1e-4, atol=1e-4)
        assert sol.y.dtype == tf.float32
        np.testing.assert_allclose(sol.y, [np.cos(3.0)], atol=2e-3)

    def test_backwards_in_time(self):
        problem = nde.ODEProblem(chase, np.array([np.cos(3.0) + 0.2]), (3.0, 0.0), -1e4)
        times = np.array([2.0, 1.0, 0.0])
        sol = nde.solve(problem, "rodas5p", rtol=1e-6, atol=1e-6, saveat=times)
        np.testing.assert_allclose(sol.y[:, 0], np.cos(times), atol=3e-4)


def ring(t, y, p):
    """A reaction-diffusion ring: coupled neighbours, stiff, nonlinear, with time in it."""
    left, right = tf.roll(y, 1, -1), tf.roll(y, -1, -1)
    push = tf.sin(column(t)) * tf.range(y.shape[-1], dtype=y.dtype) / y.shape[-1]
    return p * (left - 2.0 * y + right) - y**3 + push


def ring_jacobian(t, y, p):
    n = y.shape[-1]
    eye = np.eye(n)
    coupling = np.roll(eye, 1, 1) - 2.0 * eye + np.roll(eye, -1, 1)
    return p * tf.constant(coupling) - tf.linalg.diag(3.0 * y**2)


def ring_pattern(n):
    eye = np.eye(n)
    return eye + np.roll(eye, 1, 1) + np.roll(eye, -1, 1)


def ring_state(rows, n):
    return np.random.default_rng(n).normal(size=(rows, n))


class TestJacobians:
    @pytest.mark.parametrize(
        ("name", "n"), [("rodas5p", 3), ("rosenbrock23", 6), ("rosenbrock23", 12), ("trbdf2", 40)]
    )
    def test_every_way_gives_the_same_numbers(self, name, n):
        y0 = ring_state(2, n)
        keywords = {"batch_ndims": 1, "rtol": 1e-6, "atol": 1e-6}
        problem = nde.ODEProblem(ring, y0, (0.0, 1.0), 200.0)
        plain = nde.solve(problem, name, **keywords)
        given = nde.solve(problem.remake(jacobian=ring_jacobian), name, **keywords)
        sparse = nde.solve(problem.remake(jac_sparsity=ring_pattern(n)), name, **keywords)
        for other in (given, sparse):
            np.testing.assert_allclose(other.y, plain.y, rtol=1e-9, atol=1e-12)
            np.testing.assert_array_equal(other.stats.num_steps, plain.stats.num_steps)

    def test_a_pattern_as_a_sparse_matrix(self):
        sparse = pytest.importorskip("scipy.sparse")
        problem = nde.ODEProblem(
            ring, ring_state(1, 12)[0], (0.0, 1.0), 200.0, jac_sparsity=ring_pattern(12)
        )
        plain = nde.solve(problem, "rosenbrock23")
        as_sparse = problem.remake(jac_sparsity=sparse.csr_array(ring_pattern(12)))
        np.testing.assert_array_equal(nde.solve(as_sparse, "rosenbrock23").y, plain.y)

    @pytest.mark.parametrize("line", ["row", "column"])
    def test_a_full_row_and_a_full_column_take_few_products(self, line):
        """Forward mode for patterns with a full column, reverse mode for those with a full row."""
        n = 24
        pattern = np.eye(n)
        pattern[:, 0] = 1.0
        pattern = pattern if line == "column" else pattern.T
        weights = tf.constant(pattern * np.random.default_rng(0).normal(size=(n, n)))

        def field(t, y, p):
            return -y + 0.1 * tf.linalg.matvec(weights, tf.sin(y))

        problem = nde.ODEProblem(field, ring_state(1, n)[0], (0.0, 1.0))
        plain = nde.solve(problem, "rosenbrock23")
        sparse = nde.solve(problem.remake(jac_sparsity=pattern), "rosenbrock23")
        np.testing.assert_allclose(sparse.y, plain.y, rtol=1e-9, atol=1e-12)
        products = [colour_rows(p).max() + 1 for p in (pattern, pattern.T)]
        assert sorted(products) == [2, n]

    def test_colours(self):
        pattern = ring_pattern(12)
        colours = colour_rows(pattern)
        assert colours.max() == 2
        for colour in range(3):
            assert pattern[colours == colour].sum(axis=0).max() == 1

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "way", "n"),
        [
            ("rodas5p", "automatic", 6),
            ("rodas5p", "automatic", 12),
            ("rosenbrock23", "automatic", 30),
            ("trbdf2", "automatic", 30),
            ("rosenbrock23", "full row", 12),
            ("rodas5p", "jacobian", 3),
            ("rodas5p", "jac_sparsity", 12),
            ("rosenbrock23", "jac_sparsity", 40),
            ("trbdf2", "jacobian", 12),
            ("trbdf2", "jac_sparsity", 40),
        ],
    )
    def test_gradients(self, name, way, n):
        extra = {
            "automatic": {},
            "jacobian": {"jacobian": ring_jacobian},
            "jac_sparsity": {"jac_sparsity": ring_pattern(n)},
            # More than there is: rows then take fewer products than columns.
            "full row": {"jac_sparsity": ring_pattern(n) + np.eye(n)[:, :1]},
        }[way]

        def loss(y0, p):
            problem = nde.ODEProblem(ring, y0, (0.0, 0.5), p, **extra)
            sol = nde.solve(problem, name, dt0=0.1, controller="constant", saveat=[0.23, 0.5])
            return tf.reduce_sum(tf.sin(sol.y))

        check(loss, ring_state(1, n)[0], 20.0)

    @pytest.mark.parametrize(
        ("way", "size"), [("jacobian", 12), ("jac_sparsity", 12), ("jacobian", 3)]
    )
    def test_gradients_of_newton_methods_do_not_depend_on_the_matrix(self, way, size):
        """It need only be good enough for the iteration: here it lacks what is off the diagonal."""
        diagonal = {
            "jacobian": lambda t, y, p: tf.linalg.diag(-2.5 * p - 3.0 * y**2),
            "jac_sparsity": np.eye(size),
        }[way]

        def loss(y0, p):
            problem = nde.ODEProblem(ring, y0, (0.0, 0.3), p, **{way: diagonal})
            y = nde.solve(
                problem, "trbdf2", dt0=0.05, controller="constant", rtol=1e-11, atol=1e-11,
                max_steps=64,
            ).y  # fmt: skip
            return tf.reduce_sum(tf.sin(y))

        check(loss, ring_state(1, size)[0], 8.0)

    @pytest.mark.slow
    def test_a_failed_row_sends_nothing_with_a_jacobian_that_is_only_about_right(self):
        def gradient(start):
            y0 = tf.constant(start, tf.float64)
            with tf.GradientTape() as tape:
                tape.watch(y0)
                problem = nde.ODEProblem(
                    lambda t, y, p: y * y, y0, (0.0, 1.0), jacobian=lambda t, y, p: y[..., None]
                )
                sol = nde.solve(problem, "trbdf2", batch_ndims=1, max_steps=128, throw=False)
                y = tf.where(tf.math.is_finite(sol.y), sol.y, 0.0)
                loss = tf.reduce_sum(y**2)
            return sol.status.numpy(), tape.gradient(loss, y0).numpy()

        status, found = gradient([[0.5], [3.0], [0.2]])
        assert status[1] != 0 and status[0] == status[2] == 0
        _, alone = gradient([[0.5], [0.1], [0.2]])
        np.testing.assert_allclose(found[[0, 2]], alone[[0, 2]], rtol=1e-12)
        # d/dy0 of y(1)² with y(1) = y0 / (1 - y0).
        start = np.array([0.5, 0.2])
        np.testing.assert_allclose(found[[0, 2], 0], 2 * start / (1 - start) ** 3, rtol=2e-2)
        assert found[1] == 0.0

    def test_a_field_that_joins_what_depends_on_time(self):
        """Compiled, the derivatives of a concatenation need gradients that TensorFlow lacks."""

        def field(t, y, p):
            x = tf.reshape(t, [1, 1])
            joined = tf.concat([x - 2.0, tf.sin(x), tf.cos(x)], 1)
            return tf.tanh(joined @ p)[:, 0] - 0.1 * y

        def loss(p):
            problem = nde.ODEProblem(field, np.ones(1), (0.0, 1.0), p)
            sol = nde.solve(problem, "rodas5p", controller="constant", dt0=0.1)
            return tf.reduce_sum(sol.y**2)

        @tf.function(jit_compile=True)
        def values(p, step):
            with tf.GradientTape() as tape:
                tape.watch(p)
                value = loss(p)
            slope = (loss(p + step) - loss(p - step)) / 2e-5
            return tf.reduce_sum(tape.gradient(value, p) * step) / 1e-5, slope

        p = tf.constant([[1.0], [2.0], [0.5]], tf.float64)
        step = 1e-5 * tf.constant([[1.0], [-1.0], [2.0]], tf.float64)
        exact, difference = values(p, step)
        np.testing.assert_allclose(exact, difference, rtol=1e-7)

    def test_what_the_jacobian_closes_over_gets_its_gradient(self):
        scale = tf.Variable(3.0, dtype=tf.float64)
        tensor = tf.constant(2.0, tf.float64)

        def value():
            problem = nde.ODEProblem(
                lambda t, y, p: -2.0 * y,
                np.ones(1),
                (0.0, 1.0),
                # No Jacobian of this field: its derivative must show all the same.
                jacobian=lambda t, y, p: tf.reshape(-scale * tensor, (1, 1)),
            )
            return nde.solve(problem, "rosenbrock23", dt0=0.25, controller="constant").y[0]

        with tf.GradientTape() as tape:
            tape.watch(tensor)
            y = value()
        by_scale, by_tensor = tape.gradient(y, [scale, tensor])

        def along(s):
            scale.assign(s)
            with tf.GradientTape():
                return value()

        expected = central_differences(along, 3.0)
        np.testing.assert_allclose(by_scale, expected, rtol=1e-6)
        np.testing.assert_allclose(by_tensor, expected * 3.0 / 2.0, rtol=1e-6)


class TestBatches:
    @pytest.mark.parametrize("name", ["rosenbrock23", "kvaerno3"])
    def test_rows_are_independent(self, name):
        y0 = ring_state(4, 3)
        p = np.array([[1.0], [10.0], [100.0], [1e3]])
        keywords = {"rtol": 1e-5, "atol": 1e-5}
        batch = nde.solve(nde.ODEProblem(ring, y0, (0.0, 1.0), p), name, batch_ndims=1, **keywords)
        assert len(set(batch.stats.num_steps.numpy())) > 1
        for row in (0, 3):
            alone = nde.solve(nde.ODEProblem(ring, y0[row], (0.0, 1.0), p[row]), name, **keywords)
            np.testing.assert_allclose(batch.y[row], alone.y, rtol=1e-10, atol=1e-12)
            assert batch.stats.num_steps[row] == alone.stats.num_steps
            assert batch.stats.num_f[row] == alone.stats.num_f

    @pytest.mark.parametrize(("name", "nest"), [("rodas5p", True), ("kvaerno3", False)])
    def test_joint_steps_keep_one_matrix_a_trajectory(self, name, nest):
        y0 = ring_state(5, 4)

        def pair(t, y, p):
            dy = ring(t, tf.concat([y["a"], y["b"]], -1), p)
            return {"a": dy[..., :1], "b": dy[..., 1:]}

        keywords = {"batch_ndims": 1, "rtol": 1e-8, "atol": 1e-8}
        each = nde.solve(nde.ODEProblem(ring, y0, (0.0, 1.0), 50.0), name, **keywords)
        problem = nde.ODEProblem(ring, y0, (0.0, 1.0), 50.0)
        if nest:
            problem = nde.ODEProblem(pair, {"a": y0[:, :1], "b": y0[:, 1:]}, (0.0, 1.0), 50.0)
        joint = nde.solve(problem, name, step_control="joint", **keywords)
        y = tf.concat([joint.y["a"], joint.y["b"]], -1) if nest else joint.y
        np.testing.assert_allclose(y, each.y, atol=1e-6)
        assert len(set(joint.stats.num_steps.numpy())) == 1

    @pytest.mark.slow
    def test_gradients_with_joint_steps(self):
        def loss(y0, p):
            problem = nde.ODEProblem(ring, y0, (0.0, 0.5), p)
            keywords = {"batch_ndims": 1, "step_control": "joint"}
            sol = nde.solve(problem, "rodas5p", dt0=0.1, controller="constant", **keywords)
            return tf.reduce_sum(tf.sin(sol.y))

        check(loss, ring_state(2, 3), 20.0)


class TestTwoLives:
    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "n"), [("rodas5p", 3), ("rosenbrock23", 12), ("kvaerno3", 6)])
    def test_same_numbers(self, name, n):
        def run(y0, p):
            with tf.GradientTape() as tape:
                tape.watch(p)
                problem = nde.ODEProblem(ring, y0, (0.0, 1.0), p)
                sol = nde.solve(problem, name, batch_ndims=1, rtol=1e-6, atol=1e-6)
                loss = tf.reduce_sum(sol.y**2)
            return sol.y, sol.stats.num_steps, tape.gradient(loss, p)

        y0, p = tf.constant(ring_state(3, n)), tf.constant(50.0, tf.float64)
        signature = [tf.TensorSpec((None, n), tf.float64), tf.TensorSpec((), tf.float64)]
        compiled = tf.function(run, jit_compile=True, autograph=False)(y0, p)
        graph = tf.function(run, autograph=False, input_signature=signature)(y0, p)
        for one, other in zip(compiled, graph, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-12)

    def test_values_do_not_retrace(self):
        traces = []

        def field(t, y, p):
            traces.append(1)
            return -p * y

        counts = []
        for k in range(3):
            problem = nde.ODEProblem(field, np.ones(2) * (k + 1), (0.0, 1.0 + k), 1.0 + k)
            nde.solve(problem, "rodas5p", rtol=10.0 ** (-3 - k))
            counts.append(len(traces))
        assert counts[0] == counts[1] == counts[2]


class TestFailure:
    def test_a_singular_matrix_is_named(self):
        # The second equation says nothing: 0 = 0.
        problem = nde.ODEProblem(
            lambda t, y, p: tf.stack([-y[0], 0.0 * y[1]]),
            np.ones(2),
            (0.0, 1.0),
            mass_matrix=np.diag([1.0, 0.0]),
        )
        with pytest.raises(nde.SolveError, match="singular"):
            nde.solve(problem, "rodas5p")

    @pytest.mark.parametrize("name", ["rosenbrock23", "kvaerno3"])
    def test_a_step_whose_matrix_is_singular_is_taken_smaller(self, name):
        """y' = y / (γ h) for the first step h alone: 1 - γ h / (γ h) = 0."""
        gamma = 1.0 / (2.0 + np.sqrt(2.0)) if name == "rosenbrock23" else 0.4358665215084590
        first = 0.125
        problem = nde.ODEProblem(lambda t, y, p: y / (gamma * first), np.ones(1), (0.0, 0.25))
        sol = nde.solve(problem, name, dt0=first, rtol=1e-8, atol=1e-8)
        assert int(sol.stats.num_rejected) >= 1
        exact = np.exp(0.25 / (gamma * first))
        np.testing.assert_allclose(sol.y, [exact], rtol=1e-4)
        half = nde.solve(problem, name, dt0=first, controller="constant", throw=False)
        assert half.status == nde.Status.SINGULAR_MATRIX

    @pytest.mark.parametrize("n", [3, 5])
    @pytest.mark.parametrize("name", ["rodas5p", "kvaerno3"])
    def test_a_matrix_singular_up_to_rounding_is_named(self, name, n):
        """Two algebraic equations that say the same, in units of their own; constant steps."""
        repeated = np.linspace(0.1, 0.7, n)
        rows = np.stack([repeated, repeated / 3.0 * 1e-6])

        def field(t, y, p):
            return tf.concat([-y[: n - 2], tf.linalg.matvec(rows, y - 1.0)], 0)

        mass = np.diag([1.0] * (n - 2) + [0.0, 0.0])
        problem = nde.ODEProblem(field, np.ones(n), (0.0, 1.0), mass_matrix=mass)
        keywords = {"dt0": 0.1, "controller": "constant", "throw": False}
        assert nde.solve(problem, name, **keywords).status == nde.Status.SINGULAR_MATRIX

    @pytest.mark.parametrize("unit", [1.0, 1e-12, 1e12])
    @pytest.mark.parametrize("name", ["rodas5p", "kvaerno5"])
    def test_units_are_no_sign_of_it(self, name, unit):
        """Robertson's equations to 1e11 with a constraint in units of its own."""
        case = PROBLEMS["robertson"]

        def field(t, y, p):
            dy = robertson(t, y, p)
            return tf.concat([dy[:2], unit * (tf.reduce_sum(y, keepdims=True) - 1.0)], 0)

        problem = nde.ODEProblem(
            field, case.y0, (0.0, case.t1), RATES, mass_matrix=np.diag([1.0, 1.0, 0.0])
        )
        sol = nde.solve(problem, name, rtol=1e-8, atol=case.atol)
        np.testing.assert_allclose(sol.y, case.y1, rtol=2e-5)

    def test_a_diverging_newton_iteration_is_named(self):
        problem = nde.ODEProblem(
            lambda t, y, p: -1e3 * y,
            np.ones(1),
            (0.0, 1.0),
            jacobian=lambda t, y, p: tf.constant([[1e3]], tf.float64),
        )
        keywords = {"dt0": 0.1, "controller": "constant"}
        with pytest.raises(nde.SolveError, match="Newton iteration diverged"):
            nde.solve(problem, "kvaerno3", **keywords)
        # Adaptive steps shrink until the iteration converges in spite of the Jacobian.
        sol = nde.solve(problem, "kvaerno3")
        np.testing.assert_allclose(sol.y, [0.0], atol=1e-5)
        assert sol.stats.num_rejected > 0

    @METHODS
    def test_a_nan_field_ends_at_once(self, name):
        problem = nde.ODEProblem(lambda t, y, p: y * np.nan, np.ones(1), (0.0, 1.0))
        sol = nde.solve(problem, name, throw=False)
        assert sol.status == nde.Status.NON_FINITE and sol.stats.num_steps < 5

    def test_a_failed_row_leaves_the_others_and_their_gradients_alone(self):
        y0 = tf.constant([[0.5], [2.0]], tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(y0)
            sol = nde.solve(
                nde.ODEProblem(lambda t, y, p: y * y, y0, (0.0, 1.0)),
                "rodas5p",
                batch_ndims=1,
                throw=False,
                rtol=1e-9,
                atol=1e-9,
            )
            loss = tf.reduce_sum(tf.where(sol.success[:, None], sol.y, 0.0))
        assert sol.status.numpy().tolist() == [0, nde.Status.STEP_TOO_SMALL]
        np.testing.assert_allclose(sol.y[0], [1.0], rtol=1e-7)
        np.testing.assert_allclose(tape.gradient(loss, y0), [[4.0], [0.0]], rtol=1e-6)


class TestDoor:
    @pytest.mark.parametrize(
        ("solver", "extra", "words"),
        [
            ("tsit5", {"jacobian": ring_jacobian}, "`jacobian` belongs to implicit solvers"),
            ("tsit5", {"mass_matrix": np.eye(3)}, "`mass_matrix` belongs to implicit"),
            ("rodas5p", {"mass_matrix": np.eye(2)}, r"of shape \(3, 3\)"),
            ("rodas5p", {"mass_matrix": np.eye(3) * np.nan}, "finite"),
            (
                nde.solvers.Switching(),
                {"mass_matrix": np.diag([1.0, 1.0, 0.0])},
                "can be inverted; use an implicit method by its name",
            ),
            ("rodas5p", {"jac_sparsity": np.ones((3, 2))}, r"of shape \(3, 3\)"),
            ("rodas5p", {"jac_sparsity": np.full((3, 3), np.nan)}, "NaN among its entries"),
            ("rodas5p", {"jacobian": lambda t, y, p: y}, r"must return the shape \(3, 3\)"),
            ("rodas5p", {"jacobian": lambda t, y, p: None}, r"\(3, 3\).*Received: None"),
        ],
    )
    def test_values(self, solver, extra, words):
        problem = nde.ODEProblem(ring, np.ones(3), (0.0, 1.0), 1.0, **extra)
        with pytest.raises(ValueError, match=words):
            nde.solve(problem, solver)

    def test_other_adjoints_are_refused(self):
        problem = nde.ODEProblem(ring, np.ones(3), (0.0, 1.0), 1.0)
        with pytest.raises(ValueError, match="discrete gradient only; use"):
            nde.solve(problem, "rodas5p", adjoint="interpolating")

    def test_types(self):
        problem = nde.ODEProblem(ring, np.ones(3), (0.0, 1.0), 1.0, jacobian=np.eye(3))
        with pytest.raises(TypeError, match="must be a function"):
            nde.solve(problem, "rodas5p")

    @METHODS
    def test_configs(self, name):
        solver = nde.solvers.get(name)
        again = nde.solvers.get(nde.solvers.serialize(solver))
        assert again == solver and again.name == name and hash(again) == hash(solver)

    def test_tables_by_wrong_names(self):
        for solver in (nde.solvers.Rosenbrock, nde.solvers.DiagonallyImplicit):
            with pytest.raises(ValueError, match="must name an? "):
                solver("tsit5")


RATES = np.array([0.04, 3e7, 1e4])


def robertson(t, y, p):
    a, b, c = tf.unstack(y, axis=-1)
    k1, k2, k3 = tf.unstack(p, axis=-1)
    return tf.stack([-k1 * a + k3 * b * c, k1 * a - k2 * b * b - k3 * b * c, k2 * b * b], -1)


def robertson_with_constraint(t, y, p):
    dy = robertson(t, y, p)
    return tf.concat([dy[..., :2], tf.reduce_sum(y, -1, keepdims=True) - 1.0], -1)


class TestMassMatrices:
    SINGULAR = np.diag([1.0, 1.0, 0.0])

    @pytest.mark.parametrize("name", [*ROSENBROCK, "kvaerno5"])
    def test_the_constraint_in_place_of_an_equation(self, name):
        times = np.array([0.0, 0.4, 40.0, 4e3])
        keywords = {"saveat": times, "rtol": 1e-6, "atol": 1e-10}
        problem = nde.ODEProblem(robertson, np.array([1.0, 0.0, 0.0]), (0.0, 4e3), RATES)
        plain = nde.solve(problem, "rodas5p", **keywords)
        constrained = problem.remake(f=robertson_with_constraint, mass_matrix=self.SINGULAR)
        sol = nde.solve(constrained, name, **keywords)
        np.testing.assert_allclose(sol.y, plain.y, rtol=5e-4, atol=1e-9)
        np.testing.assert_allclose(tf.reduce_sum(sol.y, -1), np.ones(4), atol=1e-8)

    def test_gradients_of_an_algebraic_equation(self):
        # 0 = z - p y², y' = -z: y = 1 / (1/y0 + p t).
        def field(t, y, p):
            x, z = tf.unstack(y, axis=-1)
            return tf.stack([-z, z - p * x * x], -1)

        p = tf.constant(2.0, tf.float64)
        y0 = tf.constant([0.5, 0.5], tf.float64)
        with tf.GradientTape() as tape:
            tape.watch([p, y0])
            problem = nde.ODEProblem(field, y0, (0.0, 1.0), p, mass_matrix=np.diag([1.0, 0.0]))
            sol = nde.solve(problem, "rodas5p", rtol=1e-10, atol=1e-10, saveat=[0.4, 1.0])
            first, last = sol.y[0, 1], sol.y[1, 0]
            loss = first + last
        by_p, by_y0 = tape.gradient(loss, [p, y0])
        # y(1) = 1/4 with dy/dp = -y², dy/dy0 = (y / y0)²; z(0.4) = p y².
        y4 = 1.0 / 2.8
        np.testing.assert_allclose([last, first], [0.25, 2.0 * y4**2], rtol=1e-8)
        np.testing.assert_allclose(by_p, -(0.25**2) + y4**2 - 4.0 * y4 * 0.4 * y4**2, rtol=1e-6)
        expected = 0.25 + 4.0 * y4 * (y4 / 0.5) ** 2
        np.testing.assert_allclose(by_y0, [expected, 0.0], rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize("name", ["rodas5p", "kvaerno3", "rosenbrock23"])
    def test_matrices_that_can_be_inverted(self, name):
        mass = np.array([[2.0, 1.0], [0.0, 0.5]])

        def field(t, y, p):
            return tf.linalg.matvec(tf.constant(mass), problems.harmonic(t, y, p))

        keywords = {"rtol": 1e-8, "atol": 1e-8, "batch_ndims": 1}
        problem = nde.ODEProblem(field, np.array([[1.0, 0.0], [0.0, 1.0]]), (0.0, 1.0))
        sol = nde.solve(problem.remake(mass_matrix=mass), name, **keywords)
        c, s = np.cos(1.0), np.sin(1.0)
        np.testing.assert_allclose(sol.y, [[c, -s], [s, c]], atol=2e-6)

    def test_an_inconsistent_start_is_named(self):
        y0 = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.1]])
        problem = nde.ODEProblem(
            robertson_with_constraint, y0, (0.0, 1.0), RATES, mass_matrix=self.SINGULAR
        )
        sol = nde.solve(problem, "rodas5p", batch_ndims=1, throw=False)
        assert sol.status.numpy().tolist() == [0, nde.Status.INCONSISTENT_START]
        assert np.all(np.isnan(sol.y[1]))
        words = "violates the algebraic equations.*Trajectory 1 was refused at its start"
        with pytest.raises(nde.SolveError, match=words):
            nde.solve(problem, "rodas5p", batch_ndims=1)
        repaired = nde.consistent_state(problem, batch_ndims=1)
        np.testing.assert_allclose(repaired, [[1, 0, 0], [1, 0, 0]], atol=1e-12)
        assert np.all(nde.solve(problem.remake(y0=repaired), "rodas5p", batch_ndims=1).success)

    def test_a_consistent_state_of_a_general_matrix(self):
        # M = v vᵀ sees only y0 + y1; the combination across it obeys an algebraic equation.
        mass = np.array([[0.5, 0.5], [0.5, 0.5]])

        def field(t, y, p):
            plus, minus = -(y[0] + y[1]), (y[0] - y[1]) - p * (y[0] + y[1]) ** 2
            return tf.stack([plus + minus, plus - minus]) / 2.0

        p = tf.constant(0.3, tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(p)
            problem = nde.ODEProblem(field, np.array([1.0, 1.0]), (0.0, 1.0), p, mass_matrix=mass)
            y0 = nde.consistent_state(problem)
            difference = y0[0] - y0[1]
        np.testing.assert_allclose(y0, [1.6, 0.4], rtol=1e-10)
        np.testing.assert_allclose(tape.gradient(difference, p), 4.0, rtol=1e-8)
        sol = nde.solve(problem.remake(y0=y0), "rodas5p", rtol=1e-8, atol=1e-8)
        total = 2.0 * np.exp(-1.0)
        expected = [total / 2 + 0.15 * total**2, total / 2 - 0.15 * total**2]
        np.testing.assert_allclose(sol.y, expected, rtol=1e-6)

    def test_no_consistent_state(self):
        problem = nde.ODEProblem(
            lambda t, y, p: tf.stack([-y[0], 1.0 + y[1] ** 2]),
            np.array([1.0, 0.3]),
            (0.0, 1.0),
            mass_matrix=np.diag([1.0, 0.0]),
        )
        with pytest.raises(ValueError, match="no state near `y0`"):
            nde.consistent_state(problem)
