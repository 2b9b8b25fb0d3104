"""Labels that are likely wrong, from probabilities out of fold: confident learning (Northcutt et al. 2021)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.base import Labels

Probabilities = NDArray[np.floating]


def confident_classes(labels: Labels, probabilities: Probabilities) -> NDArray[np.int64]:
    """The class that each image counts for, `int64[images]`; -1 where none is likely enough.

    Likely enough is a class whose probability reaches its threshold: the mean probability that the images labelled so
    give it. Of several the most probable one counts. A class without images has no threshold that can be reached.
    """
    sums = np.zeros(probabilities.shape[1])
    np.add.at(sums, labels, probabilities[np.arange(len(labels)), labels])
    counts = np.bincount(labels, minlength=len(sums))
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), -1)


def confident_joint(labels: Labels, probabilities: Probabilities) -> NDArray[np.int64]:
    """Images by the label that they have and the class that they count for: `int64[classes, classes]`."""
    found = confident_classes(labels, probabilities)
    joint = np.zeros((probabilities.shape[1],) * 2, np.int64)
    np.add.at(joint, (labels[found >= 0], found[found >= 0]), 1)
    return joint


def label_margins(labels: Labels, probabilities: Probabilities) -> NDArray[np.float64]:
    """Probability of the label less that of the most probable other class: `float64[images]`, the worst at -1."""
    others = np.array(probabilities, np.float64)
    own = others[np.arange(len(labels)), labels]
    others[np.arange(len(labels)), labels] = -np.inf
    return own - others.max(axis=1)


def likely_errors(labels: Labels, probabilities: Probabilities) -> NDArray[np.int64]:
    """Places of the images that count for another class than their label, which is not the most probable either.

    The least margin comes first.
    """
    found, margins = confident_classes(labels, probabilities), label_margins(labels, probabilities)
    wrong = np.flatnonzero((found >= 0) & (found != labels) & (margins < 0))
    return wrong[np.argsort(margins[wrong], kind="stable")]
