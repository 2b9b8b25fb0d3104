"""Hang watch: where a run stands still, the stacks of all threads are written, and what can be saved is."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from jaxtrain.errors import JaxtrainError
from jaxtrain.training.signals import StopRequest

GENEROUS = 6.0
"""How much longer compiling and evaluating may take than a step."""
STOP_SECONDS = 5.0
"""For so long a batch is waited for after a signal; who sent it waits ten seconds, often."""
_log = logging.getLogger(__name__)


class HangWatch:
    """A thread that waits for the moments of the loop; use it in `with`, around training.

    It never ends the run, unless a signal asks for that: what looks like a hang may be a slow disk. It counts its own
    seconds rather than the clock's, so that a process that was stopped and continued is not taken for one that hangs.
    """

    def __init__(
        self,
        minutes: float,
        file: Path,
        stop: StopRequest | None = None,
        *,
        saves: bool = True,
        saved: Callable[[], None] = lambda: None,
    ) -> None:
        """After this many minutes without a step, stacks are appended to `file`; `stop` hears of signals.

        `saves`: whether the state may be saved from its thread; `saved` then waits until it is on the disk.
        """
        self._stop, self._saves, self._saved = stop, saves, saved
        self._limit = 60.0 * minutes
        self._file = file
        self._beats = 0
        self._slow = True  # the first step compiles
        self._over = threading.Event()
        self._saving = threading.Lock()
        self._save: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._watch, name="hang-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()

    def beat(self) -> None:
        """A step was made."""
        if self._stop is not None:
            self._stop.unsaved(True)
        self._beats += 1
        self._slow = False

    def evaluating(self) -> None:
        """What follows takes longer than a step."""
        self._beats += 1
        self._slow = True

    def waiting(self, save: Callable[[], None]) -> None:
        """For a batch: meanwhile the state is whole, and `save` may be called by the watch."""
        self._save = save if self._saves else None

    def arrived(self) -> None:
        """A save that has begun ends before the next step takes the state."""
        with self._saving:
            self._save = None

    def _watch(self) -> None:
        seen, idle, told = -1, 0.0, False
        tick = min(1.0, self._limit / 10)
        while not self._over.wait(tick):
            if self._beats != seen:
                seen, idle, told = self._beats, 0.0, False
                continue
            idle += tick
            if self._stop is not None and self._stop.requested is not None and idle >= STOP_SECONDS:
                self._leave(self._stop.requested)
            if not told and idle >= self._limit * (GENEROUS if self._slow else 1.0):
                told = True
                self._tell(idle / 60)

    def _leave(self, signum: int) -> None:
        """Saves and ends the process where a batch does not come: nobody can interrupt the thread that waits for it."""
        with self._saving:
            if self._save is None:
                return
            self._try(f"no batch came for {STOP_SECONDS:.0f} s; the state is saved: the same command continues")
            os._exit(128 + signum)

    def _tell(self, minutes: float) -> None:
        try:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(f"--- {datetime.now().isoformat(' ', 'seconds')}: no step for {minutes:.3g} minutes\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            _log.error("no step for %.3g minutes, and %s cannot be written: %s", minutes, self._file, error.strerror)
        else:
            _log.error("no step for %.3g minutes; what every thread does is written to %s", minutes, self._file)
        with self._saving:
            if self._save is None:
                _log.error("the state cannot be saved now; the last checkpoint is kept")
                return
            self._try("waiting for data; the state is saved: stop the run, and the same command continues")

    def _try(self, told: str) -> None:
        assert self._save is not None
        try:
            self._save()
            self._saved()
        except (JaxtrainError, OSError, RuntimeError) as error:
            _log.error("the state could not be saved: %s", error)
        else:
            _log.error("%s", told)
