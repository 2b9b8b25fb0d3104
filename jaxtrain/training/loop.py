"""The training loop: calls the compiled step, and between calls logs, evaluates, saves and stops.

Nothing in it blocks on the device but evaluation and saving: metrics are fetched an interval late. When things
happen is a function of the step alone, so a resumed run does the same at the same steps as an undisturbed one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.training.feed import Feed
from jaxtrain.training.nonfinite import Diverged, bad_array
from jaxtrain.training.parallel import Strategy, must_block
from jaxtrain.training.state import TrainState, Tree, stored_keys, to_arrays
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

    def out_of_patience(self, progress: Progress) -> bool:
        """Whether early stopping has ended training."""
        return self.patience is not None and progress.misses >= self.patience

    def over(self, progress: Progress) -> bool:
        """Whether no step is left."""
        return progress.step >= self.total_steps or self.out_of_patience(progress)

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

    def to_meta(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class EvaluationStoppedError(Exception):
    """Raised by an evaluation that a signal cuts off."""


class Watcher(Protocol):
    """What the loop reports to: journal, MLflow, the progress bar."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A record: metrics at a step."""

    def save(self, progress: Progress, state: dict[str, Any], best: Tree | None) -> None:
        """A checkpoint; `best` are the weights at `progress.best_step`."""

    def wishes(self, step: int, overdue: bool) -> tuple[bool, bool]:
        """Whether to save and return after `step`, and whether to save because time has passed (`overdue`)."""

    def awaiting_data(self, save: Callable[[], None]) -> AbstractContextManager[None]:
        """Around the wait for a batch, during which `save` may be called from another thread."""


@dataclass
class LoopResult:
    """How training ended."""

    state: TrainState
    progress: Progress
    best: Tree | None
    """Host arrays of the inference weights at `progress.best_step`, None when never evaluated."""
    interrupted: bool


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
    """`one` so many times in a row, its metrics joined."""

    def many(state: TrainState, *args: Any) -> tuple[TrainState, PackedMetrics]:
        state, packed = jax.lax.scan(lambda carry, _: one(carry, *args), state, None, length=length)
        return state, PackedMetrics(packed.names, packed.values[:, 0])

    return one if length == 1 else many


def train(
    state: TrainState,
    step: Step,
    feed: Feed,
    strategy: Strategy,
    timetable: Timetable,
    watcher: Watcher,
    evaluate: Callable[[TrainState], dict[str, float]] | None,
    *,
    monitor: str = "val/accuracy",
    progress: Progress | None = None,
    best: Tree | None = None,
    compiled: dict[int, Callable[..., Any]] | None = None,
) -> LoopResult:
    """Train from `progress.step` to the end of the timetable, or until the watcher asks to stop.

    `state` must be placed by the strategy; `evaluate` gives validation metrics, by whose `monitor` the best weights
    are chosen (higher is better, for a loss lower); it may raise EvaluationStoppedError, and is then the first thing
    when training goes on. `compiled` keeps compiled steps by their length, for other runs
    with the same `step`. Raises Diverged within `log_every` steps of a loss that is not finite, and before a parameter
    that is not would be saved.
    """
    progress = progress or Progress()
    steps = {} if compiled is None else compiled
    for length in {1, timetable.steps_per_call} - steps.keys():
        steps[length] = compile_step(step, feed, strategy, length)
    meter = Meter(timetable, progress, watcher.log)
    synchronous = must_block(strategy)
    next_evaluation = timetable.next_evaluation(progress.step)
    started = saved = time.monotonic()
    seconds_before = progress.seconds
    interrupted = False

    def save() -> None:
        nonlocal saved
        meter.flush()
        progress.seconds = seconds_before + time.monotonic() - started
        watcher.save(progress, sound_arrays(strategy.single(state), progress.step), best)
        saved = time.monotonic()

    while progress.evaluation_due or not timetable.over(progress):
        length = 0
        if not progress.evaluation_due:
            length = timetable.call_length(progress.step)
            with watcher.awaiting_data(save):
                args = feed.args(progress.step)
            state, packed = steps[length](state, *args)
            if synchronous:
                jax.block_until_ready(packed)
            progress.step += length
            meter.add(progress.step, packed)
        if progress.evaluation_due or progress.step >= next_evaluation:
            meter.flush()
            next_evaluation = timetable.next_evaluation(progress.step)
            if evaluate is not None:
                progress.evaluation_due = True
                try:
                    best = _evaluate(evaluate, state, strategy, progress, watcher, monitor, best)
                except EvaluationStoppedError:
                    interrupted = True
                    break
                progress.evaluation_due = False
                meter.restart_clock()
                if timetable.out_of_patience(progress):
                    break
        stop, overdue = watcher.wishes(progress.step, time.monotonic() - saved >= timetable.save_seconds)
        if stop:
            interrupted = progress.step < timetable.total_steps
            break
        due = timetable.save_steps is not None and progress.step % timetable.save_steps < length
        if due or overdue:
            save()
            meter.restart_clock()
    save()
    return LoopResult(state, progress, best, interrupted)


def sound_arrays(state: TrainState, step: int) -> dict[str, Any]:
    """What a checkpoint holds; Diverged where a parameter is not finite."""
    arrays = to_arrays(state)
    if (name := bad_array(arrays)) is not None:
        raise Diverged(f"{name} became NaN or infinite at step {step}", step)
    return arrays


def _evaluate(
    evaluate: Callable[[TrainState], dict[str, float]],
    state: TrainState,
    strategy: Strategy,
    progress: Progress,
    watcher: Watcher,
    monitor: str,
    best: Tree | None,
) -> Tree | None:
    """Evaluate, record, and return the best weights so far (host arrays)."""
    return snapshot(state, strategy) if note_evaluation(evaluate(state), progress, watcher, monitor) else best


def note_evaluation(metrics: dict[str, float], progress: Progress, watcher: Watcher, monitor: str) -> bool:
    """Record validation metrics; whether they are the best so far."""
    progress.latest = metrics
    watcher.log(progress.step, metrics)
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


def snapshot(state: TrainState, strategy: Strategy) -> Tree:
    """Host copies of the inference weights, {"params", "frozen", "model_state"}, with keys as files have them."""
    weights = {"params": state.eval_params, "frozen": state.frozen, "model_state": state.eval_model_state}
    return stored_keys(jax.tree.map(np.array, jax.device_get(strategy.single(weights))))


class Meter:
    """Averages metrics over logging intervals, fetching them from the device half an interval late."""

    def __init__(
        self, timetable: Timetable, progress: Progress, log: Callable[[int, Mapping[str, float]], None]
    ) -> None:
        self._timetable, self._progress, self._log = timetable, progress, log
        self._waiting: list[tuple[int, StepMetrics]] = []
        self._fetched = progress.step
        self._speed = 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave what happened since out of images_per_second."""
        self._clock, self._clock_step = time.monotonic(), self._progress.step

    def add(self, step: int, packed: StepMetrics) -> None:
        """Metrics of the call that ended at `step`; those of half an interval before are fetched."""
        self._waiting.append((step, packed))
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
            self._speed = steps * self._timetable.batch_size / max(now - self._clock, 1e-9)
            self._clock, self._clock_step = now, self._fetched
        for number, metrics in ready:
            self._add_row(number, metrics)

    def _add_row(self, step: int, metrics: dict[str, float]) -> None:
        progress, timetable = self._progress, self._timetable
        rate = metrics.pop("learning_rate")
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
        record["learning_rate"] = rate
        record["epoch"] = step / timetable.steps_per_epoch
        if self._speed:
            record["images_per_second"] = self._speed
        self._log(step, record)

    def _skip(self, step: int, loss: float) -> None:
        """A step that changed nothing: its metrics stand in no average."""
        self._progress.skipped += 1
        self._progress.skipped_in_row += 1
        what = "the gradient" if math.isfinite(loss) else f"the loss {loss},"
        _log.warning("step %d changes nothing: %s is not finite", step, what)
        if self._progress.skipped_in_row >= self._timetable.skip_limit:
            count = self._progress.skipped_in_row
            raise Diverged(f"{count} steps in a row were not finite, the last at step {step}", step)
