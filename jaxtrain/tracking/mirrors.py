"""What else follows a run's journal besides MLflow: TensorBoard and Weights & Biases.

Each mirror of a run has a thread in the sidecar, so that one that hangs holds up neither the others nor MLflow. What it
has is read from what it wrote itself (event files, the log of wandb), never kept in a file of our own: a mirror that
was killed in the middle of a record goes on behind the last one that is whole, and each point (metric, step) is there
once.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pydantic import TypeAdapter

from jaxtrain.errors import DamagedError
from jaxtrain.files import replacing, try_lock
from jaxtrain.readers import read_bytes
from jaxtrain.redact import HIDDEN, redact
from jaxtrain.tracking.event_files import EventFiles
from jaxtrain.tracking.journal import complete_lines, decode_record
from jaxtrain.tracking.outbox import JOURNAL, mirror_file, read_requests
from jaxtrain.tracking.wandb_run import WandbRun

PUSH_SECONDS = 2.0
LONGEST_PAUSE = 60.0
FINISH_ATTEMPTS = 3
_MOST_BYTES = 1_000_000


class Mirror(Protocol):
    """One run in one mirror. Any call may raise; `open` is then called again."""

    def open(self, start: Mapping[str, Any]) -> dict[str, int]:
        """The last step of each metric that is there; `start` is the outbox's request of that name."""
        ...

    def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Add points of one step; `seconds` since 1970 are when it was logged."""
        ...

    def flush(self) -> None:
        """Nothing that was written is lost with this process from here on."""
        ...

    def close(self, status: str, params: Mapping[str, str]) -> None:
        """The run has ended: FINISHED, FAILED or KILLED. `params` are all of it, the late ones too."""
        ...

    def abandon(self) -> None:
        """Let go of everything after an error, as far as that goes."""
        ...


@dataclass
class MirrorState:
    """What the sidecar says of a mirror: the content of its file in the run directory."""

    session: str = ""
    """The tracker that was served last."""
    problem: str | None = None
    """Why it lacks something now, in one line."""
    over: bool = False
    """Whether nothing more is tried."""

    @classmethod
    def load(cls, run_dir: Path, name: str) -> MirrorState:
        """The saved state, or a new one where there is none or it is damaged."""
        try:
            return _STATES.validate_json(read_bytes(run_dir / mirror_file(name), _MOST_BYTES))
        except (OSError, ValueError, DamagedError):
            return cls()

    def save(self, run_dir: Path, name: str) -> None:
        """Replace the file atomically."""
        with replacing(run_dir / mirror_file(name), flush=False) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1))


_STATES = TypeAdapter(MirrorState)


def open_mirror(name: str, run_dir: Path, target: str) -> Mirror:
    """`target`: the folder above the event files, empty for the run's own."""
    return EventFiles(run_dir, target) if name == "tensorboard" else WandbRun(run_dir)


class Mirroring(threading.Thread):
    """Follows a journal until `end`. Never raises; all that it has to say is in a `MirrorState`."""

    def __init__(self, name: str, target: str, run_dir: Path, session: str) -> None:
        super().__init__(daemon=True)
        self.mirror, self.run_dir = name, run_dir
        self._mirror = open_mirror(name, run_dir, target)
        self._session = session
        self._saved: MirrorState | None = None
        self._ending = threading.Event()
        self._deadline = float("inf")
        self._journal: BinaryIO | None = None
        self._offset = 0
        self._sent: dict[str, int] | None = None

    def end(self, timeout: float) -> None:
        """The run has ended, as its outbox says: mirror what is left, within this many seconds."""
        self._deadline = time.monotonic() + timeout
        self._ending.set()

    def run(self) -> None:
        """The thread."""
        try:
            lock = self._locked()
            if lock is None:
                return self._report(f"{self.run_dir} is being mirrored by another process", over=True)
        except Exception as error:
            return self._report(_line(error), over=True)
        try:
            self._follow()
        finally:
            os.close(lock)

    def _locked(self) -> int | None:
        """The sidecar of a process that was killed may still be at work here."""
        path = self.run_dir / f"{mirror_file(self.mirror)}.lock"
        while (lock := try_lock(path)) is None and not (self._ending.is_set() and self._late()):
            time.sleep(0.1)
        return lock

    def _late(self) -> bool:
        return time.monotonic() > self._deadline

    def _follow(self) -> None:
        failures, over = 0, False
        while not over:
            ending = self._ending.is_set()  # before the journal is read: what was logged until then is seen
            try:
                self._push(ending)
                failures, over = 0, ending
                self._report(None, over=over)
            except Exception as error:
                failures += 1
                with contextlib.suppress(Exception):
                    self._mirror.abandon()
                self._sent = None
                over = ending and (failures >= FINISH_ATTEMPTS or self._late())
                self._report(_line(error), over=over)
            if not over:
                pause = PUSH_SECONDS if not failures else min(LONGEST_PAUSE, 0.5 * 2.0 ** min(failures, 10))
                time.sleep(min(pause, 0.5)) if ending else self._ending.wait(pause)

    def _push(self, ending: bool) -> None:
        """Send what is in the journal and not in the mirror."""
        requests = read_requests(self.run_dir)
        start = max(i for i, request in enumerate(requests) if request.get("do") == "start")
        if self._sent is None:
            self._sent, self._offset = self._mirror.open({**requests[start], **_first(requests)}), 0
        self._send_journal(self._sent)
        self._mirror.flush()
        if ending:
            said = [request["status"] for request in requests[start:] if request.get("do") == "status"]
            self._mirror.close((said or ["KILLED"])[-1], _params(requests[start:]))

    def _send_journal(self, sent: dict[str, int]) -> None:
        path = self.run_dir / JOURNAL
        if not path.exists():
            return
        if self._journal is None or os.fstat(self._journal.fileno()).st_ino != path.stat().st_ino:
            self._journal = open(path, "rb")  # noqa: SIM115 - it stays open, so that its replacement has another inode
            self._offset = 0
        self._journal.seek(self._offset)
        for line in complete_lines(self._journal):
            self._offset += len(line)
            record = decode_record(line)
            if record is None:
                continue
            step, seconds = record.pop("step"), record.pop("time", 0.0)
            new = {name: value for name, value in record.items() if step > sent.get(name, -1)}
            if new:
                self._mirror.write(step, seconds, new)
                sent.update(dict.fromkeys(new, step))

    def _report(self, problem: str | None, *, over: bool) -> None:
        state = MirrorState(self._session, problem, over)
        if state != self._saved:
            with contextlib.suppress(OSError):
                state.save(self.run_dir, self.mirror)
                self._saved = state


def _first(requests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What does not change when a run goes on."""
    first = next(request for request in requests if request.get("do") == "start")
    return {key: first[key] for key in ("run_key", "experiment", "run_name")}


def _params(requests: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {key: value for request in requests for key, value in request.get("params", {}).items()}


def _line(error: Exception) -> str:
    """What is wrong, in one line for a person, without the key to an account."""
    text = redact(str(error).strip().partition("\n")[0])[:300] or type(error).__name__
    key = os.environ.get("WANDB_API_KEY")
    return text.replace(key, HIDDEN) if key else text
