"""What is in an embedding store: listed, verified, exported, pruned."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.scan import parallel
from jaxtrain.embeddings.files import META, USED, Meta, ShardFiles, is_at, read_meta, refuse_links
from jaxtrain.errors import RunError, UserError, nearest
from jaxtrain.files import open_lock, reason, replacing, take_lock

_DIGEST = re.compile(r"^[0-9a-f]{64}$")
_PRUNED = ".pruned-"
_THREADS = 4


@dataclass(frozen=True)
class Entry:
    """The embeddings of one key, as far as they are there."""

    folder: Path
    meta: Meta | None
    """None where it cannot be read."""
    problem: str | None
    """Why not, or what in the folder is refused."""
    shards: int
    """Shards that are there."""
    bytes: int
    """Size on the disk, temporary and damaged files included."""
    created: float
    """Seconds since 1970: the oldest file."""
    used: float
    """Seconds since 1970: the last use."""

    @property
    def digest(self) -> str:
        """Of the key."""
        return self.folder.name

    @property
    def complete(self) -> bool:
        """Whether all shards are there; `verify` looks into them."""
        return self.meta is not None and self.shards == self.meta.shards


def entries(root: Path) -> list[Entry]:
    """All there is, the last used first; a folder that is not there is an empty store.

    Raises UserError where the folder cannot be read.
    """
    root = Path(root).expanduser().absolute()
    try:
        parents = [root / name for name in _names(root) if re.fullmatch("[0-9a-f]{2}", name)]
        folders = [parent / name for parent in parents for name in _names(parent) if _DIGEST.match(name)]
        found = [_entry(folder) for folder in folders if folder.name[:2] == folder.parent.name]
    except OSError as error:
        raise UserError(f"embedding store {root} cannot be read: {reason(error)}") from error
    return sorted(found, key=lambda entry: (-entry.used, entry.digest))


def matching(found: Sequence[Entry], prefixes: Sequence[str]) -> list[Entry]:
    """The entries whose digests begin so; UserError for a prefix that none or several have."""
    chosen = []
    for prefix in prefixes:
        these = [entry for entry in found if entry.digest.startswith(prefix.lower())]
        if len(these) != 1 or not prefix:
            near = nearest(prefix, [entry.digest[:12] for entry in these or found]) if found else "the store is empty"
            raise UserError(f"key {prefix}: {len(these) or 'no'} embeddings have it; {near}")
        chosen += these
    return chosen


def verify(entry: Entry) -> list[str]:
    """What is damaged, one line each; every byte is read. Shards that are not there yet are not damage."""
    if entry.meta is None:
        return [entry.problem or f"{META} is missing"]
    files = ShardFiles(entry.folder, entry.meta)

    def problem(shard: int) -> str | None:
        found = files.problem(shard) if files.path(shard).exists() else None
        return found and f"{files.path(shard).name} {found}"

    try:
        refuse_links(entry.folder)
        return [line for line in parallel(problem, entry.meta.shards, _THREADS) if line]
    except (OSError, RunError) as error:
        return [reason(error)]


def export(entry: Entry, path: Path, labels: NDArray[np.integer[Any]] | None = None) -> None:
    """Writes sound and complete embeddings as one file, a shard at a time: `.npz` or `.parquet`, by its name.

    npz: `embeddings` float32[images, dim], `labels` int64[images] where given, `meta` (JSON text). parquet: `image`,
    `label`, `embedding` (a list of fixed size), and the same JSON as "jaxtrain" in the schema's metadata.

    Raises:
        UserError: another suffix, a file that exists, labels that are not one for each image.
        RunError: embeddings that are damaged or not complete, or no space on the disk.
    """
    writers = {".npz": _write_npz, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise UserError(f"{path}: the name has to end in .npz or .parquet")
    if path.exists():
        raise UserError(f"{path} exists; give another name")
    if (problems := verify(entry)) or entry.meta is None:
        raise RunError(f"{entry.folder} is damaged ({problems[0]}); run again what made it, which mends it")
    if not entry.complete:
        raise RunError(f"{entry.folder} is not complete; run again what made it")
    if labels is not None and (labels.shape != (entry.meta.images,) or labels.dtype.kind not in "iu"):
        raise UserError(
            f"labels are {labels.dtype}{list(labels.shape)}; integers, one for each of {entry.meta.images} images, fit"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            writers[path.suffix](temporary, ShardFiles(entry.folder, entry.meta), labels)
    except OSError as error:
        raise RunError(f"{path} could not be written: {reason(error, path.parent, entry.bytes)}") from error


def prunable(
    found: Sequence[Entry], *, unused_days: float | None = None, max_bytes: int | None = None, now: float | None = None
) -> list[Entry]:
    """The entries that were not used for so long, and the longest unused until the others fit into `max_bytes`."""
    now = time.time() if now is None else now
    limit, kept, chosen = unused_days, 0, []
    for entry in sorted(found, key=lambda entry: -entry.used):
        old = limit is not None and now - entry.used > limit * 86400
        if old or (max_bytes is not None and kept + entry.bytes > max_bytes):
            chosen.append(entry)
        else:
            kept += entry.bytes
    return chosen


def remove(entry: Entry) -> bool:
    """Deletes an entry, unless a process computes or reads it now (False).

    Raises RunError where it cannot be deleted.
    """
    root = entry.folder.parent.parent
    try:
        with _exclusively(entry.folder) as free:
            if free:
                os.rename(entry.folder, root / f"{_PRUNED}{entry.digest}")
        for leftover in root.glob(f"{_PRUNED}*"):
            shutil.rmtree(leftover)
    except OSError as error:
        raise RunError(f"{entry.folder} could not be removed: {reason(error)}") from error
    return free


@contextlib.contextmanager
def _exclusively(folder: Path) -> Iterator[bool]:
    """Whether nobody uses a folder, for as long as this lasts."""
    descriptor = open_lock(folder / USED)
    try:
        held = take_lock(descriptor)
        yield held is None or (held and is_at(descriptor, folder / USED))
    finally:
        os.close(descriptor)


def _names(folder: Path) -> list[str]:
    """Of real folders inside a folder, sorted."""
    try:
        with os.scandir(folder) as inside:
            return sorted(item.name for item in inside if item.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _entry(folder: Path) -> Entry:
    meta, problem = None, None
    try:
        refuse_links(folder)
        meta = read_meta(folder)
    except FileNotFoundError:
        problem = f"{META} is missing"
    except ValueError as error:
        problem = f"{META} {error}"
    except RunError as error:
        problem = str(error)
    status = {path.name: path.lstat() for path in folder.iterdir()}
    times = [each.st_mtime for each in status.values()] or [folder.stat().st_mtime]
    return Entry(
        folder,
        meta,
        problem,
        shards=sum(1 for name in status if re.fullmatch(r"[0-9]{5,}\.npy", name)),
        bytes=sum(each.st_size for each in status.values()),
        created=min(times),
        used=status[USED].st_mtime if USED in status else max(times),
    )


def _write_npz(path: Path, files: ShardFiles, labels: NDArray[np.integer[Any]] | None) -> None:
    meta = files.meta
    arrays = {"meta": np.array(meta.model_dump_json())}
    if labels is not None:
        arrays["labels"] = labels.astype(np.int64)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        with archive.open("embeddings.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (meta.images, meta.dim)}
            np.lib.format.write_array_header_1_0(file, header)
            for shard in range(meta.shards):
                file.write(files.open(shard).data.cast("B"))


def _write_parquet(path: Path, files: ShardFiles, labels: NDArray[np.integer[Any]] | None) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    meta = files.meta
    columns = {"image": pa.int64(), **({} if labels is None else {"label": pa.int64()})}
    columns["embedding"] = pa.list_(pa.float32(), meta.dim)
    schema = pa.schema(columns, metadata={"jaxtrain": json.dumps(meta.model_dump(mode="json"))})
    with parquet.ParquetWriter(path, schema) as writer:
        for shard in range(meta.shards):
            images = np.arange(*meta.span(shard))
            arrays = [pa.array(images)] + ([] if labels is None else [pa.array(labels[images].astype(np.int64))])
            vectors = pa.array(files.open(shard).reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(vectors, meta.dim))
            writer.write_table(pa.table(arrays, schema=schema))
