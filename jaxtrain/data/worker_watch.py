"""Input workers that die or hang: named, and ended, so that reading fails instead of waiting for ever."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children, current_process, resource_tracker
from typing import Any

from jaxtrain.errors import UserError

SECONDS = 60.0
"""For so long a worker may take over 32 images, its start included."""
_NAME = "grain-process-prefetch"
_OF_THE_PARENT = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
_UNGUARDED = 78
"""Exit code of a worker in which the script that started it has begun again."""
_GUARD = 'put what it does under `if __name__ == "__main__":`'


def refuse_in_worker() -> None:
    """To be called before anything is made or computed: ends an input worker whose script begins again while it starts.

    A worker process imports the script that started it, all of which runs again where it is not guarded. The parent
    says so (`WorkerWatch.notice`); of a process that is not one of our workers, UserError does.
    """
    process = current_process()
    # What multiprocessing itself goes by (spawn._check_not_importing_main), though only for starting processes.
    if not getattr(process, "_inheriting", False):
        return
    if process.name.startswith(_NAME):
        raise SystemExit(_UNGUARDED)
    raise UserError(f"the script runs again in a process that it started: {_GUARD}")


def _grain_workers() -> list[Any]:
    return sorted((p for p in active_children() if p.name.startswith(_NAME)), key=lambda p: p.pid)


class WorkerWatch:
    """Watches the worker processes that one stream starts after this; they deliver in turn.

    Seconds are counted, not read from a clock: a process that was stopped and continued is not taken for one that
    hangs.
    """

    def __init__(self) -> None:
        self._others = {process.pid for process in _grain_workers()}
        self._workers: list[Any] = []
        self._hung: Any = None
        self._asked = 0
        self._waiting = False
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="input-worker-watch", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for the next delivery."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
        self._asked += 1
        if self._asked == 1:
            self._find()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Around the first delivery, at which the workers start: they inherit that signals do not reach them.

        Ctrl-C and a scheduler's SIGTERM go to the whole group of processes and are the parent's to handle: it still
        needs the workers to come to a step that it can save, and ends them itself.
        """
        if self._asked:
            yield
            return
        resource_tracker.ensure_running()  # which would unblock signals if it were started in between
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_PARENT)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Around the end of the stream, which waits for its workers; nothing is watched afterwards."""
        self._waiting = True
        try:
            yield
        finally:
            self._over.set()

    def notice(self) -> str:
        """What is said when a worker has ended before its time."""
        instead = "data.workers=0 decodes in threads instead"
        if self._hung is not None:
            return (
                f"an input worker hangs: process {self._hung.pid} ({self._hung.name}) gave nothing for {SECONDS:.0f} "
                f"seconds and was ended. Does its disk answer? {instead}"
            )
        if any(process.exitcode == _UNGUARDED for process in self._workers):
            return f"the script runs again in every input worker: {_GUARD}; or {instead}"
        if any(process.exitcode == -signal.SIGBUS for process in self._workers):
            return f"input workers pass images through /dev/shm, which is full: make it larger; or {instead}"
        dead = [f"process {p.pid} ({p.name}), exit code {p.exitcode}" for p in self._workers if p.exitcode]
        return f"an input worker died: {'; '.join(dead) or 'at its start'}. Killed, or short of memory; {instead}"

    def _find(self) -> None:
        found = [process for process in _grain_workers() if process.pid not in self._others]
        self._workers = sorted({*self._workers, *found}, key=lambda process: process.pid)

    def _watch(self) -> None:
        seen, idle = -1, 0.0
        tick = min(0.2, SECONDS / 10)
        while not self._over.wait(tick):
            if not self._asked and self._waiting:
                self._find()  # those that end before the first delivery, too
            if not self._waiting or self._asked != seen:
                seen, idle = self._asked, 0.0
                continue
            idle += tick
            if idle >= SECONDS:
                if not self._workers:
                    self._find()
                if self._workers:
                    self._hung = self._workers[self._asked % len(self._workers)]
                for process in self._workers:  # others may hang too, and would not end by themselves
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
                return
