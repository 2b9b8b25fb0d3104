"""Fills one folder of the embedding store, beside other processes that do the same."""

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

from jaxtrain.data.base import ImageSource
from jaxtrain.data.scan import parallel
from jaxtrain.embeddings.files import (
    META,
    Claim,
    Meta,
    Rows,
    ShardFiles,
    read_meta,
    set_aside,
    shard_path,
    surviving_dim,
    write_whole,
)
from jaxtrain.embeddings.key import EmbeddingKey
from jaxtrain.errors import RunError, UserError
from jaxtrain.files import reason

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP)
# A process claims half of the shards that seem free: few restarts of its input, and work left for others.
_LEAST_CLAIM = 4
_POLL_SECONDS = 0.2
PATIENCE_SECONDS = 1800.0
"""How long to wait for another process of the same job without a new shard from it."""
_HASHING_THREADS = 4
_log = logging.getLogger(__name__)

Compute = Callable[[ImageSource], Iterable[Rows]]
"""Embeds a source: gives blocks `float32[any number, dim]` in the order of its images, NaN for unreadable ones."""
Progress = Callable[[int, int], None]
"""Told (images done, images in all); what it raises ends the work, finished shards stay."""


@dataclass
class Extraction:
    """One call of `EmbeddingStore.get`: what is missing is claimed, computed and written, or waited for."""

    folder: Path
    key: EmbeddingKey
    images: int
    shard_images: int
    """Images a shard, where none is there yet."""
    progress: Progress
    share: tuple[int, int]
    """(index, count): of the processes of one job, which compute disjoint shards."""
    computed: int = 0
    """Images computed so far."""

    def __post_init__(self) -> None:
        self._files: ShardFiles | None = None  # None until the dimension is known
        self._sound: dict[int, tuple[int, ...]] = {}  # time, size and inode of shards that were found sound
        self._need = 0  # bytes

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
            elif not mine and time.monotonic() - since > PATIENCE_SECONDS:
                some = ", ".join(map(str, missing[:5]))
                raise RunError(
                    f"{self.folder}: no new embeddings from the other processes of this job for "
                    f"{PATIENCE_SECONDS:.0f} s; shards {some} are missing; run the same again"
                )
            self.progress(self._done(missing), self.images)
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
        return self._files.meta.shard_images if self._files else self.shard_images

    def _span(self, shard: int) -> tuple[int, int]:
        return shard * self._size, min((shard + 1) * self._size, self.images)

    def _done(self, missing: Iterable[int]) -> int:
        return self.images - sum(stop - start for start, stop in map(self._span, missing))

    def _described(self) -> ShardFiles | None:
        """The files as meta.json describes them, which is written again where it is lost."""
        path = self.folder / META
        try:
            meta = read_meta(self.folder)
            if meta.images != self.images:
                raise ValueError(f"tells of {meta.images} images where there are {self.images}")
            return ShardFiles(self.folder, meta)
        except FileNotFoundError:
            pass
        except ValueError as error:
            set_aside(path, str(error))
        dim = surviving_dim(self.folder)
        return None if dim is None else self._describe(dim)

    def _describe(self, dim: int) -> ShardFiles:
        meta = Meta(key=self.key, images=self.images, dim=dim, shard_images=self.shard_images)
        write_whole(self.folder / META, meta.encode())
        return ShardFiles(self.folder, meta)

    def _missing(self) -> list[int]:
        """Shards that are not there or not sound; each file is read once, and again only when it changed."""
        with self.disk():
            self._files = self._files or self._described()
            shards = range(-(-self.images // self._size))
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
        with self.disk():
            names = set(os.listdir(self.folder))
            taken = [Claim.temporary(shard_path(self.folder, shard)).name in names for shard in missing]
            wanted = max(_LEAST_CLAIM, -(-taken.count(False) // 2))
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
        if sum(lengths) < self.images:
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
                    self._prepare(block.shape[1], self.images - done)
                assert self._files is not None
                if block.shape[1] != (dim := self._files.meta.dim):
                    raise RunError(f"{self.folder} holds vectors of {dim} numbers, and {block.shape[1]} came")
                given += len(block)
                if given > images:
                    break
                yield block
                self.computed += len(block)
                self.progress(done + given, self.images)
        finally:
            if (close := getattr(blocks, "close", None)) is not None:
                close()
        if given != images:
            raise RunError(f"{given} embeddings came for {images} images")

    def _prepare(self, dim: int, images: int) -> None:
        """Before the first row is kept: a description, and a look at the space for this many images."""
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
