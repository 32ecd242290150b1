"""Gradients that do not exist, refused by name instead of returned as a silent zero."""

import tensorflow as tf

from keras_neuralde import values


def refuse_gradients(y, settings):
    """Lets a tape that asks for the gradient of a setting find a sentence, not a zero."""
    for name, value in settings.items():
        for leaf in tf.nest.flatten(value):
            if values.is_tensor(leaf):
                y = _join(y, _refused(tf.convert_to_tensor(leaf), _sentence(name)))
    return y


def refuse_alone(y, partner, tensors, sentence):
    """Refuses gradients of `y` with respect to tensors, unless `partner` is differentiated too.

    Args:
        y: a nest of tensors.
        partner: a tensor.
        tensors: tensors and variables.
        sentence: what a tape finds that asks for a gradient of `y` alone.

    Returns:
        `y` and `partner`.
    """
    leaves = tf.nest.flatten(y)
    refused = [_refused(tf.convert_to_tensor(tensor), sentence) for tensor in tensors]
    # Set on the way back, where the partner always comes before `y`: it reads an output of its.
    together = [False]

    @tf.custom_gradient
    def first(*arguments):
        def gradient(*bars):
            known, together[0] = together[0], False
            zeros = [None if known else tf.zeros_like(tensor) for tensor in refused]
            return *bars[:-1], *zeros

        return (*map(tf.identity, arguments[: len(leaves)]), tf.zeros((), partner.dtype)), gradient

    @tf.custom_gradient
    def second(partner, tie):
        def gradient(bar):
            together[0] = True
            return bar, tf.zeros_like(tie)

        return tf.identity(partner), gradient

    *leaves, tie = first(*leaves, *refused)
    return tf.nest.pack_sequence_as(y, leaves), second(partner, tie)


def _sentence(name):
    return (
        f"the solution has no gradient with respect to `{name}`. Take the tape's watch off it, or "
        "tf.stop_gradient it."
    )


def _refused(setting, sentence):
    @tf.custom_gradient
    def identity(setting):
        def refuse(_):
            raise ValueError(sentence)

        return tf.identity(setting), refuse

    return identity(setting)


def _join(y, setting):
    """`y`, connected to `setting` with a zero gradient."""
    leaves = tf.nest.flatten(y)

    @tf.custom_gradient
    def first(setting, *leaves):
        return [tf.identity(leaf) for leaf in leaves], lambda *bars: (tf.zeros_like(setting), *bars)

    return tf.nest.pack_sequence_as(y, first(setting, *leaves))
