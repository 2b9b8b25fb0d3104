"""Text on a terminal or in a file: one console for all output, and words made fit for it."""

from __future__ import annotations

import math
import os
import sys
from typing import IO, TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def clock(seconds: float) -> str:
    """h:mm:ss.

    >>> clock(3725)
    '1:02:05'
    """
    if not math.isfinite(seconds):
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def open_console(file: TextIO | None = None) -> Console:
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


def in_notebook(file: IO[str]) -> bool:
    """Whether text goes to a cell of a notebook, where a carriage return begins its line again."""
    return type(file).__module__.partition(".")[0] == "ipykernel"
