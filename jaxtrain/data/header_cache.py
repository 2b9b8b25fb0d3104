"""The headers of all images of a source; of many files, from the user's cache where they have not changed since."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxtrain.archives import open_npz
from jaxtrain.data.base import FileSource, ImageSource
from jaxtrain.data.scan import Header, Headers, collect, header_of_file, header_of_image, parallel, refuse_large
from jaxtrain.errors import DamagedError
from jaxtrain.files import user_cache

_SLOW_SECONDS = 2.0
"""What takes longer is kept."""


def scan(source: ImageSource, max_pixels: int) -> Headers:
    """The headers of all images of a source."""
    if isinstance(source, FileSource):
        return refuse_large(_headers_of_files([str(path) for path in source.paths]), max_pixels)

    def header(index: int) -> Header:
        try:
            return header_of_image(source.read(index))
        except OSError as error:
            return error.strerror or str(error)

    return refuse_large(collect(parallel(header, len(source), workers=4)), max_pixels)


def _headers_of_files(paths: Sequence[str]) -> Headers:
    key = hashlib.sha256("\0".join([os.getcwd(), *paths]).encode(errors="surrogateescape")).hexdigest()
    file = user_cache() / "headers" / f"{key[:32]}.npz"
    if (known := _load(file, len(paths))) is not None:
        headers, states = known
        now = _states(paths)
        changed = np.flatnonzero((states != now).any(axis=1) | (now < 0).any(axis=1))
        if not len(changed):
            return headers
    else:
        headers, changed = collect([(0, 0, True)] * len(paths)), np.arange(len(paths))
    began, places = time.monotonic(), changed.tolist()
    read = collect(parallel(lambda i: header_of_file(paths[places[i]]), len(places), workers=16))
    headers.sizes[changed], headers.grey[changed] = read.sizes, read.grey
    again = set(places)
    bad = {index: reason for index, reason in headers.bad.items() if index not in again}
    bad |= {places[index]: reason for index, reason in read.bad.items()}
    headers = Headers(headers.sizes, headers.grey, dict(sorted(bad.items())))
    if known is not None or time.monotonic() - began > _SLOW_SECONDS:
        _save(file, headers, _states(paths))
    return headers


def _states(paths: Sequence[str]) -> NDArray[np.int64]:
    """Size and time of change of each file: `int64[files, 2]`; -1 where it cannot be known."""

    def state(index: int) -> tuple[int, int]:
        try:
            found = os.stat(paths[index])
        except OSError:
            return -1, -1
        return found.st_size, found.st_mtime_ns

    return np.array(parallel(state, len(paths), workers=16), np.int64).reshape(-1, 2)


def _save(file: Path, headers: Headers, states: NDArray[np.int64]) -> None:
    bad = np.array([[index, reason] for index, reason in headers.bad.items()], np.str_).reshape(-1, 2)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, sizes=headers.sizes, grey=headers.grey, bad=bad, states=states)
        partial.replace(file)
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
