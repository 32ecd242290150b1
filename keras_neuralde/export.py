"""SavedModels with named signatures, for TensorFlow Serving and other programs without Python."""

import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras.src.export.export_utils import get_input_signature

from keras_neuralde import components
from keras_neuralde.checks import check_flag, check_path
from keras_neuralde.layers.base import DifferentialEquationLayer
from keras_neuralde.layers.request import Request, serving
from keras_neuralde.typing import Nest
from keras_neuralde.warmup import write_requests

DEFAULT, AT_TIMES, WITH_SEED = "serving_default", "at_times", "with_seed"
_COMPILED = "_xla"
_CANNOT_TRACE = (TypeError, ValueError, tf.errors.OpError)


def export_saved_model(
    model: keras.layers.Layer,
    path: str | os.PathLike,
    *,
    signatures: str | Sequence[str] | None = None,
    xla: bool = False,
    warmup: Nest = None,
) -> dict[str, list[str]]:
    """Writes a SavedModel with named signatures, which runs where this package is not installed.

    Every signature has a free batch axis, and a row's answer depends on that row alone: a server
    may put the requests of many clients into one batch. None needs XLA, a Python function or a
    custom operation, and their inputs are named as the model's are:

    - `serving_default`: the model in inference mode. The rows of a stochastic layer all have the
      noise of a batch of one, so that row `i` is `model(x[i : i + 1])`.
    - `at_times`: the same with the save times as one more input `times`, `(n,)` for all rows or
      `(batch, n)`, padded with NaN at the end. It is there for models with one layer that holds a
      differential equation, whose outputs have a time axis then. A model with an input for times
      has the same function under both names.
    - `with_seed`: the same as `serving_default` with one more input `seed`, int32: `(batch,)` for a
      seed of each row, such that row `i` is that of a batch of one with this seed; or a scalar, as
      `layer(y0, seed=seed)` takes it, for noise that differs between the rows of one request. It is
      there for models with stochastic layers.

    A row whose solve failed is NaN.

    Args:
        model: a Keras model, or one of this package's layers that has been called. The inputs of a
            layer are `y0`, and `past_times` and `past` where it takes a sampled past.
        path: the directory to write. A server expects a number, the version, as its last part.
        signatures: the names of the signatures to write; `None` for all that apply.
        xla: add twins that XLA compiles, under the names with `_xla` appended. They compile once
            for each batch size, and a server runs them with its flag
            `--xla_cpu_compilation_enabled` only.
        warmup: requests that a server runs while it loads the model: a batch of the model's inputs,
            from which one is made for each signature that needs no XLA, or a list of pairs
            `(signature name, {input name: array})`. They are written to
            `assets.extra/tf_serving_warmup_requests`.

    Returns:
        The inputs of every signature: `{signature name: [input name, ...]}`.

    Raises:
        TypeError: for something that is neither a model nor one of this package's layers.
        ValueError: for a model that has not been built, a signature that cannot be had, or warm-up
            requests that do not fit.

    Example:

    >>> import tempfile, keras, tensorflow as tf, keras_neuralde as nde
    >>> y0 = keras.Input((2,), name="y0")
    >>> layer = nde.NeuralODE(keras.layers.Dense(2), (0.0, 1.0), saveat=[0.5, 1.0])
    >>> model = keras.Model(y0, layer(y0))
    >>> path = tempfile.mkdtemp() + "/1"
    >>> nde.export_saved_model(model, path)
    {'serving_default': ['y0'], 'at_times': ['y0', 'times']}
    >>> served = tf.saved_model.load(path).signatures["at_times"]
    >>> tuple(served(y0=tf.ones((3, 2)), times=[0.1, 0.2, 0.7, 0.9])["output_0"].shape)
    (3, 4, 2)
    """
    path = check_path("path", path)
    check_flag("xla", xla)
    plan = _Endpoints(model)
    chosen = _chosen(plan, signatures)
    if xla:
        twins = [one._replace(name=one.name + _COMPILED, compiled=True) for one in chosen]
        chosen = [*chosen, *twins]
    _warn_of_joint_steps(plan.layers)
    requests = _requests(plan, chosen, warmup)
    functions = {one.name: plan.trace(one) for one in chosen}
    _try_out(requests, functions, plan, chosen)
    _write(model, path, functions)
    if requests:
        write_requests(path, requests)
    return {one.name: [spec.name for spec in plan.specs(one)] for one in chosen}


def _write(model, path, functions):
    """Saves the functions with the variables and lookup tables that they use."""
    holder = tf.Module()
    used = {id(v): v for function in functions.values() for v in function.graph.variables}
    holder.used = list(used.values())
    parts = tf.train.TrackableView(model).descendants()
    resource = tf.saved_model.experimental.TrackableResource
    holder.resources = [part for part in parts if isinstance(part, resource)]
    # Servers ask for no gradients; saving what computes them takes as long as all the rest.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(holder, path, signatures=functions, options=options)


class _Endpoint(NamedTuple):
    """A signature to be.

    Attributes:
        name: its name.
        times: whether save times are an input of it, besides those of the model.
        seed: whether a seed is.
        compiled: whether XLA compiles it.
    """

    name: str
    times: bool = False
    seed: bool = False
    compiled: bool = False


class _Endpoints:
    """The signatures of a model, and the functions behind them."""

    def __init__(self, model):
        self.model = model
        self.layers = tuple(_outer_layers(model)) if isinstance(model, keras.layers.Layer) else ()
        self._arguments = _arguments(model)
        self._inputs = [
            tf.TensorSpec(spec.shape, spec.dtype, spec.name or f"input_{place}")
            for place, spec in enumerate(keras.tree.flatten(self._arguments))
        ]
        self._taken = {spec.name for spec in self._inputs}
        self._traced: dict = {}

    def specs(self, endpoint):
        """The inputs of a signature as `tf.TensorSpec`s."""
        specs = list(self._inputs)
        if endpoint.times:
            dtype = self.layers[0].state_dtype
            specs.append(tf.TensorSpec(None, dtype, self._free("times")))
        if endpoint.seed:
            specs.append(tf.TensorSpec(None, tf.int32, self._free("seed")))
        return specs

    def _free(self, name):
        return name if name not in self._taken else name + "_of_call"

    def trace(self, endpoint):
        """The traced function of a signature."""
        if endpoint not in self._traced:
            specs = self.specs(endpoint)

            @tf.function(
                input_signature=specs, jit_compile=endpoint.compiled or None, autograph=False
            )
            def function(*tensors):
                return self._call(endpoint, list(tensors))

            self._traced[endpoint] = function.get_concrete_function()
        return self._traced[endpoint]

    def _call(self, endpoint, tensors):
        inputs, more = tensors[: len(self._inputs)], tensors[len(self._inputs) :]
        times = _per_row(more.pop(0), tf.shape(inputs[0])[0]) if endpoint.times else None
        request = Request(self.layers, times, more.pop(0) if endpoint.seed else None)
        with serving(request), components.portable():
            arguments = keras.tree.pack_sequence_as(self._arguments, inputs)
            return self.model(*arguments, training=False)

    def why_no_times(self):
        """Why there cannot be a signature with times, or `None`."""
        if len(self.layers) != 1:
            return f"the model has {len(self.layers)} layers with differential equations, not one"
        if self.takes_times:
            return None
        try:
            function = self.trace(_Endpoint(AT_TIMES, times=True))
        except _CANNOT_TRACE as error:
            return f"what follows the layer cannot take any number of times. {error}"
        axis = 1 if getattr(self.layers[0], "trajectories", None) is None else 2
        for output in keras.tree.flatten(function.structured_outputs):
            if output.shape.rank is not None and output.shape.rank <= axis:
                return f"an output has no time axis. Its shape: {output.shape}"
            if output.shape.rank is not None and output.shape[axis] is not None:
                return f"an output has a time axis of fixed length. Its shape: {output.shape}"
        return None

    @property
    def takes_times(self):
        """Whether the model's own inputs hold save times."""
        return (
            len(self.layers) == 1
            and self.model is not self.layers[0]
            and (self.layers[0].takes_times)
        )

    def why_no_seed(self):
        """Why there cannot be a signature with a seed, or `None`."""
        if not any(hasattr(layer, "seed_generator") for layer in self.layers):
            return "the model has no stochastic layer"
        return None


def _outer_layers(layer):
    """The layers with differential equations that are not part of another one."""
    if isinstance(layer, DifferentialEquationLayer):
        yield layer
        return
    seen = set()
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        for found in _outer_layers(inner):
            if id(found) not in seen:
                seen.add(id(found))
                yield found


def _arguments(model):
    """The positional arguments of the model, a list of nests of `keras.InputSpec`s."""
    if isinstance(model, DifferentialEquationLayer):
        return model.served_inputs()
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a Keras model or a layer of keras_neuralde. "
            f"Received: {model!r} of type {type(model).__name__}"
        )
    try:
        return get_input_signature(model)
    except ValueError as error:
        raise ValueError(f"call the model on data once before it is exported. {error}") from error


def _per_row(times, rows):
    """Times of any rank as `(batch, n)`."""
    times = tf.reshape(times, tf.stack([-1, tf.shape(times)[-1]]))
    return tf.ensure_shape(
        tf.broadcast_to(times, tf.stack([rows, tf.shape(times)[1]])), (None, None)
    )


def _chosen(plan, signatures):
    """The signatures to write, or an error that says why one cannot be had."""
    possible = {
        DEFAULT: (_Endpoint(DEFAULT), lambda: None),
        AT_TIMES: (_Endpoint(AT_TIMES, times=not plan.takes_times), plan.why_no_times),
        WITH_SEED: (_Endpoint(WITH_SEED, seed=True), plan.why_no_seed),
    }
    if signatures is None:
        return [one for one, why_not in possible.values() if why_not() is None]
    names = [signatures] if isinstance(signatures, str) else signatures
    listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    if not listed or DEFAULT not in names or not set(names) <= set(possible):
        raise ValueError(
            f"`signatures` must name {DEFAULT!r}, which servers ask for, and no others than "
            f"{list(possible)}. Received: {signatures!r}"
        )
    for name in names:
        reason = possible[name][1]()
        if reason is not None:
            raise ValueError(f"there cannot be a signature {name!r}: {reason}")
    return [possible[name][0] for name in names]


def _warn_of_joint_steps(layers):
    """Says which layers make a row's answer depend on the rest of the batch."""
    joint = [
        layer.name
        for layer in layers
        if layer.solve_keywords.get("step_control") == "joint" or layer._solver.delegated
    ]
    if joint:
        warnings.warn(
            f"the layers {joint} take the steps of a batch together: what a server answers to one "
            "request depends on those that it puts into the same batch. Use "
            "step_control='per_sample' and a solver of keras_neuralde, or switch batching off",
            stacklevel=3,
        )


def _requests(plan, endpoints, warmup):
    """The warm-up requests as pairs `(signature name, {input name: array})`."""
    if warmup is None:
        return []
    named = {one.name: [spec.name for spec in plan.specs(one)] for one in endpoints}
    if not _is_list_of_pairs(warmup):
        plain = [one for one in endpoints if not one.compiled]
        warmup = [(one.name, _example(plan, one, warmup)) for one in plain]
    for name, inputs in warmup:
        known = name in named and isinstance(inputs, dict)
        if not known or set(inputs) != set(named[name]):
            raise ValueError(
                f"a request in `warmup` must be for one of the signatures with inputs {named}. "
                f"Received: {name!r} with {list(inputs) if isinstance(inputs, dict) else inputs!r}"
            )
    specs = {one.name: {spec.name: spec for spec in plan.specs(one)} for one in endpoints}
    return [
        (name, {key: _cast(value, specs[name][key]) for key, value in inputs.items()})
        for name, inputs in warmup
    ]


def _try_out(requests, functions, plan, endpoints):
    """Answers the warm-up requests: one that fails would keep a server from loading."""
    named = {one.name: [spec.name for spec in plan.specs(one)] for one in endpoints}
    for name, inputs in requests:
        try:
            functions[name](*map(tf.constant, (inputs[key] for key in named[name])))
        except _CANNOT_TRACE as error:
            raise ValueError(f"the warm-up request for {name!r} fails. {error}") from error


def _cast(value, spec):
    """An input of a request in the dtype of the signature."""
    try:
        return np.asarray(value, spec.dtype.as_numpy_dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the input {spec.name!r} in `warmup` must be an array of {spec.dtype.name}. "
            f"Received: {value!r}"
        ) from error


def _is_list_of_pairs(warmup):
    return isinstance(warmup, (list, tuple)) and all(
        isinstance(one, (list, tuple)) and len(one) == 2 and isinstance(one[0], str)
        for one in warmup
    )


def _example(plan, endpoint, batch):
    """A request of a signature, made from a batch of the model's inputs."""
    flat = [np.asarray(leaf) for leaf in keras.tree.flatten(batch)]
    names = [spec.name for spec in plan.specs(endpoint)]
    if len(flat) != len(names) - endpoint.times - endpoint.seed or not all(x.ndim for x in flat):
        raise ValueError(
            "`warmup` must be a batch of the model's inputs, or a list of pairs "
            f"(signature name, inputs). Received: arrays of shapes {[x.shape for x in flat]} for "
            f"the inputs {names}"
        )
    rows: Any = len(flat[0])
    if endpoint.times:
        layer = plan.layers[0]
        times = np.atleast_1d(layer.t_span[1] if layer.saveat is None else layer.saveat)
        flat = [*flat, np.tile(times, (rows, 1))]
    if endpoint.seed:
        flat = [*flat, np.zeros(rows, np.int32)]
    return dict(zip(names, flat, strict=True))
