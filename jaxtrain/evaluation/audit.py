"""What an audit finds in the images that are trained on: likely label errors, near duplicates, outliers, class overlap.

Labels of the test set are not judged: of its images only the likeness to others is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.base import Dataset, ImageSource
from jaxtrain.evaluation.confident_learning import confident_joint, label_margins, likely_errors
from jaxtrain.evaluation.evaluate import open_test_set
from jaxtrain.evaluation.near_duplicates import MAX_IMAGES, alike, thumbnails

NEIGHBOURS = 10
"""Nearest images, whose mean distance says how far out an image is."""
_REFERENCE = 10_000
"""Images among which the nearest are looked for, a random sample of more."""
_BLOCK = 2048
_FENCE = 3.0
"""Interquartile ranges above the upper quartile: where Tukey (1977) calls a value far out."""


class Place(NamedTuple):
    """An image of one of the splits."""

    split: str
    number: int


@dataclass(frozen=True)
class Finding:
    """One image, and what may be wrong with it."""

    issue: Literal["label error", "near duplicate", "outlier"]
    place: Place
    score: float
    """Label error: probability of the suggested class less that of the label, out of fold. Near duplicate: correlation
    of the thumbnails. Outlier: mean cosine distance to the nearest images."""
    suggested: int | None = None
    """The most probable class."""
    other: Place | None = None
    """The image that this one looks like."""


class Overlap(NamedTuple):
    """Two classes that the model cannot keep apart, or that labels confuse."""

    label: int
    looks_like: int
    images: int
    """Images of the one label that count for the other class (`confident_joint`)."""
    share: float
    """Of the images of that label that count for any class."""


@dataclass(frozen=True)
class Audit:
    """What was found, the most urgent of each kind first."""

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, ImageSource]
    """By name: train, val, test."""
    judged: int
    """Images whose labels were judged."""
    accuracy: float
    """Share of these whose label is the most probable class, out of fold."""
    label_errors: list[Finding]
    overlaps: list[Overlap]
    near_duplicates: list[Finding] | None
    """None: there were too many images to look."""
    outliers: list[Finding]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Why images could not be read, by name."""
    method: str = ""
    """How the labels were judged."""

    @property
    def findings(self) -> list[Finding]:
        """All, kind by kind."""
        return [*self.label_errors, *(self.near_duplicates or []), *self.outliers]

    def label(self, place: Place) -> str:
        """The class that an image has."""
        return self.class_names[int(self.splits[place.split].labels[place.number])]

    def describe(self, place: Place) -> str:
        """What a person would look for to find it."""
        return self.splits[place.split].describe(place.number)

    def rows(self) -> list[dict[str, Any]]:
        """A row per finding, as in `suggestions.csv`."""
        return [self._row(finding) for finding in self.findings] + [
            {"issue": "unreadable", "image": name, "reason": reason} for name, reason in self.unreadable.items()
        ]

    def _row(self, finding: Finding) -> dict[str, Any]:
        split, number = finding.place
        row = {"issue": finding.issue, "split": split, "index": number, "image": self.describe(finding.place)}
        row |= {"label": self.label(finding.place), "suggested_label": "", "score": round(finding.score, 6)}
        if finding.suggested is not None:
            row["suggested_label"] = self.class_names[finding.suggested]
        if finding.other is not None:
            other = {"split": finding.other.split, "index": finding.other.number}
            other |= {"image": self.describe(finding.other), "label": self.label(finding.other)}
            row |= {f"other_{name}": value for name, value in other.items()}
        return row


def splits_of(dataset: Dataset) -> tuple[dict[str, ImageSource], dict[str, ImageSource]]:
    """The splits that are trained on, train and val, by name; and the same with the test images."""
    learned = {"train": dataset.train, **({} if dataset.val is None else {"val": dataset.val})}
    test = open_test_set(dataset)
    return learned, {**learned, **({} if test is None else {"test": test.images})}


def find_label_errors(
    places: Sequence[Place], labels: NDArray[np.int32], probabilities: NDArray[np.floating]
) -> list[Finding]:
    """By confident learning, the surest first; probabilities `[images, classes]` are out of fold."""
    margins, best = label_margins(labels, probabilities), probabilities.argmax(axis=1)
    return [
        Finding("label error", places[i], -float(margins[i]), suggested=int(best[i]))
        for i in likely_errors(labels, probabilities).tolist()
    ]


def find_overlaps(labels: NDArray[np.int32], probabilities: NDArray[np.floating]) -> list[Overlap]:
    """Pairs of label and class off the diagonal of the confident joint, the most frequent first."""
    joint = confident_joint(labels, probabilities)
    totals = joint.sum(axis=1)
    found = [
        Overlap(int(i), int(j), int(joint[i, j]), float(joint[i, j] / totals[i]))
        for i, j in zip(*np.nonzero(joint), strict=True)
        if i != j
    ]
    return sorted(found, key=lambda pair: (-pair.images, pair.label, pair.looks_like))


def find_near_duplicates(splits: Mapping[str, ImageSource], max_pixels: int) -> list[Finding] | None:
    """Within and across splits, those across first; None where there are too many images to look through."""
    if sum(map(len, splits.values())) > MAX_IMAGES:
        return None
    small = {name: thumbnails(source, max_pixels) for name, source in splits.items()}
    found = [
        Finding("near duplicate", Place(later, pair.test), pair.correlation, other=Place(first, pair.other))
        for first, later in combinations_with_replacement(splits, 2)
        for pair in alike(small[first], small[later])
    ]
    return sorted(found, key=lambda one: (one.other is None or one.other.split == one.place.split, -one.score))


def find_outliers(places: Sequence[Place], x: NDArray[np.float32], seed: int) -> list[Finding]:
    """Images far from all others: above the far-out fence of all distances to the nearest, the farthest first."""
    distances = neighbour_distances(x, seed)
    low, high = np.quantile(distances, [0.25, 0.75])
    out = np.flatnonzero(distances > high + _FENCE * (high - low))
    return [Finding("outlier", places[i], float(distances[i])) for i in out[np.argsort(-distances[out], kind="stable")]]


def neighbour_distances(x: NDArray[np.float32], seed: int, count: int = NEIGHBOURS) -> NDArray[np.float32]:
    """Mean cosine distance of each centred vector `[images, features]` to its nearest others: `float32[images]`."""
    drawn = np.random.default_rng(seed).permutation(len(x))[:_REFERENCE]
    count = min(count, len(drawn) - 1)
    mean = x.mean(axis=0)
    known = _unit(x[drawn] - mean)
    column = np.full(len(x), -1, np.int32)
    column[drawn] = np.arange(len(drawn))

    @jax.jit
    def nearest(known: jax.Array, asked: jax.Array, own: jax.Array) -> jax.Array:
        similarity = _unit(asked - mean) @ known.T
        itself = jnp.arange(len(known)) == own[:, None]
        return 1 - jnp.mean(jax.lax.top_k(jnp.where(itself, -jnp.inf, similarity), count)[0], axis=1)

    parts = [nearest(known, x[rows], column[rows]) for rows in _blocks(len(x))]
    return np.concatenate([np.asarray(part) for part in parts])


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, rows, _BLOCK))


def _unit(x: Any) -> Any:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-30)
