"""What is where in tar files: read once from their headers, then kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tarfile
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxtrain.config import ColumnsConfig
from jaxtrain.data.base import PartSource
from jaxtrain.data.folder import EXTENSIONS, hidden
from jaxtrain.data.packed import Packed
from jaxtrain.data.remote import RemoteFile
from jaxtrain.data.scan import Header, Headers, collect, header_of_image, headers_of, parallel
from jaxtrain.data.splits import SPLIT_NAMES
from jaxtrain.data.table import ROLES
from jaxtrain.errors import RunError, UserError
from jaxtrain.files import user_cache

_log = logging.getLogger(__name__)
_LABELS = ("cls", "label", "class")
"""Members that hold a label and nothing else."""
_LONGEST_TEXT = 1_000_000
NO_LABEL = ""


@dataclass(frozen=True)
class TarIndex:
    """The images of some tar files, in their order."""

    places: NDArray[np.int64]
    """As of `PartSource`."""
    text: NDArray[np.uint8]
    ends: NDArray[np.int64]
    """`Packed` names of the members, with that of their file in front."""
    labels: NDArray[np.int32]
    """Place of each image's label in `values`."""
    values: NDArray[np.str_]
    folders: NDArray[np.bool_]
    """Whether the label is the name of the folder that an image is in: `bool[1]`."""
    splits: NDArray[np.int8]
    """Place of the split in train, val, test; -1 where the member's path says nothing."""
    sizes: NDArray[np.int32]
    grey: NDArray[np.bool_]
    bad: NDArray[np.str_]
    """Number and reason of each unreadable image: `str[bad, 2]`."""
    key: NDArray[np.str_]
    """Names the files and their state: `str[1]`."""

    @property
    def names(self) -> Packed:
        """What the images are called."""
        return Packed(self.text, self.ends)

    @property
    def headers(self) -> Headers:
        """Of all images."""
        return Headers(self.sizes, self.grey, {int(index): str(reason) for index, reason in self.bad})


def tar_index(files: Sequence[str | RemoteFile], columns: ColumnsConfig, where: str) -> TarIndex:
    """The index of tar files, from the cache where they have not changed since.

    Raises UserError for what is not a tar file or holds no labelled images, RunError for a damaged one.
    """
    key = hashlib.sha256(repr((2, list(map(_state, files)), columns)).encode()).hexdigest()
    cached = user_cache() / "tar" / f"{key[:32]}.npz"
    try:
        with np.load(cached, allow_pickle=False) as stored:
            return TarIndex(**{field.name: stored[field.name] for field in fields(TarIndex)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        index = _read(files, columns, where, key)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, **vars(index))
        partial.replace(cached)
    except OSError:
        pass  # a full or read-only home costs time at the next start, nothing else
    return index


def _state(file: str | RemoteFile) -> tuple[str, int, int]:
    if isinstance(file, RemoteFile):
        return str(file), file.size, file.version
    status = os.stat(file)
    return os.path.abspath(file), status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class _Image:
    name: str
    start: int
    length: int
    label: str | None
    split: int


class _Words(NamedTuple):
    """Strings of which most are the same."""

    codes: dict[str, int]
    places: array[int]
    """`int32`"""

    def append(self, word: str) -> None:
        self.places.append(self.codes.setdefault(word, len(self.codes)))


@dataclass(frozen=True)
class _Shard:
    """The images of one tar file."""

    names: Packed
    places: NDArray[np.int64]
    """Start and length of each: `[images, 2]`."""
    splits: NDArray[np.int8]
    labels: _Words
    folders: _Words
    labelled: bool
    """Whether one of them has a label beside it."""
    headers: Sequence[Header] = ()


def _read(files: Sequence[str | RemoteFile], columns: ColumnsConfig, where: str, key: str) -> TarIndex:
    shards = parallel(lambda i: _look_into(files[i], columns), len(files), workers=8)
    if not any(len(shard.names) for shard in shards):
        raise UserError(f"{where} holds no images")
    # Labels beside the images where one has such; else the folders are the classes.
    folders = not any(shard.labelled for shard in shards)
    values, labels = _merged([(shard.folders if folders else shard.labels) for shard in shards])
    numbers = np.repeat(np.arange(len(shards)), [len(shard.names) for shard in shards])
    places = np.column_stack([numbers, np.concatenate([shard.places for shard in shards])])
    names = Packed.joined([shard.names for shard in shards])
    splits = np.concatenate([shard.splits for shard in shards])
    source = PartSource(tuple(files), places, np.zeros(len(places), np.int32), names)
    seen = [header for shard in shards for header in shard.headers]
    shards.clear()
    headers = collect(seen) if seen else headers_of(lambda i: header_of_image(source.read(i)), len(places), workers=8)
    bad = np.array([[index, reason] for index, reason in headers.bad.items()], np.str_).reshape(-1, 2)
    return TarIndex(
        places=places,
        text=names.text,
        ends=names.ends,
        labels=labels,
        values=values,
        folders=np.array([folders]),
        splits=splits,
        sizes=headers.sizes,
        grey=headers.grey,
        bad=bad,
        key=np.array([key]),
    )


def _look_into(file: str | RemoteFile, columns: ColumnsConfig) -> _Shard:
    """The images of one tar file; of a remote one, which is fetched as a whole, what their headers say too."""
    if isinstance(file, str):
        return _shard(file, _images_of(file, columns))
    with file.local() as path:
        shard = _shard(file, _images_of(str(path), columns))
        with open(path, "rb", buffering=0) as opened:
            data = (os.pread(opened.fileno(), length, start) for start, length in shard.places.tolist())
            return replace(shard, headers=[header_of_image(encoded) for encoded in data])


def _shard(file: str | RemoteFile, images: Iterable[_Image]) -> _Shard:
    """Column by column, as objects of a million images would take half a gigabyte."""
    text, ends, places, splits = bytearray(), array("q"), array("q"), array("b")
    labels, folders = _Words({}, array("i")), _Words({}, array("i"))
    labelled = False
    for image in images:
        text += os.fsencode(f"{file}/{image.name}")
        ends.append(len(text))
        places.extend((image.start, image.length))
        splits.append(image.split)
        labelled = labelled or image.label is not None
        labels.append(image.label or NO_LABEL)
        folders.append(PurePosixPath(image.name).parent.name)
    return _Shard(
        names=Packed(np.frombuffer(text, np.uint8), np.frombuffer(ends, np.int64)),
        places=np.frombuffer(places, np.int64).reshape(-1, 2),
        splits=np.frombuffer(splits, np.int8),
        labels=labels,
        folders=folders,
        labelled=labelled,
    )


def _merged(parts: Sequence[_Words]) -> tuple[NDArray[np.str_], NDArray[np.int32]]:
    """All words, sorted, and the place of each image's among them."""
    values = np.unique(np.array([word for part in parts for word in part.codes]))
    codes = [np.searchsorted(values, list(part.codes))[np.frombuffer(part.places, np.int32)] for part in parts]
    return values, np.concatenate(codes).astype(np.int32)


def _images_of(path: str, columns: ColumnsConfig) -> Iterator[_Image]:
    """The images of one tar file: members of one name up to its first dot belong together."""
    key: tuple[str, str] | None = None
    sample: dict[str, tarfile.TarInfo] = {}
    for member in _members(path):
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        if hidden(name) or any(map(hidden, folder.removeprefix("./").split("/")[:-1] if folder else [])):
            continue
        if (folder, stem) != key:
            yield from _sample(path, sample, columns)
            key, sample = (folder, stem), {}
        if extension in sample:
            raise UserError(f"{path}: holds {member.name} twice")
        sample[extension] = member
    yield from _sample(path, sample, columns)


def _members(path: str) -> Iterator[tarfile.TarInfo]:
    """The plain files in a tar file, none of which is opened or unpacked."""
    size, others = os.path.getsize(path), 0
    regular: dict[str, tuple[int, int]] = {}
    try:
        with open(path, "rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise UserError(f"{path} is compressed, which allows no random access: unpack it with gunzip")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # which would hold every member seen
                    if member.islnk():  # tar's way to store a file twice
                        regular = regular or _regular_members(path)
                    if member.islnk() and member.linkname in regular:
                        member.offset_data, member.size = regular[member.linkname]
                    elif not member.isreg() or member.issparse():
                        others += not member.isdir()
                        continue
                    if member.offset_data + member.size > size:
                        raise RunError(f"{path} is cut off in {member.name}")
                    yield member
        if others:
            _log.warning("%s: %d members are not used, as they are not regular files (links, devices)", path, others)
    except tarfile.TarError as error:
        raise UserError(f"{path} is not a tar file, or damaged: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _regular_members(path: str) -> dict[str, tuple[int, int]]:
    """Where each is, which takes much memory, so only for tar files with links."""
    with tarfile.open(path, mode="r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar if member.isreg()}


def _sample(path: str, members: Mapping[str, tarfile.TarInfo], columns: ColumnsConfig) -> Iterator[_Image]:
    pictures = [extension for extension in members if f".{extension.lower()}".endswith(EXTENSIONS)]
    if columns.image is not None:
        pictures = [extension for extension in pictures if extension == columns.image]
    if not pictures:
        return
    if len(pictures) > 1:
        names = ", ".join(members[extension].name for extension in pictures)
        raise UserError(f"{path}: one sample has several images ({names}): say which: data.columns.image={pictures[0]}")
    member = members[pictures[0]]
    top = member.name.removeprefix("./").split("/")[0].lower() if "/" in member.name else ""
    split = list(dict.fromkeys(SPLIT_NAMES.values())).index(SPLIT_NAMES[top]) if top in SPLIT_NAMES else -1
    yield _Image(member.name, member.offset_data, member.size, _label(path, members, columns), split)


def _label(path: str, members: Mapping[str, tarfile.TarInfo], columns: ColumnsConfig) -> str | None:
    """What the members beside an image say of its class; None where there is nothing."""
    names = _LABELS if columns.label is None else (columns.label,)
    if (member := next((members[name] for name in names if name in members), None)) is not None:
        return _text(path, member).strip()
    if "json" in members:
        try:
            values = json.loads(_text(path, members["json"]))
        except ValueError:
            raise UserError(f"{path}: {members['json'].name} is not valid JSON") from None
        keys = ROLES["label"] if columns.label is None else (columns.label,)
        found = next((values[key] for key in keys if key in values), None) if isinstance(values, dict) else None
        if isinstance(found, str | int):
            return str(found)
    return None


def _text(path: str, member: tarfile.TarInfo) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(member.offset_data)
            return file.read(min(member.size, _LONGEST_TEXT)).decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: {member.name} is not valid UTF-8") from None
