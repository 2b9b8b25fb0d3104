import sqlite3

import numpy as np
import pytest

from jaxtrain import PTClassifier
from jaxtrain.cli.main import run
from jaxtrain.errors import RunError, UserError
from jaxtrain.tracking import Journal

OPTIONS = {
    "quiet": True,
    "model": {"name": "linear"},
    "augment": {"policy": "none"},
    "train": {"steps": 4, "batch_size": 16, "log_every": 1},
}


@pytest.fixture(scope="module")
def missed(tmp_path_factory):
    """A run, tested, while no server answered."""
    images, labels = np.random.default_rng(0).integers(0, 256, (48, 4, 4), np.uint8), np.arange(48) % 4
    model = PTClassifier(
        **OPTIONS, tracking={"uri": "http://localhost:9"}, run_dir=tmp_path_factory.mktemp("missed") / "run"
    )
    model.fit(images[:32], labels[:32], validation=(images[32:40], labels[32:40]), test=(images[40:], labels[40:]))
    return model.run_dir


@pytest.mark.slow
def test_what_is_still_lacking_is_a_failure(missed, capsys):
    with pytest.raises(RunError, match=r"not yet whole elsewhere: .*run.*; the same command tries again"):
        run(["sync", str(missed), "--uri", "http://localhost:9", "--timeout", "1"])
    assert "records are not in http://localhost:9 yet (no connection" in capsys.readouterr().out


@pytest.mark.slow
def test_what_a_server_missed_comes_once_with_the_test(missed, tmp_path, capsys):
    for _ in range(2):
        run(["sync", str(missed), "--uri", f"sqlite:///{tmp_path}/mlflow.db"])
    assert capsys.readouterr().out.count("everything is in sqlite:///") == 4
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        query = "select experiments.name, status from runs join experiments using (experiment_id) order by 1"
        assert store.execute(query).fetchall() == [("Benchmark", "FINISHED"), ("PT", "FINISHED")]
        query = (
            "select key, step, count(*) from metrics join runs using (run_uuid) join experiments using (experiment_id) "
            "where experiments.name = 'PT' group by 1, 2"
        )
        counts = {(key, step): count for key, step, count in store.execute(query)}
    rows = {(key, one["step"]) for one in Journal(missed / "metrics.jsonl").records() for key in one if "/" in key}
    assert ("train/loss", 4) in rows
    assert {row: counts.get(row) for row in rows} == dict.fromkeys(rows, 1)


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="RUN_DIR is missing"):
        run(["sync"])
    with pytest.raises(UserError, match="nowhere is not the directory of a run"):
        run(["sync", str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="--timeout"):
        run(["sync", str(tmp_path), "--timeot", "1"])
