"""Equations to which things happen: events and jumps at the front door."""

import dataclasses

import numpy as np
import tensorflow as tf

from keras_neuralde import captures, values
from keras_neuralde.checks import check_takes
from keras_neuralde.equations.base import Equation, Lifted, checked, spanning
from keras_neuralde.equations.stochastic import LiftedStochastic, trajectories_of, words_of
from keras_neuralde.events import DISCRETE, PRESET, RATE, ROOT
from keras_neuralde.happenings import Channel, Happenings


class HybridEquation(Equation):
    """An equation, and what happens to its trajectories.

    Args:
        inner: the `Equation` between the happenings.
        happenings: a list of `Happening`.
    """

    def __init__(self, inner, happenings):
        super().__init__(inner.problem)
        self.inner = inner
        self.happenings = list(happenings)

    @property
    def random(self):
        """Whether random numbers decide what happens."""
        return any(one.kind == RATE or one.uniforms or one.waits for one in self.happenings)

    def choose_solver(self, solver, adjoint, controller):
        return self.inner.choose_solver(solver, adjoint, controller)

    def check(self, settings):
        self.inner.check(settings)
        solver = settings.solver
        if solver.delegated or solver.remembers:
            kind = "TFP's own solvers" if solver.delegated else "delay equations"
            raise ValueError(
                f"events and jumps are not for {kind}; use a method such as 'tsit5' on an "
                f"ODEProblem. Received: solver={solver!r}"
            )
        if solver.splits:
            raise ValueError(
                "events and jumps are for equations in one part; use 'tsit5', or 'rodas5p' for "
                f"stiff ones, on an ODEProblem. Received: {solver!r}"
            )
        if solver.copies > 1:
            raise ValueError(
                f"solver {solver.name!r} carries a second state, of which an affect knows nothing; "
                "use 'stochastic_heun' or another method where something happens."
            )
        if settings.adjoint.name != "discrete":
            raise ValueError(
                "the gradient through events and jumps is adjoint='discrete' only. "
                f"Received: adjoint={settings.adjoint!r}"
            )
        if settings.dense:
            raise ValueError(
                "dense=True is not for solves with events or jumps, where the state is not one "
                "function of time; list times in `saveat`."
            )
        if settings.joint:
            raise ValueError(
                "step_control='joint' is not for solves with events or jumps: they happen to each "
                "trajectory at times of its own. Leave it out."
            )
        if settings.replays:
            raise ValueError(
                "`steps` cannot be replayed where events or jumps cut them. Leave them out, and "
                "choose rtol ≤ 1e-10 to compare with finite differences."
            )
        if solver.stochastic and any(one.kind == ROOT for one in self.happenings):
            raise ValueError(
                "a ContinuousEvent is found on the interpolant of a step, which paths of "
                "stochastic equations do not have; use a DiscreteEvent, a PresetTimeEvent or a "
                f"jump with a bound. Received: solver={solver.name!r}"
            )
        if getattr(self.problem, "mass_matrix", None) is not None:
            raise ValueError(
                "events and jumps are not for problems with a mass matrix: an affect may break "
                "their algebraic equations. Write the problem without `mass_matrix`."
            )

    def inputs(self, settings, layout, inputs, seed):
        more = self.inner.inputs(settings, layout, inputs, seed)
        more["event_times"] = [
            _times(one.times, layout) for one in self.happenings if one.kind == PRESET
        ]
        if self.random and "seed" not in more:
            more["seed"], more["trajectory"] = words_of(seed, layout)
        return more

    def shape(self, saves, watched, settings, inputs):
        shape = self.inner.shape(saves, watched, settings, inputs)
        cut = any(one.kind in (PRESET, RATE) for one in self.happenings)
        # Where the times are not known yet, jumps are refused a backward span by a status.
        forwards = any(not one.recorded for one in self.happenings)
        return dataclasses.replace(shape, cut=cut, forwards=forwards)

    def key(self, references):
        return "hybrid", self.inner.key(references), *(h.key(references) for h in self.happenings)

    def lift(self, layout, p):
        channels = [_lift(one, layout, p) for one in self.happenings]
        jumps = any(not one.recorded for one in self.happenings)
        # The leaves of the state come before the likelihood of the jumps and their clocks.
        leaves = len(tf.nest.flatten(layout.structure[0])) if jumps else None
        inner = self.inner.lift(layout, p)
        if jumps and isinstance(inner, LiftedStochastic):
            inner = inner.with_silent(sum(layout.sizes[leaves:]))
        return LiftedHybrid(inner, channels, leaves)


class LiftedHybrid(Lifted):
    """The traced functions of an equation, and the channels, without times.

    Args:
        inner: the `Lifted` equation.
        channels: the `Channel`s.
        leaves: of a jump problem, how many leaves of the larger state are those of the state.
    """

    def __init__(self, inner, channels, leaves=None):
        self.inner = inner
        self.channels = channels
        own = [function for channel in channels for function in channel.functions]
        self.functions = (*inner.functions, *own)
        self._law = _law(self, leaves) if leaves else ([], [])

    def law(self, p):
        numbers, tensors = self._law
        leaves = [leaf for leaf in tf.nest.flatten(p) if leaf is not None]
        return [leaves[k] for k in numbers if leaves[k].dtype.is_floating] + tensors

    def bind(self, context):
        field = self.inner.bind(context)
        field.also_reads([f for channel in self.channels for f in channel.functions])
        return field

    def happenings(self, context):
        times = iter(context.inputs["event_times"])
        rows = tf.shape(context.terms.t0)[0]
        channels = []
        for channel in self.channels:
            if channel.kind == PRESET:
                given = next(times)
                n = given.shape[-1] or tf.shape(given)[-1]
                given = tf.transpose(tf.reshape(given, (-1, n)))
                channel = dataclasses.replace(channel, times=given, max_events=given.shape[0])
            channels.append(channel)
        seed, trajectory = None, None
        if "seed" in context.inputs:
            seed = context.inputs["seed"]
            trajectory = trajectories_of(context.inputs, rows)
        return Happenings(channels, context.terms.direction, seed, trajectory)


def _law(lifted, leaves):
    """What only the rates of jumps read: numbers of parameters, captured tensors and variables."""
    drift, *rest = lifted.inner.functions
    path = [drift.reads(leaves), *(function.reads() for function in rest)]
    for channel in lifted.channels:
        if channel.affect is not None:
            path.append(channel.affect.reads(leaves))
        if channel.condition is not None:
            path.append(channel.condition.reads())
    known = {number for numbers, _ in path for number in numbers}
    met = {id(tensor) for _, tensors in path for tensor in tensors}
    every = [function.reads() for function in lifted.functions]
    numbers = sorted({number for numbers, _ in every for number in numbers} - known)
    found = {id(tensor): tensor for _, tensors in every for tensor in tensors}
    return numbers, [tensor for name, tensor in found.items() if name not in met]


def _lift(one, layout, p):
    """A `Channel` with traced functions."""
    specs = spanning(layout, p)
    functions: dict = {}
    if one.affect is not None:
        arguments = specs
        if one.uniforms:
            numbers = tf.TensorSpec((*layout.batch_shape, one.uniforms), layout.dtype)
            arguments = (*specs[:2], numbers, specs[2])
        affect = checked(one.affect, layout, "affect(t, y, p)")
        functions["affect"] = captures.lift(affect, *arguments)
    scalars = {"rate": one.rate, "bound": one.bound, "condition": one.condition}
    for name, function in scalars.items():
        if function is not None:
            wanted = tf.bool if one.kind == DISCRETE else layout.dtype
            functions[name] = captures.lift(_scalar(function, name, wanted), *specs)
    return Channel(
        one.kind, **functions, direction=one.direction, terminal=one.terminal,
        max_events=1 if one.terminal else one.max_events, uniforms=one.uniforms, held=one.held,
        recorded=one.recorded, waits=one.waits,
    )  # fmt: skip


def _scalar(function, name, dtype):
    """`function` with what it returns compared with one number for each trajectory."""

    def scalar(t, y, p):
        check_takes(function, f"{name}(t, y, p)", t, y, p)
        return values.per_trajectory(function(t, y, p), t, f"{name}(t, y, p)", dtype)

    return scalar


def _times(given, layout):
    """The times of a preset event, `(n,)` or `(*batch, n)`."""
    times = values.as_float(given, layout.dtype, "times")
    rank = times.shape.rank
    if rank == 0:
        times, rank = times[None], 1
    batch = tf.TensorShape(layout.batch_shape)
    if rank not in (1, 1 + layout.batch_ndims) or not (
        rank == 1 or times.shape[:-1].is_compatible_with(batch)
    ):
        raise ValueError(
            "`times` of a PresetTimeEvent must be a 1-D array, or (*batch, n) with the batch shape "
            f"{batch}. "
            f"Received shape: {times.shape}"
        )
    if times.shape[-1] == 0:
        raise ValueError(
            "`times` of a PresetTimeEvent must hold at least one time. Received: an empty array"
        )
    if times.shape[-1] is None:
        raise ValueError("the number of `times` of a PresetTimeEvent must be known. Received: None")
    known = values.known(times)
    if known is not None:
        present = np.isfinite(known)
        if np.any(present[..., 1:] & ~present[..., :-1]) or np.any(np.isinf(known)):
            raise ValueError(
                f"`times` of a PresetTimeEvent must be finite, with NaN last. Received: {known}"
            )
        steps = np.diff(known, axis=-1)
        if np.any(steps == 0):
            raise ValueError(
                "`times` of a PresetTimeEvent must differ: give an affect that does both, or a "
                f"second event. Received: {known}"
            )
        if np.any(steps < 0) and np.any(steps > 0):
            raise ValueError(f"`times` of a PresetTimeEvent must be sorted. Received: {known}")
    return tf.stop_gradient(times)
