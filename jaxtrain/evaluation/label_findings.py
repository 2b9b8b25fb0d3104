"""What single test images tell where they have several labels: as `jaxtrain.evaluation.findings` for one class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.evaluation.comparison import Comparison, Entry
from jaxtrain.evaluation.findings import GALLERY, MAX_SLICES, Shown, Slice, by_columns, label_text
from jaxtrain.evaluation.statistics import bounded, half_weights, of_halves
from jaxtrain.label_metrics import LabelOutcomes, average_precisions, sigmoid


def worst_mistakes(comparison: Comparison, entry: Entry, count: int = GALLERY) -> list[Shown]:
    """The images with a label decided wrong that surprise this model most; `score` is their cross-entropy."""
    loss = _losses(entry)
    return [_shown(comparison, i, loss[i], [entry]) for i in _first(np.where(entry.correct, -1.0, loss), count)]


def disagreements(comparison: Comparison, first: Entry, second: Entry, count: int = GALLERY) -> list[Shown]:
    """Images that `first` has all right and `second` not, the largest difference in cross-entropy first."""
    score = _losses(second) - _losses(first)
    differ = first.correct & ~second.correct
    places = _first(np.where(differ, score, -1.0), count)
    return [_shown(comparison, i, score[i], [first, second]) for i in places]


def likely_label_errors(comparison: Comparison, count: int = 2 * GALLERY) -> list[Shown]:
    """The labels that all models together speak against most, at most one of an image.

    `score` is the models' mean probability that the label is wrong, less one half.
    """
    predictions = comparison.predictions
    each = [sigmoid(entry.candidate.predictions.logits) for entry in comparison.entries]
    truth = predictions.labels == 1
    against = np.where(truth, 1 - np.mean(each, axis=0), np.mean(each, axis=0))
    against = np.where(predictions.labels < 0, 0.0, against) - 0.5
    label, found = against.argmax(axis=1), []
    for i in _first(against.max(axis=1), count):
        name, has = predictions.class_names[label[i]], bool(truth[i, label[i]])
        answers = []
        for entry, probabilities in zip(comparison.entries, each, strict=True):
            p = float(probabilities[i, label[i]])
            told = f"{'has' if p >= 0.5 else 'not'} {name}"
            answers.append((entry.name, told, max(p, 1 - p), (p >= 0.5) == has))
        found.append(Shown(i, f"{'has' if has else 'not'} {name}", tuple(answers), float(against[i].max())))
    return found


def slices(comparison: Comparison, columns: Mapping[str, Sequence[Any]]) -> list[Slice]:
    """Average precision by label, with its interval; then the share of images with every label right, by each column.

    Raises UserError for a column of another length.
    """
    names = comparison.predictions.class_names
    support = np.count_nonzero(comparison.predictions.labels == 1, axis=0)
    each = {entry.name: _precisions(entry, comparison) for entry in comparison.entries}
    by_label = []
    for label in np.argsort(-support, kind="stable")[:MAX_SLICES]:
        figures = {}
        for name, (values, replicates) in each.items():
            value = float(values[label])
            drawn = replicates[label]
            drawn = drawn[drawn > 0] if support[label] else drawn  # 0: a half without an image that has the label
            images = len(comparison.predictions.labels)
            interval = of_halves(value, drawn, images, float(support[label] - 1))
            figures[name] = (value, bounded(interval, value, "mAP"))
        by_label.append(Slice("label (average precision)", names[label], int(support[label]), figures))
    return by_label + by_columns(comparison, columns)


def _precisions(entry: Entry, comparison: Comparison) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    found = entry.measured.resampled.found
    assert isinstance(found, LabelOutcomes)
    drawn = half_weights(len(found.labels), comparison.resamples, comparison.seed)
    return found.precision, np.concatenate([average_precisions(found, weights) for weights in drawn], axis=1)


def _losses(entry: Entry) -> NDArray[np.float64]:
    """Binary cross-entropy of each image, summed over its known labels."""
    labels, logits = entry.candidate.predictions.labels, entry.candidate.predictions.logits.astype(np.float64)
    return (np.logaddexp(0.0, np.where(labels == 1, -logits, logits)) * (labels >= 0)).sum(axis=1)


def _first(score: NDArray[np.float64], count: int) -> list[int]:
    """The images of the highest scores, those below zero left out."""
    return [int(i) for i in np.argsort(-score, kind="stable")[:count] if score[i] >= 0]


def _shown(comparison: Comparison, place: int, score: float, entries: Sequence[Entry]) -> Shown:
    """Confidence is that of the least sure of the decisions."""
    names = comparison.predictions.class_names
    answers = []
    for entry in entries:
        p = sigmoid(entry.candidate.predictions.logits[place])
        sure = float(np.where(entry.predicted[place], p, 1 - p).min())
        answers.append((entry.name, label_text(entry.predicted[place], names), sure, bool(entry.correct[place])))
    return Shown(place, label_text(comparison.predictions.labels[place], names), tuple(answers), float(score))
