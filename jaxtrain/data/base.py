"""What every data set looks like to the rest of jaxtrain."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.packed import picked_names
from jaxtrain.data.remote import RemoteFile
from jaxtrain.readers import read_bytes

LARGEST_FILE = 1 << 30
"""Bytes of an encoded image."""
Images = NDArray[Any]
"""Of uint8, or of uint16 where `data.bits` is 16."""
Labels = NDArray[np.signedinteger[Any]]
"""`int32[images]`: one class each; or `int8[images, classes]`: 1 has the label, 0 has it not, -1 unknown."""


@runtime_checkable
class ImageSource(Protocol):
    """A split: labels in memory, images read one by one, at random, in any thread or process (picklable)."""

    @property
    def labels(self) -> Labels:
        """`int32[images]`, or `int8[images, classes]`."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: int) -> bytes | Images:
        """One image: an encoded file as bytes, or `uint8[height, width, channels]`."""

    def describe(self, index: int) -> str:
        """What a person would look for to find this image: a path, or "train image 17"."""

    def select(self, indices: NDArray[np.int64]) -> ImageSource:
        """The split with only these images, in this order."""


@dataclass(frozen=True)
class ArraySource:
    """Images that are in memory (or in a memory-mapped file) as one array."""

    images: Images
    """`uint8[images, height, width, channels]`"""
    labels: Labels
    """`int32[images]`"""
    origin: str = "array"
    prepared: bool = False
    """Cropped and resized for the model already: nothing of that is done again."""
    weights: NDArray[np.float32] | None = None
    """`float32[images]`: how much each image counts in training; None: all the same."""
    loaded: ImageSource | None = None
    """The same images as they were before they were decoded or resized into this array; None: as they are here."""
    metadata: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """As of `FileSource`."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Images:
        """`uint8[height, width, channels]`."""
        return np.asarray(self.images[index])

    def describe(self, index: int) -> str:
        """As it was called before it was decoded, else by its number."""
        return f"{self.origin} image {index}" if self.loaded is None else self.loaded.describe(index)

    def select(self, indices: NDArray[np.int64]) -> ImageSource:
        """The same images, fewer or in another order: a copy, or a view of a memory-mapped array."""
        if isinstance(self.images, np.memmap):
            return Subset(self, indices)
        loaded = None if self.loaded is None else self.loaded.select(indices)
        return replace(self, images=self.images[indices], loaded=loaded, **picked(self, indices))


@dataclass(frozen=True)
class FileSource:
    """Images in files, one each, read when asked for."""

    paths: Sequence[str | Path | RemoteFile]
    labels: Labels
    metadata: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """What else is known of each image, `{name: [images]}`: the Benchmark tells results by it."""
    weights: NDArray[np.float32] | None = None
    """`float32[images]`: how much each image counts in training; None: all the same."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """The encoded file."""
        path = self.paths[index]
        return path.read(LARGEST_FILE) if isinstance(path, RemoteFile) else read_bytes(path, LARGEST_FILE)

    def describe(self, index: int) -> str:
        """The path, printable also where its name is not valid UTF-8."""
        return os.fsencode(str(self.paths[index])).decode(errors="replace")

    def select(self, indices: NDArray[np.int64]) -> FileSource:
        """The same files, fewer or in another order."""
        paths = picked_names(self.paths, indices)
        return replace(self, paths=paths, **picked(self, indices))


@dataclass(frozen=True)
class PartSource:
    """Images that are parts of files, such as the members of a tar file: each is read from its place."""

    files: tuple[str | RemoteFile, ...]
    places: NDArray[np.int64]
    """Number of the file, first byte and length in bytes of each image: `int64[images, 3]`."""
    labels: Labels
    names: Sequence[str]
    """What a person would look for to find each image."""
    metadata: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """As of `FileSource`."""
    weights: NDArray[np.float32] | None = None
    """As of `FileSource`."""
    version: str = ""
    """Another one for files of the same names that have changed."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """The encoded image; OSError where the file ends before it does."""
        number, start, length = self.places[index].tolist()
        within = self.files[number]
        if isinstance(within, RemoteFile):
            data = within.part(start, length)
        else:
            # Held here: another thread may have put its own into the cache.
            file = _opened(within, self.version)
            data = os.pread(file.fileno(), length, start)
        if len(data) < length:
            raise OSError(f"{within} is cut off")
        return data

    def describe(self, index: int) -> str:
        """File and place in it, printable as that of a file."""
        return os.fsencode(self.names[index]).decode(errors="replace")

    def select(self, indices: NDArray[np.int64]) -> PartSource:
        """The same parts, fewer or in another order."""
        names = picked_names(self.names, indices)
        return replace(self, places=self.places[indices], names=names, **picked(self, indices))


@lru_cache(maxsize=64)
def _opened(path: str, version: str) -> BinaryIO:
    """Kept open, and read by place alone, so that threads share it; closed when nothing uses it any more."""
    del version
    return open(path, "rb", buffering=0)  # type: ignore[return-value]


def picked(source: Any, indices: NDArray[np.int64]) -> dict[str, Any]:
    """Labels, metadata and weights of some images of a source, by the names of its fields."""
    weights = None if source.weights is None else source.weights[indices]
    metadata = {name: values[indices] for name, values in source.metadata.items()}
    return {"labels": source.labels[indices], "metadata": metadata, "weights": weights}


def weights_of(source: ImageSource) -> NDArray[np.float32] | None:
    """How much each image counts in training, `float32[images]`; None: all the same."""
    return getattr(source, "weights", None)


@dataclass(frozen=True)
class Subset:
    """Some images of another source, which is not copied."""

    source: ImageSource
    indices: NDArray[np.int64]

    @cached_property
    def labels(self) -> Labels:
        """`int32[images]`."""
        return self.source.labels[self.indices]

    @cached_property
    def weights(self) -> NDArray[np.float32] | None:
        """`float32[images]`, or None."""
        weights = weights_of(self.source)
        return None if weights is None else weights[self.indices]

    @cached_property
    def metadata(self) -> Mapping[str, NDArray[Any]]:
        """What else is known of each image, `{name: [images]}`."""
        return {name: values[self.indices] for name, values in getattr(self.source, "metadata", {}).items()}

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> bytes | Images:
        """As the other source gives it."""
        return self.source.read(int(self.indices[index]))

    def describe(self, index: int) -> str:
        """As the other source names it."""
        return self.source.describe(int(self.indices[index]))

    def select(self, indices: NDArray[np.int64]) -> Subset:
        """Fewer of these images, or in another order."""
        return Subset(self.source, self.indices[indices])


@dataclass(frozen=True)
class Relabelled:
    """Another source with other labels, and weights in training."""

    source: ImageSource
    labels: Labels
    weights: NDArray[np.float32] | None = None
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """What is known of each image besides what the other source knows."""

    @property
    def metadata(self) -> Mapping[str, NDArray[Any]]:
        """What else is known of each image, `{name: [images]}`."""
        return {**getattr(self.source, "metadata", {}), **self.columns}

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes | Images:
        """As the other source gives it."""
        return self.source.read(index)

    def describe(self, index: int) -> str:
        """As the other source names it."""
        return self.source.describe(index)

    def select(self, indices: NDArray[np.int64]) -> Relabelled:
        """Fewer of these images, or in another order."""
        weights = None if self.weights is None else self.weights[indices]
        columns = {name: values[indices] for name, values in self.columns.items()}
        return Relabelled(self.source.select(indices), self.labels[indices], weights, columns)


def relabelled(
    source: ImageSource,
    labels: Labels,
    weights: NDArray[np.float32] | None = None,
    columns: Mapping[str, NDArray[Any]] | None = None,
) -> ArraySource | FileSource | Relabelled:
    """The same images with these labels and weights, and with further `metadata`."""
    if isinstance(source, ArraySource | FileSource):
        metadata = {**source.metadata, **(columns or {})}
        return replace(source, labels=labels, weights=weights, metadata=metadata)
    return Relabelled(source, labels, weights, columns or {})


@dataclass(frozen=True)
class Dataset:
    """Training and validation images, and a test set that is not read until the Benchmark opens it."""

    name: str
    class_names: tuple[str, ...]
    train: ImageSource
    val: ImageSource | None
    open_test: Callable[[], ImageSource | None]
    """Opens the test split; only `jaxtrain.evaluation` calls it."""
    channels: int
    """1 or 3, what the images are converted to; other numbers are those of all images."""
    uniform_size: tuple[int, int] | None
    """(height, width) when all training images have one size, else None."""
    flips: bool | None = None
    """Whether a mirrored image keeps its label (false for digits); None: unknown."""
    mean: tuple[float, ...] | None = None
    """Known channel means in 0..1; None: unknown."""
    std: tuple[float, ...] | None = None
    bad_images: BadImages = field(default_factory=BadImages)
    """Unreadable images that were skipped, or are yet to be met; the same object in all copies."""
    found: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What a look at the images has found out (`jaxtrain.data.nature`), for all runs on it."""
    bits: Literal[8, 16] = 8
    """Of each sample: images are uint8, or uint16."""
    taken: str = ""
    """Which folders became which split, where that is not plain."""
    classes: tuple[int, ...] | tuple[str, ...] | None = None
    """What labels were given as, in the order of `class_names`; None: places in it."""

    @property
    def num_classes(self) -> int:
        """Number of classes, also those without an image."""
        return len(self.class_names)

    @property
    def multilabel(self) -> bool:
        """Whether images have several labels each."""
        return self.train.labels.ndim == 2

    @cached_property
    def class_counts(self) -> NDArray[np.int64]:
        """Training images of each class: `int64[classes]`."""
        return class_counts(self.train.labels, self.num_classes)


def class_counts(labels: Labels, classes: int) -> NDArray[np.int64]:
    """Images of each class, or with each label: `int64[classes]`."""
    if labels.ndim == 2:
        return np.count_nonzero(labels == 1, axis=0)
    return np.bincount(labels, minlength=classes)
