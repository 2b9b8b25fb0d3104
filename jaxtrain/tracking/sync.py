"""What of a run that has ended is still missing is sent: to which store, to which mirrors."""

from __future__ import annotations

import shlex
from pathlib import Path

from jaxtrain.errors import UserError
from jaxtrain.tracking.outbox import MIRRORS, State, check_files, read_requests
from jaxtrain.tracking.store import named_here, tracking_uri
from jaxtrain.tracking.tracker import Tracker, TrackerReport


def store_to_sync(run_dir: Path, uri: str | None = None) -> str | None:
    """The store that a run is sent to: `uri`, else the one that it was meant for; None for one with mirrors alone.

    The one that it was meant for only where it is also that of MLFLOW_TRACKING_URI or, without it, of this folder.
    Raises UserError where there is nothing to send, and where only the run's own files name the store: they may be
    a stranger's, and the store would get what is in the environment to log in with.
    """
    check_files(run_dir)
    starts = [request for request in read_requests(run_dir) if request.get("do") == "start"]
    if not starts:
        raise UserError(f"{run_dir} is not the directory of a run that was meant for MLflow")
    stored = State.load(run_dir).uri or next((start["uri"] for start in starts if start["uri"]), "")
    if uri is None and not stored:
        return None
    if uri is None and not named_here(stored):
        raise UserError(f"{run_dir}: only its own files name the store {stored}; if you trust it, add --uri {stored}")
    return tracking_uri(uri or stored)


def mirrors_to_sync(run_dir: Path, tensorboard_dir: Path | None = None) -> dict[str, str]:
    """The mirrors that a run was meant for, each with its folder, as `wanted_mirrors` gives them.

    Raises UserError where only the run's own files name a folder outside of it: they may be a stranger's.
    """
    starts = [request for request in read_requests(run_dir) if request.get("do") == "start"]
    wanted = dict(starts[-1].get("mirrors", {})) if starts else {}
    folder = wanted.get("tensorboard")
    if folder and tensorboard_dir is None:
        told = f"{run_dir}: only its own files name the folder {folder} for TensorBoard"
        raise UserError(f"{told}; if you trust it, add --tensorboard-dir {shlex.quote(folder)}")
    if folder is not None and tensorboard_dir is not None:
        wanted["tensorboard"] = str(tensorboard_dir.absolute())
    return {name: target for name, target in wanted.items() if name in MIRRORS}


def sync_run(
    run_dir: Path,
    uri: str | None = None,
    timeout: float = 600.0,
    *,
    root: Path | None = None,
    tensorboard_dir: Path | None = None,
) -> TrackerReport:
    """Send what MLflow does not have yet of a run that has ended, with its status; harmless when repeated.

    `uri` is needed where the run was meant for another store than that of MLFLOW_TRACKING_URI (or, without it, of this
    folder), and may be another one. Only files inside `root` (default: `run_dir`) are sent. Mirrors get what they lack
    too; `tensorboard_dir` is that of the run, where it had one. Raises as `store_to_sync` and `mirrors_to_sync`.
    """
    store = store_to_sync(run_dir, uri)
    tracker = Tracker(run_dir, store, root, mirrors_to_sync(run_dir, tensorboard_dir))
    return tracker.resend(timeout)
