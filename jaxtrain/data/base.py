"""What every data set looks like to the rest of jaxtrain."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.bad_images import BadImages
from jaxtrain.readers import read_bytes

LARGEST_FILE = 1 << 30
"""Bytes of an encoded image."""
Images = NDArray[np.uint8]
Labels = NDArray[np.int32]


@runtime_checkable
class ImageSource(Protocol):
    """A split: labels in memory, images read one by one, at random, in any thread or process (picklable)."""

    @property
    def labels(self) -> Labels:
        """`int32[images]`."""

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
    """Images that lie in memory (or in a memory-mapped file) as one array."""

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
        weights = None if self.weights is None else self.weights[indices]
        loaded = None if self.loaded is None else self.loaded.select(indices)
        return replace(self, images=self.images[indices], labels=self.labels[indices], weights=weights, loaded=loaded)


@dataclass(frozen=True)
class FileSource:
    """Images in files, one each, read when asked for."""

    paths: Sequence[str | Path]
    labels: Labels
    metadata: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """What else is known of each image, `{name: [images]}`: the Benchmark tells results by it."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """The encoded file."""
        return read_bytes(self.paths[index], LARGEST_FILE)

    def describe(self, index: int) -> str:
        """The path, printable also where its name is not valid UTF-8."""
        return os.fsencode(self.paths[index]).decode(errors="replace")

    def select(self, indices: NDArray[np.int64]) -> FileSource:
        """The same files, fewer or in another order."""
        metadata = {name: values[indices] for name, values in self.metadata.items()}
        return FileSource([self.paths[i] for i in indices], self.labels[indices], metadata)


@dataclass(frozen=True)
class Subset:
    """Some images of another source, which is not copied."""

    source: ImageSource
    indices: NDArray[np.int64]

    @cached_property
    def labels(self) -> Labels:
        """`int32[images]`."""
        return self.source.labels[self.indices]

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
class Dataset:
    """Training and validation images, and a test set that stays shut until the Benchmark opens it."""

    name: str
    class_names: tuple[str, ...]
    train: ImageSource
    val: ImageSource | None
    open_test: Callable[[], ImageSource | None]
    """Opens the test split; only `jaxtrain.evaluation` calls it."""
    channels: int
    """1 or 3, what the images are converted to."""
    uniform_size: tuple[int, int] | None
    """(height, width) when all training images have one size, else None."""
    flips: bool = True
    """Whether a mirrored image keeps its label (false for digits)."""
    mean: tuple[float, ...] | None = None
    """Known channel means in 0..1; None: 0.5."""
    std: tuple[float, ...] | None = None
    bad_images: BadImages = field(default_factory=BadImages)
    """Unreadable images that were skipped, or are yet to be met; the same object in all copies."""
    taken: str = ""
    """Which folders became which split, where that is not plain."""
    classes: tuple[int, ...] | tuple[str, ...] | None = None
    """What labels were given as, in the order of `class_names`; None: places in it."""

    @property
    def num_classes(self) -> int:
        """Number of classes, also those without an image."""
        return len(self.class_names)

    @cached_property
    def class_counts(self) -> NDArray[np.int64]:
        """Training images of each class: `int64[classes]`."""
        return np.bincount(self.train.labels, minlength=self.num_classes)
