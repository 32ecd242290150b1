"""Who takes part: one table of tools, their environments, and the line to their workers."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent
TIMEOUT = 1200


class Failed(RuntimeError):
    """A worker or an environment did not do what was asked; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class Tool:
    """One column of a comparison.

    Args:
        peer: the name on the command line; several tools may share one.
        worker: the module that runs it.
        requirements: what pip installs into an environment of its own, made when it is first
            needed; empty for tools that run in the environment of the harness.
        joint: one step size for the whole batch instead of one per trajectory, in tools that
            know both.
        numba: the field compiled by Numba.
        gpu: on a GPU; skipped with a sentence where the tool sees none.
        chunked: through the tool's own function for ensembles, from a problem for one trajectory.
        devices: how many logical devices of the CPU share the work.
        text: what the table says about it.
    """

    peer: str
    worker: str
    requirements: tuple = ()
    joint: bool = False
    chunked: bool = False
    numba: bool = False
    gpu: bool = False
    devices: int = 1
    text: str = ""


_DIFFRAX = ("jax", "jaxlib", "diffrax", "equinox", "optax", "numpy")
_TORCH = ("torch==2.13.0", "torchdiffeq", "torchsde", "numpy")
_JOINT = "one step size for the whole batch"

TOOLS = {
    "keras_neuralde": Tool(
        "keras_neuralde", "ours", text="`tsit5` (stiff: `rodas5p`), steps per trajectory"
    ),
    "keras_neuralde_joint": Tool("keras_neuralde", "ours", joint=True, text=f"`tsit5`, {_JOINT}"),
    "keras_neuralde_ensemble": Tool(
        "keras_neuralde", "ours", chunked=True,
        text="`solve_ensemble` of a problem for one trajectory, in chunks of 16,384",
    ),
    "keras_neuralde_two": Tool(
        "keras_neuralde", "ours", chunked=True, devices=2,
        text="the same with a `strategy` over two logical devices, one for each core",
    ),
    "keras_neuralde_gpu": Tool(
        "keras_neuralde", "ours", gpu=True, text="the same on a GPU, where TensorFlow sees one"
    ),
    "diffrax": Tool(
        "diffrax", "diffrax_worker", _DIFFRAX,
        text="`Tsit5` (stiff: `Kvaerno5`), `PIDController`, `RecursiveCheckpointAdjoint`, `vmap` "
        "over a batch",
    ),
    "diffrax_joint": Tool(
        "diffrax", "diffrax_worker", _DIFFRAX, True, text=f"the same without `vmap`: {_JOINT}"
    ),
    "torchdiffeq": Tool(
        "torchdiffeq", "torch_worker", _TORCH, True,
        text=f"`dopri5`, backpropagation through the solver; {_JOINT}; eager",
    ),
    "scipy": Tool(
        "scipy", "scipy_worker", joint=True,
        text=f"`solve_ivp` with `RK45` (stiff: `LSODA`); {_JOINT}; no gradient",
    ),
    "scipy_numba": Tool(
        "scipy_numba", "scipy_worker", ("scipy", "numba", "numpy"), numba=True,
        text="the same with a field compiled by Numba",
    ),
    "c": Tool(
        "c", "c_worker",
        text="the same method and step-size rule written in C for this one equation, `-O3`, one "
        "core: what a machine can do without vectors",
    ),
}  # fmt: skip


def python_of(tool):
    """The interpreter of a tool, in an environment that is made if it is missing.

    Args:
        tool: a `Tool`.

    Returns:
        The path of a Python interpreter.

    Raises:
        Failed: if pip cannot install the requirements.
    """
    if not tool.requirements:
        return sys.executable
    place = ROOT / f".venv-{tool.worker.removesuffix('_worker')}"
    python, ready = place / "bin" / "python", place / "benchmark-requirements.txt"
    wanted = "\n".join(tool.requirements)
    if ready.exists() and ready.read_text() == wanted:
        return str(python)
    print(f"making {place.name} with {' '.join(tool.requirements)}", flush=True)
    _must([sys.executable, "-m", "venv", str(place)])
    (place / ".gitignore").write_text("*\n")
    _must([str(python), "-m", "pip", "install", "--quiet", *tool.requirements])
    ready.write_text(wanted)
    return str(python)


def _must(command):
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")


def _keep_to(cores):
    """Keeps this process to its last cores, where the system knows how (Linux)."""
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])


class Worker:
    """A tool's process, kept alive while its times are taken in turn with the others'.

    Args:
        name: a key of `TOOLS`.
        cores: how many cores it may use; `None` for all.
    """

    def __init__(self, name, cores=None):
        self.name = name
        tool = TOOLS[name]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed in close()
        self._process = subprocess.Popen(
            [python_of(tool), "-m", f"benchmarks.workers.{tool.worker}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            preexec_fn=functools.partial(_keep_to, cores),
        )

    def ask(self, question):
        """Sends one JSON object and returns the answer.

        Args:
            question: a dict.

        Returns:
            A dict.

        Raises:
            Failed: if the process ends, or takes longer than `TIMEOUT` seconds.
        """
        timer = threading.Timer(TIMEOUT, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if not answer:
            raise Failed(f"{self.name}: {self._last_words()}")
        return json.loads(answer)

    def _last_words(self):
        code = self._process.wait(10)
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        end = f"killed, perhaps after {TIMEOUT} s" if code == -9 else f"ended with code {code}"
        return " / ".join([end, *lines[-2:]])

    def close(self):
        """Ends the process."""
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.stdout.close()
        self._errors.close()
