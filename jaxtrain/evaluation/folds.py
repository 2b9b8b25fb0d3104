"""Cross-validation: the predictions of every fold's model on its own fold, which together are one entry."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jaxtrain.config import DataConfig
from jaxtrain.data.digest import digest_of_test_set
from jaxtrain.data.holdout import NOTHING_HELD_OUT, fold_numbers
from jaxtrain.data.sources import load_dataset
from jaxtrain.evaluation.evaluate import OpenTestSet, open_test_set
from jaxtrain.evaluation.metrics import classification_metrics
from jaxtrain.evaluation.predictions import Predictions
from jaxtrain.evaluation.statistics import CONFIDENCE, Interval, bounded, has_interval
from jaxtrain.tasks import softmax


class OverFolds(NamedTuple):
    """A metric in each fold, and what follows for the mean."""

    values: tuple[float, ...]
    mean: float
    deviation: float
    """Standard deviation over folds."""
    interval: Interval
    """95% of the mean: Student's t with the variance of Nadeau and Bengio (2003), as training sets overlap."""


def over_folds(parts: Sequence[Predictions]) -> dict[str, OverFolds]:
    """The metrics that every fold has, from the predictions on each; {} for fewer than two."""
    from scipy.special import stdtrit

    if len(parts) < 2:
        return {}
    each = [classification_metrics(part.labels, softmax(part.logits), part.logits) for part in parts]
    count, found = len(parts), {}
    for name in each[0]:
        values = np.array([metrics.get(name, np.nan) for metrics in each])
        if has_interval(name) and np.isfinite(values).all():
            mean, deviation = float(values.mean()), float(values.std(ddof=1))
            half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * deviation * (1 / count + 1 / (count - 1)) ** 0.5
            interval = bounded(Interval(mean - half, mean + half), mean, name)
            found[name] = OverFolds(tuple(values.tolist()), mean, deviation, interval)
    return found


def out_of_fold(parts: Sequence[Predictions], dataset: str) -> Predictions:
    """The predictions on all folds, fold by fold, as those of one model."""
    first = parts[0]
    ids = tuple(name for part in parts for name in part.ids)
    labels = np.concatenate([part.labels for part in parts])
    val: dict[str, Any] = {}
    for name in ("val_labels", "val_logits"):
        if all(getattr(part, name) is not None for part in parts):
            val[name] = np.concatenate([getattr(part, name) for part in parts])
    return Predictions(
        ids=ids,
        labels=labels,
        logits=np.concatenate([part.logits for part in parts]),
        class_names=first.class_names,
        test_digest=digest_of_test_set(ids, labels, first.class_names),
        params_sha256=digest_of_all([part.params_sha256 for part in parts]),
        technique=first.technique,
        model=first.model,
        dataset=dataset,
        **val,
    )


def digest_of_all(digests: Sequence[str]) -> str:
    """Of the models of all folds."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def in_other_folds(parts: Sequence[Predictions]) -> list[tuple[int, int]]:
    """Images of which another fold, on which their model was trained, has an equal one: (that one, this one)."""
    ids = np.array([name for part in parts for name in part.ids])
    folds = np.repeat(np.arange(len(parts)), [len(part.ids) for part in parts])
    _, same, counts = np.unique(ids, return_inverse=True, return_counts=True)
    found = []
    for place in np.flatnonzero(counts[same] > 1).tolist():
        others = np.flatnonzero((same == same[place]) & (folds != folds[place]))
        found += [(int(others[0]), place)] if len(others) else []
    return found


def open_all_folds(config: DataConfig) -> OpenTestSet | None:
    """The images of all folds, fold by fold; there are no training images beside them."""
    whole = load_dataset(config.model_copy(update={**NOTHING_HELD_OUT, "max_train_images": None}))
    images = whole.train.select(np.argsort(fold_numbers(whole.train, config, whole.class_names), kind="stable"))
    nothing = images.select(np.arange(0))
    return open_test_set(replace(whole, train=nothing, val=None, open_test=lambda: images))
