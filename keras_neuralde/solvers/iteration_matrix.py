"""The matrix W = M - s J of implicit methods, made once for a step and solved with many times."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_neuralde.checks import check_whole
from keras_neuralde.solvers import banded
from keras_neuralde.solvers.factorization import UNROLLED, factor
from keras_neuralde.solvers.krylov import (
    GivenMatrix,
    GivenSolution,
    KrylovJacobian,
    KrylovMatrix,
    norm,
)
from keras_neuralde.solvers.mass import times_mass
from keras_neuralde.sparsity import BandedJacobian

#: From this many components on GMRES is the default.
LARGE = 400
#: How often the solution of a transposed system is mended at most.
_MENDS = 200


@dataclasses.dataclass(frozen=True)
class LinearSolver:
    """How the linear systems of implicit methods are solved.

    Args:
        kind: `"dense"` eliminates; `"krylov"` iterates with products of the Jacobian and a vector
            (GMRES), for thousands of components; `"auto"` iterates from 400 components on, unless
            the problem has a `jacobian` or a `jac_sparsity`; `"given"` takes what `preconditioner`
            returns for the solution, which it must be then: a Fourier transform, say.
        size: how many directions GMRES keeps before it restarts.
        restarts: the most cycles of GMRES.
        preconditioner: `preconditioner(t, y, s, b)` → x, about the solution of x - s J x = b (of
            M x - s J x = b with a mass matrix), for GMRES to start from instead of b: linear in b,
            which has the structure and shape of y; s has the shape of t. Only the number of
            iterations depends on it. A method that has one cannot be saved.
    """

    kind: str = "auto"
    size: int = 30
    restarts: int = 10
    preconditioner: Callable | None = None

    def __post_init__(self):
        if self.preconditioner is not None and not callable(self.preconditioner):
            raise TypeError(
                "`preconditioner` must be a function preconditioner(t, y, s, b). "
                f"Received: {self.preconditioner!r}"
            )
        if self.kind not in ("auto", "dense", "krylov", "given"):
            raise ValueError(
                "`linear_solver` must be 'auto', 'dense', 'krylov' or 'given'. "
                f"Received: {self.kind!r}"
            )
        if self.kind == "given" and self.preconditioner is None:
            raise ValueError(
                "linear_solver='given' needs a `preconditioner` that solves exactly. Received: None"
            )
        for name in ("size", "restarts"):
            check_whole(name, getattr(self, name))

    @classmethod
    def get(cls, identifier: "str | dict | LinearSolver") -> "LinearSolver":
        """The linear solver for a name, a config or a `LinearSolver`."""
        if isinstance(identifier, LinearSolver):
            return identifier
        return cls(**identifier) if isinstance(identifier, dict) else cls(identifier)

    def serialize(self) -> str | dict:
        """The name where it says everything, else a config."""
        plain = self.kind != "given" and self == LinearSolver(self.kind)
        return self.kind if plain else dataclasses.asdict(self)

    def linearise(self, g: Any, t: tf.Tensor, y: tf.Tensor) -> tuple[Any, tf.Tensor]:
        """The Jacobian, or what stands for it, and the time derivative of the field."""
        if not self.iterates(g):
            return g.linearise(t, y)
        if self.kind == "given" and self.preconditioner is not None:
            return GivenSolution(t, y, self.preconditioner), g.rate(t, y)
        at = KrylovJacobian(t, y, self.size, self.restarts, self.preconditioner)
        return at, g.rate(t, y)

    def iterates(self, g: Any) -> bool:
        """Whether there is no matrix: GMRES or the user solves."""
        given = g.implicit.jacobian is not None or g.implicit.sparsity is not None
        if self.kind in ("krylov", "given") and given:
            raise ValueError(
                f"linear_solver={self.kind!r} takes products with the field itself: leave out "
                "`jacobian` and `jac_sparsity`."
            )
        if self.kind in ("krylov", "given"):
            return True
        return self.kind == "auto" and not given and g.size >= LARGE


def iteration_matrix(g, jacobian, scale):
    """W = M - s J for what `LinearSolver.linearise` returned."""
    if isinstance(jacobian, GivenSolution):
        return GivenMatrix(g, jacobian, scale)
    if isinstance(jacobian, KrylovJacobian):
        return KrylovMatrix(g, jacobian, scale)
    return IterationMatrix(g, jacobian, scale)


def solve_transposed(g, at, matrix, scale, b):
    """x with Wᵀ x = b for the derivative of the field itself.

    Newton's iteration ends at the same states whatever matrix it takes; their gradient does not
    forgive a wrong one. Where the matrix was made from what the user says of the derivative, what
    is left is measured with the field's own products, and the solution is mended as the iteration
    would be: with the same matrix, at the same rate.

    Args:
        g: the bound field.
        at: `(t, y)`, the point of linearisation.
        matrix: what `iteration_matrix` made there.
        scale: s, `(rows, 1)`.
        b: `(rows, width)`.

    Returns:
        `(rows, width)`; NaN in the rows where it cannot be found.
    """
    if isinstance(matrix, KrylovMatrix):
        return matrix.solve_transposed(b)
    first = matrix.solve_transposed(b)
    told = g.implicit.jacobian is not None or g.implicit.sparsity is not None
    if not told and not isinstance(matrix, GivenMatrix):
        return first
    small = 1e-10 if b.dtype == tf.float64 else 1e-5

    def lacking(x):
        pulled = g.pull(*at, scale * x)
        more = matrix.solve_transposed(b - times_mass(g, x, transpose=True) + pulled)
        # Rows at rest ask for nothing, wherever they are.
        return tf.where(tf.equal(norm(b), 0.0)[:, None], tf.zeros_like(x), more)

    def mend(count, x, more, _):
        x += more
        rest = lacking(x)
        size = norm(rest)
        # Rounding may end it before.
        shrinks = (size < norm(more)) | (size > 1e4 * small * norm(x))
        goes_on = (size > small * norm(x)) & shrinks & tf.math.is_finite(size)
        return count + 1, x, rest, tf.reduce_any(goes_on)

    more = lacking(first)
    _, x, more, _ = tf.while_loop(
        lambda count, x, more, goes_on: (count < _MENDS) & goes_on,
        mend,
        (0, first, more, tf.reduce_any(norm(more) > small * norm(first))),
    )
    good = norm(more) <= 1e4 * small * norm(x)
    return tf.where(good[:, None], x + more, tf.constant(float("nan"), x.dtype))


class IterationMatrix:
    """W = M - s J of every trajectory, with J = ∂f/∂y at one point.

    Args:
        g: the bound field.
        jacobian: what `g.linearise` returned.
        scale: s, `(rows, 1)`: the step size times γ.
    """

    def __init__(self, g, jacobian, scale):
        self._g = g
        if isinstance(jacobian, BandedJacobian):
            self._factors = banded.BlockTridiagonal(jacobian, scale)
            return
        mass = g.implicit.mass
        if mass is not None:
            # A row that rests has s = 0; there M alone may be singular, and nothing is solved.
            scale = tf.where(tf.equal(scale, 0.0), tf.ones_like(scale), scale)
        n = len(jacobian) if isinstance(jacobian, list) else jacobian.shape[-1]
        if mass is None:
            mass = tf.eye(n, dtype=scale.dtype)
        if isinstance(jacobian, list) and n <= UNROLLED:
            s = scale[:, 0]
            matrix = [[mass[i, j] - s * jacobian[i][:, j] for j in range(n)] for i in range(n)]
        else:
            stacked = tf.stack(jacobian, axis=1) if isinstance(jacobian, list) else jacobian
            matrix = mass - scale[:, :, None] * stacked
        self._factors = factor(matrix)

    @property
    def regular(self):
        """`(rows,)` booleans, or one for a joint row: whether W can be inverted."""
        regular = self._factors.regular
        if self._g.joint:
            return tf.reduce_all(regular, keepdims=True)
        return regular

    @property
    def kept(self):
        """The tensors of the factors, for `kept_matrix`."""
        return self._factors.kept

    def solve(self, b):
        """x with W x = b; `(rows, width)`."""
        return self._g.join(self._factors.solve(self._g.split(b)))

    def nearly_solve(self, b):
        """The same, as well as iterations need it that correct themselves."""
        return self._g.join(self._factors.nearly_solve(self._g.split(b)))

    def solve_checked(self, b):
        """x with W x = b, and `(rows,)` booleans: whether W could be inverted."""
        return self.solve(b), self.regular

    def solve_transposed(self, b):
        """x with Wᵀ x = b; `(rows, width)`."""
        return self._g.join(self._factors.solve_transposed(self._g.split(b)))


def jacobian_times(g, jacobian, x):
    """J x for every trajectory; `(rows, width)`."""
    if isinstance(jacobian, (KrylovJacobian, GivenSolution)):
        return g.push(jacobian.t, jacobian.y, x)
    z = g.split(x)
    if isinstance(jacobian, BandedJacobian):
        entries, band = jacobian
        blocks = [entries[:, offset] for offset in range(3)]
        return g.join(banded.from_blocks(band, banded.multiply(blocks, banded.to_blocks(band, z))))
    if isinstance(jacobian, list):
        return g.join(tf.stack([tf.reduce_sum(row * z, axis=1) for row in jacobian], axis=1))
    return g.join(tf.linalg.matvec(jacobian, z))


def largest_row_sum(g, jacobian):
    """‖J‖∞ of every trajectory, `(rows,)`, which no eigenvalue exceeds.

    Where no matrix is made, four turns of the power method stand for it.
    """
    if isinstance(jacobian, (KrylovJacobian, GivenSolution)):
        width = jacobian.y.shape[-1]
        seeded = np.random.default_rng(0).normal(size=width)
        x, size = tf.zeros_like(jacobian.y) + tf.constant(seeded, jacobian.y.dtype), 0.0
        for _ in range(4):
            x = x / tf.norm(x, axis=1, keepdims=True)
            x = g.push(jacobian.t, jacobian.y, x)
            size = tf.norm(x, axis=1)
            x = tf.where(size[:, None] > 0.0, x, tf.ones_like(x))
        return size
    if isinstance(jacobian, BandedJacobian):
        sums = tf.reduce_sum(tf.abs(jacobian.entries), axis=[1, 4])
        largest = tf.reduce_max(sums, axis=[1, 2])
    elif isinstance(jacobian, list):
        sums = [tf.reduce_sum(tf.abs(row), axis=1) for row in jacobian]
        largest = sums[0]
        for other in sums[1:]:
            largest = tf.maximum(largest, other)
    else:
        largest = tf.reduce_max(tf.reduce_sum(tf.abs(jacobian), axis=2), axis=1)
    return tf.reduce_max(largest, keepdims=True) if g.joint else largest


def entries_of(jacobian):
    """The tensors that hold a Jacobian, as a list."""
    if isinstance(jacobian, BandedJacobian):
        return [jacobian.entries]
    return list(jacobian) if isinstance(jacobian, list) else [jacobian]


def outer_sum(g, lefts, rights, like):
    """Σ_i left_i right_iᵀ for every trajectory, in the form of the Jacobian `like`."""
    pairs = [(g.split(left), g.split(right)) for left, right in zip(lefts, rights, strict=True)]
    if isinstance(like, BandedJacobian):
        return banded.outer_blocks(like.band, *zip(*pairs, strict=True))
    if isinstance(like, list):
        return [
            tf.add_n([left[:, i : i + 1] * right for left, right in pairs])
            for i in range(len(like))
        ]
    left, right = (tf.stack(side, axis=1) for side in zip(*pairs, strict=True))
    return tf.linalg.matmul(left, right, transpose_a=True)
