"""What is measured: one table of workloads, and the arrays that every tool starts from."""

import dataclasses

import numpy as np

FORWARD = ("keras_neuralde", "diffrax", "torchdiffeq", "scipy")
WITH_GRADIENT = ("keras_neuralde", "diffrax", "torchdiffeq")
WITH_JOINT = (
    "keras_neuralde",
    "keras_neuralde_joint",
    "diffrax",
    "diffrax_joint",
    "torchdiffeq",
)
GPU = ("keras_neuralde_gpu",)
CLASSIC = ("keras_neuralde", "diffrax", "torchdiffeq", "scipy", "scipy_numba", "c")
ENSEMBLES = ("keras_neuralde", "keras_neuralde_ensemble", "keras_neuralde_two")
LARGE = (*ENSEMBLES, "diffrax")
STIFF = ("robertson", "brusselator")
LEARNING_RATE = 0.05


@dataclasses.dataclass(frozen=True)
class Workload:
    """One program that every tool runs.

    Every loss is the sum of (y - target)² over all values, divided by the number of trajectories.

    Args:
        name: the name of the results file.
        title: the heading in the table.
        text: what exactly is computed, for the table.
        field: `"lotka_volterra"` with p of shape (4,) or (batch, 4); `"lorenz"` with p of shape
            (3,) or (batch, 3); `"robertson"`, stiff, with p
            of shape (3,) or (batch, 3); `"brusselator"`, stiff, with p of shape (3,); or `"mlp"`.
        task: `"solve"`; `"gradient"` of the loss with respect to p; `"train"`, a gradient and an
            Adam update.
        t1: the final time; every workload starts at 0.
        num_saves: how many equally spaced times are kept, start and end included; `None` keeps
            the final state only.
        batch: the number of trajectories; `None` for one trajectory without a batch axis.
        dtype: of states, parameters and times.
        rtol: relative tolerance.
        atol: absolute tolerance.
        loop: how many calls the compiled loop makes.
        tools: who takes part.
        widths: layer sizes of an `"mlp"`, its input and output included.
        compared: how many of the first save points are compared with the reference; `None` for
            all. Chaos carries every tool away from every other in the end.
        power: an `"mlp"` sees the state to this power.
        cores: how many cores a tool may use; `None` for all. Small programs get one: a second
            core only adds hand-overs between threads, up to twice the time in XLA's loops.
    """

    name: str
    title: str
    text: str
    field: str
    task: str
    t1: float
    num_saves: int | None
    batch: int | None
    dtype: str
    rtol: float
    atol: float
    loop: int
    tools: tuple = FORWARD
    widths: tuple = ()
    compared: int | None = None
    power: int = 1
    cores: int | None = None

    def spec(self):
        """The settings that a worker needs, as JSON types."""
        kept = dataclasses.asdict(self)
        for name in ("title", "text", "tools"):
            del kept[name]
        return kept | {"widths": list(self.widths), "learning_rate": LEARNING_RATE}


_LOTKA_VOLTERRA = {
    "field": "lotka_volterra", "t1": 10.0, "num_saves": 101, "batch": None, "dtype": "float64",
    "rtol": 1e-6, "atol": 1e-6, "loop": 200, "cores": 1,
}  # fmt: skip
_ENSEMBLE = _LOTKA_VOLTERRA | {"task": "solve", "batch": 10_000, "loop": 2, "cores": None}
_SPIRAL = {
    "field": "mlp", "task": "train", "t1": 1.5, "num_saves": 30, "dtype": "float32",
    "rtol": 1e-3, "atol": 1e-6, "loop": 100, "widths": (2, 50, 2), "power": 3, "cores": 1,
}  # fmt: skip

_LORENZ = {
    "field": "lorenz", "task": "solve", "t1": 100.0, "num_saves": 12, "batch": None,
    "dtype": "float64", "rtol": 1e-8, "atol": 1e-8, "loop": 5, "cores": 1, "compared": 11,
}  # fmt: skip

_ROBERTSON = {
    "field": "robertson", "t1": 1e5, "num_saves": None, "batch": None, "dtype": "float64",
    "rtol": 1e-6, "atol": 1e-10, "loop": 20, "cores": 1,
}  # fmt: skip
_BRUSSELATOR = _ROBERTSON | {
    "field": "brusselator", "t1": 10.0, "rtol": 1e-5, "atol": 1e-5, "loop": 2
}  # fmt: skip
_STIFF_PEERS = ("keras_neuralde", "diffrax")

WORKLOADS = (
    Workload(
        "lotka_volterra_solve",
        "One Lotka-Volterra trajectory",
        "t from 0 to 10, y0 = (1, 1), p = (1.5, 1, 3, 1), 101 save points.",
        task="solve",
        **_LOTKA_VOLTERRA | {"tools": CLASSIC},
    ),
    Workload(
        "lotka_volterra_gradient",
        "Gradient of one Lotka-Volterra trajectory",
        "The same solve, and the gradient of Σ(y − 1)² with respect to the 4 parameters.",
        task="gradient",
        **_LOTKA_VOLTERRA | {"tools": WITH_GRADIENT},
    ),
    Workload(
        "spiral_train_1",
        "Training step of the spiral, one trajectory",
        "y' = Dense(50 → 2)(tanh(Dense(2 → 50)(y³))), 30 save points on (0, 1.5), y0 = (2, 0); "
        "loss, gradient with respect to the 252 weights, Adam update.",
        batch=1,
        tools=WITH_GRADIENT,
        **_SPIRAL,
    ),
    Workload(
        "spiral_train_64",
        "Training step of the spiral, 64 trajectories",
        "The same with 64 initial values around (2, 0).",
        batch=64,
        tools=WITH_JOINT,
        **_SPIRAL,
    ),
    Workload(
        "ensemble_final",
        "10,000 Lotka-Volterra trajectories, final state",
        "Each trajectory with its own parameters, within 10% of (1.5, 1, 3, 1); forward only.",
        **_ENSEMBLE | {"num_saves": None, "tools": (*FORWARD, *GPU, "c")},
    ),
    Workload(
        "ensemble_101",
        "10,000 Lotka-Volterra trajectories, 101 save points",
        "The same, keeping 101 states of each.",
        **_ENSEMBLE | {"tools": (*FORWARD, *GPU, "c")},
    ),
    Workload(
        "ensemble_100k",
        "100,000 Lotka-Volterra trajectories, final state",
        "The same as 10,000, ten times as many, in one call.",
        **_ENSEMBLE | {"num_saves": None, "batch": 100_000, "loop": 1, "tools": (*LARGE, *GPU)},
    ),
    Workload(
        "mlp_gradient",
        "Gradient of an MLP field 64-256-256-64, batch 256",
        "tanh between the layers, t from 0 to 1, final state; the gradient of Σy(1)² / 256 with "
        "respect to the 98,880 weights.",
        field="mlp", task="gradient", t1=1.0, num_saves=None, batch=256, dtype="float32",
        rtol=1e-3, atol=1e-6, loop=5, tools=(*WITH_JOINT, *GPU), widths=(64, 256, 256, 64),
    ),
    Workload(
        "lorenz_solve",
        "Lorenz's equations, one trajectory",
        "σ, ρ, β = 10, 28, 8/3, y0 = (1, 0, 0), t from 0 to 100; the state is kept at 0, 1, …, 10 "
        "and 100, and compared up to 10: later the solution is chaos.",
        **_LORENZ | {"tools": CLASSIC},
    ),
    Workload(
        "lorenz_ensemble",
        "Lorenz's equations, 10,000 trajectories",
        "The same, from initial values within 0.1 of (1, 0, 0). Compare its time for each "
        "trajectory with that of one trajectory above.",
        **_LORENZ | {"batch": 10_000, "loop": 1, "cores": None, "tools": (*ENSEMBLES, "c")},
    ),
    Workload(
        "robertson_solve",
        "Robertson's equations",
        "Three stiff reactions, t from 0 to 1e5, final state.",
        task="solve",
        **_ROBERTSON | {"tools": (*_STIFF_PEERS, "scipy")},
    ),
    Workload(
        "robertson_gradient",
        "Gradient of Robertson's equations",
        "The same solve, and the gradient of Σy(1e5)² with respect to the 3 rates.",
        task="gradient",
        **_ROBERTSON | {"tools": _STIFF_PEERS},
    ),
    Workload(
        "robertson_ensemble",
        "1,000 Robertson systems",
        "Each with its own rates, within 10% of (0.04, 3e7, 1e4); forward only.",
        task="solve",
        **_ROBERTSON | {"batch": 1000, "loop": 2, "cores": None, "tools": _STIFF_PEERS},
    ),
    Workload(
        "brusselator_solve",
        "Brusselator on a line, 128 states",
        "64 points, A = 1, B = 3, α = 1/50, t from 0 to 10, final state.",
        task="solve",
        **_BRUSSELATOR | {"tools": (*_STIFF_PEERS, "scipy")},
    ),
    Workload(
        "brusselator_gradient",
        "Gradient of the Brusselator",
        "The same solve, and the gradient of Σy(10)² with respect to A, B and α.",
        task="gradient",
        **_BRUSSELATOR | {"tools": _STIFF_PEERS},
    ),
)  # fmt: skip


def smoke(workload):
    """The same workload at a size that only shows that it works."""
    small = {"loop": 2, "t1": min(workload.t1, 2.0)}
    if workload.num_saves is not None:
        small |= {"num_saves": 5, "compared": workload.compared and 4}
    if workload.batch is not None and workload.batch > 1:
        small |= {"batch": 3}
    if len(workload.widths) > 3:
        small |= {"widths": (4, 8, 8, 4)}
    return dataclasses.replace(workload, **small)


def inputs(workload):
    """The arrays a workload starts from, all of its dtype.

    Args:
        workload: a `Workload`.

    Returns:
        A dict: `y0` of shape (state,) or (batch, state); `times` (num_saves,), or (1,) when only
        the final state is kept; `p`, a list of arrays.
    """
    random = np.random.default_rng(0)
    make = {
        "lotka_volterra": _lotka_volterra_inputs,
        "lorenz": _lorenz_inputs,
        "robertson": _robertson_inputs,
        "brusselator": _brusselator_inputs,
        "mlp": _mlp_inputs,
    }
    y0, p = make[workload.field](workload, random)
    times = np.linspace(0.0, workload.t1, workload.num_saves or 2)
    if workload.compared:
        early = np.linspace(0.0, min(10.0, 0.5 * workload.t1), workload.compared)
        times = np.append(early, workload.t1)
    times = times[-1:] if workload.num_saves is None else times
    given = {"y0": y0, "times": times}
    cast = {name: np.asarray(array, workload.dtype) for name, array in given.items()}
    return cast | {"p": [np.asarray(leaf, workload.dtype) for leaf in p]}


def _lotka_volterra_inputs(workload, random):
    p = np.array([1.5, 1.0, 3.0, 1.0])
    if workload.batch is None:
        return np.ones(2), [p]
    spread = random.uniform(0.9, 1.1, (workload.batch, 4))
    return np.ones((workload.batch, 2)), [p * spread]


def _lorenz_inputs(workload, random):
    y0, p = np.array([1.0, 0.0, 0.0]), np.array([10.0, 28.0, 8.0 / 3.0])
    if workload.batch is None:
        return y0, [p]
    spread = random.uniform(-0.1, 0.1, (workload.batch, 3))
    return y0 + spread, [np.tile(p, (workload.batch, 1))]


def _robertson_inputs(workload, random):
    y0, p = np.array([1.0, 0.0, 0.0]), np.array([0.04, 3e7, 1e4])
    if workload.batch is None:
        return y0, [p]
    return np.tile(y0, (workload.batch, 1)), [p * random.uniform(0.9, 1.1, (workload.batch, 3))]


def _brusselator_inputs(workload, random):
    x = np.arange(1, 65) / 65
    return np.concatenate([1 + np.sin(2 * np.pi * x), np.full(64, 3.0)]), [np.array([1, 3, 0.02])]


def _mlp_inputs(workload, random):
    weights = []
    for n_in, n_out in zip(workload.widths[:-1], workload.widths[1:], strict=True):
        limit = np.sqrt(6.0 / (n_in + n_out))
        weights += [random.uniform(-limit, limit, (n_in, n_out)), np.zeros(n_out)]
    if workload.widths[0] == 2:
        y0 = np.array([2.0, 0.0]) + 0.1 * random.standard_normal((workload.batch, 2))
        y0[0] = (2.0, 0.0)
    else:
        y0 = random.standard_normal((workload.batch, workload.widths[0]))
    return y0, weights
