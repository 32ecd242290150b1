"""Step-size control: how an error estimate becomes the next step.

A controller is a record of numbers. Its one verb, `factor`, maps the scaled errors of the last
three accepted attempts to the factor by which the step changes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_neuralde.checks import check_not_negative, check_number, check_positive


@dataclasses.dataclass(frozen=True)
class Constant:
    """Steps of the fixed size `dt0`; the last one is cut to end exactly on the final time."""

    def get_config(self) -> dict[str, Any]:
        return {}


@dataclasses.dataclass(frozen=True)
class Replay:
    """The steps of an earlier solve, one after the other; every one of them is accepted."""


@dataclasses.dataclass(frozen=True)
class PID:
    """Proportional-integral-derivative control of the step size.

    With E_n the norm of the error estimate over the tolerance and k the order of the estimate
    plus one, the step changes by

        safety · E_n^(-β1/k) · E_{n-1}^(-β2/k) · E_{n-2}^(-β3/k),
        β1 = P + I + D,  β2 = -(P + 2 D),  β3 = D

    (Söderlind, "Digital filters in adaptive time-stepping", ACM TOMS 2003), within
    `[factor_min, factor_max]`, and never grows right after a rejection.

    Args:
        P: proportional coefficient.
        I: integral coefficient; `PID(0, 1, 0)` is the classical controller.
        D: derivative coefficient.
        safety: aims a little below the tolerance.
        factor_min: the most a step may shrink at once.
        factor_max: the most a step may grow at once.

    Raises:
        ValueError: for what is no number, a safety that is not positive, or factors that do not
            lie on both sides of 1.
    """

    P: float = 0.0
    I: float = 1.0  # noqa: E741
    D: float = 0.0
    safety: float = 0.9
    factor_min: float = 0.2
    factor_max: float = 10.0

    def __post_init__(self) -> None:
        for name in ("P", "I", "D"):
            check_number(name, getattr(self, name))
        for name in ("safety", "factor_max"):
            check_positive(name, getattr(self, name))
        check_not_negative("factor_min", self.factor_min)
        if not self.factor_min < 1.0 < self.factor_max:
            raise ValueError(
                "`factor_min` must be below 1 and `factor_max` above it. "
                f"Received: {self.factor_min!r} and {self.factor_max!r}"
            )

    def get_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def looks_back(self) -> bool:
        """Whether earlier errors have a say."""
        return bool(self.P or self.D)

    def factor(self, error: tf.Tensor, earlier: Sequence[tf.Tensor], order: float) -> tf.Tensor:
        """The factor for the next step.

        Args:
            error: `(rows,)`, squared scaled error of this attempt.
            earlier: the same of the last accepted step and of the one before it; not read unless
                `looks_back`.
            order: order of the error estimate plus one.
        """
        floor = tf.constant(1e-30, error.dtype)
        half = -0.5 / order
        factor = self.safety * _power(error, half * (self.P + self.I + self.D), floor)
        if self.looks_back:
            factor *= _power(earlier[0], -half * (self.P + 2 * self.D), floor)
        if self.D:
            factor *= _power(earlier[1], half * self.D, floor)
        return tf.clip_by_value(factor, self.factor_min, self.factor_max)


def _power(squared, exponent, floor):
    """`squared ** exponent` to three digits, which are plenty for a step size.

    XLA's logarithm and exponential cost a twentieth of a step of a small equation more. Here both
    are short polynomials between powers of two, which the bits of a float32 give away.
    """
    x = tf.maximum(tf.cast(squared, tf.float32), tf.cast(floor, tf.float32))
    bits = tf.bitcast(x, tf.int32)
    mantissa = tf.bitwise.bitwise_and(bits, 0x7FFFFF)
    m = tf.bitcast(tf.bitwise.bitwise_or(mantissa, 0x3F800000), tf.float32) - 1.0
    power = tf.cast(tf.bitwise.right_shift(bits, 23) - 127, tf.float32)
    # log2(1 + m) and 2^f with their ends exact, so that the whole is continuous.
    log2 = power + m + m * (1.0 - m) * (0.4381 - 0.2367 * m + 0.0803 * m * m)
    z = tf.clip_by_value(float(exponent) * log2, -60.0, 60.0)
    whole = tf.floor(z)
    f = z - whole
    scale = tf.bitcast(tf.bitwise.left_shift(tf.cast(whole, tf.int32) + 127, 23), tf.float32)
    return tf.cast(scale * (1.0 + f - f * (1.0 - f) * (0.3041 + 0.0791 * f)), squared.dtype)


_NAMED: dict[str, Constant | PID] = {
    "constant": Constant(),
    "I": PID(),
    "PI": PID(P=0.4, I=0.3),
    "PID": PID(P=0.3, I=0.3, D=0.02),
}


def get(identifier: str | dict | Constant | PID) -> Constant | PID:
    """The controller for a name (`constant`, `I`, `PI`, `PID`), a config or a controller."""
    if isinstance(identifier, (Constant, PID)):
        return identifier
    if isinstance(identifier, dict):
        kinds: dict[str, type[Constant] | type[PID]] = {"Constant": Constant, "PID": PID}
        kind = kinds.get(str(identifier.get("class_name")))
        if kind is not None:
            return kind(**identifier.get("config", {}))
    if isinstance(identifier, str) and identifier in _NAMED:
        return _NAMED[identifier]
    raise ValueError(
        f"`controller` must be one of {sorted(_NAMED)} or a controller object. "
        f"Received: {identifier!r}"
    )


def serialize(controller: Constant | PID) -> dict[str, Any]:
    """The config from which `get` makes the controller again."""
    if not isinstance(controller, (Constant, PID)):
        raise TypeError(
            f"`controller` must be a controller object. Received: {controller!r} of type "
            f"{type(controller).__name__}"
        )
    return {"class_name": type(controller).__name__, "config": controller.get_config()}


def initial_step(
    g: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    t: tf.Tensor,
    t_end: tf.Tensor,
    y: tf.Tensor,
    k1: tf.Tensor,
    direction: tf.Tensor,
    scale: tf.Tensor,
    order: float,
) -> tf.Tensor:
    """The first step of an adaptive method (Hairer, Nørsett & Wanner I, II.4).

    Costs one evaluation of the field, inside the time span.

    Args:
        g: the field.
        t: `(rows,)`, the start.
        t_end: `(rows,)`, the end.
        y: `(rows, width)`.
        k1: the field at the start.
        direction: `(rows,)`, +1 forwards and -1 backwards in time.
        scale: `(rows, width)`, what an error of one is measured in.
        order: the order of the error estimate plus one.

    Returns:
        `(rows,)` step sizes, at most the span.
    """

    def rms(x):
        return tf.sqrt(tf.reduce_mean(tf.square(x), axis=1))

    span = tf.abs(t_end - t)
    size, slope = rms(y / scale), rms(k1 / scale)
    tiny = (size < 1e-5) | (slope < 1e-5)
    h0 = tf.where(tiny, tf.constant(1e-6, y.dtype), 0.01 * size / tf.where(~tiny, slope, 1.0))
    h0 = tf.minimum(h0, span)
    signed = (direction * h0)[:, None]
    probe = tf.where(h0 < span, t + direction * h0, t_end)
    k2 = g(probe, y + signed * k1)
    curvature = rms((k2 - k1) / scale) / tf.maximum(h0, tf.constant(1e-30, y.dtype))
    largest = tf.maximum(slope, curvature)
    flat = largest <= 1e-15
    h1 = tf.where(
        flat,
        tf.maximum(tf.constant(1e-6, y.dtype), 1e-3 * h0),
        tf.pow(0.01 / tf.where(~flat, largest, 1.0), tf.constant(1.0 / order, y.dtype)),
    )
    proposed = tf.minimum(100.0 * h0, h1)
    proposed = tf.where(tf.math.is_finite(proposed), proposed, 1e-3 * h0)
    return tf.minimum(proposed, span)
