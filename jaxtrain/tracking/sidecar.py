"""The process beside training that talks to MLflow, so that training never does.

MLflow takes about 4 s of processor time to import and holds Python's lock while it does, as does every batch
that it sends: in a thread of the training process a fast step ran 12 times slower meanwhile. Here it costs
training nothing, can hang without harm, and is still there to set the run's status when the training process
is killed.

Commands come as JSON lines on standard input; all that it says is in the `mlflow.json` of each run. The end of the
input ends the process: it comes when the parent dies, too. Mirrors of a run have threads of their own here
(`mirrors.py`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtrain.files import try_lock
from jaxtrain.redact import redact
from jaxtrain.tracking.mirrors import Mirroring
from jaxtrain.tracking.outbox import LOCK, MIRRORS
from jaxtrain.tracking.provenance import git_tags
from jaxtrain.tracking.store import trouble
from jaxtrain.tracking.system import SystemMonitor
from jaxtrain.tracking.upload import Upload

UPLOAD_SECONDS = 2.0
SAMPLE_SECONDS = 10.0
LONGEST_PAUSE = 60.0
FINISH_ATTEMPTS = 3
ORPHAN_SECONDS = 5.0

Command = Mapping[str, Any]


class Run:
    """One run directory that this process serves."""

    def __init__(self, command: Command, parent: int) -> None:
        self.run_dir, self.uri = Path(command["run_dir"]), str(command["uri"])
        self.live: bool = command["live"]
        """Whether the run goes on in the parent; otherwise a run that has ended is sent later."""
        self.due = 0.0
        self._root = Path(command["root"])
        self._session: str = command["session"]
        self._git = git_tags(Path(command["folder"])) if self.live else {}
        self._sampled = parent if command["system_metrics"] else None
        self._lock: int | None = None
        self._upload: Upload | None = None
        self._monitor: SystemMonitor | None = None
        self._sample_due = 0.0
        self._failures = 0
        self._deadline: float | None = None
        self._sent = False

    def step(self) -> None:
        """Send what is due; after a failure wait longer and longer. Never raises."""
        now = time.monotonic()
        try:
            if self._monitor and self._upload and now >= self._sample_due and self._deadline is None:
                self._sample_due = now + SAMPLE_SECONDS
                self._upload.add_sample(self._monitor.sample())
            if now >= self.due:
                if upload := self._locked():
                    upload.push()
                    self._succeeded(upload)
                else:
                    self.due = now + 0.2
        except Exception as error:
            self._failed(error)

    def _locked(self) -> Upload | None:
        """The upload once the directory is ours; the sidecar of a killed process may still be at work in it."""
        if self._upload is None:
            warnings: list[str] = []
            # Metrics that MLflow never gets would be worse than two processes that send them.
            no_locks = (
                f"{self.run_dir}: this file system has no locks; let no other process send it to MLflow meanwhile"
            )
            self._lock = try_lock(self.run_dir / LOCK, lambda: warnings.append(no_locks))
            if self._lock is None:
                return None
            self._upload = Upload(
                self.run_dir, self.uri, live=self.live, root=self._root, session=self._session, git=self._git
            )
            for text in warnings:
                self._upload.say(text)
            if self._sampled is not None:
                self._monitor = SystemMonitor(self._sampled)
        return self._upload

    def _succeeded(self, upload: Upload) -> None:
        self._failures, self._sent = 0, True
        self.due = time.monotonic() + UPLOAD_SECONDS
        if upload.state.problem is not None:
            upload.report(None)

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        pause = min(LONGEST_PAUSE, 0.5 * 2.0 ** min(self._failures, 10))
        self.due = time.monotonic() + (min(pause, 2.0) if self._deadline is not None else pause)
        text = self._reason(error)
        # A database that is locked for a moment is nothing new.
        if self._upload is not None and self._failures > (1 if "locked" in text else 0):
            with contextlib.suppress(OSError):
                self._upload.report(text)

    def _reason(self, error: Exception) -> str:
        """One line for a person."""
        text = redact(str(error).strip().partition("\n")[0]) or type(error).__name__
        if isinstance(error, ImportError):
            return f"cannot import what MLflow needs for {redact(self.uri)} ({text})"
        return trouble(self.uri, text)

    def finish(self, timeout: float) -> None:
        """Ask for the end: everything is due at once, and `finished` is true soon."""
        self._deadline = time.monotonic() + timeout
        self._sent = False
        self._failures = 0
        self.due = 0.0

    def finished(self) -> bool:
        """Whether all was sent after `finish`, or it is no use trying longer."""
        if self._deadline is None:
            return False
        return self._sent or self._failures >= FINISH_ATTEMPTS or time.monotonic() > self._deadline

    def close(self) -> None:
        """Say how it ended, and give the directory back."""
        if self._upload is not None:
            try:
                if self._sent and not self.live:
                    self._upload.end_if_dead()
            except Exception as error:
                self._failed(error)
            late = None if self._sent else f"{redact(self.uri)} does not answer in time"
            with contextlib.suppress(OSError):
                self._upload.report(self._upload.state.problem or late, over=True)
        self.release()

    def release(self) -> None:
        """Give the directory back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def orphaned(self) -> None:
        """The training process died without a word (kill -9): send what is left and say so."""
        with contextlib.suppress(Exception):  # the next start, or a sync, marks the run
            if upload := self._locked():
                upload.push()
                if self.live and upload.state.status == "RUNNING":
                    upload.end("KILLED")
        self.release()


def serve(commands: queue.Queue[Command | None], parent: int) -> None:
    """Serve runs until the commands end (None), at the latest when the parent has."""
    runs: dict[str, Run] = {}
    mirrors: dict[str, list[Mirroring]] = {}
    while True:
        now = time.monotonic()
        wait = min([UPLOAD_SECONDS, *(max(0.02, run.due - now) for run in runs.values())])
        try:
            command = commands.get(timeout=wait)
            if command is None:
                break
            if command["do"] == "attach":
                _take_environment(command["environment"])
            _obey_for_mirrors(command, mirrors)
            _obey(command, runs, parent)
            continue
        except queue.Empty:
            pass
        for key, run in list(runs.items()):
            run.step()
            if run.finished():
                run.close()
                del runs[key]
    _exit_after(ORPHAN_SECONDS)
    threads = [thread for each in mirrors.values() for thread in each]
    for thread in threads:
        thread.end(ORPHAN_SECONDS)
    for run in runs.values():
        run.orphaned()
    for thread in threads:
        thread.join(ORPHAN_SECONDS)


def _exit_after(seconds: float) -> None:
    """Whatever hangs: no process is left behind."""
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()


def _take_environment(environment: Mapping[str, str]) -> None:
    """The variables of the parent as they are now; what MLflow and wandb log in with is among them."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def _obey(command: Command, runs: dict[str, Run], parent: int) -> None:
    run_dir = command["run_dir"]
    if command["do"] == "attach" and command["uri"] is not None:
        if run_dir in runs:  # started again in the same process without a finish
            runs.pop(run_dir).release()
        runs[run_dir] = Run(command, parent)
    elif command["do"] == "finish" and run_dir in runs:
        runs[run_dir].finish(command["timeout"])


def _obey_for_mirrors(command: Command, mirrors: dict[str, list[Mirroring]]) -> None:
    run_dir = command["run_dir"]
    for thread in mirrors.get(run_dir, ()):
        thread.end(command.get("timeout", 0.0))
    if command["do"] == "attach":
        wanted = [(name, target) for name, target in command["mirrors"].items() if name in MIRRORS]
        mirrors[run_dir] = [Mirroring(name, target, Path(run_dir), command["session"]) for name, target in wanted]
        for thread in mirrors[run_dir]:
            thread.start()
    for key in [key for key, threads in mirrors.items() if not any(thread.is_alive() for thread in threads)]:
        del mirrors[key]


def main() -> None:
    """The entry point of the process."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # meant for training, which says when to end
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.nice(5)
    parent = os.getppid()
    logging.disable(logging.WARNING)
    commands: queue.Queue[Command | None] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            commands.put(json.loads(line))
        commands.put(None)
        _exit_after(ORPHAN_SECONDS)

    threading.Thread(target=listen, daemon=True).start()
    try:
        serve(commands, parent)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
