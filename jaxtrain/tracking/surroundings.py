"""Where a run comes from: the command and machine, and what MLflow was told by whoever calls us: an active run, and
variables that MLflow's own functions would follow."""

from __future__ import annotations

import functools
import getpass
import logging
import os
import socket
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from jaxtrain.errors import UserError
from jaxtrain.redact import redact, redact_command
from jaxtrain.tracking.store import tracking_uri

_log = logging.getLogger("jaxtrain.tracking")


def parent_run(uri: str) -> str | None:
    """The id of the caller's active run in the store `uri`, under which ours is nested; None where there is none.

    What is not followed is said, once: a run in another store, and variables that name a run or an experiment.
    """
    mlflow = sys.modules.get("mlflow")  # who has an active run has imported it
    active = mlflow.active_run() if mlflow is not None else None
    _say_ignored(active is not None)
    if mlflow is None or active is None:
        return None
    theirs = mlflow.get_tracking_uri()
    try:
        same = tracking_uri(theirs) == uri
    except UserError:  # a store that is not for us
        same = False
    if not same:
        _say(f"the active MLflow run is in {redact(theirs)}, this one goes to {redact(uri)}: it is not nested")
    return str(active.info.run_id) if same else None


def _say_ignored(active: bool) -> None:
    if (run := os.environ.get("MLFLOW_RUN_ID")) and not active:
        _say(f"MLFLOW_RUN_ID={run} is ignored: every training is an MLflow run of its own")
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        if value := os.environ.get(name):
            experiments = "experiments are called FE, FT, PT and Benchmark"
            _say(f"{name}={value} is ignored: {experiments}; tracking.experiment_prefix tells yours apart")
            return


@functools.cache
def _say(text: str) -> None:
    _log.warning("MLflow: %s", text)


def own_tags() -> dict[str, str]:
    """Tags of every run. The environment is not among them: it holds secrets."""
    tags = {
        "mlflow.source.name": os.path.basename(sys.argv[0]) or "python",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "jaxtrain.command": redact_command([os.path.basename(sys.executable), *sys.argv]),
        "jaxtrain.host": socket.gethostname(),
        "jaxtrain.python": sys.version.split()[0],
    }
    with suppress(PackageNotFoundError):
        tags["jaxtrain.version"] = version("jaxtrain")
    return tags


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as containers have them
        return str(os.getuid())
