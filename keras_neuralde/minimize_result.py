"""How a minimization ended, as a status and a report."""

import dataclasses
import enum

from keras_neuralde.optimizers.line_search import Progress
from keras_neuralde.typing import Nest


class MinimizeStatus(enum.IntEnum):
    """How a minimization ended; 0 is convergence."""

    CONVERGED = 0
    MAX_ITERATIONS = 1
    MAX_EVALUATIONS = 2
    HALTED = 3
    STALLED = 4
    NON_FINITE = 5

    @property
    def message(self) -> str:
        """A sentence for the user."""
        return _MESSAGES[self]


_MESSAGES = {
    MinimizeStatus.CONVERGED: "converged",
    MinimizeStatus.MAX_ITERATIONS: "made all the iterations it was given",
    MinimizeStatus.MAX_EVALUATIONS: "reached max_evaluations; raise it to go on",
    MinimizeStatus.HALTED: "halted by the callback",
    MinimizeStatus.STALLED: Progress.STALLED.message,
    MinimizeStatus.NON_FINITE: (
        "the loss or its gradient is NaN or infinite at the start, or at every point tried between "
        "the last good one and the next: start elsewhere or take smaller steps"
    ),
}


@dataclasses.dataclass
class MinimizeResult:
    """What `minimize` found.

    Attributes:
        minimizer: the best parameters seen, in the form that was given; a model or variables hold
            them when `minimize` returns. With `batches`, whose losses cannot be compared, the last.
        minimum: the loss there (with `batches`: of the last batch).
        status: a `MinimizeStatus`; 0 is convergence.
        message: the status as a sentence.
        iterations: iterations made, over all stages.
        evaluations: evaluations of the loss and its gradient.
        history: the loss after every iteration.
        gradient_norm: the largest component of the gradient at the last point.
        non_finite: evaluations whose loss or gradient was NaN or infinite and that were survived by
            going back, counted for first-order optimizers.
        restarts: how often a quasi-Newton stage began again from a fresh memory.
        seconds: wall time, compilation included.
    """

    minimizer: Nest
    minimum: float
    status: MinimizeStatus
    message: str
    iterations: int
    evaluations: int
    history: list[float]
    gradient_norm: float
    non_finite: int
    restarts: int
    seconds: float

    @property
    def success(self) -> bool:
        """Whether it converged."""
        return self.status == MinimizeStatus.CONVERGED

    def __repr__(self):
        rows = {
            "status": f"{int(self.status)}: {self.message}",
            "minimum": f"{self.minimum:.6e}",
            "iterations": self.iterations,
            "evaluations": self.evaluations,
            "largest gradient": f"{self.gradient_norm:.3e}",
            "restarts": self.restarts,
            "survived non-finite": self.non_finite,
            "seconds": f"{self.seconds:.2f}",
        }
        return "\n".join(["MinimizeResult", *(f"  {k:<20} {v}" for k, v in rows.items())])
