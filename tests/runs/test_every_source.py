"""Whatever form the same images come in, a run learns the same from them, bit for bit."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxtrain import FEClassifier, FTClassifier, PTClassifier
from jaxtrain.cli.main import run
from tests.data.forms import FORMS, write_folder

QUIET = {"quiet": True, "tracking": {"enabled": False}}
SMALL = {"train": {"steps": 3, "batch_size": 16}, "augment": {"policy": "light"}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Class folders under train, val and test, of images that can be told apart."""
    root = tmp_path_factory.mktemp("images")
    write_folder(root)
    return root


@pytest.fixture(scope="module")
def weights(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pt") / "run"
    options = {"model": {"name": "cnn_tiny"}, "data": {"name": f"folder:{root}"}, "train": {"steps": 1}}
    return PTClassifier(run_dir=folder, **QUIET, **options).fit().run_dir


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


WAYS = {
    "pt on the device": (PTClassifier, {"data": {"loader": "device"}, "model": {"name": "linear"}, **SMALL}),
    "pt streamed": (PTClassifier, {"data": {"loader": "stream"}, "model": {"name": "linear"}, **SMALL}),
    "ft on the device": (FTClassifier, {"data": {"loader": "device"}, "model": {}, **SMALL}),
    "ft streamed": (FTClassifier, {"data": {"loader": "stream"}, "model": {}, **SMALL}),
    "fe": (FEClassifier, {"head": {"name": "ncm"}, "data": {}, "model": {}}),
}


def fit(way, name, folder, weights):
    kind, options = WAYS[way]
    options = {**options, "data": {**options["data"], "name": name}}
    if not options["model"]:
        options["model"] = {"weights": str(weights)}
    if kind is FEClassifier:
        options["features"] = {"store": folder / "store"}
    summary = kind(run_dir=folder / "run", **QUIET, **options).fit().summary
    return {key: summary[key] for key in ("params_sha256", "val_accuracy", "test_loss", "classes")}


@pytest.fixture(scope="module")
def of_folder(root, weights, tmp_path_factory):
    """What runs on the folder learn, by way."""
    found = {}

    def of(way):
        if way not in found:
            found[way] = fit(way, f"folder:{root}", tmp_path_factory.mktemp("folder"), weights)
        return found[way]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMS)
def test_every_source_in_every_way(form, way, root, weights, of_folder, tmp_path):
    name = FORMS[form](root, tmp_path)
    assert fit(way, name, tmp_path, weights) == of_folder(way)


def test_a_table_from_the_command_line(root, of_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = FORMS["csv"](root, tmp_path)
    words = ["--technique", "pt", "--data.name", name, "--run-dir", "run", "--tracking.enabled", "False", "--quiet"]
    more = ["--model.name", "linear", "--train.steps", "3", "--train.batch-size", "16", "--augment.policy", "light"]
    run(["train", *words, *more, "--data.columns.label", "label"])
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["params_sha256"] == of_folder("pt on the device")["params_sha256"]


@pytest.mark.slow
def test_weights_of_a_table_count_streamed_as_on_the_device(root, tmp_path):
    """An image of weight 0 teaches nothing: its pixels may be others."""
    name = FORMS["csv"](root, tmp_path)
    lines = (tmp_path / "table.csv").read_text().splitlines()
    black = tmp_path / "black.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(black)
    path = lines[1].partition(",")[0]
    digests = []
    for image in (path, str(black)):
        rows = [f"{lines[0]},weight", f"{lines[1]},0".replace(path, image), *(f"{line},1" for line in lines[2:])]
        (tmp_path / "table.csv").write_text("\n".join(rows))
        for loader in ("device", "stream"):
            options = {**SMALL, "model": {"name": "linear"}, "data": {"name": name, "loader": loader}}
            folder = tmp_path / f"run{len(digests)}"
            digests.append(PTClassifier(run_dir=folder, **QUIET, **options).fit().summary["params_sha256"])
    assert len(set(digests)) == 1
