"""Events as configs: their functions by name, for layers that are saved."""

import dataclasses

import keras

from keras_neuralde.events import EVENTS

_FUNCTIONS = ("condition", "affect")


def deserialize(events):
    """Events from a list of events or of what `serialize` returned."""
    if not isinstance(events, (list, tuple)):
        return events
    return [_made(one) if isinstance(one, dict) else one for one in events]


def serialize(events):
    """A list of plain dictionaries.

    Raises:
        ValueError: for a function that Keras could not find again.
    """
    return [_plain(one) for one in events]


def _made(config):
    kinds = {kind.__name__: kind for kind in EVENTS}
    settings = dict(config["config"])
    for name in _FUNCTIONS:
        if settings.get(name) is not None:
            settings[name] = keras.saving.deserialize_keras_object(settings[name])
    return kinds[config["class_name"]](**settings)


def _plain(event):
    settings = {f.name: getattr(event, f.name) for f in dataclasses.fields(event)}
    for name in _FUNCTIONS:
        if settings.get(name) is not None:
            settings[name] = _function(name, settings[name])
    if "times" in settings:
        times = settings["times"]
        settings["times"] = times.tolist() if hasattr(times, "tolist") else list(map(float, times))
    return {"class_name": type(event).__name__, "config": settings}


def _function(name, function):
    if keras.saving.get_registered_name(function) == getattr(function, "__name__", None):
        raise ValueError(
            f"the function `{name}` of an event is not registered, so that a saved model could not "
            "find it again: decorate it with @keras.saving.register_keras_serializable(). "
            f"Received: {function!r}"
        )
    return keras.saving.serialize_keras_object(function)
