"""Starts processes that belong together, and ends them all when time is over."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time


def run(module, commands, seconds, environment=()):
    """Runs `python -m module *arguments` for each command, all at the same time.

    Args:
        module: the module.
        commands: a list of lists of arguments, one for each process.
        seconds: after which all processes are killed, with what they started.
        environment: a dictionary for each process.

    Returns:
        The exit codes and what was written to the error streams.
    """
    environment = list(environment) or [{}] * len(commands)
    processes = []
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in commands]
        try:
            for arguments, own, file in zip(commands, environment, files, strict=True):
                process = subprocess.Popen(
                    [sys.executable, "-m", module, *map(str, arguments)],
                    env={**os.environ, **own},
                    stdout=subprocess.DEVNULL,
                    stderr=file,
                    start_new_session=True,
                )
                processes.append(process)
            _wait(processes, deadline)
        finally:
            for process in processes:
                _kill(process)
        for file in files:
            file.seek(0)
        said = [file.read()[-3000:] for file in files]
    return [process.returncode for process in processes], said


def _wait(processes, deadline):
    """Until all have ended well, one has ended badly, or the time is over."""
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if all(code is not None for code in codes) or any(code for code in codes):
            return
        time.sleep(0.2)


def _kill(process):
    """The process and all that it started; one that has ended keeps its exit code."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def cluster(workers):
    """The environments of the workers of a cluster on this machine."""
    sockets = [socket.socket() for _ in range(workers)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()

    def environment(index):
        task = {"type": "worker", "index": index}
        config = {"cluster": {"worker": addresses}, "task": task}
        return {"TF_CONFIG": json.dumps(config), "WORKER": str(index)}

    return [environment(index) for index in range(workers)]
