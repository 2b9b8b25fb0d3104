"""What single test images tell: mistakes, disagreements, labels that may be wrong, and results by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.errors import UserError
from jaxtrain.evaluation.comparison import Comparison, Entry
from jaxtrain.evaluation.statistics import Interval, wilson
from jaxtrain.tasks import softmax

GALLERY = 24
"""Images of a gallery."""
MAX_SLICES = 50
"""Values of a column that are told, the most frequent ones."""


@dataclass(frozen=True)
class Shown:
    """A test image and what models say about it."""

    index: int
    """Place in the test set."""
    label: str
    answers: tuple[tuple[str, str, float, bool], ...]
    """Of each model: its name, the predicted class, its probability, and whether it is right."""
    score: float
    """What the list is ordered by."""


@dataclass(frozen=True)
class Slice:
    """A part of the test set."""

    column: str
    value: str
    images: int
    accuracy: dict[str, tuple[float, Interval]]
    """By model, with Wilson's interval."""


def worst_mistakes(comparison: Comparison, entry: Entry, count: int = GALLERY) -> list[Shown]:
    """The images that this model got wrong with the lowest probability of their class; `score` is the surprise."""
    predictions = entry.candidate.predictions
    probabilities = softmax(predictions.logits)
    true = probabilities[np.arange(len(predictions.labels)), predictions.answers]
    surprise = np.where(~entry.correct, -np.log(np.maximum(true, 1e-300)), -1.0)
    return _shown(comparison, surprise, count, [entry])


def disagreements(comparison: Comparison, first: Entry, second: Entry, count: int = GALLERY) -> list[Shown]:
    """Images that `first` has right and `second` wrong, where together they are surest of it.

    `score` is the probability of the class in the first less that in the second.
    """
    every = np.arange(len(first.correct))
    each = (entry.candidate.predictions for entry in (first, second))
    one, other = (softmax(predictions.logits)[every, predictions.answers] for predictions in each)
    return _shown(comparison, np.where(first.correct & ~second.correct, one - other, -1.0), count, [first, second])


def likely_label_errors(comparison: Comparison, count: int = 2 * GALLERY) -> list[Shown]:
    """Images whose label all models together speak against.

    The models' mean probabilities vote; `score` is the mean probability of the class that wins less that of the label
    (the margin of confident learning, Northcutt et al. 2021, with the models as judges).
    """
    mean = np.zeros(comparison.predictions.logits.shape)
    for entry in comparison.entries:
        mean += softmax(entry.candidate.predictions.logits)
    mean /= len(comparison.entries)
    margin = mean.max(axis=1) - mean[np.arange(len(mean)), comparison.predictions.likeliest(mean)]
    return _shown(comparison, np.where(margin > 0, margin, -1.0), count, comparison.entries)


def slices(comparison: Comparison, columns: Mapping[str, Sequence[Any]]) -> list[Slice]:
    """Accuracy by class, and by each column of values, one an image in the order of the test set.

    Raises UserError for a column of another length.
    """
    predictions = comparison.predictions
    if predictions.any_of:  # an image is in several classes
        return by_columns(comparison, columns)
    names = np.array(predictions.class_names, dtype=object)
    by_class = _by_value(comparison, "class", names[predictions.labels], order=predictions.class_names)
    return by_class + by_columns(comparison, columns)


def by_columns(comparison: Comparison, columns: Mapping[str, Sequence[Any]]) -> list[Slice]:
    """Share of images that are right, by each column; raises as `slices`."""
    found, images = list[Slice](), len(comparison.predictions.labels)
    for column, values in columns.items():
        if len(values) != images:
            raise UserError(f"column {column}: {len(values)} values for {images} test images")
        found += _by_value(comparison, column, np.array([str(value) for value in values], dtype=object))
    return found


def _by_value(
    comparison: Comparison, column: str, values: NDArray[Any], order: Sequence[str] | None = None
) -> list[Slice]:
    if order is None:
        unique, counts = np.unique(values, return_counts=True)
        order = sorted((str(unique[i]) for i in np.argsort(-counts, kind="stable")[:MAX_SLICES]), key=_by_number)
    found = []
    for value in order:
        mine = values == value
        images = int(mine.sum())
        if images:
            accuracy = {}
            for entry in comparison.entries:
                share = float(np.mean(entry.correct[mine]))
                accuracy[entry.name] = (share, wilson(share, images))
            found.append(Slice(column, value, images, accuracy))
    return found


def label_text(labels: Any, class_names: Sequence[str]) -> str:
    """The name of an image's class, or of each of its labels.

    >>> label_text(1, ["cat", "dog"]), label_text(np.array([1, 1]), ["cat", "dog"]), label_text(np.array([0]), ["cat"])
    ('dog', 'cat, dog', 'none')
    """
    if not np.ndim(labels):
        return class_names[int(labels)]
    return ", ".join(class_names[i] for i in np.flatnonzero(np.asarray(labels) == 1).tolist()) or "none"


def _by_number(text: str) -> tuple[float, str]:
    """Numbers by their value, then words."""
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text


def _shown(comparison: Comparison, score: NDArray[Any], count: int, entries: Sequence[Entry]) -> list[Shown]:
    """The images of the highest scores, those below zero left out."""
    names, labels = comparison.predictions.class_names, comparison.predictions.labels
    places = [int(i) for i in np.argsort(-score, kind="stable")[:count] if score[i] >= 0]
    confidence = {}
    for entry in entries:
        confidence[entry.name] = softmax(entry.candidate.predictions.logits[places]).max(axis=1) if places else []
    return [
        Shown(
            index=place,
            label=label_text(labels[place], names),
            answers=tuple(
                (
                    entry.name,
                    names[entry.predicted[place]],
                    float(confidence[entry.name][number]),
                    bool(entry.correct[place]),
                )
                for entry in entries
            ),
            score=float(score[place]),
        )
        for number, place in enumerate(places)
    ]
