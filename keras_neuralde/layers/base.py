"""What all differential-equation layers share: settings, inner models as pure functions, config."""

import inspect
from typing import Any, Unpack

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_neuralde import adjoints, controllers, solvers
from keras_neuralde.arguments import check_settings
from keras_neuralde.checks import check_array, check_keywords
from keras_neuralde.events import as_events
from keras_neuralde.layers import event_config
from keras_neuralde.options import LayerOptions, SolverLike
from keras_neuralde.solve import SOLVE_KEYWORDS
from keras_neuralde.typing import TimeSpan

_FIXED_BY_LAYER = ("saveat", "batch_ndims", "dense")
# Keywords that may be objects, with what makes them from a config.
_OBJECTS = {"controller": controllers, "adjoint": adjoints}
_ROW_COUPLING = (keras.layers.BatchNormalization,)
_OF_KERAS = {*inspect.signature(keras.layers.Layer.__init__).parameters, "input_shape", "input_dim"}


class DifferentialEquationLayer(keras.layers.Layer):
    """Base of the layers whose output is the solution of a differential equation.

    Args:
        t_span: the pair of numbers `(t0, t1)`.
        solver: a solver name or object.
        saveat: `None`, a number, or a sorted 1-D list of times.
        **keywords: keywords of `keras_neuralde.solve`, and of `keras.layers.Layer`.
    """

    def __init__(
        self,
        t_span: TimeSpan,
        solver: SolverLike,
        *,
        saveat: npt.ArrayLike | None = None,
        **keywords: Unpack[LayerOptions],
    ) -> None:
        settings = {name: keywords.pop(name) for name in list(keywords) if name in SOLVE_KEYWORDS}
        for name in _FIXED_BY_LAYER:
            if name in settings:
                raise TypeError(
                    f"`{name}` is set by the layer: leave it out. Received: {settings[name]!r}"
                )
        if "events" in settings:
            settings["events"] = list(as_events(event_config.deserialize(settings["events"])))
        check_keywords(type(self).__name__, keywords, SOLVE_KEYWORDS, _OF_KERAS)
        check_settings(settings)
        keywords.setdefault("autocast", False)
        super().__init__(**keywords)
        self.t_span = _span(t_span)
        self.solver = solver
        self.saveat = _save_times(saveat, self.t_span)
        self.solve_keywords = {
            name: value
            for name, value in settings.items()
            if name != "controller" or value is not None
        }
        self._solver = solvers.get(solver)
        for name, kind in _OBJECTS.items():
            if name in self.solve_keywords:
                kind.get(self.solve_keywords[name])
        self.supports_masking = True

    @property
    def state_dtype(self) -> str:
        """What the solver computes in: the variable dtype, float32 at least."""
        return "float64" if self.variable_dtype == "float64" else "float32"

    @property
    def takes_times(self) -> bool:
        """Whether save times are among the inputs that the layer was built with."""
        return _is_pair(self._input_shape()) if self.built else False

    def served_inputs(self) -> list[keras.InputSpec]:
        """The arguments of a signature of the layer alone: `[InputSpec]`, or a list of them."""
        if not self.built:
            raise ValueError(
                f"the layer {self.name!r} has no state shape yet: call it on data once before it "
                "is exported."
            )
        return [keras.InputSpec(self.state_dtype, _state_shape(self._input_shape()), name="y0")]

    def _input_shape(self):
        """The shape that the layer was built with, or a list of them."""
        shapes = self.get_build_config() or {}
        return shapes.get("input_shape", ())

    def _to_state(self, tensor):
        return tf.cast(tf.convert_to_tensor(tensor), self.state_dtype)

    def _build_inner(self, model, *specs):
        """Builds an inner model on symbolic inputs and returns its output's spec."""
        _refuse_row_coupling(model)
        inputs = [keras.KerasTensor(shape, dtype=self.state_dtype) for shape in specs]
        return model(inputs if len(inputs) > 1 else inputs[0])

    def _time_major_to_batch_major(self, y):
        """`(num_times, batch, *state)` → `(batch, num_times, *state)`: the one place for it."""
        return tf.transpose(y, [1, 0, *range(2, y.shape.rank)])

    def __repr__(self):
        times = self.saveat if isinstance(self.saveat, list) else None
        parts = [
            f"{type(self).__name__} {self.name!r}",
            f"t from {self.t_span[0]:g} to {self.t_span[1]:g}",
            self.solver if isinstance(self.solver, str) else repr(self._solver),
            f"{len(times)} save times"
            if times
            else "final state"
            if self.saveat is None
            else f"saved at {self.saveat:g}",
            *(f"{name}={value!r}" for name, value in self.solve_keywords.items()),
            f"{self.count_params()} parameters" if self.built else "not built",
        ]
        return f"<{', '.join(parts)}>"

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("autocast", None)
        solver = self.solver if isinstance(self.solver, str) else solvers.serialize(self._solver)
        settings = dict(self.solve_keywords)
        for name, kind in _OBJECTS.items():
            if name in settings and not isinstance(settings[name], str):
                settings[name] = kind.serialize(kind.get(settings[name]))
        if "events" in settings:
            settings["events"] = event_config.serialize(settings["events"])
        settings = {name: _plain(value) for name, value in settings.items()}
        return {
            **config,
            "t_span": self.t_span,
            "solver": solver,
            "saveat": self.saveat,
            **settings,
        }


class PureModel:
    """An inner Keras model as a function of explicit tensors.

    Variables are read through a `keras.StatelessScope`, so that none hides in a closure. Values
    that the model would change (a dropout seed) are the same in every evaluation of one solve.

    Args:
        model: the inner layer or model, built.
        state_dtype: the dtype that the solver computes in.
        time_dependent: whether the model takes `[t, y]`.
    """

    def __init__(self, model, state_dtype, time_dependent=False):
        self._model = model
        self._dtype = state_dtype
        self._time_dependent = time_dependent

    def parameters(self):
        """The values of the model's variables; floating ones in the solver's dtype."""

        def value(variable):
            tensor = tf.convert_to_tensor(variable)
            return tf.cast(tensor, self._dtype) if tensor.dtype.is_floating else tensor

        return [value(variable) for variable in self._model.variables]

    def training(self, t, y, p):
        """The field in training mode."""
        return self._call(t, y, p, True)[0]

    def inference(self, t, y, p):
        """The field in inference mode."""
        return self._call(t, y, p, False)[0]

    def _call(self, t, y, p, training):
        variables = self._model.variables
        mapping = [(v, tf.cast(value, v.dtype)) for v, value in zip(variables, p, strict=True)]
        inputs = y
        if self._time_dependent:
            inputs = [tf.reshape(t, (-1, 1)), y]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            output = self._model(inputs, training=training)
        return tf.cast(output, self._dtype), scope

    def advance_state(self, t, y):
        """Updates seeds and the like once, as one training call on the start does."""
        changing = self._model.non_trainable_variables
        if not changing:
            return
        _, scope = self._call(t, y, self.parameters(), True)
        for variable in changing:
            value = scope.get_current_value(variable)
            if value is not None:
                variable.assign(value)


def _is_pair(input_shape):
    return len(input_shape) > 0 and isinstance(input_shape[0], (list, tuple))


def _state_shape(input_shape):
    """The shape of y0 with a free batch axis."""
    shape = input_shape[0] if _is_pair(input_shape) else input_shape
    if len(shape) < 1 or None in tuple(shape)[1:]:
        raise ValueError(
            "the input must have a batch axis and state axes of known size. "
            f"Received shape: {tuple(shape)}"
        )
    return (None, *tuple(shape)[1:])


def _span(t_span):
    pair = isinstance(t_span, (list, tuple)) or getattr(t_span, "shape", ()) != ()
    values = list(t_span) if pair else [t_span]
    try:
        values = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise TypeError(f"`t_span` must hold two numbers. Received: {t_span!r}") from error
    if len(values) != 2 or not np.all(np.isfinite(values)):
        raise ValueError(f"`t_span` must be a pair of finite numbers. Received: {t_span!r}")
    return values


def _save_times(saveat, t_span):
    if saveat is None:
        return None
    times = check_array("saveat", saveat).astype(float)
    if times.ndim > 1 or times.size == 0 or not np.all(np.isfinite(times)):
        raise ValueError(f"`saveat` must be a number or a 1-D list of times. Received: {saveat!r}")
    low, high = min(t_span), max(t_span)
    slack = 1e-6 * max(abs(low), abs(high))
    if times.min() < low - slack or times.max() > high + slack:
        raise ValueError(f"`saveat` must lie within t_span={t_span}. Received: {saveat!r}")
    if times.ndim and np.any(np.diff(times) * (1 if t_span[1] >= t_span[0] else -1) < 0):
        raise ValueError(
            f"`saveat` must be sorted in the direction of t_span. Received: {saveat!r}"
        )
    return times.tolist()


def _refuse_row_coupling(model):
    inner = [model, *model._flatten_layers(include_self=False)]
    found = [layer.name for layer in inner if isinstance(layer, _ROW_COUPLING)]
    if found:
        raise ValueError(
            "BatchNormalization inside a differential equation would couple trajectories that are "
            "at different times; use LayerNormalization or GroupNormalization. "
            f"Received: {found}"
        )


def _plain(value):
    """Settings as JSON can hold them."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, tf.Tensor):
        return value.numpy().tolist()
    return list(value) if isinstance(value, tuple) else value
