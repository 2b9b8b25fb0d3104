"""A bar for work that is counted in images: embedding, evaluating. Plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_SECONDS = 10.0
"""Between two plain lines."""


class Counting:
    """Shows how many of how many are done, how fast, and the time left; nothing where `quiet`."""

    def __init__(self, title: str, *, quiet: bool = False, file: TextIO | None = None) -> None:
        self._title, self._quiet = title, quiet
        self._file = file or sys.stdout
        self._bar: Progress | None = None
        self._started = self._due = time.monotonic()
        self._first: int | None = None
        self._seen = (0, 0)

    def __enter__(self) -> Counting:
        if not self._quiet and self._file.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, console=Console(file=self._file))
            self._bar.add_task(self._title, total=None, speed="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self._quiet and kind is None and self._seen[1]:
            self._line(*self._seen)

    def __call__(self, done: int, total: int) -> None:
        """So many of `total` are done."""
        if self._first is None:  # what was there before counts neither as work nor as speed
            self._first, self._started = done, time.monotonic()
        self._seen = done, total
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, speed=self._speed(done))
        elif not self._quiet and now >= self._due and done < total:
            self._due = now + PLAIN_SECONDS
            self._line(done, total)

    def _speed(self, done: int) -> str:
        seconds = time.monotonic() - self._started
        fresh = done - (self._first or 0)
        return f"{fresh / seconds:,.0f} img/s" if fresh and seconds > 0.1 else ""

    def _line(self, done: int, total: int) -> None:
        print(f"{self._title}  {done:,}/{total:,}  {self._speed(done)}".rstrip(), file=self._file, flush=True)
