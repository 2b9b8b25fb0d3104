"""What a person sees before and after training: the plan, the result and what to do next; errors and warnings.

Where the output is not a terminal there are plain lines and no control characters. `NO_COLOR`, `TERM=dumb`
and narrow windows are respected. Nothing here knows of JAX.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxtrain.escape import plain
from jaxtrain.redact import redact
from jaxtrain.screen.terminal import clock, open_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SHOWN_CLASSES = 10


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
    """Of each split, images of each class: `{"train": [...], "val": [...]}`. The test set is not read."""
    settings: Mapping[str, str]
    """What else is worth knowing, in order and in words: devices, steps, optimizer, augmentation."""
    run_dir: Path
    look: str | None = None
    """The command or address that shows the run in MLflow."""
    totals: Mapping[str, int] | None = None
    """Images in each split; None: the sum over classes, where each image has one."""


@dataclass(frozen=True)
class Result:
    """How a run ended. What is None is left out."""

    title: str
    steps: int
    seconds: float
    run_dir: Path
    images_per_second: float | None = None
    figure: str = "accuracy"
    """The metric by which the model is judged."""
    val_figure: float | None = None
    best_step: int | None = None
    test_figure: float | None = None
    test_loss: float | None = None
    test_interval: tuple[float, float] | None = None
    """Where the true figure is, at 95% confidence."""
    test_images: int | None = None
    looks: int | None = None
    """How many models were measured on this test set."""
    skipped: int = 0
    """Images that could not be read."""
    curves: Path | None = None
    """The picture of its learning curves."""
    commands: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    """What to do next, and how: a command line, or its words, which are then quoted."""


def show_plan(plan: Plan) -> None:
    """Print the plan."""
    console = open_console()
    console.print()
    console.print(plain(plan.title), style="bold")
    console.print()
    _print_beside(console, _parts_table(plan), _classes_table(plan))
    console.print()
    trained = "all" if plan.trainable == plan.parameters else f"{plan.trainable:,} of them"
    facts = {"parameters": f"{plan.parameters:,}, {trained} trained"}
    total = plan.totals or {split: sum(counts) for split, counts in plan.images.items()}
    counts = next(iter(plan.images.values()), [])
    facts["images"] = ", ".join(f"{count:,} {split}" for split, count in total.items())
    facts["images"] += "; the test set is not read until the end"
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


def show_result(result: Result) -> None:
    """Print the result, and the commands that make sense next."""
    console = open_console()
    facts = {}
    if result.test_figure is not None:
        told = f"{result.test_figure:.2%}"
        if result.test_loss is not None:
            told += f", loss {result.test_loss:.4f}"
        if result.looks is not None and result.looks > 1:
            told += f" (model {result.looks} measured on this test set)"
        facts[f"test {result.figure}"] = told
        if result.test_interval is not None and result.test_images is not None:
            low, high = result.test_interval
            facts["95% interval"] = f"{low:.2%} to {high:.2%}, from {result.test_images:,} test images"
    if result.val_figure is not None:
        where = f" at step {result.best_step:,}" if result.best_step is not None else ""
        facts[f"val {result.figure}"] = f"{result.val_figure:.2%}{where}"
    speed = f", {result.images_per_second:,.0f} images/s" if result.images_per_second else ""
    facts["training"] = f"{result.steps:,} steps in {clock(result.seconds)}{speed}"
    if result.skipped:
        facts["skipped"] = f"{result.skipped:,} unreadable images, listed in summary.json"
    if result.curves is not None:
        facts["curves"] = str(result.curves)
    facts["run directory"] = str(result.run_dir)
    console.print()
    console.print(f"Done: {plain(result.title)}", style="bold")
    _print_facts(console, facts, unbroken=("curves", "run directory"))
    if result.commands:
        console.print()
        console.print("Next", style="bold")
        lines = {
            purpose: command if isinstance(command, str) else shlex.join(command)
            for purpose, command in result.commands.items()
        }
        _print_facts(console, lines, unbroken=tuple(lines))
    console.print()


def print_error(message: str, label: str = "error") -> None:
    """Print one line to standard error, without secrets."""
    from rich.text import Text

    # In one write: a process that is ended in between would leave its last line without a word.
    line = Text.assemble((f"{label}: ", "bold red"), plain(redact(message)))
    open_console(sys.stderr).print(line, soft_wrap=True)


def print_line(text: str) -> None:
    """One line, however long."""
    open_console().print(plain(text), soft_wrap=True)


_READABLE = 8
"""Characters of a cell that stay on one line where there is room."""


def show_table(rows: Sequence[Mapping[str, str]], right: Collection[str] = ()) -> None:
    """Rows with the same columns; where they are too wide, those wrap that are not in `right`, the first one last."""
    if not rows:
        return
    table, first = _table(), next(iter(rows[0]))
    others = set(rows[0]) - {first, *right}
    console = open_console()
    widths = {column: max(len(row[column]) for row in rows) for column in rows[0]}
    needed = sum(min(_READABLE, width) if column in others else width + 2 for column, width in widths.items())
    for column, width in widths.items():
        whole = column in right or (column == first and bool(others))
        least = 16 if column == first and not whole else None
        if column in others and needed + 2 * len(others) <= console.width:
            least = min(_READABLE, width)
        side: Literal["left", "right"] = "right" if column in right else "left"
        table.add_column(column, justify=side, no_wrap=whole, overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*map(plain, row.values()))
    console.print(table)


def log_to_stderr() -> None:
    """Have jaxtrain's log records printed as `warning: ...`, above a progress bar where there is one."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # sys.stderr is looked up each time: while there is a bar, it is what prints above it.
            print(f"{record.levelname.lower()}: {plain(redact(record.getMessage()))}", file=sys.stderr)

    logger = logging.getLogger("jaxtrain")
    logger.handlers = [Handler()]
    logger.propagate = False
    logger.setLevel(logging.WARNING)


def _table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")


def _parts_table(plan: Plan) -> Table:
    shapes = any(part.output for part in plan.parts)
    table = _table()
    table.add_column("part")
    if shapes:
        table.add_column("output", justify="right")
    table.add_column("parameters", justify="right")
    for part in plan.parts:
        table.add_row(plain(part.name), *([part.output] if shapes else []), f"{part.parameters:,}")
    return table


def _classes_table(plan: Plan) -> Table:
    table = _table()
    table.add_column("class")
    for split in plan.images:
        table.add_column(split, justify="right")
    for index, name in enumerate(plan.class_names[:SHOWN_CLASSES]):
        table.add_row(plain(name), *(f"{counts[index]:,}" for counts in plan.images.values()))
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
        value, room = plain(value), max(console.width - space, 20)
        lines = [value] if name in unbroken else textwrap.wrap(value, room, break_long_words=False)
        lines = lines or [""]
        console.print(f"  {name:<{space - 2}}{lines[0]}", soft_wrap=True)
        for line in lines[1:]:
            console.print(" " * space + line, soft_wrap=True)
