"""MLflow's own ways to say where a run goes: an active run, MLFLOW_RUN_ID, MLFLOW_EXPERIMENT_NAME."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from jaxtrain.config import TrackingConfig
from jaxtrain.tracking import Tracker, surroundings
from jaxtrain.tracking.store import connect


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    surroundings._say.cache_clear()
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    before = mlflow.get_tracking_uri()
    yield
    mlflow.end_run()
    mlflow.set_tracking_uri(before)


def test_a_run_is_nested_under_the_active_one(
    tmp_path: Path, sqlite_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow.set_tracking_uri(sqlite_uri)
    options = TrackingConfig(uri=sqlite_uri, system_metrics=False, log_model=False)
    with mlflow.start_run(run_name="outer") as outer:
        tracker = Tracker.start(
            options, run_dir=tmp_path / "run", experiment="PT", run_name="inner", params={}, tags={}, history=()
        )
        report = tracker.finish("FINISHED", timeout=120)
        assert mlflow.active_run().info.run_id == outer.info.run_id
    assert report.run_id is not None
    inner = connect(sqlite_uri).get_run(report.run_id)
    assert inner.data.tags["mlflow.parentRunId"] == outer.info.run_id
    assert caplog.messages == []


def test_an_active_run_in_another_store_is_left_alone_and_that_is_said(
    sqlite_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow.set_tracking_uri(sqlite_uri)
    with mlflow.start_run():
        assert surroundings.parent_run("http://user:secret@elsewhere") is None
    (line,) = caplog.messages
    assert "http://***@elsewhere" in line
    assert "not nested" in line


@pytest.mark.parametrize(
    ("name", "value"), [("MLFLOW_RUN_ID", "0" * 32), ("MLFLOW_EXPERIMENT_NAME", "mine"), ("MLFLOW_EXPERIMENT_ID", "7")]
)
def test_a_variable_that_is_not_followed_is_named_once(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(name, value)
    for _ in range(2):
        assert surroundings.parent_run("http://here") is None
    (line,) = caplog.messages
    assert f"{name}={value} is ignored" in line
