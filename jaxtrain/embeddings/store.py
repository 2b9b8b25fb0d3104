"""Embeddings computed once: kept under a digest of all that decides them, shared by runs and processes.

A folder `<root>/<digest[:2]>/<digest>/` for each key (see `embedding_files`). Whatever ends a process, finished
shards stay and only the others are computed again; the finished folder is the same byte for byte.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxtrain.data.base import ImageSource
from jaxtrain.embeddings.extraction import Compute, Extraction, Progress
from jaxtrain.embeddings.files import Rows, ShardFiles, Use, refuse_links
from jaxtrain.embeddings.key import EmbeddingKey
from jaxtrain.errors import UserError

__all__ = ["DEFAULT_ROOT", "Compute", "EmbeddingStore", "Embeddings", "Progress"]

DEFAULT_ROOT = Path("runs/embeddings")
SHARD_IMAGES, _MOST_SHARDS = 1024, 256


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
    def dim(self) -> int:
        """Length of a vector."""
        return self.files.meta.dim

    def load(self) -> Rows:
        """All of them in memory: `float32[images, dim]`."""
        rows = np.empty((len(self), self.dim), np.float32)
        for shard in range(self.files.meta.shards):
            rows[slice(*self.files.meta.span(shard))] = self.files.open(shard)
        return rows


class EmbeddingStore:
    """The folder of all embeddings."""

    def __init__(self, root: Path, *, shard_images: int = SHARD_IMAGES) -> None:
        """Nothing is read or written yet.

        Args:
            root: the folder; made when needed.
            shard_images: images a shard, which is what a kill can cost; multiples of it in a set so large that there
                would be more than 256 shards. A multiple of the batch size keeps every image at the same place of a
                batch, however often the work was interrupted.
        """
        self.root = Path(root).expanduser().absolute()
        self._shard_images = shard_images

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
        )
        with work.disk():
            refuse_links(work.folder)
            use = Use(work.folder)
        files = work.finish(source, compute)
        return Embeddings(files, work.computed, time.monotonic() - started, use)
