"""The front door and the loop below it, on equations with exact solutions."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.integrate import solve_ivp

import keras_neuralde as nde
from tests import problems

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def seasonal_exact(t, t0=0.0):
    return np.exp(np.sin(t) - np.sin(t0))


def test_final_state_has_the_shape_of_the_state():
    problem = nde.ODEProblem(problems.decay, np.ones((2, 3)), (0.0, 1.0), 2.0)
    sol = nde.solve(problem, **TIGHT)
    assert sol.y.shape == (2, 3) and sol.t.shape == ()
    np.testing.assert_allclose(sol.y, np.exp(-2.0), rtol=1e-8)


def test_save_times_are_met_exactly_and_the_start_is_included_when_listed():
    times = np.linspace(0.0, 6.0, 25)
    sol = nde.solve(
        nde.ODEProblem(problems.seasonal, np.ones(1), (0.0, 6.0)), saveat=times, **TIGHT
    )
    np.testing.assert_array_equal(sol.t, times)
    np.testing.assert_allclose(sol.y[:, 0], seasonal_exact(times), rtol=1e-7)
    assert sol.y[0, 0] == 1.0


def test_a_scalar_save_time_is_one_time_not_a_spacing():
    sol = nde.solve(nde.ODEProblem(problems.seasonal, np.ones(1), (0.0, 6.0)), saveat=2.0, **TIGHT)
    assert sol.y.shape == (1,) and sol.t.shape == ()
    np.testing.assert_allclose(sol.y, [seasonal_exact(2.0)], rtol=1e-8)


def test_backwards_in_time():
    times = np.linspace(6.0, 0.0, 7)
    y0 = np.array([seasonal_exact(6.0)])
    sol = nde.solve(nde.ODEProblem(problems.seasonal, y0, (6.0, 0.0)), saveat=times, **TIGHT)
    np.testing.assert_allclose(sol.y[:, 0], seasonal_exact(times), rtol=1e-7)


def test_zero_length_span_returns_the_start():
    sol = nde.solve(nde.ODEProblem(problems.decay, np.array([2.0]), (1.0, 1.0), 1.0))
    assert sol.y.numpy() == [2.0] and sol.status == 0 and sol.stats.num_steps == 0


def test_many_more_steps_than_a_segment_and_many_more_save_times():
    times = np.linspace(0.0, 200.0, 5001)
    sol = nde.solve(
        nde.ODEProblem(problems.harmonic, np.array([1.0, 0.0]), (0.0, 200.0)), saveat=times, **TIGHT
    )
    assert sol.stats.num_steps > 1024
    np.testing.assert_allclose(sol.y[:, 0], np.cos(times), atol=2e-6)


def test_accuracy_follows_scipy_at_equal_tolerance():
    times = np.linspace(0.0, 10.0, 101)
    p = problems.LOTKA_VOLTERRA_P

    def field(t, y):
        return [p[0] * y[0] - p[1] * y[0] * y[1], -p[2] * y[1] + p[3] * y[0] * y[1]]

    reference = solve_ivp(field, (0, 10), [1, 1], "DOP853", times, rtol=1e-12, atol=1e-12).y.T
    peer = solve_ivp(field, (0, 10), [1, 1], "RK45", times, rtol=1e-6, atol=1e-6)
    problem = nde.ODEProblem(problems.lotka_volterra, np.ones(2), (0.0, 10.0), p)
    sol = nde.solve(problem, "dopri5", saveat=times, rtol=1e-6, atol=1e-6)
    ours = np.abs(sol.y.numpy() - reference).max()
    assert ours < 3 * np.abs(peer.y.T - reference).max()
    assert int(sol.stats.num_f) < 1.5 * peer.nfev


class TestBatches:
    def test_rows_are_independent(self):
        p = problems.LOTKA_VOLTERRA_P
        y0 = np.random.default_rng(0).uniform(0.5, 2.0, (7, 2))
        times = np.linspace(0.0, 5.0, 11)
        keywords = {"saveat": times, "rtol": 1e-6, "atol": 1e-6}
        batch = nde.solve(
            nde.ODEProblem(problems.lotka_volterra, y0, (0.0, 5.0), p), batch_ndims=1, **keywords
        )
        assert batch.y.shape == (11, 7, 2) and batch.status.shape == (7,)
        assert len(set(batch.stats.num_steps.numpy())) > 1
        for row in (0, 3):
            alone = nde.solve(
                nde.ODEProblem(problems.lotka_volterra, y0[row], (0.0, 5.0), p), **keywords
            )
            np.testing.assert_allclose(batch.y[:, row], alone.y, rtol=1e-12, atol=1e-12)
            assert batch.stats.num_steps[row] == alone.stats.num_steps

    def test_two_batch_axes_and_time_of_the_batch_shape(self):
        seen = []

        def field(t, y, p):
            seen.append((t.shape, y.shape))
            return y * tf.cos(t)[..., None]

        y0 = np.ones((2, 3, 1))
        sol = nde.solve(nde.ODEProblem(field, y0, (0.0, 1.0)), batch_ndims=2, **TIGHT)
        assert seen[0] == ((2, 3), (2, 3, 1))
        assert sol.status.shape == (2, 3)
        np.testing.assert_allclose(sol.y, np.full((2, 3, 1), seasonal_exact(1.0)), rtol=1e-8)

    def test_save_times_and_spans_of_each_trajectory(self):
        times = np.array([[0.5, 1.0, 2.0], [1.5, 3.0, np.nan]])
        sol = nde.solve(
            nde.ODEProblem(problems.seasonal, np.ones((2, 1)), (np.zeros(2), np.array([2.0, 4.0]))),
            saveat=times,
            batch_ndims=1,
            **TIGHT,
        )
        assert sol.t.shape == (3, 2) and sol.y.shape == (3, 2, 1)
        np.testing.assert_allclose(sol.y[:, :, 0], seasonal_exact(times.T), rtol=1e-7)
        assert np.isnan(sol.y[2, 1, 0])

    def test_joint_steps_share_one_sequence(self):
        y0 = np.random.default_rng(0).uniform(0.5, 2.0, (5, 2))
        problem = nde.ODEProblem(problems.lotka_volterra, y0, (0.0, 5.0), problems.LOTKA_VOLTERRA_P)
        joint = nde.solve(problem, batch_ndims=1, step_control="joint", **TIGHT)
        each = nde.solve(problem, batch_ndims=1, **TIGHT)
        assert len(set(joint.stats.num_steps.numpy())) == 1
        assert joint.status.shape == (5,)
        np.testing.assert_allclose(joint.y, each.y, rtol=1e-6)

    def test_a_failed_row_leaves_the_others_alone(self):
        def field(t, y, p):
            return y * y

        y0 = np.array([[0.5], [2.0], [-1.0]])
        sol = nde.solve(nde.ODEProblem(field, y0, (0.0, 1.0)), batch_ndims=1, throw=False, **TIGHT)
        assert sol.status.numpy().tolist() == [0, nde.Status.STEP_TOO_SMALL, 0]
        np.testing.assert_allclose(tf.gather(sol.y, [0, 2])[:, 0], [1.0, -0.5], rtol=1e-7)
        assert np.isnan(sol.y[1, 0])


class TestStructures:
    def test_nests_of_states_and_parameters(self):
        def field(t, y, p):
            return {"q": y["v"], "v": -p["k"] * y["q"]}

        y0 = {"q": np.ones((3,)), "v": np.zeros((3,))}
        sol = nde.solve(
            nde.ODEProblem(field, y0, (0.0, 1.0), {"k": 4.0, "unused": None}),
            saveat=[0.0, 0.5, 1.0],
            **TIGHT,
        )
        assert sol.y["q"].shape == (3, 3)
        np.testing.assert_allclose(sol.y["q"][:, 0], np.cos([0.0, 1.0, 2.0]), atol=1e-7)
        np.testing.assert_allclose(sol.y["v"][:, 0], -2 * np.sin([0.0, 1.0, 2.0]), atol=1e-7)

    def test_joint_batches_of_nests_with_scalar_and_matrix_leaves(self):
        def field(t, y, p):
            return y[0] * 0.0 + 1.0, -y[1]

        y0 = (np.zeros(4), np.ones((4, 2, 2)))
        for control in ("joint", "per_sample"):
            sol = nde.solve(
                nde.ODEProblem(field, y0, (0.0, 1.0)), batch_ndims=1, step_control=control, **TIGHT
            )
            np.testing.assert_allclose(sol.y[0], np.ones(4), rtol=1e-9)
            np.testing.assert_allclose(sol.y[1], np.full((4, 2, 2), np.exp(-1)), rtol=1e-8)

    def test_plain_numbers_take_the_dtype_of_the_arrays(self):
        p = np.array([2.0])
        assert nde.solve(nde.ODEProblem(problems.decay, [1.0], (0, 1), p)).y.dtype == tf.float64
        assert nde.solve(nde.ODEProblem(problems.decay, [1.0], (0, 1), 2.0)).y.dtype == tf.float32

    def test_tolerances_by_component(self):
        # A loose first component must not loosen the second.
        problem = nde.ODEProblem(problems.harmonic, np.array([1.0, 0.0]), (0.0, 20.0))
        tight = nde.solve(problem, rtol=0.0, atol=np.array([1e-9, 1e-9]))
        mixed = nde.solve(problem, rtol=0.0, atol=np.array([1e3, 1e-9]))
        loose = nde.solve(problem, rtol=0.0, atol=1e-3)
        assert loose.stats.num_steps < mixed.stats.num_steps <= tight.stats.num_steps
        assert abs(mixed.y[1] + np.sin(20.0)) < 1e-6


class TestSteps:
    def test_fixed_steps_are_counted_exactly(self):
        sol = nde.solve(nde.ODEProblem(problems.decay, np.ones(1), (0.0, 1.0), 1.0), "rk4", dt0=0.1)
        assert sol.stats.num_steps == 10 and sol.stats.num_rejected == 0
        assert sol.stats.num_f == 40

    def test_last_fixed_step_is_cut(self):
        sol = nde.solve(
            nde.ODEProblem(problems.decay, np.ones(1), (0.0, 1.0), 1.0), "euler", dt0=0.3
        )
        assert sol.stats.num_steps == 4
        np.testing.assert_allclose(sol.y, [0.7**3 * 0.9], rtol=1e-12)

    def test_float32_fixed_steps_do_not_drift_off_their_grid(self):
        y0 = np.ones(1, np.float32)
        sol = nde.solve(nde.ODEProblem(problems.decay, y0, (0.0, 100.0), 0.01), "euler", dt0=0.01)
        assert sol.stats.num_steps == 10_000

    def test_the_field_is_never_evaluated_outside_the_span(self):
        def field(t, y, p):
            outside = (t < 0.25) | (t > 1.7)
            return tf.where(outside, tf.constant(np.nan, y.dtype), tf.ones_like(y))

        for span in ((0.25, 1.7), (1.7, 0.25)):
            for solver in ("tsit5", "dopri8", "bosh3"):
                sol = nde.solve(nde.ODEProblem(field, np.zeros(1), span), solver, saveat=span)
                np.testing.assert_allclose(sol.y[1, 0], span[1] - span[0], rtol=1e-12)

    def test_dt_min_ends_with_a_status(self):
        problem = nde.ODEProblem(problems.harmonic, np.array([1.0, 0.0]), (0.0, 10.0))
        sol = nde.solve(problem, rtol=1e-10, atol=1e-10, dt_min=0.2, throw=False)
        assert sol.status == nde.Status.STEP_TOO_SMALL

    def test_first_step_is_taken_from_dt0(self):
        problem = nde.ODEProblem(problems.decay, np.ones(1), (0.0, 1.0), 1.0)
        automatic, given = nde.solve(problem), nde.solve(problem, dt0=1e-7)
        assert given.stats.num_steps > automatic.stats.num_steps + 3

    @pytest.mark.parametrize("controller", ["I", "PI", "PID"])
    def test_controllers_keep_the_tolerance(self, controller):
        problem = nde.ODEProblem(problems.harmonic, np.array([1.0, 0.0]), (0.0, 20.0))
        sol = nde.solve(problem, controller=controller, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(sol.y, [np.cos(20.0), -np.sin(20.0)], atol=2e-5)
        assert sol.stats.num_steps < 200


class TestFailure:
    def test_max_steps(self):
        problem = nde.ODEProblem(problems.harmonic, np.array([1.0, 0.0]), (0.0, 100.0))
        with pytest.raises(nde.SolveError, match="max_steps"):
            nde.solve(problem, max_steps=5)
        sol = nde.solve(problem, max_steps=5, throw=False)
        assert sol.status == nde.Status.MAX_STEPS and sol.stats.num_steps == 5
        assert np.all(np.isnan(sol.y)) and "max_steps" in repr(sol)

    @pytest.mark.parametrize("solver", ["tsit5", "bosh3", "dopri8"])
    def test_a_nan_field_ends_at_once(self, solver):
        problem = nde.ODEProblem(lambda t, y, p: y * np.nan, np.ones(1), (0.0, 1.0))
        sol = nde.solve(problem, solver, throw=False)
        assert sol.status == nde.Status.NON_FINITE and sol.stats.num_steps < 5

    def test_a_field_that_becomes_nan_ends_with_a_status(self):
        def field(t, y, p):
            return tf.where(t > 0.5, tf.constant(np.nan, y.dtype), tf.ones_like(y))

        for keywords in ({}, {"solver": "rk4", "dt0": 0.1}):
            sol = nde.solve(nde.ODEProblem(field, np.ones(1), (0.0, 1.0)), throw=False, **keywords)
            assert sol.status == nde.Status.NON_FINITE and np.isnan(sol.y[0])

    def test_a_blow_up_ends_with_a_status(self):
        sol = nde.solve(
            nde.ODEProblem(lambda t, y, p: y * y, np.ones(1), (0.0, 2.0)),
            saveat=[0.5, 2.0],
            throw=False,
        )
        assert sol.status == nde.Status.STEP_TOO_SMALL

    def test_bad_times_inside_a_graph_report_through_the_status(self):
        @tf.function
        def run(times):
            sol = nde.solve(nde.ODEProblem(problems.decay, [1.0], (0.0, 1.0), 1.0), saveat=times)
            return sol.y, sol.status

        y, status = run(tf.constant([0.5, 0.2]))
        assert status == nde.Status.BAD_TIMES and np.all(np.isnan(y))
        assert run(tf.constant([0.5, 1.2]))[1] == nde.Status.BAD_TIMES
        assert run(tf.constant([0.5, 1.0]))[1] == nde.Status.SUCCESS


class TestTwoLives:
    """Compiled, plain graph and eager runs give the same numbers."""

    @staticmethod
    def run(y0, times):
        sol = nde.solve(
            nde.ODEProblem(problems.lotka_volterra, y0, (0.0, 5.0), problems.LOTKA_VOLTERRA_P),
            saveat=times,
            batch_ndims=1,
            rtol=1e-6,
            atol=1e-6,
        )
        return sol.y, sol.stats.num_steps

    def test_same_numbers(self):
        y0 = tf.constant(np.random.default_rng(1).uniform(0.5, 2.0, (4, 2)))
        times = tf.linspace(tf.constant(0.0, tf.float64), 5.0, 6)
        compiled, steps = tf.function(self.run, jit_compile=True)(y0, times)
        graph, graph_steps = tf.function(self.run)(y0, times)
        eager, _ = self.run(y0, times)
        np.testing.assert_allclose(graph, compiled, rtol=1e-10)
        np.testing.assert_allclose(eager, compiled, rtol=1e-10)
        np.testing.assert_array_equal(graph_steps, steps)
        tf.config.run_functions_eagerly(True)
        try:
            python, _ = self.run(y0, times)
        finally:
            tf.config.run_functions_eagerly(False)
        np.testing.assert_allclose(python, compiled, rtol=1e-10)

    def test_unknown_batch_size_in_a_graph(self):
        run = tf.function(
            self.run,
            input_signature=[
                tf.TensorSpec((None, 2), tf.float64),
                tf.TensorSpec((None,), tf.float64),
            ],
        )
        y, _ = run(np.ones((3, 2)), np.array([1.0, 2.0]))
        assert y.shape == (2, 3, 2)
        assert run(np.ones((5, 2)), np.array([1.0, 2.0, 4.0]))[0].shape == (3, 5, 2)

    def test_values_do_not_retrace(self):
        traces = []

        def field(t, y, p):
            traces.append(1)
            return -p * y

        counts = []
        for k in range(3):
            problem = nde.ODEProblem(field, np.ones(2) * (k + 1), (0.0, 1.0 + k), 1.0 + k)
            nde.solve(
                problem, saveat=np.array([0.5, 0.7]) * (k + 1), rtol=10.0 ** (-3 - k), dt0=0.1 + k
            )
            counts.append(len(traces))
        assert counts[0] == counts[1] == counts[2]

    def test_a_lambda_made_anew_reuses_its_program(self):
        from keras_neuralde.execution import programs

        scale = tf.constant(2.0)

        def once():
            return nde.solve(nde.ODEProblem(lambda t, y, p: -scale * y, [1.0], (0.0, 1.0))).y

        once()
        before = len(programs)
        once()
        assert len(programs) == before


class TestDoor:
    """Each bad argument is a sentence that names what came and what was expected."""

    @staticmethod
    def solve(y0=1.0, t_span=(0.0, 1.0), p=1.0, solver="tsit5", field=problems.decay, **keywords):
        return nde.solve(nde.ODEProblem(field, y0, t_span, p), solver, **keywords)

    @pytest.mark.parametrize(
        ("keywords", "words"),
        [
            ({"solver": "tsit"}, "Did you mean 'tsit5'"),
            ({"rtol": -1e-3}, "`rtol` must not be negative"),
            ({"atol": float("nan")}, "`atol` must not be negative or NaN"),
            ({"saveat": [0.5, 0.2]}, "sorted"),
            ({"saveat": [0.5, 1.2]}, "within t_span"),
            ({"saveat": []}, "at least one time"),
            ({"saveat": [[0.1], [0.2]]}, "batch shape"),
            ({"y0": float("inf")}, "`y0` must be finite"),
            ({"t_span": (0.0, float("nan"))}, "must be finite"),
            ({"t_span": (0.0, 1.0, 2.0)}, "pair"),
            ({"dt0": -1.0}, "`dt0` must be a finite positive"),
            ({"dt0": 0.0}, "`dt0` must be a finite positive"),
            ({"max_steps": 0}, "`max_steps` must be an integer of at least 1"),
            ({"checkpoints": 2.5}, "`checkpoints` must be an integer"),
            ({"norm": "l2"}, "`norm` must be one of"),
            ({"controller": "H211"}, "`controller` must be one of"),
            ({"solver": "rk4"}, "needs `dt0`"),
            ({"solver": "rk4", "controller": "I"}, "no error estimate"),
            ({"batch_ndims": 1}, "at least 1 axes"),
            ({"step_control": "shared"}, "`step_control` must be one of"),
            ({"adjoint": "magic"}, "`adjoint` must be one of"),
            ({"field": lambda t, y, p: tf.stack([y, y])}, "must return the shape of `y`"),
            ({"field": lambda t, y, p: (y, y)}, "must return the structure of `y`"),
            ({"atol": np.ones(3)}, "must broadcast"),
        ],
    )
    def test_values(self, keywords, words):
        with pytest.raises(ValueError, match=words):
            self.solve(**keywords)

    @pytest.mark.parametrize(
        ("keywords", "words"),
        [
            ({"y0": np.ones(1, np.float32), "p": np.ones(1)}, "one dtype.*float32.*float64"),
            ({"y0": np.ones(2, np.int64)}, "floating"),
            ({"y0": np.ones(2, np.complex128)}, "complex"),
            ({"y0": np.ones(2, np.float16)}, "float32 or float64"),
            ({"solver": 3}, "must be a name"),
            ({"field": "decay"}, "`f` must be a function"),
            ({"field": lambda t, y, p: tf.cast(y, tf.float16)}, "dtype of `y`"),
        ],
    )
    def test_types(self, keywords, words):
        with pytest.raises(TypeError, match=words):
            self.solve(**keywords)

    def test_remake_names_unknown_fields(self):
        problem = nde.ODEProblem(problems.decay, 1.0, (0.0, 1.0), 1.0)
        assert problem.remake(p=3.0).p == 3.0 and problem.p == 1.0
        with pytest.raises(TypeError, match="u0"):
            problem.remake(u0=2.0)


@pytest.mark.parametrize("saveat", [None, np.linspace(0.0, 3000.0, 7)])
def test_progress_is_reported_in_parts_that_make_the_same_solution(saveat, monkeypatch):
    import sys

    problem = nde.ODEProblem(problems.harmonic, np.array([1.0, 0.0]), (0.0, 3000.0))
    keywords = {"saveat": saveat, "rtol": 1e-6, "atol": 1e-6}
    seen = []

    class Bar:
        def __init__(self, target, **_):
            self.target = target

        def update(self, done, **_):
            seen.append(done / self.target)

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("keras.utils.Progbar", Bar)
    sol = nde.solve(problem, progress=True, **keywords)
    whole = nde.solve(problem, **keywords)
    np.testing.assert_allclose(sol.y, whole.y, rtol=1e-12)
    assert int(sol.stats.num_steps) == int(whole.stats.num_steps) > 4096
    assert len(seen) >= 2 and seen == sorted(seen) and seen[-1] == 1.0
