"""When what happens in a run, and how far it has come: functions of the step alone, so that a resumed run does the same
at the same steps as an undisturbed one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Timetable:
    """When what happens, in steps."""

    total_steps: int
    steps_per_epoch: float
    batch_size: int
    eval_epochs: float = 1.0
    log_every: int = 10
    steps_per_call: int = 1
    save_seconds: float = 60.0
    save_steps: int | None = None
    patience: int | None = None
    skip_limit: int = 5
    """Skipped steps in a row at which training ends."""
    pinned: int | None = None
    """Where a checkpoint is saved that stays: a longer run goes on from there."""

    def next_evaluation(self, step: int) -> int:
        """The first evaluation after `step`: at whole multiples of `eval_epochs`, rounded up to whole calls."""
        every = self.eval_epochs * self.steps_per_epoch
        number = max(math.floor(step / every), 1)
        while (due := self._whole_calls(math.ceil(number * every - 1e-9))) <= step:
            number += 1
        return min(due, self.total_steps)

    def call_length(self, step: int) -> int:
        """Steps in the call that starts at `step`: all of `steps_per_call`, or one where that does not fit."""
        whole = step % self.steps_per_call == 0 and step + self.steps_per_call <= self.total_steps
        return self.steps_per_call if whole else 1

    def over(self, progress: Progress) -> bool:
        """Whether no step is left, or early stopping has ended training."""
        out_of_patience = self.patience is not None and progress.misses >= self.patience
        return progress.step >= self.total_steps or progress.stopped or out_of_patience

    def _whole_calls(self, step: int) -> int:
        return -(-step // self.steps_per_call) * self.steps_per_call


@dataclass
class Progress:
    """What the loop remembers besides the train state; kept in every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    """Training time of all attempts."""
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    """Validation metrics at `best_step`."""
    latest: dict[str, float] = field(default_factory=dict)
    """Validation metrics of the latest evaluation."""
    misses: int = 0
    """Evaluations in a row without improvement."""
    evaluation_due: bool = False
    """Whether that of this step is still to come: a signal cut it off."""
    pending_steps: int = 0
    pending: dict[str, float] = field(default_factory=dict)
    """Sums of the metrics since the last record."""
    skipped: int = 0
    """Steps whose update was not applied, because it was not finite."""
    skipped_in_row: int = 0
    rollbacks: int = 0
    stopped: bool = False
    """Whether a callback has ended training."""

    def to_meta(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def note_evaluation(metrics: dict[str, float], progress: Progress, monitor: str) -> bool:
    """Keep validation metrics in mind; whether they are the best so far."""
    progress.latest = metrics
    if progress.best and not _better(metrics, progress.best, monitor):
        progress.misses += 1
        return False
    progress.misses, progress.best_step, progress.best = 0, progress.step, metrics
    return True


def _better(new: dict[str, float], old: dict[str, float], monitor: str) -> bool:
    """By the monitored metric; the loss decides between equal accuracies, of which small validation sets have many.

    Where the loss is not finite nothing counts: of infinite logits the largest may well be the right one.
    """

    def key(metrics: dict[str, float]) -> tuple[bool, float, float]:
        sign = -1 if monitor.endswith(("loss", "error")) else 1
        return math.isfinite(metrics["val/loss"]), sign * metrics[monitor], -metrics["val/loss"]

    return key(new) > key(old)
