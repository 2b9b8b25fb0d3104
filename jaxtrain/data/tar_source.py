"""`wds:PATTERN`: images in tar files, as WebDataset has them or as a folder of classes was packed."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxtrain.config import DataConfig
from jaxtrain.data.assemble import assemble_splits
from jaxtrain.data.base import Dataset, PartSource
from jaxtrain.data.labels import given_as
from jaxtrain.data.manifest import Rows, place_labels, whole_numbers
from jaxtrain.data.paths import existing
from jaxtrain.data.scan import Headers, refuse_large
from jaxtrain.data.splits import SPLIT_NAMES
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
    files, base = _files(text)
    where = f"wds:{text}"
    index = tar_index(files, config.columns, where)
    values = index.values
    codes = np.where(values[index.labels] == NO_LABEL, -1, index.labels)
    class_names = _class_names(Path(base))
    if not index.folders[0] and class_names is None:
        codes, values = whole_numbers(codes, values)
    splits = np.where(index.splits >= 0, index.splits, _splits_of_files(files, base)[index.places[:, 0]])
    rows = {name: np.flatnonzero(splits == place) for place, name in enumerate(_SPLITS) if (splits == place).any()}
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


def _class_names(folder: Path) -> tuple[str, ...] | None:
    """The classes of shards that were packed here, where their order was noted."""
    try:
        names = json.loads((folder / PACKED).read_text(encoding="utf-8"))["class_names"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _headers_of(headers: Headers, rows: np.ndarray) -> Headers:  # type: ignore[type-arg]
    bad = {place: headers.bad[row] for place, row in enumerate(rows.tolist()) if row in headers.bad}
    return Headers(headers.sizes[rows], headers.grey[rows], bad)


def _files(text: str) -> tuple[list[str], str]:
    """The tar files that a pattern names, in order, and the folder below which their names may tell splits."""
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
