"""Metrics of a classifier on a labelled set: pure functions of labels and probabilities, in float64.

Each is written once, for images that have weights: with weights of one it is the metric, with the counts of a
resample its bootstrap replicate, many resamples at a time (`weighted_metrics`).

One rule decides every tie between classes: of classes with the same score the first in class order ranks higher,
as in `numpy.argmax`. No metric depends on the order of the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ECE_BINS = 15
RISKS = (1, 5)
"""Percent of mistakes at which the coverage is told."""
_BLOCK = 1 << 24
"""Elements of the largest temporary array of the AUROC."""


@dataclass(frozen=True)
class Outcomes:
    """What a classifier did with each image: all that metrics are made of."""

    labels: NDArray[np.int64]
    """`int64[images]`: the true classes."""
    predicted: NDArray[np.int64]
    """`int64[images]`: the classes that rank first."""
    rank: NDArray[np.int64]
    """`int64[images]`: how many classes rank before the true one."""
    nll: Floats
    """`float64[images]`: negative log-likelihood of the true class, in nats."""
    brier: Floats
    """`float64[images]`: squared distance of the probabilities to the one-hot label, 0 to 2."""
    confidence: Floats
    """`float64[images]`: probability of the predicted class."""
    probabilities: NDArray[np.floating[Any]]
    """`float[images, classes]`."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """`bool[images]`: whether the true class ranks first."""
        return self.rank == 0

    @property
    def images(self) -> int:
        """How many count."""
        return len(self.labels)

    def weighted(self, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Metrics, and the signed gaps that calibration errors are sums of, for many weightings of the images."""
        gaps = calibration_gaps(self, weights)
        return weighted_metrics(self, weights, gaps), gaps


def outcomes(
    labels: NDArray[np.integer[Any]],
    probabilities: NDArray[np.floating[Any]],
    logits: NDArray[np.floating[Any]] | None = None,
) -> Outcomes:
    """`labels` is `int[images]`, `probabilities` `float[images, classes]` with rows that sum to one.

    Where the `logits` they come from are given, ranks and likelihoods are taken from these, which do not saturate.
    Without, probabilities below the machine epsilon of their dtype count as that in the likelihood, as in
    scikit-learn.

    Raises ValueError for arrays that do not fit each other, labels outside the classes, and values that are not
    finite.
    """
    check_arrays(labels, probabilities)
    if logits is not None:
        check_arrays(labels, logits)
    if np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1).max() > 1e-3 or probabilities.min() < 0:
        raise ValueError("rows of probabilities must be non-negative and sum to one")
    every = np.arange(len(labels))
    true = probabilities[every, labels].astype(np.float64)
    scores = probabilities if logits is None else logits
    predicted = scores.argmax(axis=1)
    if logits is None:
        nll = -np.log(np.maximum(true, np.finfo(probabilities.dtype).eps))
    else:
        nll = nll_from_logits(labels, logits)
    squares = np.einsum("ij,ij->i", probabilities, probabilities, dtype=np.float64)
    return Outcomes(
        labels=labels.astype(np.int64),
        predicted=predicted,
        rank=true_class_rank(labels, scores),
        nll=nll,
        brier=squares - 2 * true + 1,
        confidence=probabilities[every, predicted].astype(np.float64),
        probabilities=probabilities,
    )


def classification_metrics(
    labels: NDArray[np.integer[Any]],
    probabilities: NDArray[np.floating[Any]],
    logits: NDArray[np.floating[Any]] | None = None,
) -> dict[str, float]:
    """The figures of a classifier, from the arrays that `outcomes` takes. No figure is ever NaN.

    accuracy, top5_accuracy
        Share of images whose true class ranks first, or among the first five. With five classes or fewer
        every image is a top-5 hit, so that figure is left out.
    loss
        Mean negative log-likelihood in nats.
    balanced_accuracy
        Mean recall over the classes that have images.
    macro_precision, macro_recall, macro_f1
        Means over the classes that have images or were predicted; undefined values count as 0 (as in
        scikit-learn).
    mcc
        Matthews correlation for any number of classes (Gorodkin 2004); 0 where undefined.
    worst_class_accuracy
        The lowest recall of a class that has images.
    brier
        Squared distance to the one-hot label, summed over classes (Brier 1950): 0 to 2, for two classes too.
    ece
        Expected calibration error of the predicted class over 15 bins of equal width, (low, high] each
        (Guo et al. 2017, arXiv 1706.04599).
    adaptive_ece
        The same over 15 bins that hold equally many images each (Nguyen & O'Connor 2015, arXiv 1508.05154). Images
        of equal confidence are shared out evenly where an edge falls between them.
    aurc
        Area under the risk-coverage curve (Geifman & El-Yaniv 2017, arXiv 1705.08500): the mean over images of the
        share of mistakes among all images that are at least as confident.
    coverage_at_1pct_risk, coverage_at_5pct_risk
        The largest share of images, the most confident ones, among which at most that share are mistakes.
    auroc_ovr
        Area under the ROC curve, each class against the rest, averaged over the classes that have both; ties count
        one half. Left out where all images are of one class.
    """
    found = outcomes(labels, probabilities, logits)
    measured = weighted_metrics(found, np.ones((len(labels), 1)))
    return {name: float(values[0]) for name, values in measured.items()}


def weighted_metrics(found: Outcomes, weights: Floats, gaps: Mapping[str, Floats] | None = None) -> dict[str, Floats]:
    """`classification_metrics` of weighted images, for many weightings at once: `float64[weightings]` each.

    `weights` is `float64[images, weightings]`, non-negative: how often each image counts. A class whose images
    weigh nothing is as good as absent; `auroc_ovr` is NaN where only one class is left. `gaps` are what
    `calibration_gaps` gives for these weights, where it is known already.
    """
    total = weights.sum(axis=0)
    classes = found.probabilities.shape[1]
    metrics = {"accuracy": found.correct @ weights / total}
    if classes > 5:
        metrics["top5_accuracy"] = (found.rank < 5) @ weights / total
    metrics["loss"] = found.nll @ weights / total
    metrics |= _confusion_metrics(found, weights, classes)
    metrics["brier"] = found.brier @ weights / total
    gaps = calibration_gaps(found, weights) if gaps is None else gaps
    metrics |= {name: np.abs(signed).sum(axis=0) for name, signed in gaps.items()}
    metrics |= _by_confidence(found, weights)
    area = _auroc_ovr(found, weights)
    if area is not None:
        metrics["auroc_ovr"] = area
    return metrics


def group_sums(group: NDArray[np.integer[Any]], weights: Floats, groups: int, values: Floats | None = None) -> Floats:
    """Sum of `weights[images, weightings]`, times `values[images]`, over each group: `float64[groups, weightings]`."""
    from scipy.sparse import csr_array

    images = len(group)
    each = np.ones(images) if values is None else values
    return csr_array((each, (group, np.arange(images))), shape=(groups, images)) @ weights


def _confusion_metrics(found: Outcomes, weights: Floats, classes: int) -> dict[str, Floats]:
    """What the numbers of images by true and predicted class decide."""
    support = group_sums(found.labels, weights, classes)
    predicted = group_sums(found.predicted, weights, classes)
    right = group_sums(found.labels, weights, classes, found.correct.astype(np.float64))
    total = support.sum(axis=0)
    precision, recall = _share(right, predicted), _share(right, support)
    present = support > 0
    seen = present | (predicted > 0)
    number = seen.sum(axis=0)
    covariance = right.sum(axis=0) * total - (predicted * support).sum(axis=0)
    spread = (total**2 - (predicted**2).sum(axis=0)) * (total**2 - (support**2).sum(axis=0))
    return {
        "balanced_accuracy": recall.sum(axis=0) / present.sum(axis=0),
        "macro_precision": precision.sum(axis=0) / number,
        "macro_recall": recall.sum(axis=0) / number,
        "macro_f1": _share(2 * right, predicted + support).sum(axis=0) / number,
        "mcc": np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0.0),
        "worst_class_accuracy": np.where(present, recall, np.inf).min(axis=0),
    }


def _share(part: Floats, whole: Floats) -> Floats:
    """0 where the whole is, as in scikit-learn: the precision of a class never predicted, recall of an absent one."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 0.0)


def calibration_gaps(found: Outcomes, weights: Floats) -> dict[str, Floats]:
    """Confidence less accuracy in each bin, times its share of the images, `float64[bins, weightings]`.

    Of `ece` and `adaptive_ece`, which are the sums of their absolute values.
    """
    return {"ece": _equal_width_gaps(found, weights), "adaptive_ece": _equal_mass_gaps(found, weights)}


def _equal_width_gaps(found: Outcomes, weights: Floats) -> Floats:
    place = np.searchsorted(np.linspace(0.0, 1.0, ECE_BINS + 1)[1:-1], found.confidence, side="left")
    return group_sums(place, weights, ECE_BINS, found.confidence - found.correct) / weights.sum(axis=0)


def _equal_mass_gaps(found: Outcomes, weights: Floats) -> Floats:
    levels, place = _levels(found)
    mass = group_sums(place, weights, levels).cumsum(axis=0)
    gap = group_sums(place, weights, levels, found.confidence - found.correct).cumsum(axis=0)
    start = np.zeros((1, mass.shape[1]))
    mass, gap = np.concatenate([start, mass]), np.concatenate([start, gap])
    edges = np.linspace(0.0, 1.0, ECE_BINS + 1)
    at_edges = np.array([np.interp(edges * m[-1], m, g) for m, g in zip(mass.T, gap.T, strict=True)])
    return np.diff(at_edges, axis=1).T / mass[-1]


def _levels(found: Outcomes) -> tuple[int, NDArray[np.int64]]:
    """How many different confidences there are, and which one each image has, from the highest."""
    levels, place = np.unique(-found.confidence, return_inverse=True)
    return len(levels), place


def _by_confidence(found: Outcomes, weights: Floats) -> dict[str, Floats]:
    """What needs the images in the order of their confidence; those of equal confidence stand together."""
    levels, place = _levels(found)
    weight = group_sums(place, weights, levels)
    mass = weight.cumsum(axis=0)
    wrong = group_sums(place, weights, levels, (~found.correct).astype(np.float64)).cumsum(axis=0)
    risk = _share(wrong, mass)
    result = {"aurc": (weight * risk).sum(axis=0) / mass[-1]}
    for percent in RISKS:
        # A share that is just at the limit must not fail by a rounding error.
        safe = risk <= percent / 100 + 1e-12
        result[f"coverage_at_{percent}pct_risk"] = np.where(safe, mass, 0.0).max(axis=0) / mass[-1]
    return result


def _auroc_ovr(found: Outcomes, weights: Floats) -> Floats | None:
    """By the definition: the weight of pairs (image of the class, image of another) that are in the right order."""
    images, weightings = weights.shape
    classes = found.probabilities.shape[1]
    if (found.labels == found.labels[0]).all():
        return None
    # Measured: sorting for each class, or comparing each image with each, which is a matrix product.
    count = _pairs_by_sorting if classes * (weightings + 30) < images * (weightings / 100 + 1) else _pairs_by_product
    support = group_sums(found.labels, weights, classes)
    possible = support * (support.sum(axis=0) - support)
    curves = (possible > 0).sum(axis=0)
    areas = _share(count(found, weights, classes), possible)
    # Sums in float32 may exceed the whole by their rounding.
    return np.where(curves > 0, np.minimum(areas, 1.0).sum(axis=0) / np.maximum(curves, 1), np.nan)


def _pairs_by_sorting(found: Outcomes, weights: Floats, classes: int) -> Floats:
    """Weight of the pairs in order, ties counting half: `float64[classes, weightings]`."""
    pairs = np.zeros((classes, weights.shape[1]))
    for label in np.unique(found.labels):
        mine = found.labels == label
        scores, others = found.probabilities[mine, label], found.probabilities[~mine, label]
        order = np.argsort(others, kind="stable")
        below = np.zeros((len(others) + 1, weights.shape[1]))
        np.cumsum(weights[~mine][order], axis=0, out=below[1:])
        first, last = (np.searchsorted(others[order], scores, side=side) for side in ("left", "right"))
        pairs[label] = np.einsum("ij,ij->j", weights[mine], (below[first] + below[last]) / 2)
    return pairs


def _pairs_by_product(found: Outcomes, weights: Floats, classes: int) -> Floats:
    """The same, at a cost that does not depend on the number of classes."""
    images, weightings = weights.shape
    order = np.argsort(found.labels, kind="stable")
    pairs = np.zeros((classes, weightings))
    # With weights of one the sums are exact in float32 as well; with others to 1e-7, and twice as fast.
    narrow = weights.astype(np.float32)
    rows = max(_BLOCK // images, 1)
    for start in range(0, images, rows):
        mine = order[start : start + rows]
        scores = np.ascontiguousarray(found.probabilities[:, found.labels[mine]].T)
        own = found.probabilities[mine, found.labels[mine]][:, None]
        before = (scores < own).astype(np.float32)
        before += np.float32(0.5) * (scores == own)
        before[found.labels[mine][:, None] == found.labels[None, :]] = 0.0
        pairs += group_sums(found.labels[mine], weights[mine] * (before @ narrow), classes)
    return pairs


def nll_from_logits(labels: NDArray[np.integer[Any]], logits: NDArray[np.floating[Any]]) -> Floats:
    """Negative log-likelihood of each image in nats, `float64[images]`; exact also where a probability rounds to 0."""
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    true = scores[np.arange(len(labels)), labels]
    np.exp(scores, out=scores)
    return np.log(scores.sum(axis=1)) - true


def true_class_rank(labels: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """How many classes rank before the true one, `int64[images]`: 0 is a top-1 hit, below 5 a top-5 hit."""
    true = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    return np.count_nonzero((scores > true) | ((scores == true) & earlier), axis=1)


def confusion_matrix(
    labels: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]], classes: int
) -> NDArray[np.int64]:
    """Counts `int64[true class, predicted class]`."""
    flat = labels.astype(np.int64) * classes + predicted
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def check_arrays(labels: NDArray[Any], scores: NDArray[Any]) -> None:
    """Raise ValueError unless `labels` (`int[images]`) and finite `scores` (`float[images, classes]`) fit."""
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"labels {labels.shape} do not fit scores {scores.shape}")
    if not len(labels):
        raise ValueError("no images to measure")
    if not np.issubdtype(labels.dtype, np.integer) or not np.issubdtype(scores.dtype, np.floating):
        raise ValueError(f"labels must be whole numbers and scores floats, not {labels.dtype}, {scores.dtype}")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels {labels.min()}..{labels.max()} for {scores.shape[1]} classes")
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).any(axis=1).sum())
        raise ValueError(f"scores of {bad} of {len(labels)} images are not finite")


def per_class_table(matrix: NDArray[np.int64], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class, in class order: class, support (images), precision, recall, f1, from a confusion matrix."""
    right = np.diag(matrix).astype(np.float64)
    support, predicted = matrix.sum(axis=1).astype(np.float64), matrix.sum(axis=0).astype(np.float64)
    columns = (_share(right, predicted), _share(right, support), _share(2 * right, predicted + support))
    return [
        {"class": name, "support": int(count), "precision": float(p), "recall": float(r), "f1": float(f)}
        for name, count, p, r, f in zip(class_names, support, *columns, strict=True)
    ]
