"""The process beside training that talks to MLflow, so that training never does.

MLflow takes about 4 s of processor time to import and holds Python's lock while it does, as does every batch
that it sends: in a thread of the training process a fast step ran 12 times slower meanwhile. Here it costs
training nothing, can hang without harm, and is still there to set the run's status when the training process
is killed.

Commands come as JSON lines on standard input, events leave as JSON lines on standard output. The end of the
input, or the death of the parent, ends the process.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtrain.files import try_lock
from jaxtrain.redact import redact
from jaxtrain.tracking import store
from jaxtrain.tracking.outbox import LOCK
from jaxtrain.tracking.provenance import git_tags, process_identity
from jaxtrain.tracking.system import SystemMonitor
from jaxtrain.tracking.upload import Upload

UPLOAD_SECONDS = 2.0
SAMPLE_SECONDS = 10.0
LONGEST_PAUSE = 60.0
FINISH_ATTEMPTS = 3
ORPHAN_SECONDS = 5.0

Emit = Callable[..., None]


@dataclass
class Run:
    """One run directory that this process serves."""

    run_dir: str
    uri: str
    parent: int | None
    """The training process; None when a run that has ended is sent later."""
    system_metrics: bool
    emit: Emit
    upload: Upload | None = None
    lock: int | None = None
    monitor: SystemMonitor | None = None
    due: float = 0.0
    sample_due: float = 0.0
    failures: int = 0
    problem: str | None = None
    announced: bool = False
    deadline: float | None = None
    sent: bool = False
    identity: str | None = None
    git: Mapping[str, str] = field(default_factory=dict)

    def step(self) -> None:
        """Send what is due; after a failure wait longer and longer. Never raises."""
        now = time.monotonic()
        try:
            if self.monitor and self.upload and now >= self.sample_due and self.deadline is None:
                self.sample_due = now + SAMPLE_SECONDS
                self.upload.add_sample(self.monitor.sample())
            if now >= self.due and self._locked():
                assert self.upload is not None
                self.upload.connect()
                if not self.announced:
                    self.announced = True
                    self.emit(self.run_dir, "run", run_id=self.upload.state.run_id)
                self.upload.push()
                self._succeeded()
        except Exception as error:
            self._failed(error)

    def _locked(self) -> bool:
        """Whether the directory is ours; the sidecar of a killed process may still be at work in it."""
        if self.lock is None:
            self.lock = try_lock(Path(self.run_dir) / LOCK, self._no_locks)
            if self.lock is None:
                if self.parent is None:
                    raise store.StoreError(f"{self.run_dir} is being sent by another process")
                self.due = time.monotonic() + 0.2
                return False
            self.upload = Upload(Path(self.run_dir), self.uri, process=self.identity, git=self.git, say=self.warn)
            if self.system_metrics and self.parent is not None:
                self.monitor = SystemMonitor(self.parent)
        return True

    def _no_locks(self) -> None:
        """Metrics that MLflow never gets would be worse than two processes that send them."""
        self.warn(f"{self.run_dir}: this file system has no locks; let no other process send it to MLflow meanwhile")

    def _succeeded(self) -> None:
        if self.problem is not None:
            self.emit(self.run_dir, "info", text="MLflow answers again; every metric so far was sent")
        self.problem, self.failures, self.sent = None, 0, True
        self.due = time.monotonic() + UPLOAD_SECONDS

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        pause = min(LONGEST_PAUSE, 0.5 * 2.0 ** min(self.failures, 10))
        self.due = time.monotonic() + (min(pause, 2.0) if self.deadline is not None else pause)
        text = self._reason(error)
        if self.problem is None and self.failures > (1 if "locked" in text else 0):
            said = f"{text}; metrics are kept in {self.run_dir} and sent when MLflow answers"
            self.emit(self.run_dir, "away", text=said)
        self.problem = text

    def _reason(self, error: Exception) -> str:
        """One line for a person; MLflow's own lines on connections are long."""
        text = redact(str(error).strip().partition("\n")[0]) or type(error).__name__
        where = redact(self.uri)
        if isinstance(error, ImportError):
            return f"cannot import what MLflow needs for {where} ({text})"
        if code := re.search(r"too many (\d+) error responses", text):
            return f"{where} answers with error {code[1]}"
        if re.search(r"timed? ?out", text):
            return f"{where} does not answer in time"
        if re.search(r"NewConnectionError|NameResolution|Connection (?:aborted|refused|reset)", text):
            return f"no connection to {where}"
        return text[:300]

    def finish(self, timeout: float) -> None:
        """Ask for the end: everything is due at once, and `finished` is true soon."""
        self.deadline = time.monotonic() + timeout
        self.sent = False
        self.failures = 0
        self.due = 0.0

    def finished(self) -> bool:
        """Whether all was sent after `finish`, or there is no use in trying longer."""
        if self.deadline is None:
            return False
        return self.sent or self.failures >= FINISH_ATTEMPTS or time.monotonic() > self.deadline

    def close(self) -> None:
        """Report and give the directory back."""
        upload = self.upload
        if upload is not None and self.parent is None and self.problem is None:
            try:
                upload.end_if_dead()
            except Exception as error:
                self._failed(error)
        report = {
            "run_id": upload.state.run_id if upload else None,
            "unsent_rows": upload.unsent_rows() if upload else None,
            "refused": len(upload.state.requests_refused) if upload else 0,
        }
        self.release()  # before the word of it: who hears that word may want the directory at once
        self.emit(self.run_dir, "finished", problem=self.problem, **report)

    def release(self) -> None:
        """Give the directory back."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def orphaned(self) -> None:
        """The training process died without a word (kill -9): send what is left and say so."""
        try:
            if self._locked():
                assert self.upload is not None
                self.upload.push()
                if self.parent is not None and self.upload.state.status == "RUNNING":
                    self.upload.end("KILLED")
        except Exception:
            pass  # the next start, or a sync, marks the run
        self.release()

    def warn(self, text: str) -> None:
        """A line for the user."""
        self.emit(self.run_dir, "warning", text=text)


def serve(commands: queue.Queue[dict[str, Any] | None], emit: Emit, parent: int) -> None:
    """Serve runs until the commands end (None) or the parent is gone."""
    runs: dict[str, Run] = {}
    identity = process_identity(parent)
    while os.getppid() == parent:
        now = time.monotonic()
        wait = min([UPLOAD_SECONDS, *(max(0.02, run.due - now) for run in runs.values())])
        try:
            command = commands.get(timeout=wait)
            if command is None:
                break
            _obey(command, runs, emit, parent, identity)
            continue
        except queue.Empty:
            pass
        for key, run in list(runs.items()):
            run.step()
            if run.finished():
                run.close()
                del runs[key]
    _exit_after(ORPHAN_SECONDS)
    for run in runs.values():
        run.orphaned()


def _exit_after(seconds: float) -> None:
    """Whatever hangs: no process is left behind."""
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()


def _obey(command: Mapping[str, Any], runs: dict[str, Run], emit: Emit, parent: int, identity: str) -> None:
    run_dir = command["run_dir"]
    if command["do"] == "attach":
        if run_dir in runs:  # started again in the same process without a finish
            runs.pop(run_dir).release()
        run = Run(run_dir, command["uri"], parent if command["live"] else None, command["system_metrics"], emit)
        if command["live"]:
            run.identity = identity
            run.git = git_tags(Path(command["folder"]))
        runs[run_dir] = run
    elif command["do"] == "finish" and run_dir in runs:
        runs[run_dir].finish(command["timeout"])


def main() -> None:
    """The entry point of the process."""
    for ignored in (signal.SIGINT, signal.SIGTERM):  # meant for training, which says when to end
        signal.signal(ignored, signal.SIG_IGN)
    os.nice(5)
    parent = os.getppid()
    events = os.fdopen(os.dup(1), "w")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # whatever MLflow prints must not mix with the events
    os.dup2(silence, 2)
    logging.disable(logging.WARNING)
    commands: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def emit(run_dir: str, event: str, **fields: Any) -> None:
        try:
            events.write(json.dumps({"run_dir": run_dir, "event": event, **fields}) + "\n")
            events.flush()
        except OSError:
            pass  # nobody listens any more

    def listen() -> None:
        for line in sys.stdin:
            commands.put(json.loads(line))
        commands.put(None)
        _exit_after(ORPHAN_SECONDS)

    threading.Thread(target=listen, daemon=True).start()
    try:
        serve(commands, emit, parent)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
