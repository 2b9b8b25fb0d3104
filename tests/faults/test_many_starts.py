"""Many runs start at once on one MLflow store."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

_MANY = """
import os, sys, time
from jaxtrain.tracking import store
from mlflow.entities import Metric
import mlflow.store.tracking.sqlalchemy_store
uri, count = sys.argv[1], int(sys.argv[2])
go = time.time() + 0.2
children = []
for i in range(count):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            time.sleep(max(0, go - time.time()))
            client = store.connect(uri)
            number = store.experiment_id(client, uri, "PT")
            run = client.create_run(number)
            for step in range(3):
                points = [Metric(f"m{k}", 1.0, 0, step) for k in range(10)]
                for attempt in range(20):
                    try:
                        client.log_batch(run.info.run_id, metrics=points, synchronous=True)
                        break
                    except Exception as error:
                        if "locked" not in str(error):
                            raise
            client.set_terminated(run.info.run_id)
            code = 0
        finally:
            os._exit(code)
    children.append(child)
print(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children))
"""


def check(database: Path, processes: int) -> None:
    """All start at once; every run and every row is there."""
    command = [sys.executable, "-W", "ignore", "-c", _MANY, f"sqlite:///{database}", str(processes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == str(processes), done.stderr[-2000:]
    with sqlite3.connect(database) as connection:
        assert connection.execute("select count(*) from runs where status = 'FINISHED'").fetchone() == (processes,)
        assert connection.execute("select count(*) from metrics").fetchone() == (processes * 30,)
        assert connection.execute("select count(*) from experiments where name = 'PT'").fetchone() == (1,)


@pytest.mark.parametrize("processes", [pytest.param(count, marks=pytest.mark.slow) for count in (4, 24)])
def test_on_a_store_that_does_not_exist(tmp_path: Path, processes: int) -> None:
    check(tmp_path / "new" / "mlflow.db", processes)


@pytest.mark.slow
def test_thirty_two_on_one_that_does(sqlite_uri: str) -> None:
    check(Path(sqlite_uri.removeprefix("sqlite:///")), 32)
