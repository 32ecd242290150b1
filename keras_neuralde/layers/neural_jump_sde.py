"""`NeuralJumpSDE`: a stochastic equation with neural drift, diffusion, jumps and rate."""

from typing import Any, Unpack

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_neuralde.jumps import ConstantRateJump, JumpProblem, VariableRateJump
from keras_neuralde.layers.base import PureModel
from keras_neuralde.layers.neural_ode import _state_shape
from keras_neuralde.layers.neural_sde import StochasticLayer
from keras_neuralde.options import LayerOptions, SolverLike
from keras_neuralde.refusals import refuse_gradients
from keras_neuralde.typing import TimeSpan

_REFUSED = "rate (set rate.trainable = False, or use log_likelihood=True and nde.expectation)"


@keras.saving.register_keras_serializable(package="keras_neuralde")
class NeuralJumpSDE(StochasticLayer):
    """The solution of dy = drift(y) dt + diffusion(y) dW, where at random times y becomes jump(y).

    Each component has a Brownian motion of its own, each path its own jumps. Gradients reach drift,
    diffusion and jump along the path, whose jumps stay where they are. How means depend on the rate
    is the business of `log_likelihood=True` and `keras_neuralde.expectation`; without it, a tape
    that watches trainable weights of the rate finds a sentence.

    Args:
        drift: any Keras layer or model that returns the shape of its input.
        diffusion: another one, which returns that shape too.
        jump: another one: the state after a jump.
        rate: jumps per unit of time: a number, or a model that returns `(batch, 1)`, positive.
        t_span: the numbers `(t0, t1)`.
        solver: a solver name or object for stochastic equations with diagonal noise.
        rate_bound: where `rate` is a model: a number that it does not exceed. Candidates come at
            this rate, and a path whose rate is larger fails.
        log_likelihood: whether to return `[y, log_likelihood]`, the latter without state axes.
        trajectories: how many paths to draw from each input; `None` for one, without an axis.
        seed: an integer; `None` draws one when the layer is made. It is part of the config.
        saveat: `None` for the state at `t1`, or times within `t_span`.
        time_dependent: call the models with `[t, y]`, `t` of shape `(batch, 1)`.
        **keywords: keywords of `keras_neuralde.solve` and of `keras.layers.Layer`.

    Call arguments and returned shapes are those of `NeuralDSDE`.

    Raises:
        TypeError: for models of another type.
        ValueError: for a model whose output has another shape, a negative rate, or a model as rate
            without a bound.

    Example:

    >>> import keras, keras_neuralde as nde
    >>> dense = keras.layers.Dense
    >>> layer = nde.NeuralJumpSDE(
    ...     dense(2), dense(2), dense(2), 2.0, (0.0, 1.0), "euler_maruyama", dt0=0.1,
    ...     controller="constant", saveat=[0.5, 1.0], trajectories=5, seed=1,
    ... )
    >>> tuple(layer(keras.ops.ones((3, 2))).shape)
    (3, 5, 2, 2)
    """

    noise = "diagonal"

    def __init__(
        self,
        drift: keras.layers.Layer,
        diffusion: keras.layers.Layer,
        jump: keras.layers.Layer,
        rate: float | keras.layers.Layer,
        t_span: TimeSpan,
        solver: SolverLike = "sosri",
        *,
        rate_bound: float | None = None,
        log_likelihood: bool = False,
        trajectories: int | None = None,
        seed: int | None = None,
        saveat: npt.ArrayLike | None = None,
        time_dependent: bool = False,
        **keywords: Unpack[LayerOptions],
    ) -> None:
        super().__init__(
            drift, diffusion, t_span, solver, trajectories=trajectories, seed=seed, saveat=saveat,
            time_dependent=time_dependent, **keywords,
        )  # fmt: skip
        if not isinstance(jump, keras.layers.Layer):
            raise TypeError(f"`jump` must be a Keras layer or model. Received: {jump!r}")
        modelled = isinstance(rate, keras.layers.Layer)
        if not modelled and (isinstance(rate, bool) or not isinstance(rate, (int, float))):
            raise TypeError(
                f"`rate` must be a number, or a Keras layer or model. Received: {rate!r}"
            )
        if modelled and rate_bound is None:
            raise ValueError(
                "a model as `rate` needs `rate_bound`, a number that it does not exceed. "
                "Received: rate_bound=None"
            )
        limit = rate_bound if modelled else rate
        if not (np.isfinite(limit) and limit >= 0):
            name = "rate_bound" if modelled else "rate"
            raise ValueError(f"`{name}` must not be negative or NaN. Received: {limit!r}")
        self.jump, self.rate = jump, rate
        self.rate_bound = None if rate_bound is None else float(rate_bound)
        self.log_likelihood = bool(log_likelihood)
        self._jump = PureModel(jump, self.state_dtype, self.time_dependent)
        self._rate = None
        if modelled:
            self._rate = PureModel(rate, self.state_dtype, self.time_dependent)

    def build(self, input_shape):
        state_shape = _state_shape(input_shape)
        specs = [(None, 1), state_shape] if self.time_dependent else [state_shape]
        expected = [("jump", self.jump, tuple(state_shape[1:]))]
        if self._rate is not None:
            expected.append(("rate", self.rate, (1,)))
        for name, model, shape in expected:
            output = self._build_inner(model, *specs)
            if not hasattr(output, "shape") or tuple(output.shape[1:]) != shape:
                raise ValueError(
                    f"`{name}` must return the shape {(None, *shape)} for an input of shape "
                    f"{tuple(state_shape)}. Received: {getattr(output, 'shape', output)}"
                )
        super().build(input_shape)

    def _problem(self, y0, t_span, training):
        problem = super()._problem(y0, t_span, training)
        mode = "training" if training else "inference"
        jump = getattr(self._jump, mode)
        p = {**problem.p, "jump": self._jump.parameters()}

        def affect(t, y, p):
            return jump(t, y, p["jump"])

        if self._rate is None:
            return JumpProblem(problem.remake(p=p), [ConstantRateJump(self.rate, affect)])
        rate = getattr(self._rate, mode)

        def number(t, y, p):
            return tf.reshape(rate(t, y, p["rate"]), tf.shape(t))

        p["rate"] = self._rate.parameters()
        jumps = [VariableRateJump(number, affect, bound=self.rate_bound)]
        return JumpProblem(problem.remake(p=p), jumps)

    def _advance_state(self, t, y):
        super()._advance_state(t, y)
        for model in (self._jump, self._rate):
            if model is not None:
                model.advance_state(t, y)

    def _outputs(self, solution, saveat, times):
        y = solution.y
        if self._rate is not None and not self.log_likelihood:
            weights = [tf.convert_to_tensor(v) for v in self.rate.trainable_variables]
            y = refuse_gradients(y, {_REFUSED: weights})
        y = tf.cast(self._arrange(y, saveat, times), self.compute_dtype)
        if not self.log_likelihood:
            return y
        likelihood = self._arrange(solution.log_likelihood, saveat, times)
        return [y, tf.cast(likelihood, self.compute_dtype)]

    def compute_output_shape(self, input_shape):
        shape = super().compute_output_shape(input_shape)
        if not self.log_likelihood:
            return shape
        state = len(_state_shape(input_shape)) - 1
        return [shape, shape[: len(shape) - state]]

    def compute_mask(self, inputs, previous_mask=None):
        mask = super().compute_mask(inputs, previous_mask)
        return [mask, mask] if self.log_likelihood else mask

    def get_config(self) -> dict[str, Any]:
        rate = self.rate
        if self._rate is not None:
            rate = keras.saving.serialize_keras_object(rate)
        return {
            **super().get_config(),
            "jump": keras.saving.serialize_keras_object(self.jump),
            "rate": rate,
            "rate_bound": self.rate_bound,
            "log_likelihood": self.log_likelihood,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["jump"] = keras.saving.deserialize_keras_object(config["jump"])
        if isinstance(config["rate"], dict):
            config["rate"] = keras.saving.deserialize_keras_object(config["rate"])
        return super().from_config(config)
