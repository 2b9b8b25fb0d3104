"""`wds:PATTERN`: images in tar files, as WebDataset has them or as a folder of classes was packed."""

from __future__ import annotations

import glob
import json
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxtrain.config import DataConfig
from jaxtrain.data.assemble import assemble_splits
from jaxtrain.data.base import LARGEST_FILE, Dataset, PartSource
from jaxtrain.data.labels import given_as
from jaxtrain.data.manifest import Rows, place_labels, whole_numbers
from jaxtrain.data.paths import existing
from jaxtrain.data.remote import RemoteFile, is_remote, remote_file
from jaxtrain.data.remote_cache import Cache
from jaxtrain.data.remote_folder import remote_files, remote_folder
from jaxtrain.data.scan import Headers, refuse_large
from jaxtrain.data.splits import SPLIT_NAMES, standing_in
from jaxtrain.data.tar_index import NO_LABEL, tar_index
from jaxtrain.errors import UserError

PACKED = "pack.json"
"""Beside shards that were packed here: how many images, the classes in their order, and digests of the files."""
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SPLITS = tuple(dict.fromkeys(SPLIT_NAMES.values()))


def tar_dataset(config: DataConfig, text: str) -> Dataset:
    """Tar files, read at random as files are: nothing is unpacked, and the order is that of any other set.

    `text` is a file, a folder of `*.tar`, or a pattern (`shard-{0000..0127}.tar`, `train-*.tar`). Images are members
    with an image's extension; a label is in the member of the same name with `.cls` or `.json`, else it is the folder
    that the image is in. The words train, val, test (as `folder:` knows them) in a file's name, or as the first folder
    within, are splits; others are training images.

    The members' places and the images' headers are looked up once, and kept in the user's cache. Raises `UserError` for
    what is not such a set, `RunError` for a damaged file and more unreadable images than allowed.
    """
    where = f"wds:{text}"
    files: Sequence[str | RemoteFile]
    files, base = _remote_files(config, text, where) if is_remote(text) else _files(text)
    index = tar_index(files, config.columns, where)
    values = index.values
    codes = np.where(values[index.labels] == NO_LABEL, -1, index.labels)
    class_names = _class_names(config, base)
    if not index.folders[0] and class_names is None:
        codes, values = whole_numbers(codes, values)
    of_files = _splits_of_files([str(file) for file in files], base)
    splits = np.where(index.splits >= 0, index.splits, of_files[index.places[:, 0]])
    rows = {name: np.flatnonzero(splits == place) for place, name in enumerate(_SPLITS) if (splits == place).any()}
    rows = standing_in(rows, config.split)
    if "train" not in rows:
        raise UserError(f"{where} holds no training images: its files are of {' and '.join(rows)}")
    names, classes, placed = place_labels(Rows(where, (codes, values), rows, class_names))
    headers = refuse_large(index.headers, config.max_pixels)
    everything = PartSource(
        tuple(files), index.places, np.zeros(len(codes), np.int32), index.names, version=str(index.key[0])
    )
    sources = {name: replace(everything.select(rows[name]), labels=labels) for name, labels in placed.items()}
    dataset = assemble_splits(config, names, sources, {name: _headers_of(headers, rows[name]) for name in placed})
    counts = ", ".join(f"{name}: {len(labels):,} images" for name, labels in placed.items())
    return replace(dataset, classes=given_as(classes), taken=f"{len(files)} tar files ({counts})")


def _class_names(config: DataConfig, folder: str) -> tuple[str, ...] | None:
    """The classes of shards that were packed by jaxtrain, where their order was noted."""
    try:
        if is_remote(folder):
            where = f"{folder}/{PACKED}"
            text = remote_file(where, Cache.of(config.cache_gb), where).read(LARGEST_FILE)
        else:
            text = (Path(folder) / PACKED).read_bytes()
        names = json.loads(text)["class_names"]
    except (OSError, UserError, ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _headers_of(headers: Headers, rows: np.ndarray) -> Headers:  # type: ignore[type-arg]
    bad = {place: headers.bad[row] for place, row in enumerate(rows.tolist()) if row in headers.bad}
    return Headers(headers.sizes[rows], headers.grey[rows], bad)


def _remote_files(config: DataConfig, text: str, where: str) -> tuple[list[RemoteFile], str]:
    """As `_files`."""
    cache = Cache.of(config.cache_gb)
    if not (_RANGE.search(text) or glob.has_magic(text)) and not text.endswith(".tar"):
        folder = remote_folder(text, cache, where)
        found = [folder.file(name) for name in sorted(folder.below()) if name.endswith(".tar")]
        if not found:
            raise UserError(f"{where} is a folder without *.tar")
        return found, folder.address
    found, lacking = remote_files(list(_expanded(text)), cache, where)
    if not found:
        raise UserError(
            f"{where} {'matches no file' if len(lacking) > 1 or glob.has_magic(text) else 'does not exist'}"
        )
    if lacking := [file for file in lacking if not glob.has_magic(file)]:
        raise UserError(f"{where}: {len(lacking)} of its files do not exist, the first: {lacking[0]}")
    scheme = text[: text.index("://") + 3]
    common = os.path.commonpath([posixpath.dirname(file.address)[len(scheme) :] for file in found])
    return found, f"{scheme}{common}"


def _files(text: str) -> tuple[list[str], str]:
    """The tar files that a pattern names, in order, and the folder below which their names may tell splits."""
    text = text.removeprefix("file://")
    if _RANGE.search(text) or glob.has_magic(text):
        found = sorted(file for pattern in _expanded(os.path.expanduser(text)) for file in glob.glob(pattern))
        missing = [
            file for file in _expanded(os.path.expanduser(text)) if not glob.has_magic(file) and file not in found
        ]
        if missing and found:
            raise UserError(f"wds:{text}: {len(missing)} of its files do not exist, the first: {missing[0]}")
        if not found:
            raise UserError(f"wds:{text} matches no file")
        return found, os.path.commonpath([os.path.dirname(file) or "." for file in found])
    path = existing(text, "wds")
    if path.is_file():
        return [str(path)], str(path.parent)
    found = sorted(map(str, path.rglob("*.tar")))
    if not found:
        raise UserError(f"wds:{text} is a folder without *.tar")
    return found, str(path)


def _expanded(pattern: str) -> Iterator[str]:
    """`a-{00..03}.tar` as a-00.tar, a-01.tar, ..."""
    place = _RANGE.search(pattern)
    if place is None:
        yield pattern
        return
    first, last = place.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{pattern[: place.start()]}{number:0{len(first)}}{pattern[place.end() :]}")


def _splits_of_files(files: list[str], base: str) -> np.ndarray:  # type: ignore[type-arg]
    """Place of the split that each file's name says; that of train where it says none."""

    def split(file: str) -> int:
        words = re.split(r"[^a-z]+", os.path.relpath(file, base).lower())
        found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
        return _SPLITS.index(found.pop()) if len(found) == 1 else 0

    return np.array([split(Path(file).as_posix()) for file in files], np.int64)
