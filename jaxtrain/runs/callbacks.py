"""What every run by steps does beside training: record, save, and say to a sweep how it goes."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtrain.data.bad_images import BadImages
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


class Telling(Callback):
    """A sweep hears of evaluations, and may raise Pruned."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def evaluation(self, step: int, metrics: Mapping[str, float], run: RunView) -> None:
        """See `Part.evaluated`."""
        self._part.evaluated(step, metrics)
