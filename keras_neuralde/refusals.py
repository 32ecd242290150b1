"""Gradients that do not exist, refused by name instead of returned as a silent zero."""

import tensorflow as tf

from keras_neuralde import values


def refuse_gradients(y, settings):
    """Lets a tape that asks for the gradient of a setting find a sentence, not a zero."""
    for name, value in settings.items():
        for leaf in tf.nest.flatten(value):
            if values.is_tensor(leaf):
                y = _join(y, _refused(tf.convert_to_tensor(leaf), name))
    return y


def _refused(setting, name):
    @tf.custom_gradient
    def identity(setting):
        def refuse(_):
            raise ValueError(
                f"the solution has no gradient with respect to `{name}`. Take the tape's watch off "
                "it, or tf.stop_gradient it."
            )

        return tf.identity(setting), refuse

    return identity(setting)


def _join(y, setting):
    """`y`, connected to `setting` with a zero gradient."""
    leaves = tf.nest.flatten(y)

    @tf.custom_gradient
    def first(setting, *leaves):
        return [tf.identity(leaf) for leaf in leaves], lambda *bars: (tf.zeros_like(setting), *bars)

    return tf.nest.pack_sequence_as(y, first(setting, *leaves))
