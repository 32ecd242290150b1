"""Events: things that happen to a trajectory at a time, as records for `solve(..., events=...)`."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from keras_neuralde import values
from keras_neuralde.checks import check_array, check_flag, check_function, check_whole
from keras_neuralde.problems import Record
from keras_neuralde.programs import function_key
from keras_neuralde.typing import Condition, Field, TensorLike

#: Kinds of happenings.
ROOT, PRESET, DISCRETE, RATE = "root", "preset", "discrete", "rate"

_FORM = "{}(t, y, p)"


@dataclasses.dataclass(frozen=True, repr=False)
class ContinuousEvent(Record):
    """Happens when a function of time and state crosses zero.

    The crossing is found on the interpolant of the step, to rounding, and each trajectory of a
    batch has its own. A condition that is zero at the start does not happen there, and one that has
    happened does not happen again before it has left zero. Crossings are looked for at eight points
    of a step: a condition that crosses twice between two of them is missed.

    The gradient follows the time of the crossing (implicit function theorem), through the condition
    and the affect.

    Args:
        condition: `condition(t, y, p)`, a number for each trajectory, of the shape of `t`.
        affect: `affect(t, y, p)`, the state after, of the structure and shape of `y`; `None` leaves
            it as it is.
        direction: +1 for crossings from below to above only, in the direction of integration, -1
            for those from above to below, 0 for both.
        terminal: whether the trajectory ends here, after the affect.
        max_events: how often it may happen to a trajectory; the next time ends it with the status
            `MAX_EVENTS`.

    Raises:
        TypeError: if a function is not callable.
        ValueError: for another direction or number.

    Example:

    >>> import tensorflow as tf, keras_neuralde as nde
    >>> fall = lambda t, y, p: tf.stack([y[1], -9.8 + 0.0 * y[0]])
    >>> ground = nde.ContinuousEvent(lambda t, y, p: y[0], terminal=True)
    >>> problem = nde.ODEProblem(fall, tf.constant([4.9, 0.0]), (0.0, 9.0))
    >>> sol = nde.solve(problem, events=[ground])
    >>> round(float(sol.event_times[0]), 5), int(sol.num_events)
    (1.0, 1)
    """

    condition: Condition
    affect: Field | None = None
    direction: Literal[-1, 0, 1] = 0
    terminal: bool = False
    max_events: int = 100

    def __post_init__(self):
        check_function("condition", self.condition, _FORM.format("condition"))
        if self.affect is not None:
            check_function("affect", self.affect, _FORM.format("affect"))
        whole = isinstance(self.direction, (int, np.integer))
        if not whole or isinstance(self.direction, bool) or self.direction not in (-1, 0, 1):
            raise ValueError(f"`direction` must be -1, 0 or 1. Received: {self.direction!r}")
        check_flag("terminal", self.terminal)
        check_whole("max_events", self.max_events)


@dataclasses.dataclass(frozen=True, repr=False)
class PresetTimeEvent(Record):
    """Happens at given times: a dose, a pulse, a switch.

    Steps end there. A time that is the start happens before the first step, one that is the end
    after the last; times outside the span do not happen. Gradients flow through the affect; the
    times themselves have none.

    Args:
        times: a sorted 1-D array, or `(*batch, n)` for times of each trajectory, NaN after a
            trajectory's last.
        affect: `affect(t, y, p)`, the state after.

    Raises:
        TypeError: if `affect` is not callable or times are no numbers.
        ValueError: for times that are not sorted.

    Example:

    >>> import keras_neuralde as nde
    >>> dose = nde.PresetTimeEvent([1.0, 2.0], lambda t, y, p: y + p)
    >>> problem = nde.ODEProblem(lambda t, y, p: 0.0 * y, 0.0, (0.0, 3.0), 0.5)
    >>> nde.solve(problem, saveat=[0.5, 1.0, 1.5, 2.5], events=[dose]).y.numpy().tolist()
    [0.0, 0.5, 0.5, 1.0]
    """

    times: TensorLike
    affect: Field

    def __post_init__(self):
        check_function("affect", self.affect, _FORM.format("affect"))
        if not values.is_tensor(self.times):
            check_array("times", self.times)


@dataclasses.dataclass(frozen=True, repr=False)
class DiscreteEvent(Record):
    """Happens at the end of every step where a condition is true.

    What it does depends on where steps end; the gradient is that of the steps that were taken.

    Args:
        condition: `condition(t, y, p)`, a boolean for each trajectory.
        affect: `affect(t, y, p)`, the state after; `None` leaves it as it is.
        terminal: whether the trajectory ends here, after the affect.
        max_events: how often it may happen to a trajectory; the next time ends it with the status
            `MAX_EVENTS`.

    Raises:
        TypeError: if a function is not callable.
        ValueError: for another number.

    Example:

    >>> import keras_neuralde as nde
    >>> reset = nde.DiscreteEvent(lambda t, y, p: y > 2.0, lambda t, y, p: y - 1.0)
    >>> problem = nde.ODEProblem(lambda t, y, p: 1.0 + 0.0 * y, 0.0, (0.0, 3.0))
    >>> options = {"dt0": 0.5, "controller": "constant", "events": [reset]}
    >>> float(nde.solve(problem, "euler", **options).y)
    2.0
    """

    condition: Condition
    affect: Field | None = None
    terminal: bool = False
    max_events: int = 100

    def __post_init__(self):
        check_function("condition", self.condition, _FORM.format("condition"))
        if self.affect is not None:
            check_function("affect", self.affect, _FORM.format("affect"))
        check_flag("terminal", self.terminal)
        check_whole("max_events", self.max_events)


@dataclasses.dataclass(frozen=True)
class Happening:
    """The functions and settings of one channel; see `happenings.Channel`."""

    kind: str
    affect: Callable | None
    condition: Callable | None = None
    times: Any = None
    rate: Callable | None = None
    bound: Callable | None = None
    direction: int = 0
    terminal: bool = False
    max_events: int | None = None
    uniforms: int = 0
    held: bool = False
    recorded: bool = True
    waits: bool = False

    @classmethod
    def of(cls, event):
        """That of an event."""
        if isinstance(event, PresetTimeEvent):
            return cls(PRESET, event.affect, times=event.times)
        common: dict = {"terminal": bool(event.terminal), "max_events": int(event.max_events)}
        if isinstance(event, ContinuousEvent):
            direction = int(event.direction)
            return cls(ROOT, event.affect, event.condition, direction=direction, **common)
        return cls(DISCRETE, event.affect, event.condition, **common)

    def on(self, part):
        """The same on part of a larger state, a tuple."""

        def reading(function):
            return None if function is None else lambda t, y, p: function(t, y[part], p)

        inner = self.affect
        if inner is None:
            return dataclasses.replace(self, condition=reading(self.condition))

        def affect(t, y, p):
            return (*y[:part], inner(t, y[part], p), *y[part + 1 :])

        return dataclasses.replace(self, affect=affect, condition=reading(self.condition))

    def key(self, references):
        """What decides the channel in a program, hashable."""
        functions = (self.affect, self.condition, self.rate, self.bound)
        keys = (None if f is None else function_key(f, references) for f in functions)
        settings = (self.kind, self.direction, self.terminal, self.max_events, self.uniforms)
        return *keys, *settings, self.held, self.recorded, self.waits


#: The classes of events.
EVENTS = (ContinuousEvent, PresetTimeEvent, DiscreteEvent)


def as_events(events: Any) -> tuple[ContinuousEvent | PresetTimeEvent | DiscreteEvent, ...]:
    """What a user passes as `events`, as a tuple.

    Raises:
        TypeError: for anything that is no event.
    """
    if isinstance(events, EVENTS):
        return (events,)
    if not isinstance(events, (list, tuple)) or not all(isinstance(e, EVENTS) for e in events):
        names = ", ".join(kind.__name__ for kind in EVENTS)
        raise TypeError(f"`events` must be a list of {names}. Received: {events!r}")
    return tuple(events)
