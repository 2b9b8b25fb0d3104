"""Metrics of steps on their way from the device: packed, fetched late, averaged over logging intervals."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.training.feed import Feed
from jaxtrain.training.nonfinite import Diverged
from jaxtrain.training.parallel import Strategy
from jaxtrain.training.progress import Progress, Timetable
from jaxtrain.training.state import TrainState
from jaxtrain.training.step import Step
from jaxtrain.training.technique import Metrics

_log = logging.getLogger(__name__)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedMetrics:
    """Scalars of one or more steps in one array, because fetching many small ones is slow."""

    names: tuple[str, ...] = field(metadata={"static": True})
    values: jax.Array
    """`float32[steps, names]`"""


class StepMetrics(Protocol):
    """What a call gave: `PackedMetrics`, or a group member's part of them."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns."""

    @property
    def values(self) -> Any:
        """`float32[steps, names]`"""


def compile_step(step: Step, feed: Feed, strategy: Strategy, length: int) -> Callable[..., Any]:
    """`(state, *feed.args(step)) -> (state, PackedMetrics)`, doing `length` steps in one call."""

    def one(state: TrainState, *args: Any) -> tuple[TrainState, PackedMetrics]:
        return pack(*step(state, feed.batch(state.step, *args)))

    return strategy.compile_steps(repeated(one, length))


def pack(state: TrainState, metrics: Metrics) -> tuple[TrainState, PackedMetrics]:
    """What a step gives, its metrics in one array."""
    names = tuple(sorted(metrics))
    return state, PackedMetrics(names, jnp.stack([metrics[name] for name in names])[None])


def repeated(one: Callable[..., Any], length: int) -> Callable[..., Any]:
    """`one` several times in a row, its metrics joined."""

    def many(state: TrainState, *args: Any) -> tuple[TrainState, PackedMetrics]:
        state, packed = jax.lax.scan(lambda carry, _: one(carry, *args), state, None, length=length)
        return state, PackedMetrics(packed.names, packed.values[:, 0])

    return one if length == 1 else many


class Meter:
    """Averages metrics over logging intervals, fetching them from the device half an interval late."""

    def __init__(
        self,
        timetable: Timetable,
        progress: Progress,
        log: Callable[[int, Mapping[str, float]], None],
        at_peak: float | None = None,
    ) -> None:
        """`at_peak`: seconds of a step at the devices' peak, against which `perf/mfu` is; None: it is left out."""
        self._timetable, self._progress, self._log = timetable, progress, log
        self._at_peak = at_peak
        self._waiting: list[tuple[int, StepMetrics]] = []
        self._fetched = progress.step
        self._speed: dict[str, float] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave what happened since out of images_per_second and perf/..."""
        self._clock, self._clock_step, self._waited = time.monotonic(), self._progress.step, 0.0

    def add(self, step: int, packed: StepMetrics, waited: float = 0.0) -> None:
        """Metrics of the call that ended at `step`, which had waited `waited` seconds for its images.

        Those of half an interval before are fetched.
        """
        self._waiting.append((step, packed))
        self._waited += waited
        late = max(self._timetable.log_every // 2, 1)
        if step - self._fetched >= 2 * late:
            self._fetch_until(step - late)

    def flush(self) -> None:
        """Fetch everything."""
        self._fetch_until(self._progress.step)

    def _fetch_until(self, step: int) -> None:
        ready: list[tuple[int, dict[str, float]]] = []
        while self._waiting and self._waiting[0][0] <= step:
            last, packed = self._waiting.pop(0)
            rows = np.asarray(packed.values, np.float64)
            for number, row in enumerate(rows, start=last - len(rows) + 1):
                ready.append((number, dict(zip(packed.names, row.tolist(), strict=True))))
            self._fetched = last
        # Several intervals may be fetched at once; they share one speed.
        now, steps = time.monotonic(), self._fetched - self._clock_step
        if steps >= self._timetable.log_every or (steps > 0 and not self._waiting):
            self._speed = self._measured(max(now - self._clock, 1e-9), steps)
            self._clock, self._clock_step, self._waited = now, self._fetched, 0.0
        for number, metrics in ready:
            self._add_row(number, metrics)

    def _measured(self, seconds: float, steps: int) -> dict[str, float]:
        """Speed, time per step, the share of it in which the loop waited for images, and utilisation."""
        found = {
            "images_per_second": steps * self._timetable.batch_size / seconds,
            "perf/step_ms": 1000 * seconds / steps,
            "perf/data_wait": min(self._waited / seconds, 1.0),
        }
        return found if self._at_peak is None else {**found, "perf/mfu": self._at_peak * steps / seconds}

    def _add_row(self, step: int, metrics: dict[str, float]) -> None:
        progress, timetable = self._progress, self._timetable
        rate = metrics.pop("learning_rate", None)
        if metrics.pop("skipped", 0.0):
            self._skip(step, metrics["loss"])
        elif not math.isfinite(metrics["loss"]):
            raise Diverged(f"the loss became {metrics['loss']} at step {step}", step)
        else:
            progress.skipped_in_row = 0
            progress.pending_steps += 1
            for name, value in metrics.items():
                progress.pending[name] = progress.pending.get(name, 0.0) + value
        if step % timetable.log_every and step != timetable.total_steps:
            return
        record = {f"train/{name}": total / progress.pending_steps for name, total in progress.pending.items()}
        if progress.skipped:
            record["train/skipped_steps"] = float(progress.skipped)
        progress.pending_steps, progress.pending = 0, {}
        if rate is not None:
            record["learning_rate"] = rate
        record["epoch"] = step / timetable.steps_per_epoch
        self._log(step, record | self._speed)

    def _skip(self, step: int, loss: float) -> None:
        """A step that changed nothing: its metrics enter no average."""
        self._progress.skipped += 1
        self._progress.skipped_in_row += 1
        what = "the gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
        _log.warning("step %d changes nothing: %s", step, what)
        if self._progress.skipped_in_row >= self._timetable.skip_limit:
            count = self._progress.skipped_in_row
            raise Diverged(f"{count} steps in a row were not finite, the last at step {step}", step)
