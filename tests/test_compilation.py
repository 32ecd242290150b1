"""How often XLA compiles: once for a program, never for a value."""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
    import numpy as np, tensorflow as tf, keras
    import keras_neuralde as nde

    kernel = tf.Variable(np.ones((2, 2)))
    times = tf.Variable([0.5, 1.0], dtype=tf.float64)

    def field(t, y, p):
        # Slices: their gradients carry shapes, which XLA must not mistake for values.
        x, z = y[:, :1], y[:, 1:]
        return tf.concat([-p * z * tf.exp(0.1 * x), x], 1) @ kernel

    @tf.function(jit_compile=True)
    def step(y0, p, rtol):
        with tf.GradientTape() as tape:
            tape.watch(p)
            problem = nde.ODEProblem(field, y0, (0.0, 1.0), p)
            sol = nde.solve(
                problem, "SOLVER", saveat=times.value(), rtol=rtol, batch_ndims=1
            )
            loss = tf.reduce_sum(sol.y)
        return loss, tape.gradient(loss, [p, kernel])

    for k in range(4):
        y0 = tf.ones((3, 2), tf.float64) * (1 + k)
        step(y0, tf.constant(1.0 + k, tf.float64), tf.constant(10.0 ** (-3 - k), tf.float64))
        kernel.assign_sub(0.01 * np.ones((2, 2)))
        times.assign([0.5 + 0.01 * k, 1.0])
"""


@pytest.mark.parametrize("solver", ["tsit5", "rosenbrock23", "trbdf2"])
def test_a_training_step_compiles_once(tmp_path, solver):
    flags = {"XLA_FLAGS": f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"}
    environment = {**os.environ, **flags}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT).replace("SOLVER", solver)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[1],
    )
    assert run.returncode == 0, run.stderr[-2000:]
    modules = [path.name for path in tmp_path.glob("*step*before_optimizations.txt")]
    assert len(modules) == 1, modules
