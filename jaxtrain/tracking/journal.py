"""`metrics.jsonl`: every logged metric, one JSON object a line, and the truth when MLflow is away."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from jaxtrain.errors import RunError
from jaxtrain.files import replacing
from jaxtrain.readers import json_object, open_file

_RESERVED = ("step", "time")
_LONGEST_LINE = 1 << 24
_LATEST = 1e11
"""Seconds since 1970, in some thousand years."""


class Journal:
    """An append-only file of metrics.

    A record is `{"step": int, "time": seconds since 1970, "train/loss": float, ...}`. JSON has no NaN or
    infinity: they are written as the strings `"NaN"`, `"Infinity"`, `"-Infinity"` and read back as floats.
    Two runs that log the same values write the same bytes apart from `time`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one record in one system call, so that it survives the death of this process.

        Raises RunError where the disk refuses it, ValueError for a metric named `step` or `time`.
        """
        record: dict[str, Any] = {"step": int(step), "time": time.time()}
        for name, value in metrics.items():
            if name in _RESERVED:
                raise ValueError(f"a metric cannot be named {name!r}: the journal's own fields are {_RESERVED}")
            record[name] = float(value)
        line = encode_record(record)
        try:
            if self._file is None:
                self._file = open_at_line(self.path)
            written = os.write(self._file, line)
        except OSError as error:
            raise RunError(f"{self.path}: cannot write metrics: {error.strerror}") from error
        if written != len(line):
            self.close()
            raise RunError(f"{self.path}: cannot write metrics: no space left on device")

    def records(self) -> list[dict[str, Any]]:
        """Every record in order; a last line that was torn by a crash is left out.

        Raises RunError for other damage.
        """
        if not self.path.exists():
            return []
        found = []
        with open_file(self.path) as file:
            for number, line in enumerate(complete_lines(file), 1):
                record = decode_record(line)
                if record is None:
                    raise RunError(f"{self.path}, line {number}: not a record of metrics")
                found.append(record)
        return found

    def truncate(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Replace the file by exactly these records, atomically: a kill leaves the old ones or the new.

        Not forced to disk: after a loss of power the records come from the checkpoint again.
        """
        self.close()
        with replacing(self.path, flush=False) as temporary, open(temporary, "wb") as file:
            file.writelines(encode_record(record) for record in records)

    def close(self) -> None:
        """Release the file; the next append opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def encode_record(record: Mapping[str, Any]) -> bytes:
    """One line of the journal, with its newline."""
    try:
        return (_encode(record) + "\n").encode()
    except ValueError:  # NaN or infinity
        safe = {
            key: _NAMES[str(value)] if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        return (_encode(safe) + "\n").encode()


def decode_record(line: bytes) -> dict[str, Any] | None:
    """The record in a line, or None where there is none."""
    try:
        record = json_object(line)
        if not isinstance(record["step"], int) or not 0 <= record["step"] < 1 << 53:
            return None
        record = {key: value if key == "step" else float(value) for key, value in record.items()}
        return record if 0 <= record.get("time", 0.0) < _LATEST else None
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode
_NAMES = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def complete_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of an open file from here on that end in a newline: a torn last line is not yet there.

    Nothing is read from one on that is longer than any that is written.
    """
    while (line := file.readline(_LONGEST_LINE)).endswith(b"\n"):
        yield line


def open_at_line(path: Path) -> int:
    """Open for appending, after cutting off a last line that a crash tore."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    size = os.fstat(file).st_size
    end = size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(file, end)
    return file
