"""Limited-memory BFGS as a Keras optimizer."""

from typing import Any

import keras
import tensorflow as tf

from keras_neuralde.checks import check_whole
from keras_neuralde.optimizers.line_search import Point
from keras_neuralde.optimizers.quasi_newton import Engine, QuasiNewton, trustworthy


@keras.saving.register_keras_serializable(package="keras_neuralde")
class LBFGS(QuasiNewton):
    """L-BFGS: the quasi-Newton method of choice once a first-order optimizer has found the valley.

    One train step is one accepted iteration (Liu & Nocedal, "On the limited memory BFGS method for
    large scale optimization", Mathematical Programming 45, 1989; Nocedal & Wright, "Numerical
    Optimization", Algorithm 7.4). Give it the whole data set in one batch and, if you can, float64.

    Args:
        history_size: how many pairs of steps and gradient changes it remembers.
        initial_step_norm: the largest component of the very first step.
        engine: `"native"`, or `"tfp"` to delegate to `tfp.optimizer.lbfgs_minimize`.
        gradient_tolerance: converged when no component of the gradient is larger.
        loss_tolerance: converged when an iteration changes the loss relatively less.
        max_evaluations: evaluations of the loss in one line search.
        freeze_steps: hold the step sequence of every adaptive solve in the loss during a line
            search, and choose it anew at each accepted point. The loss is then smooth along the
            search, whatever the tolerance; an iteration costs one more evaluation and one more
            solve, and each solve may take `max_record` steps.
        name: name of the optimizer.
        **keywords: options of `keras.optimizers.Optimizer`; those that change gradients, such as
            `clipnorm`, are refused.

    Raises:
        ValueError: for arguments out of range.

    The loss may depend on the data and the model's own variables alone: on one batch it is not
    evaluated again at a point where it is known. A weight that a callback changes during training
    belongs into a variable of a layer (`add_weight(trainable=False)`).

    Example:

    >>> import keras, numpy as np, keras_neuralde as nde
    >>> x = keras.Input((1,))
    >>> model = nde.Model(x, keras.layers.Dense(1)(x))
    >>> model.compile(nde.optimizers.LBFGS(), "mse")
    >>> data = np.linspace(0.0, 1.0, 8)[:, None]
    >>> history = model.fit(data, 2 * data + 1, epochs=30, verbose=0)
    >>> min(history.history["loss"]) < 1e-8
    True
    """

    def __init__(
        self,
        history_size: int = 10,
        initial_step_norm: float = 0.01,
        engine: Engine = "native",
        gradient_tolerance: float = 1e-8,
        loss_tolerance: float = 0.0,
        max_evaluations: int = 25,
        freeze_steps: bool = False,
        name: str = "lbfgs",
        **keywords: Any,
    ) -> None:
        super().__init__(
            name, initial_step_norm, engine, gradient_tolerance, loss_tolerance, max_evaluations,
            freeze_steps, **keywords,
        )  # fmt: skip
        self.history_size = check_whole("history_size", history_size)

    def build(self, variables):
        """Makes the state: the last point and the history of steps and gradient changes."""
        if self.built:
            return
        super().build(variables)
        self._steps = self._new("steps", (self.history_size, self._size))
        self._changes = self._new("changes", (self.history_size, self._size))
        self._pairs = self._new("pairs", (), "int32")
        self._scale = self._new("scale", ())

    def memory(self):
        """Steps, gradient changes and how many of them count."""
        return tuple(map(tf.convert_to_tensor, (self._steps, self._changes, self._pairs)))

    def forget(self):
        """Drops the history."""
        self._pairs.assign(0)

    def remember(self, base, step, change, fresh, found):
        """Adds a pair to the history, unless its curvature is too small to trust."""
        steps, changes, pairs = self.memory()
        pairs = tf.where(fresh, 0, pairs)
        trusted = found & trustworthy(step, change)

        def push(history, value):
            return tf.where(trusted, tf.concat([history[1:], value[None]], 0), history)

        self._steps.assign(push(steps, step))
        self._changes.assign(push(changes, change))
        self._pairs.assign(tf.where(trusted, tf.minimum(pairs + 1, self.history_size), pairs))

    def direction(self, gradient, memory, fresh):
        """-H g by the two-loop recursion; the newest pair is the last row."""
        steps, changes, pairs = memory
        pairs = tf.where(fresh, 0, pairs)
        age = tf.range(self.history_size, 0, -1)
        valid = age <= pairs
        curvature = tf.reduce_sum(steps * changes, axis=1)
        one = tf.ones_like(curvature)
        rho = tf.where(valid, one / tf.where(valid, curvature, one), tf.zeros_like(one))
        q, alphas = gradient, []
        for i in reversed(range(self.history_size)):
            alpha = rho[i] * tf.reduce_sum(steps[i] * q)
            q -= alpha * changes[i]
            alphas.append(alpha)
        squared = tf.reduce_sum(tf.square(changes[-1]))
        learned = tf.math.divide_no_nan(curvature[-1], squared)
        q *= tf.where(pairs > 0, learned, self.first_scale(gradient))
        for i, alpha in zip(range(self.history_size), reversed(alphas), strict=True):
            beta = rho[i] * tf.reduce_sum(changes[i] * q)
            q += (alpha - beta) * steps[i]
        return -q

    def tfp_step(self, evaluate, base, known, go):
        """One iteration of TFP's minimizer, in coordinates that scale its first step."""
        from tensorflow_probability.python.optimizer import lbfgs

        steps, changes, pairs = self.memory()
        first = tf.equal(pairs, 0)
        fresh_scale = tf.sqrt(self.first_scale(base.gradient))
        scale = tf.where(first, fresh_scale, tf.convert_to_tensor(self._scale))

        def scaled(z):
            loss, gradient = evaluate(z * scale)
            return loss, gradient * scale

        previous = lbfgs.LBfgsOptimizerResults(
            tf.constant(False), tf.constant(False), pairs, tf.constant(0), base.x / scale,
            base.loss, base.gradient * scale, steps, changes,
        )  # fmt: skip

        def search():
            return lbfgs.minimize(
                scaled,
                initial_position=None,
                previous_optimizer_results=previous,
                num_correction_pairs=self.history_size,
                tolerance=0.0,
                max_iterations=previous.num_iterations + 1,
                max_line_search_iterations=self.max_evaluations,
            )

        results = tf.cond(go, search, lambda: previous)
        value = results.objective_value
        lower = tf.math.is_finite(value) & (value < base.loss) & go
        point = Point(
            tf.where(lower, results.position * scale, base.x),
            tf.where(lower, value, base.loss),
            tf.where(lower, results.objective_gradient / scale, base.gradient),
        )
        moved = tf.reduce_any(tf.not_equal(point.x, base.x))
        self._steps.assign(results.position_deltas)
        self._changes.assign(results.gradient_deltas)
        # A failed search starts again from a fresh memory; failing then too, it has stalled.
        self._pairs.assign(tf.where(go & ~moved, 0, results.num_iterations))
        self._scale.assign(scale)
        progress = self.progress_of_tfp(base, point, go, moved, first)
        return point, progress, results.num_objective_evaluations

    def get_config(self):
        return {**super().get_config(), "history_size": self.history_size}
