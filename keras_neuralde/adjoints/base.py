"""What every adjoint is: a way to integrate whose result can be differentiated."""

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from keras_neuralde.integrate import Plan


class Task(NamedTuple):
    """How a solve is to be made differentiable.

    Attributes:
        plan: the `Plan` of a solve that leaves no trail.
        checkpoints: how many states an adjoint that recomputes may keep.
        max_record: how many steps an adjoint that records may keep.
        time_gradient: whether gradients with respect to the times are wanted.
        expected: whether a tape is recording; if not, a gradient may still be asked for, of a
            graph that was built before, and what it needs is then computed when it is.
        turns: the most turns that the loop can take, where that is known; else `None`.
    """

    plan: Plan
    checkpoints: int
    max_record: int
    time_gradient: bool
    expected: bool
    turns: int | None = None


@dataclasses.dataclass(frozen=True)
class Adjoint:
    """How gradients are computed; a record of settings.

    Class attributes:
        name: the string that names it.
    """

    name = ""

    def integrate(self, task, field, y0, terms):
        """Integrates, differentiably in y0, the times, the field's parameters and variables.

        Args:
            task: a `Task`.
            field: the `Field`.
            y0: `(rows, width)`.
            terms: the `Terms`.

        Returns:
            `(y, control)` as in `integrate.Outcome`.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The settings, so that `get` makes an equal adjoint."""
        return dataclasses.asdict(self)


def differentiable(name, task, field, y0, terms, forward, primal, backward):
    """An integration with a gradient of its own.

    Args:
        name: the adjoint's name, for its refusals.
        task: the `Task`.
        field: the `Field`.
        y0: `(rows, width)`.
        terms: the `Terms`.
        forward: `forward(terms, g, y0)` → `(outputs, memory)`: the integration, and what the
            backward pass needs of it.
        primal: `primal(terms, g, y0)` → `outputs`: the same integration without a memory, for
            graphs that no tape records; should a gradient be asked for after all, `forward` is run
            then.
        backward: `backward(memory, terms, theta, *output_bars)` → the cotangents
            `(t0, t_end, saves, y0, [theta], [variables])`. It may be called without a gradient of
            its own.

    Returns:
        `outputs`: a tuple of tensors whose last one, the control block, has no gradient.
    """
    has_saves = terms.saves is not None
    saves = terms.saves if has_saves else tf.zeros((0, 1), y0.dtype)

    @tf.custom_gradient
    def solve(y0, t0, t_end, saves, *theta):
        bound = terms._replace(t0=t0, t_end=t_end, saves=saves if has_saves else None)

        def record():
            recorded = forward(bound, field.bind(theta), y0)
            # Under a persistent tape TensorFlow would differentiate what the backward pass reads.
            return tf.nest.map_structure(tf.stop_gradient, recorded)

        recorded = record() if task.expected else None
        outputs = recorded[0] if recorded else primal(bound, field.bind(theta), y0)

        def gradient(*bars, variables=None):
            memory = (recorded or record())[1]
            given = [tf.convert_to_tensor(bar) for bar in bars[:-1]]

            def pull(bars, theta):
                return backward(memory, bound, theta, *bars)

            found = _first_order_only(name, pull, len(given), len(theta))(*given, *theta)
            t0_bar, t_end_bar, saves_bar, y0_bar, theta_bar, variables_bar = found
            inputs = [y0_bar, t0_bar, t_end_bar, saves_bar, *theta_bar]
            if variables is None:
                return inputs
            by_id = {id(v): bar for v, bar in zip(field.variables, variables_bar, strict=True)}
            return inputs, [by_id.get(id(v)) for v in variables]

        *differentiated, control = outputs
        return (*differentiated, tf.stop_gradient(control)), gradient

    return solve(y0, terms.t0, terms.t_end, saves, *field.theta)


def _first_order_only(name, pull, num_bars, num_theta):
    """`pull(bars, theta)`, refusing to be differentiated itself."""

    @tf.custom_gradient
    def guarded(*arguments):
        found = pull(list(arguments[:num_bars]), list(arguments[num_bars:]))

        def refuse(*_, variables=None):
            raise NotImplementedError(
                f"adjoint={name!r} gives first derivatives only: its gradient cannot be "
                "differentiated again. If you need no second derivative, take the inner "
                "gradient outside the outer tape."
            )

        return tf.nest.flatten(found), refuse

    def call(*arguments):
        flat = list(guarded(*arguments))
        head, rest = flat[:4], flat[4:]
        return *head, rest[:num_theta], rest[num_theta:]

    return call
