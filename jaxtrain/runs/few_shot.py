"""Few-shot feature extraction: a head on each of several draws of a few images per class, reported together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.config import Config, chosen
from jaxtrain.data.base import Dataset, Labels
from jaxtrain.data.splits import few_shot
from jaxtrain.errors import UserError
from jaxtrain.files import write_csv
from jaxtrain.heads import FittedHead, Vectors
from jaxtrain.tasks import task_of
from jaxtrain.tracking import Tracker


def few_shot_indices(config: Config, labels: Any, class_names: Sequence[str], draw: int = 0) -> Any:
    """Places of `data.shots` training images of each class or label, `int64[images]`; UserError where one has fewer."""
    try:
        return few_shot(labels, chosen(config.data.shots), config.data.split_seed, draw)
    except ValueError:
        several = np.ndim(labels) == 2
        counts = (labels == 1).sum(axis=0) if several else np.bincount(labels, minlength=len(class_names))
        least = int(np.where(counts > 0, counts, counts.max() + 1).argmin())
        raise UserError(
            f"data.shots: {config.data.shots} images per class asked for, class '{class_names[least]}' has "
            f"{counts[least]} for training"
        ) from None


class FewShot:
    """The heads of all draws; the first one is the run's model."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        train: Vectors,
        val: Vectors | None,
        fit: Callable[[Vectors, int], FittedHead],
    ) -> None:
        """Fits a head on each draw from `train`; settings are chosen on `val`, no image of which is in a draw."""
        self.shots, draws = chosen(config.data.shots), config.data.draws
        places = [few_shot_indices(config, train.y, dataset.class_names, draw) for draw in range(draws)]
        self.heads = [fit(train.select(p), config.seed + draw) for draw, p in enumerate(places)]
        self.task = task_of(config)
        self.val_figures = [] if val is None else self.figures(val.x, val.y)

    def figures(self, x: Any, y: Labels) -> list[float]:
        """Accuracy, or mAP, of each draw's head on vectors `[images, features]`."""
        logits = [head.logits(x) for head in self.heads]
        if self.task.figure == "accuracy":
            return [float(np.mean(one.argmax(1) == y)) for one in logits]
        return [self.task.validation({"logits": one}, y)["val/mAP"] for one in logits]

    def log(self, tracker: Tracker) -> None:
        """Validation figure of each draw, the draw as step."""
        for draw, figure in enumerate(self.val_figures):
            tracker.log(draw, {f"few_shot/val_{self.task.figure}": figure})


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95% interval by Student's t; None of a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    from scipy.special import stdtrit

    return mean, float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(len(values)))


def summarize(tests: Sequence[float], few: FewShot, run_dir: Path, tracker: Tracker) -> dict[str, Any]:
    """Writes `few_shot.csv`, a row a draw, logs mean and interval, and returns them for `summary.json`."""
    vals: Sequence[float | None] = few.val_figures or [None] * len(tests)
    figure = few.task.figure
    rows = [
        {"draw": draw, "shots": few.shots, f"val_{figure}": val, f"test_{figure}": test}
        for draw, (val, test) in enumerate(zip(vals, tests, strict=True))
    ]
    path = write_csv(run_dir / "few_shot.csv", rows)
    tracker.artifact(path)
    mean, half = mean_and_interval(tests)
    name = f"few_shot/test_{figure}"
    tracker.log(len(tests), {f"{name}_mean": mean} | ({} if half is None else {f"{name}_ci95": half}))
    return {
        "shots": few.shots,
        "draws": len(tests),
        f"few_shot_test_{figure}": mean,
        f"few_shot_test_{figure}_ci95": half,
    }
