"""BFGS with a full inverse Hessian, as a Keras optimizer."""

from typing import Any

import keras
import tensorflow as tf

from keras_neuralde.optimizers.line_search import Point
from keras_neuralde.optimizers.quasi_newton import Engine, QuasiNewton, trustworthy


@keras.saving.register_keras_serializable(package="keras_neuralde")
class BFGS(QuasiNewton):
    """BFGS: superlinear convergence for up to a few thousand parameters.

    It keeps the whole inverse Hessian, of the square of the number of parameters (Nocedal & Wright,
    "Numerical Optimization", Algorithm 6.1). One step is one accepted iteration. Where an iteration
    costs a differential equation, its better directions are worth the memory; beyond a few thousand
    parameters take `LBFGS`.

    Args:
        initial_step_norm: the largest component of the very first step: the inverse Hessian starts
            as this number over the largest component of the gradient, times the identity. `None`
            starts with the identity, which blows up where gradients are large.
        engine: `"native"`, or `"tfp"` to delegate to `tfp.optimizer.bfgs_minimize`.
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

    Example:

    >>> import tensorflow as tf, keras_neuralde as nde
    >>> bfgs = nde.optimizers.BFGS(initial_step_norm=0.01)
    >>> result = nde.minimize(lambda p: tf.reduce_sum((p - 3.0) ** 2), [0.0, 1.0], bfgs)
    >>> bool(abs(result.minimizer[0] - 3.0) < 1e-4)
    True
    """

    def __init__(
        self,
        initial_step_norm: float | None = None,
        engine: Engine = "native",
        gradient_tolerance: float = 1e-8,
        loss_tolerance: float = 0.0,
        max_evaluations: int = 25,
        freeze_steps: bool = False,
        name: str = "bfgs",
        **keywords: Any,
    ) -> None:
        super().__init__(
            name, initial_step_norm, engine, gradient_tolerance, loss_tolerance, max_evaluations,
            freeze_steps, **keywords,
        )  # fmt: skip

    def build(self, variables):
        """Makes the state: the last point and the inverse Hessian."""
        if self.built:
            return
        super().build(variables)
        self._inverse = self._new("inverse_hessian", (self._size, self._size))
        self._updates = self._new("updates", (), "int32")

    def memory(self):
        """The inverse Hessian and how many pairs it has seen."""
        return tf.convert_to_tensor(self._inverse), tf.convert_to_tensor(self._updates)

    def forget(self):
        """Drops the inverse Hessian."""
        self._updates.assign(0)

    def direction(self, gradient, memory, fresh):
        """-H g, with the scaled identity for H where there is nothing to go by."""
        inverse, updates = memory
        learned = -tf.linalg.matvec(inverse, gradient)
        return tf.where(fresh | (updates == 0), -self.first_scale(gradient) * gradient, learned)

    def remember(self, base, step, change, fresh, found):
        """The update of the inverse Hessian (Nocedal & Wright, 6.17), if the pair can be trusted.

        The first pair scales the identity (6.20).
        """
        known, updates = self.memory()
        first = fresh | (updates == 0)
        trusted = found & trustworthy(step, change)
        curvature = tf.reduce_sum(step * change)
        scale = tf.math.divide_no_nan(curvature, tf.reduce_sum(tf.square(change)))
        inverse = tf.where(first, scale * tf.eye(self._size, dtype=step.dtype), known)
        rho = tf.math.divide_no_nan(tf.ones_like(curvature), curvature)
        seen = tf.linalg.matvec(inverse, change)
        outer = step[:, None] * seen[None, :]
        grown = rho * (1.0 + rho * tf.reduce_sum(change * seen))
        updated = inverse - rho * (outer + tf.transpose(outer))
        updated += grown * step[:, None] * step[None, :]
        self._inverse.assign(tf.where(trusted, updated, known))
        self._updates.assign(tf.where(fresh, 0, updates) + tf.cast(trusted, tf.int32))

    def tfp_step(self, evaluate, base, known, go):
        """One iteration of TFP's minimizer from the inverse Hessian kept here.

        TFP's minimizer cannot be resumed: the inverse Hessian that it returns after one iteration
        leads nowhere when it is handed in again. It makes the step, the update is made here.
        """
        from tensorflow_probability.python.optimizer import bfgs

        inverse, updates = self.memory()
        first = updates == 0
        identity = tf.eye(self._size, dtype=base.x.dtype)

        def search():
            found = bfgs.minimize(
                evaluate,
                initial_position=base.x,
                tolerance=0.0,
                initial_inverse_hessian_estimate=tf.where(
                    first, self.first_scale(base.gradient) * identity, inverse
                ),
                max_iterations=1,
                max_line_search_iterations=self.max_evaluations,
                validate_args=False,  # exact symmetry, which rounding breaks
            )
            proposed = Point(found.position, found.objective_value, found.objective_gradient)
            return proposed, found.num_objective_evaluations

        proposed, evaluations = tf.cond(go, search, lambda: (base, tf.constant(0)))
        lower = go & tf.math.is_finite(proposed.loss) & (proposed.loss < base.loss)
        point = Point(*(tf.where(lower, a, b) for a, b in zip(proposed, base, strict=True)))
        self.remember(base, point.x - base.x, point.gradient - base.gradient, ~lower & go, lower)
        # A failed search starts again from a fresh memory; failing then too, it has stalled.
        return point, self.progress_of_tfp(base, point, go, lower, first), evaluations
