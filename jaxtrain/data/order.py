"""Which images are in which step: a pure function of (seed, step), also where rare classes come more often."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from jaxtrain.config import DataConfig
from jaxtrain.data.base import Labels


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws an epoch of as many images as there are, so that classes have given shares of it.

    Of each class an epoch has the whole number just below or above its share of the images, in the long run exactly
    that share, and each image of a class comes as often as the others, give or take one.
    """

    labels: Labels
    """`int32[images]`"""
    shares: NDArray[np.float64]
    """`float64[classes]`: sum to 1; 0 for a class without images."""

    @property
    def times(self) -> NDArray[np.float64]:
        """How often an image of each class comes in an epoch, on average: `float64[classes]`."""
        counts = np.bincount(self.labels, minlength=len(self.shares))
        return self.shares * len(self.labels) / np.maximum(counts, 1)

    def draw(self, generator: np.random.Generator) -> NDArray[np.int32]:
        """The images of an epoch, shuffled: `int32[images]`."""
        present = np.flatnonzero(self.shares)
        ends = np.cumsum(self.shares[present]) * len(self.labels)
        ends[-1] = len(self.labels)
        wanted = np.diff(np.floor(ends + generator.random()), prepend=0.0).astype(np.int64)
        members = np.split(np.argsort(self.labels, kind="stable"), np.cumsum(np.bincount(self.labels))[:-1])
        parts = []
        for images, count in zip((members[place] for place in present), wanted.tolist(), strict=True):
            rounds, rest = divmod(count, len(images))
            parts += [*[images] * rounds, generator.permutation(images)[:rest]]
        return generator.permutation(np.concatenate(parts)).astype(np.int32)


def sampler(config: DataConfig, labels: Labels, classes: int) -> Sampler | None:
    """What `data.sampling` asks for; None: every image once in each epoch."""
    if config.sampling == "uniform":
        return None
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    beta = config.sampling_beta
    wanted = {
        "balanced": np.sign(counts),
        "sqrt": np.sqrt(counts),
        # Cui et al. 2019: images weigh 1 / effective number, which is (1 - beta^count) / (1 - beta).
        "effective": counts * (1 - beta) / np.maximum(1 - beta**counts, 1e-300),
    }[config.sampling]
    return Sampler(labels, wanted / wanted.sum())


@lru_cache(maxsize=4)
def _epoch(size: int, seed: int, epoch: int, sampler: Sampler | None) -> NDArray[np.int32]:
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    return generator.permutation(size).astype(np.int32) if sampler is None else sampler.draw(generator)


@dataclass(frozen=True)
class Order:
    """One endless sequence of images: a new permutation each epoch, cut into batches across their borders.

    Without a sampler no image is dropped or repeated within an epoch, whatever the batch size; a batch may hold the
    end of one epoch and the start of the next.
    """

    size: int
    batch_size: int
    seed: int
    sampler: Sampler | None = None

    @property
    def steps_per_epoch(self) -> float:
        """Not whole where the batch size does not divide the number of images."""
        return self.size / self.batch_size

    def positions(self, start: int, stop: int) -> NDArray[np.int32]:
        """Indices of the images at places start..stop of the sequence: `int32[stop - start]`."""
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.size)
            take = min(stop - start, self.size - offset)
            parts.append(_epoch(self.size, self.seed, epoch, self.sampler)[offset : offset + take])
            start += take
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def steps(self, start: int, stop: int) -> NDArray[np.int32]:
        """Indices of the images in steps start..stop: `int32[stop - start, batch]`."""
        flat = self.positions(start * self.batch_size, stop * self.batch_size)
        return flat.reshape(stop - start, self.batch_size)
