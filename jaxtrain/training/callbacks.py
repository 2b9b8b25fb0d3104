"""Callbacks: what happens beside training, at the moments of the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtrain.config import Config
from jaxtrain.training.meter import StepMetrics
from jaxtrain.training.progress import Progress
from jaxtrain.training.state import Tree

MOMENTS = ("step", "record", "evaluation", "checkpoint", "end")


@dataclass(frozen=True)
class RunView:
    """What a callback sees of its run; nothing in it can be assigned."""

    config: Config
    """Resolved."""
    run_dir: Path
    class_names: tuple[str, ...]
    total_steps: int
    progress: Progress
    """How far training has come; only the loop writes in it."""
    weights: Callable[[], Tree]
    """Host arrays {"params", "frozen", "model_state"} as an evaluation would use them now."""
    state: Callable[[], dict[str, Any]]
    """Host arrays of all that training goes on from, by name. Raises Diverged where a parameter is not finite."""
    best: Callable[[], Tree | None]
    """Host arrays of the weights at `progress.best_step`; None before the first evaluation."""


class Callback:
    """Override any of these; all get the step, metrics by name and the run. Return True to end training there."""

    def step(self, step: int, metrics: Mapping[str, float], run: RunView) -> bool | None:
        """After a call of one or more steps; reading `metrics` (of the last step, as `loss`) waits for the device."""

    def record(self, step: int, metrics: Mapping[str, float], run: RunView) -> bool | None:
        """Every `train.log_every` steps, half an interval late: averages, as `train/loss`."""

    def evaluation(self, step: int, metrics: Mapping[str, float], run: RunView) -> bool | None:
        """After an evaluation: validation metrics, as `val/accuracy`."""

    def checkpoint(self, step: int, metrics: Mapping[str, float], run: RunView) -> None:
        """When the state is saved; `metrics`: those of the latest evaluation."""

    def end(self, step: int, metrics: Mapping[str, float], run: RunView) -> None:
        """After the last step and its checkpoint; not where the run is interrupted."""


class Callbacks:
    """The callbacks of one run, by moment; moments that a callback does not override cost nothing."""

    def __init__(self, callbacks: tuple[Any, ...], run: RunView) -> None:
        self.run = run
        self._at = {moment: [getattr(one, moment) for one in callbacks if _has(one, moment)] for moment in MOMENTS}

    def has(self, moment: str) -> bool:
        """Whether somebody waits for it."""
        return bool(self._at[moment])

    def tell(self, moment: str, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether one of them ends training."""
        ends = [one(step, metrics, self.run) for one in self._at[moment]]
        return any(ends)


def _has(callback: Any, moment: str) -> bool:
    own = getattr(type(callback), moment, None)
    return own is not None and own is not getattr(Callback, moment)


class LastMetrics(Mapping[str, float]):
    """Metrics of the last step of a call, fetched when they are looked at."""

    def __init__(self, packed: StepMetrics) -> None:
        self._packed = packed

    def __getitem__(self, name: str) -> float:
        return float(self._packed.values[-1][self._packed.names.index(name)])

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed.names)

    def __len__(self) -> int:
        return len(self._packed.names)
