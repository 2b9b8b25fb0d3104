"""A run that is stopped anywhere and started again ends as if nothing had happened."""

import random
import signal
import sqlite3
import time

import pytest
from resume import finish, history, kill, start, stop, wait_for_step

QUIET = ("--tracking.enabled", "False")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    return finish(run_dir, *QUIET), history(run_dir)


def test_killed_twice_the_run_ends_in_the_same_bits(undisturbed, tmp_path):
    summary, records = undisturbed
    run_dir = tmp_path / "run"
    for step in (60, 200):
        process = start(run_dir, *QUIET)
        wait_for_step(run_dir, process, step)
        kill(process)
    again = finish(run_dir, *QUIET)
    assert again["params_sha256"] == summary["params_sha256"]
    assert again["test_loss"] == summary["test_loss"]
    assert history(run_dir) == records


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_moments_end_in_the_same_bits(undisturbed, tmp_path):
    summary, records = undisturbed
    generator = random.Random(0)
    for number in range(10):
        run_dir = tmp_path / str(number) / "run"
        run_dir.parent.mkdir()
        process = start(run_dir, *QUIET)
        time.sleep(generator.uniform(0.5, 12.0))
        kill(process)
        assert finish(run_dir, *QUIET)["params_sha256"] == summary["params_sha256"]
        assert history(run_dir) == records


def refuses_other_options(run_dir):
    process = start(run_dir, "--optimizer.learning_rate", "0.5")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "optimizer.learning_rate 0.001 -> 0.5" in output
    assert "Traceback" not in output


SIGNALS = [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_saves_refuses_other_options_and_continues(number, code, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    process = start(run_dir)
    wait_for_step(run_dir, process, 50)
    returned, output = stop(process, number)
    assert returned == code, output
    assert "continue with: python scripts/train.py" in output
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("KILLED",)]
    refuses_other_options(run_dir)
    assert finish(run_dir)["params_sha256"] == undisturbed[0]["params_sha256"]
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        runs = dict(
            store.execute("select experiments.name, status from runs join experiments using (experiment_id)").fetchall()
        )
        assert runs == {"PT": "FINISHED", "Benchmark": "FINISHED"}
        doubled = "select key, step, run_uuid, count(*) from metrics where key like 'train/%' or key like 'val/%' "
        doubled += "group by key, step, run_uuid having count(*) > 1"
        assert store.execute(doubled).fetchall() == []
        steps = store.execute("select count(*) from metrics where key = 'train/loss'").fetchone()[0]
    assert steps == sum("train/loss" in record for record in history(run_dir))
