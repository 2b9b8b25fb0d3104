"""Many runs in one program: the pure step vmapped over a leading axis of members, the members spread over devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxtrain.training.feed import ResidentFeed
from jaxtrain.training.loop import (
    LoopResult,
    Meter,
    PackedMetrics,
    Progress,
    Timetable,
    Watcher,
    note_evaluation,
    pack,
    repeated,
    sound_arrays,
)
from jaxtrain.training.state import TrainState, Tree, stored_keys
from jaxtrain.training.step import Step

AXIS = "members"


@dataclass(eq=False)
class Member:
    """One run of a group."""

    feed: ResidentFeed
    watcher: Watcher
    progress: Progress
    best: Tree | None = None
    """Host arrays of the inference weights at `progress.best_step`."""
    ended: Exception | None = None
    """Why it is over before the others: what its watcher raised, or Diverged. Its state goes on, and nobody looks."""
    stopped: bool = False
    """Whether early stopping has ended it."""
    final: TrainState | None = None
    """The state in which it was stopped, on the host; the others go on."""

    @property
    def active(self) -> bool:
        """Whether it still trains."""
        return self.ended is None and not self.stopped


class Group:
    """Where the members of a group lie, and how functions of one member become functions of all."""

    def __init__(self, members: int) -> None:
        """Uses as many devices as divide the members evenly."""
        devices = jax.local_devices()
        count = max(number for number in range(1, len(devices) + 1) if members % number == 0)
        mesh = jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices[:count])
        self._mesh = mesh
        self._members, self._whole = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())

    def stack(self, trees: Sequence[Tree]) -> Tree:
        """One tree whose leaves have a leading axis of members."""
        return jax.tree.map(lambda *leaves: jax.device_put(jnp.stack(leaves), self._members), *trees)

    def share(self, tree: Tree) -> Tree:
        """Arrays that all members read."""
        return jax.device_put(tree, self._whole)

    def compile(self, function: Callable[..., Any], own: Sequence[bool], *, donate: bool = False) -> Callable[..., Any]:
        """Vmapped over the arguments that are each member's `own`; the others are shared. Nothing is communicated."""
        vmapped = jax.vmap(function, in_axes=tuple(0 if one else None for one in own))
        specs = tuple(PartitionSpec(AXIS) if one else PartitionSpec() for one in own)
        mapped = jax.shard_map(vmapped, mesh=self._mesh, in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False)
        return jax.jit(mapped, donate_argnums=0 if donate else ())


Evaluate = Callable[[TrainState], dict[str, Any]]
"""From the stacked state to metrics `[members]` by name."""


def train_group(
    group: Group,
    state: TrainState,
    step: Step,
    members: Sequence[Member],
    timetable: Timetable,
    evaluate: Evaluate | None,
    *,
    monitor: str = "val/accuracy",
) -> list[LoopResult]:
    """Train all members from the same step to the end of the timetable, as `train` does each of them.

    `state` is stacked and placed by `group`. A member that diverges, is pruned or stops early is out; the others go on.
    Stops for all when one watcher asks for it.
    """
    first = members[0].feed
    steps = {length: _compile(group, step, first, length) for length in {1, timetable.steps_per_call}}
    meters = [Meter(timetable, one.progress, one.watcher.log) for one in members]
    data = group.share(first.data)
    plan: Any = None
    plans: tuple[Any, ...] = ()
    now = members[0].progress.step
    before = [one.progress.seconds for one in members]
    next_evaluation = timetable.next_evaluation(now)
    started = saved = time.monotonic()
    interrupted = False

    def each(action: Callable[[int], None], who: Callable[[Member], bool] = lambda one: one.active) -> None:
        """For some members, by default those that still train; one that raises is out."""
        for number, one in enumerate(members):
            if who(one):
                try:
                    action(number)
                except Exception as error:
                    one.ended = error

    def keep(number: int, states: Sequence[TrainState]) -> None:
        one = members[number]
        one.progress.seconds = before[number] + time.monotonic() - started
        one.watcher.save(one.progress, sound_arrays(states[number], one.progress.step), one.best)

    def save() -> None:
        nonlocal saved
        each(lambda number: meters[number].flush())
        states = unstack(state, len(members))
        each(lambda number: keep(number, states))
        saved = time.monotonic()

    def retire() -> None:
        """Save those whom early stopping ends, as they are now."""
        leaving = [one for one in members if one.active and timetable.out_of_patience(one.progress)]
        states = unstack(state, len(members)) if leaving else []

        def leave(number: int) -> None:
            keep(number, states)
            members[number].final, members[number].stopped = states[number], True

        each(leave, lambda one: one in leaving)

    retire()
    while now < timetable.total_steps and any(one.active for one in members):
        length = timetable.call_length(now)
        current = tuple(one.feed.plan(now) for one in members)
        if plan is None or any(new is not old for new, old in zip(current, plans, strict=True)):
            plan, plans = group.stack(current), current
        state, packed = steps[length](state, *data, plan)
        now += length

        def add(number: int, step: int = now, packed: PackedMetrics = packed) -> None:
            members[number].progress.step = step
            meters[number].add(step, _Row(packed, number))

        each(add)
        if now >= next_evaluation:
            each(lambda number: meters[number].flush())
            if evaluate is not None:
                _evaluate(evaluate, state, members, each, monitor)
                retire()
                each(lambda number: meters[number].restart_clock())
            next_evaluation = timetable.next_evaluation(now)
        if any(one.watcher.wishes(now, False)[0] for one in members):
            interrupted = now < timetable.total_steps
            break
        due = timetable.save_steps is not None and now % timetable.save_steps < length
        if due or time.monotonic() - saved >= timetable.save_seconds:
            save()
            each(lambda number: meters[number].restart_clock())
    save()
    states = unstack(state, len(members))
    return [
        LoopResult(one.final or state, one.progress, one.best, interrupted and not one.stopped)
        for state, one in zip(states, members, strict=True)
    ]


def unstack(state: TrainState, members: int) -> list[TrainState]:
    """The states of all members on the host."""
    keys = jax.device_get(jax.random.key_data(state.key))
    host = jax.device_get(replace(state, key=keys))
    parts = [jax.tree.map(lambda leaf, number=number: np.array(leaf[number]), host) for number in range(members)]
    return [replace(part, key=jax.random.wrap_key_data(jnp.asarray(part.key))) for part in parts]


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


def _compile(group: Group, step: Step, feed: ResidentFeed, length: int) -> Callable[..., Any]:
    """`(state, images, labels, plan) -> (state, PackedMetrics)` of all members."""

    def one(state: TrainState, *args: Any) -> tuple[TrainState, PackedMetrics]:
        return pack(*step(state, feed.batch(state.step, *args)))

    return group.compile(repeated(one, length), (True, *(False for _ in feed.data), True), donate=True)


def _evaluate(
    evaluate: Evaluate,
    state: TrainState,
    members: Sequence[Member],
    each: Callable[[Callable[[int], None]], None],
    monitor: str,
) -> None:
    """Evaluate all, record, and keep the weights of those that are better than before."""
    metrics = evaluate(state)
    fetched: list[Tree] = []

    def note(number: int) -> None:
        one = members[number]
        mine = {name: float(values[number]) for name, values in metrics.items()}
        if note_evaluation(mine, one.progress, one.watcher, monitor):
            if not fetched:
                weights = {"params": state.eval_params, "frozen": state.frozen, "model_state": state.eval_model_state}
                fetched.append(jax.device_get(weights))
            one.best = stored_keys(jax.tree.map(lambda leaf: np.array(leaf[number]), fetched[0]))

    each(note)
