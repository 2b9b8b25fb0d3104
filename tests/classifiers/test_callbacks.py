"""Callbacks of a user's own: the moments, what they see, and that they may stop a run."""

import json

import numpy as np
import pytest

import jaxtrain
from jaxtrain import Callback, PTClassifier

OPTIONS = {"model": {"name": "linear"}, "quiet": True, "tracking": {"enabled": False}}


def images():
    return np.random.default_rng(0).integers(0, 255, (80, 8, 8), np.uint8), np.arange(80) % 4


class Watching(Callback):
    def __init__(self, stop_at=None):
        self.seen, self.stop_at = [], stop_at

    def step(self, step, metrics, run):
        self.seen.append(("step", step, metrics["loss"]))
        return step == self.stop_at

    def evaluation(self, step, metrics, run):
        self.seen.append(("evaluation", step, metrics["val/accuracy"]))
        assert {"params", "frozen", "model_state"} == run.weights().keys()

    def checkpoint(self, step, metrics, run):
        self.seen.append(("checkpoint", step, run.progress.step))

    def end(self, step, metrics, run):
        self.seen.append(("end", step, run.total_steps))


def fit(folder, callbacks, **train):
    train = {"steps": 10, "batch_size": 18, "log_every": 1, **train}
    return PTClassifier(run_dir=folder, callbacks=callbacks, train=train, **OPTIONS).fit(*images())


def test_every_moment_with_what_the_journal_has(tmp_path):
    watching = Watching()
    model = fit(tmp_path / "run", [watching])
    steps = {step: loss for moment, step, loss in watching.seen if moment == "step"}
    records = [json.loads(line) for line in (model.run_dir / "metrics.jsonl").read_text().splitlines()]
    logged = {record["step"]: record["train/loss"] for record in records if "train/loss" in record}
    assert steps == pytest.approx(logged)
    assert list(steps) == list(range(1, 11))
    evaluated = {step: value for moment, step, value in watching.seen if moment == "evaluation"}
    assert evaluated == {r["step"]: r["val/accuracy"] for r in records if "val/accuracy" in r}
    assert watching.seen[-2:] == [("checkpoint", 10, 10), ("end", 10, 10)]


@pytest.mark.slow
def test_a_callback_ends_training_for_good(tmp_path):
    model = fit(tmp_path / "run", [Watching(stop_at=6)])
    assert model.summary["steps"] == 6
    (tmp_path / "run" / "summary.json").unlink()
    again = fit(tmp_path / "run", [])
    assert again.summary["steps"] == 6
    assert again.summary["params_sha256"] == model.summary["params_sha256"]


def test_any_object_with_such_a_method_will_do(tmp_path):
    class Plain:
        def evaluation(self, step, metrics, run):
            return True

    assert fit(tmp_path / "run", [Plain()]).summary["steps"] == 4


@pytest.mark.slow
def test_an_error_in_a_callback_ends_the_run_and_it_can_go_on(tmp_path):
    class Broken(Callback):
        def step(self, step, metrics, run):
            if step == 5:
                raise ValueError("broken")

    with pytest.raises(jaxtrain.RunError, match="broken"):
        fit(tmp_path / "run", [Broken()])
    whole = fit(tmp_path / "whole", [])
    assert fit(tmp_path / "run", []).summary["params_sha256"] == whole.summary["params_sha256"]
