"""What the parts of a stochastic solve cost on one core: the neural SDE 2-50-2.

Each part is a compiled loop of its own over as many steps. Times are processor time, so that other
programs on the machine hardly matter; keep the process to one core:

    taskset -c 1 python -m benchmarks.noise_floor
    python -m benchmarks.noise_floor --smoke
"""

import argparse
import json
import time

import numpy as np
import tensorflow as tf

from benchmarks.workers import stochastic
from keras_neuralde.brownian import BrownianPath


def parts(case):
    """The parts by name: `(function, arguments)`, each function to be compiled."""
    rows, steps = case["batch"], case["steps"]
    h = 1.0 / steps
    y0, *networks = stochastic.inputs(case)
    y0, (drift, diffusion) = tf.constant(y0), [[tf.constant(w) for w in one] for one in networks]
    increments = tf.random.stateless_normal((steps, rows, 2), (1, 0)) * h**0.5

    def network(y, w):
        return tf.tanh(y @ w[0] + w[1]) @ w[2] + w[3]

    def loop(body, start):
        return tf.while_loop(lambda k, _: k < steps, lambda k, a: (k + 1, body(k, a)), (0, start))[
            1
        ]

    def hyperbolic(x):
        return loop(lambda k, x: tf.tanh(x + 0.1), x)

    def networks_alone(y, f, g):
        return loop(lambda k, y: y + h * network(y, f) + 0.1 * network(y, g), y)

    def plain(y, f, g, dw):
        return loop(lambda k, y: y + h * network(y, f) + network(y, g) * tf.gather(dw, k), y)

    def noise(start):
        ends = tf.zeros(rows) + start, tf.ones(rows)
        path = BrownianPath(
            tf.constant([1, 0]), tf.range(rows), 2, *ends, tf.constant(h), split=False
        )

        def body(k, w):
            t = tf.fill([rows], tf.cast(k, tf.float32) * h)
            return w + path(t, t + h).w

        return loop(body, tf.zeros((rows, 2)))

    return {
        "tanh": (hyperbolic, [tf.random.stateless_normal((rows, 100), (2, 0))]),
        "both networks": (networks_alone, [y0, drift, diffusion]),
        "plain loop, noise drawn before": (plain, [y0, drift, diffusion, increments]),
        "noise": (noise, [tf.constant(0.0)]),
    }


def processor_time(call, repeats):
    """The least of five means, in seconds."""
    call()
    found = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(repeats):
            call()
        found.append((time.process_time() - began) / repeats)
    return min(found)


def main(arguments=None):
    """The command line: prints and returns milliseconds of processor time by part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything run?")
    smoke = parser.parse_args(arguments).smoke
    case = {"field": "neural", "batch": 4 if smoke else 1024, "steps": 2 if smoke else 100}
    repeats, found = 1 if smoke else 20, {}
    for name, (function, given) in parts(case).items():
        run = tf.function(function, jit_compile=True, autograph=False)
        found[name] = processor_time(lambda run=run, given=given: np.asarray(run(*given)), repeats)
    for name, gradient in (("solve", False), ("gradient", True)):
        found[name] = processor_time(stochastic.ours(case | {"gradient": gradient}), repeats)
    found = {name: round(1e3 * seconds, 3) for name, seconds in found.items()}
    print(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main()
