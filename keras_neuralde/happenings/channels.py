"""The things that can happen, with their traced functions."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Channel:
    """One thing that can happen, with its traced functions.

    Attributes:
        kind: one of the kinds of `events`.
        affect: `captures.LiftedFunction` of `affect(t, y, p)`, or `affect(t, y, u, p)` with uniform
            numbers u where `uniforms` is positive; `None` leaves the state as it is.
        condition: the same of the condition of a root or a discrete event.
        times: `(n, rows)` or `(n, 1)`, of a preset event; NaN pads.
        rate: the lifted rate of a jump whose times are drawn.
        bound: the lifted bound of a rate that changes between jumps; `None` for a rate that does
            not.
        direction: of the crossings that count: -1, 0 or +1.
        terminal: whether the trajectory ends here.
        max_events: how often it may happen.
        uniforms: how many uniform numbers the affect reads.
        held: whether the time of a root is a constant in gradients.
        recorded: whether it is one of the user's events.
        waits: whether the root is where the condition reaches an exponential random number.
    """

    kind: str
    affect: Any = None
    condition: Any = None
    times: Any = None
    rate: Any = None
    bound: Any = None
    direction: int = 0
    terminal: bool = False
    max_events: int | None = None
    uniforms: int = 0
    held: bool = False
    recorded: bool = True
    waits: bool = False

    @property
    def functions(self):
        """The lifted functions."""
        return [f for f in (self.affect, self.condition, self.rate, self.bound) if f is not None]
