"""The whole way: training process, sidecar process, store."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jaxtrain.config import TrackingConfig
from jaxtrain.errors import UserError
from jaxtrain.files import try_lock
from jaxtrain.tracking import Journal, Tracker, sync_run
from jaxtrain.tracking.outbox import State, first_start
from jaxtrain.tracking.process import sidecar
from jaxtrain.tracking.provenance import PROCESS_TAG, process_identity
from jaxtrain.tracking.tracker import look


def _start(run_dir: Path, uri: str | None, **options: Any) -> Tracker:
    given: dict[str, Any] = {"params": {"lr": 0.1}, "tags": {"technique": "pt"}, "history": (), **options}
    config = TrackingConfig(uri=uri, enabled=uri is not None, system_metrics=False)
    return Tracker.start(config, run_dir=run_dir, experiment="PT", run_name="trial", **given)


def _rows(database: Path) -> list[tuple[str, int, int]]:
    with sqlite3.connect(database) as connection:
        return connection.execute("select key, step, count(*) from metrics group by key, step").fetchall()


def _wait_for(what: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_run_from_start_to_finish(tmp_path: Path, sqlite_uri: str) -> None:
    run_dir = tmp_path / "run"
    tracker = _start(run_dir, sqlite_uri)
    for step in range(500):
        tracker.log(step, {"train/loss": 1.0 / (step + 1)})
    (run_dir / "config.yaml").write_text("a: 1")
    tracker.artifact(run_dir / "config.yaml")
    tracker.tag("note", "hello")
    tracker.params({"chosen_head.C": 2.5, "lr": 0.1})
    report = tracker.finish("FINISHED", timeout=120)
    assert (report.unsent_rows, report.problem) == (0, None)
    assert State.load(run_dir).requests_refused == []
    started = first_start(run_dir)
    assert started is not None
    assert started["process"] == process_identity(os.getpid())
    assert report.run_id == tracker.run_id is not None
    assert tracker.finish("FAILED") is report
    assert report.uri is not None
    assert look(report.uri).startswith("mlflow server --backend-store-uri sqlite:///")
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        (run,) = connection.execute("select run_uuid, status, name from runs").fetchall()
        tags = dict(connection.execute("select key, value from tags").fetchall())
        params = dict(connection.execute("select key, value from params").fetchall())
    assert params == {"lr": "0.1", "chosen_head.C": "2.5"}
    assert "jaxtrain.param_drift" not in tags
    assert run == (report.run_id, "FINISHED", "trial")
    assert tags["technique"] == "pt"
    assert tags["note"] == "hello"
    assert json.loads(tags[PROCESS_TAG])["pid"] == os.getpid()
    assert [(key, count) for key, _, count in _rows(tmp_path / "mlflow.db")] == [("train/loss", 1)] * 500
    assert (tmp_path / "mlruns" / "PT" / report.run_id / "artifacts" / "config.yaml").read_text() == "a: 1"


def test_without_tracking_there_is_a_journal_and_no_process(tmp_path: Path) -> None:
    tracker = _start(tmp_path, None)
    tracker.log(1, {"loss": 0.5})
    tracker.artifact(tmp_path / "nothing")
    tracker.tag("a", "b")
    assert tracker.wait_run_id(5.0) is None
    report = tracker.finish("FINISHED")
    assert (report.uri, report.run_id, report.unsent_rows) == (None, None, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_journal_is_cut_back_to_the_history(tmp_path: Path) -> None:
    tracker = _start(tmp_path, None)
    for step in range(5):
        tracker.log(step, {"loss": float(step)})
    history = tracker.journal.records()[:3]
    _start(tmp_path, None, history=history)
    assert Journal(tmp_path / "metrics.jsonl").records() == history


def test_an_impossible_store_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="migrate-filestore"):
        _start(tmp_path / "run", "file:///mlruns")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("error", "answers with error 500"),
        ("drop", "no connection to"),
        ("hang", "does not answer in time"),
        ("refuse", "no connection to"),
    ],
)
def test_a_store_that_is_away_costs_nothing_and_gets_everything_later(
    tmp_path: Path, server: Any, fault: str, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    server.fault = fault
    if fault == "refuse":
        server.stop()
    with caplog.at_level(logging.WARNING, "jaxtrain.tracking"):
        tracker = _start(run_dir, server.uri)
        for step in range(100):
            tracker.log(step, {"train/loss": 1.0})
        report = tracker.finish("FINISHED", timeout=20)
    assert (report.unsent_rows, report.run_id) == (100, None)
    assert problem in str(report.problem)
    assert len([r for r in caplog.records if "metrics are kept in" in r.message]) == 1
    assert len(tracker.journal.records()) == 100
    server.stop()
    server.start()
    server.fault = None
    report = sync_run(run_dir, server.uri)
    assert (report.unsent_rows, report.problem) == (0, None)
    assert set(server.points().values()) == {1}
    assert len(server.points()) == 100
    (stored,) = server.runs.values()
    assert stored["info"]["status"] == "FINISHED"
    before = list(server.requests)
    assert sync_run(run_dir, server.uri).unsent_rows == 0
    assert len(server.points()) == 100
    assert "runs/create" not in server.requests[len(before) :]


@pytest.mark.slow
def test_a_slow_store_and_one_that_dies_and_comes_back(tmp_path: Path, server: Any) -> None:
    tracker = _start(tmp_path / "run", server.uri)
    tracker.log(0, {"train/loss": 1.0})
    assert tracker.wait_run_id(60) == "run0"
    _wait_for(lambda: server.points())
    server.stop()
    tracker.log(1, {"train/loss": 1.0})
    time.sleep(0.3)
    server.fault = "slow"
    server.start()
    tracker.log(2, {"train/loss": 1.0})
    report = tracker.finish("FINISHED", timeout=60)
    assert (report.unsent_rows, report.problem) == (0, None)
    assert server.points() == {("train/loss", 0): 1, ("train/loss", 1): 1, ("train/loss", 2): 1}


@pytest.mark.slow
def test_nobody_waits_for_a_store_that_is_away(tmp_path: Path, server: Any) -> None:
    server.stop()
    tracker = _start(tmp_path / "run", server.uri)
    started = time.monotonic()
    assert tracker.wait_run_id(500) is None
    assert time.monotonic() - started < 250
    assert tracker.finish("FINISHED", timeout=60).problem is not None


@pytest.mark.slow
def test_a_sidecar_that_is_killed_is_replaced_at_the_end(tmp_path: Path, server: Any) -> None:
    tracker = _start(tmp_path / "run", server.uri)
    tracker.log(0, {"train/loss": 1.0})
    assert tracker.wait_run_id(60) == "run0"
    process = sidecar()._process
    process.kill()
    process.wait()
    tracker.log(1, {"train/loss": 1.0})
    report = tracker.finish("KILLED", timeout=60)
    assert (report.run_id, report.unsent_rows, report.problem) == ("run0", 0, None)
    assert server.runs["run0"]["info"]["status"] == "KILLED"
    assert server.points() == {("train/loss", 0): 1, ("train/loss", 1): 1}


@pytest.mark.slow
def test_a_login_counts_from_the_next_run_on(tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook logs in after its first run, and out again; one process follows all of its runs."""
    heard: list[set[str | None]] = []
    for token in (None, "first", "second", None):
        monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
        if token is not None:
            monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
        server.logins.clear()
        names = {"experiment": "PT", "run_name": "x", "params": {}, "tags": {}}
        run_dir = tmp_path / str(len(heard))
        tracker = Tracker.start(TrackingConfig(uri=server.uri), run_dir=run_dir, **names)
        assert tracker.finish("FINISHED").problem is None
        heard.append(set(server.logins))
    assert heard == [{None}, {"Bearer first"}, {"Bearer second"}, {None}]


@pytest.mark.slow
def test_a_second_start_in_one_process_takes_over(tmp_path: Path, server: Any) -> None:
    run_dir = tmp_path / "run"
    first = _start(run_dir, server.uri)
    first.log(0, {"train/loss": 1.0})
    first.wait_run_id(60)
    second = _start(run_dir, server.uri, history=first.journal.records())
    second.log(1, {"train/loss": 1.0})
    assert second.finish("FINISHED", timeout=60).unsent_rows == 0
    assert first.finish("FAILED", timeout=1).run_id == "run0"
    assert server.points() == {("train/loss", 0): 1, ("train/loss", 1): 1}
    assert len(server.runs) == 1


def test_what_mlflow_does_not_take_is_logged_once(
    tmp_path: Path, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "jaxtrain.tracking"):
        tracker = _start(tmp_path / "run", server.uri)
        tracker.artifact(tmp_path / "gone")
        report = tracker.finish("FINISHED", timeout=60)
    assert (report.run_id, report.problem) == ("run0", None)
    assert len([r for r in caplog.records if f"{tmp_path / 'gone'} no longer exists" in r.message]) == 1


def test_what_was_said_to_an_earlier_attempt_is_not_taken_for_this_one(tmp_path: Path, server: Any) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    State(uri=server.uri, session="earlier", problem="no connection", over=True).save(run_dir)
    tracker = _start(run_dir, server.uri)
    assert tracker.wait_run_id(60) == "run0"
    assert tracker.finish("FINISHED", timeout=60).problem is None


def test_a_state_of_another_version_keeps_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "mlflow.json").write_text('{"run_id": "a", "requests_done": 3, "of_another_version": 1}')
    state = State.load(tmp_path)
    assert (state.run_id, state.requests_done, state.over) == ("a", 3, False)


@pytest.mark.slow
def test_sync_keeps_away_from_a_run_that_goes_on(tmp_path: Path, server: Any) -> None:
    run_dir = tmp_path / "run"
    tracker = _start(run_dir, server.uri)
    with pytest.raises(UserError, match="goes on in this very process"):
        sync_run(run_dir, server.uri)
    tracker.log(0, {"train/loss": 1.0})
    assert tracker.finish("FINISHED", timeout=60).unsent_rows == 0
    held = try_lock(run_dir / "mlflow.lock")  # as the sidecar of another process
    assert held is not None
    report = sync_run(run_dir, server.uri, timeout=20)
    os.close(held)
    assert report.problem == f"{run_dir} is being sent by another process"


def test_sync_of_what_is_no_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the directory of a run"):
        sync_run(tmp_path)


@pytest.mark.slow
def test_no_secret_reaches_a_file_or_the_store(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "cAnArY7f3d91"
    monkeypatch.setattr(sys, "argv", ["train.py", "--api-key", canary, f"--tracking.uri=http://u:{canary}@h"])
    monkeypatch.setenv("SOME_PASSWORD", canary)
    uri = server.uri.replace("://", f"://user:{canary}@")
    run_dir = tmp_path / "run"
    tracker = _start(
        run_dir,
        uri,
        params={"tracking.uri": uri, "hub.token": canary, "data": f"https://x/?sig={canary}"},
        tags={"where": f"s3://{canary}@bucket", "password": canary},
    )
    tracker.tag("note", f"see https://a:{canary}@b")
    tracker.log_input("d", f"https://a:{canary}@b/?token={canary}", "0", "train")
    server_requests: list[Any] = [server.runs]
    server.stop()
    report = tracker.finish("FINISHED", timeout=20)
    server.start()
    with pytest.raises(UserError, match=r"only its own files name the store http://\*\*\*@"):
        sync_run(run_dir)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert sync_run(run_dir).problem is None
    written = [path.read_text() for path in run_dir.rglob("*") if path.is_file()]
    assert len(server.runs) == 1
    for text in [*written, str(server_requests), str(report), caplog.text, str(tracker.uri)]:
        assert canary not in text


_TRAIN = """
import os, sys, time
from pathlib import Path
from jaxtrain.config import TrackingConfig
from jaxtrain.tracking import Journal, Tracker
run_dir, uri, kept, end, how = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:5]), sys.argv[5]
history = Journal(run_dir / "metrics.jsonl").records()[:kept]
names = {"experiment": "PT", "run_name": "x", "params": {}, "tags": {}}
tracker = Tracker.start(TrackingConfig(uri=uri), run_dir=run_dir, history=history, **names)
for step in range(kept, end):
    tracker.log(step, {"train/loss": 1.0 / (step + 1)})
print(tracker.wait_run_id(60), "mlflow" in sys.modules, "jax" in sys.modules, flush=True)
if how == "wait":
    time.sleep(60)
elif how == "finish":
    assert tracker.finish("FINISHED").unsent_rows == 0
elif how == "raise":
    raise RuntimeError("planted")
"""


def _train(run_dir: Path, uri: str, kept: int, end: int, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _TRAIN, str(run_dir), uri, str(kept), str(end), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_run_says_so_and_goes_on_without_doubles(tmp_path: Path, server: Any) -> None:
    run_dir = tmp_path / "run"
    process = _train(run_dir, server.uri, 0, 100, "wait")
    assert process.stdout is not None
    assert process.stdout.readline().split() == ["run0", "False", "False"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait_for(lambda: server.runs["run0"]["info"]["status"] == "KILLED")
    assert len(server.points()) == 100
    process = _train(run_dir, server.uri, 60, 150, "finish")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.split()[0] == "run0"
    assert server.runs["run0"]["info"]["status"] == "FINISHED"
    points = {key: count for key, count in server.points().items() if key[0] == "train/loss"}
    assert points == {("train/loss", step): 1 for step in range(150)}
    assert len(server.runs) == 1


@pytest.mark.slow
def test_a_program_that_ends_without_a_word_has_failed(tmp_path: Path, server: Any) -> None:
    process = _train(tmp_path / "run", server.uri, 0, 20, "raise")
    _, errors = process.communicate(timeout=120)
    assert "RuntimeError: planted" in errors
    assert server.runs["run0"]["info"]["status"] == "FAILED"
    assert len(server.points()) >= 20


@pytest.mark.slow
def test_many_kills_in_a_row_make_no_doubles(tmp_path: Path, server: Any) -> None:
    run_dir = tmp_path / "run"
    end = 0
    for attempt in range(6):
        kept, end = max(0, end - 30), end + 50
        process = _train(run_dir, server.uri, kept, end, "wait")
        _wait_for(lambda lines=end: len(Journal(run_dir / "metrics.jsonl").records()) == lines)
        time.sleep(1.5 * attempt)  # from before the import of MLflow to after the first upload
        process.kill()
        process.wait()
    process = _train(run_dir, server.uri, end - 30, end + 10, "finish")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    points = {key: count for key, count in server.points().items() if key[0] == "train/loss"}
    assert points == {("train/loss", step): 1 for step in range(end + 10)}
    assert len(server.runs) == 1


@pytest.mark.slow
def test_no_process_is_left_behind(tmp_path: Path, server: Any) -> None:
    import psutil

    process = _train(tmp_path / "run", server.uri, 0, 10, "wait")
    assert process.stdout is not None
    process.stdout.readline()
    (child,) = psutil.Process(process.pid).children()
    server.fault = "hang"
    process.kill()
    process.wait()
    child.wait(timeout=15)


@pytest.mark.slow
def test_warnings_that_are_errors_do_not_stop_tracking(
    tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    process = _train(tmp_path / "run", sqlite_uri, 0, 20, "finish")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert len(_rows(tmp_path / "mlflow.db")) >= 20
