"""How this program was started: a command that it prints is one that works in the same place."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"  # of a clone; an installed package has none
_SCRIPT_NAMES = {"sync": "sync_mlflow.py"}


def command(name: str = "", *arguments: object) -> list[str]:
    """The words of a command line: `jaxtrain NAME ...`, or the script of a clone where one was started."""
    started, python = Path(sys.argv[0]), _on_path("python") or sys.executable
    script = started.parent / _SCRIPT_NAMES.get(name, f"{name}.py")
    if started.resolve().parent == _SCRIPTS and script.is_file():
        words = [python, str(script)]
    else:
        # `.venv/bin/jaxtrain`, where its environment is not active
        called = str(started) if started.name == "jaxtrain" and started.is_file() else None
        program = _on_path("jaxtrain") or called
        words = [program] if program else [python, "-m", "jaxtrain"]
        words += [name] if name else []
    return [*words, *map(str, arguments)]


def _on_path(program: str) -> str | None:
    """Its bare name, where the shell finds the one that belongs to this Python."""
    found = shutil.which(program)
    return program if found and Path(found).parent == Path(sys.executable).parent else None
