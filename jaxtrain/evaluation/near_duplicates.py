"""Images that are nearly the same, as in training and test set: other crops, sizes or compressions of one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.base import Images, ImageSource
from jaxtrain.data.decode import BadImageError, read_picture
from jaxtrain.data.scan import parallel
from jaxtrain.data.transforms import resize

SIDE = 32
"""Side of the thumbnails that are compared."""
MAX_BITS = 6
"""Bits of 64 that may differ."""
MIN_CORRELATION = 0.98
"""How alike the thumbnails of a pair must be: by brightness and contrast apart."""
MAX_IMAGES = 200_000
"""More images are not looked through."""
_PAIRS = 1 << 23


@dataclass(frozen=True)
class NearDuplicate:
    """A test image and the other image most like it."""

    test: int
    other: int
    bits: int
    """Bits of the perceptual hash that differ."""
    correlation: float
    """Of the thumbnails."""


class Thumbnails(NamedTuple):
    """The readable images of a source, small and grey."""

    pixels: NDArray[np.uint8]
    """`uint8[readable images, 32, 32]`"""
    hashes: NDArray[np.uint64]
    """See `perceptual_hashes`."""
    places: NDArray[np.int64]
    """Of each in the source."""


def near_duplicates(
    other: ImageSource, test: ImageSource, *, max_pixels: int = 50_000_000, workers: int = 8
) -> list[NearDuplicate] | None:
    """Test images that look like one of `other`, the most alike first; None where there are too many to look through.

    A pair differs in at most 6 of the 64 bits of its perceptual hash (the signs of the lowest frequencies of the cosine
    transform, Zauner 2010), and its thumbnails correlate by at least 0.98. Exact copies are among them. Images that
    cannot be read are left out.
    """
    if len(other) + len(test) > MAX_IMAGES:
        return None
    return alike(thumbnails(other, max_pixels, workers), thumbnails(test, max_pixels, workers))


def alike(known: Thumbnails, asked: Thumbnails) -> list[NearDuplicate]:
    """As `near_duplicates`; of one set with itself (the same object) each pair is there once, `test` the later one."""
    if not len(known.pixels) or not len(asked.pixels):
        return []
    found = []
    step = max(_PAIRS // len(known.pixels), 1)
    for start in range(0, len(asked.pixels), step):
        bits = np.bitwise_count(asked.hashes[start : start + step, None] ^ known.hashes[None, :])
        if known is asked:
            bits[np.arange(len(known.hashes)) >= start + np.arange(len(bits))[:, None]] = 64
        for row in np.flatnonzero((bits <= MAX_BITS).any(axis=1)).tolist():
            near = np.flatnonzero(bits[row] <= MAX_BITS)
            likeness = _unit(known.pixels[near]) @ _unit(asked.pixels[start + row][None])[0]
            best = int(likeness.argmax())
            if likeness[best] >= MIN_CORRELATION:
                place = int(near[best])
                pair = (int(asked.places[start + row]), int(known.places[place]))
                found.append(NearDuplicate(*pair, int(bits[row, place]), float(likeness[best])))
    return sorted(found, key=lambda pair: (-pair.correlation, pair.test))


def perceptual_hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """64 bits of each grey `uint8[images, 32, 32]`: which of its 8x8 lowest frequencies exceed their median."""
    from scipy.fft import dctn

    low = dctn(thumbnails.astype(np.float32), axes=(1, 2), norm="ortho")[:, :8, :8].reshape(len(thumbnails), 64)
    # The first is the mean brightness, which tells nothing of the picture.
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
    bits[:, 0] = False
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def thumbnails(source: ImageSource, max_pixels: int = 50_000_000, workers: int = 8) -> Thumbnails:
    """Of all images that can be read."""

    def one(index: int) -> Images | None:
        try:
            return resize(read_picture(source, index, channels=1, max_pixels=max_pixels), SIDE, SIDE)[..., 0]
        except BadImageError:
            return None

    images = parallel(one, len(source), workers)
    places = np.array([index for index, image in enumerate(images) if image is not None], np.int64)
    pixels = np.array([image for image in images if image is not None], np.uint8).reshape(-1, SIDE, SIDE)
    return Thumbnails(pixels, perceptual_hashes(pixels) if len(pixels) else np.zeros(0, np.uint64), places)


def _unit(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Without mean, of length one: `float32[images, 1024]`; a blank one is all zeros, like nothing."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
