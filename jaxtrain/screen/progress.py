"""One line that moves: how training goes, or how many images of a split are done.

In a notebook it moves by carriage returns. Where the output is neither, there are plain lines now and then, and no
control characters.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from jaxtrain.escape import plain
from jaxtrain.screen.terminal import clock, in_notebook, open_console

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

REDRAW_SECONDS = 0.2
PLAIN_SECONDS = 10.0
"""Between two plain lines, where nothing was evaluated."""
PLAIN_EVALUATION_SECONDS = 1.0


class Progress:
    """One line that says how training goes, or under a `title` how many images are done.

    Where the output is not a terminal there are plain lines now and then; where `quiet`, nothing.
    `update` costs about a microsecond when nothing is due to be drawn, so it may be called at every step.
    Output that fails (a closed window) is given up silently: it never costs a run.
    """

    def __init__(
        self,
        total_steps: int = 0,
        steps_per_epoch: float = 1.0,
        start_step: int = 0,
        best: float | None = None,
        *,
        title: str | None = None,
        quiet: bool = False,
        file: TextIO | None = None,
    ) -> None:
        """`best`: the highest validation accuracy (or mAP) before `start_step`."""
        self._total, self._per_epoch, self._step = total_steps, steps_per_epoch, start_step
        self._title, self._quiet, self._file = title, quiet, file
        self._train: Mapping[str, float] = {}
        self._val: Mapping[str, float] = {}
        self._best = best
        self._started = time.monotonic()
        self._due = 0.0
        self._start = start_step
        self._drawn = (start_step, 0)
        self._evaluations = 0
        self._pace: deque[tuple[float, int]] = deque(maxlen=150)
        self._live: Live | None = None
        self._notebook, self._written = False, 0
        self._console: Console

    def __enter__(self) -> Progress:
        self._console = open_console(self._file)
        self._console.quiet = self._quiet
        self._notebook = in_notebook(self._console.file)
        if not self._quiet and self._console.is_terminal and not self._console.is_dumb_terminal:
            from rich.live import Live

            live = Live(
                console=self._console,
                auto_refresh=False,
                redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),
            )
            self._live = live
            self._safely(live.start)
            # A process that is killed could not show a hidden cursor again.
            self._safely(lambda: self._console.show_cursor(True))
            self._safely(lambda: live.update(self._line(), refresh=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is None:
            if self._drawn != (self._step, self._evaluations):
                self._draw()
            self._end_line()
            return
        self._draw()
        self._safely(self._live.stop)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Training has come to `step`; `metrics` are named as in the journal, and kept where empty."""
        self._step = step
        if metrics:
            self._train = metrics
        if time.monotonic() >= self._due:
            self._draw()

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Validation metrics of `step`."""
        self._step, self._val = step, metrics
        self._evaluations += 1
        figure = metrics.get("val/accuracy", metrics.get("val/mAP"))
        if figure is not None and (self._best is None or figure > self._best):
            self._best = figure
        if self._live is None:
            self._due = min(self._due, self._last_drawn + PLAIN_EVALUATION_SECONDS)
        if time.monotonic() >= self._due:
            self._draw()

    def count(self, done: int, total: int) -> None:
        """So many of `total` images are done; those of the first call were there before."""
        if not self._total:
            self._total, self._start, self._started = total, done, time.monotonic()
        seconds, fresh = time.monotonic() - self._started, done - self._start
        self.update(done, {"images_per_second": fresh / seconds} if fresh and seconds > 0.1 else {})

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self._end_line()
        self._print(plain(text))

    @property
    def _last_drawn(self) -> float:
        return self._pace[-1][0] if self._pace else -math.inf

    def _draw(self) -> None:
        now = time.monotonic()
        self._pace.append((now, self._step))
        self._drawn = (self._step, self._evaluations)
        if self._live is None:
            text = "  ".join(text for _, text in self._fields())
            if self._notebook:
                self._move(text)
            else:
                self._print(text)
            self._due = now + (REDRAW_SECONDS if self._notebook else PLAIN_SECONDS)
            return
        live = self._live
        self._safely(lambda: live.update(self._line(), refresh=True))
        # On a slow terminal less often, so that drawing takes at most a twentieth of the time.
        ended = time.monotonic()
        self._due = ended + max(REDRAW_SECONDS, 19 * (ended - now))

    def _move(self, text: str) -> None:
        """The line of a notebook again, over what it was."""
        over, self._written = text.ljust(self._written), len(text)
        self._safely(lambda: self._console.file.write(f"\r{over}"))

    def _end_line(self) -> None:
        if self._written:
            self._written = 0
            self._print("")

    def _print(self, text: str) -> None:
        self._safely(lambda: self._console.print(text, soft_wrap=self._live is None))

    def _safely(self, write: Callable[[], object]) -> None:
        if self._console.quiet:
            return
        try:
            write()
            self._console.file.flush()
        except (OSError, SystemExit):  # rich turns a closed pipe into SystemExit
            self._console.quiet = True

    def _fields(self) -> list[tuple[int, str]]:
        """What is to be said, in order; where space is short, the highest numbers go first."""
        train, val = self._train, self._val
        fields = [(0, plain(self._title or f"epoch {self._epoch(self._step)}/{self._epoch(self._total)}"))]
        if self._total:
            fields.append((5, f"{self._step:,}/{self._total:,}"))
        if self._title is None and not train and not val:
            fields.append((1, "compiling"))
        if "train/loss" in train:
            fields.append((1, f"loss {train['train/loss']:.4f}"))
        if "train/accuracy" in train:
            fields.append((4, f"acc {train['train/accuracy']:.2%}"))
        if "learning_rate" in train:
            fields.append((7, f"lr {train['learning_rate']:.1e}"))
        if "images_per_second" in train:
            fields.append((6, f"{train['images_per_second']:,.0f} img/s"))
        if "val/accuracy" in val:
            fields.append((3, f"val acc {val['val/accuracy']:.2%}"))
        elif "val/mAP" in val:
            fields.append((3, f"val mAP {val['val/mAP']:.2%}"))
        elif "val/loss" in val:
            fields.append((3, f"val loss {val['val/loss']:.4f}"))
        if self._best is not None:
            fields.append((8, f"best {self._best:.2%}"))
        if self._total:
            fields.append((2, self._time()))
        return fields

    def _epoch(self, step: int) -> int:
        """The epoch, from 1, in which this step began."""
        return int((max(step, 1) - 1) / self._per_epoch + 1e-9) + 1

    def _time(self) -> str:
        if self._step >= self._total:
            return f"{clock(time.monotonic() - self._started)} in all"
        if len(self._pace) < 2 or self._pace[-1][1] == self._pace[0][1]:
            return "-:--:-- left"
        (first, start), (last, step) = self._pace[0], self._pace[-1]
        return f"{clock((self._total - step) * (last - first) / (step - start))} left"

    def _line(self) -> RenderableType:
        """The fields that fit, and a bar in what is left of the width."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        width = self._console.width
        least_bar = min(width // 8, 10)
        fields = self._fields()
        while len(fields) > 1 and sum(len(text) + 2 for _, text in fields) + least_bar > width:
            fields.remove(max(fields))
        texts = [text for _, text in fields]
        room = width - sum(len(text) + 2 for text in texts)
        line = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(len(texts) + 1):
            line.add_column(no_wrap=True, overflow="crop")
        bar = ProgressBar(total=self._total or None, completed=self._step, width=max(min(room, 40), 1))
        line.add_row(texts[0], bar, *texts[1:])
        return line
