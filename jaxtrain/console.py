"""What a person sees: the plan before training, one progress bar during it, the result and what to do next.

Where the output is not a terminal there are plain lines and no control characters. `NO_COLOR`, `TERM=dumb`
and narrow windows are respected. Nothing here knows of JAX.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

SHOWN_CLASSES = 10
REDRAW_SECONDS = 0.2
PLAIN_SECONDS = 10.0
"""Between two plain lines, where nothing was evaluated."""
PLAIN_EVALUATION_SECONDS = 1.0


@dataclass(frozen=True)
class Part:
    """A part of the model: its name, the shape it gives ("" if not known), its number of parameters."""

    name: str
    output: str
    parameters: int


@dataclass(frozen=True)
class Plan:
    """What is about to be trained."""

    title: str
    """One line: technique, model, data set."""
    parts: Sequence[Part]
    parameters: int
    trainable: int
    class_names: Sequence[str]
    images: Mapping[str, Sequence[int]]
    """Of each split, images of each class: `{"train": [...], "val": [...]}`. The test set stays shut."""
    settings: Mapping[str, str]
    """What else is worth knowing, in order and in words: devices, steps, optimizer, augmentation."""
    run_dir: Path
    look: str | None = None
    """The command or address that shows the run in MLflow."""


@dataclass(frozen=True)
class Result:
    """How a run ended. What is None is left out."""

    title: str
    steps: int
    seconds: float
    run_dir: Path
    images_per_second: float | None = None
    val_accuracy: float | None = None
    best_step: int | None = None
    test_accuracy: float | None = None
    test_loss: float | None = None
    looks: int | None = None
    """How many models were measured on this test set."""
    commands: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    """What to do next, and how: a command line, or its words, which are then quoted."""


def show_plan(plan: Plan, file: TextIO | None = None) -> None:
    """Print the plan to `file` (standard output)."""
    console = _console(file)
    console.print()
    console.print(_plain(plan.title), style="bold")
    console.print()
    _print_beside(console, _parts_table(plan), _classes_table(plan))
    console.print()
    trained = "all" if plan.trainable == plan.parameters else f"{plan.trainable:,} of them"
    facts = {"parameters": f"{plan.parameters:,}, {trained} trained"}
    total = {split: sum(counts) for split, counts in plan.images.items()}
    counts = next(iter(plan.images.values()), [])
    facts["images"] = ", ".join(f"{count:,} {split}" for split, count in total.items())
    facts["images"] += "; the test set stays shut until the end"
    if len(counts) > SHOWN_CLASSES:
        low, high = (
            min(range(len(counts)), key=counts.__getitem__),
            max(range(len(counts)), key=counts.__getitem__),
        )
        facts["class sizes"] = (
            f"{counts[low]:,} ({plan.class_names[low]}) to {counts[high]:,} ({plan.class_names[high]})"
        )
    facts |= plan.settings
    facts["run directory"] = str(plan.run_dir)
    facts["MLflow"] = plan.look or "off"
    _print_facts(console, facts, unbroken=("run directory", "MLflow"))
    console.print()


def show_result(result: Result, file: TextIO | None = None) -> None:
    """Print the result, and the commands that make sense next, to `file` (standard output)."""
    console = _console(file)
    facts = {}
    if result.test_accuracy is not None:
        facts["test accuracy"] = f"{result.test_accuracy:.2%}"
        if result.test_loss is not None:
            facts["test accuracy"] += f", loss {result.test_loss:.4f}"
        if result.looks is not None and result.looks > 1:
            facts["test accuracy"] += f" (model {result.looks} measured on this test set)"
    if result.val_accuracy is not None:
        where = f" at step {result.best_step:,}" if result.best_step is not None else ""
        facts["val accuracy"] = f"{result.val_accuracy:.2%}{where}"
    speed = f", {result.images_per_second:,.0f} images/s" if result.images_per_second is not None else ""
    facts["training"] = f"{result.steps:,} steps in {clock(result.seconds)}{speed}"
    facts["run directory"] = str(result.run_dir)
    console.print()
    console.print(f"Done: {_plain(result.title)}", style="bold")
    _print_facts(console, facts, unbroken=("run directory",))
    if result.commands:
        console.print()
        console.print("Next", style="bold")
        lines = {
            purpose: command if isinstance(command, str) else shlex.join(command)
            for purpose, command in result.commands.items()
        }
        _print_facts(console, lines, unbroken=tuple(lines))
    console.print()


def print_error(message: str, hint: str | None = None, file: TextIO | None = None, label: str = "error") -> None:
    """Print one line to `file` (standard error), and the hint, if any, in a second one."""
    console = _console(file or sys.stderr)
    console.print(f"{label}: ", style="bold red", end="")
    console.print(_plain(message), soft_wrap=True)
    if hint is not None:
        console.print(_plain(hint), soft_wrap=True)


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Have jaxtrain's log records printed as `warning: ...`, above a progress bar where there is one."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # sys.stderr is looked up each time: while there is a bar, it is what prints above it.
            print(f"{record.levelname.lower()}: {_plain(record.getMessage())}", file=sys.stderr)

    logger = logging.getLogger("jaxtrain")
    logger.handlers = [Handler()]
    logger.propagate = False
    logger.setLevel(level)


class Progress:
    """One line that says how training goes; plain lines now and then where the output is not a terminal.

    `update` costs about a microsecond when nothing is due to be drawn, so it may be called at every step.
    Output that fails (a closed window) is given up silently: it never costs a run.
    """

    def __init__(
        self, total_steps: int, steps_per_epoch: float, start_step: int = 0, file: TextIO | None = None
    ) -> None:
        self._total, self._per_epoch, self._step = total_steps, steps_per_epoch, start_step
        self._epochs = self._epoch(total_steps)
        self._file = file
        self._train: Mapping[str, float] = {}
        self._val: Mapping[str, float] = {}
        self._best: float | None = None
        self._started = time.monotonic()
        self._due = 0.0
        self._drawn: tuple[int, int] | None = None
        self._evaluations = 0
        self._pace: deque[tuple[float, int]] = deque(maxlen=150)
        self._live: Live | None = None
        self._console: Console

    def __enter__(self) -> Progress:
        self._console = _console(self._file)
        if self._console.is_terminal and not self._console.is_dumb_terminal:
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
            if self._drawn != (self._step, self._evaluations) and (self._train or self._val):
                self._draw()
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
        accuracy = metrics.get("val/accuracy")
        if accuracy is not None and (self._best is None or accuracy > self._best):
            self._best = accuracy
        if self._live is None:
            self._due = min(self._due, self._last_drawn + PLAIN_EVALUATION_SECONDS)
        if time.monotonic() >= self._due:
            self._draw()

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self._print(_plain(text))

    @property
    def _last_drawn(self) -> float:
        return self._pace[-1][0] if self._pace else -math.inf

    def _draw(self) -> None:
        now = time.monotonic()
        self._pace.append((now, self._step))
        self._drawn = (self._step, self._evaluations)
        if self._live is None:
            self._print("  ".join(text for _, text in self._fields()))
            self._due = now + PLAIN_SECONDS
            return
        live = self._live
        self._safely(lambda: live.update(self._line(), refresh=True))
        # On a slow terminal less often, so that drawing takes at most a twentieth of the time.
        ended = time.monotonic()
        self._due = ended + max(REDRAW_SECONDS, 19 * (ended - now))

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
        fields = [
            (0, f"epoch {self._epoch(self._step)}/{self._epochs}"),
            (5, f"{self._step:,}/{self._total:,}"),
        ]
        if not train and not val:
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
        elif "val/loss" in val:
            fields.append((3, f"val loss {val['val/loss']:.4f}"))
        if self._best is not None:
            fields.append((8, f"best {self._best:.2%}"))
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
        bar = ProgressBar(total=self._total, completed=self._step, width=max(min(room, 40), 1))
        line.add_row(texts[0], bar, *texts[1:])
        return line


def clock(seconds: float) -> str:
    """h:mm:ss.

    >>> clock(3725)
    '1:02:05'
    """
    if not math.isfinite(seconds):
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _console(file: TextIO | None) -> Console:
    """Takes text as it is, and writes control characters to terminals only, whatever FORCE_COLOR says."""
    from rich.console import Console

    file = file or sys.stdout
    terminal = file.isatty()
    width = None if terminal or "COLUMNS" in os.environ else 100
    encoding = (getattr(file, "encoding", None) or "utf-8").lower()
    if not encoding.startswith("utf") and hasattr(file, "reconfigure"):
        file.reconfigure(errors="replace")  # a class name must not stop a run
    return Console(
        file=file,
        force_terminal=terminal,
        force_jupyter=False,
        width=width,
        markup=False,
        emoji=False,
        highlight=False,
    )


def _plain(text: str) -> str:
    """One line, without control characters."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def _table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")


def _parts_table(plan: Plan) -> Table:
    shapes = any(part.output for part in plan.parts)
    table = _table()
    table.add_column("part")
    if shapes:
        table.add_column("output", justify="right")
    table.add_column("parameters", justify="right")
    for part in plan.parts:
        table.add_row(_plain(part.name), *([part.output] if shapes else []), f"{part.parameters:,}")
    return table


def _classes_table(plan: Plan) -> Table:
    table = _table()
    table.add_column("class")
    for split in plan.images:
        table.add_column(split, justify="right")
    for index, name in enumerate(plan.class_names[:SHOWN_CLASSES]):
        table.add_row(_plain(name), *(f"{counts[index]:,}" for counts in plan.images.values()))
    more = len(plan.class_names) - SHOWN_CLASSES
    if more > 0:
        rest = (sum(counts[SHOWN_CLASSES:]) for counts in plan.images.values())
        table.add_row(f"... {more:,} more", *(f"{count:,}" for count in rest))
    return table


def _print_beside(console: Console, left: Table, right: Table) -> None:
    """Side by side where there is room, else one below the other."""
    from rich.table import Table

    if console.measure(left).maximum + 4 + console.measure(right).maximum <= console.width:
        both = Table.grid(padding=(0, 4, 0, 0))
        both.add_row(left, right)
        console.print(both)
    else:
        console.print(left)
        console.print()
        console.print(right)


def _print_facts(console: Console, facts: Mapping[str, str], unbroken: Sequence[str] = ()) -> None:
    """Name and value, one each line; paths and commands stay in one piece, to be copied."""
    import textwrap

    space = max(map(len, facts)) + 4
    for name, value in facts.items():
        value, room = _plain(value), max(console.width - space, 20)
        lines = [value] if name in unbroken else textwrap.wrap(value, room, break_long_words=False)
        lines = lines or [""]
        console.print(f"  {name:<{space - 2}}{lines[0]}", soft_wrap=True)
        for line in lines[1:]:
            console.print(" " * space + line, soft_wrap=True)
