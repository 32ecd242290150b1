"""Finding initial states that satisfy the algebraic equations of a problem."""

import numpy as np
import tensorflow as tf

from keras_neuralde import consistency, execution
from keras_neuralde.arguments import prepare
from keras_neuralde.checks import check_whole
from keras_neuralde.equations import kind_of
from keras_neuralde.problems import ODEProblem
from keras_neuralde.programs import as_written
from keras_neuralde.settings import Settings
from keras_neuralde.typing import Nest


@as_written
def consistent_state(
    problem: ODEProblem, *, batch_ndims: int = 0, max_iterations: int = 20
) -> Nest:
    """An initial state near `problem.y0` that satisfies the algebraic equations at the start.

    What the mass matrix sees of the state, M y0, stays as it is; the rest moves, by Newton's
    method.

    Args:
        problem: an `ODEProblem` with a singular `mass_matrix`.
        batch_ndims: that many leading axes of the state are independent trajectories.
        max_iterations: the most Newton steps.

    Returns:
        A nest of states with the structure of `problem.y0`, which gradients go through; the state
        itself where the mass matrix can be inverted or there is none.

    Raises:
        ValueError: eagerly, when the iteration does not find a state: the algebraic equations
            have no solution nearby, or do not determine the algebraic components (the index is
            above 1).

    Example:

    >>> import keras_neuralde as nde
    >>> def f(t, y, p):
    ...     return tf.stack([-y[0], y[0] + y[1] - 1.0])
    >>> mass = np.diag([1.0, 0.0])
    >>> problem = nde.ODEProblem(f, [0.25, 0.0], (0.0, 1.0), mass_matrix=mass)
    >>> nde.consistent_state(problem).numpy().tolist()
    [0.25, 0.75]
    """
    check_whole("max_iterations", max_iterations)
    settings = Settings.make(
        "rodas5p", controller=None, norm="rms", max_steps=1, batch_ndims=batch_ndims,
        step_control="per_sample", adjoint="discrete", checkpoints=1, dt0=None, steps=None,
        dense=False, max_record=1,
    )  # fmt: skip
    equation = kind_of(problem)(problem)
    equation.check(settings)
    layout, inputs, shape = prepare(equation, settings, None, None, None, None, 0.0)
    if "constraints" not in inputs:
        return inputs["y0"]
    lifted = execution.lift(equation, layout, inputs)
    bound = execution.bind(lifted, settings, layout, inputs, shape)
    field, y0, terms, batch_dims = bound.field, bound.y0, bound.terms, bound.batch_dims
    g = field.bind(field.theta)
    limit = 1e3 * float(np.finfo(y0.dtype.as_numpy_dtype).eps)

    def more(k, y, change):
        moved = tf.abs(change) > limit * (1.0 + tf.abs(y))
        return (k < max_iterations) & tf.reduce_any(moved)

    def turn(k, y, _):
        change = consistency.correction(g, terms.t0, y)
        return k + 1, y + change, change

    start = (0, y0, tf.ones_like(y0))
    _, y, change = tf.while_loop(more, turn, start, maximum_iterations=max_iterations)
    if tf.executing_eagerly() and not tf.reduce_all(tf.abs(change) <= limit * (1.0 + tf.abs(y))):
        raise ValueError(
            "no state near `y0` satisfies the algebraic equations: Newton's method did not settle "
            f"in {max_iterations} steps. Start closer, or check that the equations without a time "
            f"derivative determine the components without one. Received: y0={problem.y0!r}"
        )
    return layout.unpack(y, batch_dims)
