"""Embeddings computed once: kept under a digest of all that decides them, shared by runs and processes.

A folder `<root>/<digest[:2]>/<digest>/` for each key (see `embedding_files`). Whatever ends a process, finished
shards stay and only the others are computed again; the finished folder is the same byte for byte.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.base import ImageSource
from jaxtrain.embeddings.extraction import Compute, Extraction, Progress
from jaxtrain.embeddings.files import Rows, ShardFiles, Use, refuse_links
from jaxtrain.embeddings.key import EmbeddingKey
from jaxtrain.errors import UserError

__all__ = ["DEFAULT_ROOT", "Compute", "EmbeddingStore", "Embeddings", "Progress"]

DEFAULT_ROOT = Path("runs/embeddings")
SHARD_IMAGES, _MOST_SHARDS = 1024, 256
_OPEN_SHARDS = 64


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of one split, read from memory-mapped shards."""

    files: ShardFiles
    computed: int
    """Images that this call computed; 0: all were there."""
    seconds: float
    """Wall time of the call."""
    use: Use
    """Keeps them from being pruned."""

    def __len__(self) -> int:
        return self.files.meta.images

    @property
    def path(self) -> Path:
        """The folder."""
        return self.files.folder

    @property
    def key(self) -> EmbeddingKey:
        """What they depend on."""
        return self.files.meta.key

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.files.meta.dim

    def rows(self, start: int, stop: int) -> Rows:
        """Images start..stop: `float32[stop - start, dim]`, a copy."""
        return self.take(np.arange(start, stop))

    def take(self, indices: NDArray[np.int64]) -> Rows:
        """Any images in any order: `float32[indices, dim]`; IndexError for one that is not there."""
        indices = np.asarray(indices)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"images 0..{len(self) - 1} are there, not {indices.min()}..{indices.max()}")
        shard, place = np.divmod(indices, self.files.meta.shard_images)
        rows = np.empty((len(indices), self.dim), np.float32)
        for number in np.unique(shard):
            here = shard == number
            rows[here] = self._shard(int(number))[place[here]]
        return rows

    def load(self) -> Rows:
        """All of them in memory: `float32[images, dim]`."""
        rows = np.empty((len(self), self.dim), np.float32)
        for shard in range(self.files.meta.shards):
            rows[slice(*self.files.meta.span(shard))] = self.files.open(shard)
        return rows

    @cached_property
    def _shard(self) -> Callable[[int], Rows]:
        """Shards by number; not all at once, for each holds a file open."""
        return lru_cache(_OPEN_SHARDS)(self.files.open)


class EmbeddingStore:
    """The folder of all embeddings."""

    def __init__(self, root: Path, *, shard_images: int = SHARD_IMAGES, patience_seconds: float = 1800.0) -> None:
        """Nothing is read or written yet.

        Args:
            root: the folder; made when needed.
            shard_images: images a shard, which is what a kill can cost; multiples of it in a set so large that there
                would be more than 256 shards. A multiple of the batch size keeps every image at the same place of a
                batch, however often the work was interrupted.
            patience_seconds: how long to wait for another process of the same job without a new shard from it.
        """
        self.root = Path(root).expanduser().absolute()
        self._shard_images, self._patience_seconds = shard_images, patience_seconds

    def path(self, key: EmbeddingKey) -> Path:
        """The folder of a key."""
        return self.root / key.digest[:2] / key.digest

    def get(
        self,
        key: EmbeddingKey,
        source: ImageSource,
        compute: Compute,
        *,
        progress: Progress | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Embeddings:
        """The embeddings of a source: those that are there and sound, and the others computed and kept.

        `compute` is called with the part of the source that is missing, once or a few times. Processes that ask for
        one key at the same time share the work. The processes of one job (`process_count` > 1, one file system)
        compute disjoint shards and wait for one another's.

        Raises:
            UserError: the source is empty, or the store cannot be written.
            RunError: no space on the disk (bytes needed and free), a symbolic link in the store, rows that do
                not fit the source, or another process that gives no more shards.
        """
        started = time.monotonic()
        if not len(source):
            raise UserError("there are no images to embed")
        work = Extraction(
            self.path(key),
            key,
            len(source),
            shard_images=self._shard_images * -(-len(source) // (self._shard_images * _MOST_SHARDS)),
            progress=progress or (lambda done, total: None),
            share=(process_index, process_count),
            patience_seconds=self._patience_seconds,
        )
        with work.disk():
            refuse_links(work.folder)
            use = Use(work.folder)
        files = work.finish(source, compute)
        return Embeddings(files, work.computed, time.monotonic() - started, use)
