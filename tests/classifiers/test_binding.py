"""A classifier never changes: a run works on a copy, and leaves nothing but its result."""

import copy
import pickle

import numpy as np
import pytest

from jaxtrain import FEClassifier, FTClassifier, PTClassifier
from tests.marks import mostly_slow

QUIET = {"quiet": True, "tracking": {"enabled": False}}
SHORT = {"train": {"steps": 4, "batch_size": 16}, **QUIET}


def images(side, channels, level, classes=3):
    pixels = np.random.default_rng(level).integers(0, level, (48, side, side, channels), np.uint8)
    return pixels, np.arange(48) % classes


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    model = PTClassifier(run_dir=tmp_path_factory.mktemp("pt") / "backbone", model={"name": "vit_test"}, **SHORT)
    return str(model.fit(*images(32, 3, 255, 4)).run_dir)


def classifiers(backbone):
    return {
        "pt": PTClassifier(model={"name": "cnn_tiny"}, **SHORT),
        "ft": FTClassifier(model={"weights": backbone}, finetune={"strategy": "lora"}, **SHORT),
        "fe": FEClassifier(model={"weights": backbone}, **QUIET),
    }


@pytest.mark.parametrize("technique", mostly_slow(["pt", "ft", "fe"], {"pt"}))
def test_a_fit_leaves_nothing_but_its_result(technique, backbone):
    model = classifiers(backbone)[technique]
    before = copy.deepcopy(vars(model))
    model.fit(*images(32, 3, 200))
    model.predict(images(32, 3, 200)[0])
    after = vars(model)
    assert after["_fitted"] is not None
    assert {**after, "_fitted": None} == {**before, "_fitted": None}


@pytest.mark.parametrize("technique", ["pt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ft", "fe"))])
def test_a_second_fit_on_other_images_is_as_that_of_a_fresh_classifier(technique, backbone):
    first, second = images(32, 3, 200), images(16, 1, 90, classes=5)
    again = classifiers(backbone)[technique].fit(*first).fit(*second)
    fresh = classifiers(backbone)[technique].fit(*second)
    assert again.fitted.config == fresh.fitted.config
    assert again.summary["params_sha256"] == fresh.summary["params_sha256"]
    assert again.run_dir != fresh.run_dir


@pytest.mark.slow
def test_a_fitted_classifier_can_be_copied_and_pickled(backbone):
    model = classifiers(backbone)["ft"]
    pixels, labels = images(32, 3, 200)
    expected = model.fit(pixels, labels).predict_logits(pixels)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.predict_logits(pixels), expected)
