"""One training over several workers of a cluster: the driver starts them together, and again after a loss.

Each is a process of a run as `jaxtrain.training.processes` has it. One that is lost takes the others with it, since the
collective operations lack a partner: so all start again from the last checkpoint, fewer where a node has gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtrain.cluster.node import Ended, Job, address, carry_out, job
from jaxtrain.cluster.session import Lost, Session, shown
from jaxtrain.config import Config
from jaxtrain.errors import RunError, UserError
from jaxtrain.files import reason, try_lock, write_text
from jaxtrain.redact import redact
from jaxtrain.runs.directory import LOCK
from jaxtrain.training.signals import StopRequest

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 60.0
"""For the other workers to end after the first, and for Ray to find out that a node has gone."""
_CONNECT_SECONDS = 300
"""For all to load what they need; the driver notices those that end."""
_LAST_SECONDS = 40.0
_MOST_LOSSES = 5
"""In a row, with no checkpoint in between."""
_log = logging.getLogger(__name__)


@dataclass
class Group:
    """A run whose processes are workers on the nodes."""

    session: Session
    config: Config
    """As given, with a run directory."""
    need: Mapping[str, float]
    """What each worker gets of its node."""
    workers: int | None
    say: Callable[[str], None]
    stop: StopRequest
    words: str
    """Said where a signal ends it."""

    def train(self) -> None:
        """To the end. Raises UserError and RunError as the run itself would, and RunError for repeated losses."""
        assert self.config.run_dir is not None
        self._run_dir = self.config.run_dir.expanduser().absolute()
        count, room = self.workers or self.session.room(self.need), self.session.room(self.need)
        if count > room:
            raise UserError(
                f"--cluster.workers {count}: the cluster has room for {room} with {shown(self.need)} for each"
            )
        with self._folder() as folder:
            options = self.config.model_dump(mode="json", exclude_unset=True, exclude={"run_dir", "name"})
            write_text(folder / "options.yaml", json.dumps(options))
            self._devices = self._of_first_start(folder / "devices", count * (self.config.parallel.cpu_devices or 1))
            started = job((), folder, self.need.get("gpu", 0.0))
            losses, before = 0, self._saved()
            while lost := self._attempt(started, count):
                losses = losses + 1 if self._saved() == before else 1
                before = self._saved()
                if losses >= _MOST_LOSSES:
                    raise RunError(f"workers were lost {losses} times without a new checkpoint, the last one: {lost}")
                where = "the first step" if before is None else f"step {before}"
                _log.warning("a worker was lost (%s); all go on from %s", lost, where)
                self._wait_for_the_run()

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        """Beside the run directory: what this driver and its workers share. Raises UserError where there is another."""
        folder = self._run_dir.with_name(f".{self._run_dir.name}.cluster")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = try_lock(folder / "lock")
        except OSError as error:
            raise UserError(f"run directory {self._run_dir} cannot be used: {reason(error)}") from error
        if held is None:
            raise UserError(f"another process drives the training in {self._run_dir}: wait for it, or stop it")
        try:
            yield folder
        finally:
            if not self._run_dir.exists():
                shutil.rmtree(folder, ignore_errors=True)
            os.close(held)

    @contextlib.contextmanager
    def _places(self, most: int) -> Iterator[tuple[Any, int]]:
        """A group of places for workers, as many as there are, and their number; waits while others have them."""
        since, told = time.monotonic(), False

        def fitting() -> int:
            return min(most, max(self.session.room(self.need), 1))

        while True:
            count = fitting()
            with self.session.group(self.need, count) as group:
                # Ray finds out only after a while that a node has gone: its place is not waited for.
                while not (found := self.session.has_room(group, _POLL_SECONDS)):
                    self.stop.check(self.words)
                    if fitting() != count:
                        break
                    if not told and time.monotonic() - since > _GRACE_SECONDS:
                        told = True
                        _log.warning("waiting for room: %d x %s", count, shown(self.need))
                if found:
                    yield group, count
                    return

    def _attempt(self, started: Job, most: int) -> str | None:
        """Train with at most this many workers. Returns which was lost, if any was."""
        with self._places(most) as (group, count):
            try:
                coordinator = self.session.result(self.session.submit(address, need=self.need, place=(group, 0)))
            except Lost as error:
                return str(error)
            self.say(f"{count} of {most} workers train, each with {shown(self.need)}: {self._run_dir}/metrics.jsonl")
            jobs = [self._job(started, coordinator, count, number) for number in range(count)]
            tasks = [
                self.session.submit(carry_out, one, need=self.need, place=(group, number))
                for number, one in enumerate(jobs)
            ]
            self.stop.unsaved(True)  # the workers save when they are cancelled
            try:
                return self._outcome(self._ends(tasks))
            finally:
                self.session.cancel(tasks)
                self.stop.unsaved(False)

    def _job(self, started: Job, coordinator: str, count: int, number: int) -> Job:
        words = ["train", "--technique", self.config.technique, "--config", f"{started.shared}/options.yaml"]
        words += ["--run-dir", str(self._run_dir), "--quiet", "--helper"]
        if count > 1:
            words += ["--parallel.coordinator", coordinator, "--parallel.process_id", str(number)]
            seconds = max(self.config.parallel.connect_seconds, _CONNECT_SECONDS)
            words += ["--parallel.connect_seconds", str(seconds)]
        words += ["--parallel.num_processes", str(count)]
        if not {"gpu", "tpu"} & self.need.keys():
            words += ["--parallel.cpu_devices", str(max(self._devices // count, 1))]
        return Job(**{**vars(started), "words": tuple(words)})

    def _ends(self, tasks: list[Any]) -> list[Ended | Lost]:
        """How workers ended; those that do not after another one has failed are left out."""
        running, found, failed = list(tasks), list[Ended | Lost](), None
        while running:
            self.stop.check(self.words)
            for task in self.session.ended(running, _POLL_SECONDS):
                running.remove(task)
                try:
                    found.append(self.session.result(task))
                except Lost as error:
                    found.append(error)
            if failed is None and any(isinstance(one, Lost) or one.code for one in found):
                failed = time.monotonic()
            # With one lost the others cannot save; one that failed has told them, and they end by themselves.
            known = any(isinstance(one, Lost) or one.code < 0 for one in found)
            if failed is not None and (known or time.monotonic() - failed > _GRACE_SECONDS):
                break
        return found

    def _outcome(self, ends: list[Ended | Lost]) -> str | None:
        """Which worker was lost, if any. Raises what the run ended with."""
        for one in ends:
            if isinstance(one, Lost):
                return str(one)
            if one.code < 0 or one.code > 128:
                return f"ended by signal {abs(one.code) % 128} on {one.host}"
        failed = [one for one in ends if isinstance(one, Ended) and one.code]
        for one in failed:
            raise (UserError if one.code == UserError.exit_code else RunError)(f"{one.host}: {one.words}")
        return None

    def _wait_for_the_run(self) -> None:
        """Until no worker of the last attempt holds it: one whose parent was killed ends a little later."""
        deadline = time.monotonic() + _LAST_SECONDS
        while self._run_dir.is_dir() and time.monotonic() < deadline:
            if (held := try_lock(self._run_dir / LOCK)) is not None:
                os.close(held)
                return
            self.stop.check(self.words)
            time.sleep(_POLL_SECONDS)

    def _of_first_start(self, path: Path, devices: int) -> int:
        """How many devices of the CPU the run has in all: with as many, on whatever nodes, sums keep their bits."""
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text(encoding="utf-8"))
        write_text(path, str(devices))
        return devices

    def _saved(self) -> int | None:
        """Step of the last checkpoint."""
        with contextlib.suppress(OSError):
            names = [path.name for path in (self._run_dir / "checkpoints").iterdir()]
            return max((int(name) for name in names if name.isdigit()), default=None)
        return None


def check(config: Config) -> None:
    """Raises UserError for options that a training on a cluster cannot have."""
    if config.run_dir is None:
        raise UserError("--cluster.address: give --run-dir, by which the training goes on after a loss")
    names = ("coordinator", "num_processes", "process_id")
    if given := next((name for name in names if getattr(config.parallel, name) is not None), None):
        raise UserError(f"--parallel.{given}: on a cluster the processes are those of --cluster.workers")
    uri = config.tracking.uri
    if uri is not None and redact(uri) != uri:
        raise UserError("--tracking.uri holds a password, which nodes are not sent: set MLFLOW_TRACKING_URI on them")


__all__ = ["Group", "check"]
