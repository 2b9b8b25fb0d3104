from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtrain.errors import UserError
from jaxtrain.tracking import store
from jaxtrain.tracking.provenance import PROCESS_TAG, process_identity
from jaxtrain.tracking.tracker import look


def test_which_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store.tracking_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert store.tracking_uri(None) == "http://server:5000"
    assert store.tracking_uri("sqlite:///sub/x.db?timeout=9") == f"sqlite:///{tmp_path}/sub/x.db?timeout=9"
    assert store.tracking_uri("sqlite:////abs/x.db") == "sqlite:////abs/x.db"
    assert store.tracking_uri("postgresql+psycopg2://u:p@h/db") == "postgresql+psycopg2://u:p@h/db"
    assert store.tracking_uri("databricks") == "databricks"


@pytest.mark.parametrize(
    "name", ["a%20b", *(pytest.param(name, marks=pytest.mark.slow) for name in ("what?", "a#b", "a b", "ä;&%3F"))]
)
def test_a_store_lies_in_its_folder_whatever_that_is_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    uri = store.tracking_uri(None)
    assert store.tracking_uri(uri) == uri
    assert store.database_file(uri) == folder / "mlflow.db"
    assert look(uri).endswith(" sqlite:///mlflow.db")
    client = store.connect(uri)
    run = client.create_run(store.experiment_id(client, uri, "PT"))
    (folder / "x.txt").write_text("x")
    client.log_artifact(run.info.run_id, folder / "x.txt")
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["x.txt"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlflow.db.lock", "mlruns", "x.txt"}
    with sqlite3.connect(folder / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (1,)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///data/mlruns", r"migrate-filestore --source /data/mlruns --target sqlite:///mlflow.db"),
        ("./mlruns", r"migrate-filestore --source ./mlruns"),
        ("sqllite:///mlflow.db", r"did you mean 'sqlite'\?"),
        ("htpp://user:hunter2@host", r"'htpp://\*\*\*@host': did you mean 'http'\?"),
        ("sqlite:///:memory:", r"needs a file"),
    ],
)
def test_impossible_stores_are_refused_with_the_remedy(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        store.tracking_uri(uri)


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} is not a file"):
        store.tracking_uri(f"sqlite:///{tmp_path}")


def test_a_password_that_no_file_holds_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"the password of http://\*\*\*@h is not saved; give the URI, or MLFLOW_TRACK"):
        store.tracking_uri("http://***@h")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pass@h")
    assert store.tracking_uri("http://***@h") == "http://me:pass@h"
    with pytest.raises(UserError, match="is not saved"):
        store.tracking_uri("http://***@elsewhere")


def test_experiments_are_found_created_and_missed_when_deleted(sqlite_uri: str, tmp_path: Path) -> None:
    client = store.connect(sqlite_uri)
    number = store.experiment_id(client, sqlite_uri, "PT")
    assert store.experiment_id(client, sqlite_uri, "PT") == number
    assert client.get_experiment(number).artifact_location == (tmp_path / "mlruns" / "PT").as_uri()
    client.delete_experiment(number)
    with pytest.raises(store.StoreError, match=f"mlflow experiments restore --experiment-id {number}"):
        store.experiment_id(client, sqlite_uri, "PT")


def test_an_experiment_that_another_process_makes_first_is_taken(
    sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, looked = store.connect(sqlite_uri), list[str]()
    real = client.get_experiment_by_name
    number = client.create_experiment("PT")
    monkeypatch.setattr(
        client, "get_experiment_by_name", lambda name: looked.append(name) or (real(name) if looked[1:] else None)
    )
    assert store.experiment_id(client, sqlite_uri, "PT") == number
    assert looked == ["PT", "PT"]


def test_only_dead_runs_of_this_machine_are_closed(sqlite_uri: str) -> None:
    client = store.connect(sqlite_uri)
    number = store.experiment_id(client, sqlite_uri, "PT")
    alive = process_identity(os.getpid())
    dead = json.dumps({**json.loads(alive), "started": 1.0, "ticks": 1})
    elsewhere = json.dumps({**json.loads(dead), "host": "another"})
    tags = {"alive": alive, "dead": dead, "elsewhere": elsewhere, "resumed": dead, "foreign": ""}
    runs = {
        name: client.create_run(number, tags={PROCESS_TAG: tag} if tag else {}).info.run_id
        for name, tag in tags.items()
    }
    ended = client.create_run(number, tags={PROCESS_TAG: dead}).info.run_id
    client.set_terminated(ended, "FINISHED")
    assert store.close_stale_runs(client, number, keep=runs["resumed"]) == [runs["dead"]]
    status = {name: client.get_run(run_id).info.status for name, run_id in runs.items()}
    assert status == {
        "alive": "RUNNING",
        "dead": "KILLED",
        "elsewhere": "RUNNING",
        "resumed": "RUNNING",
        "foreign": "RUNNING",
    }
    assert client.get_run(ended).info.status == "FINISHED"


KILLED_IN_A_MIGRATION = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from jaxtrain.tracking import store

@event.listens_for(Engine, "before_cursor_execute")
def kill(connection, cursor, statement, *rest):
    if statement.strip() == "DROP TABLE experiments":
        os.kill(os.getpid(), signal.SIGKILL)

store.connect(sys.argv[1])
"""


@pytest.mark.slow
def test_a_kill_while_a_store_is_made_leaves_none_that_cannot_be_opened(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_A_MIGRATION, uri], check=False)
    assert killed.returncode == -signal.SIGKILL
    store.experiment_id(store.connect(uri), uri, "PT")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select count(*) from experiments where name = 'PT'").fetchone() == (1,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


@pytest.mark.slow
def test_a_full_disk_is_the_reason_each_time_and_over_when_there_is_space(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_960, before[1]))
    try:
        for _ in range(3):
            with pytest.raises(Exception, match="disk") as caught:
                store.connect(uri)
            assert f"{tmp_path}/mlflow.db cannot be written" in store.trouble(uri, str(caught.value).splitlines()[0])
            assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db.lock"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.connect(uri).search_experiments()
