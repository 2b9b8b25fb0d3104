"""Encoded images of a Parquet file, which itself allows no random access: copied once into one file in the cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.archives import read_npy
from jaxtrain.errors import DamagedError, UserError
from jaxtrain.files import reason, user_cache

_BATCH = 256


def parquet_parts(path: Path, column: str, version: str | None = None) -> tuple[str, NDArray[np.int64]]:
    """A file with the images of all rows, one after the other, and the length of each: `int64[rows]`; 0 for none.

    It is made when the table is first used, and again when it has changed, which `version` tells of a copy of a remote
    one. Raises UserError where it cannot be written.
    """
    status = path.stat()
    known = (version,) if version else (str(path.resolve()), status.st_size, status.st_mtime_ns)
    key = repr((*known, column))
    blob = user_cache() / "parquet" / hashlib.sha256(key.encode()).hexdigest()[:32]
    index = blob.with_suffix(".npy")
    try:
        lengths = read_npy(index, "list of lengths", "it is made again")
        if blob.stat().st_size == lengths.sum():
            return str(blob), lengths
    except (OSError, DamagedError):
        pass
    made = blob.with_suffix(f".{os.getpid()}"), index.with_suffix(f".{os.getpid()}.npy")
    try:
        blob.parent.mkdir(parents=True, exist_ok=True)
        with open(made[0], "wb") as file:
            lengths = np.concatenate([_write(batch, file) for batch in _batches(path, column)])
        np.save(made[1], lengths)
        os.replace(made[1], index)
        os.replace(made[0], blob)
    except OSError as error:
        why = reason(error, blob.parent, status.st_size)
        raise UserError(
            f"the images of {path} cannot be copied to {blob.parent}: {why}; XDG_CACHE_HOME names another folder"
        ) from None
    finally:
        for part in made:
            part.unlink(missing_ok=True)
    return str(blob), lengths


def _batches(path: Path, column: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH, columns=[column]):
            array = batch.column(0)
            if pa.types.is_struct(array.type):
                array = pc.struct_field(array, "bytes")  # which knows of rows that are null themselves
            yield array.cast(pa.large_binary())


def _write(images: Any, file: Any) -> NDArray[np.int64]:
    _, offsets, data = images.buffers()
    ends = np.frombuffer(offsets, np.int64)[images.offset : images.offset + len(images) + 1]
    if data is not None:
        file.write(memoryview(data)[ends[0] : ends[-1]])
    return np.diff(ends)
