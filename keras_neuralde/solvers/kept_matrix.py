"""The matrix W = M - s J of an earlier step, kept while Newton's iteration goes well with it."""

from typing import NamedTuple

import tensorflow as tf

from keras_neuralde.solvers import banded
from keras_neuralde.solvers.factorization import GaussJordan
from keras_neuralde.solvers.iteration_matrix import iteration_matrix
from keras_neuralde.sparsity import BandedJacobian

#: By how much s may change.
CHANGE = 0.3
#: How many more turns for each stage a kept matrix may cost than it did when it was new.
MORE_TURNS = 2
#: For how many steps a matrix is kept at most.
AGE = 50.0


class Kept(NamedTuple):
    """Factors of W, and what decides whether they are used again; rows as in a step.

    Attributes:
        factors: the tensors of the factors.
        scale: the s of W, `(rows, 1)`.
        due: `(rows,)` booleans: whether the next step needs new ones.
        age: `(rows,)`, steps since they were made.
        cost: `(rows,)`, evaluations of the field in the first step with them.
    """

    factors: tuple
    scale: tf.Tensor
    due: tf.Tensor
    age: tf.Tensor
    cost: tf.Tensor


def room(g, linear_solver, y):
    """A `Kept` of zeros whose factors are due."""
    zero = tf.zeros_like(y[:, 0])
    jacobian, _ = linear_solver.linearise(g, zero, y)
    # What is computed for the shapes alone is dropped by the compiler.
    factors = iteration_matrix(g, jacobian, zero[:, None] + 1.0).kept
    factors = tuple(tf.zeros_like(part) for part in factors)
    return Kept(factors, zero[:, None] + 1.0, tf.equal(zero, 0.0), zero, zero)


def recall(g, linear_solver, t, y, scale, moving, kept):
    """W for a step: the kept one where it may serve, else a new one.

    Args:
        g: the bound field.
        linear_solver: a `LinearSolver` that eliminates.
        t: `(rows,)`, where the step starts.
        y: `(rows, width)`.
        scale: s, `(rows, 1)`.
        moving: `(rows,)` booleans: the rows that take a step.
        kept: the `Kept`.

    Returns:
        A `KeptMatrix`, `(rows,)` booleans: where it is new, and the `Kept` with its factors.
    """
    changed = tf.abs(scale / kept.scale - 1.0)[:, 0] > CHANGE
    due = moving & (kept.due | changed)

    def renew():
        jacobian, _ = linear_solver.linearise(g, t, y)
        matrix = iteration_matrix(g, jacobian, scale)
        before = 1 if isinstance(jacobian, BandedJacobian) else 0
        factors = tuple(
            tf.where(_along(due, new, before), new, old)
            for new, old in zip(matrix.kept, kept.factors, strict=True)
        )
        return factors, matrix.regular | ~due

    factors, regular = tf.cond(tf.reduce_any(due), renew, lambda: (kept.factors, due | ~due))
    kept = kept._replace(factors=factors, scale=tf.where(due[:, None], scale, kept.scale))
    return KeptMatrix(g, kept, scale, regular), due, kept


def judge(kept, moving, fresh, good, again, count, stages):
    """The `Kept` after a step.

    Args:
        kept: the `Kept` of the step.
        moving: `(rows,)` booleans: the rows that took a step.
        fresh: where its factors were new.
        good: where every iteration converged.
        again: where the step is to be tried again with new factors.
        count: `(rows,)` evaluations of the field.
        stages: how many stages were iterated on.
    """
    age = tf.where(fresh, tf.zeros_like(kept.age), kept.age) + 1.0
    cost = tf.where(fresh, count, kept.cost)
    slow = count > cost + float(MORE_TURNS * stages)
    due = again | ~good | slow | (age >= AGE)
    return kept._replace(
        due=tf.where(moving, due, kept.due),
        age=tf.where(moving, age, kept.age),
        cost=tf.where(moving, cost, kept.cost),
    )


class KeptMatrix:
    """Solves with kept factors, well enough for Newton's iteration.

    Where s has changed since, to s', solutions are multiplied by 2 / (1 + s'/s): between what is
    right for components that hardly move and for those that are very stiff (Brown, Byrne &
    Hindmarsh, "VODE: a variable-coefficient ODE solver", SIAM J. Sci. Stat. Comput. 10, 1989).

    Args:
        g: the bound field.
        kept: a `Kept`.
        scale: s', `(rows, 1)`.
        regular: `(rows,)` booleans: False where new factors found W singular.
    """

    def __init__(self, g, kept, scale, regular):
        self._g, self._factors, self.regular = g, kept.factors, regular
        self._weight = 2.0 / (1.0 + scale / kept.scale)

    def solve(self, b):
        """About x with W x = b; `(rows, width)`."""
        z = self._g.split(b)
        if len(self._factors) == 3:
            z = banded.BlockTridiagonal.solve_with(self._factors, self._g.implicit.band, z)
        else:
            z = GaussJordan.solve_with(self._factors, z)
        return self._weight * self._g.join(z)

    nearly_solve = solve


def _along(rows, like, before):
    """Flags of rows with axes of size one, to choose between tensors such as `like`."""
    shape = [1] * like.shape.rank
    shape[before] = -1
    return tf.reshape(rows, shape)
