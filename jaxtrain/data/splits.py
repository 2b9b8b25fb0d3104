"""Stratified splits and subsets: pure functions of the labels and a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.base import Labels

Indices = NDArray[np.int64]
T = TypeVar("T")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
"""What people call the splits, in small letters."""


def standing_in(splits: Mapping[str, T], measured: str | None) -> dict[str, T]:
    """The splits; the one that is `measured` alone (`data.split`) is also the training set where there is none.

    Classes are those of the training set.
    """
    alone = {} if measured is None or measured not in splits else {"train": splits[measured]}
    return {**alone, **splits}


def stratified_split(labels: Labels, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Indices of the larger part and of the held-out part: `int64[larger]`, `int64[held]`, both ascending.

    Of several labels per image the shares of all labels are kept as far as can be (`_iterative`), the sizes about.

    The held-out part has ceil(fraction * images) images, as scikit-learn rounds, shared among the classes by
    largest remainder. Every class of two images or more keeps at least one in each part, for which the
    held-out part grows where it must; a class of one image stays in the larger part.
    """
    if labels.ndim == 2:
        taken = np.flatnonzero(_iterative(labels, fraction, np.random.default_rng(seed)))
        return np.setdiff1d(np.arange(len(labels)), taken, assume_unique=True), taken
    counts = np.bincount(labels)
    total = math.ceil(fraction * len(labels) - 1e-9)
    generator = np.random.default_rng(seed)
    quota = _quotas(counts, total, generator)
    if total:
        quota = np.clip(quota, np.minimum(counts - 1, 1).clip(0), (counts - 1).clip(0))
    held = _draw(labels, quota, generator)
    return np.setdiff1d(np.arange(len(labels)), held, assume_unique=True), held


def grouped_split(labels: Labels, groups: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """As `stratified_split`, though every group is whole in one part: `int64[larger]`, `int64[held]`, both ascending.

    `groups` is `int64[images]`, from 0 on. Groups are visited in random order, and one is held out where that brings
    the classes' shares in the held-out part nearer to `fraction`, unless it would take the last images of a class.
    """
    from scipy.sparse import csr_matrix

    table = csr_matrix((np.ones(len(labels), np.int64), (groups, labels)))
    totals = np.asarray(table.sum(axis=0)).ravel()
    wanted, held = fraction * totals, np.zeros(len(totals), np.int64)
    taken = np.zeros(table.shape[0], bool)
    for group in np.random.default_rng(seed).permutation(table.shape[0]):
        part = slice(table.indptr[group], table.indptr[group + 1])
        classes, counts = table.indices[part], table.data[part]
        after = held[classes] + counts
        gain = (wanted[classes] - held[classes]) ** 2 - (wanted[classes] - after) ** 2
        if (gain / totals[classes] ** 2).sum() > 0 and (after < totals[classes]).all():
            held[classes], taken[group] = after, True
    return np.flatnonzero(~taken[groups]), np.flatnonzero(taken[groups])


def stratified_subset(labels: Labels, size: int, seed: int) -> Indices:
    """Indices of `size` images in the classes' proportions: `int64[size]`, ascending.

    Every class that occurs keeps at least one image; `size` may not be below the number of such classes.
    """
    if labels.ndim == 2:
        return _subset_of_labels(labels, size, np.random.default_rng(seed))
    counts = np.bincount(labels)
    present = (counts > 0).astype(np.int64)
    if size < present.sum():
        raise ValueError(f"{size} images cannot hold {present.sum()} classes")
    generator = np.random.default_rng(seed)
    return _draw(labels, present + _quotas(counts - present, size - int(present.sum()), generator), generator)


def _subset_of_labels(labels: Labels, size: int, generator: np.random.Generator) -> Indices:
    """About the same shares of all labels, in exactly `size` images."""
    taken = _iterative(labels, size / len(labels), generator)
    for wrong, excess in ((True, taken.sum() - size), (False, size - taken.sum())):
        if excess > 0:
            taken[generator.choice(np.flatnonzero(taken == wrong), excess, replace=False)] = not wrong
    return np.flatnonzero(taken)


def _iterative(labels: Labels, fraction: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Which images are held out by iterative stratification (Sechidis et al. 2011): `bool[images]`.

    Label by label, the one that fewest of the images left have: each of these images goes where most images of that
    label are wanting, else where most images are, else by lot. Of an image without labels the last two decide.
    """
    has = labels == 1
    shares = np.array([1 - fraction, fraction])
    wanted, room = np.outer(shares, has.sum(axis=0)), shares * len(labels)
    left, held = np.ones(len(labels), bool), np.zeros(len(labels), bool)

    def assign(image: int, want: NDArray[np.float64]) -> None:
        for figures in (want, room):
            if abs(figures[0] - figures[1]) > 1e-9:
                part = int(figures[1] > figures[0])
                break
        else:
            part = int(generator.integers(2))
        held[image], left[image] = part, False
        room[part] -= 1
        wanted[part][has[image]] -= 1

    while (remaining := has[left].sum(axis=0)).any():
        label = int(np.where(remaining > 0, remaining, len(labels) + 1).argmin())
        for image in generator.permutation(np.flatnonzero(left & has[:, label])).tolist():
            assign(image, wanted[:, label])
    for image in generator.permutation(np.flatnonzero(left)).tolist():
        assign(image, room)
    return held


def few_shot(labels: Labels, shots: int, seed: int, draw: int = 0) -> Indices:
    """Indices of `shots` random images of each class that occurs: `int64[shots * classes]`, ascending.

    Of several labels per image at least as many of each label: the rarest draws first, and an image counts for all that
    it has. Draws of one seed are independent of each other. ValueError where a class has fewer images.
    """
    if labels.ndim == 2:
        return _few_of_labels(labels, shots, np.random.default_rng([seed, draw]))
    counts = np.bincount(labels)
    present = counts > 0
    if counts[present].min() < shots:
        scarce = int(np.flatnonzero(present & (counts < shots))[0])
        raise ValueError(f"class {scarce} has {counts[scarce]} images only")
    return _draw(labels, np.where(present, shots, 0), np.random.default_rng([seed, draw]))


def _few_of_labels(labels: Labels, shots: int, generator: np.random.Generator) -> Indices:
    has = labels == 1
    counts, taken = has.sum(axis=0), np.zeros(len(labels), bool)
    for label in np.argsort(counts, kind="stable").tolist():
        if 0 < counts[label] < shots:
            raise ValueError(f"label {label} has {counts[label]} images only")
        wanting = shots - int((has[:, label] & taken).sum())
        if counts[label] and wanting > 0:
            left = np.flatnonzero(has[:, label] & ~taken)
            taken[generator.choice(left, wanting, replace=False)] = True
    return np.flatnonzero(taken)


def _quotas(counts: NDArray[np.int64], total: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """`total` shared out in proportion to `counts` by largest remainder, ties by lot: `int64[classes]`."""
    shares = counts * (total / max(counts.sum(), 1))
    quota = np.floor(shares).astype(np.int64)
    lot = generator.permutation(len(counts))
    by_remainder = np.lexsort((lot, -(shares - quota).round(9)))
    quota[by_remainder[: total - quota.sum()]] += 1
    return np.minimum(quota, counts)


def _draw(labels: Labels, quota: NDArray[np.int64], generator: np.random.Generator) -> Indices:
    """`quota[c]` random images of each class c, ascending."""
    shuffled = generator.permutation(len(labels))
    in_classes = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels, minlength=len(quota))
    place_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(in_classes[place_in_class < np.repeat(quota, counts)])
