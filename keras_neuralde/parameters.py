"""Parameters as users keep them, and as the one vector that optimizers work on."""

import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_neuralde import values
from keras_neuralde.typing import Nest


class Parameters:
    """The mapping between what a user calls parameters and one vector.

    Args:
        given: a vector, a nest of tensors or arrays, a list of Keras variables, or a Keras model or
            layer (its trainable variables).

    Raises:
        TypeError: for mixed or non-floating dtypes.
        ValueError: if there is nothing to train.
    """

    def __init__(self, given):
        self.variables = _variables(given)
        self._holder = given if isinstance(given, keras.layers.Layer) else None
        self._single = isinstance(given, keras.Variable)
        if self.variables is not None:
            self.structure = list(self.variables)
            leaves = [tf.convert_to_tensor(v) for v in self.variables]
            self.names = [v.path for v in self.variables]
        else:
            self.structure, leaves, self.names = _tensors(given)
        if not leaves:
            raise ValueError(
                "there are no parameters to train: `params`, or the model, must hold some. "
                f"Received: {given!r}"
            )
        self.shapes = [tuple(leaf.shape) for leaf in leaves]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.dtype = _one_dtype(leaves, self.names)
        self.vector = self.flatten(leaves)

    def flatten(self, leaves):
        """A list of leaves as one vector."""
        return tf.concat([tf.reshape(leaf, [-1]) for leaf in leaves], 0)

    def leaves(self, vector):
        """The inverse of `flatten`."""
        parts = tf.split(vector, self.sizes)
        return [tf.reshape(part, s) for part, s in zip(parts, self.shapes, strict=True)]

    def nest(self, leaves):
        """Leaves in the structure that the user gave."""
        return tf.nest.pack_sequence_as(self.structure, leaves)

    def call(self, function, leaves, *arguments):
        """`function(p, *arguments)` with candidate values, wherever it reads them.

        Variables take the candidate values while the function runs; a model is passed as itself.
        """
        if self.variables is None:
            return function(self.nest(leaves), *arguments)
        with self.substituted(leaves):
            p = leaves if self._holder is None else self._holder
            return function(p[0] if self._single else p, *arguments)

    def substituted(self, leaves):
        """A scope in which the variables have other values."""
        return keras.StatelessScope(
            state_mapping=[(v, leaf) for v, leaf in zip(self.variables, leaves, strict=True)]
        )

    def result(self, vector):
        """What the user gets back: a nest of tensors, or the model or variables, updated."""
        leaves = self.leaves(vector)
        if self.variables is None:
            return self.nest(leaves)
        for variable, leaf in zip(self.variables, leaves, strict=True):
            variable.assign(leaf)
        return leaves if self._holder is None else self._holder


def _variables(given):
    """The Keras variables behind `given`, or `None` if it is made of values."""
    if isinstance(given, keras.layers.Layer):
        if not given.built:
            raise ValueError(
                f"{given.name!r} has no variables yet: build it or call it on data once."
            )
        return list(given.trainable_variables)
    leaves = tf.nest.flatten(given)
    if leaves and all(isinstance(leaf, keras.Variable) for leaf in leaves):
        return leaves
    return None


def _tensors(given):
    if given is None:
        raise ValueError(
            "there are no parameters to train: `params` must hold some. Received: None"
        )
    nest = values.as_nest(given)
    try:
        dtype = values.common_dtype(nest, None)
    except TypeError as error:
        found = [getattr(leaf, "dtype", type(leaf).__name__) for leaf in tf.nest.flatten(nest)]
        listed = [getattr(dtype, "name", str(dtype)) for dtype in found]
        raise TypeError(f"`params` must have one floating dtype. Received: {listed}") from error
    leaves = [values.to_tensor(leaf, dtype, "`params`") for leaf in tf.nest.flatten(nest)]
    if isinstance(nest, np.ndarray) or not tf.nest.is_nested(nest):
        return nest, leaves, ["p"]
    names = ["p" + keyed for keyed in _paths(nest)]
    return nest, leaves, names


def _paths(nest):
    """Where the leaves of a nest are, in the order of `tf.nest.flatten`."""
    flat = [path for path, _ in keras.tree.flatten_with_path(nest)]
    return ["".join(f"[{key!r}]" for key in path) for path in flat]


def _one_dtype(leaves, names):
    dtypes = {leaf.dtype for leaf in leaves}
    if len(dtypes) > 1 or not leaves[0].dtype.is_floating:
        listed = {name: leaf.dtype.name for name, leaf in zip(names, leaves, strict=True)}
        raise TypeError(f"all parameters must have one floating dtype. Received: {listed}")
    return leaves[0].dtype


def flatten_parameters(model: keras.layers.Layer) -> tuple[tf.Tensor, Callable[..., Nest]]:
    """The trainable variables of a model as one vector, and the model as a function of it.

    A network can so live inside `f(t, y, p)` with its weights in `p`. The order is that of
    `model.trainable_variables`, each in row-major order.

    Args:
        model: a built Keras model or layer.

    Returns:
        `(p, apply)`: `p` is the vector of current values, `(num_parameters,)`; `apply(p, *inputs,
        **keywords)` calls the model with those values, differentiable in `p` and the inputs.

    Raises:
        ValueError: if the model is not built or has nothing to train.
        TypeError: if its trainable variables differ in dtype.

    Example:

    >>> import keras, tensorflow as tf, keras_neuralde as nde
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    >>> p, apply = nde.flatten_parameters(net)
    >>> p.shape
    TensorShape([17])
    >>> apply(2.0 * p, tf.ones((1, 2))).shape
    TensorShape([1, 2])
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(f"`model` must be a Keras model or layer. Received: {model!r}")
    parameters = Parameters(model)

    def apply(p, *inputs, **keywords):
        p = tf.convert_to_tensor(p)
        if p.shape != parameters.vector.shape:
            raise ValueError(
                f"`p` must be a vector of {parameters.vector.shape[0]} parameters. "
                f"Received shape: {p.shape}"
            )
        with parameters.substituted(parameters.leaves(p)):
            return model(*inputs, **keywords)

    return parameters.vector, apply
