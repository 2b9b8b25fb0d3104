"""Embeddings computed once: kept under a digest of all that decides them, shared by runs and processes.

A folder `<root>/<digest[:2]>/<digest>/` for each key (see `embedding_files`). Whatever ends a process, finished
shards stay and only the others are computed again; the finished folder is the same byte for byte.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.base import ImageSource
from jaxtrain.data.embedding_files import (
    META,
    Claim,
    Meta,
    Rows,
    ShardFiles,
    in_use,
    read_meta,
    refuse_links,
    set_aside,
    shard_path,
    surviving_dim,
    write_whole,
)
from jaxtrain.data.embedding_key import EmbeddingKey
from jaxtrain.data.scan import parallel
from jaxtrain.disk import reason
from jaxtrain.errors import RunError, UserError

SHARD_IMAGES = 1024
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP)
# A process claims half of what is free, but not less than this: few restarts of its input, and work left for others.
_LEAST_CLAIM = 4
_POLL_SECONDS = 0.2
_HASHING_THREADS = 4
_log = logging.getLogger(__name__)

Compute = Callable[[ImageSource], Iterable[Rows]]
"""Embeds a source: gives blocks `float32[any number, dim]` in the order of its images, NaN for unreadable ones."""
Progress = Callable[[int, int], None]
"""Told (images done, images in all); what it raises ends the work, finished shards stay."""


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of one split, memory-mapped."""

    path: Path
    key: EmbeddingKey
    shards: Sequence[Rows]
    """`float32[images of the shard, dim]`, all of one length but for the last."""
    computed: int
    """Images that this call computed; 0: all were there."""
    seconds: float
    """Wall time of the call."""

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.shards[0].shape[1]

    def rows(self, start: int, stop: int) -> Rows:
        """Images start..stop: `float32[stop - start, dim]`, a copy."""
        return self.take(np.arange(start, stop))

    def take(self, indices: NDArray[np.int64]) -> Rows:
        """Any images in any order: `float32[indices, dim]`; IndexError for one that is not there."""
        indices = np.asarray(indices)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"images 0..{len(self) - 1} are there, not {indices.min()}..{indices.max()}")
        shard, place = np.divmod(indices, len(self.shards[0]))
        rows = np.empty((len(indices), self.dim), np.float32)
        for number in np.unique(shard):
            here = shard == number
            rows[here] = self.shards[number][place[here]]
        return rows

    def load(self) -> Rows:
        """All of them in memory: `float32[images, dim]`."""
        return np.concatenate(self.shards)


class EmbeddingStore:
    """The folder of all embeddings."""

    def __init__(self, root: Path, *, shard_images: int = SHARD_IMAGES, patience_seconds: float = 1800.0) -> None:
        """Nothing is read or written yet.

        Args:
            root: the folder; made when needed.
            shard_images: images a shard, which is what a kill can cost. A multiple of the batch size keeps every
                image at the same place of a batch, however often the work was interrupted.
            patience_seconds: how long to wait for another process of the same job without a new shard from it.
        """
        self.root = Path(root).expanduser().absolute()
        self._shard_images, self._patience = shard_images, patience_seconds

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
        work = _Work(self.path(key), key, len(source), self._shard_images)
        work.progress = progress or (lambda done, total: None)
        work.share, work.patience = (process_index, process_count), self._patience
        with contextlib.ExitStack() as stack:
            with work.disk():
                refuse_links(work.folder)
                stack.enter_context(in_use(work.folder))
            files = work.finish(source, compute)
            with work.disk():
                shards = [files.open(shard) for shard in range(files.meta.shards)]
        return Embeddings(work.folder, key, shards, work.computed, time.monotonic() - started)


class _Work:
    """One call of `get`."""

    progress: Progress
    share: tuple[int, int]
    patience: float

    def __init__(self, folder: Path, key: EmbeddingKey, images: int, shard_images: int) -> None:
        self.folder, self._key, self._images = folder, key, images
        self._shard_images = shard_images
        self._files: ShardFiles | None = None
        """None until the dimension is known."""
        self._sound: dict[int, tuple[int, ...]] = {}
        """Time, size and inode of the shards that were found sound."""
        self._need = 0
        self.computed = 0

    def finish(self, source: ImageSource, compute: Compute) -> ShardFiles:
        """Computes what nobody else does, until all is there."""
        index, count = self.share
        before, since = -1, time.monotonic()
        while missing := self._missing():
            mine = [shard for shard in missing if shard % count == index]
            claims: dict[int, Claim] = {}
            try:
                self._claim(mine, claims)
                if claims:
                    self._extract(claims, self._done(missing), source, compute)
                    continue
            finally:
                for claim in claims.values():
                    claim.release()
            if len(missing) != before:
                before, since = len(missing), time.monotonic()
                _log.info("%s: another process computes %d shards", self.folder, before)
            elif not mine and time.monotonic() - since > self.patience:
                raise RunError(
                    f"{self.folder}: no new embeddings from the other processes of this job for {self.patience:.0f} s; "
                    f"shards {', '.join(map(str, missing[:5]))} are missing; run the same again"
                )
            self.progress(self._done(missing), self._images)
            time.sleep(_POLL_SECONDS)
        assert self._files is not None
        return self._files

    @contextlib.contextmanager
    def disk(self) -> Iterator[None]:
        """Turns what the disk refuses into an error that says what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in _FORBIDDEN:
                place = error.filename or self.folder
                raise UserError(
                    f"embedding store cannot be used: {place}: {error.strerror}; choose another with --features.store"
                ) from error
            there = next(path for path in (self.folder, *self.folder.parents) if path.is_dir())
            why = reason(error, there, self._need)
            raise RunError(f"embeddings could not be kept in {self.folder}: {why}") from error

    # --- what is there ----------------------------------------------------------------------------

    @property
    def _size(self) -> int:
        return self._files.meta.shard_images if self._files else self._shard_images

    def _span(self, shard: int) -> tuple[int, int]:
        return shard * self._size, min((shard + 1) * self._size, self._images)

    def _done(self, missing: Iterable[int]) -> int:
        return self._images - sum(stop - start for start, stop in map(self._span, missing))

    def _described(self) -> ShardFiles | None:
        """The files as meta.json describes them, which is written anew where it is lost."""
        path = self.folder / META
        try:
            meta = read_meta(self.folder)
            if meta.images != self._images:
                raise ValueError(f"tells of {meta.images} images where there are {self._images}")
            return ShardFiles(self.folder, meta)
        except FileNotFoundError:
            pass
        except ValueError as error:
            set_aside(path, str(error))
        dim = surviving_dim(self.folder)
        return None if dim is None else self._describe(dim)

    def _describe(self, dim: int) -> ShardFiles:
        meta = Meta(key=self._key, images=self._images, dim=dim, shard_images=self._shard_images)
        write_whole(self.folder / META, meta.encode())
        return ShardFiles(self.folder, meta)

    def _missing(self) -> list[int]:
        """Shards that are not there or not sound; each file is read once, and again only when it changed."""
        with self.disk():
            self._files = self._files or self._described()
            shards = range(-(-self._images // self._size))
            if self._files is None:
                return list(shards)
            sound = parallel(self._is_sound, len(shards), _HASHING_THREADS)
            return [shard for shard in shards if not sound[shard]]

    def _is_sound(self, shard: int) -> bool:
        assert self._files is not None
        try:
            status = os.stat(self._files.path(shard))
        except FileNotFoundError:
            return False
        state = status.st_mtime_ns, status.st_size, status.st_ino
        if self._sound.get(shard) != state:
            if self._files.problem(shard):
                return False
            self._sound[shard] = state
        return True

    # --- computing the rest -----------------------------------------------------------------------

    def _claim(self, missing: Sequence[int], claims: dict[int, Claim]) -> None:
        """Claims half of the shards that nobody else computes; damaged ones are set aside."""
        wanted = max(_LEAST_CLAIM, -(-len(missing) // 2))
        with self.disk():
            for shard in missing:
                path = shard_path(self.folder, shard)
                if len(claims) == wanted:
                    break
                if (claim := Claim.take(path)) is None:
                    continue
                claims[shard] = claim
                if path.exists():  # finished by another process in the meantime, or damaged
                    problem = self._files.problem(shard) if self._files else "has no description"
                    if problem is None:
                        claims.pop(shard).release()
                    else:
                        set_aside(path, problem)

    def _extract(self, claims: dict[int, Claim], done: int, source: ImageSource, compute: Compute) -> None:
        """Computes the claimed shards in one pass; one is written while the next is computed."""
        spans = [self._span(shard) for shard in claims]
        lengths = [stop - start for start, stop in spans]
        if sum(lengths) < self._images:
            source = source.select(np.concatenate([np.arange(*span) for span in spans]))
        rows = self._checked(compute(source), done, sum(lengths))
        with contextlib.closing(rows), ThreadPoolExecutor(1) as writer:
            writing: Future[None] | None = None
            for (shard, claim), array in zip(claims.items(), _cut(rows, lengths), strict=True):
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write, shard, array, claim)
            if writing is not None:
                writing.result()

    def _write(self, shard: int, rows: Rows, claim: Claim) -> None:
        assert self._files is not None
        with self.disk():
            self._files.write(shard, rows, claim)

    def _checked(self, blocks: Iterable[Rows], done: int, images: int) -> Generator[Rows, None, None]:
        """The blocks, counted and told of, where they fit the images and the store."""
        given = 0
        try:
            for block in blocks:
                block = np.asarray(block, np.float32)
                if block.ndim != 2:
                    raise RunError(f"embeddings are [images, dim], not {list(block.shape)}")
                if given == 0:
                    self._prepare(block.shape[1], self._images - done)
                assert self._files is not None
                if block.shape[1] != (dim := self._files.meta.dim):
                    raise RunError(f"{self.folder} holds vectors of {dim} numbers, and {block.shape[1]} came")
                given += len(block)
                if given > images:
                    break
                yield block
                self.computed += len(block)
                self.progress(done + given, self._images)
        finally:
            if (close := getattr(blocks, "close", None)) is not None:
                close()
        if given != images:
            raise RunError(f"{given} embeddings came for {images} images")

    def _prepare(self, dim: int, images: int) -> None:
        """Before the first row is kept: a description, and a look at the space for so many images."""
        self._need, size = images * dim * 4 + (1 << 20), self._size
        with self.disk():
            self._files = self._files or self._described() or self._describe(dim)
            if shutil.disk_usage(self.folder).free < self._need:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._size != size:
            raise RunError(f"{self.folder} was begun at the same time with other shards; run the same again")


def _cut(blocks: Iterable[Rows], lengths: Sequence[int]) -> Iterator[Rows]:
    """The same rows in blocks of these lengths."""
    remaining = iter(lengths)
    array, filled = np.empty((0, 0), np.float32), 0
    for block in blocks:
        while len(block):
            if filled == len(array):
                array, filled = np.empty((next(remaining), block.shape[1]), np.float32), 0
            taken = block[: len(array) - filled]
            array[filled : filled + len(taken)] = taken
            filled, block = filled + len(taken), block[len(taken) :]
            if filled == len(array):
                yield array
