"""The training loop: calls the compiled step, and between calls logs, evaluates, saves and stops.

It trains one or more runs at the same step; a run alone is a group of one. Nothing in it blocks on the device but
evaluation and saving: metrics are fetched an interval late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain.config import Config, chosen
from jaxtrain.training.callbacks import Callbacks, LastMetrics, RunView
from jaxtrain.training.hang import HangWatch
from jaxtrain.training.lanes import EvaluationStoppedError, Lane
from jaxtrain.training.meter import Meter
from jaxtrain.training.nonfinite import Diverged, bad_array
from jaxtrain.training.progress import Progress, Timetable, note_evaluation
from jaxtrain.training.state import TrainState, Tree, to_arrays

Wishes = Callable[[int, bool], tuple[bool, bool]]
"""From a step, and whether saving is due by this process's clock, to whether to stop (a signal) and whether to save."""


@dataclass(eq=False)
class Member:
    """One run in the loop."""

    config: Config
    """Resolved."""
    run_dir: Path
    class_names: tuple[str, ...]
    callbacks: tuple[Any, ...]
    progress: Progress
    best: Tree | None = None
    """Host arrays of the inference weights at `progress.best_step`; None before the first evaluation."""
    state: TrainState | None = None
    """The state at the end, to be read on the host."""
    ended: Exception | None = None
    """Why it is over before its time: Diverged, or what a callback raised."""
    interrupted: bool = False

    @property
    def active(self) -> bool:
        """Whether it still trains."""
        return self.ended is None and self.state is None


class Loop:
    """Trains members from the same step to the end of a timetable, or until a signal comes.

    A member that diverges (within `log_every` steps of a loss that is not finite, and before a parameter that is not
    would be saved), whose callback raises, or that is stopped early, is out; the others go on.
    """

    def __init__(
        self,
        lane: Lane,
        states: Sequence[TrainState],
        members: Sequence[Member],
        timetable: Timetable,
        wishes: Wishes,
        hang: HangWatch,
    ) -> None:
        """`states` are the members', on the host; all members have the same monitor. `hang` watches the loop."""
        self._hang = hang
        self._lane, self._members, self._table, self._wishes = lane, members, timetable, wishes
        self._state = lane.place(states)
        self._step = members[0].progress.step
        self._due = members[0].progress.evaluation_due
        self._monitor = chosen(members[0].config.train.monitor)
        self._callbacks = [Callbacks(one.callbacks, self._view(number)) for number, one in enumerate(members)]
        self._meters = [self._meter(number) for number in range(len(members))]
        self._seconds = [one.progress.seconds for one in members]
        self._apart: list[TrainState] | None = None

    def run(self) -> None:
        """Train; each member then has its last `state`, `ended` for why it has none, or is `interrupted`."""
        self._started = self._saved = time.monotonic()
        self._next = self._table.next_evaluation(self._step)
        if not self._due:
            self._retire()
        while any(one.active for one in self._members):
            if not self._due:
                self._advance()
            if (self._due or self._step >= self._next) and not self._evaluate():
                self._leave(interrupted=True)
                return
            self._retire()
            overdue = time.monotonic() - self._saved >= self._table.save_seconds
            stop, save = self._wishes(self._step, overdue)
            if stop:
                self._leave(interrupted=True)
                return
            every = self._table.save_steps
            grid = every is not None and self._step % every < self._length
            if save or grid or self._step == self._table.pinned:
                self._save()
                self._restart_clocks()

    def _advance(self) -> None:
        self._length = self._table.call_length(self._step)
        self._hang.waiting(self._save)
        asked = time.monotonic()
        args = self._lane.args(self._step)
        waited = time.monotonic() - asked
        self._hang.arrived()
        self._state, metrics = self._lane.call(self._state, self._length, args)
        self._hang.beat()
        self._apart = None
        self._step += self._length

        def done(number: int) -> None:
            self._members[number].progress.step = self._step
            self._meters[number].add(self._step, metrics[number], waited)
            told = self._callbacks[number]
            if told.has("step"):
                self._note(told, "step", self._step, LastMetrics(metrics[number]))

        self._each(done)

    _length = 0
    """Steps of the last call."""

    def _evaluate(self) -> bool:
        """Whether it went to its end."""
        self._next = self._table.next_evaluation(self._step)
        self._each(lambda number: self._meters[number].flush())
        if self._lane.validate is None:
            return True
        for one in self._members:
            one.progress.evaluation_due = one.active
        self._hang.evaluating()
        try:
            metrics = self._lane.validate(self._state)
        except EvaluationStoppedError:
            return False
        weights: list[Tree] = []

        def note(number: int) -> None:
            one = self._members[number]
            if note_evaluation(metrics[number], one.progress, self._monitor):
                weights.extend([] if weights else self._lane.apart(self._state.eval_weights))
                one.best = jax.tree.map(np.array, jax.device_get(weights[number]))
            one.progress.evaluation_due = False
            self._note(self._callbacks[number], "evaluation", self._step, metrics[number])

        self._each(note)
        self._hang.beat()
        self._due = False
        self._restart_clocks()
        return True

    def _note(self, told: Callbacks, moment: str, step: int, metrics: Any) -> None:
        if told.tell(moment, step, metrics):
            told.run.progress.stopped = True

    def _retire(self) -> None:
        """Those whose last step was made, or that are stopped early, leave with the state that they have now."""
        if any(one.active and self._table.over(one.progress) for one in self._members):
            self._leave(lambda one: self._table.over(one.progress))

    def _leave(self, who: Callable[[Member], bool] = lambda one: True, *, interrupted: bool = False) -> None:
        def leave(number: int) -> None:
            one, told = self._members[number], self._callbacks[number]
            self._keep(number)
            one.interrupted = interrupted and (one.progress.evaluation_due or not self._table.over(one.progress))
            if not one.interrupted:
                told.tell("end", one.progress.step, one.progress.latest)
            one.state = self._states()[number]

        self._each(leave, who)

    def _save(self) -> None:
        self._each(self._keep)
        self._saved = time.monotonic()

    def _keep(self, number: int) -> None:
        one, told = self._members[number], self._callbacks[number]
        self._meters[number].flush()
        one.progress.seconds = self._seconds[number] + time.monotonic() - self._started
        told.tell("checkpoint", one.progress.step, one.progress.latest)

    def _each(self, action: Callable[[int], None], who: Callable[[Member], bool] = lambda one: True) -> None:
        """For members that still train; one that raises is out."""
        for number, one in enumerate(self._members):
            if one.active and who(one):
                try:
                    action(number)
                except Exception as error:
                    one.ended = error

    def _restart_clocks(self) -> None:
        for meter in self._meters:
            meter.restart_clock()

    def _states(self) -> list[TrainState]:
        """The members' states, until the next step."""
        if self._apart is None:
            self._apart = self._lane.apart(self._state)
        return self._apart

    def _meter(self, number: int) -> Meter:
        def log(step: int, metrics: Mapping[str, float]) -> None:
            self._note(self._callbacks[number], "record", step, metrics)

        return Meter(self._table, self._members[number].progress, log, self._lane.at_peak)

    def _view(self, number: int) -> RunView:
        one = self._members[number]

        def weights() -> Tree:
            return jax.tree.map(np.array, jax.device_get(self._states()[number].eval_weights))

        def state() -> dict[str, Any]:
            arrays = to_arrays(self._states()[number])
            if (name := bad_array(arrays)) is not None:
                raise Diverged(f"{name} became NaN or infinite at step {one.progress.step}", one.progress.step)
            return arrays

        total = self._table.total_steps
        return RunView(one.config, one.run_dir, one.class_names, total, one.progress, weights, state, lambda: one.best)
