"""Files that survive a kill and a power cut, and errors of the disk in one line."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path, PurePosixPath

_PATH_SOURCES = ("folder", "idx", "npz")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What `flock` fails with on a file system that has no locks."""


def flush_folder(folder: Path) -> None:
    """Makes renames and new entries in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def folder_name(text: str) -> str:
    """A name for a folder: of a path its last part, and only letters, digits, `.`, `_` and `-`.

    >>> folder_name("folder:/data/my cats-resnet18"), folder_name("tfds:mnist/x:3.0.1"), folder_name("../..")
    ('my-cats-resnet18', 'mnist-x-3.0.1', 'run')
    """
    kind, colon, rest = text.partition(":")
    if colon:
        text = PurePosixPath(rest).name if kind in _PATH_SOURCES else rest
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._")[:80] or "run"
