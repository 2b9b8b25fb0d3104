"""How the states of runs lie on the devices: a run alone under a strategy, or many side by side in one program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from jaxtrain.training.feed import Feed, ResidentFeed
from jaxtrain.training.inference import Inference, resident_batches
from jaxtrain.training.meter import PackedMetrics, StepMetrics, compile_step, pack, repeated
from jaxtrain.training.parallel import Strategy, must_block
from jaxtrain.training.state import TrainState, Tree
from jaxtrain.training.step import Step

AXIS = "members"


class EvaluationStoppedError(Exception):
    """Raised by an evaluation that a signal cuts off; it is the first thing when training goes on."""


Validate = Callable[[TrainState], list[dict[str, float]]]
"""From the state of all members to the validation metrics of each."""


class Lane(Protocol):
    """The states of one or more runs at the same step, as one state."""

    validate: Validate | None
    """None where there is no validation set."""
    at_peak: float | None
    """Seconds of a step of all at the devices' peak; None where that is not known."""

    def place(self, states: Sequence[TrainState]) -> TrainState:
        """On the devices, from the host."""

    def args(self, step: int) -> tuple[Any, ...]:
        """Batches for the call that starts at `step`."""

    def call(self, state: TrainState, length: int, args: tuple[Any, ...]) -> tuple[TrainState, Sequence[StepMetrics]]:
        """So many steps of all; the state is given away."""

    def apart(self, tree: Tree) -> list[Tree]:
        """Each member's part of a tree, to be read on the host."""


class Alone:
    """One run, on the devices of a strategy."""

    def __init__(
        self,
        step: Step,
        feed: Feed,
        strategy: Strategy,
        validate: Validate | None,
        compiled: dict[int, Any],
        at_peak: float | None = None,
    ) -> None:
        """`compiled` keeps compiled steps by their length, for other runs with the same `step`.

        `at_peak`: seconds of a step on one device at its peak.
        """
        self.validate = validate
        self.at_peak = None if at_peak is None else at_peak / len(strategy.devices)
        self._step, self._feed, self._strategy = step, feed, strategy
        self._compiled = compiled
        self._synchronous = must_block(strategy)

    def place(self, states: Sequence[TrainState]) -> TrainState:
        """See `Lane`."""
        placed: TrainState = self._strategy.place(states[0])
        return placed

    def args(self, step: int) -> tuple[Any, ...]:
        """See `Lane`."""
        return self._feed.args(step)

    def call(self, state: TrainState, length: int, args: tuple[Any, ...]) -> tuple[TrainState, Sequence[StepMetrics]]:
        """See `Lane`."""
        if length not in self._compiled:
            self._compiled[length] = compile_step(self._step, self._feed, self._strategy, length)
        state, packed = self._compiled[length](state, *args)
        if self._synchronous:
            jax.block_until_ready(packed)
        return state, (packed,)

    def apart(self, tree: Tree) -> list[Tree]:
        """See `Lane`."""
        return [self._strategy.single(tree)]


class SideBySide:
    """Runs that share a program: the step vmapped over a leading axis of members, the members spread over devices."""

    def __init__(
        self,
        step: Step,
        feeds: Sequence[ResidentFeed],
        inference: Inference,
        val: Any,
        cut_off: Callable[[], bool],
        at_peak: float | None = None,
    ) -> None:
        """Uses as many devices as divide the members evenly.

        `val`: the validation images of all, or None; `cut_off` is asked before each batch of them. `at_peak`: seconds
        of one member's step on one device at its peak.
        """
        self._cut_off = cut_off
        self._step, self._feeds, self.members = step, feeds, len(feeds)
        devices = jax.local_devices()
        count = max(number for number in range(1, len(devices) + 1) if self.members % number == 0)
        self.at_peak = None if at_peak is None else at_peak * self.members / count
        self._mesh = jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices[:count])
        self._split, self._whole = (NamedSharding(self._mesh, spec) for spec in (PartitionSpec(AXIS), PartitionSpec()))
        self._data = self._share(feeds[0].data)
        self._plans: tuple[Any, ...] = ()
        self._plan: Any = None
        self._compiled: dict[int, Callable[..., Any]] = {}
        self.validate = None if val is None else self._validation(inference, val)

    def place(self, states: Sequence[Tree]) -> Any:
        """See `Lane`: one tree whose leaves have a leading axis of members."""
        return jax.tree.map(lambda *leaves: jax.device_put(jnp.stack(leaves), self._split), *states)

    def args(self, step: int) -> tuple[Any, ...]:
        """See `Lane`."""
        current = tuple(feed.plan(step) for feed in self._feeds)
        if not self._plans or any(new is not old for new, old in zip(current, self._plans, strict=True)):
            self._plan, self._plans = self.place(current), current
        return (*self._data, self._plan)

    def call(self, state: TrainState, length: int, args: tuple[Any, ...]) -> tuple[TrainState, Sequence[StepMetrics]]:
        """See `Lane`."""
        if length not in self._compiled:
            own = (True, *(False for _ in self._data), True)
            self._compiled[length] = self._compile(repeated(self._one, length), own, donate=True)
        state, packed = self._compiled[length](state, *args)
        return state, [_Row(packed, number) for number in range(self.members)]

    def apart(self, tree: Tree) -> list[Tree]:
        """See `Lane`."""
        keys, state = None, tree
        if isinstance(tree, TrainState):
            keys = jax.device_get(jax.random.key_data(tree.key))
            state = replace(tree, key=keys)
        host = jax.device_get(state)
        parts = [
            jax.tree.map(lambda leaf, number=number: np.array(leaf[number]), host) for number in range(self.members)
        ]
        return parts if keys is None else [replace(p, key=jax.random.wrap_key_data(jnp.asarray(p.key))) for p in parts]

    def _one(self, state: TrainState, *args: Any) -> tuple[TrainState, PackedMetrics]:
        return pack(*self._step(state, self._feeds[0].batch(state.step, *args)))

    def _share(self, tree: Tree) -> Tree:
        return jax.device_put(tree, self._whole)

    def _compile(
        self, function: Callable[..., Any], own: Sequence[bool], *, donate: bool = False
    ) -> Callable[..., Any]:
        """Vmapped over the arguments that are each member's `own`; the others are shared. Nothing is communicated."""
        vmapped = jax.vmap(function, in_axes=tuple(0 if one else None for one in own))
        specs = tuple(PartitionSpec(AXIS) if one else PartitionSpec() for one in own)
        mapped = jax.shard_map(vmapped, mesh=self._mesh, in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False)
        return jax.jit(mapped, donate_argnums=0 if donate else ())

    def _validation(self, inference: Inference, val: Any) -> Validate:
        function = self._compile(inference.function("metrics"), (True, False))
        batches = [(self._share(batch), valid) for batch, valid in resident_batches(inference, val)]

        def validate(state: TrainState) -> list[dict[str, float]]:
            parts = []
            for batch, valid in batches:
                if self._cut_off():
                    raise EvaluationStoppedError
                parts.append((function(state.eval_weights, batch), valid))
            host = [jax.tree.map(lambda rows, keep=valid: np.asarray(rows)[:, keep], part) for part, valid in parts]
            each: dict[str, NDArray[Any]] = jax.tree.map(lambda *rows: np.concatenate(rows, axis=1), *host)
            members = ({name: rows[number] for name, rows in each.items()} for number in range(self.members))
            return [inference.validation(mine, val.labels) for mine in members]

        return validate


@dataclass(frozen=True)
class _Row:
    """One member's part of the metrics of all; the array is fetched once for all members."""

    packed: PackedMetrics
    number: int

    @property
    def names(self) -> tuple[str, ...]:
        """As in `PackedMetrics`."""
        return self.packed.names

    @property
    def values(self) -> Any:
        """`float32[steps, names]`"""
        return np.asarray(self.packed.values)[self.number]
