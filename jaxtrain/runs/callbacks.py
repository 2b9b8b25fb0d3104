"""What every run by steps does beside training: record, save, and say to a sweep how it goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax

from jaxtrain.data.bad_images import BadImages
from jaxtrain.files import optional
from jaxtrain.runs.learning import Job, Part
from jaxtrain.tracking import Tracker
from jaxtrain.training import processes
from jaxtrain.training.callbacks import Callback, RunView
from jaxtrain.training.checkpoints import Checkpoints


class Recording(Callback):
    """Metrics go to the journal, to MLflow and on the screen."""

    def __init__(self, tracker: Tracker, job: Job) -> None:
        self._tracker, self.job = tracker, job

    def record(self, step: int, metrics: Mapping[str, float], run: RunView) -> None:
        """Of training."""
        self.log(step, metrics)

    def evaluation(self, step: int, metrics: Mapping[str, float], run: RunView) -> None:
        """Of validation."""
        self.log(step, metrics)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A record of the journal."""
        self._tracker.log(step, metrics)
        self.job.reporter.metrics(step, metrics)


class Saving(Callback):
    """Checkpoints, with the metric history and the images that were skipped."""

    def __init__(self, tracker: Tracker, checkpoints: Checkpoints, bad_images: BadImages) -> None:
        self._tracker, self._checkpoints, self._bad_images = tracker, checkpoints, bad_images

    def checkpoint(self, step: int, metrics: Mapping[str, float], run: RunView) -> None:
        """Begins to write one; all processes take part in gathering the state."""
        state, best = run.state(), run.best()
        if not processes.primary():
            return
        meta = {
            "progress": run.progress.to_meta(),
            "history": self._tracker.journal.records(),
            "bad_images": dict(self._bad_images.reasons),
        }
        self._checkpoints.save(step, state, meta, best=None if best is None else (run.progress.best_step, best))


class Profiling(Callback):
    """`train.profile`: a trace of some steps by JAX's profiler, which ends with training at the latest."""

    def __init__(self, steps: tuple[int, int], step: int, call: int, folder: Path, tracker: Tracker) -> None:
        """`steps`: the first and the last one; training goes on after `step`, `call` steps at a time."""
        (self._first, self._last), self._start, self._call = steps, step, call
        self._folder, self._tracker = folder, tracker
        self._to_come, self._running = True, False

    def __enter__(self) -> Profiling:
        if self._due(self._start):
            self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._end()

    def step(self, step: int, metrics: Mapping[str, float], run: RunView) -> None:
        """After a call: the devices are waited for at both ends of the trace, so that it holds those steps alone."""
        if self._running and step >= self._last:
            _ = metrics["loss"]
            self._end()
        elif self._to_come and self._due(step):
            _ = metrics["loss"]
            self._begin()

    def _due(self, step: int) -> bool:
        """Whether the next call may hold the first of the steps."""
        return step + self._call >= self._first

    def _begin(self) -> None:
        self._to_come = False
        with optional("the profile"):
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # it would fill the trace, and slow the loop down
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._running = True

    def _end(self) -> None:
        self._running = False
        with optional("the profile"):
            jax.profiler.stop_trace()
            self._tracker.artifact(self._folder, "profile")


class Telling(Callback):
    """A sweep hears of evaluations, and may raise Pruned."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def evaluation(self, step: int, metrics: Mapping[str, float], run: RunView) -> None:
        """See `Part.evaluated`."""
        self._part.evaluated(step, metrics)
