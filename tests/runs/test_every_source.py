"""Whatever form the same images come in, a run learns the same from them, bit for bit."""

import json

import numpy as np
import pytest
from PIL import Image

import jaxtrain
from jaxtrain import FEClassifier, FTClassifier, PTClassifier, UserError
from jaxtrain.cli.main import run
from jaxtrain.config import DataConfig
from jaxtrain.data.sources import load_dataset
from tests.data.forms import FORMS, OBJECTS

QUIET = {"quiet": True, "tracking": {"enabled": False}}
SMALL = {"train": {"steps": 3, "batch_size": 16}, "augment": {"policy": "light"}}


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


def fit(way, name, folder, weights, given=None):
    kind, options = WAYS[way]
    options = {**options, "data": {**options["data"], **({"name": name} if given is None else {})}}
    if not options["model"]:
        options["model"] = {"weights": str(weights)}
    if kind is FEClassifier:
        options["features"] = {"store": folder / "store"}
    summary = kind(run_dir=folder / "run", **QUIET, **options).fit(**(given or {})).summary
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


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", OBJECTS)
def test_every_object_in_every_way(form, way, root, weights, of_folder, tmp_path):
    given = OBJECTS[form](root, tmp_path)
    assert fit(way, None, tmp_path, weights, given) == of_folder(way)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pictures", "map style", "own source", "hugging face"])
def test_what_is_trained_takes_the_same_objects(form, root, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where looks at test sets are counted
    model, given = jaxtrain.load(weights), OBJECTS[form](root, tmp_path)
    if "test" not in given:
        given = {**given, "test": given["images"]["test"]}
    test = given["test"]
    folder = load_dataset(DataConfig(name=f"folder:{root}")).open_test()
    images, labels = test if isinstance(test, tuple) else (test, None)
    expected = model.predict_logits(folder)
    np.testing.assert_array_equal(model.predict_logits(images), expected)
    accuracy = np.mean(expected.argmax(1) == folder.labels)
    assert model.evaluate(images, labels)["accuracy"] == model.score(images, labels) == pytest.approx(accuracy)
    report = jaxtrain.benchmark({"it": model}, test, costs=False, duplicates=False, resamples=20)
    assert report.comparison.entries[0].score == pytest.approx(accuracy)


@pytest.mark.slow
def test_images_without_labels_are_predicted_and_not_measured(root, weights):
    model, files = jaxtrain.load(weights), [str(path) for path in sorted((root / "test").rglob("*.png"))]
    assert len(model.predict(files)) == 12
    with pytest.raises(UserError, match="without labels"):
        model.evaluate(files)
    unlabelled = Dataset([{"image": np.asarray(Image.open(file))} for file in files])
    np.testing.assert_array_equal(model.predict(unlabelled), model.predict(files))


class Dataset:
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.mark.slow
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
    head, *lines = (tmp_path / "table.csv").read_text().splitlines()
    lines.sort(key=lambda line: not line.endswith("train"))
    black = tmp_path / "black.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(black)
    path = lines[0].partition(",")[0]
    digests: list[str] = []
    for image in (path, str(black)):
        rows = [f"{head},weight", f"{lines[0]},0".replace(path, image), *(f"{line},1" for line in lines[1:])]
        (tmp_path / "table.csv").write_text("\n".join(rows))
        for loader in ("device", "stream"):
            options = {
                **SMALL,
                "model": {"name": "linear"},
                "data": {"name": name, "loader": loader, "mean": [0.5] * 3, "std": [0.5] * 3},
            }
            folder = tmp_path / f"run{len(digests)}"
            digests.append(PTClassifier(run_dir=folder, **QUIET, **options).fit().summary["params_sha256"])
    assert len(set(digests)) == 1
