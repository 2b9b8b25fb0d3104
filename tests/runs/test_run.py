"""What stands in a run directory."""

import json

import numpy as np
import pytest
import yaml

from jaxtrain import PTClassifier
from jaxtrain.config_io import load_config
from jaxtrain.errors import UserError
from jaxtrain.runs import report
from tests.marks import mostly_slow

SECRET = "correct-horse"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 8, 8), np.uint8)
    folder = tmp_path_factory.mktemp("run")
    classifier = PTClassifier(
        run_dir=folder / "run",
        quiet=True,
        model={"name": "linear"},
        train={"steps": 12, "batch_size": 20, "log_every": 5, "eval_every": 2},
        tracking={"enabled": False, "uri": f"postgresql://me:{SECRET}@nowhere/db"},
    )
    test = (images[:10], np.arange(10) % 3)
    return classifier.fit(images, np.arange(60) % 3, test=test)


def test_the_summary_has_what_the_contract_names(run):
    summary = json.loads((run.run_dir / "summary.json").read_text())
    assert {
        "technique", "model", "dataset", "classes", "steps", "wall_seconds", "images_per_second", "val_accuracy",
        "test_accuracy", "test_loss", "best_step", "params", "trainable_params", "params_sha256", "mlflow_run_id",
        "devices", "versions",
    } <= set(summary)  # fmt: skip
    assert summary["params"] == 64 * 3 + 3
    assert summary["steps"] == 12


def test_records_are_at_their_steps_and_average_what_is_between(run):
    records = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "train/loss" in record] == [5, 10, 12]
    assert [record["step"] for record in records if "val/loss" in record] == [6, 11, 12]
    assert records[0]["epoch"] == pytest.approx(5 * 20 / 54)


def test_the_kept_config_repeats_the_run_elsewhere(run):
    config = load_config(run.run_dir / "config.yaml")
    assert config.run_dir is None
    assert None not in (config.data.image_size, config.optimizer.learning_rate, config.schedule.warmup_epochs)
    assert yaml.safe_load((run.run_dir / "config.yaml").read_text())["train"]["steps"] == 12


def test_no_password_is_in_any_file(run):
    files = [path for path in run.run_dir.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_a_refused_start_leaves_no_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"model": {"name": "linear"}, "augment": {"mixup": 0.2}, "train": {"batch_size": 3}}
    for _ in range(2):
        with pytest.raises(UserError, match=r"train\.batch_size"):
            PTClassifier(**options, quiet=True, tracking={"enabled": False}).fit(
                np.zeros((40, 4, 4), np.uint8), np.arange(40) % 2
            )
    assert list(tmp_path.rglob("*-linear-*")) == []


@pytest.mark.slow
def test_what_changes_no_number_may_change_on_the_way(tmp_path, capsys):
    data = np.zeros((40, 4, 4), np.uint8), np.arange(40) % 2
    options = {"model": {"name": "linear"}, "train": {"steps": 2}, "tracking": {"enabled": False}}
    PTClassifier(**options, quiet=True, run_dir=tmp_path / "run").fit(*data)
    assert load_config(tmp_path / "run" / "config.yaml").quiet is False
    (tmp_path / "run" / "summary.json").unlink()
    assert capsys.readouterr().out == ""
    free = {"max_bad_images": 3, "device_budget_mb": 1, "max_pixels": 10**6}
    again = PTClassifier(**options, data=free, run_dir=tmp_path / "run").fit(*data)
    assert "resuming at step 2" in capsys.readouterr().out
    assert again.fitted.config.data.loader == "device"


def test_a_tracking_store_that_cannot_be_leaves_no_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = np.zeros((20, 4, 4), np.uint8), np.arange(20) % 2
    model = PTClassifier(model={"name": "linear"}, quiet=True, tracking={"uri": "postgress://h/db"})
    with pytest.raises(UserError, match="did you mean 'postgresql'"):
        model.fit(images, labels)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("fraction", mostly_slow([0.0, 0.25], {0.25}))
def test_what_to_do_next_is_what_can_be_done(tmp_path, monkeypatch, capsys, fraction):
    """A run that was not tested cannot be compared; it can be given a test set."""
    monkeypatch.setattr(report, "log_to_stderr", lambda: None)
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    options = {"model": {"name": "linear"}, "train": {"steps": 2}, "tracking": {"enabled": False}}
    model = PTClassifier(**options, data={"test_fraction": fraction}, run_dir=tmp_path / "run")
    model.fit(images, np.arange(60) % 3)
    assert (model.summary["test_accuracy"] is None) == (fraction == 0)
    shown = capsys.readouterr().out
    assert ("benchmark" in shown, "test_fraction" in shown) == (fraction > 0, fraction == 0)
