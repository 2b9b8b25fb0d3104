"""Digests of images and splits: what exactly was trained or tested on, and which test images are in the training set.

Each is kept in files (keys of embeddings, predictions, checkpoints), so none of them may change.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.assemble import Of16Bits
from jaxtrain.data.base import ArraySource, FileSource, Images, ImageSource, Labels, PartSource, Relabelled, weights_of
from jaxtrain.data.decode import to_channels
from jaxtrain.data.objects import ItemsSource
from jaxtrain.data.remote import RemoteFile
from jaxtrain.data.scan import parallel
from jaxtrain.data.splits import Indices

_SAMPLED = 64


def images_fingerprint(split: ImageSource, *, workers: int = 8) -> str:
    """SHA-256 (hex) of a split's images in their order; the same for images that were labelled again.

    Images count as their source holds them: the bytes of an encoded file, or shape and pixels of an array.
    """
    total = hashlib.sha256()
    for digest in parallel(lambda i: _digest(split.read(i)), len(split), workers):
        total.update(digest)
    return total.hexdigest()


def image_id(image: bytes | Images) -> str:
    """SHA-256 (hex) of an image: of the encoded file, or of the shape and pixels of an array.

    A grey array is the same image with one channel or with three, as models want it.
    """
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    if image.shape[-1] == 3 and (image == image[..., :1]).all():
        image = image[..., :1]
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def image_ids(source: ImageSource) -> tuple[str, ...]:
    """`image_id` of every image, in order; equal images have equal ids."""
    return tuple(image_id(source.read(index)) for index in range(len(source)))


def digest_of_test_set(ids: Iterable[str], labels: Labels, class_names: Sequence[str]) -> str:
    """SHA-256 (hex) of a test set: which images, each with the name of its class, in whatever order.

    Of several labels per image: with the names of those it has, and of those that are unknown.
    """
    lines = sorted(f"{name} {_named(label, class_names)}" for name, label in zip(ids, labels, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _named(label: Any, class_names: Sequence[str]) -> str:
    if not np.ndim(label):
        return class_names[label]
    return json.dumps([sorted(class_names[i] for i in np.flatnonzero(label == value).tolist()) for value in (1, -1)])


def data_digest(source: ImageSource) -> str:
    """What identifies a split cheaply: labels and weights, the pixels of an array, or what images are called.

    Of parts of files their lengths, and of nameless items a sample of the images.
    """
    digest = hashlib.sha256(np.ascontiguousarray(source.labels).tobytes())
    if isinstance(source, ArraySource):
        digest.update(np.ascontiguousarray(source.images).data)
    else:
        for index in range(len(source)):
            digest.update(source.describe(index).encode())
        within = source.source if isinstance(source, Relabelled | Of16Bits) else source
        if isinstance(within, PartSource):
            digest.update(np.ascontiguousarray(within.places[:, 2]).data)
        elif isinstance(within, ItemsSource):
            for index in np.unique(np.linspace(0, len(source) - 1, _SAMPLED).astype(int)).tolist():
                digest.update(_digest(source.read(index)))
    weights = weights_of(source)
    digest.update(b"" if weights is None else weights.tobytes())
    return digest.hexdigest()


def duplicates(train: ImageSource, test: ImageSource, *, workers: int = 8) -> list[tuple[int, int]] | None:
    """Test images that are in the training set too: (the first such training image, test image).

    Images are compared as they were loaded. Equal means equal bytes of the encoded file, or equal pixels of an array in
    the fewer channels of the two; a re-encoded copy is not found. Of files, only those are read whose size occurs on
    both sides. None where it cannot be known, as one side holds encoded files, the other pixels.
    """
    train, test = _as_loaded(train), _as_loaded(test)
    if not len(train) or not len(test):
        return []
    candidates, channels = (np.arange(len(train)), np.arange(len(test))), None
    if isinstance(train, FileSource) and isinstance(test, FileSource):
        train_sizes, test_sizes = _file_sizes(train, workers), _file_sizes(test, workers)
        candidates = (
            np.flatnonzero(np.isin(train_sizes, test_sizes)),
            np.flatnonzero(np.isin(test_sizes, train_sizes)),
        )
    elif images := [image for image in (train.read(0), test.read(0)) if not isinstance(image, bytes)]:
        if len(images) == 1:
            return None
        channels = min(image.shape[-1] for image in images)
    first: dict[bytes, int] = {}
    for digest, index in _digests(train, candidates[0], workers, channels):
        first.setdefault(digest, index)
    of_test = _digests(test, candidates[1], workers, channels)
    return [(first[digest], index) for digest, index in of_test if digest in first]


def _as_loaded(source: ImageSource) -> ImageSource:
    loaded = source.loaded if isinstance(source, ArraySource) else None
    source = source if loaded is None else loaded
    return _as_loaded(source.source) if isinstance(source, Relabelled | Of16Bits) else source


def _digests(source: ImageSource, indices: Indices, workers: int, channels: int | None) -> list[tuple[bytes, int]]:
    places = indices.tolist()

    def one(place: int) -> tuple[bytes, int]:
        image = source.read(place)
        return _digest(image if isinstance(image, bytes) or channels is None else to_channels(image, channels)), place

    return parallel(lambda i: one(places[i]), len(places), workers)


def _file_sizes(source: FileSource, workers: int) -> NDArray[np.int64]:
    def size(index: int) -> int:
        path = source.paths[index]
        if not isinstance(path, RemoteFile):
            return os.stat(path).st_size
        return path.size if path.size >= 0 else len(source.read(index))

    return np.array(parallel(size, len(source), workers), np.int64)


def _digest(image: bytes | Images) -> bytes:
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    shape = np.array(image.shape, "<i4").tobytes()
    return hashlib.sha256(shape + image.tobytes()).digest()
