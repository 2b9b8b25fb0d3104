"""Files that survive a kill and a power cut, locks between processes, and errors of the disk in one line."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import io
import itertools
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from jaxtrain.errors import RunError
from jaxtrain.escape import csv_cell

_log = logging.getLogger(__name__)
_PATH_SOURCES = ("folder", "csv", "jsonl", "parquet", "wds", "hf", "idx", "npz")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_SO = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What `flock` fails with on a file system that has no locks."""

# --- whole or not at all


def temporary_name(path: Path) -> Path:
    """Where a file lies until it is complete. What a kill leaves there is overwritten by the next write."""
    return path.with_name(f".{path.name}.tmp")


@contextlib.contextmanager
def replacing(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """The name to write a file under; it becomes `path` when the block ends without an error.

    After a kill at any moment there is the old file or the new one; with `flush` after a power cut too. One process
    at a time may write to a path.
    """
    temporary = temporary_name(path)
    temporary.unlink(missing_ok=True)  # a link there would be written through
    try:
        yield temporary
        if flush:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if flush:
            flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file, whole, or as it was before. Raises RunError where it cannot be written."""
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise RunError(f"{path} could not be written: {error.strerror or error}") from error


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A table, whole: the columns are all keys in the order in which they come. Raises as `write_text`."""
    text = io.StringIO(newline="")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = csv.writer(text, lineterminator="\n")
    table.writerow(map(csv_cell, columns))
    table.writerows([csv_cell(row.get(column, "")) for column in columns] for row in rows)
    write_text(path, text.getvalue())
    return path


def from_here(path: Path) -> Path:
    """The path as short as can be: from the working directory where it is inside, so that commands can be copied."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def user_cache() -> Path:
    """The folder for what can be made again: `$XDG_CACHE_HOME/jaxtrain`, by default `~/.cache/jaxtrain`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxtrain"


def flush_folder(folder: Path) -> None:
    """Makes renames and new entries in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- names


def run_name(text: str) -> str:
    """A name for a folder: of a path its last part, and only letters, digits, `.`, `_` and `-`.

    >>> run_name("folder:/data/my cats-resnet18"), run_name("tfds:mnist/x:3.0.1"), run_name("../..")
    ('my-cats-resnet18', 'mnist-x-3.0.1', 'run')
    """
    kind, colon, rest = text.partition(":")
    if colon:
        text = PurePosixPath(rest).name if kind in ("folder", "idx", "npz") else rest
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._")[:80] or "run"


def numbered_folder(root: Path, name: str) -> Path:
    """`ROOT/NAME-N` with the first free N, made; the name as of `run_name`."""
    for number in itertools.count(1):
        folder = root / f"{run_name(name)}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError


# --- locks


def open_lock(path: Path) -> int:
    """The descriptor of a file that is locked or claimed, made where it is missing; a link is not followed."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def take_lock(descriptor: int) -> bool | None:
    """Whether the lock on an open file is ours now; None where the file system has no locks.

    It ends when the descriptor is closed, or with the process. Raises OSError.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def share_lock(descriptor: int) -> None:
    """Holds off `take_lock` of others until the descriptor is closed, after waiting for one that has it."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def try_lock(path: Path, unlocked: Callable[[], None] = lambda: None) -> int | None:
    """A descriptor that holds the lock until it is closed, or None where another process holds it.

    Where the file system has no locks it holds none, and `unlocked` is called.
    """
    descriptor = open_lock(path)
    try:
        held = take_lock(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    if held is False:
        os.close(descriptor)
        return None
    if held is None:
        unlocked()
    return descriptor


@contextlib.contextmanager
def file_lock(path: Path, timeout: float = 120.0) -> Iterator[None]:
    """Holds a lock between processes; the system releases it when its holder dies. Raises TimeoutError."""
    deadline = time.monotonic() + timeout
    while (held := try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} is locked by another process")
        time.sleep(0.05)
    try:
        yield
    finally:
        os.close(held)


# --- errors


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """Around a picture, a page or an upload: where it fails, one line says so, and the run goes on."""
    try:
        yield
    except Exception as error:
        _log.warning("%s could not be made (%s: %s); nothing else is lost", what, type(error).__name__, reason(error))


def disk_refuses(error: BaseException) -> bool:
    """Whether the file system is the cause: it is full or read-only, or has a folder where a file should be."""
    return isinstance(error, OSError) and error.errno in (*_NO_SPACE, *_NOT_SO)


def reason(error: BaseException, folder: Path | None = None, need: int = 0) -> str:
    """An exception in one line; where the disk is full: what is needed and what is free."""
    lines = str(error).strip().splitlines()
    text = error.strerror if isinstance(error, OSError) and error.strerror else lines[0] if lines else ""
    full = isinstance(error, OSError) and error.errno in _NO_SPACE
    full = full or any(os.strerror(code) in str(error) for code in _NO_SPACE)
    if full and folder is not None:
        free = shutil.disk_usage(folder).free
        return f"no space on the disk: {need:,} bytes needed, {free:,} free; free some, then run the same again"
    return text or type(error).__name__
