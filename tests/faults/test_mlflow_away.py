"""MLflow's server dies in mid-run, answers after 10 s, or with errors; its database is locked."""

import logging
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxtrain.tracking import sync_run
from tests.faults.small_run import fit, history, result

STEPS = 400
OPTIONS = {"train": {"steps": STEPS, "log_every": 2}}


def tracked(uri):
    return {"enabled": True, "uri": uri, "log_model": False, "system_metrics": False}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Without MLflow."""
    return result(fit(tmp_path_factory.mktemp("whole") / "run", **OPTIONS))


def rows(run_dir):
    """(metric, step) of every record."""
    return {(key, record["step"]) for record in history(run_dir) for key in record if key != "step"}


def send(run_dir, uri):
    """What a person does later, once more than needed; a busy machine may need several tries."""
    for _ in range(10):
        if sync_run(run_dir, uri).problem is None:
            break
    report = sync_run(run_dir, uri)
    assert (report.unsent_rows, report.problem) == (0, None)


@pytest.mark.parametrize(
    "fault",
    ["dies", "dead", *(pytest.param(fault, marks=pytest.mark.soak) for fault in ("error", "hang", "drop", "tardy"))],
)
@pytest.mark.slow
def test_a_server_at_fault_changes_nothing_and_gets_everything_later(
    tmp_path, whole, server, monkeypatch, caplog, fault
):
    """`dies`: after the first rows have come; `dead`: from start to end; `tardy`: 10 s an answer."""
    from jaxtrain.runs.callbacks import Recording

    log = Recording.log

    def logged(self, step, metrics):
        log(self, step, metrics)
        if fault == "dies" and step == 100 and server.up:
            assert self._tracker.wait_run_id(300)
            server.stop()

    monkeypatch.setattr(Recording, "log", logged)
    if fault == "dead":
        server.stop()
    server.fault = None if fault in ("dies", "dead") else fault
    with caplog.at_level(logging.WARNING, "jaxtrain"):
        model = fit(tmp_path / "run", **OPTIONS, tracking=tracked(server.uri))
    assert result(model) == whole
    assert "MLflow lacks" in caplog.text
    server.stop()
    server.fault = None
    server.start()
    send(tmp_path / "run", server.uri)
    (run_id,) = [name for name, run in server.runs.items() if run["info"]["run_name"] == "run"]
    points = {key: count for key, count in server.points(run_id).items() if key in rows(tmp_path / "run")}
    assert points == dict.fromkeys(rows(tmp_path / "run"), 1)
    assert server.runs[run_id]["info"]["status"] == "FINISHED"


@pytest.mark.slow
@pytest.mark.soak
def test_a_locked_database(tmp_path, whole, sqlite_uri, caplog):
    """Another process holds the lock from before the run until after it."""
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('begin exclusive');"
        "print('held', flush=True); sys.stdin.read()"
    )
    database = Path(sqlite_uri.removeprefix("sqlite:///"))
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, "jaxtrain"):
        model = fit(tmp_path / "run", **OPTIONS, tracking=tracked(sqlite_uri))
    assert time.monotonic() - start < 150
    holder.communicate()
    assert result(model) == whole
    assert "MLflow lacks" in caplog.text
    send(tmp_path / "run", sqlite_uri)
    with sqlite3.connect(database) as store:
        query = "select key, step, count(*) from metrics join runs using (run_uuid) where name = 'run' group by 1, 2"
        counts = {(key, step): count for key, step, count in store.execute(query)}
    assert {key: counts.get(key) for key in rows(tmp_path / "run")} == dict.fromkeys(rows(tmp_path / "run"), 1)
