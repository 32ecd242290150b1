"""What an exported neural ODE costs a server without Python: plain, and compiled by XLA.

    python -m benchmarks.serving [--repeats 200]

The model is a network 2-50-2 in `NeuralODE` with 30 save times and the tolerances 1e-5 and 1e-6.
The program of `tests/serving` loads it through TensorFlow's C API, with XLA off for the plain
signature.
"""

import argparse
import json
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

RESULTS = pathlib.Path(__file__).parent / "results"
BATCHES = (1, 32, 256)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args()
    record = measure(options.repeats, options.rounds)
    for row in record["rows"]:
        print(f"batch {row['batch']:4d}: plain {row['plain']:9.0f} µs, XLA {row['xla']:9.0f} µs")
    options.output.mkdir(exist_ok=True)
    (options.output / "serving.json").write_text(json.dumps(record, indent=1) + "\n")


def measure(repeats, rounds):
    """Microseconds of a request: the least of the medians of all rounds."""
    import keras
    import numpy as np

    import keras_neuralde as nde
    from tests.serving import server

    keras.utils.set_random_seed(0)
    field = keras.Sequential([keras.layers.Dense(50, "tanh"), keras.layers.Dense(2)])
    layer = nde.NeuralODE(
        field, (0.0, 1.5), saveat=np.linspace(0.05, 1.5, 30), rtol=1e-5, atol=1e-6
    )
    y0 = keras.Input((2,), name="y0")
    model = keras.Model(y0, layer(y0))
    start = np.random.default_rng(0).normal(size=(max(BATCHES), 2)).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "1")
        nde.export_saved_model(model, path, signatures="serving_default", xla=True)
        best = {}
        for _ in range(rounds):
            for name, xla in (("serving_default", False), ("serving_default_xla", True)):
                requests = [(name, {"y0": start[:rows]}) for rows in BATCHES]
                answers = server.serve(path, requests, xla, repeats)
                for rows, (_, duration) in zip(BATCHES, answers, strict=True):
                    key = rows, "xla" if xla else "plain"
                    best[key] = min(duration, best.get(key, float("inf")))
    rows = [
        {"batch": rows, "plain": best[rows, "plain"], "xla": best[rows, "xla"]} for rows in BATCHES
    ]
    return {"rows": rows, "cores": os.cpu_count()}


if __name__ == "__main__":
    main()
