"""Which images are in which step: a pure function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> NDArray[np.int32]:
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    return generator.permutation(size).astype(np.int32)


@dataclass(frozen=True)
class Order:
    """One endless sequence of images: a new permutation each epoch, cut into batches across their borders.

    No image is dropped or repeated within an epoch, whatever the batch size; a batch may hold the end of one
    epoch and the start of the next.
    """

    size: int
    batch_size: int
    seed: int

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
            parts.append(_permutation(self.size, self.seed, epoch)[offset : offset + take])
            start += take
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def steps(self, start: int, stop: int) -> NDArray[np.int32]:
        """Indices of the images in steps start..stop: `int32[stop - start, batch]`."""
        flat = self.positions(start * self.batch_size, stop * self.batch_size)
        return flat.reshape(stop - start, self.batch_size)
