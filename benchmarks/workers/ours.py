"""keras_neuralde: tsit5 or rodas5p through `solve`, with the tape inside the compiled function."""

import dataclasses
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import keras_neuralde as nde
from benchmarks.workers.serve import Program, Skipped, agree, decreased, serve
from benchmarks.workloads import STIFF


def build(spec, arrays):
    """The workload in this package; see `benchmarks.workers.serve.Program`."""
    gpus = tf.config.list_physical_devices("GPU")
    if spec["devices"] > 1:
        (cpu,) = tf.config.list_physical_devices("CPU")
        parts = [tf.config.LogicalDeviceConfiguration()] * spec["devices"]
        tf.config.set_logical_device_configuration(cpu, parts)
    if not spec["gpu"]:
        # TensorFlow would take a GPU by itself.
        tf.config.set_visible_devices([], "GPU")
        return _build(spec, arrays)
    if not gpus:
        raise Skipped("TensorFlow sees no GPU on this machine")
    with tf.device("GPU:0"):
        program = _build(spec, arrays)

    def on_gpu(function):
        def run():
            with tf.device("GPU:0"):
                result = function()
            # Work is handed to a GPU without waiting for it.
            tf.test.experimental.sync_devices()
            return result

        return None if function is None else run

    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    calls = {"call": on_gpu(program.call), "loop": on_gpu(program.loop)}
    return dataclasses.replace(program, **calls, device=name)


def _build(spec, arrays):
    if spec["chunked"]:
        return _ensemble(spec, arrays)
    y0, p = tf.constant(arrays["y0"]), [tf.constant(leaf) for leaf in arrays["p"]]
    states = _states(spec, tf.constant(arrays["times"]))
    loss = _loss(states, tf.constant(arrays["target"]), spec["batch"] or 1)
    if spec["task"] == "train":
        return _training(spec, loss, y0, p)
    return _evaluation(spec, states if spec["task"] == "solve" else _gradient(loss), y0, p)


def at_tolerance(spec, arrays, method):
    """The result of a workload as a function of its tolerances, compiled once.

    Args:
        spec: the workload's settings, its tolerances left out.
        arrays: its arrays.
        method: the name of the solver.

    Returns:
        A function of one number, rtol and atol.
    """
    y0, p = tf.constant(arrays["y0"]), [tf.constant(leaf) for leaf in arrays["p"]]
    times, target = tf.constant(arrays["times"]), tf.constant(arrays["target"])
    general = spec | {"joint": False, "method": method}

    @tf.function(jit_compile=True)
    def run(tolerance):
        states = _states(general | {"rtol": tolerance, "atol": tolerance}, times)
        if spec["task"] == "solve":
            return states(y0, p)
        found = _gradient(_loss(states, target, spec["batch"] or 1))(y0, p)
        return tf.concat([tf.reshape(leaf, [-1]) for leaf in found], 0)

    return lambda tolerance: run(tf.constant(tolerance, y0.dtype)).numpy()


def _field(spec):
    def lotka_volterra(t, y, p):
        u, v = tf.unstack(y, axis=-1)
        a, b, c, d = tf.unstack(p[0], axis=-1)
        return tf.stack([a * u - b * u * v, -c * v + d * u * v], -1)

    def lorenz(t, y, p):
        a, b, c = tf.unstack(y, axis=-1)
        sigma, rho, beta = tf.unstack(p[0], axis=-1)
        return tf.stack([sigma * (b - a), a * (rho - c) - b, a * b - beta * c], -1)

    def mlp(t, y, p):
        x = y ** spec["power"]
        for weight, bias in zip(p[:-2:2], p[1:-2:2], strict=True):
            x = tf.tanh(x @ weight + bias)
        return x @ p[-2] + p[-1]

    def robertson(t, y, p):
        a, b, c = tf.unstack(y, axis=-1)
        k1, k2, k3 = tf.unstack(p[0], axis=-1)
        r1, r2, r3 = k1 * a, k2 * b * b, k3 * b * c
        return tf.stack([-r1 + r3, r1 - r2 - r3, r2], -1)

    def brusselator(t, y, p):
        a, b, alpha = tf.unstack(p[0])
        u, v = tf.split(y, 2)
        n = u.shape[0]

        def spread(w, border):
            w = tf.pad(w, [[1, 1]], constant_values=border)
            return alpha * (n + 1.0) ** 2 * (w[:-2] - 2 * w[1:-1] + w[2:])

        react = u * u * v
        return tf.concat([a + react - (b + 1) * u + spread(u, 1), b * u - react + spread(v, 3)], 0)

    fields = {"lotka_volterra": lotka_volterra, "lorenz": lorenz, "mlp": mlp}
    return (fields | {"robertson": robertson, "brusselator": brusselator})[spec["field"]]


def _sparsity(spec):
    """Where the Jacobian of the Brusselator is nonzero; `None` for the other fields."""
    if spec["field"] != "brusselator":
        return None
    eye = np.eye(64)
    line = eye + np.eye(64, k=1) + np.eye(64, k=-1)
    return np.block([[line, eye], [eye, line]])


def _states(spec, times):
    """A function of y0 and p that returns the kept states, time first."""
    final = spec["num_saves"] is None
    field = _field(spec)

    def states(y0, p):
        y = nde.solve(
            nde.ODEProblem(field, y0, (0.0, spec["t1"]), p, jac_sparsity=_sparsity(spec)),
            spec.get("method") or ("rodas5p" if spec["field"] in STIFF else "tsit5"),
            saveat=None if final else times,
            rtol=spec["rtol"],
            atol=spec["atol"],
            batch_ndims=0 if spec["batch"] is None else 1,
            step_control="joint" if spec["joint"] else "per_sample",
        ).y
        return y[None] if final else y

    return states


def _ensemble(spec, arrays):
    """The same from a problem for one trajectory; its chunks are a Python loop, so no other is."""
    (p,), times = arrays["p"], arrays["times"]
    problem = nde.ODEProblem(_field(spec), arrays["y0"][0], (0.0, spec["t1"]), [p[0]])
    options = {"rtol": spec["rtol"], "atol": spec["atol"], "seed": 0}
    if spec["num_saves"] is not None:
        options["saveat"] = times
    if spec["devices"] > 1:
        devices = [f"CPU:{number}" for number in range(spec["devices"])]
        options["strategy"] = tf.distribute.MirroredStrategy(devices)
    # What is the same for all trajectories is shared by them.
    rates = None if np.ptp(p, axis=0).max() == 0.0 else tf.constant(p)
    starts = None if np.ptp(arrays["y0"], axis=0).max() == 0.0 else tf.constant(arrays["y0"])

    def vary(problem, i, seed):
        changes = {} if rates is None else {"p": [tf.gather(rates, i)]}
        return problem.remake(**changes, **({} if starts is None else {"y0": tf.gather(starts, i)}))

    def call():
        return nde.solve_ensemble(problem, len(p), "tsit5", vary=vary, **options).y

    return Program(call=call, values=lambda y: y.numpy()[None] if y.ndim == 2 else y.numpy())


def _loss(states, target, batch):
    return lambda y0, p: tf.reduce_sum((states(y0, p) - target) ** 2) / batch


def _gradient(loss):
    def gradient(y0, p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            value = loss(y0, p)
        return tape.gradient(value, p)

    return gradient


def _total(spec, result):
    """The sum of what is compared: of chaos behind it, two equal calls say different things."""
    compared = spec["compared"] if spec["task"] == "solve" else None
    return tf.add_n([tf.reduce_sum(leaf[:compared]) for leaf in tf.nest.flatten(result)])


def _evaluation(spec, task, y0, p):
    """Solves and gradients: a call is compiled alone, the loop feeds each result to the next."""
    task_jit = tf.function(task, jit_compile=True)

    @tf.function(jit_compile=True)
    def loop(y0, p, count):
        def turn(k, y0, total):
            result = _total(spec, task(y0, p))
            return k + 1, y0 + 1e-20 * result, total + result

        start = (0, y0, tf.zeros((), y0.dtype))
        return tf.while_loop(lambda k, *_: k < count, turn, start)[2]

    def values(result):
        if spec["task"] == "gradient":
            return np.concatenate([leaf.numpy().ravel() for leaf in result])
        return result.numpy()

    count = tf.constant(spec["loop"])
    return Program(
        call=lambda: task_jit(y0, p),
        values=values,
        loop=lambda: float(loop(y0, p, count)),
        check_loop=lambda result, total: agree(_total(spec, result), total, spec["loop"]),
    )


def _adam(k, p, first, second, slopes, learning_rate):
    """Kingma and Ba (2015), algorithm 1, with its default constants; k counts from 1."""
    k = tf.cast(k, p[0].dtype)
    first = [0.9 * m + 0.1 * g for m, g in zip(first, slopes, strict=True)]
    second = [0.999 * v + 0.001 * g * g for v, g in zip(second, slopes, strict=True)]
    scale = learning_rate * tf.sqrt(1 - 0.999**k) / (1 - 0.9**k)
    moved = [
        leaf - scale * m / (tf.sqrt(v) + 1e-8 * tf.sqrt(1 - 0.999**k))
        for leaf, m, v in zip(p, first, second, strict=True)
    ]
    return moved, first, second


def _training(spec, loss, y0, p):
    zeros = [tf.zeros_like(leaf) for leaf in p]

    def step(y0, k, p, first, second):
        with tf.GradientTape() as tape:
            tape.watch(p)
            value = loss(y0, p)
        slopes = tape.gradient(value, p)
        return *_adam(k, p, first, second, slopes, spec["learning_rate"]), value

    step_jit = tf.function(step, jit_compile=True)

    @tf.function(jit_compile=True)
    def loop(y0, p, first, second, count):
        def turn(k, p, first, second, _):
            return k + 1, *step(y0, k, p, first, second)

        start = (1, p, first, second, tf.zeros((), y0.dtype))
        return tf.while_loop(lambda k, *_: k <= count, turn, start)[4]

    def values(result):
        """The gradient, from the first moment after one step: m = (1 - 0.9) g."""
        return np.concatenate([leaf.numpy().ravel() for leaf in result[1]]) / (1 - 0.9)

    one, count = tf.constant(1), tf.constant(spec["loop"])
    return Program(
        call=lambda: step_jit(y0, one, p, zeros, zeros),
        values=values,
        loop=lambda: float(loop(y0, p, zeros, zeros, count)),
        check_loop=lambda result, last: decreased(float(result[3]), last),
    )


if __name__ == "__main__":
    serve(build, ("tensorflow", "keras", "numpy"), {"keras_neuralde": nde.__version__})
