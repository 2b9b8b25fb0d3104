"""What a run wants MLflow to know besides metrics, kept in the run directory until MLflow has it.

`mlflow_outbox.jsonl` holds one request a line; training appends to it, and the sidecar reads it. `mlflow.json` says
how far MLflow has come; the sidecar writes it, and training reads it. Together with the journal they are enough to
send the whole run later, to the same store or to another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jaxtrain.errors import DamagedError
from jaxtrain.files import replacing
from jaxtrain.readers import json_object, open_file, read_json
from jaxtrain.tracking.journal import complete_lines, open_at_line

JOURNAL = "metrics.jsonl"
OUTBOX = "mlflow_outbox.jsonl"
STATE = "mlflow.json"
LOCK = "mlflow.lock"


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
    requests_done: int = 0
    """So many lines of the outbox were seen to."""
    requests_refused: list[int] = field(default_factory=list)
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
            tree = read_json(run_dir / STATE, "state of tracking")
            known = {key: value for key, value in tree.items() if key in cls.__dataclass_fields__}
            return TypeAdapter(cls).validate_json(json.dumps(known), strict=True)
        except (OSError, DamagedError, ValidationError):
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


def append_request(run_dir: Path, request: Mapping[str, Any]) -> None:
    """Add one request as a line, in one system call."""
    line = (json.dumps(request, ensure_ascii=False) + "\n").encode()
    descriptor = open_at_line(run_dir / OUTBOX)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def read_requests(run_dir: Path) -> list[dict[str, Any]]:
    """All requests in order. A damaged line reads as `{}`, so that the others keep their numbers."""
    path = run_dir / OUTBOX
    if not path.exists():
        return []
    requests = []
    with open_file(path) as file:
        for line in complete_lines(file):
            try:
                requests.append(json_object(line))
            except ValueError:
                requests.append({})
    return requests


def first_start(run_dir: Path) -> dict[str, Any] | None:
    """The request that began the run, None where the directory holds no run for MLflow."""
    return next((request for request in read_requests(run_dir) if request.get("do") == "start"), None)
