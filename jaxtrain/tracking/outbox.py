"""What a run wants MLflow to know besides metrics, kept in the run directory until MLflow has it.

`mlflow_outbox.jsonl` holds one request a line; training appends to it, and the sidecar reads it. `mlflow.json` says
how far MLflow has come; the sidecar writes it, and training reads it. Together with the journal they are enough to
send the whole run later, to the same store or to another.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, TypeAdapter

from jaxtrain.errors import DamagedError, UserError
from jaxtrain.files import replacing
from jaxtrain.readers import json_object, open_file, read_bytes
from jaxtrain.tracking.journal import complete_lines, open_at_line

JOURNAL = "metrics.jsonl"
OUTBOX = "mlflow_outbox.jsonl"
STATE = "mlflow.json"
LOCK = "mlflow.lock"
MIRRORS = ("tensorboard", "wandb")


@dataclass
class State:
    """What the sidecar says of a run directory: the content of `mlflow.json`. It holds no password."""

    uri: str = ""
    """The store, without its password."""
    experiment: str = ""
    experiment_id: str = ""
    run_id: str | None = None
    model_id: str | None = None
    process: str = ""
    """The process that trained last, as in the tag `jaxtrain.process`."""
    git: dict[str, str] = field(default_factory=dict)
    requests_done: NonNegativeInt = 0
    """So many lines of the outbox were seen to."""
    requests_refused: list[NonNegativeInt] = field(default_factory=list)
    """Lines among them that MLflow did not take; a later sync tries them again."""
    acknowledged: dict[str, int] = field(default_factory=dict)
    """The last step of each metric that MLflow has."""
    status: str = ""
    """The last status that MLflow has."""
    session: str = ""
    """The tracker that was served last; what follows is meant for it."""
    problem: str | None = None
    """Why MLflow lacks something now, in one line."""
    said: list[str] = field(default_factory=list)
    """What else a person should know."""
    over: bool = False
    """Whether nothing more is tried."""

    @classmethod
    def load(cls, run_dir: Path) -> State:
        """The saved state, or a new one where there is none or it is damaged (MLflow is then asked)."""
        try:
            return _STATES.validate_json(read_bytes(run_dir / STATE, _MOST_BYTES))
        except (OSError, ValueError, DamagedError):
            return cls()

    def save(self, run_dir: Path) -> None:
        """Replace the file atomically."""
        with replacing(run_dir / STATE, flush=False) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1))

    def forget(self) -> None:
        """The store has nothing of this run: everything is to be sent."""
        self.run_id = self.model_id = None
        self.requests_done, self.requests_refused = 0, []
        self.acknowledged, self.status = {}, ""


_STATES = TypeAdapter(State)
_MOST_BYTES = 64_000_000
_KEY = re.compile(r"[\w-]{1,64}")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][\w.-]*(?:\[[\w,.-]*\])?(?:==[\w.+!-]+)?")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _key(value: Any) -> Any:
    return _text(value) and _KEY.fullmatch(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _table(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_text, value.values()))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < 2**53


def _requirements(value: Any) -> bool:
    """Names and versions: lines such as `-r FILE` would be read from this machine."""
    return _texts(value) and all(map(_REQUIREMENT.fullmatch, value))


_FIELDS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "start": {
        **{"run_key": _key, "uri": _text, "time_ms": _whole},
        **{"experiment": _text, "run_name": _text, "params": _table, "tags": _table},
    },
    "artifact": {"path": _text, "folder": lambda value: value is None or _text(value)},
    "tag": {"key": _text, "value": _text},
    "params": {"params": _table},
    "input": {"name": _text, "source": _text, "digest": _text, "context": _text},
    "model": {
        **{"path": _text, "example": _text, "class_names": _texts, "step": _whole, "name": _key},
        "pip_requirements": _requirements,
    },
    "status": {"status": lambda value: value in ("FINISHED", "FAILED", "KILLED"), "time_ms": _whole},
}
"""What each request holds: the file may be of another version, damaged, or a stranger's."""
_MAY_BE_THERE = {"model": lambda value: value is None or _table(value), "register": _text, "mirrors": _table}


def _sound(request: Any) -> bool:
    fields = _FIELDS.get(str(request.get("do"))) if isinstance(request, dict) else None
    if fields is None or not all(key in request and check(request[key]) for key, check in fields.items()):
        return False
    return all(check(request[key]) for key, check in _MAY_BE_THERE.items() if key in request)


def append_request(run_dir: Path, request: Mapping[str, Any]) -> None:
    """Add one request as a line, in one system call. Raises OSError where it does not go in whole."""
    line = (json.dumps(request, ensure_ascii=False) + "\n").encode()
    descriptor = open_at_line(run_dir / OUTBOX)
    try:
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def read_requests(run_dir: Path) -> list[dict[str, Any]]:
    """All requests in order. An unsound line reads as `{}`, so that the others keep their numbers.

    Raises DamagedError for what is not an outbox at all.
    """
    path = run_dir / OUTBOX
    if not path.exists():
        return []
    requests = []
    with open_file(path, _MOST_BYTES) as file:
        for line in complete_lines(file):
            try:
                request = json_object(line)
            except ValueError:
                request = {}
            requests.append(request if _sound(request) else {})
    return requests


def mirror_file(name: str) -> str:
    """In which the sidecar says how far one of `MIRRORS` is."""
    return f"mirror_{name}.json"


def check_files(run_dir: Path) -> None:
    """Raises UserError where something else has the name of a file that tracking keeps in a run directory."""
    for path in (run_dir / name for name in (JOURNAL, OUTBOX, STATE, LOCK, *map(mirror_file, MIRRORS))):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UserError(f"{path} is not a regular file; move it away")


def of_run(root: Path, run_dir: Path, named: str) -> Path:
    """The file or folder that an outbox names, which must be inside the run's folder, as must all that is in it.

    Paths are taken from `run_dir`. Raises FileNotFoundError for what is gone, PermissionError for what is not the
    run's own: it would be sent to a server because a file says so.
    """
    path = Path(os.path.normpath(run_dir / named))
    if not path.exists():
        raise FileNotFoundError(f"{path} no longer exists")
    found = path.resolve()
    if not found.is_relative_to(root.resolve()):
        raise PermissionError(f"{path} is not inside the run directory")
    for part in [found, *(found.rglob("*") if found.is_dir() else ())]:
        if part.is_symlink() or not (part.is_dir() or part.is_file()):
            raise PermissionError(f"{part} is a link or a device, not a file of the run")
    return found


def first_start(run_dir: Path) -> dict[str, Any] | None:
    """The request that began the run, None where the directory holds no run for MLflow."""
    return next((request for request in read_requests(run_dir) if request.get("do") == "start"), None)
