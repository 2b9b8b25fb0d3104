"""The command of scripts/sync_mlflow.py: what a store of MLflow missed of runs that have ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jaxtrain.cli.main import parse
from jaxtrain.errors import RunError, UserError
from jaxtrain.screen.console import print_line


@dataclass(frozen=True)
class SyncCommand:
    """Send MLflow the records, artifacts and models that it does not have yet, each once; harmless when repeated."""

    run_dirs: Positional[tuple[Annotated[Path, arg(metavar="RUN_DIR")], ...]]
    """Directories of runs that have ended; their evaluations on the test set are sent too."""
    uri: str | None = None
    """Another store than the one that the run was meant for, or the same with the password that is never saved."""
    timeout: float = 600.0
    """Seconds to try, for each run."""


def run(arguments: Sequence[str]) -> None:
    """Every run is tried. Raises UserError for a directory that is no run, RunError where something is lacking."""
    command = parse(SyncCommand, arguments)
    if not command.run_dirs:
        raise UserError("no run is named: give directories of runs that have ended, such as runs/PT/NAME")
    from jaxtrain.tracking import sync_run

    lacking = []
    # A run of the Benchmark experiment keeps what it sends in a folder of the run that was evaluated.
    parts = [part for run_dir in command.run_dirs for part in (run_dir, *run_dir.glob("benchmark/tracking/*"))]
    for run_dir in parts:
        report = sync_run(run_dir, command.uri, command.timeout)
        if report.problem is None:
            print_line(f"{run_dir}: everything is in {report.uri}")
        else:
            print_line(f"{run_dir}: {report.unsent_rows} records are not in {report.uri} yet ({report.problem})")
            lacking.append(str(run_dir))
    if lacking:
        raise RunError(f"MLflow still lacks part of {', '.join(lacking)}; the same command tries again")
