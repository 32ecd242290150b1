"""`NeuralJumpSDE`: a stochastic equation with neural drift, diffusion, jumps and rate."""

import numbers
from typing import Any, Unpack

import keras
import numpy.typing as npt
import tensorflow as tf

from keras_neuralde.checks import check_flag, check_not_negative
from keras_neuralde.jumps import ConstantRateJump, JumpProblem, VariableRateJump
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
    models = ("drift", "diffusion", "jump", "rate")

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
        modelled = isinstance(rate, keras.layers.Layer)
        if not modelled and (isinstance(rate, bool) or not isinstance(rate, numbers.Real)):
            raise TypeError(
                f"`rate` must be a number, or a Keras layer or model. Received: {rate!r}"
            )
        if modelled and rate_bound is None:
            raise ValueError(
                "a model as `rate` needs `rate_bound`, a number that it does not exceed. "
                "Received: rate_bound=None"
            )
        if rate_bound is not None:
            rate_bound = _rate("rate_bound", rate_bound)
        self.jump, self._jump = jump, self._pure("jump", jump)
        self.rate = rate if modelled else _rate("rate", rate)
        self._rate = self._pure("rate", rate) if modelled else None
        self.rate_bound = rate_bound
        self.log_likelihood = check_flag("log_likelihood", log_likelihood)

    def _shape_of(self, name, state_shape):
        return (1,) if name == "rate" else super()._shape_of(name, state_shape)

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
        if not self.log_likelihood:
            # A tape that watches them finds the sentence of `_outputs`.
            p["rate"] = tf.nest.map_structure(tf.stop_gradient, p["rate"])
        jumps = [VariableRateJump(number, affect, bound=self.rate_bound)]
        return JumpProblem(problem.remake(p=p), jumps)

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
        # `rate` is among the inner models where it is one.
        return {
            "rate": self.rate,
            **super().get_config(),
            "rate_bound": self.rate_bound,
            "log_likelihood": self.log_likelihood,
        }


def _rate(name, value):
    """A number of jumps per unit of time."""
    number = check_not_negative(name, value)
    if number == float("inf"):
        raise ValueError(f"`{name}` must be finite. Received: {value!r}")
    return number
