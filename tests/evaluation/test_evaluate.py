from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss

import jaxtrain
from jaxtrain.config import TrackingConfig
from jaxtrain.data.base import ArraySource, Dataset, FileSource
from jaxtrain.errors import RunError, UserError
from jaxtrain.evaluation.calibration import fit_temperature
from jaxtrain.evaluation.evaluate import evaluate_on_test, track_evaluation
from jaxtrain.evaluation.predictions import Predictions
from jaxtrain.tracking import Measures
from tests.marks import mostly_slow

NAMES = ("zero", "one", "two")


def source(seed, images, origin):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (images, 5, 4, 1), dtype=np.uint8)
    return ArraySource(pixels, (np.arange(images) % 3).astype(np.int32), origin)


def dataset(test, train=None, val=None):
    opened = []

    def open_test():
        opened.append(1)
        return test

    train = train or source(1, 30, "train")
    return Dataset("shapes", NAMES, train, val, open_test, 1, (5, 4)), opened


class Linear:
    """A fixed random linear model."""

    class_names = NAMES

    def __init__(self):
        self.weights = np.random.default_rng(9).normal(size=(20, 3)).astype(np.float32) / 100

    def predict_logits(self, images):
        pixels = np.stack([images.read(i).ravel() for i in range(len(images))])
        return pixels.astype(np.float32) @ self.weights


def evaluate(data, tmp_path, classifier=None, params="a" * 64):
    return evaluate_on_test(
        classifier or Linear(),
        data,
        folder=tmp_path / "run" / "benchmark",
        technique="pt",
        model="linear",
        params_sha256=params,
        looks_file=tmp_path / "looks.json",
    )


def test_figures_equal_scikit_learn_and_are_written(tmp_path):
    test = source(2, 50, "test")
    data, opened = dataset(test)
    evaluation = evaluate(data, tmp_path)
    logits = Linear().predict_logits(test).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    accuracy = accuracy_score(test.labels, logits.argmax(1))

    assert opened == [1]
    assert evaluation.metrics["test/accuracy"] == pytest.approx(accuracy)
    assert evaluation.metrics["test/loss"] == pytest.approx(log_loss(test.labels, probabilities))
    assert all(name.startswith("test/") for name in evaluation.metrics)
    assert evaluation.measured.confusion.sum() == 50
    assert evaluation.looks == 1
    assert evaluation.duplicates == {"training": [], "validation": []}

    folder = tmp_path / "run" / "benchmark"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("confusion_matrix.png", "metrics.json", "per_class.csv", "predictions.npz")
    ]
    assert set(evaluation.artifacts) == set(folder.iterdir())
    summary = json.loads((folder / "metrics.json").read_text())
    assert summary["test/accuracy"] == evaluation.metrics["test/accuracy"]
    assert (summary["images"], summary["classes"], summary["test/looks"]) == (50, 3, 1)
    assert np.array_equal(Predictions.load(folder / "predictions.npz").logits, evaluation.predictions.logits)
    rows = list(csv.DictReader((folder / "per_class.csv").open()))
    assert [row["class"] for row in rows] == list(NAMES)
    assert sum(int(row["support"]) for row in rows) == 50
    with Image.open(folder / "confusion_matrix.png") as picture:
        assert picture.width > 300


def test_no_test_set_gives_none_and_writes_nothing(tmp_path):
    assert evaluate(dataset(None)[0], tmp_path) is None
    assert evaluate(dataset(source(0, 0, "test"))[0], tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_looks_count_models_and_not_repeats(tmp_path):
    data, _ = dataset(source(2, 12, "test"))
    models = ["a" * 64, "b" * 64, "a" * 64, "c" * 64]
    assert [evaluate(data, tmp_path, params=params).looks for params in models] == [1, 2, 2, 3]


def test_images_that_were_trained_on_are_counted_and_named(tmp_path, caplog):
    test, train, val = source(2, 12, "test"), source(1, 30, "train"), source(3, 10, "val")
    train.images[7], train.images[20] = test.images[5], test.images[2]
    val.images[0] = test.images[5]
    evaluation = evaluate(dataset(test, train, val)[0], tmp_path)
    assert sorted(evaluation.duplicates["training"]) == [(7, 5), (20, 2)]
    assert evaluation.duplicates["validation"] == [(0, 5)]
    assert "2 of 12 test images of shapes are also in the training set" in caplog.text
    assert "test image 5 is val image 0" in caplog.text
    summary = json.loads((tmp_path / "run" / "benchmark" / "metrics.json").read_text())
    assert (summary["test/duplicates_in_training"], summary["test/duplicates_in_validation"]) == (2, 1)


def test_where_copies_cannot_be_known_none_are_counted_and_that_is_said(tmp_path, caplog):
    (tmp_path / "0.png").write_bytes(b"encoded")
    train = FileSource([tmp_path / "0.png"], np.zeros(1, np.int32))
    evaluation = evaluate(dataset(source(2, 12, "test"), train)[0], tmp_path)
    assert "training" not in evaluation.duplicates
    assert "training set is unknown" in caplog.text
    summary = json.loads((tmp_path / "run" / "benchmark" / "metrics.json").read_text())
    assert "test/duplicates_in_training" not in summary


@pytest.mark.slow
@pytest.mark.parametrize("loader", mostly_slow(["device", "stream"], {"device"}))
def test_a_run_finds_copies_of_its_training_files_however_they_are_fed(tmp_path, loader):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 8, 3), np.uint8)
    for split in ("train", "test"):
        for label, images in zip(("cat", "dog"), pixels, strict=True):
            (tmp_path / split / label).mkdir(parents=True)
            for number, image in enumerate(images):
                Image.fromarray(image).save(tmp_path / split / label / f"{number}.png")
    data = {"name": f"folder:{tmp_path}", "loader": loader, "image_size": 8, "val_fraction": 0.25}
    options = {
        "augment": {"policy": "none"},
        "tracking": {"enabled": False},
        "quiet": True,
        "model": {"name": "linear"},
    }
    jaxtrain.PTClassifier(data=data, train={"steps": 1}, **options, run_dir=tmp_path / "run").fit()
    figures = json.loads((tmp_path / "run" / "benchmark" / "metrics.json").read_text())
    assert (figures["test/duplicates_in_training"], figures["test/duplicates_in_validation"]) == (12, 4)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("zero", "one"), "the model knows 2 classes, the test set of shapes has 3"),
        (("zero", "ones", "two"), "the test set of shapes has the class 'one', which the model does not know: did you"),
    ],
)
def test_other_classes_are_refused(tmp_path, names, message):
    classifier = Linear()
    classifier.class_names = names
    with pytest.raises(UserError, match=message):
        evaluate(dataset(source(2, 12, "test"))[0], tmp_path, classifier)


def test_classes_in_another_order_are_the_same(tmp_path):
    class Reordered(Linear):
        class_names = ("two", "zero", "one")

        def predict_logits(self, images):
            return super().predict_logits(images)[:, [2, 0, 1]]

    data, _ = dataset(source(2, 40, "test"), val=source(4, 20, "val"))
    same, other = (evaluate(data, tmp_path, model) for model in (Linear(), Reordered()))
    assert same.metrics == other.metrics
    assert np.array_equal(same.predictions.logits, other.predictions.logits)
    assert np.array_equal(same.predictions.val_logits, other.predictions.val_logits)


def test_the_temperature_is_that_of_the_validation_images(tmp_path):
    test, val = source(2, 40, "test"), source(4, 60, "val")
    evaluation = evaluate(dataset(test, val=val)[0], tmp_path)
    expected = fit_temperature(val.labels, Linear().predict_logits(val))
    figures = evaluation.metrics
    assert figures["test/temperature"] == expected
    cooler = Linear().predict_logits(test).astype(np.float64) / expected
    probabilities = np.exp(cooler) / np.exp(cooler).sum(1, keepdims=True)
    assert figures["test/loss_scaled"] == pytest.approx(log_loss(test.labels, probabilities))
    assert figures["test/ece_scaled"] != figures["test/ece"]
    assert "test/temperature" not in evaluate(dataset(test)[0], tmp_path).metrics


def test_validation_images_that_cannot_be_read_are_left_out(tmp_path):
    class Half(Linear):
        def predict_logits(self, images):
            logits = super().predict_logits(images)
            if images.origin == "val":
                logits[::2] = np.nan
            return logits

    val = source(4, 60, "val")
    evaluation = evaluate(dataset(source(2, 40, "test"), val=val)[0], tmp_path, Half())
    assert np.array_equal(evaluation.predictions.val_labels, val.labels[1::2])
    assert np.isfinite(evaluation.metrics["test/temperature"])


def test_headline_figures_have_intervals(tmp_path):
    figures = evaluate(dataset(source(2, 50, "test"))[0], tmp_path).metrics
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "mcc", "loss", "brier", "ece", "auroc_ovr"):
        assert figures[f"test/{name}_low"] < figures[f"test/{name}"] < figures[f"test/{name}_high"], name


def test_logits_that_are_not_finite_are_refused(tmp_path):
    classifier = Linear()
    classifier.weights[3, 1] = np.nan
    with pytest.raises(RunError, match="not finite for 12 of 12 test images"):
        evaluate(dataset(source(2, 12, "test"))[0], tmp_path, classifier)
    assert not (tmp_path / "run").exists()


class FakeTracker:
    """Records what `jaxtrain.tracking.Tracker` would be told."""

    started = None

    @classmethod
    def start(cls, config, **arguments):
        cls.started = tracker = cls()
        tracker.config, tracker.arguments = config, arguments
        tracker.metrics, tracker.paths, tracker.inputs = {}, [], []
        return tracker

    def log_input(self, *arguments):
        self.inputs.append(arguments)

    def log(self, step, metrics):
        self.metrics[step] = metrics

    def artifact(self, path):
        assert path.exists()
        self.paths.append(path.name)


def test_the_run_in_benchmark_leads_back_to_its_training_run(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxtrain.evaluation.evaluate.Tracker", FakeTracker)
    evaluation = evaluate(dataset(source(2, 12, "test"))[0], tmp_path)
    folder = tmp_path / "run" / "benchmark"
    tracker = track_evaluation(
        evaluation, TrackingConfig(), root=tmp_path, folder=folder, run_name="night", source_run_id="1f", model_id="m-1"
    )
    told = FakeTracker.started
    assert tracker is told
    assert told.arguments["measures"] == Measures("m-1", "shapes", evaluation.predictions.test_digest)
    assert (told.arguments["experiment"], told.arguments["run_name"]) == ("Benchmark", "night")
    assert told.arguments["tags"] == {
        "source_run_id": "1f",
        "params_sha256": "a" * 64,
        "test_digest": evaluation.predictions.test_digest,
        "technique": "pt",
        "model": "linear",
        "dataset": "shapes",
        "kind": "evaluation",
    }
    assert told.arguments["run_dir"].is_relative_to(folder)
    assert told.metrics[0]["test/accuracy"] == evaluation.metrics["test/accuracy"]
    assert told.metrics[0]["test/looks"] == 1
    assert sorted(told.paths) == ["confusion_matrix.png", "metrics.json", "per_class.csv", "predictions.npz"]
    assert told.inputs[0][2:4] == (evaluation.predictions.test_digest, "test")


def test_other_parameters_are_another_run(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxtrain.evaluation.evaluate.Tracker", FakeTracker)
    data, _ = dataset(source(2, 12, "test"))
    kept = []
    for params in ("a" * 64, "b" * 64, "a" * 64):
        evaluation = evaluate(data, tmp_path, params=params)
        ids = {"source_run_id": None, "model_id": None}
        track_evaluation(evaluation, TrackingConfig(), root=tmp_path, folder=tmp_path, run_name="n", **ids)
        kept.append(FakeTracker.started.arguments["run_dir"])
        assert "source_run_id" not in FakeTracker.started.arguments["tags"]
    assert kept[0] == kept[2] != kept[1]


def test_nothing_else_opens_the_test_set():
    root = Path(jaxtrain.__file__).parent
    callers = [path for path in root.rglob("*.py") if re.search(r"\.open_test\(", path.read_text())]
    # `jaxtrain pack` copies all splits, and measures nothing.
    rooms = sorted(path.relative_to(root).as_posix() for path in callers)
    assert rooms == ["data/packing.py", "evaluation/evaluate.py"]
