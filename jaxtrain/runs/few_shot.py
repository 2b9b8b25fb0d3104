"""Few-shot feature extraction: a head on each of several draws of a few images per class, reported together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.config import Config, chosen
from jaxtrain.data.base import Dataset
from jaxtrain.data.splits import few_shot
from jaxtrain.errors import UserError
from jaxtrain.files import write_csv
from jaxtrain.heads import FittedHead, Vectors
from jaxtrain.tracking import Tracker


def few_shot_indices(config: Config, labels: Any, class_names: Sequence[str], draw: int = 0) -> Any:
    """Places of `data.shots` training images of each class, `int64[images]`; UserError where a class has too few."""
    try:
        return few_shot(labels, chosen(config.data.shots), config.data.split_seed, draw)
    except ValueError:
        counts = np.bincount(labels, minlength=len(class_names))
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
        self.val_accuracies: list[float] = []
        if val is not None:
            self.val_accuracies = [float(np.mean(head.logits(val.x).argmax(1) == val.y)) for head in self.heads]

    def log(self, tracker: Tracker) -> None:
        """Validation accuracy of each draw, the draw as step."""
        for draw, accuracy in enumerate(self.val_accuracies):
            tracker.log(draw, {"few_shot/val_accuracy": accuracy})


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95% interval by Student's t; None of a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    from scipy.stats import t

    return mean, float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def summarize(test_accuracies: Sequence[float], few: FewShot, run_dir: Path, tracker: Tracker) -> dict[str, Any]:
    """Writes `few_shot.csv`, a row a draw, logs mean and interval, and returns them for `summary.json`."""
    vals: Sequence[float | None] = few.val_accuracies or [None] * len(test_accuracies)
    rows = [
        {"draw": draw, "shots": few.shots, "val_accuracy": val, "test_accuracy": test}
        for draw, (val, test) in enumerate(zip(vals, test_accuracies, strict=True))
    ]
    path = write_csv(run_dir / "few_shot.csv", rows)
    tracker.artifact(path)
    mean, half = mean_and_interval(test_accuracies)
    values = {"few_shot/test_accuracy_mean": mean} | ({} if half is None else {"few_shot/test_accuracy_ci95": half})
    tracker.log(len(test_accuracies), values)
    return {
        "shots": few.shots,
        "draws": len(test_accuracies),
        "few_shot_test_accuracy": mean,
        "few_shot_test_accuracy_ci95": half,
    }
