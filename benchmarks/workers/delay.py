"""One tool on one delay case: `python -m benchmarks.workers.delay TOOL CASE`.

Answers with one JSON line when the first call is done, and with the seconds of a call for every
line that arrives on standard input.
"""

import functools
import json
import os
import sys
import time

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

LAG, RTOL, ATOL = 14.0, 1e-6, 1e-8


def pasts(case):
    """The constant pasts of the trajectories."""
    return np.linspace(0.4, 0.9, case["batch"]) if case["batch"] > 1 else np.array([0.5])


def ours(case, tighter=1.0):
    """keras_neuralde: `tsit5` in the method of steps, steps of each trajectory's own."""
    import tensorflow as tf

    import keras_neuralde as nde

    def field(t, y, h, p):
        late = h(t - LAG)
        return 0.2 * late / (1.0 + late**10) - 0.1 * y

    @tf.function(jit_compile=True)
    def run(y0):
        problem = nde.DDEProblem(field, y0, lambda t, p: p, (0.0, case["end"]), y0, lags=[LAG])
        return nde.solve(
            problem,
            "tsit5",
            rtol=RTOL / tighter,
            atol=ATOL / tighter,
            batch_ndims=1,
            max_record=1024,
            throw=False,
        ).y

    y0 = tf.constant(pasts(case))
    return lambda: run(y0).numpy()


def jitcdde(case):
    """JiTCDDE: its own adaptive method of order 3(2), compiled as C, one trajectory at a time."""
    import jitcdde as package

    y, t = package.y, package.t
    late = y(0, t - LAG)
    system = package.jitcdde([0.2 * late / (1 + late**10) - 0.1 * y(0)], verbose=False)
    starts = pasts(case)
    system.compile_C(verbose=False)
    system.set_integration_parameters(rtol=RTOL, atol=ATOL)

    def call():
        ends = []
        for start in starts:
            system.purge_past()
            system.constant_past([start])
            system.step_on_discontinuities()
            ends.append(system.integrate(case["end"])[0])
        return np.array(ends)

    return call


TOOLS = {
    "keras_neuralde": ours,
    "keras_neuralde_tighter": functools.partial(ours, tighter=10.0),
    "jitcdde": jitcdde,
}


def main():
    """Builds, warms up, then answers with times."""
    name, case = sys.argv[1], json.loads(sys.argv[2])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    start = time.perf_counter()
    call = TOOLS[name](case)
    values = call()
    first = time.perf_counter() - start
    print(json.dumps({"first": first, "values": values.tolist()}), file=out, flush=True)
    for _ in sys.stdin:
        samples, end = [], time.perf_counter() + case["seconds"]
        while not samples or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            samples.append(time.perf_counter() - start)
        print(json.dumps(float(np.median(samples))), file=out, flush=True)


if __name__ == "__main__":
    main()
