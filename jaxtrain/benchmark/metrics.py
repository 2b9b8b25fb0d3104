"""Metrics of a classifier on a labelled set: pure functions of labels and probabilities, in float64.

One rule decides every tie: of classes with the same score the first in class order ranks higher, as in
`numpy.argmax`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ECE_BINS = 15


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Probabilities `float64[images, classes]` of `logits[images, classes]`."""
    result = logits.astype(np.float64)
    result -= result.max(axis=1, keepdims=True)
    np.exp(result, out=result)
    result /= result.sum(axis=1, keepdims=True)
    return result


def nll_from_logits(labels: NDArray[np.integer[Any]], logits: NDArray[np.floating[Any]]) -> float:
    """Mean negative log-likelihood in nats; exact also where a probability would round to zero."""
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    true = scores[np.arange(len(labels)), labels]
    np.exp(scores, out=scores)
    return float(np.mean(np.log(scores.sum(axis=1)) - true))


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


def precision_recall_f1(matrix: NDArray[np.int64]) -> tuple[NDArray[np.float64], ...]:
    """Precision, recall and F1 of each class, `float64[classes]` each, from a confusion matrix.

    0 where undefined, as in scikit-learn: the precision of a class never predicted, the recall of one without
    images.
    """
    right = np.diag(matrix).astype(np.float64)
    predicted, support = matrix.sum(axis=0), matrix.sum(axis=1)
    precision = right / np.maximum(predicted, 1)
    recall = right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(predicted + support, 1)
    return precision, recall, f1


def matthews_correlation(matrix: NDArray[np.int64]) -> float:
    """Matthews correlation for any number of classes (Gorodkin 2004); 0 where it is undefined."""
    counts = matrix.astype(np.float64)
    predicted, support, total = counts.sum(axis=0), counts.sum(axis=1), counts.sum()
    covariance = np.trace(counts) * total - predicted @ support
    spread = (total**2 - predicted @ predicted) * (total**2 - support @ support)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def expected_calibration_error(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = ECE_BINS
) -> float:
    """ECE over equal-width bins of confidence, (low, high] each (Guo et al. 2017, arXiv 1706.04599).

    `confidence` is `float64[images]`, the probability of the predicted class; `correct` is `bool[images]`.
    """
    place = np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], confidence, side="left")
    # Per bin |sum of confidence - number correct|: the bin's share cancels its own mean.
    gap = np.bincount(place, confidence - correct, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def auroc_ovr(labels: NDArray[np.integer[Any]], probabilities: NDArray[np.floating[Any]]) -> float | None:
    """Area under the ROC curve, each class against the rest, averaged over classes; ties count one half.

    A class has a curve where some but not all images are of it. Others are left out of the average;
    None where no class has a curve (all images are of one class).
    """
    areas = []
    for index in np.unique(labels):
        mine = labels == index
        positive, negative = int(mine.sum()), int((~mine).sum())
        if negative == 0:
            continue
        scores = probabilities[:, index]
        ordered, found = np.sort(scores), scores[mine]
        # The mean rank among all scores, from 1, of each positive score (Mann-Whitney U).
        low = np.searchsorted(ordered, found, side="left")
        high = np.searchsorted(ordered, found, side="right")
        ranks = (low + high + 1).sum() / 2
        areas.append((ranks - positive * (positive + 1) / 2) / (positive * negative))
    return float(np.mean(areas)) if areas else None


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


def classification_metrics(
    labels: NDArray[np.integer[Any]],
    probabilities: NDArray[np.floating[Any]],
    logits: NDArray[np.floating[Any]] | None = None,
) -> dict[str, float]:
    """The headline figures of a classifier. No figure is ever NaN.

    `labels` is `int[images]`, `probabilities` `float[images, classes]` with rows that sum to one. Where the
    `logits` they come from are given, ranks and loss are taken from these, which do not saturate.

    accuracy, top5_accuracy
        Share of images whose true class ranks first, or among the first five. With five classes or fewer
        every image is a top-5 hit, so that figure is left out.
    loss
        Mean negative log-likelihood in nats. Without logits, probabilities below the machine epsilon of their
        dtype count as that, as in scikit-learn.
    balanced_accuracy
        Mean recall over the classes that have images.
    macro_precision, macro_recall, macro_f1
        Means over the classes that have images or were predicted; undefined values count as 0 (as in
        scikit-learn).
    mcc
        Matthews correlation; 0 where undefined.
    brier
        Squared distance to the one-hot label, summed over classes (Brier 1950): 0 to 2, for two classes too.
    ece
        Expected calibration error of the predicted class, 15 bins of equal width.
    auroc_ovr
        See `auroc_ovr`; left out where all images are of one class.

    Raises ValueError for arrays that do not fit each other, labels outside the classes, and values that are
    not finite.
    """
    check_arrays(labels, probabilities)
    if logits is not None:
        check_arrays(labels, logits)
    if np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1).max() > 1e-3 or probabilities.min() < 0:
        raise ValueError("rows of probabilities must be non-negative and sum to one")
    images, classes = probabilities.shape
    every = np.arange(images)
    true = probabilities[every, labels].astype(np.float64)
    scores = probabilities if logits is None else logits
    predicted = scores.argmax(axis=1)
    rank = true_class_rank(labels, scores)
    matrix = confusion_matrix(labels, predicted, classes)
    precision, recall, f1 = precision_recall_f1(matrix)
    present = matrix.sum(axis=1) > 0
    seen = present | (matrix.sum(axis=0) > 0)

    metrics = {"accuracy": float(np.mean(rank == 0))}
    if classes > 5:
        metrics["top5_accuracy"] = float(np.mean(rank < 5))
    if logits is not None:
        metrics["loss"] = nll_from_logits(labels, logits)
    else:
        metrics["loss"] = float(-np.mean(np.log(np.maximum(true, np.finfo(probabilities.dtype).eps))))
    metrics["balanced_accuracy"] = float(recall[present].mean())
    metrics["macro_precision"] = float(precision[seen].mean())
    metrics["macro_recall"] = float(recall[seen].mean())
    metrics["macro_f1"] = float(f1[seen].mean())
    metrics["mcc"] = matthews_correlation(matrix)
    squares = np.einsum("ij,ij->i", probabilities, probabilities, dtype=np.float64)
    metrics["brier"] = float(np.mean(squares - 2 * true + 1))
    confidence = probabilities[every, predicted].astype(np.float64)
    metrics["ece"] = expected_calibration_error(confidence, rank == 0)
    area = auroc_ovr(labels, probabilities)
    if area is not None:
        metrics["auroc_ovr"] = area
    return metrics


def per_class_table(matrix: NDArray[np.int64], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """One row a class, in class order: class, support (images), precision, recall, f1."""
    precision, recall, f1 = precision_recall_f1(matrix)
    support = matrix.sum(axis=1)
    return [
        {
            "class": name,
            "support": int(support[i]),
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
        }
        for i, name in enumerate(class_names)
    ]
