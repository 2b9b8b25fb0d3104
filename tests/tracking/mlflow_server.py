"""A small MLflow server with faults on request, and SQLite stores copied from one that was made once."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest


class FakeServer:
    """The part of MLflow's REST interface that the tracker uses. It stores whatever it gets, doubles too.

    `fault` is what happens to requests: `None`, `error` (500), `hang` (no answer), `slow` (0.3 s), `lost`
    (the first `create` and the first batch of metrics are carried out, but answered by errors), `drop` (the
    connection is closed), `tardy` (an answer after 10 s), `half` (half of what was to be answered). Where `password` is
    set, a request with another token is refused.
    """

    def __init__(self, artifacts: Path) -> None:
        self.artifacts = artifacts
        self.fault: str | None = None
        self.password: str | None = None
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.logins: list[str | None] = []
        self._lost: set[str] = set()
        self._port = 0
        self._http: ThreadingHTTPServer | None = None
        self._release = threading.Event()
        self.start()

    @property
    def up(self) -> bool:
        return self._http is not None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"fake": self})
        self._release.clear()
        self._http = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._http.daemon_threads = True
        self._port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        if self._http is not None:
            self._release.set()
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    def points(self, run_id: str | None = None) -> Counter[tuple[str, int]]:
        """How often each (metric, step) was stored."""
        runs = [self.runs[run_id]] if run_id else list(self.runs.values())
        return Counter((m["key"], int(m["step"])) for run in runs for m in run["metrics"])

    # -- requests --------------------------------------------------------------

    def answer(self, path: str, query: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.requests.append(path)
        if self.fault == "error":
            return 500, {"error_code": "INTERNAL_ERROR", "message": "planted"}
        if self.fault == "hang":
            self._release.wait(60)
            return 500, {"error_code": "INTERNAL_ERROR", "message": "stopped"}
        if self.fault in ("slow", "tardy"):
            self._release.wait(0.3 if self.fault == "slow" else 10.0)
        status, body = getattr(self, "_" + path.replace("/", "_").replace("-", "_"), self._unknown)(query)
        stores = path == "runs/create" or (path == "runs/log-batch" and query.get("metrics"))
        if self.fault == "lost" and stores and path not in self._lost:
            self._lost.add(path)
            return 500, {"error_code": "INTERNAL_ERROR", "message": "planted after storing"}
        return status, body

    def _unknown(self, query: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": "not in the fake"}

    def _experiments_get_by_name(self, query: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        found = self.experiments.get(query["experiment_name"])
        if found is None:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}
        return 200, {"experiment": found}

    def _experiments_create(self, query: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        number = str(len(self.experiments) + 1)
        self.experiments[query["name"]] = {
            "experiment_id": number,
            "name": query["name"],
            "artifact_location": str(self.artifacts),
            "lifecycle_stage": "active",
            "tags": query.get("tags", []),
        }
        return 200, {"experiment_id": number}

    def _runs_create(self, query: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        run_id = f"run{len(self.runs)}"
        self.runs[run_id] = {
            "info": {
                "run_id": run_id,
                "run_uuid": run_id,
                "run_name": query.get("run_name", ""),
                "experiment_id": query["experiment_id"],
                "status": "RUNNING",
                "start_time": query["start_time"],
                "artifact_uri": str(self.artifacts / run_id),
                "lifecycle_stage": "active",
            },
            "metrics": [],
            "params": {},
            "tags": {tag["key"]: tag["value"] for tag in query.get("tags", [])},
        }
        return 200, {"run": self._shown(self.runs[run_id])}

    def _runs_get(self, query: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        run = self.runs.get(query["run_id"])
        if run is None:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}
        return 200, {"run": self._shown(run)}

    def _runs_search(self, query: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        wanted = query.get("filter", "")
        runs = [
            run
            for run in self.runs.values()
            if run["info"]["lifecycle_stage"] == "active"
            and (
                wanted == f"attributes.status = '{run['info']['status']}'"
                or any(wanted == f"tags.`{key}` = '{value}'" for key, value in run["tags"].items())
            )
        ]
        return 200, {"runs": [self._shown(run) for run in runs]}

    def _runs_log_batch(self, query: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        run = self.runs[query["run_id"]]
        metrics = query.get("metrics", [])
        if len(metrics) > 1000 or any(m["key"] == "refused" for m in metrics):
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "planted refusal"}
        run["metrics"] += metrics
        for param in query.get("params", []):
            if run["params"].setdefault(param["key"], param["value"]) != param["value"]:
                return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "parameters are immutable"}
        run["tags"].update({tag["key"]: tag["value"] for tag in query.get("tags", [])})
        return 200, {}

    def _runs_log_inputs(self, query: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 200, {}

    def _runs_set_tag(self, query: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.runs[query["run_id"]]["tags"][query["key"]] = query["value"]
        return 200, {}

    def _runs_update(self, query: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        run = self.runs[query["run_id"]]
        run["info"].update({key: query[key] for key in ("status", "end_time") if key in query})
        return 200, {"run_info": run["info"]}

    @staticmethod
    def _shown(run: dict[str, Any]) -> dict[str, Any]:
        latest: dict[str, dict[str, Any]] = {}
        for metric in run["metrics"]:
            if int(metric["step"]) >= int(latest.get(metric["key"], metric)["step"]):
                latest[metric["key"]] = metric
        pairs = {
            name: [{"key": key, "value": value} for key, value in run[name].items()] for name in ("params", "tags")
        }
        return {"info": run["info"], "data": {"metrics": list(latest.values()), **pairs}}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def _handle(self, query: dict[str, Any]) -> None:
        path = urlsplit(self.path).path.partition("/mlflow/")[2]
        self.fake.logins.append(self.headers["Authorization"])
        if self.fake.password is not None and self.headers["Authorization"] != f"Bearer {self.fake.password}":
            self._answer(401, {"error_code": "UNAUTHENTICATED", "message": "wrong password"})
            return
        if self.fake.fault == "drop" or not self.fake.up:
            self.close_connection = True
            return
        self._answer(*self.fake.answer(path, query))

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        if self.fake.fault == "half":
            payload = payload[: len(payload) // 2]
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)
        except OSError:
            pass

    def do_GET(self) -> None:
        self._handle({key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()})

    def do_POST(self) -> None:
        self._handle(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    fake = FakeServer(tmp_path / "server_artifacts")
    yield fake
    fake.stop()


@pytest.fixture(autouse=True)
def _quick_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def _database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from jaxtrain.tracking.store import connect

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_uri(tmp_path: Path, _database: Path) -> str:
    """A fresh SQLite store of this test's own."""
    shutil.copy(_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
