"""A server without Python: a C program that is built from the headers and libraries of TensorFlow.

It loads SavedModels through TensorFlow's C API, as TensorFlow Serving's loader does, and answers
requests with XLA switched off, as the stock server has it.
"""

import functools
import os
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np
import tensorflow as tf

SOURCE = pathlib.Path(__file__).with_name("serve.c")


def compiler():
    """The path of a C compiler, or `None`."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


@functools.cache
def program():
    """Builds the program; returns its path."""
    target = pathlib.Path(tempfile.mkdtemp(prefix="serve")) / "serve"
    library = tf.sysconfig.get_lib()
    subprocess.run(
        [
            compiler(), "-O1", "-Wall", "-Werror", str(SOURCE), "-o", str(target),
            f"-I{tf.sysconfig.get_include()}", f"-L{library}", f"-Wl,-rpath,{library}",
            "-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2",
        ],
        check=True, timeout=120,
    )  # fmt: skip
    return target


def signatures(path):
    """The signatures of a SavedModel, read from its file."""
    # A C++ server reads the same message.
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel()
    message.ParseFromString((pathlib.Path(path) / "saved_model.pb").read_bytes())
    return message.meta_graphs[0].signature_def


def serve(path, requests, allow_xla=False, repeats=1):
    """Asks the program for answers.

    Args:
        path: the SavedModel.
        requests: pairs `(signature name, {input name: array})`.
        allow_xla: whether functions may be compiled.
        repeats: how often each request is asked.

    Returns:
        For each request its outputs, arrays by name, and the median duration in microseconds.

    Raises:
        RuntimeError: with what the program said, if it failed.
    """
    definitions = signatures(path)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        jobs = [
            _write_job(definitions[signature], inputs, folder / str(place))
            for place, (signature, inputs) in enumerate(requests)
        ]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment |= {"ALLOW_XLA": "1"} if allow_xla else {}
        run = subprocess.run(
            [program(), path, str(repeats), *jobs],
            capture_output=True, text=True, timeout=300, env=environment,
        )  # fmt: skip
        if run.returncode:
            raise RuntimeError(run.stderr)
        lines = iter(run.stdout.splitlines())
        return [
            _read_answer(definitions[signature], lines, folder / str(place))
            for place, (signature, _) in enumerate(requests)
        ]


def _write_job(definition, inputs, folder):
    folder.mkdir()
    lines = []
    for name, value in inputs.items():
        info = definition.inputs[name]
        value = np.asarray(value, tf.as_dtype(info.dtype).as_numpy_dtype, order="C")
        value.tofile(folder / f"in_{name}")
        sizes = " ".join(map(str, (value.ndim, *value.shape)))
        operation = info.name.replace(":", " ")
        lines.append(f"input {operation} {info.dtype} {folder}/in_{name} {sizes}")
    for name, info in definition.outputs.items():
        lines.append(f"output {info.name.replace(':', ' ')} {folder}/out_{name}")
    (folder / "job").write_text("\n".join(lines))
    return folder / "job"


def _read_answer(definition, lines, folder):
    outputs = {}
    for name in definition.outputs:
        _, dtype, _, *sizes = next(lines).split()
        raw = np.fromfile(folder / f"out_{name}", tf.as_dtype(int(dtype)).as_numpy_dtype)
        outputs[name] = raw.reshape([int(size) for size in sizes])
    return outputs, float(next(lines).split()[1])
