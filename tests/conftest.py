"""Settings of the test run, made before TensorFlow starts."""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Parallel workers share the cores: each, and every process it starts, keeps to one thread.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_collection_modifyitems(items):
    """Skips the tests marked `gpu` on machines without one."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU: TensorFlow sees none"))
