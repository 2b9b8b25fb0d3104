"""A run in Weights & Biases, online or offline as its own variables say (WANDB_MODE, WANDB_API_KEY, WANDB_PROJECT).

A row there is a record of the journal; the training step is its field `step`, the axis of all charts, and wandb's own
`_step` is the number of the row. Every row is written to a log in wandb's folder before it is sent. So the rows of the
log (offline), or those of them that the server counts (online), say what is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxtrain.errors import RunError
from jaxtrain.readers import open_file

_EXIT_CODES = {"FINISHED": 0, "FAILED": 1, "KILLED": 255}
_HEADER_BYTES = 7
_BLOCK = 32768
_LONGEST_RECORD = 1 << 26


class Row(NamedTuple):
    """What wandb's log says of one row."""

    number: int
    step: int
    metrics: tuple[str, ...]


class WandbRun:
    """One run, whose files are in the folder `wandb` of the run directory, or of WANDB_DIR."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._start: Mapping[str, Any] = {}
        self._run: Any = None
        self._next = 0

    def open(self, start: Mapping[str, Any]) -> dict[str, int]:
        """The last step of each metric that wandb has; online the server is asked."""
        import wandb

        self._start = start
        rows = {row.number: row for path in self._logs() for row in read_rows(path)}
        self._next = max(rows, default=-1) + 1
        if wandb.setup().settings.mode not in ("offline", "dryrun", "disabled"):
            self._begin()
            self._next = self._run.starting_step
        last: dict[str, int] = {}
        for row in rows.values():
            if row.number < self._next:
                last |= {name: max(row.step, last.get(name, -1)) for name in row.metrics}
        return last

    def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """One row."""
        if self._run is None:
            self._begin()
        self._run.log({**metrics, "step": step, "_timestamp": seconds}, step=self._next)
        self._next += 1

    def flush(self) -> None:
        """wandb has a process of its own, which writes without being asked."""

    def close(self, status: str, params: Mapping[str, str]) -> None:
        """Ends wandb's run; one without new rows was ended before."""
        if self._run is not None:
            self._run.config.update(dict(params), allow_val_change=True)
            self._run.finish(exit_code=_EXIT_CODES[status])
        self._run = None

    def abandon(self) -> None:
        """End it as it is; rows that are missing from the log are sent again."""
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=_EXIT_CODES["KILLED"])

    def _folder(self) -> Path:
        return Path(os.environ.get("WANDB_DIR") or self._run_dir)

    def _logs(self) -> list[Path]:
        key = self._start["run_key"]
        if (self._run_dir / "wandb").is_symlink():
            raise RunError(f"{self._run_dir / 'wandb'} is a link out of the run directory")
        found = self._folder().glob(f"wandb/*run-*-{key}/run-{key}.wandb")
        return sorted(path for path in found if not path.is_symlink() and not path.parent.is_symlink())

    def _begin(self) -> None:
        import wandb

        # A folder of wandb is named by the second; within the same one a second log would take the place of the first.
        while any(path.parent.stat().st_mtime > time.time() - 1.5 for path in self._logs()):
            time.sleep(0.1)
        start = self._start
        self._run = wandb.init(
            id=start["run_key"],
            resume="allow",
            name=start["run_name"],
            project=os.environ.get("WANDB_PROJECT", "jaxtrain"),
            job_type=start["experiment"],
            config=dict(start["params"]),
            dir=str(self._folder()),
            reinit="create_new",  # several runs may go on in one process
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")


def read_rows(path: Path) -> Iterator[Row]:
    """The rows in a log of wandb, up to a record that is torn or damaged."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    for data in _records(path):
        try:
            record = Record.FromString(data)
        except DecodeError:
            return
        if record.HasField("history"):
            values = {".".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            with contextlib.suppress(KeyError, ValueError, TypeError):  # not a row of ours
                names = tuple(name for name in values if name != "step" and not name.startswith("_"))
                yield Row(int(json.loads(values["_step"])), int(json.loads(values["step"])), names)


def _records(path: Path) -> Iterator[bytes]:
    """The log has LevelDB's form: blocks of 32 KiB, in which records lie whole (1) or as first (2), middle (3) and last
    (4) parts, each behind a checksum, its length and that number."""
    with open_file(path) as file:
        place, parts = len(file.read(_HEADER_BYTES)), b""
        while True:
            left = _BLOCK - place % _BLOCK
            if left < 7:
                place += len(file.read(left))
            head = file.read(7)
            if len(head) < 7:
                return
            _, length, kind = struct.unpack("<IHB", head)
            data = file.read(length)
            place += 7 + len(data)
            if len(data) < length or kind not in (1, 2, 3, 4) or len(parts) > _LONGEST_RECORD:
                return
            parts = data if kind in (1, 2) else parts + data
            if kind in (1, 4):
                yield parts
