"""Gradients that do not exist, refused by name instead of returned as a silent zero."""

import tensorflow as tf
from tensorflow.python.saved_model.save_context import in_save_context

from keras_neuralde import values


def refuse_gradients(y, settings):
    """Lets a tape that asks for the gradient of a setting find a sentence, not a zero."""
    for name, value in settings.items():
        for leaf in tf.nest.flatten(value):
            if values.is_tensor(leaf):
                y = _join(y, _refused(tf.convert_to_tensor(leaf), _setting(name)))
    return y


def refuse_alone(y, partner, tensors, what):
    """Refuses gradients of `y` with respect to tensors, unless `partner` is differentiated too.

    Args:
        y: a nest of tensors.
        partner: a tensor.
        tensors: tensors and variables.
        what: the end of the sentence that a tape finds that asks for a gradient of `y` alone.

    Returns:
        `y` and `partner`.
    """
    leaves = tf.nest.flatten(y)
    refused = [_refused(tf.convert_to_tensor(tensor), what) for tensor in tensors]
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


def _setting(name):
    return f"`{name}`. Take the tape's watch off it, or tf.stop_gradient it."


def _refused(setting, what):
    @tf.custom_gradient
    def identity(setting):
        def refuse(bar):
            sentence = f"the solution has no gradient with respect to {what}"
            if not in_save_context():
                raise ValueError(sentence)
            # Keras saves what computes gradients too, whether anyone will ask for them or not.
            with tf.control_dependencies([tf.debugging.Assert(tf.constant(False), [sentence])]):
                return tf.fill(tf.shape(bar), tf.constant(float("nan"), bar.dtype))

        return tf.identity(setting), refuse

    return identity(setting)


def _join(y, setting):
    """`y`, connected to `setting` with a zero gradient."""
    leaves = tf.nest.flatten(y)

    @tf.custom_gradient
    def first(setting, *leaves):
        return [tf.identity(leaf) for leaf in leaves], lambda *bars: (tf.zeros_like(setting), *bars)

    return tf.nest.pack_sequence_as(y, first(setting, *leaves))
