"""Products with the mass matrix."""

import tensorflow as tf


def times_mass(g, x, transpose=False):
    """M x for every trajectory; `(rows, width)`."""
    mass = g.implicit.mass
    if mass is None:
        return x
    return g.join(tf.linalg.matmul(g.split(x), mass, transpose_b=not transpose))
