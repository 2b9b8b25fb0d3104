"""The headers of all images of a source; of many files, from the user's cache where they have not changed since."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxtrain.archives import open_npz
from jaxtrain.data.base import FileSource, ImageSource
from jaxtrain.data.remote import RemoteFile
from jaxtrain.data.scan import (
    Header,
    Headers,
    header_of_file,
    header_of_image,
    headers_of,
    parallel_parts,
    refuse_large,
)
from jaxtrain.errors import DamagedError
from jaxtrain.files import user_cache

_SLOW_SECONDS = 2.0
"""What takes longer is kept."""


def scan(source: ImageSource, max_pixels: int) -> Headers:
    """The headers of all images of a source."""
    if isinstance(source, FileSource):
        return refuse_large(_headers_of_files(source.paths), max_pixels)

    def header(index: int) -> Header:
        try:
            return header_of_image(source.read(index))
        except OSError as error:
            return error.strerror or str(error)

    return refuse_large(headers_of(header, len(source), workers=4), max_pixels)


def _headers_of_files(paths: Sequence[str | Path | RemoteFile]) -> Headers:
    key = hashlib.sha256(os.fsencode(os.getcwd()))
    for path in paths:
        key.update(b"\0" + os.fsencode(str(path)))
    file = user_cache() / "headers" / f"{key.hexdigest()[:32]}.npz"
    if (known := _load(file, len(paths))) is not None:
        headers, states = known
        now = _states(paths)
        changed = np.flatnonzero((states != now).any(axis=1) | (now < 0).any(axis=1))
        if not len(changed):
            return headers
    else:
        headers, changed = (
            Headers(np.zeros((len(paths), 2), np.int32), np.ones(len(paths), bool), {}),
            np.arange(len(paths)),
        )
    began, reader = time.monotonic(), partial(_header, paths, changed)
    read = headers_of(reader, len(changed), workers=16)
    headers.sizes[changed], headers.grey[changed] = read.sizes, read.grey
    again = np.zeros(len(paths), bool)
    again[changed] = True
    bad = {index: reason for index, reason in headers.bad.items() if not again[index]}
    bad |= {int(changed[index]): reason for index, reason in read.bad.items()}
    headers = Headers(headers.sizes, headers.grey, dict(sorted(bad.items())))
    if known is not None or time.monotonic() - began > _SLOW_SECONDS:
        states = _states(paths)
        lacking = [index for index in headers.bad if isinstance(paths[index], RemoteFile)]
        states[lacking] = -2  # it may have been missing for a while
        _save(file, headers, states)
    return headers


def _header(paths: Sequence[str | Path | RemoteFile], places: NDArray[np.int64], index: int) -> Header:
    path = paths[places[index]]
    return header_of_file(path if isinstance(path, RemoteFile) else str(path))


def _states(paths: Sequence[str | Path | RemoteFile]) -> NDArray[np.int64]:
    """Size and time of change of each file, or version: `int64[files, 2]`; negative where it cannot be known."""

    def state(index: int) -> tuple[int, int]:
        path = paths[index]
        if isinstance(path, RemoteFile):  # taken not to change where only the address is known
            return max(path.size, 0), max(path.version, 0)
        try:
            found = os.stat(path)
        except OSError:
            return -1, -1
        return found.st_size, found.st_mtime_ns

    parts = parallel_parts(state, len(paths), 16, lambda found: np.array(found, np.int64).reshape(-1, 2))
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)


def _save(file: Path, headers: Headers, states: NDArray[np.int64]) -> None:
    bad = np.array([[index, reason] for index, reason in headers.bad.items()], np.str_).reshape(-1, 2)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.npz")
        np.savez(part, sizes=headers.sizes, grey=headers.grey, bad=bad, states=states)
        part.replace(file)
    except OSError:
        return  # a full or read-only home costs time at the next start, nothing else


def _load(file: Path, count: int) -> tuple[Headers, NDArray[np.int64]] | None:
    try:
        with open_npz(file, "cache of headers") as stored:
            bad = {int(index): str(reason) for index, reason in stored["bad"]}
            headers, states = Headers(stored["sizes"], stored["grey"], bad), stored["states"]
    except (FileNotFoundError, DamagedError):
        return None
    return (headers, states) if len(headers.sizes) == len(headers.grey) == len(states) == count else None
