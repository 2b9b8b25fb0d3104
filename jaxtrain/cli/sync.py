"""`jaxtrain sync`: what MLflow, TensorBoard and Weights & Biases missed of runs that have ended."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from jaxtrain.cli.command import Command, Positional
from jaxtrain.errors import RunError


class Sync(Command):
    """Send MLflow the records, artifacts and models that it does not have yet, each once; harmless when repeated.
    TensorBoard and Weights & Biases get what they lack of runs that had them."""

    run_dirs: Annotated[tuple[Path, ...], Positional("RUN_DIR")]
    """Directories of runs that have ended, such as runs/pt/NAME; their evaluations on the test set are sent too."""
    uri: str | None = None
    """The store, where it is not that of MLFLOW_TRACKING_URI or of this folder; needed where only the run's own files
    name it, which may be a stranger's."""
    tensorboard_dir: Path | None = None
    """The folder of tracking.tensorboard_dir, of runs that had one."""
    timeout: float = 600.0
    """Seconds to try, for each run."""

    def run(self) -> None:
        """Tries every run. Raises UserError for a directory that is not a run, RunError where something is missing."""
        from jaxtrain.screen.console import print_line
        from jaxtrain.tracking import sync_run
        from jaxtrain.tracking.mirroring import NAMES
        from jaxtrain.tracking.sync import mirrors_to_sync, store_to_sync

        lacking = []
        parts = [(part, root) for root in self.run_dirs for part in _parts(root)]
        stores = [store_to_sync(run_dir, self.uri) for run_dir, _ in parts]
        mirrors = [mirrors_to_sync(run_dir, self.tensorboard_dir) for run_dir, _ in parts]
        for (run_dir, root), store, wanted in zip(parts, stores, mirrors, strict=True):
            report = sync_run(run_dir, store, self.timeout, root=root, tensorboard_dir=self.tensorboard_dir)
            whole = [NAMES[name] for name in wanted if name not in report.mirrors]
            if report.uri is not None and report.problem is None:
                whole.insert(0, report.uri)
            elif report.uri is not None:
                print_line(f"{run_dir}: {report.unsent_rows} records are not in {report.uri} yet ({report.problem})")
            if whole:
                print_line(f"{run_dir}: everything is in {' and '.join(whole)}")
            if report.problem is not None or report.mirrors:
                lacking.append(str(run_dir))
        if lacking:
            raise RunError(f"not yet whole elsewhere: {', '.join(lacking)}; the same command tries again")


def _parts(root: Path) -> list[Path]:
    """What is sent of a directory: the run itself and its evaluations, or the run of a report or sweep."""
    from jaxtrain.tracking.outbox import OUTBOX

    below = [part for glob in _KEPT for part in sorted(root.glob(glob)) if (part / OUTBOX).is_file()]
    inside = [part for part in below if part.resolve().is_relative_to(root.resolve())]
    return inside if inside and not (root / OUTBOX).is_file() else [root, *inside]


_KEPT = ("tracking", "benchmark/tracking/*", "benchmark/*/tracking/*")
"""Where the runs of a sweep or report, and of the evaluations of a run, keep what they send."""
