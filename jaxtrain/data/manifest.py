"""`csv:FILE`, `jsonl:FILE`, `parquet:FILE`: a table with an image and its label in each row."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.config import DataConfig
from jaxtrain.data.assemble import assemble_splits
from jaxtrain.data.base import LARGEST_FILE, Dataset, FileSource, Labels, PartSource
from jaxtrain.data.labels import classes_of, given_as, image_weights, label_values
from jaxtrain.data.packed import Packed
from jaxtrain.data.parquet_images import parquet_parts
from jaxtrain.data.paths import existing
from jaxtrain.data.remote import ADDRESS, RemoteFile, RemotePaths, checked, is_remote, normal, remote_file
from jaxtrain.data.remote_cache import Cache
from jaxtrain.data.several_labels import columns_of_labels, names_in, place_several
from jaxtrain.data.splits import SPLIT_NAMES, Indices, standing_in
from jaxtrain.data.table import (
    choose_columns,
    class_names_in,
    coded,
    encoded_images_in,
    give_back,
    group_values,
    memory_given_back,
    read_table,
)
from jaxtrain.errors import UserError, nearest

_SHOWN = 5
_MOST_VALUES = 1000
"""A column of more values than this tells single images apart, not kinds of them."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """What a table says of its images, row by row."""

    where: str
    labels: tuple[NDArray[np.int64], NDArray[Any]]
    """As of `coded`."""
    splits: Mapping[str, Indices]
    """Rows of train, val and test, where there are any."""
    class_names: tuple[str, ...] | None
    """Where integers are places among them."""


@memory_given_back()
def manifest_dataset(kind: str, config: DataConfig, text: str) -> Dataset:
    """A table whose rows are images: paths relative to its folder, addresses or, in Parquet, encoded images.

    Which column holds what is known by its name (`ROLES`) or given by `data.columns`. A column of splits says train,
    val or test, or another word that `folder:` knows. In CSV, labels that are all whole numbers are numbers; classes
    are the labels that occur in training, sorted. Several labels per image are lists of names, columns of 0 and 1
    (`data.columns.labels`), or names parted by | where `data.task` is multilabel. The other columns, of up to 1,000
    values, slice the Benchmark.

    Raises `UserError` for a table that cannot be read or lacks a column, for rows without a label or with one that
    training has not, images with two labels, and paths that lead nowhere; `RunError` for more unreadable images than
    allowed.
    """
    where = f"{kind}:{text}"
    if not is_remote(text):
        path = existing(text, kind)
        return _dataset(kind, config, path, Place(where, f"{path.parent}{os.sep}"))
    file = remote_file(text, Cache.of(config.cache_gb), where)
    with file.local() as path:
        version = repr((str(file), file.size, file.version))
        return _dataset(kind, config, path, Place(where, f"{file.address.rpartition('/')[0]}/", version))


@dataclass(frozen=True)
class Place:
    """Where a table is."""

    where: str
    folder: str
    """What relative paths begin with."""
    version: str | None = None
    """Of a copy of a remote table: what it is called, and its state."""


def _dataset(kind: str, config: DataConfig, path: Path, place: Place) -> Dataset:
    where, table = place.where, read_table(kind, path, place.where)
    apart = config.columns.labels
    if apart and config.columns.label:
        raise UserError("data.columns: label and labels: give one of them")
    needed = ("image",) if apart else ("image", "label")
    columns = choose_columns(config.columns, table.column_names, where, needed)
    if apart:
        columns.pop("label", None)
    splits = _splits(table.column(columns["split"]), where, config.split) if "split" in columns else None
    splits = splits or {"train": np.arange(table.num_rows)}
    known = None if apart else class_names_in(table, columns["label"])
    if apart:
        several: Any = columns_of_labels(table, apart, where)
    else:
        several = names_in(table, columns["label"], known, split=config.task in ("multilabel", "any_of"))
    if several is None:
        rows = Rows(where, _one_each(kind, table.column(columns["label"]), where), splits, known)
        names, classes, placed = place_labels(rows)
        given = given_as(classes)
    else:
        names, placed = place_several(several, splits, apart or known, where, config.task)
        kinds, codes = np.unique([str(row) for row in several.tolist()], return_inverse=True)
        rows, given = Rows(where, (codes, kinds), splits, known), None
    weights = _weights(table, columns, rows) if "weight" in columns else None
    others = [name for name in table.column_names if name and name not in (*columns.values(), *(apart or ()))]
    metadata = {name: values for name in others if (values := slices_by(table.column(name))) is not None}
    if config.group is not None:
        metadata[config.group] = group_values(table, config.group, columns, where)
    everything: FileSource | PartSource
    zeros = np.zeros(table.num_rows, np.int32)
    if kind == "parquet" and encoded_images_in(path, columns["image"]):
        blob, lengths = parquet_parts(path, columns["image"], place.version)
        places = np.stack([np.zeros_like(lengths), lengths.cumsum() - lengths, lengths], axis=1)
        names_of_rows = _RowNames(where.partition(":")[2], len(lengths))
        everything = PartSource((blob,), places, zeros, names_of_rows, metadata, weights)
    else:
        paths = _paths(table.column(columns["image"]), place.folder, rows, Cache.of(config.cache_gb))
        everything = FileSource(paths, zeros, metadata, weights)
    sources = {name: replace(everything.select(splits[name]), labels=placed[name]) for name in placed}
    del table
    give_back()
    dataset = assemble_splits(config, names, sources)
    taken = ", ".join(f"{role}: {name}" for role, name in columns.items())
    taken += f", labels: {' '.join(apart)}" if apart else ""
    return replace(dataset, classes=given, taken=taken)


def _one_each(kind: str, column: Any, where: str) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """As of `coded`, one label per row."""
    if str(column.type).startswith("struct"):
        raise UserError(f"{where}: labels are {column.type}, must be names, numbers or lists of them")
    return whole_numbers(*coded(column)) if kind == "csv" else coded(column)


@dataclass(frozen=True)
class _RowNames(Sequence[str]):
    """What rows are called, numbered from 1."""

    file: str
    rows: int

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: Any) -> Any:
        return f"{self.file} row {index + 1}"


def _splits(column: Any, where: str, measured: str | None) -> dict[str, Indices]:
    """Rows of each split."""
    codes, values = coded(column)
    if (codes < 0).any():
        raise UserError(f"{where}: {_rows(codes < 0)} no split")
    meant = [SPLIT_NAMES.get(str(value).lower()) for value in values]
    for code, (value, split) in enumerate(zip(values, meant, strict=True)):
        if split is None:
            near = nearest(str(value), SPLIT_NAMES)
            raise UserError(f"{where}: {_rows(codes == code)} the split '{value}', which is none: {near}")
    found: dict[str, Indices] = {
        name: np.flatnonzero(np.isin(codes, [i for i, split in enumerate(meant) if split == name]))
        for name in dict.fromkeys(SPLIT_NAMES.values())
        if name in meant
    }
    found = standing_in(found, measured)
    if "train" not in found:
        raise UserError(f"{where} has no rows of the split train; its splits: {', '.join(map(str, values))}")
    return found


def place_labels(rows: Rows) -> tuple[tuple[str, ...], NDArray[Any], dict[str, Labels]]:
    """Names of the classes, what they were given as, and each split's labels as places among them.

    A test split without any label is left out, and said so. Raises UserError for other rows without a label, and for
    labels that no training image has.
    """
    codes, values = rows.labels
    if values.dtype.kind in "iuf":  # -1 says "none", as in the test sets of competitions
        codes = np.where(np.isin(codes, np.flatnonzero(values == -1)), -1, codes)
    splits = dict(rows.splits)
    if "test" in splits and (codes[splits["test"]] < 0).all():
        _log.warning("%s: the test images have no labels: there is no test set", rows.where)
        del splits["test"]
    for name, places in splits.items():
        if (lacking := codes[places] < 0).any():
            raise UserError(f"{rows.where} {name}: {_rows(lacking, places)} no label")
    used = np.unique(codes[codes >= 0])
    checked = label_values(values[used], rows.where, len(used))
    of_train = np.isin(used, codes[splits["train"]])
    names, classes = classes_of(checked[of_train], rows.class_names, rows.where)
    assert classes is not None  # one label per image
    place = {value: number for number, value in enumerate(classes.tolist())}
    table = np.full(len(values) + 1, -1, np.int32)
    for code, value in zip(used, checked.tolist(), strict=True):
        table[code] = place.get(value, -1)
    placed = {name: table[codes[places]] for name, places in splits.items()}
    for name, labels in placed.items():
        if (labels < 0).any():
            strange = values[np.unique(codes[splits[name]][labels < 0])]
            known = "no training image has" if rows.class_names is None else f"is none of {len(names)} classes"
            raise UserError(
                f"{rows.where} {name}: {_rows(labels < 0, splits[name])} a label that {known}: {_few(strange)}: "
                f"{nearest(str(strange[0]), names)}"
            )
        if missing := [names[i] for i in np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)]:
            _log.warning("%s %s has no images of %s", rows.where, name, _few(missing))
    return names, classes, placed


def whole_numbers(codes: NDArray[np.int64], values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Texts as whole numbers, where all are and none would lose a zero in front."""
    try:
        numbers = np.array([int(value) for value in values.tolist()], np.int64)
    except (ValueError, OverflowError):
        return codes, values
    return codes, numbers if [str(number) for number in numbers] == values.tolist() else values


def _weights(table: Any, columns: Mapping[str, str], rows: Rows) -> NDArray[np.float32]:
    import pyarrow as pa

    where = f"{rows.where} {columns['weight']}"
    try:
        weights = table.column(columns["weight"]).cast(pa.float32()).to_numpy()
    except pa.ArrowException as error:
        raise UserError(f"{where}: weights must be numbers: {' '.join(str(error).split())[:200]}") from None
    train = rows.splits["train"]
    result = np.ones(table.num_rows, np.float32)
    result[train] = image_weights(weights[train], len(train), where)
    return result


def slices_by(column: Any) -> NDArray[Any] | None:
    """The values of a column of pyarrow as text, where they are few: `object[rows]`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return None
    if pc.count_distinct(column).as_py() > _MOST_VALUES:
        return None
    codes, values = coded(column)
    return np.array([*map(str, values), ""], object)[codes]


def _paths(column: Any, folder: str, rows: Rows, cache: Cache) -> Packed | RemotePaths:
    """The files of all rows; UserError where no column of paths is here, or one image has two labels."""
    import pyarrow as pa
    import pyarrow.compute as pc

    where = rows.where
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UserError(f"{where}: the images are {column.type}, must be paths of files: give data.columns.image")
    if column.null_count:
        raise UserError(f"{where}: {_rows(column.is_null().to_numpy())} no image")
    if pc.count_distinct(column).as_py() < len(column):
        for warning in _check_repeated(*coded(column), rows.labels[0], rows):
            _log.warning("%s", warning)
    before, nothing = (pa.scalar(text, pa.large_string()) for text in (folder, ""))
    parts, first = [], dict[str, str]()
    for part in column.chunks:
        texts = pc.replace_substring_regex(part.cast(pa.large_string()), "^file://", "")
        whole = pc.or_(pc.starts_with(texts, os.sep), pc.match_substring_regex(texts, ADDRESS))
        texts = pc.if_else(whole, texts, pc.binary_join_element_wise(before, texts, nothing))
        if is_remote(folder) and pc.any(pc.match_substring_regex(texts, r"/\.\.?/")).as_py():
            texts = pa.array([normal(text) for text in texts.to_pylist()], pa.large_string())
        parts.append(Packed.of_arrow(texts))
        schemes = pc.struct_field(pc.extract_regex(texts, f"(?P<scheme>{ADDRESS})"), "scheme")
        first |= {scheme: texts[pc.index(schemes, scheme).as_py()].as_py() for scheme in pc.unique(schemes.drop_null())}
    found = Packed.joined(parts)
    del parts
    give_back()
    for address in first.values():
        checked(address, where)
    paths = RemotePaths(found, cache) if first else found
    if not any(_is_there(path) for path in paths[: _SHOWN if first else 100]):
        raise UserError(f"{where}: none of its files exists, the first: {paths[0]}; paths are relative to {folder}")
    return paths


def _is_there(path: str | RemoteFile) -> bool:
    if not isinstance(path, RemoteFile):
        return os.path.exists(path)
    try:
        path.read(LARGEST_FILE)
    except FileNotFoundError:
        return False
    except OSError:  # it is, though not for us, which is a reason of its own
        return True
    return True


def _check_repeated(files: Indices, texts: NDArray[Any], labels: Indices, rows: Rows) -> Iterator[str]:
    """UserError where one image has two labels; a warning where it is in two splits, or more than once."""
    pairs = np.unique(np.stack([files, labels], axis=1), axis=0)
    each, counts = np.unique(pairs[:, 0], return_counts=True)
    if (counts > 1).any():
        first = each[counts > 1][0]
        both = _few([rows.labels[1][code] for code in pairs[pairs[:, 0] == first, 1]])
        count = int((counts > 1).sum())
        raise UserError(f"{rows.where}: {count} images have more than one label, the first: {texts[first]} ({both})")
    parts = [np.unique(files[places]) for places in rows.splits.values()]
    each, counts = np.unique(np.concatenate(parts), return_counts=True)
    if (counts > 1).any():
        first = texts[each[counts > 1][0]]
        yield f"{rows.where}: {int((counts > 1).sum())} images are in more than one split, the first: {first}"
    else:
        yield f"{rows.where}: {len(files) - len(texts)} rows repeat an image of another row"


def _rows(which: NDArray[np.bool_], places: Indices | None = None) -> str:
    """How many rows, and which is the first (numbered from 1)."""
    count, first = int(which.sum()), int(which.argmax())
    first = first if places is None else int(places[first])
    return f"row {first + 1} has" if count == 1 else f"{count:,} rows (the first: {first + 1}) have"


def _few(values: Any) -> str:
    texts = [str(value) for value in values]
    return ", ".join(texts[:_SHOWN]) + (", ..." if len(texts) > _SHOWN else "")
