"""A run directory belongs to the images and labels that its run began with, finished or not, quiet or not."""

import json

import numpy as np
import pytest

import jaxtrain
from jaxtrain import FEClassifier, PTClassifier, UserError
from jaxtrain.cli.main import run
from jaxtrain.config_io import load_config
from jaxtrain.data.sources import load_dataset

QUIET = {"quiet": True, "tracking": {"enabled": False}, "model": {"name": "linear"}}


def arrays(count=60, classes=3, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    return images, np.arange(count) % classes


def classifier(folder, **options):
    return PTClassifier(run_dir=folder, **{**QUIET, "train": {"steps": 2, "batch_size": 16}, **options})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    classifier(folder).fit(*arrays())
    return folder


OTHERS = {
    "images": (arrays(seed=1), {}, r"sha256 \w{12} -> "),
    "number": (arrays(63), {}, "training images 54 -> "),
    "labels": ((arrays()[0], np.arange(60)[::-1] % 3), {}, r"sha256 \w{12} -> "),
    "classes": (arrays(classes=2), {}, r"classes \[0, 1, 2\] -> \[0, 1\]"),
    "names": (arrays(), {"class_names": ("a", "b", "c")}, r"classes \[0, 1, 2\] -> \[a, b, c\]"),
    "validation": (arrays(), {"validation": arrays(9)}, "validation images 6 -> 9"),
}


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("other", OTHERS)
def test_other_data_is_refused_by_what_differs(other, done, finished, tmp_path):
    data, options, named = OTHERS[other]
    summary, aside = finished / "summary.json", tmp_path / "summary.json"
    if not done:
        summary.rename(aside)
    try:
        with pytest.raises(UserError, match=named):
            classifier(finished).fit(*data, **options)
    finally:
        if not done:
            aside.rename(summary)


def test_the_same_data_is_the_same_run(finished):
    again = classifier(finished).fit(*arrays())
    np.testing.assert_array_equal(
        again.predict_logits(arrays()[0]), jaxtrain.load(finished).predict_logits(arrays()[0])
    )


def test_the_default_data_set_is_not_that_of_arrays(finished):
    with pytest.raises(UserError, match=r"data\.name"):
        run(["train", "--technique", "pt", "--run-dir", str(finished), "--quiet", "True"])


def test_other_options_of_a_finished_run_are_refused(finished):
    with pytest.raises(UserError, match=r"train\.steps 2 -> 3"):
        classifier(finished, train={"steps": 3, "batch_size": 16}).fit(*arrays())


def test_a_run_on_arrays_is_recorded_as_such_and_names_no_data_set(finished):
    config = load_config(finished / "config.yaml")
    assert config.data.name == "arrays"
    with pytest.raises(UserError, match="arrays"):
        load_dataset(config.data)
    assert len(json.loads((finished / "data.json").read_text())["sha256"]) == 64
    with pytest.raises(UserError, match=r"data\.name.*arrays"):
        jaxtrain.benchmark([finished])


@pytest.mark.slow
def test_feature_extraction_asks_for_its_data_too(tmp_path, finished, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {**QUIET, "model": {"weights": str(finished)}, "run_dir": tmp_path / "fe", "head": {"name": "ncm"}}
    FEClassifier(**options).fit(*arrays())
    with pytest.raises(UserError, match="training images"):
        FEClassifier(**options).fit(*arrays(66))
