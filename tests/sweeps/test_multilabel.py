"""A sweep over runs on images with several labels each."""

import json

import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.sweeps.config import load_sweep
from jaxtrain.sweeps.plan import make_plan
from tests.sweeps.sweeping import finish, start, summaries, write

BASE = "  data: {name: 'npz:set.npz'}\n  technique: pt"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 3)) < 0.4).astype(int)
    images = np.zeros((300, 6, 6), np.uint8)
    for place in range(3):
        images[:, 2 * place : 2 * place + 2] = labels[:, place, None, None] * rng.integers(40, 256, (300, 2, 6))
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images[:60], y_test=labels[:60])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def swept(folder, objective):
    path = write(folder, steps=20, more=f"objective: {objective}\n")
    path.write_text(path.read_text().replace("  technique: pt", BASE))
    return path


def test_an_objective_that_is_not_measured_is_refused_first(folder):
    path = swept(folder, "val/accuracy")
    with pytest.raises(UserError, match=r"objective: val/accuracy.*val/mAP"):
        make_plan(load_sweep(path), path)
    assert len(make_plan(load_sweep(swept(folder, "val/mAP")), path).runs) == 6


@pytest.mark.slow
def test_the_best_mean_average_precision_is_chosen(folder):
    finish(start(swept(folder, "val/mAP")))
    found = summaries(folder)
    assert len(found) == 6
    by_rate = {}
    for name, summary in found.items():
        by_rate.setdefault(name.rpartition("-s")[0], []).append(summary["val_mAP"])
    best = max(by_rate.values(), key=np.mean)
    results = folder / "runs" / "sweeps" / "tiny" / "results"
    assert f"val/mAP {100 * np.mean(best):.2f}" in (results / "best.yaml").read_text()
    tested = json.loads((results / "benchmark" / "results.json").read_text())
    assert all(0 < model["mAP"] <= 1 for model in tested["models"])
