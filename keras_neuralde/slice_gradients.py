"""Gradients that TensorFlow's own slices lack inside compiled functions.

There the gradient of a slice, and so that of a concatenation, is an `XlaDynamicUpdateSlice`, which
TensorFlow 2.21 cannot differentiate. The derivatives that implicit methods take of a field (a
Jacobian, a forward-mode product, and then the gradient of these) come to it. Imported for its
effect on TensorFlow's registry; what TensorFlow registers itself is left alone.
"""

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.python.framework import ops


def _update_slice(op, bar):
    _, update, begin = op.inputs
    kept = gen_xla_ops.xla_dynamic_update_slice(bar, tf.zeros_like(update), begin)
    taken = gen_xla_ops.xla_dynamic_slice(bar, begin, tf.shape(update, begin.dtype))
    return kept, taken, None


def _slice(op, bar):
    whole, begin, _ = op.inputs
    return gen_xla_ops.xla_dynamic_update_slice(tf.zeros_like(whole), bar, begin), None, None


for name, gradient in (("XlaDynamicUpdateSlice", _update_slice), ("XlaDynamicSlice", _slice)):
    try:
        ops.gradient_registry.lookup(name)
    except LookupError:
        ops.RegisterGradient(name)(gradient)
