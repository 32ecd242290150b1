"""What a report of a problem should say about the machine."""

import importlib.metadata
import os
import platform
import sys

_PACKAGES = (
    "keras-neuralde", "tensorflow", "keras", "tensorflow-probability", "tf-keras", "numpy",
    "matplotlib", "scipy",
)  # fmt: skip


def show_versions() -> None:
    """Prints the versions of Python and of the packages that matter, and the devices.

    Put the output into a report of a problem.

    Example:

    >>> import keras_neuralde as nde
    >>> nde.show_versions()
    keras-neuralde          ...
    tensorflow              ...
    """
    import keras
    import tensorflow as tf

    import keras_neuralde

    rows = {name: _version(name) for name in _PACKAGES}
    rows["keras-neuralde"] = keras_neuralde.__version__
    rows["python"] = sys.version.split()[0]
    rows["platform"] = f"{platform.platform()}, {os.cpu_count()} cores"
    devices = [device.name.removeprefix("/physical_device:") for device in _devices(tf)]
    rows["devices"] = ", ".join(devices)
    rows["Keras backend"] = f"{keras.backend.backend()}, {keras.config.floatx()}"
    rows["XLA_FLAGS"] = os.environ.get("XLA_FLAGS") or "not set"
    print("\n".join(f"{name:<24}{value}" for name, value in rows.items()))


def _version(name):
    # TensorFlow has wheels under several names.
    for candidate in (name, f"{name}-cpu"):
        try:
            return importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def _devices(tf):
    return tf.config.list_physical_devices()
