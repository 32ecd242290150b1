"""The discrete adjoint against finite differences of the same numbers, in float64.

With fixed steps the finite differences repeat the step sequence by construction; adaptive solves
are checked at tolerances of 1e-11, where the sequence no longer matters.
"""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde.captures import lift
from keras_neuralde.fields import Field
from keras_neuralde.solvers import Solver
from keras_neuralde.state import StateLayout
from keras_neuralde.tableaus import ESDIRK, EXPLICIT, ROSENBROCK
from tests import problems

TIGHT = {"rtol": 1e-11, "atol": 1e-11}


def central_differences(function, x, relative=1e-5):
    """The gradient of a scalar function of one array."""
    x = np.asarray(x, float)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        h = relative * max(1.0, abs(x[index]))
        up, down = x.copy(), x.copy()
        up[index] += h
        down[index] -= h
        gradient[index] = (float(function(up)) - float(function(down))) / (2 * h)
    return gradient


def check(loss, *points, rtol=1e-6, relative=1e-5):
    """Compares the tape's gradient of `loss(*tensors)` with central differences."""
    tensors = [tf.constant(point, tf.float64) for point in points]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = loss(*tensors)
    gradients = tape.gradient(value, tensors)
    for i, gradient in enumerate(gradients):

        def along(x, i=i):
            with tf.GradientTape():  # the same program as above
                return loss(*[tf.constant(x) if j == i else t for j, t in enumerate(tensors)])

        expected = central_differences(along, points[i], relative)
        assert gradient is not None
        np.testing.assert_allclose(
            gradient, expected, rtol=rtol, atol=rtol * np.abs(expected).max()
        )


def forced(t, y, p):
    """A time-dependent, nonlinear field with two parameters."""
    time = tf.reshape(t, tf.concat([tf.shape(t), [1]], 0))
    return p[0] * tf.sin(time * y) - p[1] * y[..., ::-1] * tf.cos(time)


def pulled(t, y, p):
    """`forced`, whose second component is pulled to a curve: stiff, and not linear."""
    away = y[..., 1:] - tf.cos(tf.reshape(t, tf.concat([tf.shape(t), [1]], 0))) + 1.48
    return forced(t, y, p) - 1e4 * tf.pad(away + away**3, [[0, 0]] * (y.shape.rank - 1) + [[1, 0]])


WEIGHTS = np.random.default_rng(3).normal(size=(4, 2))


METHODS = [*EXPLICIT, *ROSENBROCK, *ESDIRK]
SOME_SLOW = [
    pytest.param(name, marks=pytest.mark.slow) if name in ESDIRK and name != "trbdf2" else name
    for name in METHODS
]


@pytest.mark.parametrize("name", SOME_SLOW)
def test_every_method_in_y0_p_and_all_times_with_fixed_steps(name):
    """Implicit methods on an equation that is stiff: h λ = -700."""
    # Inside the first step the pull bends what depends on the start: smaller differences.
    field, relative = (forced, 1e-5) if name in EXPLICIT else (pulled, 1e-6)

    def loss(y0, p, t0, t1, saves):
        sol = nde.solve(
            nde.ODEProblem(field, y0, (t0, t1), p),
            name,
            saveat=saves,
            dt0=0.07,
            controller="constant",
            # With segments that run once more for a few of them: that compiles a third longer.
            max_steps=100_000 if name in ("tsit5", "rodas5p", "trbdf2") else 64,
        )
        return tf.reduce_sum(sol.y * WEIGHTS)

    points = ([1.0, -0.5], [0.9, 0.4], 0.2, 2.0, [0.2001, 0.61, 1.3, 1.97])
    check(loss, *points, relative=relative)


@pytest.mark.parametrize("name", ["heun", "tsit5", "dopri8"])
def test_final_state_in_y0_p_and_span_with_fixed_steps(name):
    def loss(y0, p, t0, t1):
        problem = nde.ODEProblem(forced, y0, (t0, t1), p)
        y = nde.solve(problem, name, dt0=0.07, controller="constant").y
        return tf.reduce_sum(y * WEIGHTS[0])

    check(loss, [1.0, -0.5], [0.9, 0.4], 0.2, 2.0)
    check(loss, [1.0, -0.5], [0.9, 0.4], 2.0, 0.2)


@pytest.mark.parametrize(
    "name",
    [
        "bosh3",
        "dopri5",
        "tsit5",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("vern7", "dopri8")),
    ],
)
def test_adaptive_steps(name):
    tolerance = 1e-8 if name == "bosh3" else 1e-11

    def loss(y0, p, saves):
        sol = nde.solve(
            nde.ODEProblem(forced, y0, (0.2, 2.0), p),
            name,
            saveat=saves,
            rtol=tolerance,
            atol=tolerance,
        )
        return tf.reduce_sum(sol.y * WEIGHTS)

    check(
        loss,
        [1.0, -0.5],
        [0.9, 0.4],
        [0.21, 0.61, 1.3, 2.0 - 1e-3],
        rtol=1e-5 if name == "bosh3" else 1e-6,
    )


def test_lotka_volterra_reference_values():
    p = tf.constant(problems.LOTKA_VOLTERRA_P)
    y0 = tf.ones(2, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch([p, y0])
        problem = nde.ODEProblem(problems.lotka_volterra, y0, (0.0, 10.0), p)
        sol = nde.solve(problem, saveat=np.linspace(0.0, 10.0, 101), rtol=1e-12, atol=1e-12)
        loss = tf.reduce_sum((sol.y - 1.0) ** 2)
    by_p, by_y0 = tape.gradient(loss, [p, y0])
    # Computed independently to 15 digits with a variational equation.
    np.testing.assert_allclose(loss, 1017.830598469229, rtol=1e-9)
    np.testing.assert_allclose(
        by_p, [52.94298897335, -786.15367143663, 880.25188338715, -2948.62767698706], rtol=1e-7
    )
    np.testing.assert_allclose(by_y0, [-961.173429479788, -240.418593926373], rtol=1e-7)


def lifted(function, y, p):
    """The `Field` of a function of `(t, y, p)` on a batch of vectors."""
    specs = [tf.TensorSpec(shape, tf.float64) for shape in (y.shape[:1], y.shape, p.shape)]
    layout = StateLayout(specs[1], 1)
    return Field(lift(function, *specs), layout, [y.shape[0]], [p])


@pytest.mark.parametrize("name", METHODS)
def test_the_written_out_product_is_that_of_the_tape(name):
    """`step_vjp` against the tape through `advance`, Newton's iterations and all."""
    random = np.random.default_rng(5)
    t, t_next = tf.constant([0.1, 0.2, 0.3], tf.float64), tf.constant([0.4, 0.2, 0.6], tf.float64)
    y, y1_bar = (tf.constant(random.normal(size=(3, 2))) for _ in range(2))
    p = tf.constant([0.9, 0.4], tf.float64)
    field = lifted(forced, y, p)
    solver = nde.solvers.get(name)
    dense_bar = tf.constant(random.normal(size=(3, 2 * solver.dense_degree())))
    for dense in (None, dense_bar):
        arguments = (field, t, t_next, y, [p], y1_bar, dense, True)
        ours, generic = solver.step_vjp(*arguments), Solver.step_vjp(solver, *arguments)
        for one, other in zip(tf.nest.flatten(ours), tf.nest.flatten(generic), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def network_loss(kernel, bias, y0, **keywords):
    def field(t, y, p):
        return tf.tanh(y @ p["kernel"] + p["bias"]) @ tf.transpose(p["kernel"])

    problem = nde.ODEProblem(field, y0, (0.0, 1.5), {"kernel": kernel, "bias": bias})
    sol = nde.solve(problem, saveat=[0.5, 1.5], batch_ndims=1, **keywords)
    return tf.reduce_sum(tf.sin(sol.y))


NETWORK = (
    np.random.default_rng(0).normal(size=(2, 5)),
    np.random.default_rng(1).normal(size=5),
    np.random.default_rng(2).normal(size=(3, 2)),
)


def test_a_network_over_a_batch():
    check(lambda *tensors: network_loss(*tensors, **TIGHT), *NETWORK)


def test_a_network_with_joint_steps():
    check(lambda *tensors: network_loss(*tensors, step_control="joint", **TIGHT), *NETWORK)


@pytest.mark.parametrize("checkpoints", [1, 2, 3, 7])
def test_any_number_of_checkpoints_gives_the_same_gradient(checkpoints):
    def gradient(checkpoints):
        tensors = [tf.constant(point) for point in NETWORK]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            # Tolerances that reject steps: about 60 turns of the loop.
            loss = network_loss(*tensors, checkpoints=checkpoints, rtol=1e-9, atol=1e-9, dt0=1.0)
        return tape.gradient(loss, tensors)

    for few, many in zip(gradient(checkpoints), gradient(256), strict=True):
        np.testing.assert_allclose(few, many, rtol=1e-11, atol=1e-12)


def test_thousands_of_steps_with_few_checkpoints():
    p = tf.constant(1.0, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(p)
        problem = nde.ODEProblem(
            lambda t, y, p: p * tf.stack([y[1], -y[0]]), np.array([1.0, 0.0]), (0.0, 20.0), p
        )
        sol = nde.solve(problem, "rk4", dt0=0.004, checkpoints=4)
        x = sol.y[0]
    assert sol.stats.num_steps == 5000
    np.testing.assert_allclose(tape.gradient(x, p), -20 * np.sin(20.0), rtol=1e-9)


class TestClosures:
    """Whatever the field closes over gets its gradient; nothing is lost in silence."""

    @staticmethod
    def expected():
        # y = exp(-a b t): dy/da = -b t y, dy/db = -a t y at a=2, b=3, t=1.
        y = np.exp(-6.0)
        return y, -3 * y, -2 * y

    @pytest.mark.parametrize("mode", ["eager", "graph", "xla", "tape outside", "traced before"])
    def test_tensors_and_variables(self, mode):
        variable = tf.Variable(2.0, dtype=tf.float64)
        tensor = tf.constant(3.0, tf.float64)

        def value():
            problem = nde.ODEProblem(
                lambda t, y, p: -variable * tensor * y, np.ones(()), (0.0, 1.0)
            )
            return nde.solve(problem, **TIGHT).y

        def gradient():
            with tf.GradientTape() as tape:
                tape.watch(tensor)
                y = value()
            return y, *tape.gradient(y, [variable, tensor])

        if mode in ("tape outside", "traced before"):
            compiled = tf.function(value, jit_compile=True)
            if mode == "traced before":
                compiled()
            with tf.GradientTape() as tape:
                tape.watch(tensor)
                y = compiled()
            found = y, *tape.gradient(y, [variable, tensor])
        elif mode == "eager":
            found = gradient()
        else:
            found = tf.function(gradient, jit_compile=mode == "xla")()
        np.testing.assert_allclose(found, self.expected(), rtol=1e-8)

    def test_a_large_tensor_and_one_read_inside_a_branch(self):
        weights = tf.constant(np.linspace(0.1, 0.3, 300))
        rate = tf.constant(2.0, tf.float64)

        def field(t, y, p):
            pull = tf.cond(t < 0.5, lambda: rate * y, lambda: 2.0 * rate * y)
            return -pull + 0.0 * tf.reduce_sum(weights) - tf.reduce_mean(weights) * y

        with tf.GradientTape() as tape:
            tape.watch([weights, rate])
            problem = nde.ODEProblem(field, np.ones(()), (0.0, 1.0))
            y = nde.solve(problem, "rk4", dt0=0.01).y
        by_weights, by_rate = tape.gradient(y, [weights, rate])
        # y(1) = exp(-0.5 r - r - mean(w)), but for the step that straddles t = 0.5.
        np.testing.assert_allclose(by_rate, -1.5 * y, rtol=2e-2)
        np.testing.assert_allclose(by_weights, np.full(300, -y / 300), rtol=1e-7)

    def test_a_tensor_of_the_enclosing_graph(self):
        @tf.function
        def gradient(a):
            with tf.GradientTape() as tape:
                tape.watch(a)
                scale = a * a
                problem = nde.ODEProblem(lambda t, y, p: -scale * y, np.ones(()), (0.0, 1.0))
                y = nde.solve(problem, **TIGHT).y
            return tape.gradient(y, a)

        np.testing.assert_allclose(
            gradient(tf.constant(1.5, tf.float64)), -3.0 * np.exp(-2.25), rtol=1e-8
        )

    def test_a_keras_model_and_a_nested_function(self):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((2,), dtype="float64"), keras.layers.Dense(2, "tanh", dtype="float64")],
        )
        inner = tf.function(lambda y: model(y[None])[0])

        def loss(kernel):
            model.weights[0].assign(kernel)
            problem = nde.ODEProblem(lambda t, y, p: inner(y), np.array([0.3, -0.2]), (0.0, 1.0))
            return tf.reduce_sum(nde.solve(problem, **TIGHT).y ** 2)

        kernel = model.weights[0].numpy()
        with tf.GradientTape() as tape:
            value = loss(kernel)
        found = tape.gradient(value, model.weights[0].value)
        np.testing.assert_allclose(found, central_differences(loss, kernel), rtol=1e-6)

    def test_integer_parameters_are_carried_along(self):
        def field(t, y, p):
            rates, which = p
            return -tf.gather(rates, which) * y

        rates = tf.constant([1.0, 2.0], tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(rates)
            y = nde.solve(
                nde.ODEProblem(field, np.ones(()), (0.0, 1.0), (rates, np.array(1))), **TIGHT
            ).y
        np.testing.assert_allclose(tape.gradient(y, rates), [0.0, -np.exp(-2.0)], atol=1e-9)


def test_a_failed_row_sends_no_nan_to_the_others():
    p = tf.constant(1.0, tf.float64)
    y0 = tf.constant([[0.5], [2.0]], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch([p, y0])
        problem = nde.ODEProblem(lambda t, y, p: p * y * y, y0, (0.0, 1.0), p)
        sol = nde.solve(problem, batch_ndims=1, throw=False, **TIGHT)
        loss = tf.reduce_sum(tf.where(sol.success[:, None], sol.y, 0.0))
    by_p, by_y0 = tape.gradient(loss, [p, y0])
    # y = y0 / (1 - p y0): dy/dp = y², dy/dy0 = (y / y0)².
    np.testing.assert_allclose(by_p, 1.0, rtol=1e-7)
    np.testing.assert_allclose(by_y0, [[4.0], [0.0]], rtol=1e-7)


def test_second_derivatives_are_refused_in_a_sentence():
    p = tf.constant(1.0, tf.float64)
    with tf.GradientTape() as outer:
        outer.watch(p)
        with tf.GradientTape() as inner:
            inner.watch(p)
            y = nde.solve(nde.ODEProblem(problems.decay, np.ones(()), (0.0, 1.0), p)).y
        with pytest.raises(NotImplementedError, match="first derivatives only"):
            outer.gradient(inner.gradient(y, p), p)


def test_a_persistent_tape():
    p = tf.constant(1.0, tf.float64)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(p)
        sol = nde.solve(
            nde.ODEProblem(problems.decay, np.ones(()), (0.0, 1.0), p), saveat=[0.5, 1.0], **TIGHT
        )
        first, last = sol.y[0], sol.y[1]
    np.testing.assert_allclose(tape.gradient(first, p), -0.5 * np.exp(-0.5), rtol=1e-9)
    np.testing.assert_allclose(tape.gradient(last, p), -np.exp(-1.0), rtol=1e-9)


@pytest.mark.parametrize("name", ["rtol", "atol", "dt0"])
def test_gradients_of_settings_are_refused_by_name(name):
    setting = tf.constant(1e-3, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(setting)
        problem = nde.ODEProblem(problems.decay, np.ones(()), (0.0, 1.0), 1.0)
        y = nde.solve(problem, **{name: setting}).y
    with pytest.raises(ValueError, match=f"`{name}`"):
        tape.gradient(y, setting)


def test_padded_save_times_get_no_gradient_and_send_none():
    times = np.array([[0.5, 1.0], [0.7, np.nan]])
    y0 = tf.constant([[1.0], [2.0]], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        sol = nde.solve(
            nde.ODEProblem(problems.decay, y0, (0.0, 1.0), 1.0),
            saveat=times,
            batch_ndims=1,
            **TIGHT,
        )
        loss = tf.reduce_sum(tf.where(tf.math.is_finite(sol.y), sol.y, 0.0))
    expected = [[np.exp(-0.5) + np.exp(-1.0)], [np.exp(-0.7)]]
    np.testing.assert_allclose(tape.gradient(loss, y0), expected, rtol=1e-8)


class TestTrail:
    """A graph that is traced without a tape keeps no trail, and has a gradient all the same."""

    @staticmethod
    def solve(y0, p, times):
        problem = nde.ODEProblem(problems.lotka_volterra, y0, (0.0, 3.0), p)
        return nde.solve(problem, saveat=times, rtol=1e-6, checkpoints=4, batch_ndims=1).y

    @pytest.mark.parametrize("jit", [False, True])
    def test_a_tape_around_a_function_traced_before(self, jit):
        inputs = [
            tf.constant([[1.0, 1.0], [1.2, 0.8]], tf.float64),
            tf.constant(problems.LOTKA_VOLTERRA_P),
            tf.constant([0.0, 0.7, 3.0], tf.float64),
        ]
        function = tf.function(self.solve, jit_compile=jit, autograph=False)
        before = function(*inputs)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(function(*inputs) ** 2)
        assert function.experimental_get_tracing_count() == 1
        late = tape.gradient(loss, inputs)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = self.solve(*inputs)
            loss = tf.reduce_sum(y**2)
        np.testing.assert_allclose(before, y, rtol=1e-12)
        for a, b in zip(late, tape.gradient(loss, inputs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)

    def test_no_trail_without_a_tape(self):
        inputs = [tf.ones((2, 2), tf.float64), tf.ones(4, tf.float64), tf.ones(3, tf.float64)]

        def loops(function):
            graph = tf.function(function, autograph=False).get_concrete_function(*inputs).graph
            return [op for op in graph.get_operations() if op.type in ("While", "StatelessWhile")]

        def with_a_tape(*inputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                return self.solve(*inputs)

        (plain,), (recording,) = loops(self.solve), loops(with_a_tape)
        # The trail adds its counters, slots and decisions to what the loop carries.
        assert len(recording.outputs) > len(plain.outputs)


@pytest.mark.parametrize(
    ("t_span", "saveat"),
    [((1.0, -0.2), None), ((0.0, np.array([0.3, 1.0])), [0.1, 0.25, 0.3])],
)
def test_a_known_number_of_equal_steps_is_recorded_at_once(t_span, saveat):
    """Whether the graph knows how many there are changes no number."""
    y0, p = tf.constant([[0.5, 1.0], [0.3, -0.7]], tf.float64), tf.constant([0.7, 0.4], tf.float64)

    def gradient(y0, p, dt0):
        with tf.GradientTape() as tape:
            tape.watch([y0, p])
            problem = nde.ODEProblem(forced, y0, t_span, p)
            sol = nde.solve(
                problem, "heun", dt0=dt0, controller="constant", batch_ndims=1, saveat=saveat
            )
            loss = tf.reduce_sum(tf.where(tf.math.is_finite(sol.y), sol.y, 0.0) ** 3)
        return [loss, *tape.gradient(loss, [y0, p]), sol.stats.num_steps, sol.status]

    known = tf.function(lambda y0, p: gradient(y0, p, 0.03), autograph=False, jit_compile=True)
    unknown = tf.function(gradient, autograph=False, jit_compile=True)
    found = known(y0, p)
    for one, other in zip(found, unknown(y0, p, tf.constant(0.03, tf.float64)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    np.testing.assert_array_equal(found[-1], 0)
    assert np.all(np.abs(found[1]) > 1e-3)


@pytest.mark.parametrize("saveat", [None, [0.25, 0.5, 0.5, 2.0]])
def test_few_steps_at_most_need_no_checkpoints(saveat):
    """The same gradient from a program without what would run segments once more."""
    y0 = tf.constant(np.linspace(0.5, 2.0, 6).reshape(3, 2))
    p = tf.constant([[1.0], [20.0], [3.0]], tf.float64)

    def gradient(y0, p, max_steps):
        with tf.GradientTape() as tape:
            tape.watch([y0, p])
            problem = nde.ODEProblem(lambda t, y, p: -p * tf.sin(y), y0, (0.0, 2.0), p)
            sol = nde.solve(
                problem, "tsit5", saveat=saveat, rtol=1e-10, atol=1e-10, batch_ndims=1,
                max_steps=max_steps, throw=False,
            )  # fmt: skip
            loss = tf.reduce_sum(tf.where(tf.math.is_finite(sol.y), sol.y, 0.0) ** 2)
        return *tape.gradient(loss, [y0, p]), sol.stats.num_steps, sol.status

    def compiled(most):
        return tf.function(lambda y0, p: gradient(y0, p, most), autograph=False, jit_compile=True)

    found, loops = {}, {}
    for most in (256, 257, 80):
        program = compiled(most)
        text = program.experimental_get_compiler_ir(y0, p)(stage="hlo")
        found[most], loops[most] = program(y0, p), text.count(" while(")
    assert loops[256] < loops[257] - 1
    *_, steps, status = found[256]
    assert 64 < max(steps) < 256 and not np.any(status)
    for one, other in zip(found[256][:2], found[257][:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
        assert np.all(one)
    # A trajectory that needs more has a status and no gradient; the others have theirs.
    failed = np.asarray(found[80][-1]) == int(nde.Status.MAX_STEPS)
    np.testing.assert_array_equal(failed, np.asarray(steps) > 80)
    assert failed.any() and not failed.all()
    for one, other in zip(found[80][:2], found[256][:2], strict=True):
        expected = np.where(failed[:, None], 0.0, other)
        np.testing.assert_allclose(one, expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["heun", "rosenbrock23"])
def test_few_equal_steps_at_most_need_no_checkpoints(name):
    """Also where the end is a tensor, and where a step may be tried again."""

    def program(most):
        def gradient(y0, t1):
            with tf.GradientTape() as tape:
                tape.watch([y0, t1])
                problem = nde.ODEProblem(lambda t, y, p: -3.0 * y * y, y0, (0.0, t1))
                options = {"dt0": 0.01, "controller": "constant", "batch_ndims": 1}
                y = nde.solve(problem, name, max_steps=most, **options).y
                loss = tf.reduce_sum(y**2)
            return tape.gradient(loss, [y0, t1])

        return tf.function(gradient, autograph=False, jit_compile=True)

    given = tf.constant([[1.0], [0.5]], tf.float64), tf.constant(1.0, tf.float64)
    few, many = program(256), program(257)
    loops = [
        one.experimental_get_compiler_ir(*given)(stage="hlo").count(" while(")
        for one in (few, many)
    ]
    assert loops[0] < loops[1] - 1
    for one, other in zip(few(*given), many(*given), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
        assert np.all(one)


def test_a_known_number_of_steps_needs_no_checkpoints():
    """The record is as long as the steps, and nothing else is kept of them, up to a limit."""

    def largest(steps, checkpoints):
        def gradient(y0):
            with tf.GradientTape() as tape:
                tape.watch(y0)
                problem = nde.ODEProblem(lambda t, y, p: -y, y0, (0.0, 1.0))
                y = nde.solve(
                    problem, "heun", dt0=1.0 / steps, controller="constant", batch_ndims=1,
                    checkpoints=checkpoints,
                ).y  # fmt: skip
                loss = tf.reduce_sum(y**2)
            return tape.gradient(loss, y0)

        program = tf.function(gradient, autograph=False, jit_compile=True)
        y0 = tf.ones((7, 3), tf.float64)
        text = program.experimental_get_compiler_ir(y0)(stage="optimized_hlo")
        return max(int(size) for size in re.findall(r"f64\[(\d+),\d*,?7\b", text))

    assert largest(100, 64) == 101
    assert largest(1000, 64) == 65
    assert largest(100, 8) < 20
