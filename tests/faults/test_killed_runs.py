"""kill -9 at any moment, also inside a write: the same command ends as if nothing had happened."""

import json
import os
import random
import re
import signal
import sqlite3
import time

import pytest

from jaxtrain.files import write_text
from jaxtrain.tracking import sync_run
from jaxtrain.training.checkpoints import Checkpoints
from jaxtrain.trees import tree_digest
from tests.classifiers.resume import finish, history, start, stop, wait_for_step
from tests.clock import without_clock
from tests.faults.nursery import Nursery

QUIET = ("--tracking.enabled", "False")
OPTIONS = [
    "--technique", "pt", "--run-dir", "run", "--model.name", "cnn_tiny", "--train.steps", "60", "--train.batch_size",
    "16", "--train.ema_decay", "0.99", "--train.log_every", "7", "--checkpoint.every_steps", "9", "--quiet", "True",
    "--data.max_train_images", "480", "--checkpoint.every_seconds", "1000",
]  # fmt: skip


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        keeper = Nursery()
        yield keeper
        keeper.close()


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory):
    """What the run is when nothing happens to it, its file operations, and its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    for name in ("first", "second"):  # the first compiles
        (folder / name).mkdir()
        began = time.monotonic()
        done = nursery.run([*OPTIONS, *QUIET], folder / name)
        seconds = time.monotonic() - began
        assert done["status"] == 0, done["output"]
    assert outcome(folder / "first" / "run") == outcome(folder / "second" / "run")
    return outcome(folder / "second" / "run"), done["operations"], seconds


def outcome(run_dir):
    """Digests of parameters, optimizer state, batch statistics and averages; metric history; results."""
    with Checkpoints(run_dir / "checkpoints", keep=2) as kept:
        restored = kept.restore()
        assert restored is not None
        assert kept.damaged == []
    summary = json.loads((run_dir / "summary.json").read_text())
    past = [without_clock(record) for record in restored.meta["history"]]
    final = {name: summary[name] for name in ("params_sha256", "val_accuracy", "test_loss", "best_step", "steps")}
    return {
        "state": tree_digest(restored.state), "leaves": sorted(restored.state), "best": tree_digest(restored.best),
        "history": past, "journal": history(run_dir), "summary": final,
    }  # fmt: skip


def killed_and_finished(nursery, folder, generator, undisturbed, kills, *options):
    """Kills one run so many times, at random file operations or moments, then lets it end. Returns the kills."""
    expected, operations, seconds = undisturbed
    folder.mkdir()
    killed = 0
    while killed < kills:
        if generator.random() < 0.6:
            done = nursery.run([*OPTIONS, *options], folder, kill_at=generator.randint(1, operations))
        else:
            done = nursery.run([*OPTIONS, *options], folder, seconds=generator.uniform(0.05, 0.95) * seconds)
        if done["status"] == 0:
            break
        assert done["status"] == -signal.SIGKILL, done["output"]
        killed += 1
    done = nursery.run([*OPTIONS, *options], folder)
    assert done["status"] == 0, done["output"]
    assert outcome(folder / "run") == expected
    return killed


@pytest.mark.slow
def test_killed_at_two_file_operations(nursery, undisturbed, tmp_path):
    expected, operations, _ = undisturbed
    assert any("opt_state" in name for name in expected["leaves"])
    assert any("ema" in name for name in expected["leaves"])
    assert any("model_state" in name for name in expected["leaves"])
    for kill_at in (operations // 2, operations // 3):
        done = nursery.run([*OPTIONS, *QUIET], tmp_path, kill_at=kill_at)
        assert done["status"] == -signal.SIGKILL, done["output"]
    assert nursery.run([*OPTIONS, *QUIET], tmp_path)["status"] == 0
    assert outcome(tmp_path / "run") == expected


def test_until_it_is_whole_on_the_disk_a_new_file_stands_under_another_name(tmp_path, monkeypatch):
    def killed(_):
        raise SystemExit

    write_text(tmp_path / "summary.json", "the old one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(SystemExit):
            write_text(tmp_path / "summary.json", "the new one")
    assert (tmp_path / "summary.json").read_text() == "the old one"
    write_text(tmp_path / "summary.json", "the new one")
    assert (tmp_path / "summary.json").read_text() == "the new one"


@pytest.mark.slow
def test_killed_inside_the_writing_of_the_summary(nursery, undisturbed, tmp_path):
    """And of the model, whose folder is written before: the last file operations of the run."""
    expected, operations, _ = undisturbed
    for back in (0, 1):
        folder = tmp_path / str(back)
        folder.mkdir()
        done = nursery.run([*OPTIONS, *QUIET], folder, kill_at=operations - back)
        assert done["status"] == -signal.SIGKILL
        assert nursery.run([*OPTIONS, *QUIET], folder)["status"] == 0
        assert outcome(folder / "run") == expected


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_one_hundred_kills_end_in_the_same_bytes(nursery, undisturbed, tmp_path):
    generator, killed, number = random.Random(1), 0, 0
    while killed < 100:
        number += 1
        folder = tmp_path / str(number)
        tracked = number % 5 == 0
        killed += killed_and_finished(nursery, folder, generator, undisturbed, 4, *(() if tracked else QUIET))
        if tracked:
            sync_run(folder / "run", f"sqlite:///{folder}/mlflow.db")
            check_store(folder / "mlflow.db", folder / "run")
        print(f"{killed} kills in {number} runs, all equal", flush=True)


def check_store(database, run_dir):
    """One run of training, no (metric, step) twice, every row there."""
    with sqlite3.connect(database) as store:
        query = "select count(*) from runs join experiments using (experiment_id) where experiments.name = 'PT'"
        assert store.execute(query).fetchone() == (1,)
        query = (
            "select key, step, count(*) from metrics join runs using (run_uuid) join experiments using (experiment_id) "
            "where experiments.name = 'PT' group by 1, 2"
        )
        counts = {(key, step): count for key, step, count in store.execute(query)}
    rows = {(key, record["step"]) for record in history(run_dir) for key in record if key != "step"}
    assert {row: counts.get(row) for row in rows} == dict.fromkeys(rows, 1)


def refuses_other_options(run_dir):
    process = start(run_dir, "--optimizer.learning_rate", "0.5")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "optimizer.learning_rate 0.001 -> 0.5" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.soak), (signal.SIGTERM, 143)]
)
@pytest.mark.slow
def test_a_signal_saves_refuses_other_options_and_continues(number, code, tmp_path):
    run_dir = tmp_path / "run"
    process = start(run_dir)
    wait_for_step(run_dir, process, 50)
    returned, output = stop(process, number)
    assert returned == code, output
    assert re.search(r"continue with: .*train.* --run-dir", output)
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("KILLED",)]
    refuses_other_options(run_dir)
    finish(run_dir)
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
