"""`jaxtrain sync`: what a store of MLflow missed of runs that have ended."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from jaxtrain.cli.command import Command, Positional
from jaxtrain.errors import RunError


class Sync(Command):
    """Send MLflow the records, artifacts and models that it does not have yet, each once; harmless when repeated."""

    run_dirs: Annotated[tuple[Path, ...], Positional("RUN_DIR")]
    """Directories of runs that have ended, such as runs/pt/NAME; their evaluations on the test set are sent too."""
    uri: str | None = None
    """Another store than the one that the run was meant for, or the same with the password that is never saved."""
    timeout: float = 600.0
    """Seconds to try, for each run."""

    def run(self) -> None:
        """Every run is tried. Raises UserError for a directory that is no run, RunError where something is lacking."""
        from jaxtrain.screen.console import print_line
        from jaxtrain.tracking import sync_run

        lacking = []
        # A run of the Benchmark experiment keeps what it sends in a folder of the run that was evaluated.
        parts = [part for run_dir in self.run_dirs for part in (run_dir, *run_dir.glob("benchmark/tracking/*"))]
        for run_dir in parts:
            report = sync_run(run_dir, self.uri, self.timeout)
            if report.problem is None:
                print_line(f"{run_dir}: everything is in {report.uri}")
            else:
                print_line(f"{run_dir}: {report.unsent_rows} records are not in {report.uri} yet ({report.problem})")
                lacking.append(str(run_dir))
        if lacking:
            raise RunError(f"MLflow still lacks part of {', '.join(lacking)}; the same command tries again")
