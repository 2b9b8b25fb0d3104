"""The one gate for bytes that may be a stranger's: sizes are compared first, and every failure is a `DamagedError`.

Who reads a file opens it here, and parses it inside `reading`. Nothing here executes what a file says.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from jaxtrain.errors import DamagedError, JaxtrainError, UserError
from jaxtrain.files import reason

_JSON_BYTES = 1 << 28


@contextlib.contextmanager
def reading(path: Path | str, kind: str, advice: str = "bring it back from a copy") -> Iterator[None]:
    """Around the parsing of a file: whatever that raises becomes a DamagedError with the file, the reason, `advice`.

    Errors that jaxtrain raises on purpose pass; to a UserError that does not name the file, the file is added.
    """
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise DamagedError(f"{path}: {error}") from error
    except JaxtrainError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DamagedError(f"{path}: {error.strerror}") from error
        raise DamagedError(f"{path}: is not a sound {kind} ({why(error)}); {advice}") from error


def why(error: Exception) -> str:
    """What is wrong with a value, in one line of bounded length."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        text = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, "))))
    elif isinstance(error, KeyError):
        text = str(error.args[0]) if " " in str(error.args[0]) else f"{error} is missing"
    elif isinstance(error, RecursionError):
        text = "nested too deeply"
    elif isinstance(error, MemoryError):
        text = "larger than the memory"
    else:
        text = reason(error)
    return text if len(text) <= 200 else f"{text[:197]}..."


class _Bounded(io.BufferedReader):
    """A file of which no more is asked for than there is: Python would allocate as much as a header says first."""

    def __init__(self, raw: io.FileIO, size: int) -> None:
        super().__init__(raw)
        self._size = size

    def read(self, size: int | None = -1) -> bytes:
        return super().read(size if size is None or size < 0 else min(size, max(self._size - self.tell(), 0)))


def open_file(path: Path | str, most: int | None = None) -> BinaryIO:
    """A regular file, open for reading; `most`: bytes that it may have.

    Raises FileNotFoundError where there is none and DamagedError for anything else: a pipe or device is not waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path}: {reason(error)}") from error
    status = os.fstat(descriptor)
    kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
    problem = None if stat.S_ISREG(status.st_mode) else f"is {kind}, not a file"
    if problem is None and most is not None and status.st_size > most:
        problem = f"has {status.st_size:,} bytes, more than the {most:,} that are read"
    if problem is not None:
        os.close(descriptor)
        raise DamagedError(f"{path} {problem}")
    return _Bounded(io.FileIO(descriptor), status.st_size)


def without_name(error: DamagedError, path: Path | str) -> str:
    """What `open_file` says of a file, for who names it in another way."""
    return str(error).removeprefix(f"{path}").removeprefix(":").lstrip()


def read_bytes(path: Path | str, most: int) -> bytes:
    """A whole file of at most this many bytes. Raises as `open_file`."""
    with open_file(path, most) as file:
        return file.read(most)


def read_json(path: Path, kind: str, advice: str = "bring it back from a copy") -> dict[str, Any]:
    """The JSON object in a file. Raises FileNotFoundError where there is none, DamagedError for anything else."""
    data = read_bytes(path, _JSON_BYTES)
    with reading(path, kind, advice):
        return json_object(data)


def json_object(data: bytes | str) -> dict[str, Any]:
    """The JSON object in a text; ValueError for anything else."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value
