"""One-step methods for stochastic differential equations.

In all of them h is the signed step, |h| its length, ΔW the increment of the Brownian motions and H
their space-time Lévy area over the step. Rows at rest have h = 0, and keep their state exactly.
"""

import tensorflow as tf

from keras_neuralde.solvers.base import Solver, Step
from keras_neuralde.solvers.explicit_rk import combine
from keras_neuralde.tableaus.stochastic import SOSRI

_ANY = ("diagonal", "scalar", "additive", "general")
_BOTH = ("ito", "stratonovich")


def times(diffusion, vector):
    """The product of a diffusion with a `(rows, components)` vector, `(rows, width)`."""
    if diffusion.shape.rank == 2:
        return diffusion * vector
    # Few columns: a sum of products fuses with its neighbours, a batched matrix product does not.
    return tf.reduce_sum(diffusion * vector[:, None, :], axis=2)


class StochasticSolver(Solver):
    """A one-step method for `SDEProblem`.

    Class attributes:
        strong_order: order of the error of single paths.
        weak_order: order of the error of expectations.
        noises: the kinds of noise that it can take.
        interpretations: the integrals that it computes.
        strong_order_additive: the strong order for additive noise, where it is higher.
        weak_order_additive: the weak order for additive noise, where it is higher.
    """

    strong_order: float = 0.5
    weak_order: float = 1.0
    noises: tuple = _ANY
    interpretations: tuple = ("ito",)
    strong_order_additive: float | None = None
    weak_order_additive: float | None = None
    source: str = ""

    stochastic = True
    interpolates = False
    default_tolerances = (1e-2, 1e-2)

    def dense_degree(self):
        # Steps end on the save points, so that a chord is all there is to store.
        return 1

    def init(self, g, t, y):
        return tf.zeros_like(y)

    def step(self, g, t, t_next, y, state, dense):
        y1, error = self._propose(g, t, t_next, y, (t_next - t)[:, None])
        return Step(y1, error, y1 - y if dense else None, state)

    def _propose(self, g, t, t_next, y, h):
        """The new state and the error estimate (or `None`)."""
        raise NotImplementedError

    def initial_step(self, g, t, t_end, y, k1, direction, scale, order):
        """A first step on which drift and noise move the state by a tenth of the tolerance.

        After the rule of Hairer, Nørsett & Wanner I, II.4, with √h for the noise.
        """
        diffusion = g.diffusion(t, y)
        if diffusion.shape.rank == 3:
            diffusion = tf.sqrt(tf.reduce_sum(tf.square(diffusion), axis=2))

        def rms(x):
            return tf.sqrt(tf.reduce_mean(tf.square(x), axis=1))

        tiny = tf.constant(1e-10, y.dtype)
        size = 0.1 + 0.01 * rms(y / scale)
        by_drift = size / tf.maximum(rms(k1 / scale), tiny)
        by_noise = tf.square(size / tf.maximum(rms(diffusion / scale), tiny))
        h = tf.minimum(by_drift, by_noise)
        span = tf.abs(t_end - t)
        return tf.minimum(tf.where(tf.math.is_finite(h), h, 1e-3 * span), 0.1 * span)


class EulerMaruyama(StochasticSolver):
    """y1 = y + h f + g ΔW (Maruyama, 1955). The plainest method, for every Itô noise."""

    name = "euler_maruyama"
    order = 1
    strong_order_additive = 1.0
    source = "Maruyama 1955"

    def evaluations(self, dense):
        return 1

    def _propose(self, g, t, t_next, y, h):
        w = g.noise(t, t_next).w
        return y + h * g.drift(t, y) + times(g.diffusion(t, y), w), None


class Milstein(StochasticSolver):
    """The Milstein method without derivatives of g (Milstein, 1974; Kloeden & Platen, 11.1).

    y1 = y + h f + g ΔW + ½ g'g I with I = ΔW² - |h| in the Itô sense and ΔW² in the Stratonovich
    sense. g'g is a difference quotient over √|h| in the former; in the latter g'g ΔW is a central
    difference over g ΔW, so that no drift appears where a component's diffusion reads others, whose
    Brownian motions are independent of its own.

    Args:
        interpretation: set by `solve` from the problem.
    """

    name = "milstein"
    order = 1
    strong_order = 1.0
    noises = ("diagonal", "scalar", "additive")
    interpretations = _BOTH
    source = "Milstein 1974; Kloeden & Platen 1992"

    def __init__(self, interpretation: str = "ito") -> None:
        self.interpretation = interpretation

    def get_config(self):
        return {"interpretation": self.interpretation}

    def interpreted(self, interpretation):
        return Milstein(interpretation)

    def evaluations(self, dense):
        return 1

    def _propose(self, g, t, t_next, y, h):
        w = g.noise(t, t_next).w
        diffusion = g.diffusion(t, y)
        moved = y + h * g.drift(t, y)
        plain = moved + times(diffusion, w)
        if diffusion.shape.rank == 3:
            # Additive: there is nothing to correct.
            return plain, None
        if self.interpretation == "ito":
            length = tf.abs(h)
            root = tf.sqrt(length)
            inverse = tf.math.divide_no_nan(tf.ones_like(root), root)
            slope = (g.diffusion(t, moved + root * diffusion) - diffusion) * inverse
            return plain + 0.5 * slope * (w * w - length), None
        ahead = 0.5 * times(diffusion, w)
        return plain + 0.5 * (g.diffusion(t, y + ahead) - g.diffusion(t, y - ahead)) * w, None


class EulerHeun(StochasticSolver):
    """Euler for the drift, Heun for the noise (Kloeden & Platen, 1992).

    ȳ = y + g ΔW, y1 = y + h f + ½ (g + g(ȳ)) ΔW: converges to the Stratonovich solution, with
    strong order 1 where the noises commute.
    """

    name = "euler_heun"
    order = 1
    strong_order_additive = 1.0
    interpretations = ("stratonovich",)
    source = "Kloeden & Platen 1992"

    def evaluations(self, dense):
        return 1

    def _propose(self, g, t, t_next, y, h):
        w = g.noise(t, t_next).w
        diffusion = g.diffusion(t, y)
        ahead = g.diffusion(t_next, y + times(diffusion, w))
        return y + h * g.drift(t, y) + times(0.5 * (diffusion + ahead), w), None


class StochasticHeun(StochasticSolver):
    """Heun's method for both parts (Rümelin, 1982): the Stratonovich solution.

    ȳ = y + h f + g ΔW, y1 = y + ½ h (f + f(ȳ)) + ½ (g + g(ȳ)) ΔW; strong order 1 where the noises
    commute.
    """

    name = "stochastic_heun"
    order = 2
    strong_order_additive = 1.0
    weak_order_additive = 2.0
    interpretations = ("stratonovich",)
    source = "Rümelin 1982"

    def evaluations(self, dense):
        return 2

    def _propose(self, g, t, t_next, y, h):
        w = g.noise(t, t_next).w
        drift, diffusion = g.drift(t, y), g.diffusion(t, y)
        ahead = y + h * drift + times(diffusion, w)
        drift = 0.5 * (drift + g.drift(t_next, ahead))
        diffusion = 0.5 * (diffusion + g.diffusion(t_next, ahead))
        return y + h * drift + times(diffusion, w), None


class SRA1(StochasticSolver):
    """Rößler's SRA1 (2010) for additive noise, strong order 1.5, adaptive.

    With I = ΔW/2 + H: k1 = f(t, y), k2 = f(t + ¾h, y + ¾ h k1 + 3/2 g(t1) I),
    y1 = y + h (k1 + 2 k2) / 3 + g(t1) ΔW + (g(t) - g(t1)) I. The error estimate is the distance to
    the Euler-Maruyama step with the same noise, whose order is 1.
    """

    name = "sra1"
    order = 2
    error_order = 0.5
    strong_order = 1.5
    weak_order = 2.0
    noises = ("additive",)
    interpretations = _BOTH
    source = "Rößler 2010"

    def evaluations(self, dense):
        return 2

    def _propose(self, g, t, t_next, y, h):
        w, area = g.noise(t, t_next)
        mean = 0.5 * w + area
        start, end = g.diffusion(t, y), g.diffusion(t_next, y)
        k1 = g.drift(t, y)
        k2 = g.drift(t + 0.75 * (t_next - t), y + 0.75 * h * k1 + 1.5 * times(end, mean))
        bend = times(start - end, mean)
        error = (2.0 / 3.0) * h * (k2 - k1) + bend
        return y + h * k1 + times(end, w) + error, error


class StabilityOptimizedSRI(StochasticSolver):
    """The stability-optimized method of Rackauckas & Nie, strong order 1.5, adaptive.

    For diagonal and scalar Itô noise, and for additive noise. The error estimate is the distance
    to the companion of strong order 1 with the same stages: E_D + E_N of Rackauckas & Nie
    ("Adaptive methods for stochastic differential equations via natural embeddings and rejection
    sampling with memory", DCDS-B 22, 2017), with the Euler step as the companion's drift.
    """

    name = "sosri"
    order = 2
    error_order = 0.5
    strong_order = 1.5
    # Not 2: the stages of the noise move by √|h|, whatever the noise is, so that expectations have
    # an error of order h^2.5 in a step.
    weak_order = 1.5
    weak_order_additive = 2.0
    noises = ("diagonal", "scalar", "additive")
    tableau = SOSRI
    source = SOSRI.source

    def evaluations(self, dense):
        return 4

    def _propose(self, g, t, t_next, y, h):
        table = self.tableau
        w, area = g.noise(t, t_next)
        length = tf.abs(h)
        root = tf.sqrt(length)
        mean = 0.5 * w + area
        chi = (
            w,
            tf.math.divide_no_nan(w * w - length, 2.0 * root),
            mean,
            tf.math.divide_no_nan(w * w * w, 6.0 * length) - 0.5 * w,
        )
        drifts: list = []
        diffusions: list = []
        rows = zip(table.c0, table.c1, table.a0, table.b0, table.a1, table.b1, strict=True)
        for c0, c1, a0, b0, a1, b1 in rows:
            first = second = y
            if drifts:
                first = y + h * combine(a0, drifts) + times(combine(b0, diffusions), mean)
                noise = combine(b1, diffusions)
                second = y + h * combine(a1, drifts)
                second += root * noise if noise.shape.rank == 2 else 0.0
            drifts.append(g.drift(t + c0 * (t_next - t), first))
            diffusions.append(g.diffusion(t + c1 * (t_next - t), second))
        noises = [
            times(combine(weights, diffusions), x)
            for weights, x in zip(table.beta, chi, strict=True)
        ]
        differences = [k - drifts[0] for k in drifts[1:]]
        error = h * combine(table.alpha[1:], differences) + noises[2] + noises[3]
        return y + h * drifts[0] + noises[0] + noises[1] + error, error


class LambaEM(StochasticSolver):
    """Euler-Maruyama with adaptive steps, for every Itô noise (after Lamba, 2003).

    The estimate adds what a step leaves out of the drift, ½ h (f(t1, y + h f) - f), and the root
    mean square of what it leaves out of the noise, √(|h|/2) (g(y + h f + √|h| |g|) - g). It does
    not look at the noise of the step that it judges. A step that is rejected because its noise is
    large would tilt the law where noises do not commute (Gaines & Lyons, "Variable step size
    control in the numerical solution of stochastic differential equations", 1997).
    """

    name = "lamba_em"
    order = 1
    error_order = 0
    strong_order_additive = 1.0
    previsible = True
    source = "Lamba 2003; Gaines & Lyons 1997"

    def evaluations(self, dense):
        return 2

    def _propose(self, g, t, t_next, y, h):
        w = g.noise(t, t_next).w
        drift, diffusion = g.drift(t, y), g.diffusion(t, y)
        moved = y + h * drift
        root = tf.sqrt(tf.abs(h))

        def size(matrix):
            if matrix.shape.rank == 2:
                return matrix
            return tf.sqrt(tf.reduce_sum(tf.square(matrix), axis=2))

        ahead = g.diffusion(t_next, moved + root * size(diffusion))
        by_noise = root * (0.5**0.5) * tf.abs(size(ahead - diffusion))
        by_drift = 0.5 * tf.abs(h * (g.drift(t_next, moved) - drift))
        return moved + times(diffusion, w), by_drift + by_noise


class ReversibleHeun(StochasticSolver):
    """The reversible Heun method, for the Stratonovich integral.

    (Kidger, Foster, Li & Lyons, "Efficient and accurate gradients for neural SDEs", NeurIPS 2021.)
    It carries a second state z, at first y: z1 = 2y - z + h f(t, z) + g(t, z) ΔW,
    y1 = y + ½ h (f(t, z) + f(t1, z1)) + ½ (g(t, z) + g(t1, z1)) ΔW. A step can be undone exactly
    up to rounding.
    """

    name = "reversible_heun"
    order = 2
    strong_order_additive = 1.0
    weak_order_additive = 2.0
    interpretations = ("stratonovich",)
    copies = 2
    reversible = True
    source = "Kidger, Foster, Li & Lyons 2021"

    def evaluations(self, dense):
        return 2

    def _propose(self, g, t, t_next, y, h):
        w = g.noise(t, t_next).w
        y, z = tf.split(y, 2, axis=1)
        drift, diffusion = g.drift(t, z), g.diffusion(t, z)
        z1 = 2.0 * y - z + h * drift + times(diffusion, w)
        drift = 0.5 * (drift + g.drift(t_next, z1))
        diffusion = 0.5 * (diffusion + g.diffusion(t_next, z1))
        return tf.concat([y + h * drift + times(diffusion, w), z1], axis=1), None


#: The methods by name.
STOCHASTIC = {
    method.name: method
    for method in (
        EulerMaruyama,
        Milstein,
        EulerHeun,
        StochasticHeun,
        SRA1,
        StabilityOptimizedSRI,
        LambaEM,
        ReversibleHeun,
    )
}
