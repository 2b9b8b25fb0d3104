from __future__ import annotations

import math
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxtrain.redact import redact
from jaxtrain.tracking.journal import Journal
from jaxtrain.tracking.outbox import State, append_request
from jaxtrain.tracking.points import safe_name, unsent_rows
from jaxtrain.tracking.provenance import PROCESS_TAG, process_identity
from jaxtrain.tracking.upload import Upload

ME = process_identity(1)


class Run:
    """A run directory as training leaves it, and its upload."""

    def __init__(self, run_dir: Path, uri: str) -> None:
        self.run_dir = run_dir
        self.uri = uri
        run_dir.mkdir(exist_ok=True)
        self.journal = Journal(run_dir / "metrics.jsonl")

    def start(self, params: dict[str, str] | None = None, live: bool = True, **more: Any) -> Upload:
        if live:
            names = {"experiment": "PT", "run_name": "name", "run_key": "k", "uri": redact(self.uri)}
            self.request("start", **names, params=params or {}, tags={"a": "b"}, time_ms=5, process=ME, **more)
        return Upload(self.run_dir, self.uri, live=live)

    def request(self, what: str, **fields: Any) -> None:
        append_request(self.run_dir, {"do": what, **fields})

    def log(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            self.journal.append(step, {"train/loss": 1.0 / (step + 1), "epoch": step / 10})


@pytest.fixture
def run(tmp_path: Path, server: Any) -> Run:
    return Run(tmp_path / "run", server.uri)


def _each_once(points: Any, steps: int) -> bool:
    wanted = {(name, step) for name in ("train/loss", "epoch") for step in range(steps)}
    return set(points) == wanted and set(points.values()) == {1}


def _push_through(upload: Upload, attempts: int = 10) -> int:
    """How many pushes failed before one succeeded."""
    for failures in range(attempts):
        try:
            upload.push()
        except Exception:
            continue
        return failures
    raise AssertionError("never succeeded")


def test_a_backlog_arrives_whole_and_in_order(run: Run, server: Any) -> None:
    upload = run.start({"model.name": "cnn", "train.steps": "3000"})
    run.log(0, 3000)
    upload.push()
    assert _each_once(server.points(), 3000)
    (stored,) = server.runs.values()
    losses = [m["value"] for m in stored["metrics"] if m["key"] == "train/loss"]
    assert losses == [1.0 / (step + 1) for step in range(3000)]
    assert [m["timestamp"] for m in stored["metrics"][:2]] == [int(1000 * run.journal.records()[0]["time"])] * 2
    assert stored["params"] == {"model.name": "cnn", "train.steps": "3000"}
    assert (stored["tags"]["a"], stored["tags"][PROCESS_TAG]) == ("b", ME)
    assert unsent_rows(run.run_dir, upload.state.acknowledged) == 0


def test_pushes_send_only_what_is_new(run: Run, server: Any) -> None:
    upload = run.start()
    for stop in (1, 2, 7, 7, 20):
        run.log(len(run.journal.records()), stop)
        upload.push()
    assert _each_once(server.points(), 20)
    assert server.requests.count("runs/create") == 1
    assert server.requests.count("runs/log-batch") == 5  # one for the tags, none for the push without news


def test_lost_answers_make_no_doubles(run: Run, server: Any) -> None:
    server.fault = "lost"
    upload = run.start()
    run.log(0, 600)
    assert _push_through(upload) == 2
    assert len(server.runs) == 1
    assert _each_once(server.points(), 600)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["error", "drop", "hang", "refuse"])
def test_an_outage_in_the_middle_loses_nothing(run: Run, server: Any, fault: str) -> None:
    upload = run.start()
    run.log(0, 50)
    upload.push()
    run.log(50, 100)
    if fault == "refuse":
        server.stop()
    server.fault = fault
    for _ in range(2):
        with pytest.raises(Exception, match=r"500|[Tt]imed? ?out|Connection|Max retries"):
            upload.push()
    assert unsent_rows(run.run_dir, upload.state.acknowledged) == 50
    if fault in ("refuse", "hang"):
        server.stop()
        server.start()
    server.fault = None
    run.log(100, 110)
    upload.push()
    assert unsent_rows(run.run_dir, upload.state.acknowledged) == 0
    assert _each_once(server.points(), 110)


def test_a_resumed_run_goes_on_without_doubles(run: Run, server: Any) -> None:
    upload = run.start({"lr": "0.1", "steps": "100"})
    run.log(0, 70)
    upload.push()
    run_id = upload.state.run_id
    # Killed; the checkpoint was at step 40, so steps 40 to 70 are computed and logged a second time.
    run.journal.truncate(run.journal.records()[:40])
    run.request("status", status="KILLED", time_ms=9)
    upload = run.start({"lr": "0.2", "steps": "100", "new": "1"})
    run.log(40, 90)
    upload.push()
    assert _each_once(server.points(), 90)
    assert upload.state.run_id == run_id
    stored = server.runs[run_id]
    assert stored["info"]["status"] == "RUNNING"
    assert stored["params"] == {"lr": "0.1", "steps": "100", "new": "1"}
    assert stored["tags"]["jaxtrain.param_drift"] == '{"lr": ["0.1", "0.2"]}'
    assert stored["tags"]["jaxtrain.attempts"] == "2"
    run.request("status", status="FINISHED", time_ms=10)
    upload.push()
    assert stored["info"]["status"] == "FINISHED"


def test_a_journal_that_is_replaced_under_a_running_upload_loses_no_row(run: Run, server: Any) -> None:
    # The sidecar of a killed process is still at work when the resumed process cuts the journal back.
    upload = run.start()
    run.log(0, 70)
    upload.push()
    records = run.journal.records()[:40]
    for record in records:
        record["time"] = int(record["time"])  # other line lengths: the old offset is within a line
    run.journal.truncate(records)
    run.log(40, 120)
    upload.push()
    assert _each_once(server.points(), 120)


@pytest.mark.parametrize("damage", ["missing", "truncated", "old"])
def test_mlflow_itself_knows_what_it_has(run: Run, server: Any, damage: str) -> None:
    upload = run.start()
    run.log(0, 20)
    upload.push()
    path = run.run_dir / "mlflow.json"
    if damage == "old":
        state = State.load(run.run_dir)
        state.acknowledged = {"train/loss": 3}
        state.save(run.run_dir)
    else:
        path.write_text(path.read_text()[:20])
        if damage == "missing":
            path.unlink()
    upload = run.start()
    upload.push()
    points = server.points(upload.state.run_id)
    assert _each_once(points, 20)
    assert len(server.runs) == 1


def test_a_run_that_was_deleted_is_sent_again_as_a_new_one(run: Run, server: Any) -> None:
    upload = run.start()
    run.log(0, 20)
    upload.push()
    server.runs[upload.state.run_id]["info"]["lifecycle_stage"] = "deleted"
    upload = run.start()
    run.log(20, 30)
    upload.push()
    assert upload.state.run_id == "run1"
    assert _each_once(server.points("run1"), 30)
    assert len(upload.state.said) == 1
    assert "deleted" in upload.state.said[0]
    experiments = {one["info"]["experiment_id"] for one in server.runs.values()}
    assert experiments == {upload.state.experiment_id} != {""}
    assert upload.state.experiment == "PT"


def test_non_finite_values_are_counted_not_sent(run: Run, server: Any) -> None:
    upload = run.start()
    for step, value in enumerate([1.0, math.nan, math.inf, 2.0, -math.inf]):
        run.journal.append(step, {"loss": value, "epoch": 0.0})
    upload.push()
    (stored,) = server.runs.values()
    points = [(m["key"], m["step"], m["value"]) for m in stored["metrics"] if m["key"] != "epoch"]
    assert points == [
        ("loss", 0, 1.0),
        ("nonfinite_count", 1, 1.0),
        ("nonfinite_count", 2, 2.0),
        ("loss", 3, 2.0),
        ("nonfinite_count", 4, 3.0),
    ]
    assert unsent_rows(run.run_dir, upload.state.acknowledged) == 0
    upload = run.start()  # the count goes on from the journal
    run.journal.append(5, {"loss": math.nan})
    upload.push()
    assert (stored["metrics"][-1]["key"], stored["metrics"][-1]["value"]) == ("nonfinite_count", 4.0)


def test_a_metric_that_mlflow_refuses_does_not_hold_up_the_others(run: Run, server: Any) -> None:
    upload = run.start()
    run.log(0, 10)
    run.journal.append(10, {"refused": 1.0})
    run.log(11, 20)
    upload.push()
    assert set(server.points().values()) == {1}
    assert len(server.points()) == 2 * 19
    assert "'refused' at step 10" in upload.state.said[0]
    assert unsent_rows(run.run_dir, upload.state.acknowledged) == 0


def test_the_same_step_twice_in_the_journal_is_sent_once(run: Run, server: Any) -> None:
    upload = run.start()
    run.log(0, 5)
    run.log(4, 6)
    upload.push()
    assert _each_once(server.points(), 6)


def test_long_parameters_are_cut(run: Run, server: Any) -> None:
    run.start({"long": "x" * 9000, "fits": "y" * 6000, **{f"p{i}": "1" for i in range(250)}}).push()
    (stored,) = server.runs.values()
    assert stored["params"]["long"] == "x" * 5999 + "…"
    assert stored["params"]["fits"] == "y" * 6000
    assert len(stored["params"]) == 252


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("val/top5_accuracy", "val/top5_accuracy"),
        ("acc@5 (val) %", "acc_5 _val_ pct"),
        ("../a//b/./c/", "a/b/c"),
        ("Genauigkeit für Äpfel", "Genauigkeit für Äpfel"),
        ("x" * 400, "x" * 250),
        ("", "_"),
    ],
)
def test_names_that_mlflow_takes(name: str, safe: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert safe_name(name) == safe
    _validate_metric_name(safe)


def test_samples_of_the_machine_go_on_after_a_resume(run: Run, server: Any) -> None:
    upload = run.start()
    for value in (1.0, 2.0):
        upload.add_sample({"system/cpu": value})
    upload.push()
    upload.add_sample({"system/cpu": 3.0})
    upload.push()
    upload = run.start()
    upload.add_sample({"system/cpu": 4.0})
    server.fault = "error"
    with pytest.raises(Exception, match="500"):
        upload.push()
    upload.add_sample({"system/cpu": 5.0})
    server.fault = None
    upload.push()
    (stored,) = server.runs.values()
    assert [(m["step"], m["value"]) for m in stored["metrics"]] == [(i, i + 1.0) for i in range(5)]


def test_requests_reach_a_real_store_once(tmp_path: Path, sqlite_uri: str) -> None:
    run = Run(tmp_path / "run", sqlite_uri)
    (run.run_dir / "config.yaml").write_text("a: 1")
    upload = run.start({"lr": "0.1"})

    def ask() -> None:
        run.request("artifact", path=str(run.run_dir / "config.yaml"), folder=None)
        run.request("tag", key="colour (x)", value="red" * 5000)
        profile = {"images": 3}
        run.request("input", name="digits", source="embedded", digest="d" * 64, context="train", profile=profile)

    ask()
    upload.push()
    upload = run.start({"lr": "0.1"})
    run.log(0, 30)
    ask()
    run.request("status", status="FINISHED", time_ms=7)
    upload.push()
    upload.push()
    client = upload._client
    stored = client.get_run(upload.state.run_id)
    assert (stored.info.status, stored.info.start_time, stored.info.end_time) == ("FINISHED", 5, 7)
    assert stored.info.run_name == "name"
    assert [file.path for file in client.list_artifacts(stored.info.run_id)] == ["config.yaml"]
    assert stored.info.artifact_uri.startswith((tmp_path / "mlruns" / "PT").as_uri())
    assert stored.data.tags["colour _x_"].endswith("…")
    (dataset,) = stored.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "d" * 36)
    assert dataset.tags[0].value == "train"
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        rows = connection.execute("select key, step, count(*) from metrics group by key, step").fetchall()
    assert len(rows) == 60
    assert {row[2] for row in rows} == {1}


def test_an_artifact_that_vanished_is_named_and_a_later_sync_finds_it(tmp_path: Path, sqlite_uri: str) -> None:
    run = Run(tmp_path / "run", sqlite_uri)
    upload = run.start()
    run.request("artifact", path="late.txt", folder="sub")
    run.request("tag", key="after", value="1")
    upload.push()
    assert "late.txt" in upload.state.said[0]
    assert upload.state.requests_refused == [1]
    (run.run_dir / "late.txt").write_text("here")
    upload = run.start(live=False)
    upload.push()
    assert upload.state.requests_refused == []
    files = upload._client.list_artifacts(upload.state.run_id, "sub")
    assert [file.path for file in files] == ["sub/late.txt"]
    assert upload._client.get_run(upload.state.run_id).data.tags["after"] == "1"


def test_another_store_gets_the_whole_run(tmp_path: Path, sqlite_uri: str, server: Any) -> None:
    run = Run(tmp_path / "run", sqlite_uri)
    upload = run.start({"lr": "0.1"})
    run.log(0, 20)
    run.request("tag", key="t", value="1")
    run.request("status", status="FINISHED", time_ms=7)
    upload.push()
    run.uri = server.uri
    run.start(live=False).push()
    (stored,) = server.runs.values()
    assert _each_once(server.points(), 20)
    assert (stored["info"]["status"], stored["tags"]["t"]) == ("FINISHED", "1")
    assert stored["params"] == {"lr": "0.1"}
    run.uri = sqlite_uri
    back = run.start(live=False)
    back.push()
    assert back.state.run_id == upload.state.run_id  # not a second run in the first store


def test_a_run_that_died_silently_is_closed_by_a_sync(run: Run, server: Any, tmp_path: Path) -> None:
    run.start().push()
    alive = run.start(live=False)
    alive.push()
    alive.end_if_dead()
    (stored,) = server.runs.values()
    assert stored["info"]["status"] == "RUNNING"  # process 1 lives
    alive.state.process = ME.replace('"pid": 1', '"pid": 4194304000')
    alive.end_if_dead()
    assert stored["info"]["status"] == "KILLED"


def test_a_run_that_died_before_mlflow_was_reached_is_closed_by_a_sync(run: Run, server: Any) -> None:
    dead = ME.replace('"pid": 1', '"pid": 4194304000')
    run.request(
        "start", experiment="PT", run_name="name", run_key="k", uri=run.uri, params={}, tags={}, time_ms=5, process=dead
    )
    late = run.start(live=False)
    late.push()
    (stored,) = server.runs.values()
    assert stored["tags"][PROCESS_TAG] == dead
    late.end_if_dead()
    assert stored["info"]["status"] == "KILLED"


def test_the_state_holds_no_password(tmp_path: Path, server: Any) -> None:
    run = Run(tmp_path / "run", server.uri.replace("://", "://user:hunter2@"))
    upload = run.start()
    upload.push()
    assert upload.state.uri == server.uri.replace("://", "://***@")
    assert all("hunter2" not in path.read_text() for path in run.run_dir.iterdir())


def test_a_directory_that_was_moved_still_uploads(run: Run, server: Any, tmp_path: Path) -> None:
    upload = run.start()
    run.log(0, 10)
    upload.push()
    run.log(10, 20)
    run.journal.close()
    shutil.move(run.run_dir, tmp_path / "moved")
    Upload(tmp_path / "moved", run.uri, live=False).push()
    assert _each_once(server.points(), 20)


@pytest.mark.parametrize(
    "call", ["create_logged_model", "log_outputs", pytest.param("finalize_logged_model", marks=pytest.mark.slow)]
)
def test_a_lost_answer_makes_no_second_model(
    tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    from mlflow.tracking import MlflowClient

    real, calls = getattr(MlflowClient, call), list[int]()

    def lost(*args: Any, **options: Any) -> Any:
        answer = real(*args, **options)
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("half an answer")
        return answer

    monkeypatch.setattr(MlflowClient, call, lost)
    run = Run(tmp_path / "run", sqlite_uri)
    (run.run_dir / "model").mkdir()
    (run.run_dir / "model" / "meta.json").write_text("{}")
    np.save(run.run_dir / "x.npy", np.zeros((1, 4, 4, 1), np.uint8))
    upload = run.start()
    names = {"class_names": ["a"], "step": 3, "name": "model", "pip_requirements": ["numpy"]}
    run.request("model", path="model", example="x.npy", **names)
    assert _push_through(upload) == 1
    (model,) = upload._client.search_logged_models([upload.state.experiment_id])
    assert (model.model_id, model.status.value) == (upload.state.model_id, "READY")
    (output,) = upload._client.get_run(upload.state.run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (model.model_id, 3)
    assert upload.state.said == []


def test_models_are_ranked_by_what_other_runs_measure_of_them(
    tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    models = []
    for number in range(2):
        run = Run(tmp_path / f"run-{number}", sqlite_uri)
        (run.run_dir / "model").mkdir()
        np.save(run.run_dir / "x.npy", np.zeros((1, 4, 4, 1), np.uint8))
        run.request(
            "start", experiment="PT", run_name=f"{number}", run_key=f"{number}", uri=sqlite_uri,
            params={"train.steps": "5"}, tags={}, time_ms=5,
        )  # fmt: skip
        names = {"class_names": ["a"], "step": 3, "name": "model", "pip_requirements": ["numpy"], "register": "mine"}
        run.request("model", path="model", example="x.npy", **names)
        upload = run.start(live=False)
        upload.push()
        models.append(upload.state.model_id)
    client = MlflowClient(sqlite_uri)
    versions = client.search_model_versions("name = 'mine'")
    places = [client.get_logged_model(model).artifact_location for model in models]
    assert sorted(version.source for version in versions) == sorted(places)
    real = MlflowClient.log_batch

    def lost(*args: Any, **options: Any) -> Any:
        real(*args, **options)
        if options.get("metrics"):
            monkeypatch.setattr(MlflowClient, "log_batch", real)
            raise ConnectionError("half an answer")

    for number, model in enumerate([*models, "m-gone"]):
        monkeypatch.setattr(MlflowClient, "log_batch", lost)
        measuring = Run(tmp_path / f"measuring-{number}", sqlite_uri)
        names = {"dataset_name": "digits", "dataset_digest": "0" * 64}
        keys = {"experiment": "Benchmark", "run_name": f"{number}", "run_key": f"b{number}", "uri": sqlite_uri}
        measuring.request("start", **keys, params={}, tags={}, time_ms=5, model={"model_id": model, **names})
        measuring.journal.append(0, {"test/accuracy": 0.5 + number / 10})
        upload = measuring.start(live=False)
        assert _push_through(upload) == 1
        inputs = client.get_run(upload.state.run_id).inputs.model_inputs
        assert [each.model_id for each in inputs] == ([] if model == "m-gone" else [model])
    order = [{"field_name": "metrics.test/accuracy", "ascending": False}]
    ranked = client.search_logged_models([client.get_experiment_by_name("PT").experiment_id], order_by=order)
    assert [model.model_id for model in ranked] == models[::-1]
    for model, accuracy in zip(ranked, (0.6, 0.5), strict=True):
        (metric,) = model.metrics
        assert (metric.key, metric.value, metric.dataset_name) == ("test/accuracy", accuracy, "digits")
        assert model.params == {"train.steps": "5"}


@pytest.mark.parametrize("fault", ["half", "password"])
def test_what_a_server_answers_wrongly_for_a_while_loses_nothing(run: Run, server: Any, fault: str) -> None:
    """Half an answer, or the password refused."""
    upload = run.start()
    run.log(0, 10)
    upload.push()
    run.log(10, 20)
    server.fault, server.password = (fault, None) if fault == "half" else (None, "another")
    for _ in range(3):
        with pytest.raises(Exception, match=r"JSON|char|401|password"):
            upload.push()
    server.fault = server.password = None
    run.log(20, 30)
    upload.push()
    assert _each_once(server.points(), 30)
    assert len(server.runs) == 1
