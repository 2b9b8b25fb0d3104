"""A first look at image files: their sizes from the headers, and which of them cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.base import LARGEST_FILE, Images, ImageSource
from jaxtrain.data.decode import (
    GREY_MODES,
    NOT_AN_IMAGE,
    PNG_SIGNATURE,
    BadImageError,
    image_size_of,
    png_without_pixels,
    read_image,
)
from jaxtrain.data.remote import RemoteFile
from jaxtrain.errors import DamagedError
from jaxtrain.readers import open_file, without_name

# Enough for the header of nearly every file, a JPEG's EXIF with a thumbnail included.
_HEAD_BYTES = 32 * 1024

Result = TypeVar("Result")
Part = TypeVar("Part")
_told: ContextVar[Callable[[int, int], None]] = ContextVar("told", default=lambda done, total: None)


@dataclass(frozen=True)
class Headers:
    """What the headers of a split say."""

    sizes: NDArray[np.int32]
    """(height, width) of each image, upright: `int32[images, 2]`; 0 where unreadable."""
    grey: NDArray[np.bool_]
    bad: dict[int, str]
    """Reason for each unreadable image."""

    @property
    def uniform_size(self) -> tuple[int, int] | None:
        """(height, width) when all readable images have one size."""
        readable = self.sizes[self.sizes[:, 0] > 0]
        if not len(readable) or (readable != readable[0]).any():
            return None
        return int(readable[0, 0]), int(readable[0, 1])

    @property
    def channels(self) -> int:
        """1 when all readable images are grey, else 3."""
        return 1 if self.grey[self.sizes[:, 0] > 0].all() else 3


Header = tuple[int, int, bool] | str
"""Height, width and whether grey; or the reason why it cannot be read."""


def header_of(data: bytes, *, signed: bool = False) -> Header:
    """The header of an encoded image; of all but PNG only the first part need be given. See `image_size_of`."""
    try:
        height, width, mode = image_size_of(data, signed=signed)
    except BadImageError as error:
        return str(error)
    if not height * width:
        return f"{width}x{height} has no pixels"
    return height, width, mode in GREY_MODES or mode.startswith("I;16")


def header_of_file(path: str | RemoteFile, *, signed: bool = False) -> Header:
    """As `header_of`, reading no more of the file than it takes. RunError where a remote store does not answer."""
    try:
        if isinstance(path, RemoteFile):
            return _header_of_remote(path, signed)
        with open_file(path, LARGEST_FILE) as file:
            head = file.read(_HEAD_BYTES)
            if len(head) < _HEAD_BYTES:
                return header_of(head, signed=signed)
            if head.startswith(PNG_SIGNATURE):
                return header_of(png_without_pixels(file), signed=signed)
            header = header_of(head, signed=signed)
            return header_of(head + file.read(), signed=signed) if isinstance(header, str) else header
    except DamagedError as error:
        return without_name(error, str(path))
    except OSError as error:
        return error.strerror or str(error)


def _header_of_remote(file: RemoteFile, signed: bool) -> Header:
    head = file.head(_HEAD_BYTES, LARGEST_FILE)
    header = header_of(head, signed=signed)
    # A whole PNG is read for its metadata; what has neither name nor beginning of an image is not fetched to be sure.
    if len(head) == _HEAD_BYTES and (head.startswith(PNG_SIGNATURE) or (isinstance(header, str) and not signed)):
        header = header_of(file.read(LARGEST_FILE), signed=signed)
    if isinstance(header, str):
        file.forget()
    return header


def why_no_image(path: str | RemoteFile) -> str | None:
    """None for an image, whatever its name; else what the file is, "" where that is not known."""
    header = header_of_file(path, signed=True)
    if not isinstance(header, str):
        return None
    return "" if header == NOT_AN_IMAGE else header.rpartition("it is ")[2]


def collect(headers: Sequence[Header]) -> Headers:
    """Headers one by one as arrays."""
    bad = {i: header for i, header in enumerate(headers) if isinstance(header, str)}
    good = [(0, 0, True) if isinstance(header, str) else header for header in headers]
    sizes = np.array([header[:2] for header in good], np.int32).reshape(-1, 2)
    return Headers(sizes, np.array([header[2] for header in good], bool), bad)


def headers_of(header: Callable[[int], Header], count: int, workers: int) -> Headers:
    """The headers number 0 to count - 1, read in threads."""
    parts = parallel_parts(header, count, workers, collect)
    if not parts:
        return collect([])
    starts = np.cumsum([0, *(len(part.grey) for part in parts)]).tolist()
    bad = {start + i: why for start, part in zip(starts, parts, strict=False) for i, why in part.bad.items()}
    return Headers(np.concatenate([part.sizes for part in parts]), np.concatenate([part.grey for part in parts]), bad)


def refuse_large(headers: Headers, max_pixels: int) -> Headers:
    """The same headers, with images of more than `max_pixels` pixels among the bad ones."""
    height, width = headers.sizes.astype(np.int64).T
    large = {
        int(i): f"{width[i]}x{height[i]} is more than {max_pixels:,} pixels (data.max_pixels)"
        for i in np.flatnonzero(height * width > max_pixels)
    }
    sizes = headers.sizes.copy()
    sizes[list(large)] = 0
    return Headers(sizes, headers.grey, dict(sorted({**headers.bad, **large}.items())))


def header_of_image(image: bytes | Images) -> Header:
    """As `header_of`, of pixels too."""
    return header_of(image) if isinstance(image, bytes) else (*image.shape[:2], image.shape[-1] == 1)


def find_bad_images(source: ImageSource, *, channels: int, max_pixels: int, workers: int = 4) -> dict[int, str]:
    """Decode every image in full: the index and the reason of each that cannot be."""

    reasons = parallel(lambda i: why_unreadable(source, i, max_pixels, channels), len(source), workers)
    return {i: text for i, text in enumerate(reasons) if text is not None}


def why_unreadable(source: ImageSource, index: int, max_pixels: int, channels: int = 3) -> str | None:
    """Why an image cannot be decoded; None where it can."""
    try:
        read_image(source, index, channels=channels, max_pixels=max_pixels)
    except BadImageError as error:
        return str(error)
    return None


def parallel(function: Callable[[int], Result], count: int, workers: int) -> list[Result]:
    """`[function(0), ..., function(count - 1)]`, computed in threads, a few hundred to a task."""
    return [result for part in parallel_parts(function, count, workers, list) for result in part]


def parallel_parts(
    function: Callable[[int], Result], count: int, workers: int, collect: Callable[[list[Result]], Part]
) -> list[Part]:
    """As `parallel`, each task's results collected into what takes less memory."""
    step, parts, done = max(1, min(256, count // (4 * workers))), [], 0
    tell = _told.get()
    with ThreadPoolExecutor(workers) as pool:
        starts = range(0, count, step)
        for part in pool.map(lambda i: collect([function(j) for j in range(i, min(i + step, count))]), starts):
            parts.append(part)
            done = min(done + step, count)
            tell(done, count)
    return parts


@contextmanager
def telling(progress: Callable[[int, int], None]) -> Iterator[None]:
    """Within, `progress` is told how many images were looked at, of how many."""
    token = _told.set(progress)
    try:
        yield
    finally:
        _told.reset(token)


def drop_bad(splits: Mapping[str, tuple[ImageSource, Mapping[int, str]]], bad: BadImages) -> dict[str, ImageSource]:
    """The splits without their unreadable images, which are entered in `bad`. Raises as `BadImages.add` does."""
    bad.add((source.describe(i), reason) for source, reasons in splits.values() for i, reason in reasons.items())
    kept: dict[str, ImageSource] = {}
    for name, (source, reasons) in splits.items():
        kept[name] = source
        if reasons:
            good = np.setdiff1d(np.arange(len(source)), np.fromiter(reasons, np.int64, len(reasons)))
            kept[name] = source.select(good)
    return kept
