"""Where a run comes from: its process, so that a dead run is recognised, and its code."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

from jaxtrain.readers import json_object

PROCESS_TAG = "jaxtrain.process"


def process_identity(pid: int) -> str:
    """JSON that names one process for ever: host, machine, boot, process namespace, number and start time."""
    import psutil

    return json.dumps(
        {
            "host": socket.gethostname(),
            "machine": _first_line(Path("/etc/machine-id")),
            "boot": _first_line(Path("/proc/sys/kernel/random/boot_id")),
            "namespace": _link(Path("/proc/self/ns/pid")),
            "pid": pid,
            "started": psutil.Process(pid).create_time(),
        }
    )


def process_is_gone(identity: str) -> bool:
    """Whether that process has certainly ended.

    False where it cannot be known: another host, another container.
    """
    import psutil

    try:
        run = json_object(identity)
        here = json.loads(process_identity(os.getpid()))
        if (run["host"], run["machine"]) != (here["host"], here["machine"]):
            return False
        if run["boot"] != here["boot"]:
            return bool(run["machine"])  # the same machine, booted since
        if run["namespace"] != here["namespace"]:
            return False
        try:
            process = psutil.Process(run["pid"])
            # The start time is derived from the clock at boot, which may be corrected by seconds.
            return abs(process.create_time() - run["started"]) > 5 or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
    except (ValueError, KeyError, TypeError, OverflowError):
        return False


def git_tags(folder: Path) -> dict[str, str]:
    """The commit of the repository around a folder and whether files differ from it; empty without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    tags = {"mlflow.source.git.commit": commit}
    if changes is not None:
        tags["jaxtrain.git_dirty"] = str(bool(changes)).lower()
    return tags


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
