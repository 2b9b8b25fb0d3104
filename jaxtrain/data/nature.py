"""What a look at the training images tells of an unknown set: mean, deviation, and whether mirroring keeps a label.

A classifier that takes a second (kernel ridge regression on tiny images) is asked about held-out images as they are,
and mirrored. What it knows beyond guessing is the scale: of labels that mirroring keeps it loses next to nothing, of
handwritten digits most of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.base import ArraySource, Dataset, ImageSource, Labels
from jaxtrain.data.decode import BadImageError, pixels_of, read_encoded, size_to_shrink
from jaxtrain.data.scan import parallel
from jaxtrain.data.splits import stratified_subset
from jaxtrain.data.transforms import resize

Floats = NDArray[Any]

_IMAGES, _LEAST, _CLASSES = 1600, 200, 40
_BYTES = 80_000_000  # of encoded images: about two seconds of decoding
_FEWEST = 40
_SIDE = 16
_MARGIN = 0.15  # of what the classifier knows beyond guessing
_SURE = 2.0  # standard errors
_KNOWS = 0.3  # of what there is to know beyond guessing: below it the classifier cannot judge
_RIDGE, _WIDTH = 0.01, 3.0

_CHANGES: dict[str, Callable[[Floats], Floats]] = {
    "mirrored": lambda x: x[:, :, ::-1],
    "upside down": lambda x: x[:, ::-1],
    "on their side": lambda x: np.rot90(x, axes=(1, 2)),
}


@dataclass(frozen=True)
class Nature:
    """What was found out."""

    mean: tuple[float, ...]
    """Of each channel of the training images in 0..1, as is `std`."""
    std: tuple[float, ...]
    hflip: bool
    """Whether a mirrored image keeps its label; True also where that is unclear, as photographs do."""
    vflip: bool
    """The same for an image that is upside down; False where that is unclear."""
    rotate: bool
    """The same for one that is turned by any angle."""
    evidence: str
    """In words."""


def nature_of(dataset: Dataset, max_pixels: int) -> Nature:
    """A look at a sample of the training images, the same every time; a second look at a data set takes no time."""
    if "nature" not in dataset.found:
        images, labels, mean, std = _sample(dataset.train, dataset.channels, max_pixels)
        dataset.found["nature"] = Nature(mean, std, *_which_changes_keep_labels(images, labels))
    nature: Nature = dataset.found["nature"]
    return nature


def _sample(
    source: ImageSource, channels: int, max_pixels: int
) -> tuple[Floats, Labels, tuple[float, ...], tuple[float, ...]]:
    """Tiny images of the most frequent classes `[images, side, side, channels]`, labels, and channel statistics."""
    labels = _one_each(source.labels)
    counts = np.bincount(labels)
    frequent = np.argsort(-counts, kind="stable")[:_CLASSES]
    places = np.flatnonzero(np.isin(labels, frequent))
    size = min(_IMAGES, len(places), _affordable(source, places))
    if size < len(places):
        places = places[stratified_subset(labels[places], size, seed=0)]
    places = np.random.default_rng(0).permutation(places)

    def read(number: int) -> tuple[Any, Any, Any, float] | None:
        try:
            encoded = read_encoded(source, int(places[number]))
            sides = size_to_shrink(encoded) if isinstance(encoded, bytes) else None
            shrink = next((s for s in (8, 4, 2) if sides and min(sides) >= 128 * s), 1)
            image = pixels_of(encoded, channels=channels, max_pixels=max_pixels, shrink=shrink)
        except BadImageError:
            return None
        white = np.float32(np.iinfo(image.dtype).max)
        values = image.reshape(-1, channels) / float(white)
        return resize(image, _SIDE, _SIDE) / white, values.mean(0), (values**2).mean(0), float(white)

    found = parallel(read, len(places), min(os.cpu_count() or 1, 8))
    kept = [number for number, one in enumerate(found) if one is not None]
    if not kept:  # the run itself will say why
        return (
            np.zeros((0, _SIDE, _SIDE, channels), np.float32),
            labels[:0],
            (0.5,) * channels,
            (0.5,) * channels,
        )
    white = max(one[3] for one in found if one is not None)
    tiny, first, second, _ = zip(*(one for one in found if one is not None), strict=True)
    mean = np.mean(first, axis=0)
    std = np.sqrt(np.maximum(np.mean(second, axis=0) - mean**2, 0))
    std = np.where(std < 2.55 / white, 0.5, std)  # of one grey: nothing is to be blown up
    return np.stack(tiny), labels[places[kept]], _rounded(mean, white), _rounded(std, white)


def _one_each(labels: Labels) -> Labels:
    """One number per image: of several labels, which combination it is."""
    return labels if labels.ndim == 1 else np.unique(labels, axis=0, return_inverse=True)[1].astype(np.int32)


def _affordable(source: ImageSource, places: NDArray[np.int64]) -> int:
    """How many images are decoded in a few seconds, by the size of some of them."""
    if isinstance(source, ArraySource):
        return _IMAGES
    sizes = [1]
    for place in places[:: max(len(places) // 16, 1)].tolist():
        with suppress(BadImageError):
            encoded = read_encoded(source, place)
            sizes.append(len(encoded) if isinstance(encoded, bytes) else encoded.size)
    return max(int(_BYTES / np.mean(sizes)), _LEAST)


def _rounded(values: NDArray[np.float64], white: float) -> tuple[float, ...]:
    return tuple(round(float(value), 4 if white == 255 else 6) for value in values)


def _which_changes_keep_labels(images: Floats, labels: Labels) -> tuple[bool, bool, bool, str]:
    """hflip, vflip, rotate, and the evidence."""
    if len(labels) < _FEWEST:
        return True, False, False, f"{len(labels)} images are too few to judge flips by"
    plain, changed = _answers(images, labels)
    guessing = np.bincount(labels).max() / len(labels)
    known = plain.mean() - guessing
    if known < max(_KNOWS * (1 - guessing), 2 * _SURE * np.sqrt(guessing * (1 - guessing) / len(plain))):
        words = f"a simple classifier has {plain.mean():.0%} of {len(plain):,} images right, too few to judge flips by"
        return True, False, False, words
    lost = {name: plain - right for name, right in changed.items()}
    error = {name: float(each.std() / np.sqrt(len(each))) for name, each in lost.items()}
    surely_lost = {name: each.mean() - _SURE * error[name] > _MARGIN * known for name, each in lost.items()}
    surely_kept = {name: each.mean() + _SURE * error[name] < _MARGIN * known for name, each in lost.items()}
    hflip, vflip = not surely_lost["mirrored"], surely_kept["mirrored"] and surely_kept["upside down"]
    shares = ", ".join(f"{right.mean():.0%} of those {name}" for name, right in changed.items())
    words = f"a simple classifier has {plain.mean():.0%} of {len(plain):,} images right, {shares}"
    return bool(hflip), bool(vflip), bool(vflip and surely_kept["on their side"]), words


def _answers(images: Floats, labels: Labels) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Which held-out images are right, as they are and changed: `float64[images]` each, by two halves in turn."""
    half = len(images) // 2
    plain: list[Any] = []
    changed: dict[str, list[Any]] = {name: [] for name in _CHANGES}
    for one, other in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        answer = _fitted(images[one], labels[one])
        plain.append(answer(images[other]) == labels[other])
        for name, change in _CHANGES.items():
            changed[name].append(answer(change(images[other])) == labels[other])
    return np.concatenate(plain).astype(float), {n: np.concatenate(v).astype(float) for n, v in changed.items()}


def _fitted(images: Floats, labels: Labels) -> Callable[[Floats], Labels]:
    """Kernel ridge regression on one-hot labels, the Gaussian's width from the distances of the images."""
    x = images.reshape(len(images), -1).astype(np.float64)
    distances = _distances(x, x)
    scale = _WIDTH / max(float(np.median(distances)), 1e-9)
    target = np.eye(int(labels.max()) + 1)[labels]
    middle = target.mean(axis=0)
    weights = np.linalg.solve(np.exp(-scale * distances) + _RIDGE * np.eye(len(x)), target - middle)

    def answer(images: Floats) -> Labels:
        kernel = np.exp(-scale * _distances(images.reshape(len(images), -1).astype(np.float64), x))
        return (kernel @ weights + middle).argmax(axis=1).astype(np.int32)

    return answer


def _distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)
