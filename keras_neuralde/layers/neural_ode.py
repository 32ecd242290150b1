"""`NeuralODE`: a layer whose output is the solution of y' = model(y)."""

from typing import Any, Unpack

import keras
import numpy.typing as npt
import tensorflow as tf

from keras_neuralde.checks import check_flag
from keras_neuralde.layers import request
from keras_neuralde.layers.base import DifferentialEquationLayer, PureModel, _is_pair, _state_shape
from keras_neuralde.options import LayerOptions, SolverLike
from keras_neuralde.problems import ODEProblem
from keras_neuralde.solve import solve
from keras_neuralde.typing import TensorLike, TimeSpan


@keras.saving.register_keras_serializable(package="keras_neuralde")
class NeuralODE(DifferentialEquationLayer):
    """The solution of the neural ordinary differential equation y' = model(y), y(t0) = input.

    The gradient is the exact one of the computed solution, with respect to the input, the times
    and every weight of `model` (Chen et al., "Neural Ordinary Differential Equations", 2018, with
    the discrete adjoint in place of the continuous one).

    Args:
        model: the field: any Keras layer or model that returns the shape of its input. A layer
            with named trainable scalars and sub-models makes a universal differential equation.
        t_span: the numbers `(t0, t1)`; integration starts at `t0`, `t1 < t0` runs backwards.
        solver: a solver name or object.
        saveat: `None` for the state at `t1`, or times within `t_span`.
        time_dependent: call `model([t, y])`, with `t` of shape `(batch, 1)`.
        **keywords: keywords of `keras_neuralde.solve` (`rtol`, `atol`, `dt0`, `max_steps`,
            `controller`, `checkpoints`, ...) and of `keras.layers.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: the initial states `(batch, *state)`, or `[y0, times]` with times known only now:
            `(n,)` for all rows, or `(batch, n)` padded with NaN at the end. They override `saveat`
            and may lie beyond `t1`.
        training: as in every Keras layer; dropout masks stay the same during one solve.

    Returns:
        `(batch, *state)` for `saveat=None`, else `(batch, num_times, *state)`. Padded entries are
        zero and off in the Keras mask. Rows whose solve failed are NaN.

    Raises:
        TypeError: for keywords that neither `solve` nor `Layer` knows.
        ValueError: for bad times, or a model whose output shape differs from its input's.

    Example:

    >>> import keras, keras_neuralde as nde
    >>> field = keras.Sequential([keras.layers.Dense(16, "tanh"), keras.layers.Dense(2)])
    >>> layer = nde.NeuralODE(field, (0.0, 1.0), saveat=[0.5, 1.0])
    >>> tuple(layer(keras.ops.ones((3, 2))).shape)
    (3, 2, 2)
    """

    def __init__(
        self,
        model: keras.layers.Layer,
        t_span: TimeSpan,
        solver: SolverLike = "tsit5",
        *,
        saveat: npt.ArrayLike | None = None,
        time_dependent: bool = False,
        **keywords: Unpack[LayerOptions],
    ) -> None:
        super().__init__(t_span, solver, saveat=saveat, **keywords)
        if not isinstance(model, keras.layers.Layer):
            raise TypeError(
                "`model` must be a Keras layer or model; wrap a function in a layer of your own. "
                f"Received: {model!r} of type {type(model).__name__}"
            )
        self.model = model
        self.time_dependent = check_flag("time_dependent", time_dependent)
        self._pure = PureModel(model, self.state_dtype, self.time_dependent)

    def build(self, input_shape):
        state_shape = _state_shape(input_shape)
        specs = [(None, 1), state_shape] if self.time_dependent else [state_shape]
        output = self._build_inner(self.model, *specs)
        if not hasattr(output, "shape") or tuple(output.shape[1:]) != tuple(state_shape[1:]):
            raise ValueError(
                f"`model` must return the shape of its input, {tuple(state_shape)}. "
                f"Received: {getattr(output, 'shape', output)}"
            )
        self.built = True

    def call(
        self, inputs: TensorLike | list[TensorLike], training: bool | None = None
    ) -> tf.Tensor:
        return self._solve(*_split(inputs), training)

    def _solve(self, y0, times, training, *more):
        """One call; `more` goes to `_problem`."""
        y0 = self._to_state(y0)
        t_span, saveat = self.t_span, self.saveat
        served = request.of(self)
        if served is not None and served.times is not None:
            times = served.times
        if times is not None:
            times = self._to_state(times)
            t_span, saveat = _cover(self.t_span, times), times
        problem = self._problem(training, y0, t_span, *more)
        # What "auto" stands for depends on the problem.
        solver = "auto" if self.solver == "auto" else self._solver
        solution = solve(problem, solver, saveat=saveat, batch_ndims=1, **self.solve_keywords)
        if training:
            start = tf.fill([tf.shape(y0)[0]], tf.constant(self.t_span[0], y0.dtype))
            self._pure.advance_state(start, self._model_input(y0))
        return tf.cast(self._arrange(solution.y, saveat, times), self.compute_dtype)

    def _model_input(self, y0):
        """What the model is called with at the start."""
        return y0

    def _problem(self, training, y0, t_span):
        """What one call solves."""
        field = self._pure.training if training else self._pure.inference
        return ODEProblem(field, y0, t_span, self._pure.parameters())

    def _arrange(self, y, saveat, times):
        if saveat is None or (times is None and not isinstance(saveat, list)):
            return y if saveat is None else y[:, None]
        y = self._time_major_to_batch_major(y)
        if times is None:
            return y
        present = tf.math.is_finite(times)
        present = tf.reshape(present, [-1, tf.shape(times)[-1]] + [1] * (y.shape.rank - 2))
        return tf.where(present, y, tf.zeros_like(y))

    def compute_mask(self, inputs, previous_mask=None):
        _, times = _split(inputs)
        if times is None or isinstance(times, keras.KerasTensor) or len(times.shape) == 1:
            return None
        return tf.math.is_finite(times)

    def compute_output_shape(self, input_shape):
        state_shape = _state_shape(input_shape)
        batch = (input_shape[0] if _is_pair(input_shape) else input_shape)[0]
        state_shape = (batch, *state_shape[1:])
        if _is_pair(input_shape):
            return (state_shape[0], input_shape[1][-1], *state_shape[1:])
        if self.saveat is None:
            return state_shape
        num_times = len(self.saveat) if isinstance(self.saveat, list) else 1
        return (state_shape[0], num_times, *state_shape[1:])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "model": keras.saving.serialize_keras_object(self.model),
            "time_dependent": self.time_dependent,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["model"] = keras.saving.deserialize_keras_object(config["model"])
        return cls(**config)


def _split(inputs):
    """`y0` and the call's times."""
    if isinstance(inputs, (list, tuple)):
        if len(inputs) != 2:
            raise ValueError(
                f"the input must be `y0` or `[y0, times]`. Received: {len(inputs)} tensors"
            )
        return inputs[0], inputs[1]
    return inputs, None


def _cover(t_span, times):
    """A span from `t0` over all times of the call, or of a row where rows have their own."""
    t0, t1 = (tf.constant(t, times.dtype) for t in t_span)
    present = tf.where(tf.math.is_finite(times), times, t0)
    if t_span[1] >= t_span[0]:
        return t0, tf.maximum(t1, tf.reduce_max(present, axis=-1))
    return t0, tf.minimum(t1, tf.reduce_min(present, axis=-1))
