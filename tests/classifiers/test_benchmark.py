from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score

import jaxtrain
from jaxtrain import PTClassifier, UserError
from jaxtrain.evaluation import costs
from jaxtrain.evaluation.robustness import CORRUPTIONS


def digits():
    data = load_digits()
    return (data.images * 255 / 16).round().astype(np.uint8), data.target


def fitted(name, seed, folder):
    images, labels = digits()
    classifier = PTClassifier(
        run_dir=folder / name,
        seed=seed,
        quiet=True,
        tracking={"enabled": False},
        model={"name": "linear"},
        train={"steps": 60, "batch_size": 64},
        optimizer={"learning_rate": 0.02},
    )
    return classifier.fit(images[:800], labels[:800])


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [fitted(f"m{seed}", seed, folder) for seed in range(2)]


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(costs, "SECONDS", 0.01)
    monkeypatch.setattr(costs, "BATCHES", (1, 8))
    monkeypatch.chdir(tmp_path)


def test_classifiers_on_arrays(classifiers):
    images, labels = digits()
    report = jaxtrain.benchmark(
        {"one": classifiers[0], "two": classifiers[1]}, (images[800:], labels[800:]), resamples=200
    )
    table = report.to_pandas().set_index("model")
    for name, classifier in zip(("one", "two"), classifiers, strict=True):
        assert table.loc[name, "accuracy"] == accuracy_score(labels[800:], classifier.predict(images[800:]))
        assert table.loc[name, "flops_per_image"] >= 2 * 64 * 10
        assert table.loc[name, "params"] == 650
    assert report.looks == 2
    assert json.loads(Path("runs/.test_looks.json").read_text())
    assert "</html>" in report.to_html()


def test_names_and_other_data(classifiers):
    images, labels = digits()
    report = jaxtrain.benchmark(classifiers, (images[800:1000], labels[800:1000]), costs=False, resamples=100)
    assert sorted(report.to_pandas()["model"]) == sorted(
        f"{c.run_dir.parent.name}/{c.run_dir.name}" for c in classifiers
    )
    named = jaxtrain.benchmark([classifiers[0], str(classifiers[1].run_dir)], "digits", costs=False, resamples=100)
    assert named.comparison.predictions.dataset == "digits"
    assert len(named.comparison.predictions.labels) == 360


@pytest.mark.slow
def test_heat_maps_beside_the_worst_mistakes_when_asked(classifiers, monkeypatch):
    images, labels = digits()
    test, options = (images[800:], labels[800:]), {"resamples": 100, "costs": False, "duplicates": False}
    report = jaxtrain.benchmark(classifiers, test, explain=True, **options)
    assert list(report.heat) == [shown.index for shown in report.worst]
    page = (report.save(Path("with")) / "report.html").read_text()
    assert page.count("Heat map of") == len(report.worst) > 3
    assert "absolute gradients of the pixels" in page
    monkeypatch.setattr(type(classifiers[0].fitted.predictor), "explain", None)  # which is not called
    plain = jaxtrain.benchmark(classifiers, test, **options)
    assert plain.heat == {}
    assert "Heat map of" not in (plain.save(Path("without")) / "report.html").read_text()


def test_corruptions(classifiers, monkeypatch):
    from jaxtrain.evaluation import robustness

    monkeypatch.setattr(robustness, "CORRUPTIONS", {"contrast": CORRUPTIONS["contrast"]})
    images, labels = digits()
    report = jaxtrain.benchmark(
        {"m": classifiers[0]}, (images[800:], labels[800:]), costs=False, resamples=100, robustness=True
    )
    curve = report.robustness["m"]["contrast"]
    assert len(curve) == 6
    assert curve[0] == report.comparison.entries[0].score


@pytest.mark.parametrize(
    ("models", "data", "message"),
    [([], "digits", "no model was given"), ({}, None, "no model was given"), (["nowhere"], None, "no run is there")],
)
def test_what_cannot_be(models, data, message):
    with pytest.raises(UserError, match=message):
        jaxtrain.benchmark(models, data)


def test_classifiers_need_data(classifiers):
    with pytest.raises(UserError, match="no data: give the name"):
        jaxtrain.benchmark(classifiers)
    with pytest.raises(UserError, match="not trained yet"):
        jaxtrain.benchmark([PTClassifier()], "digits")


@pytest.mark.slow
def test_the_name_can_be_called_whatever_was_imported_before():
    code = (
        "from jaxtrain import benchmark as first; import jaxtrain.evaluation.metrics; from jaxtrain import benchmark;"
        "assert callable(first) and callable(benchmark) and callable(jaxtrain.benchmark)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
