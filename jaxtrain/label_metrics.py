"""Metrics of several labels per image: pure functions of labels and scores, in float64, equal to scikit-learn's.

Each is written once, for images that have weights: with weights of one it is the metric, with the counts of a
resample its bootstrap replicate, many resamples at a time (`weighted_label_metrics`). Unknown entries (-1) are left
out of every figure; images without a known entry count in none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

BINS = 15
_BLOCK = 1 << 24
"""Elements of the largest temporary array."""


@dataclass(frozen=True)
class LabelOutcomes:
    """What a classifier did with each label of each image."""

    labels: NDArray[np.int8]
    """`int8[images, classes]`: 1, 0, or -1 where that is unknown."""
    logits: Floats
    """`float64[images, classes]`."""
    predicted: Bools
    """`bool[images, classes]`: which labels the images get."""

    @cached_property
    def known(self) -> Floats:
        """`float64[images, classes]`: 0 for an unknown entry, else 1."""
        return (self.labels >= 0).astype(np.float64)

    @cached_property
    def true(self) -> Floats:
        """`float64[images, classes]`: 1 where the image has the label."""
        return (self.labels == 1).astype(np.float64)

    @cached_property
    def correct(self) -> Bools:
        """`bool[images]`: whether every known entry is right."""
        return np.all((self.predicted == (self.labels == 1)) | (self.labels < 0), axis=1)

    @cached_property
    def precision(self) -> Floats:
        """`float64[classes]`: the average precision of each label."""
        return average_precisions(self, np.ones((len(self.labels), 1)))[:, 0]

    @property
    def images(self) -> int:
        """How many count: those with a known entry."""
        return int(np.count_nonzero(self.known.any(axis=1)))

    def weighted(self, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Metrics for many weightings of the images; and nothing that an interval would be made of otherwise."""
        return weighted_label_metrics(self, weights), {}

    def precisions(self, weights: Floats) -> dict[str, Floats]:
        """The average precisions of `weighted_label_metrics` alone, for parts of the images.

        A label that no image of a part has counts with its value for all of them, where it would be 0.
        """
        each, support = average_precisions(self, weights), self.true.T @ weights
        return {
            "mAP": np.where(support > 0, each, self.precision[:, None]).mean(axis=0),
            "micro_mAP": _areas_together(self, weights)[0],
            "weighted_mAP": _share((each * support).sum(axis=0), support.sum(axis=0)),
        }


def sigmoid(logits: NDArray[np.floating[Any]]) -> Floats:
    """Probabilities `float64[...]` of each label by itself."""
    from scipy.special import expit

    found: Floats = expit(logits.astype(np.float64))
    return found


def label_outcomes(
    labels: NDArray[np.integer[Any]],
    logits: NDArray[np.floating[Any]],
    thresholds: Sequence[float] | NDArray[np.floating[Any]] = (0.5,),
) -> LabelOutcomes:
    """`labels` is `int8[images, classes]`, `logits` the same shape; an image gets a label from its threshold on.

    thresholds: probabilities, one for each label or one for all. Raises ValueError for arrays that do not fit.
    """
    if labels.ndim != 2 or labels.shape != logits.shape or not len(labels):
        raise ValueError(f"labels {labels.shape} do not fit logits {logits.shape}")
    if not np.isfinite(logits).all():
        raise ValueError("logits are not finite")
    decided = sigmoid(logits) >= np.asarray(thresholds, np.float64)
    return LabelOutcomes(labels.astype(np.int8), logits.astype(np.float64), decided)


def label_metrics(
    labels: NDArray[np.integer[Any]],
    logits: NDArray[np.floating[Any]],
    thresholds: Sequence[float] | NDArray[np.floating[Any]] = (0.5,),
) -> dict[str, float]:
    """The figures of a classifier of several labels. No figure is ever NaN.

    mAP, micro_mAP, weighted_mAP
        Average precision: the mean over labels, of all entries together, and weighted by how many images have a label.
        Of a label that no image has it is 0, as in scikit-learn.
    auroc, micro_auroc
        Area under the ROC curve, over the labels that some images have and some have not; left out where there are
        none.
    macro_f1, macro_precision, macro_recall, micro_f1, micro_precision, micro_recall, weighted_f1
        Of what was decided; undefined values are 0.
    subset_accuracy, hamming_loss
        Share of images with every entry right; share of entries that are wrong.
    lrap, coverage_error
        Label-ranking average precision, and how many labels of the ranking hold all true ones.
    loss, brier, label_ece
        Mean binary cross-entropy in nats, squared distance, and expected calibration error over 15 bins of equal width
        (mean over labels).
    """
    found = label_outcomes(labels, logits, thresholds)
    measured, _ = found.weighted(np.ones((len(labels), 1)))
    return {name: float(values[0]) for name, values in measured.items()}


def weighted_label_metrics(found: LabelOutcomes, weights: Floats) -> dict[str, Floats]:
    """`label_metrics` of weighted images, `float64[images, weightings]`: `float64[weightings]` each."""
    curves = [_areas(found.logits[:, i], found.labels[:, i], weights) for i in range(found.labels.shape[1])]
    precision, area, has_area = (np.array(each) for each in zip(*curves, strict=True))
    support = found.true.T @ weights
    metrics = {"mAP": precision.mean(axis=0)}
    together, area_together, any_area = _areas_together(found, weights)
    metrics |= {"micro_mAP": together, "weighted_mAP": _share((precision * support).sum(0), support.sum(0))}
    if has_area[:, :1].any():
        metrics["auroc"] = _share((area * has_area).sum(axis=0), has_area.sum(axis=0).astype(np.float64))
    if any_area[:1].any():
        metrics["micro_auroc"] = area_together
    metrics |= _of_decisions(found, weights, support)
    metrics |= _of_rankings(found, weights)
    entries = found.known.sum(axis=1) @ weights
    signed = np.where(found.labels == 1, -found.logits, found.logits)
    losses = (np.logaddexp(0.0, signed) * found.known).sum(axis=1)
    squares = ((sigmoid(found.logits) - found.true) ** 2 * found.known).sum(axis=1)
    metrics |= {"loss": _share(losses @ weights, entries), "brier": _share(squares @ weights, entries)}
    return {**metrics, "label_ece": _calibration_error(found, weights)}


def average_precisions(found: LabelOutcomes, weights: Floats) -> Floats:
    """That of each label, of weighted images: `float64[classes, weightings]`."""
    return np.array([_areas(found.logits[:, i], found.labels[:, i], weights)[0] for i in range(found.labels.shape[1])])


def _calibration_error(found: LabelOutcomes, weights: Floats) -> Floats:
    """Mean over labels of the differences between probability and frequency in each bin, by the share of the bin."""
    probabilities, classes = sigmoid(found.logits), found.labels.shape[1]
    place = np.searchsorted(np.linspace(0.0, 1.0, BINS + 1)[1:-1], probabilities, side="left")
    total = np.zeros(weights.shape[1])
    for label in range(classes):
        excess = (probabilities[:, label] - found.true[:, label]) * found.known[:, label]
        in_bins = (place[:, label] == np.arange(BINS)[:, None]) * excess
        total += np.abs(_share(in_bins @ weights, found.known[:, label] @ weights)).sum(axis=0)
    return total / classes


def per_label_table(
    found: LabelOutcomes, class_names: Sequence[str], thresholds: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """One row per label, in order: label, support (images that have it), known, AP, AUROC, F1 and more."""
    ones, rows = np.ones((len(found.labels), 1)), []
    for i, name in enumerate(class_names):
        (ap,), (area,), (has_area,) = _areas(found.logits[:, i], found.labels[:, i], ones)
        true, decided, known = found.true[:, i] > 0, found.predicted[:, i], found.known[:, i] > 0
        right, given = float((true & decided).sum()), float((decided & known).sum())
        row = {
            "label": name,
            "support": int(true.sum()),
            "known": int(known.sum()),
            "average_precision": float(ap),
            "auroc": float(area) if has_area else None,
            "precision": right / given if given else 0.0,
            "recall": right / true.sum() if true.any() else 0.0,
            "f1": float(2 * right / (given + true.sum())) if given + true.sum() else 0.0,
        }
        rows.append(row | ({} if thresholds is None else {"threshold": float(thresholds[i])}))
    return rows


def _areas(scores: Floats, labels: NDArray[np.int8], weights: Floats) -> tuple[Floats, Floats, Bools]:
    """Average precision, area under the ROC curve, and whether there is one: `[weightings]` each."""
    known = labels >= 0
    scores, true = scores[known], labels[known] == 1
    if not len(scores):
        nothing = np.zeros(weights.shape[1])
        return nothing, nothing, nothing > 0
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    sorted_weights = weights[known][order]
    mass = sorted_weights.cumsum(axis=0)[ends]
    hits = (sorted_weights * true[order][:, None]).cumsum(axis=0)[ends]
    false = mass - hits
    steps = np.diff(hits, axis=0, prepend=0.0)
    ap = _share((steps * _share(hits, mass)).sum(axis=0), hits[-1])
    below = np.diff(false, axis=0, prepend=0.0) * (hits - steps / 2)
    possible = hits[-1] * false[-1]
    return ap, _share(below.sum(axis=0), possible), possible > 0


def _areas_together(found: LabelOutcomes, weights: Floats) -> tuple[Floats, Floats, Bools]:
    """`_areas` of all entries, some weightings at a time."""
    images, classes = found.labels.shape
    of_image = np.repeat(np.arange(images), classes)
    step = max(_BLOCK // (images * classes), 1)
    parts = [
        _areas(found.logits.ravel(), found.labels.ravel(), weights[:, start : start + step][of_image])
        for start in range(0, weights.shape[1], step)
    ]
    ap, area, has_area = (np.concatenate(each) for each in zip(*parts, strict=True))
    return ap, area, has_area


def _of_decisions(found: LabelOutcomes, weights: Floats, support: Floats) -> dict[str, Floats]:
    """What the numbers of right and wrong decisions about each label say."""
    decided = found.predicted * found.known
    given, right = decided.T @ weights, (decided * found.true).T @ weights
    precision, recall = _share(right, given), _share(right, support)
    f1 = _share(2 * right, given + support)
    seen = (found.known.sum(axis=1) > 0) @ weights
    wrong = ((found.predicted != (found.true > 0)) * found.known).sum(axis=1)
    whole = given.sum(axis=0), support.sum(axis=0), right.sum(axis=0)
    return {
        "macro_f1": f1.mean(axis=0),
        "macro_precision": precision.mean(axis=0),
        "macro_recall": recall.mean(axis=0),
        "micro_f1": _share(2 * whole[2], whole[0] + whole[1]),
        "micro_precision": _share(whole[2], whole[0]),
        "micro_recall": _share(whole[2], whole[1]),
        "weighted_f1": _share((f1 * support).sum(axis=0), support.sum(axis=0)),
        "subset_accuracy": _share((found.correct & (found.known.sum(axis=1) > 0)) @ weights, seen),
        "hamming_loss": _share(wrong @ weights, found.known.sum(axis=1) @ weights),
    }


def _of_rankings(found: LabelOutcomes, weights: Floats) -> dict[str, Floats]:
    """What follows from the order of an image's labels; ties count against it, as in scikit-learn."""
    known, true = found.known > 0, found.true > 0
    scores = np.where(known, found.logits, -np.inf)
    images, classes = scores.shape
    rank, rank_of_true = np.zeros((images, classes)), np.zeros((images, classes))
    for label in range(classes):
        ahead = (scores[:, label : label + 1] >= scores) & known[:, label : label + 1]
        rank += ahead
        rank_of_true += ahead & true[:, label : label + 1]
    count = true.sum(axis=1)
    mean = _share((_share(rank_of_true, rank) * true).sum(axis=1), count.astype(np.float64))
    lrap = np.where((count == 0) | (count == known.sum(axis=1)), 1.0, mean)
    coverage = np.where(true, rank, 0.0).max(axis=1)
    counted = known.any(axis=1)
    seen = counted @ weights
    return {
        "lrap": _share((lrap * counted) @ weights, seen),
        "coverage_error": _share((coverage * counted) @ weights, seen),
    }


def _share(part: Any, whole: Any) -> Floats:
    """0 where the whole is."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 0.0)


def best_thresholds(
    labels: NDArray[np.integer[Any]],
    logits: NDArray[np.floating[Any]],
    aim: str = "f1",
    wanted: float | None = None,
) -> list[float]:
    """The probability from which on each label is given, by validation images: `[classes]`.

    aim: f1, the largest F1; precision or recall, the one that keeps at least the `wanted` share of that and most of the
    other. 0.5 for a label that no image has, or where none reaches what is wanted.
    """
    probabilities = sigmoid(logits)
    return [_best(probabilities[:, i], labels[:, i], aim, wanted) for i in range(labels.shape[1])]


def _best(probabilities: Floats, labels: NDArray[Any], aim: str, wanted: float | None) -> float:
    known = labels >= 0
    scores, true = probabilities[known], labels[known] == 1
    if not true.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits, given = true[order].cumsum()[ends], ends + 1.0
    precision, recall = hits / given, hits / true.sum()
    if aim == "f1":
        figure = 2 * hits / (given + true.sum())
    else:
        kept, other = (precision, recall) if aim == "precision" else (recall, precision)
        figure = np.where(kept >= (wanted or 0.0) - 1e-12, other, -1.0)
        if figure.max() < 0:
            return 0.5
    best = int(figure.argmax())
    at = scores[order][ends]
    # Half way to the next image: a threshold that is an image's own probability would hang on its last bit.
    return float((at[best] + (at[best + 1] if best + 1 < len(at) else 0.0)) / 2)
