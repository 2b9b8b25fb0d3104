"""Digests of splits: what exactly was trained on, and which test images also stand in the training set."""

from __future__ import annotations

import hashlib
import os

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.base import FileSource, Images, ImageSource
from jaxtrain.data.scan import parallel
from jaxtrain.data.splits import Indices


def fingerprint(split: ImageSource, *, workers: int = 8) -> str:
    """SHA-256 of a split's labels and images in their order, as hexadecimal.

    Images count as their source holds them: the bytes of an encoded file, or shape and pixels of an array.
    """
    return _fingerprint(split, np.asarray(split.labels, "<i4").tobytes(), workers)


def images_fingerprint(split: ImageSource, *, workers: int = 8) -> str:
    """As `fingerprint`, without the labels: the same for images that were labelled anew."""
    return _fingerprint(split, b"", workers)


def _fingerprint(split: ImageSource, before: bytes, workers: int) -> str:
    total = hashlib.sha256(before)
    for digest in parallel(lambda i: _digest(split.read(i)), len(split), workers):
        total.update(digest)
    return total.hexdigest()


def duplicates(train: ImageSource, test: ImageSource, *, workers: int = 8) -> list[tuple[int, int]]:
    """Test images that stand in the training set too: (the first such training image, test image).

    Equal means equal bytes of the encoded file, or equal pixels of an array; a re-encoded copy is not found.
    Of files, only those are read whose size occurs on both sides.
    """
    candidates = np.arange(len(train)), np.arange(len(test))
    if isinstance(train, FileSource) and isinstance(test, FileSource):
        train_sizes, test_sizes = _file_sizes(train, workers), _file_sizes(test, workers)
        candidates = (
            np.flatnonzero(np.isin(train_sizes, test_sizes)),
            np.flatnonzero(np.isin(test_sizes, train_sizes)),
        )
    first: dict[bytes, int] = {}
    for digest, index in _digests(train, candidates[0], workers):
        first.setdefault(digest, index)
    of_test = _digests(test, candidates[1], workers)
    return [(first[digest], index) for digest, index in of_test if digest in first]


def _digests(source: ImageSource, indices: Indices, workers: int) -> list[tuple[bytes, int]]:
    places = indices.tolist()
    return parallel(lambda i: (_digest(source.read(places[i])), places[i]), len(places), workers)


def _file_sizes(source: FileSource, workers: int) -> NDArray[np.int64]:
    sizes = parallel(lambda i: os.stat(source.paths[i]).st_size, len(source), workers)
    return np.array(sizes, np.int64)


def _digest(image: bytes | Images) -> bytes:
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    shape = np.array(image.shape, "<i4").tobytes()
    return hashlib.sha256(shape + image.tobytes()).digest()
