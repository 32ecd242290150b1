"""Measures what should not grow, or grow in proportion: memory, work per state, steps, compiling.

The results go to `benchmarks/results/scaling.json`, from which the page of benchmarks has its
table.

Run from the checkout root:

    python -m benchmarks.scaling
    python -m benchmarks.scaling --smoke
"""

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.adjoints import program_memory
from benchmarks.run import machine

RESULTS = pathlib.Path(__file__).parent / "results" / "scaling.json"


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS, help="the JSON file")
    parser.add_argument("--only", nargs="*", choices=MEASURES, help="these; the others stay")
    options = parser.parse_args()
    if options.one:
        name, *numbers = options.one
        print(json.dumps(MEASURES[name](*map(int, numbers))))
        return
    record = {"date": datetime.date.today().isoformat(), "machine": machine()}
    wanted = options.only or list(MEASURES)
    if options.only and options.output.exists():
        # The date and the machine are those of the last measurement.
        record = json.loads(options.output.read_text()) | record
    for name, cases in cases_of(options.smoke).items():
        if name not in wanted:
            continue
        record[name] = [
            dict(zip(_ARGUMENTS[name], case, strict=True)) | _run(name, case) for case in cases
        ]
        print(name, *record[name], sep="\n  ", flush=True)
    if not options.smoke or options.output != RESULTS:
        options.output.write_text(json.dumps(record, indent=1) + "\n")


_ARGUMENTS = {
    "memory": ("steps", "checkpoints"),
    "krylov": ("states",),
    "steps": ("batch",),
    "compile": ("max_steps",),
}


def cases_of(smoke):
    """What is measured, by name: the arguments of each case."""
    if smoke:
        return {
            "memory": [(100, 4)], "krylov": [(32,)], "steps": [(1,), (4,)], "compile": [(256,)]
        }  # fmt: skip
    return {
        "memory": [(n, c) for c in (16, 64, 256) for n in (1_000, 10_000, 100_000)],
        "krylov": [(1000,), (2000,), (4000,), (8000,), (16_000,)],
        "steps": [(1,), (32,), (1024,)],
        "compile": [(100_000,), (256,)],
    }


def _run(name, case):
    """One case in a process of its own, and the memory of its largest compiled program."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--one", name, *map(str, case)]
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_pass_re=^$"
        environment = os.environ | ({"XLA_FLAGS": dump} if name == "memory" else {})
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, text=True, env=environment
        )
        found = json.loads(done.stdout.splitlines()[-1])
        if name == "memory":
            found["megabytes"] = program_memory(folder)
    return found


def _memory(steps, checkpoints):
    """A gradient through equal steps of RK4 with 64 trajectories of a network of width 16."""
    import numpy as np
    import tensorflow as tf

    import keras_neuralde as nde

    rng = np.random.default_rng(0)
    y0 = tf.constant(rng.normal(size=(64, 16)), tf.float32)

    @tf.function(jit_compile=True)
    def gradient(p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            problem = nde.ODEProblem(lambda t, y, p: tf.tanh(y @ p) - y, y0, (0.0, 10.0), p)
            y = nde.solve(
                problem, "rk4", controller="constant", dt0=10.0 / steps, batch_ndims=1,
                checkpoints=checkpoints,
            ).y  # fmt: skip
            loss = tf.reduce_sum(y**2)
        return tape.gradient(loss, p)

    p = tf.constant(rng.normal(size=(16, 16)) / 4, tf.float32)
    gradient.get_concrete_function(tf.TensorSpec(p.shape, p.dtype))
    gradient(p).numpy()
    began = time.perf_counter()
    gradient(p).numpy()
    return {"seconds": time.perf_counter() - began}


def _krylov(states):
    """A reaction and diffusion on a line by Newton-Krylov, a fixed number of steps."""
    import numpy as np
    import tensorflow as tf

    import keras_neuralde as nde

    x = np.linspace(0.0, 1.0, states)
    y0 = tf.constant(np.exp(-100 * (x - 0.5) ** 2))
    solver = nde.solvers.get("trbdf2").__class__("trbdf2", linear_solver="krylov")

    def field(t, y, p):
        spread = tf.roll(y, 1, 0) - 2 * y + tf.roll(y, -1, 0)
        return p * states**2 * spread + y * (1 - y)

    @tf.function(jit_compile=True)
    def solve(p):
        # The same stiffness, seen from the steps, for every number of states.
        problem = nde.ODEProblem(field, y0, (0.0, 1.0), p)
        sol = nde.solve(problem, solver, rtol=1e-4, atol=1e-6)
        return sol.y, sol.stats.num_accepted + sol.stats.num_rejected, sol.status

    p = tf.constant(1e3 / states**2, tf.float64)
    _, steps, status = solve(p)
    if int(status):
        raise RuntimeError(nde.Status(int(status)).message)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        solve(p)[0].numpy()
        times.append(time.perf_counter() - began)
    return {"seconds": sorted(times)[2], "steps": int(steps)}


def _steps(batch):
    """Steps of each Van der Pol oscillator, μ = 25, in a batch with others of many phases."""
    import numpy as np
    import tensorflow as tf

    import keras_neuralde as nde

    def field(t, y, p):
        x, v = tf.unstack(y, axis=-1)
        return tf.stack([v, p * (1 - x * x) * v - x], -1)

    rng = np.random.default_rng(0)
    y0 = np.concatenate([[[2.0, 0.0]], rng.uniform(-2, 2, (1023, 2))])[:batch]
    problem = nde.ODEProblem(field, y0, (0.0, 100.0), tf.constant(25.0, tf.float64))
    counts = []
    for step_control in ("per_sample", "joint"):
        sol = nde.solve(
            problem, "tsit5", rtol=1e-6, atol=1e-6, batch_ndims=1, step_control=step_control
        )
        counts.append(int(sol.stats.num_steps[0]))
    return {"per_sample": counts[0], "joint": counts[1]}


def _compile(max_steps):
    """Tracing and compiling the gradient of the spiral; traces when values change."""
    import numpy as np
    import tensorflow as tf

    import keras_neuralde as nde

    rng = np.random.default_rng(0)
    p = [
        tf.constant(rng.normal(size=shape) / 5, tf.float32)
        for shape in ((2, 50), (50,), (50, 2), (2,))
    ]
    traces = 0

    def field(t, y, p):
        nonlocal traces
        traces += 1
        return tf.tanh(y**3 @ p[0] + p[1]) @ p[2] + p[3]

    @tf.function(jit_compile=True)
    def gradient(y0, p, t1, rtol):
        with tf.GradientTape() as tape:
            tape.watch(p)
            problem = nde.ODEProblem(field, y0, (0.0, t1), p)
            times = tf.linspace(0.0, 1.5, 30)
            options = {"rtol": rtol, "batch_ndims": 1, "max_steps": max_steps}
            y = nde.solve(problem, "tsit5", saveat=times, **options).y
            loss = tf.reduce_sum(y**2)
        return tape.gradient(loss, p)

    y0 = tf.constant([[2.0, 0.0]])
    began = time.perf_counter()
    gradient(y0, p, tf.constant(1.5), tf.constant(1e-3))
    first = time.perf_counter() - began
    once = traces
    for rtol in (1e-4, 1e-2):
        gradient(1.1 * y0, [0.9 * leaf for leaf in p], tf.constant(1.6), tf.constant(rtol))
    return {"seconds": first, "traces_after_new_values": traces - once}


MEASURES = {"memory": _memory, "krylov": _krylov, "steps": _steps, "compile": _compile}


if __name__ == "__main__":
    main()
