"""Archives of arrays (`.npz`, and zip archives like it): what a header says is compared with what is there."""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxtrain.readers import open_file, reading

DEFLATE = 1032
"""No byte of a deflated member becomes more bytes than this."""
_PACKED, _PACKED_BYTES = 50, 64 << 20
"""How many times its size a packed archive may unpack to, and what is always allowed."""


class Stored(NamedTuple):
    """An array in an archive, which is not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Npz(Mapping[str, NDArray[Any]]):
    """The arrays of an open `.npz` file, each read when it is asked for; ValueError where it cannot be."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def header(self, name: str) -> Stored:
        """Shape and type of an array, which fit what is there."""
        member = self._archive.getinfo(f"{name}.npy")
        with self._archive.open(member) as file:
            return read_header(file, member.file_size, name)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        self.header(name)
        with self._archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextlib.contextmanager
def open_npz(path: Path, kind: str, advice: str = "bring it back from a copy", *, packed: bool = True) -> Iterator[Npz]:
    """The arrays in a file; none is larger than its archive can hold, and nothing is unpickled.

    What is raised inside the block is the file's fault too (`reading`). FileNotFoundError where there is no file;
    `packed` as of `check_archive`.
    """
    with open_file(path) as file, reading(path, kind, advice):
        if file.read(6) == b"\x93NUMPY":
            raise ValueError("it holds one array without a name, as a .npy file does")
        with zipfile.ZipFile(file) as archive:
            check_archive(archive, os.fstat(file.fileno()).st_size, packed=packed)
            yield Npz(archive)


def read_npy(path: Path, kind: str, advice: str) -> NDArray[Any]:
    """The array in a `.npy` file. Raises FileNotFoundError, or DamagedError for anything else than an array."""
    with open_file(path) as file, reading(path, kind, advice):
        read_header(file, os.fstat(file.fileno()).st_size, path.name)
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def check_archive(archive: zipfile.ZipFile, size: int, *, packed: bool = True) -> None:
    """ValueError where the members of an archive of `size` bytes cannot be what its directory says.

    `packed` is False where it may not unpack to many times its size.
    """
    members = archive.infolist()
    if sum(member.compress_size for member in members) > size:
        raise ValueError("its parts are larger than the whole")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
            raise ValueError(f"{member.filename} is encrypted or compressed in an unusual way")
        ratio = 1 if member.compress_type == zipfile.ZIP_STORED else DEFLATE
        if member.file_size > ratio * member.compress_size:
            raise ValueError(f"{member.filename} has fewer bytes than its directory says")
    whole = sum(member.file_size for member in members)
    if not packed and whole > max(_PACKED * size, _PACKED_BYTES):
        raise ValueError(f"its {size:,} bytes would unpack to {whole:,}")


def check_arrays(archive: zipfile.ZipFile) -> None:
    """ValueError where an array in an archive has a header that does not fit its size."""
    arrays = Npz(archive)
    for name in arrays:
        arrays.header(name)


def read_header(file: IO[bytes], size: int, name: str) -> Stored:
    """The header of a `.npy` file of `size` bytes, which stands before its array; ValueError where they do not fit."""
    version = np.lib.format.read_magic(file)  # type: ignore[arg-type]
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} is of an unknown version")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)  # type: ignore[arg-type]
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects (pickle), which are never loaded")
    if min(shape, default=0) < 0 or not dtype.itemsize:
        raise ValueError(f"{name} has no sound shape")
    needed, present = math.prod(shape) * dtype.itemsize, size - file.tell()
    if needed != present:
        raise ValueError(f"{name} has shape {list(shape)}, which needs {needed:,} bytes; there are {present:,}")
    return Stored(shape, dtype)
