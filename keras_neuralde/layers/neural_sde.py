"""Layers whose output is the solution of a stochastic equation with neural drift and diffusion."""

import random
from typing import Any, Unpack

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_neuralde import solvers, values
from keras_neuralde.checks import check_flag, check_whole
from keras_neuralde.equations import TrajectorySeeds
from keras_neuralde.layers import request
from keras_neuralde.layers.base import DifferentialEquationLayer, PureModel
from keras_neuralde.layers.neural_ode import _cover, _is_pair, _split, _state_shape
from keras_neuralde.options import LayerOptions, SolverLike
from keras_neuralde.problems import SDEProblem
from keras_neuralde.solve import solve
from keras_neuralde.typing import TensorLike, TimeSpan


class StochasticLayer(DifferentialEquationLayer):
    """Base of `NeuralDSDE` and `NeuralSDE`: two inner models, a seed, and many trajectories."""

    noise = "diagonal"
    #: The inner models, by the names of their arguments.
    models: tuple = ("drift", "diffusion")

    def __init__(
        self,
        drift: keras.layers.Layer,
        diffusion: keras.layers.Layer,
        t_span: TimeSpan,
        solver: SolverLike = "sosri",
        *,
        trajectories: int | None = None,
        seed: int | None = None,
        saveat: npt.ArrayLike | None = None,
        time_dependent: bool = False,
        **keywords: Unpack[LayerOptions],
    ) -> None:
        super().__init__(t_span, solver, saveat=saveat, **keywords)
        if not self._solver.stochastic or self.noise not in self._solver.noises:
            fitting = [
                name for name, one in solvers.stochastic().items() if self.noise in one.noises
            ]
            raise ValueError(
                f"{type(self).__name__} needs a solver for {self.noise} noise, one of {fitting}. "
                f"Received: {solver!r}"
            )
        if trajectories is not None:
            trajectories = check_whole("trajectories", trajectories)
        self.trajectories = trajectories
        self.time_dependent = check_flag("time_dependent", time_dependent)
        self.seed = _seed(seed)
        self.seed_generator = keras.random.SeedGenerator(self.seed)
        self.drift, self._drift = drift, self._pure("drift", drift)
        self.diffusion, self._diffusion = diffusion, self._pure("diffusion", diffusion)

    def _pure(self, name, model):
        """An inner model as a function of its weights."""
        if not isinstance(model, keras.layers.Layer):
            raise TypeError(
                f"`{name}` must be a Keras layer or model; wrap a function in a layer of your own. "
                f"Received: {model!r} of type {type(model).__name__}"
            )
        return PureModel(model, self.state_dtype, self.time_dependent)

    def _inner(self):
        """The inner models that there are, by name, and as functions of their weights."""
        pairs = {name: (getattr(self, name), getattr(self, f"_{name}")) for name in self.models}
        return {name: pair for name, pair in pairs.items() if pair[1] is not None}

    def _shape_of(self, name, state_shape):
        """The shape that an inner model must return, without the batch axis."""
        return tuple(state_shape[1:])

    def build(self, input_shape):
        state_shape = _state_shape(input_shape)
        specs = [(None, 1), state_shape] if self.time_dependent else [state_shape]
        for name, (model, _) in self._inner().items():
            shape = self._shape_of(name, state_shape)
            output = self._build_inner(model, *specs)
            if not hasattr(output, "shape") or tuple(output.shape[1:]) != shape:
                raise ValueError(
                    f"`{name}` must return the shape {(None, *shape)} for an input of shape "
                    f"{tuple(state_shape)}. Received: {getattr(output, 'shape', output)}"
                )
        self.built = True

    def call(
        self,
        inputs: TensorLike | list[TensorLike],
        training: bool | None = None,
        seed: TensorLike | None = None,
    ) -> tf.Tensor | list[tf.Tensor]:
        y0, times = _split(inputs)
        y0 = start = self._to_state(y0)
        t_span, saveat = self.t_span, self.saveat
        served = request.of(self)
        if served is not None and served.times is not None:
            times = served.times
        n = self.trajectories
        if n is not None:
            y0 = tf.repeat(y0, n, axis=0)
        if times is not None:
            times = saveat = self._to_state(times)
            if n is not None and times.shape.rank == 2:
                saveat = tf.repeat(times, n, axis=0)
            t_span = _cover(self.t_span, saveat)
        noise = self._path_seed(training, seed)
        if served is not None:
            own = _words(self.seed)
            noise = TrajectorySeeds(*request.seeds(served, self, tf.shape(start)[0], own, n or 1))
        else:
            noise = _of_this_replica(noise, tf.shape(y0)[0])
        problem = self._problem(y0, t_span, training)
        solution = solve(
            problem,
            self._solver,
            saveat=saveat,
            batch_ndims=1,
            seed=noise,
            **self.solve_keywords,
        )
        if training:
            t = tf.fill([tf.shape(start)[0]], tf.constant(self.t_span[0], start.dtype))
            self._advance_state(t, start)
        return self._outputs(solution, saveat, times)

    def _advance_state(self, t, y):
        """Updates what the inner models change in training, once a call."""
        for _, pure in self._inner().values():
            pure.advance_state(t, y)

    def _outputs(self, solution, saveat, times):
        """What a call returns."""
        return tf.cast(self._arrange(solution.y, saveat, times), self.compute_dtype)

    def _problem(self, y0, t_span, training):
        drift, diffusion = self._drift, self._diffusion
        f, g = ((model.training if training else model.inference) for model in (drift, diffusion))
        p = {"drift": drift.parameters(), "diffusion": diffusion.parameters()}
        return SDEProblem(
            lambda t, y, p: f(t, y, p["drift"]),
            lambda t, y, p: g(t, y, p["diffusion"]),
            y0,
            t_span,
            p,
            noise=self.noise,
            noise_dim=getattr(self, "noise_dim", None),
            interpretation=self._interpretation,
        )

    @property
    def _interpretation(self):
        """The integral that the solver computes; Itô's where it computes both."""
        return "ito" if "ito" in self._solver.interpretations else "stratonovich"

    def _path_seed(self, training, seed):
        """A fresh seed in training, always the same one otherwise, unless the call gives one."""
        if seed is not None:
            return _call_seed(seed)
        if training:
            return tf.bitcast(tf.cast(self.seed_generator.next(), tf.uint32), tf.int32)
        return self.seed

    def _arrange(self, y, saveat, times):
        """`(num_times, rows, *state)` → `(batch, [trajectories], num_times, *state)`."""
        if saveat is not None and times is None and not isinstance(saveat, list):
            y = y[:, None]
        elif saveat is not None:
            y = self._time_major_to_batch_major(y)
        if times is not None:
            present = tf.math.is_finite(saveat)
            present = tf.reshape(present, [-1, tf.shape(saveat)[-1]] + [1] * (y.shape.rank - 2))
            y = tf.where(present, y, tf.zeros_like(y))
        if self.trajectories is None:
            return y
        static = [size or tf.shape(y)[axis + 1] for axis, size in enumerate(y.shape[1:])]
        return tf.reshape(y, [-1, self.trajectories, *static])

    def compute_mask(self, inputs, previous_mask=None):
        _, times = _split(inputs)
        if times is None or isinstance(times, keras.KerasTensor) or len(times.shape) == 1:
            return None
        mask = tf.math.is_finite(times)
        if self.trajectories is None:
            return mask
        return tf.repeat(mask[:, None], self.trajectories, axis=1)

    def compute_output_shape(self, input_shape):
        state_shape = _state_shape(input_shape)
        batch = (input_shape[0] if _is_pair(input_shape) else input_shape)[0]
        leading = (batch,) if self.trajectories is None else (batch, self.trajectories)
        if _is_pair(input_shape):
            return (*leading, input_shape[1][-1], *state_shape[1:])
        if self.saveat is None:
            return (*leading, *state_shape[1:])
        num_times = len(self.saveat) if isinstance(self.saveat, list) else 1
        return (*leading, num_times, *state_shape[1:])

    def get_config(self) -> dict[str, Any]:
        inner = self._inner().items()
        return {
            **super().get_config(),
            **{name: keras.saving.serialize_keras_object(model) for name, (model, _) in inner},
            "trajectories": self.trajectories,
            "seed": self.seed,
            "time_dependent": self.time_dependent,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in cls.models:
            if isinstance(config[name], dict):
                config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_neuralde")
class NeuralDSDE(StochasticLayer):
    """The solution of dy = drift(y) dt + diffusion(y) dW with a Brownian motion per component.

    Gradients are the exact ones of the computed paths, with respect to the input and all weights;
    the noise is drawn again on the way back instead of being stored.

    Args:
        drift: any Keras layer or model that returns the shape of its input.
        diffusion: another one, which returns that shape too.
        t_span: the numbers `(t0, t1)`.
        solver: a solver name or object for stochastic equations. The integral is Itô's, unless the
            solver computes only Stratonovich's.
        trajectories: how many paths to draw from each input; `None` for one, without an axis.
        seed: an integer; `None` draws one when the layer is made, the same after the same
            `keras.utils.set_random_seed`. It is part of the config.
        saveat: `None` for the state at `t1`, or times within `t_span`.
        time_dependent: call the models with `[t, y]`, `t` of shape `(batch, 1)`.
        **keywords: keywords of `keras_neuralde.solve` and of `keras.layers.Layer`.

    Call arguments:
        inputs: the initial states `(batch, *state)`, or `[y0, times]` as in `NeuralODE`.
        training: draws a fresh path at every call; otherwise every call has the same paths, those
            of `seed`.
        seed: a seed for this call, an integer tensor of shape () or (2,).

    Returns:
        `(batch, *state)`, or `(batch, num_times, *state)` with save times; with `trajectories=n`
        `(batch, n, *state)` and `(batch, n, num_times, *state)`.

    Raises:
        TypeError: for keywords that neither `solve` nor `Layer` knows, or models of another type.
        ValueError: for bad times, or a model whose output has another shape.

    Example:

    >>> import keras, keras_neuralde as nde
    >>> drift = keras.Sequential([keras.layers.Dense(16, "tanh"), keras.layers.Dense(2)])
    >>> layer = nde.NeuralDSDE(
    ...     drift, keras.layers.Dense(2), (0.0, 1.0), "euler_maruyama", dt0=0.1,
    ...     controller="constant", saveat=[0.5, 1.0], trajectories=5, seed=1,
    ... )
    >>> tuple(layer(keras.ops.ones((3, 2))).shape)
    (3, 5, 2, 2)
    """

    noise = "diagonal"


@keras.saving.register_keras_serializable(package="keras_neuralde")
class NeuralSDE(StochasticLayer):
    """The solution of dy = drift(y) dt + diffusion(y) dW with `noise_dim` Brownian motions.

    Args:
        drift: any Keras layer or model that returns the shape of its input.
        diffusion: another one, which returns `(batch, *state, noise_dim)`: a matrix.
        t_span: the numbers `(t0, t1)`.
        noise_dim: the number of Brownian motions.
        solver: a solver name or object for stochastic equations with general noise.
        **keywords: those of `NeuralDSDE`.

    Call arguments and returned shapes are those of `NeuralDSDE`.

    Raises:
        TypeError: as `NeuralDSDE`.
        ValueError: as `NeuralDSDE`.

    Example:

    >>> import keras, keras_neuralde as nde
    >>> diffusion = keras.Sequential([keras.layers.Dense(6), keras.layers.Reshape((2, 3))])
    >>> layer = nde.NeuralSDE(keras.layers.Dense(2), diffusion, (0.0, 1.0), 3, seed=1)
    >>> tuple(layer(keras.ops.ones((4, 2))).shape)
    (4, 2)
    """

    noise = "general"

    def __init__(
        self,
        drift: keras.layers.Layer,
        diffusion: keras.layers.Layer,
        t_span: TimeSpan,
        noise_dim: int,
        solver: SolverLike = "lamba_em",
        *,
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
        self.noise_dim = check_whole("noise_dim", noise_dim)

    def _shape_of(self, name, state_shape):
        shape = super()._shape_of(name, state_shape)
        return (*shape, self.noise_dim) if name == "diffusion" else shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "noise_dim": self.noise_dim}


def _words(seed):
    """An integer seed as two words, as `solve` takes it apart."""
    words = [seed % 2**32, (seed >> 32) % 2**32]
    return tf.constant(np.array(words, np.uint32).view(np.int32))


def _of_this_replica(seed, rows):
    """The noise of a replica's share of a batch: what these rows have on one device.

    Without it all replicas would have the same paths. The shares are taken to be equal; of those
    that are not, some rows share a path.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return seed
    first = tf.cast(context.replica_id_in_sync_group, tf.int32) * rows
    return TrajectorySeeds(seed, first + tf.range(rows))


def _call_seed(seed):
    """The seed of a call as int32."""
    given = tf.convert_to_tensor(seed) if values.is_tensor(seed) else np.asarray(seed)
    if not tf.as_dtype(given.dtype).is_integer:
        raise TypeError(
            f"`seed` of a call must be an integer or a tensor of integers. Received: {seed!r}"
        )
    if isinstance(seed, int) and not -(2**31) <= seed < 2**31:
        raise ValueError(f"`seed` of a call must fit into 32 bits. Received: {seed!r}")
    return tf.cast(given, tf.int32)


def _seed(seed):
    if seed is None:
        # Where Keras draws its seeds, so that keras.utils.set_random_seed makes them the same.
        return random.randint(1, 10**9)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"`seed` must be an integer or None. Received: {seed!r}")
    return int(seed)
