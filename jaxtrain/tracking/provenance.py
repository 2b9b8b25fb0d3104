"""Where a run comes from: its process, so that a dead run is recognised, and its code."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from pathlib import Path

from jaxtrain.readers import json_object

PROCESS_TAG = "jaxtrain.process"


def process_identity(pid: int) -> str:
    """JSON that names one process for ever: host, machine, boot, process namespace, number and start time."""
    import psutil

    return json.dumps(
        {
            "host": socket.gethostname(),
            "machine": _text(Path("/etc/machine-id")),
            "boot": _text(Path("/proc/sys/kernel/random/boot_id")),
            "namespace": _link(Path("/proc/self/ns/pid")),
            "pid": pid,
            "started": psutil.Process(pid).create_time(),
            "ticks": _ticks(pid),
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
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            if run.get("ticks") is not None:
                return _ticks(run["pid"]) != run["ticks"]
            # The start time moves when the clock is set: by seconds it may be corrected.
            return abs(process.create_time() - run["started"]) > 5
        except psutil.NoSuchProcess:
            return True
    except (ValueError, KeyError, TypeError, OverflowError):
        return False


def _ticks(pid: int) -> int | None:
    """When a process started, in ticks since the machine did: no clock changes that. None where it cannot be known."""
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 else None


def git_tags(folder: Path) -> dict[str, str]:
    """Commit and branch of the repository around a folder; empty where there is none.

    Git is not asked: in an unpacked repository nearly every one of its commands runs what `.git/config` says.
    """
    repository = next((found for above in (folder, *folder.parents) if (found := _git_folder(above))), None)
    if repository is None:
        return {}
    common = repository / (_text(repository / "commondir") or ".")  # of a worktree
    branch = _text(repository / "HEAD").removeprefix("ref: ")
    if _COMMIT.fullmatch(branch):
        return {"mlflow.source.git.commit": branch}
    if not _BRANCH.fullmatch(branch) or ".." in branch:
        return {}
    packed = (line.split(" ", 1) for line in _text(common / "packed-refs", _MOST_PACKED).splitlines())
    commit = _text(common / branch) or next((words[0] for words in packed if words[1:] == [branch]), "")
    if not _COMMIT.fullmatch(commit):
        return {}
    return {"mlflow.source.git.commit": commit, "mlflow.source.git.branch": branch.removeprefix("refs/heads/")}


_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_BRANCH = re.compile(r"refs/heads/[^\x00-\x20~^:?*\\\x7f]{1,200}")
_MOST_PACKED = 50_000_000


def _git_folder(folder: Path) -> Path | None:
    """The repository whose files are in this very folder; that of a worktree or submodule is named by a file."""
    entry = folder / ".git"
    named = _text(entry)
    found = folder / named.removeprefix("gitdir: ") if named.startswith("gitdir: ") else entry
    return found if _text(found / "HEAD") else None


def _text(path: Path, most: int = 4096) -> str:
    """The text of a small regular file; of anything else "" (a pipe would be waited for)."""
    try:
        with open(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK), errors="replace") as file:
            return file.read(most).strip() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else ""
    except (OSError, ValueError):
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
