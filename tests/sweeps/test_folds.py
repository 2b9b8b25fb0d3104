"""Cross-validation: one sweep trains every fold, and the Benchmark has one entry of all their predictions."""

import json

import numpy as np
import pytest
from scipy.stats import t
from sklearn.model_selection import StratifiedGroupKFold

from jaxtrain.cli.main import run
from jaxtrain.config_io import load_config
from jaxtrain.errors import UserError
from jaxtrain.evaluation.predictions import Predictions
from jaxtrain.sweeps.config import load_sweep
from jaxtrain.sweeps.plan import describe, make_plan

FOLDS, PATIENTS = 3, 12
FILE = """
base:
  technique: pt
  model: {name: mlp_tiny}
  data: {name: "parquet:set.parquet", folds: 3, group: patient, val_fraction: 0.25}
  train: {steps: 3, batch_size: 8}
  tracking: {enabled: false}
workers: 1
"""


@pytest.fixture
def labels(tmp_path, monkeypatch):
    """A table of 48 images of 12 patients and two classes, here; returns their labels."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng, rows = np.random.default_rng(0), []
    for i in range(48):
        label = int(i % PATIENTS >= PATIENTS // 2)
        Image.fromarray(rng.integers(0, 100, (6, 6), np.uint8) + np.uint8(100 * label)).save(
            file := io.BytesIO(), "png"
        )
        image = {"bytes": file.getvalue(), "path": None}
        rows.append({"image": image, "label": ["cat", "dog"][label], "patient": f"p{i % PATIENTS:02}"})
    pq.write_table(pa.Table.from_pylist(rows), "set.parquet")
    return np.array([row["label"] == "dog" for row in rows], np.int32)


def test_the_plan_has_every_fold(labels, tmp_path):
    (tmp_path / "cv.yaml").write_text(FILE + "seeds: 2\naxes: {optimizer.learning_rate: [0.001, 0.01]}\n")
    plan = make_plan(load_sweep(tmp_path / "cv.yaml"), tmp_path / "cv.yaml")
    assert describe(plan, 0)[0] == "Sweep cv: 2 settings x 2 seeds x 3 folds = 12 runs"
    assert len({run.name for run in plan.runs}) == len({run.digest for run in plan.runs}) == 12
    assert len({run.setting.digest for run in plan.runs}) == 2


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("axes: {data.fold: [0, 1]}", r"axes: data\.fold: data\.folds is an option of the base"),
        ("axes: {data.folds: [3, 4]}", r"axes: data\.folds"),
        ("combine: zip", r"axes is missing"),
        ("axes: []", r"axes: must be a mapping"),
    ],
)
def test_files_of_folds_that_are_wrong(labels, tmp_path, more, told):
    (tmp_path / "cv.yaml").write_text(FILE + more)
    with pytest.raises(UserError, match=told):
        make_plan(load_sweep(tmp_path / "cv.yaml"), tmp_path / "cv.yaml")


@pytest.mark.slow
def test_out_of_fold_predictions_are_one_entry(labels, tmp_path, capsys):
    (tmp_path / "cv.yaml").write_text(FILE)
    run(["sweep", "cv.yaml"])
    assert "1 setting x 1 seed x 3 folds = 3 runs" in capsys.readouterr().out
    runs = sorted((tmp_path / "runs" / "sweeps" / "cv").glob("base-*-s0-f?"))
    assert [load_config(path / "config.yaml").data.fold for path in runs] == [0, 1, 2]
    parts = [Predictions.load(path / "benchmark" / "predictions.npz") for path in runs]

    results = tmp_path / "runs" / "sweeps" / "cv" / "results"
    (model,) = json.loads((results / "benchmark" / "results.json").read_text())["models"]
    whole = Predictions.load(runs[0] / "benchmark" / "out-of-fold" / "predictions.npz")
    assert len(whole.ids) == len(set(whole.ids)) == 48
    right = np.concatenate([part.logits.argmax(1) == part.labels for part in parts])
    assert model["accuracy"] == pytest.approx(right.mean())

    groups = np.arange(48) % PATIENTS
    split = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels, groups)
    assert [part.labels.tolist() for part in parts] == [labels[held].tolist() for _, held in split]

    shares = [(part.logits.argmax(1) == part.labels).mean() for part in parts]
    over = model["over_folds"]["accuracy"]
    half = t.ppf(0.975, FOLDS - 1) * np.std(shares, ddof=1) * np.sqrt(1 / FOLDS + 1 / (FOLDS - 1))
    assert over["values"] == pytest.approx(shares)
    assert over["interval"] == pytest.approx([max(np.mean(shares) - half, 0), min(np.mean(shares) + half, 1)])
    assert "Over folds" in (results / "benchmark" / "report.html").read_text()

    best = load_config(results / "best.yaml")
    assert (best.data.folds, best.data.fold, best.data.group) == (None, None, "patient")

    run(["benchmark", *map(str, reversed(runs)), "--skip-costs", "--out", "page", "--tracking.enabled", "False"])
    (again,) = json.loads((tmp_path / "page" / "results.json").read_text())["models"]
    assert again["over_folds"] == model["over_folds"]
    with pytest.raises(UserError, match="give the runs of all 3"):
        run(["benchmark", *map(str, runs[:2]), "--skip-costs"])


def test_a_single_run_of_folds_says_how_they_are_trained(labels):
    with pytest.raises(UserError, match=r"data\.folds 3 is trained by a sweep"):
        run(["train", "--technique", "pt", "--data.name", "parquet:set.parquet", "--data.folds", "3"])
