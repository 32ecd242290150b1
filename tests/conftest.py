"""Settings of the test run, made before TensorFlow starts."""

import os
import pathlib

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Parallel workers share the cores: each, and every process it starts, keeps to one thread.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")


_SLOW = pathlib.Path(__file__).parent / "slow.txt"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the tests that were measured as slow; skips those marked `gpu` where there is none.

    What marks of one's own say at a test stands; `slow.txt` adds those that only a clock tells
    apart, such as one case of many. `python -m tests.slow LOG` writes it.
    """
    slow = set(_SLOW.read_text(encoding="utf-8").split("\n"))
    for item in items:
        if item.nodeid in slow:
            item.add_marker(pytest.mark.slow)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU: TensorFlow sees none"))
