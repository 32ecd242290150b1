"""`NeuralCDDE`: a layer whose output is the solution of a delay equation with constant lags."""

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_neuralde.checks import check_array, check_flag
from keras_neuralde.layers.neural_ode import NeuralODE, _split, _state_shape
from keras_neuralde.options import LayerOptions, SolverLike
from keras_neuralde.problems import DDEProblem
from keras_neuralde.typing import History, TensorLike, TimeSpan

_SAMPLED = "sampled"


@keras.saving.register_keras_serializable(package="keras_neuralde")
class NeuralCDDE(NeuralODE):
    """The solution of y' = model([y(t); y(t - lag 1); ...; y(t - lag K)]), y(t0) = input.

    The states are joined along their last axis, the present first and then the lags in their order.
    The gradient is the exact one of the computed solution, with respect to the input, the past,
    every weight and, with `trainable_lags`, the lags.

    Args:
        model: the field: any Keras layer or model that maps `(batch, *state, (K + 1) n)`, with n
            the last axis of the state, to the shape of the state.
        t_span: the numbers `(t0, t1)`; with `t1 < t0` the past lies at later times.
        lags: K positive numbers.
        solver: the name or object of a solver of ordinary equations, or a `MethodOfSteps`.
        history: the state before t0: `None` for the constant input; a function `history(t, p)`
            with `t` of shape `(batch,)` that returns `(batch, *state)`, where `p` is the input (a
            registered function can be saved with the layer); or `"sampled"`, for samples given at
            call time, with straight lines between them.
        trainable_lags: whether the lags are weights. They are kept positive as exponentials of the
            weight `log_lags`.
        saveat: `None` for the state at `t1`, or times within `t_span`.
        time_dependent: call `model([t, states])`, with `t` of shape `(batch, 1)`.
        **keywords: as in `NeuralODE`; `max_record` bounds the steps that a solve may take.

    Call arguments:
        inputs: as in `NeuralODE`. With `history="sampled"`, `[y0, past_times, past]` or
            `[y0, past_times, past, times]`: `past_times` `(m,)` or `(batch, m)`, ascending, and
            `past` `(batch, m, *state)`. Before the first sample and after the last one, the past
            stays as they are.
        training: as in every Keras layer.

    Returns:
        As `NeuralODE`.

    Raises:
        TypeError: for a history that cannot be called.
        ValueError: for lags that are not positive, or a model whose output is not a state.

    Example:

    >>> import keras, keras_neuralde as nde
    >>> field = keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])
    >>> layer = nde.NeuralCDDE(field, (0.0, 1.0), [0.1, 0.3], saveat=[0.5, 1.0])
    >>> tuple(layer(keras.ops.ones((3, 2))).shape)
    (3, 2, 2)
    """

    def __init__(
        self,
        model: keras.layers.Layer,
        t_span: TimeSpan,
        lags: Sequence[float],
        solver: SolverLike = "tsit5",
        *,
        history: History | Literal["sampled"] | None = None,
        trainable_lags: bool = False,
        saveat: npt.ArrayLike | None = None,
        time_dependent: bool = False,
        **keywords: Unpack[LayerOptions],
    ) -> None:
        super().__init__(
            model, t_span, solver, saveat=saveat, time_dependent=time_dependent, **keywords
        )
        if not (
            history is None
            or (isinstance(history, str) and history == _SAMPLED)
            or callable(history)
        ):
            raise TypeError(
                f"`history` must be None, {_SAMPLED!r} or a function history(t, p) -> state. "
                f"Received: {history!r}"
            )
        self.lags = _positive_numbers(lags)
        self.history = history
        self.trainable_lags = check_flag("trainable_lags", trainable_lags)

    def build(self, input_shape):
        state_shape = _state_shape(self._without_past(input_shape))
        if len(state_shape) < 2:
            raise ValueError(
                f"the state needs an axis to join lags along. Received shape: {state_shape}"
            )
        joined = (*state_shape[:-1], state_shape[-1] * (1 + len(self.lags)))
        specs = [(None, 1), joined] if self.time_dependent else [joined]
        output = self._build_inner(self.model, *specs)
        if not hasattr(output, "shape") or tuple(output.shape[1:]) != tuple(state_shape[1:]):
            raise ValueError(
                f"`model` must map {joined} to the shape of the state, {tuple(state_shape)}. "
                f"Received: {getattr(output, 'shape', output)}"
            )
        self.log_lags = None
        if self.trainable_lags:
            self.log_lags = self.add_weight(
                name="log_lags",
                shape=(len(self.lags),),
                initializer=lambda shape, dtype: tf.constant(np.log(self.lags), dtype),
            )
        self.built = True

    def _current_lags(self):
        """The lags as a list of tensors, which have a gradient; `None` where they are numbers."""
        if self.log_lags is None:
            return None
        return tf.unstack(tf.exp(self._to_state(self.log_lags)), num=len(self.lags))

    def _model_input(self, y0):
        return tf.concat([y0] * (1 + len(self.lags)), axis=-1)

    def call(
        self, inputs: TensorLike | list[TensorLike], training: bool | None = None
    ) -> tf.Tensor:
        y0, times = _split(self._without_past(inputs))
        past = None
        if self.history == _SAMPLED:
            past = [self._to_state(tensor) for tensor in inputs[1:3]]
            _check_past(y0, *past)
        return self._solve(y0, times, training, past)

    def compute_mask(self, inputs, previous_mask=None):
        return super().compute_mask(self._without_past(inputs), previous_mask)

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(self._without_past(input_shape))

    def _input_shape(self):
        shapes = super()._input_shape()
        sampled = self.history == _SAMPLED and shapes
        return self._without_past(shapes) if sampled else shapes

    def served_inputs(self):
        if self.history != _SAMPLED:
            return super().served_inputs()
        (y0,) = super().served_inputs()
        times = keras.InputSpec(self.state_dtype, (None, None), name="past_times")
        past = keras.InputSpec(self.state_dtype, (None, None, *y0.shape[1:]), name="past")
        return [[y0, times, past]]

    def _without_past(self, inputs):
        """What `NeuralODE` takes: the inputs, or their shapes, without a sampled past."""
        if self.history != _SAMPLED:
            return inputs
        if not isinstance(inputs, (list, tuple)) or len(inputs) not in (3, 4):
            raise ValueError(
                "with history='sampled' the input must be [y0, past_times, past] or "
                f"[y0, past_times, past, times]. Received: {inputs!r}"
            )
        return inputs[0] if len(inputs) == 3 else [inputs[0], inputs[3]]

    def _problem(self, training, y0, t_span, past=None):
        lags = self._current_lags()
        p = {"model": self._pure.parameters(), "y0": y0, "lags": lags, "past": past}
        lags = lags or self.lags
        field = self._training_field if training else self._inference_field
        return DDEProblem(field, y0, self._past, t_span, p, lags=lags)

    def _past(self, t, p):
        if self.history is None:
            return p["y0"]
        if self.history == _SAMPLED:
            return _between(t, *p["past"])
        return tf.cast(self.history(t, p["y0"]), self.state_dtype)

    def _training_field(self, t, y, h, p):
        return self._pure.training(t, self._joined(t, y, h, p), p["model"])

    def _inference_field(self, t, y, h, p):
        return self._pure.inference(t, self._joined(t, y, h, p), p["model"])

    def _joined(self, t, y, h, p):
        direction = 1.0 if self.t_span[1] >= self.t_span[0] else -1.0
        lags = self.lags if p["lags"] is None else p["lags"]
        return tf.concat([y, *(h(t - direction * lag) for lag in lags)], axis=-1)

    def get_config(self) -> dict[str, Any]:
        history = self.history
        if callable(history):
            history = keras.saving.serialize_keras_object(history)
        return {
            **super().get_config(),
            "lags": list(self.lags),
            "history": history,
            "trainable_lags": self.trainable_lags,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if config.get("history") not in (None, _SAMPLED):
            config["history"] = keras.saving.deserialize_keras_object(config["history"])
        return super().from_config(config)


def _check_past(y0, times, past):
    """Refuses a sampled past that does not fit the state or its times."""
    batch, rank = y0.shape[:1], times.shape.rank
    samples = times.shape[-1] if rank else None
    fits = past.shape.is_compatible_with([*batch, samples, *y0.shape[1:]])
    if rank not in (1, 2) or not fits or not times.shape[:-1].is_compatible_with(batch[: rank - 1]):
        raise ValueError(
            "`past_times` must be (n,) or (batch, n) and `past` (batch, n, *state), for the batch "
            f"and state of `y0`, {y0.shape}. Received shapes: {times.shape} and {past.shape}"
        )
    known = tf.get_static_value(times)
    if known is not None and not np.all(np.diff(known, axis=-1) > 0):
        raise ValueError(f"`past_times` must be finite and ascending. Received: {known}")


def _positive_numbers(lags):
    values = check_array("lags", lags).astype(float)
    if values.ndim != 1 or values.size == 0 or not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError(f"`lags` must be a list of positive numbers. Received: {lags!r}")
    if len(set(values.tolist())) < values.size:
        raise ValueError(f"`lags` must differ. Received: {lags!r}")
    return values.tolist()


def _between(t, times, samples):
    """Samples at `t`, `(batch,)`, on straight lines between `times`; constant beyond them."""
    times = times + tf.zeros_like(t)[:, None]
    count = times.shape[1] or tf.shape(times)[1]
    right = tf.reduce_sum(tf.cast(times <= t[:, None], tf.int32), axis=1)
    right = tf.clip_by_value(right, 1, tf.maximum(count - 1, 1))
    left, right = right - 1, tf.minimum(right, count - 1)
    start, stop = (tf.gather(times, i, batch_dims=1) for i in (left, right))
    share = (tf.clip_by_value(t, start, stop) - start) / tf.where(stop > start, stop - start, 1.0)
    share = tf.reshape(share, [-1] + [1] * (samples.shape.rank - 2))
    first, second = (tf.gather(samples, i, batch_dims=1) for i in (left, right))
    return first + share * (second - first)
