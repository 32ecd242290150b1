"""`NeuralODEMM`: a layer whose output solves M y' = [model(y); constraints(y)]."""

from collections.abc import Callable
from typing import Any, Unpack

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_neuralde.checks import check_array
from keras_neuralde.layers.base import PureModel
from keras_neuralde.layers.neural_ode import NeuralODE, _state_shape
from keras_neuralde.options import LayerOptions, SolverLike
from keras_neuralde.problems import ODEProblem
from keras_neuralde.typing import TimeSpan


@keras.saving.register_keras_serializable(package="keras_neuralde")
class NeuralODEMM(NeuralODE):
    """The solution of M y' = [model(y); constraints(y)], y(t0) = input.

    The rows of the network come first and the constraints last. A singular M turns the rows
    without a time derivative into algebraic equations, which hold at every time whatever the
    weights: conservation laws, for example. The input must satisfy them.

    Args:
        model: the first rows: a Keras layer or model that maps `(batch, n)` to
            `(batch, n - constraints)`.
        constraints: the last rows: a function or Keras layer of `y` that returns `(batch, m)`.
        t_span: the numbers `(t0, t1)`.
        mass_matrix: M, `(n, n)`: numbers.
        solver: an implicit solver.
        saveat: `None` for the state at `t1`, or times within `t_span`.
        time_dependent: call `model([t, y])`, with `t` of shape `(batch, 1)`.
        **keywords: as in `NeuralODE`.

    Call arguments:
        inputs: as in `NeuralODE`.
        training: as in every Keras layer.

    Returns:
        As `NeuralODE`. Rows whose start violates the constraints are NaN; an eager call
        raises.

    Raises:
        TypeError: for constraints that cannot be called.
        ValueError: for a mass matrix of another shape, or rows that do not add up.

    Example:

    >>> import keras, keras_neuralde as nde
    >>> rates = keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])
    >>> layer = nde.NeuralODEMM(
    ...     rates, lambda y: keras.ops.sum(y, -1, keepdims=True) - 1.0, (0.0, 1.0),
    ...     [[1, 0, 0], [0, 1, 0], [0, 0, 0]],
    ... )
    >>> y = layer(keras.ops.convert_to_tensor([[1.0, 0.0, 0.0]]))
    >>> abs(float(keras.ops.sum(y)) - 1.0) < 1e-5
    True
    """

    def __init__(
        self,
        model: keras.layers.Layer,
        constraints: Callable[[tf.Tensor], tf.Tensor],
        t_span: TimeSpan,
        mass_matrix: npt.ArrayLike,
        solver: SolverLike = "rodas5p",
        *,
        saveat: npt.ArrayLike | None = None,
        time_dependent: bool = False,
        **keywords: Unpack[LayerOptions],
    ) -> None:
        super().__init__(
            model, t_span, solver, saveat=saveat, time_dependent=time_dependent, **keywords
        )
        if not self._solver.implicit:
            raise ValueError(
                f"a mass matrix needs an implicit solver such as 'rodas5p'. Received: {solver!r}"
            )
        if not callable(constraints):
            raise TypeError(
                "`constraints` must be a function or Keras layer of y. "
                f"Received: {constraints!r} of type {type(constraints).__name__}"
            )
        mass = check_array("mass_matrix", mass_matrix).astype(float)
        if mass.ndim != 2 or mass.shape[0] != mass.shape[1] or not np.all(np.isfinite(mass)):
            raise ValueError(
                f"`mass_matrix` must be a finite square matrix. Received shape: {mass.shape}"
            )
        self.constraints = constraints
        self.mass_matrix = mass.tolist()
        self._constraint_layer = None
        if isinstance(constraints, keras.layers.Layer):
            self._constraint_layer = PureModel(constraints, self.state_dtype)

    def build(self, input_shape):
        state_shape = _state_shape(input_shape)
        n = len(self.mass_matrix)
        if tuple(state_shape[1:]) != (n,):
            raise ValueError(
                f"the state must be a vector of {n} components, as `mass_matrix` says. "
                f"Received shape: {tuple(state_shape)}"
            )
        specs = [(None, 1), state_shape] if self.time_dependent else [state_shape]
        output = self._build_inner(self.model, *specs)
        if self._constraint_layer is not None:
            rest = self._build_inner(self.constraints, state_shape)
        else:
            spec = tf.TensorSpec(state_shape, self.state_dtype)
            traced = tf.function(self.constraints, autograph=False).get_concrete_function(spec)
            rest = traced.structured_outputs
        rows = [tuple(part.shape[1:]) for part in (output, rest)]
        if any(len(shape) != 1 for shape in rows) or rows[0][0] + rows[1][0] != n:
            raise ValueError(
                f"the rows of `model` and `constraints` must add up to the {n} of `mass_matrix`. "
                f"Received shapes: {output.shape} and {rest.shape}"
            )
        self.built = True

    def _problem(self, training, y0, t_span):
        field = self._training_field if training else self._inference_field
        p = {"model": self._pure.parameters(), "constraints": None}
        if self._constraint_layer is not None:
            p["constraints"] = self._constraint_layer.parameters()
        mass = np.asarray(self.mass_matrix, self.state_dtype)
        return ODEProblem(field, y0, t_span, p, mass_matrix=mass)

    def _training_field(self, t, y, p):
        return self._field(self._pure.training, t, y, p)

    def _inference_field(self, t, y, p):
        return self._field(self._pure.inference, t, y, p)

    def _field(self, network, t, y, p):
        if self._constraint_layer is None:
            rest = tf.cast(self.constraints(y), y.dtype)
        else:
            rest = self._constraint_layer.inference(t, y, p["constraints"])
        return tf.concat([network(t, y, p["model"]), rest], axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "constraints": keras.saving.serialize_keras_object(self.constraints),
            "mass_matrix": self.mass_matrix,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("model", "constraints"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)
