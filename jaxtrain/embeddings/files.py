"""Embeddings of one split on disk: a folder with `meta.json`, shards and a digest of each shard.

    meta.json      the key in full, number of images, dimension, images a shard; digest of itself
    00000.npy      `float32[at most shard_images, dim]`, plain NumPy, written under another name and renamed
    00000.json     SHA-256 of it; written first, so that every shard under its own name has one
    used           empty; its time is that of the last use, and who computes or reads holds a lock on it

The bytes follow from the embeddings alone: no time, process or host is in them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import socket
import stat
import struct
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from jaxtrain.embeddings.key import EXTRACTION_VERSION, EmbeddingKey
from jaxtrain.errors import DamagedError, RunError
from jaxtrain.files import flush_folder, open_lock, share_lock, take_lock, temporary_name
from jaxtrain.readers import json_object, read_bytes, without_name

META, USED = "meta.json", "used"
_META_BYTES = 1 << 20
_log = logging.getLogger(__name__)

Rows = NDArray[np.float32]


class Meta(BaseModel):
    """What `meta.json` says of a folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    extraction_version: int = EXTRACTION_VERSION
    key: EmbeddingKey
    images: PositiveInt
    dim: PositiveInt
    dtype: Literal["float32"] = "float32"
    shard_images: PositiveInt

    @property
    def shards(self) -> int:
        """How many shards make the whole."""
        return -(-self.images // self.shard_images)

    def span(self, shard: int) -> tuple[int, int]:
        """First image of a shard, and one past its last."""
        return shard * self.shard_images, min((shard + 1) * self.shard_images, self.images)

    def encode(self) -> bytes:
        """The file, which ends with the digest of the rest."""
        body = self.model_dump(mode="json")
        body["sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        return (json.dumps(body, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The content of a file; ValueError with the reason where it is not one that `encode` made."""
        try:
            body = json_object(data)
            body.pop("sha256")
            meta = cls.model_validate_json(json.dumps(body))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"is of another version, or no description: {place}: {first['msg']}") from None
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise ValueError("changed") from None
        if meta.encode() != data:
            raise ValueError("changed")
        return meta


@dataclass(frozen=True)
class ShardFiles:
    """The shards in one folder."""

    folder: Path
    meta: Meta

    def path(self, shard: int) -> Path:
        """Its array."""
        return shard_path(self.folder, shard)

    def problem(self, shard: int) -> str | None:
        """Why a shard cannot be used, after its digest was computed; None if it is as it was written."""
        path, shape = self.path(shard), self._shape(shard)
        header = _header(shape)
        try:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size != len(header) + 4 * shape[0] * shape[1]:
                    return "has another size"
                if file.read(len(header)) != header:
                    return "has another header"
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return "is missing"
        try:
            known = read_bytes(path.with_suffix(".json"), _META_BYTES)
        except (FileNotFoundError, DamagedError):
            return "has no digest"
        return None if known == self._digest_file(shard, digest) else "changed, or its digest did"

    def open(self, shard: int) -> Rows:
        """Its array, memory-mapped: `float32[images of the shard, dim]`."""
        array = np.load(self.path(shard), mmap_mode="r", allow_pickle=False)
        if (array.shape, array.dtype) != (self._shape(shard), np.dtype("<f4")):
            raise RunError(f"{self.path(shard)} is damaged: {array.dtype}{list(array.shape)}")
        return array

    def write(self, shard: int, rows: Rows, claim: Claim) -> None:
        """A shard that was claimed, `float32[images of the shard, dim]`: whole under its name, or not there."""
        header, data = _header(self._shape(shard)), np.ascontiguousarray(rows, "<f4").data.cast("B")
        digest = hashlib.sha256(header)
        digest.update(data)
        claim.write(header, data)
        write_whole(self.path(shard).with_suffix(".json"), self._digest_file(shard, digest.hexdigest()))
        claim.publish()

    def digest(self) -> str:
        """SHA-256 (hex) over the digests of all shards in their order: equal where all vectors are, bit for bit."""
        total = hashlib.sha256()
        for shard in range(self.meta.shards):
            total.update(read_bytes(self.path(shard).with_suffix(".json"), _META_BYTES))
        return total.hexdigest()

    def _shape(self, shard: int) -> tuple[int, int]:
        start, stop = self.meta.span(shard)
        return stop - start, self.meta.dim

    def _digest_file(self, shard: int, digest: str) -> bytes:
        images, dim = self._shape(shard)
        return (json.dumps({"images": images, "dim": dim, "sha256": digest}) + "\n").encode()


def read_meta(folder: Path) -> Meta:
    """The description of a folder. Raises ValueError with the reason, FileNotFoundError where there is none."""
    try:
        data = read_bytes(folder / META, _META_BYTES)
    except DamagedError as error:
        raise ValueError(without_name(error, folder / META)) from None
    meta = Meta.decode(data)
    if meta.extraction_version != EXTRACTION_VERSION:
        raise ValueError(
            f"was made by another version of jaxtrain ({meta.extraction_version}, not {EXTRACTION_VERSION})"
        )
    if meta.key.digest != folder.name:
        raise ValueError(f"belongs to {meta.key.digest[:12]}")
    return meta


def shard_path(folder: Path, shard: int) -> Path:
    """The array of a shard."""
    return folder / f"{shard:05d}.npy"


def set_aside(path: Path, problem: str) -> None:
    """Renames a damaged file, for someone to look at."""
    kept = path.with_name(path.name + ".corrupt")
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, kept)
        _log.warning("%s %s: it is made again, and kept as %s", path, problem, kept.name)


def surviving_dim(folder: Path) -> int | None:
    """The dimension that the digests of shards tell where `meta.json` is lost."""
    for path in sorted(folder.glob("[0-9]*.json")):
        with contextlib.suppress(OSError, DamagedError, ValueError, KeyError):
            dim = json_object(read_bytes(path, _META_BYTES))["dim"]
            if isinstance(dim, int) and dim > 0:
                return dim
    return None


def refuse_links(folder: Path) -> None:
    """Only regular files in real folders are read: a link could lead anywhere, a pipe could block for ever.

    Raises RunError naming what else is there.
    """
    inside: list[Path] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        inside = list(folder.iterdir())
    for entry in (folder.parent, folder, *inside):
        with contextlib.suppress(FileNotFoundError):
            mode = entry.lstat().st_mode
            if not (stat.S_ISREG(mode) if entry in inside else stat.S_ISDIR(mode)):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "nothing that an embedding store holds"
                raise RunError(f"{entry} is {kind} and is not followed; remove it")


class Claim:
    """The right to write one file, given by a lock on its temporary file; it ends with the process, however that ends.

    Renaming the temporary file to its own name publishes it. Where the file system has no locks, every
    process writes a temporary file of its own: work may be done twice, and nothing breaks.
    """

    _open: ClassVar[weakref.WeakSet[Claim]] = weakref.WeakSet()

    def __init__(self, path: Path, temporary: Path, descriptor: int) -> None:
        """Use `take`."""
        self._path, self._temporary, self._descriptor = path, temporary, descriptor
        Claim._open.add(self)

    @staticmethod
    def temporary(path: Path) -> Path:
        """What a claim on a file is known by; one whose process died is there still, and free."""
        return temporary_name(path)

    @classmethod
    def take(cls, path: Path) -> Claim | None:
        """The claim, or None while another one has it. Raises OSError where nothing can be written."""
        temporary = Claim.temporary(path)
        while True:
            descriptor = open_lock(temporary)
            held = take_lock(descriptor)
            # Between opening and locking, the one who had the lock may have renamed the file or removed it.
            if held and is_at(descriptor, temporary):
                return cls(path, temporary, descriptor)
            os.close(descriptor)
            if held is False:
                return None
            if held is None:
                temporary.unlink(missing_ok=True)
                temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
                return cls(path, temporary, open_lock(temporary))

    def write(self, *parts: bytes | memoryview) -> None:
        """Everything that the file will hold, flushed to the disk."""
        os.ftruncate(self._descriptor, 0)
        with open(self._descriptor, "wb", closefd=False) as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(self._descriptor)

    def publish(self) -> None:
        """Gives the file its name, and the claim back."""
        os.replace(self._temporary, self._path)
        flush_folder(self._path.parent)
        self._close()

    def release(self) -> None:
        """Gives the claim back without a file; harmless when that has happened."""
        if self._descriptor >= 0:
            self._temporary.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    @classmethod
    def _forget(cls) -> None:
        """In a forked child, which must not hold its parent's locks when it outlives it."""
        for claim in list(cls._open):
            if claim._descriptor >= 0:
                claim._close()


os.register_at_fork(after_in_child=Claim._forget)


class Use:
    """Keeps a folder, made if need be, from being pruned for as long as this object lives, and notes the time.

    A folder that may only be read is neither locked nor noted. Raises OSError where it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = -1
        while self._descriptor < 0:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._descriptor = open_lock(folder / USED)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
                return
            with contextlib.suppress(OSError):
                os.utime(self._descriptor)
                share_lock(self._descriptor)
            if not is_at(self._descriptor, folder / USED):  # pruned between opening and locking
                self.close()

    def close(self) -> None:
        """Gives it up; harmless when repeated."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def write_whole(path: Path, data: bytes) -> None:
    """A small file that nobody else is writing: whole, or as it was before."""
    if (claim := Claim.take(path)) is None:
        return  # another process writes the same bytes
    try:
        claim.write(data)
        claim.publish()
    finally:
        claim.release()


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _header(shape: tuple[int, int]) -> bytes:
    """As NumPy's format 1.0 has it, but byte for byte the same in every version of NumPy."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
