"""scikit-learn's tools around a classifier."""

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score

import jaxtrain
from jaxtrain import FEClassifier, PTClassifier, UserError
from tests.classifiers.own_networks import Documented, focal
from tests.marks import mostly_slow

QUIET = {"quiet": True, "tracking": {"enabled": False}}
SMALL = {"model": {"name": "mlp_tiny"}, "train": {"epochs": 25, "batch_size": 32}, "optimizer": {"learning_rate": 1e-2}}


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:400], bunch.target[:400]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_clone_keeps_parts_and_options():
    model = PTClassifier(network=Documented, loss=focal, train={"epochs": 3}, seed=5, **QUIET)
    other = clone(model)
    assert other.config == model.config
    assert other.parts == model.parts
    assert is_classifier(model)
    assert other.get_params()["train__epochs"] == 3


def test_set_params_takes_options_and_refuses_what_is_none():
    model = PTClassifier(**SMALL, **QUIET).set_params(train__epochs=2, seed=3, optimizer__learning_rate=0.1)
    config = model.config
    assert (config.train.epochs, config.train.batch_size, config.seed) == (2, 32, 3)
    assert config.optimizer.learning_rate == 0.1
    with pytest.raises(UserError, match=r"train\.epoch\b"):
        model.set_params(train__epoch=2)


def test_cross_validation(digits, tmp_path):
    scores = cross_val_score(PTClassifier(**SMALL, **QUIET), *digits, cv=2)
    assert scores.min() > 0.6
    assert len(list((tmp_path / "runs" / "pt").iterdir())) == 2


@pytest.mark.slow
def test_grid_search(digits):
    model = PTClassifier(**SMALL, **QUIET)
    search = GridSearchCV(model, {"seed": [0], "optimizer__learning_rate": [1e-5, 1e-2]}, cv=2).fit(*digits)
    assert search.best_params_["optimizer__learning_rate"] == 1e-2
    assert search.score(*digits) > 0.8


@pytest.mark.slow
def test_cross_validation_of_feature_extraction_is_that_of_its_head(digits, tmp_path):
    backbone = PTClassifier(run_dir=tmp_path / "backbone", **SMALL, **QUIET).fit(*digits)
    model = FEClassifier(model={"weights": str(backbone.run_dir)}, data={"val_fraction": 0.0}, head={
        "weight_decay": (1 / 266,), "scaling": ("none",)}, **QUIET)  # fmt: skip
    scores = cross_val_score(model, *digits, cv=3)
    theirs = cross_val_score(LogisticRegression(max_iter=2000), backbone.embed(digits[0]), digits[1], cv=3)
    np.testing.assert_allclose(scores, theirs, atol=0.02)


@pytest.mark.parametrize("values", [["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibi", "jay"],
                                    [3, 5, 7, 11, 13, 17, 19, 23, 29, 31]])  # fmt: skip
def test_labels_come_out_as_they_went_in(values, digits, tmp_path):
    images, labels = digits[0], np.array(values)[digits[1]]
    model = PTClassifier(run_dir=tmp_path / "run", **SMALL, **QUIET).fit(images, labels)
    assert model.classes_.tolist() == values
    predicted = model.predict(images)
    assert predicted.dtype.kind == labels.dtype.kind
    assert model.score(images, labels) == accuracy_score(labels, predicted) > 0.8
    assert model.evaluate(images, labels)["accuracy"] == pytest.approx(model.score(images, labels))
    again = jaxtrain.load(tmp_path / "run")
    np.testing.assert_array_equal(again.predict(images), predicted)
    some = labels != values[-1]  # without the last class the others are still what they were
    hits = accuracy_score(labels[some], predicted[some])
    assert again.evaluate(images[some], labels[some])["accuracy"] == pytest.approx(hits)


@pytest.mark.parametrize("technique", mostly_slow(["pt", "fe"], {"pt"}))
def test_weights_of_images_count_as_repeating_them(technique, digits, tmp_path):
    images, labels = digits[0][:200], digits[1][:200]
    weight = np.where(labels < 5, 1.0, 0.0)
    options = {"data": {"val_fraction": 0.0}, **QUIET}
    if technique == "pt":
        model = PTClassifier(**SMALL, **options)
    else:
        backbone = PTClassifier(run_dir=tmp_path / "backbone", **SMALL, **QUIET).fit(*digits)
        head = {"weight_decay": (1e-2,), "scaling": ("none",)}
        model = FEClassifier(model={"weights": str(backbone.run_dir)}, head=head, **options)
    model.fit(images, labels, weight)
    assert set(model.predict(images)) <= set(range(5))
    assert model.score(images, labels, weight) > 0.8
    with pytest.raises(UserError, match="sample_weight"):
        model.fit(images, labels, weight[:5])
