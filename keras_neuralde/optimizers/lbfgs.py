"""Limited-memory BFGS as a Keras optimizer."""

import keras
import tensorflow as tf

from keras_neuralde.optimizers.closure import ClosureOptimizer, flat_closure, flatten, unflatten
from keras_neuralde.optimizers.line_search import Point, Progress, iterate

_ENGINES = ("native", "tfp")


@keras.saving.register_keras_serializable(package="keras_neuralde")
class LBFGS(ClosureOptimizer):
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
        history_size=10,
        initial_step_norm=0.01,
        engine="native",
        gradient_tolerance=1e-8,
        loss_tolerance=0.0,
        max_evaluations=25,
        name="lbfgs",
        **keywords,
    ):
        super().__init__(name=name, **keywords)
        for key, value, least in (
            ("history_size", history_size, 1),
            ("max_evaluations", max_evaluations, 1),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"`{key}` must be an integer of at least {least}. Received: {value!r}"
                )
        if not initial_step_norm > 0:
            raise ValueError(
                f"`initial_step_norm` must be positive. Received: {initial_step_norm!r}"
            )
        for key, value in (
            ("gradient_tolerance", gradient_tolerance),
            ("loss_tolerance", loss_tolerance),
        ):
            if not value >= 0:
                raise ValueError(f"`{key}` must not be negative. Received: {value!r}")
        if engine not in _ENGINES:
            raise ValueError(f"`engine` must be one of {list(_ENGINES)}. Received: {engine!r}")
        self.history_size = history_size
        self.initial_step_norm = float(initial_step_norm)
        self.engine = engine
        self.gradient_tolerance = float(gradient_tolerance)
        self.loss_tolerance = float(loss_tolerance)
        self.max_evaluations = max_evaluations

    def build(self, variables):
        """Makes the state: the last point and the history of steps and gradient changes."""
        if self.built:
            return
        super().build(variables)
        self._steps = self._new("steps", (self.history_size, self._size))
        self._changes = self._new("changes", (self.history_size, self._size))
        self._pairs = self._new("pairs", (), "int32")
        self._scale = self._new("scale", ())

    def minimize_step(self, closure, variables, deterministic, idle=False):
        """One accepted iteration.

        Args:
            closure: `closure(values) -> (loss, gradients)` for a list of values of `variables`.
            variables: the model's trainable variables.
            deterministic: whether the loss depends on the variables and the data alone.
            idle: a boolean (tensor): evaluate the loss and its gradient, but stay.

        Returns:
            `(loss, values, gradients)` of the accepted point.
        """
        self.build(variables)
        self.check_variables(variables)
        x = flatten([tf.convert_to_tensor(v) for v in variables])
        step = self._tfp_step if self.engine == "tfp" else self._native_step
        point = step(flat_closure(closure, variables), x, deterministic, idle)
        values = unflatten(point.x, variables)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        self.iterations.assign_add(1)
        return point.loss, values, unflatten(point.gradient, variables)

    def _native_step(self, evaluate, x, deterministic, idle):
        base, known = self.known(x, deterministic)
        idle = tf.convert_to_tensor(idle)
        ended = self.ended(deterministic) & ~idle
        steps, changes = tf.convert_to_tensor(self._steps), tf.convert_to_tensor(self._changes)
        pairs = tf.convert_to_tensor(self._pairs)

        def direct(gradient, fresh):
            return self._direction(gradient, steps, changes, tf.where(fresh, 0, pairs))

        search = iterate(
            evaluate,
            direct,
            base,
            known | ended,
            idle=idle | ended,
            max_tries=self.max_evaluations,
            gradient_tolerance=self.gradient_tolerance,
            loss_tolerance=self.loss_tolerance,
        )
        here = search.base
        point = Point(
            *(tf.where(search.found, a, b) for a, b in zip(search.best, here, strict=True))
        )
        pairs = tf.where(search.fresh, 0, pairs)
        self._remember(point.x - here.x, point.gradient - here.gradient, pairs, search.found)
        progress = tf.where(ended | idle, self.status(), search.progress)
        self.keep(point, progress, search.evaluations)
        return point

    def _remember(self, step, change, pairs, found):
        """Adds a pair to the history, unless its curvature is too small to trust."""
        curvature = tf.reduce_sum(step * change)
        norms = tf.norm(step) * tf.norm(change)
        eps = tf.constant(1e-10 if step.dtype == tf.float64 else 1e-6, step.dtype)
        trusted = found & (curvature > eps * norms)

        def push(history, value):
            shifted = tf.concat([tf.convert_to_tensor(history)[1:], value[None]], 0)
            history.assign(tf.where(trusted, shifted, tf.convert_to_tensor(history)))

        push(self._steps, step)
        push(self._changes, change)
        grown = tf.minimum(pairs + 1, self.history_size)
        self._pairs.assign(tf.where(trusted, grown, pairs))

    def _direction(self, gradient, steps, changes, pairs):
        """-H g by the two-loop recursion; the newest pair is the last row."""
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
        size = tf.reduce_max(tf.abs(gradient))
        first = self.initial_step_norm / tf.maximum(size, tf.constant(1e-30, size.dtype))
        squared = tf.reduce_sum(tf.square(changes[-1]))
        learned = tf.math.divide_no_nan(curvature[-1], squared)
        q *= tf.where(pairs > 0, learned, first)
        for i, alpha in zip(range(self.history_size), reversed(alphas), strict=True):
            beta = rho[i] * tf.reduce_sum(changes[i] * q)
            q += (alpha - beta) * steps[i]
        return -q

    def _tfp_step(self, evaluate, x, deterministic, idle):
        """One iteration of TFP's minimizer, in coordinates that scale its first step."""
        from tensorflow_probability.python.optimizer import lbfgs

        base, known = self.known(x, deterministic)
        loss, gradient = tf.cond(
            known, lambda: (base.loss, base.gradient), lambda: evaluate(base.x)
        )
        base = Point(x, loss, gradient)
        first = tf.equal(tf.convert_to_tensor(self._pairs), 0)
        size = tf.maximum(tf.reduce_max(tf.abs(gradient)), tf.constant(1e-30, x.dtype))
        fresh_scale = tf.sqrt(self.initial_step_norm / size)
        scale = tf.where(first, fresh_scale, tf.convert_to_tensor(self._scale))

        def scaled(z):
            loss, gradient = evaluate(z * scale)
            return loss, gradient * scale

        previous = lbfgs.LBfgsOptimizerResults(
            tf.constant(False), tf.constant(False), tf.convert_to_tensor(self._pairs),
            tf.constant(0), x / scale, loss, gradient * scale,
            tf.convert_to_tensor(self._steps), tf.convert_to_tensor(self._changes),
        )  # fmt: skip
        go = ~self.ended(deterministic) & ~tf.convert_to_tensor(idle)

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
        lower = tf.math.is_finite(results.objective_value) & (results.objective_value < loss) & go
        point = Point(
            tf.where(lower, results.position * scale, x),
            tf.where(lower, results.objective_value, loss),
            tf.where(lower, results.objective_gradient / scale, gradient),
        )
        moved = tf.reduce_any(tf.not_equal(point.x, x))
        self._steps.assign(results.position_deltas)
        self._changes.assign(results.gradient_deltas)
        # A failed search starts again from a fresh memory; failing then too, it has stalled.
        self._pairs.assign(tf.where(go & ~moved, 0, results.num_iterations))
        self._scale.assign(scale)
        progress = self._progress_of_tfp(base, point, go, moved, first)
        evaluations = results.num_objective_evaluations + tf.cast(~known, tf.int32)
        self.keep(point, progress, evaluations)
        return point

    def _progress_of_tfp(self, base, point, go, moved, first):
        small = tf.reduce_max(tf.abs(point.gradient)) <= self.gradient_tolerance
        gain = tf.abs(base.loss - point.loss)
        settled = moved & (gain <= self.loss_tolerance * tf.abs(base.loss))
        progress = tf.where(~moved & first, int(Progress.STALLED), int(Progress.RUNNING))
        progress = tf.where(settled, int(Progress.LOSS_CONVERGED), progress)
        progress = tf.where(small, int(Progress.GRADIENT_CONVERGED), progress)
        finite = tf.math.is_finite(base.loss)
        progress = tf.where(finite, progress, int(Progress.NON_FINITE))
        return tf.where(go, progress, self.status())

    def get_config(self):
        return {
            "name": self.name,
            "history_size": self.history_size,
            "initial_step_norm": self.initial_step_norm,
            "engine": self.engine,
            "gradient_tolerance": self.gradient_tolerance,
            "loss_tolerance": self.loss_tolerance,
            "max_evaluations": self.max_evaluations,
        }
