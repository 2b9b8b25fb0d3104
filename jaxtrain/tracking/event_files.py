"""A run in TensorBoard: event files, written by TensorBoard's own code and without TensorFlow.

Each process that serves the run adds a file, and none is written to again: readers stop at a record that a kill tore,
and go on in the next file.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from jaxtrain.errors import RunError
from jaxtrain.files import run_name
from jaxtrain.readers import open_file

OWN_FOLDER = "tensorboard"
_MARK = "events.out.tfevents."
_LONGEST_RECORD = 1 << 24


class EventFiles:
    """The event files of one run: in its own folder `tensorboard`, or in one below `target`."""

    def __init__(self, run_dir: Path, target: str) -> None:
        self._run_dir, self._target = run_dir, target
        self._folder, self._key = Path(), ""
        self._file: BinaryIO | None = None
        self._writer: Any = None

    def open(self, start: Mapping[str, Any]) -> dict[str, int]:
        """The last step of each tag in the files of this run."""
        self._key = start["run_key"]
        if self._target:
            self._folder = (
                Path(self._target) / run_name(start["experiment"]) / f"{run_name(start['run_name'])}-{self._key[:8]}"
            )
        else:
            self._folder = self._run_dir / OWN_FOLDER
            if self._folder.resolve().parent != self._run_dir.resolve():
                raise RunError(f"{self._folder} is a link out of the run directory")
        last: dict[str, int] = {}
        for path in self._files():
            for event in read_events(path):
                for value in event.summary.value:
                    last[value.tag] = max(event.step, last.get(value.tag, -1))
        return last

    def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """One event with a scalar (float32) of each metric."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._writer is None:
            self._begin()
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        event = Event(wall_time=seconds, step=step, summary=Summary(value=values))
        self._writer.write(event.SerializeToString())

    def flush(self) -> None:
        """Hand everything to the operating system."""
        if self._writer is not None:
            self._writer.flush()

    def close(self, status: str, params: Mapping[str, str]) -> None:
        """Event files know neither."""
        if self._writer is not None:
            self._writer.close()
        self._writer = self._file = None

    def abandon(self) -> None:
        """The file ends here, perhaps in the middle of a record."""
        with contextlib.suppress(OSError, ValueError):
            self.close("", {})
        self._writer = self._file = None

    def _files(self) -> list[Path]:
        return sorted(path for path in self._folder.glob(f"{_MARK}*.{self._key}") if not path.is_symlink())

    def _begin(self) -> None:
        """A new file, whose name sorts behind those that are there: in that order they are read."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        known = [
            int(found[1]) for path in self._files() if (found := re.match(rf"{re.escape(_MARK)}(\d+)\.", path.name))
        ]
        second = max([int(time.time()), *(number + 1 for number in known)])
        name = f"{_MARK}{second:010d}.{run_name(socket.gethostname())}.{os.getpid()}.{self._key}"
        self._file = open(self._folder / name, "xb")  # noqa: SIM115 - closed in `close`
        self._writer = RecordWriter(self._file)
        self._writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())


def read_events(path: Path) -> Iterator[Any]:
    """The events (`event_pb2.Event`) of a file, up to one that is torn or damaged."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    with open_file(path) as file:
        # The length, its checksum, the event, its checksum. A kill leaves the beginning of a record.
        while len(head := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", head[:8])
            if length > _LONGEST_RECORD or len(data := file.read(length + 4)) != length + 4:
                return
            try:
                yield Event.FromString(data[:length])
            except DecodeError:
                return
