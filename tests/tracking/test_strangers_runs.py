"""Run directories that someone else packed: what their files name is not what this machine does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxtrain.cli.main import run as command
from jaxtrain.config import TrackingConfig
from jaxtrain.errors import UserError
from jaxtrain.files import write_text
from jaxtrain.tracking import Tracker, sync_run
from jaxtrain.tracking.journal import decode_record, open_at_line
from jaxtrain.tracking.outbox import State, append_request, read_requests
from jaxtrain.tracking.points import time_ms
from jaxtrain.tracking.provenance import process_identity
from jaxtrain.tracking.upload import Upload

TOKEN = "cAnArY7f3d91"


class Stranger:
    """A run directory with an outbox of requests, beside a secret file."""

    def __init__(self, folder: Path, uri: str, key: str = "k") -> None:
        self.dir, self.secret = folder / "run", folder / "id_rsa"
        self.dir.mkdir()
        self.secret.write_text("secret")
        start = {"experiment": "PT", "run_name": "name", "run_key": key, "uri": uri, "params": {}, "tags": {}}
        self.ask("start", **start, time_ms=5, process=process_identity(1))

    def ask(self, what: str, **fields: Any) -> None:
        append_request(self.dir, {"do": what, **fields})


@pytest.fixture
def stranger(tmp_path: Path, sqlite_uri: str) -> Stranger:
    return Stranger(tmp_path, sqlite_uri)


@pytest.mark.parametrize("live", [True, False])
def test_only_files_of_the_run_are_sent(tmp_path: Path, sqlite_uri: str, stranger: Stranger, live: bool) -> None:
    (stranger.dir / "link").symlink_to(stranger.secret)
    (stranger.dir / "folder").mkdir()
    (stranger.dir / "folder" / "link").symlink_to(stranger.secret)
    (stranger.dir / "out").symlink_to(tmp_path)
    os.mkfifo(stranger.dir / "pipe")
    (stranger.dir / "own.txt").write_text("mine")
    np.save(stranger.dir / "x.npy", np.zeros((1, 4, 4, 1), np.uint8))
    named = [
        str(stranger.secret),
        "../id_rsa",
        "link",
        "folder",
        "out/id_rsa",
        "out",
        "pipe",
        "/dev/zero",
        "..",
        "own.txt",
    ]
    for path in named:
        stranger.ask("artifact", path=path, folder=None)
    model = {"class_names": ["a"], "step": 0, "name": "model", "example": "x.npy"}
    stranger.ask("model", path="folder", pip_requirements=["jax==1"], **model)
    stranger.ask("model", path=str(tmp_path), pip_requirements=["jax==1"], **model)
    upload = Upload(stranger.dir, sqlite_uri, live=live)
    upload.push()
    assert [path.name for path in (tmp_path / "mlruns").rglob("*") if path.is_file()] == ["own.txt"]
    assert len(upload.state.said) == len(named) + 1
    assert upload.state.requests_done == len(named) + 3


def test_a_strangers_requirements_name_no_file_of_this_machine(stranger: Stranger) -> None:
    model = {"path": "m", "example": "x", "class_names": [], "step": 0, "name": "m"}
    for line in (f"-r {stranger.secret}", f"jax @ file://{stranger.secret}", "--index-url http://evil", "a\n-r b"):
        stranger.ask("model", pip_requirements=[line], **model)
    stranger.ask("model", pip_requirements=["jax==0.10.2", "jaxtrain", "x[a,b]==1.0.post1"], **model)
    assert [request.get("do") for request in read_requests(stranger.dir)] == ["start", None, None, None, None, "model"]


@pytest.mark.slow
def test_a_server_that_only_the_run_names_gets_nothing(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    run = Stranger(tmp_path, server.uri)
    with pytest.raises(UserError, match=rf"--uri {server.uri}"):
        sync_run(run.dir)
    with pytest.raises(UserError, match=rf"--uri {server.uri}"):
        command(["sync", str(run.dir)])
    State(uri=server.uri).save(run.dir)
    with pytest.raises(UserError, match=rf"--uri {server.uri}"):
        sync_run(run.dir)
    assert server.requests == server.logins == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    assert sync_run(run.dir).problem is None
    assert server.logins[0] == f"Bearer {TOKEN}"


def test_a_resumed_run_asks_who_else_names_its_server(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    data = tmp_path / "data.npz"
    np.savez(data, x_train=np.zeros((32, 4, 4), np.uint8), y_train=np.arange(32) % 2)
    (tmp_path / "run" / "config.yaml").write_text(
        f"technique: pt\nmodel: {{name: linear}}\ndata: {{name: 'npz:{data}'}}\ntracking: {{uri: '{server.uri}'}}\n"
    )
    with pytest.raises(UserError, match=r"only .*config.yaml names the MLflow server http"):
        command(["train", "--technique", "pt", "--run-dir", str(tmp_path / "run")])
    assert server.requests == []


def test_a_link_to_another_run_is_not_synced(tmp_path: Path, server: Any) -> None:
    (tmp_path / "private").mkdir()
    Stranger(tmp_path / "private", server.uri, "another")
    run = Stranger(tmp_path, server.uri)
    (run.dir / "benchmark" / "tracking").mkdir(parents=True)
    (run.dir / "benchmark" / "tracking" / "x").symlink_to(tmp_path / "private" / "run")
    command(["sync", str(run.dir), "--uri", server.uri])
    assert len(server.runs) == 1


def test_a_run_of_someone_else_is_not_written_to(tmp_path: Path, server: Any) -> None:
    (tmp_path / "mine").mkdir()
    mine = Upload(Stranger(tmp_path / "mine", server.uri).dir, server.uri, live=False)
    mine.push()
    run = Stranger(tmp_path, server.uri, "another")
    run.ask("tag", key="owned", value="1")
    State(uri=server.uri, run_id=mine.state.run_id).save(run.dir)
    Upload(run.dir, server.uri, live=False).push()
    assert "owned" not in server.runs[mine.state.run_id]["tags"]
    assert len(server.runs) == 2


def test_artifacts_of_an_experiment_stay_beside_the_database(
    tmp_path: Path, sqlite_uri: str, stranger: Stranger
) -> None:
    path = stranger.dir / "mlflow_outbox.jsonl"
    path.write_text(path.read_text().replace('"PT"', f'"{tmp_path}/elsewhere"'))
    stranger.ask("artifact", path="mlflow_outbox.jsonl", folder=None)
    Upload(stranger.dir, sqlite_uri, live=False).push()
    assert not (tmp_path / "elsewhere").exists()
    assert list((tmp_path / "mlruns").rglob("mlflow_outbox.jsonl"))


def test_no_link_is_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "bashrc"
    victim.write_text("mine")
    (tmp_path / ".mlflow.json.tmp").symlink_to(victim)
    State(run_id="x").save(tmp_path)
    (tmp_path / ".summary.json.tmp").symlink_to(victim)
    write_text(tmp_path / "summary.json", "theirs")
    (tmp_path / "metrics.jsonl").symlink_to(victim)
    with pytest.raises(OSError, match="links"):
        open_at_line(tmp_path / "metrics.jsonl")
    assert victim.read_text() == "mine"
    assert State.load(tmp_path).run_id == "x"


START = {"do": "start", "run_key": "k", "uri": "sqlite:///x.db", "time_ms": 1, "experiment": "PT", "run_name": "n"}
START |= {"params": {}, "tags": {}}


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"do": ["start"]}',
        '{"do": "start"}',
        json.dumps({**START, "run_key": "k' OR '1"}),
        json.dumps({**START, "params": ["a"]}),
        json.dumps({**START, "tags": {"a": 1}}),
        json.dumps({**START, "time_ms": "1"}),
        json.dumps({**START, "uri": None}),
        '{"do": "start", "time_ms": ' + "9" * 6000 + "}",
        "\x00\xff",
    ],
)
def test_an_unsound_outbox_is_no_run(tmp_path: Path, line: str) -> None:
    (tmp_path / "mlflow_outbox.jsonl").write_text(line + "\n", encoding="latin-1")
    with pytest.raises(UserError, match="not the directory of a run"):
        sync_run(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"acknowledged": []}', '{"requests_done": -1}', '{"said": 3}', "[" * 100_000, '{"run_id": 1}']
)
def test_an_unsound_state_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "mlflow.json").write_text(text)
    assert State.load(tmp_path) == State()


@pytest.mark.parametrize(
    "line",
    [b"[" * 100_000, b'{"step": 1e999}', b'{"step": 1, "a": 1' + b"0" * 400 + b"}", b'{"step": 1' + b"0" * 30 + b"}"],
)
def test_an_unsound_record_of_metrics_is_none(line: bytes) -> None:
    assert decode_record(line) is None


def test_impossible_times_are_sent_as_none() -> None:
    assert [time_ms({"time": time}) for time in (float("inf"), float("nan"), 1e300, -1.0, 2.5)] == [0, 0, 0, 0, 2500]


@pytest.mark.parametrize("name", ["mlflow_outbox.jsonl", "metrics.jsonl", "mlflow.json", "mlflow.lock"])
def test_a_folder_in_place_of_a_file_is_named_in_one_line(tmp_path: Path, server: Any, name: str) -> None:
    run = Stranger(tmp_path, server.uri)
    (run.dir / name).unlink(missing_ok=True)
    (run.dir / name / "x").mkdir(parents=True)
    names = {"experiment": "PT", "run_name": "x", "params": {}, "tags": {}}
    with pytest.raises(UserError, match=f"{name} is not a regular file"):
        Tracker.start(TrackingConfig(uri=server.uri), run_dir=run.dir, **names)
    with pytest.raises(UserError, match=f"{name} is not a regular file"):
        sync_run(run.dir, server.uri)
