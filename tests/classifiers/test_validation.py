"""Weights measured on sets that they were not trained on: which outputs count, and what is right."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxtrain
from jaxtrain.cli.main import run
from jaxtrain.errors import UserError
from jaxtrain.evaluation.predictions import Predictions

NAMES = ("ant", "bee", "cat", "dog")
QUICK = ("--tracking.enabled", "False", "--resamples", "100", "--skip-costs", "--quiet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on four classes, its images (grey, of one value each by class), and their true classes."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 4
    images = (labels[:, None, None] * 60 + rng.integers(0, 60, (80, 8, 8))).astype(np.uint8)
    model = jaxtrain.PTClassifier(
        run_dir=folder / "run",
        model={"name": "mlp_tiny"},
        train={"steps": 40, "batch_size": 32},
        optimizer={"learning_rate": 1e-2},
        augment={"policy": "none"},
        tracking={"enabled": False},
        quiet=True,
    ).fit(images, np.array(NAMES)[labels])
    return model, images, labels


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(folder, images):
    """Files of these images; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{place}.png" for place in range(len(images))]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(folder / name)
    return names


def classes(folder, images, labels, names):
    for place, name in enumerate(names):
        if (labels == place).any():
            pictures(folder / name, images[labels == place])


def measured(folder="runs/benchmark"):
    (path,) = Path(folder).glob("*/results.json")
    results = json.loads(path.read_text())
    return results, results["models"][0]


def validate(*words):
    run(["validate", *QUICK, *map(str, words)])


def test_of_some_classes_their_logits_alone_count(trained, here):
    model, images, labels = trained
    kept = np.flatnonzero(labels % 2 == 1)
    classes(here / "some", images[kept], labels[kept], NAMES)
    validate("--weights", model.run_dir, "--data.name", "folder:some", "--data.split", "train")
    results, entry = measured()
    wanted = model.predict_logits(images)[kept][:, [1, 3]].argmax(axis=1) == (labels[kept] == 3)
    assert results["class_names"] == ["bee", "dog"]
    assert results["images"] == len(kept)
    assert entry["accuracy"] == pytest.approx(wanted.mean())
    assert entry["model"].startswith("weights/some-run-")
    (note,) = [line for line in results["warnings"] if "2 of its 4 classes" in line]
    assert "by name" in note
    metrics = json.loads(next(Path("runs/weights").glob("*/benchmark/metrics.json")).read_text())
    assert "2 of its 4 classes" in metrics["notes"]


def test_the_same_weights_and_images_are_one_entry_and_one_look(trained, here):
    model, images, labels = trained
    classes(here / "all", images, labels, NAMES)
    words = ("--weights", model.run_dir, "--data.name", "folder:all", "--data.split", "train")
    validate(*words)
    (kept,) = here.glob("runs/weights/*/benchmark/predictions.npz")
    before = kept.stat().st_mtime_ns
    validate(*words, "--out", "again")
    assert kept.stat().st_mtime_ns == before
    assert len(list(here.glob("runs/weights/*"))) == 1
    assert json.loads(Path("again/results.json").read_text())["looks"] == 1
    np.testing.assert_allclose(
        Predictions.load(kept).logits[np.argsort(kept_order(labels))], model.predict_logits(images), atol=1e-4
    )
    Image.fromarray(images[0]).save(here / "all" / "ant" / "one_more.png")
    validate(*words, "--out", "changed")
    assert len(list(here.glob("runs/weights/*"))) == 2


def kept_order(labels):
    """Places of the images as a folder of classes lists them: by class, then by name."""
    order = []
    for place in range(4):
        mine = np.flatnonzero(labels == place)
        order += [mine[i] for i in np.argsort([f"{n}.png" for n in range(len(mine))])]
    return np.array(order)


@pytest.mark.parametrize("kind", ["json", "yaml", "csv"])
def test_a_file_maps_the_classes(trained, here, kind):
    model, images, labels = trained
    theirs = ("wasp", "Katze", "hound")
    kept = np.flatnonzero(labels > 0)
    classes(here / "other", images[kept], labels[kept] - 1, theirs)
    mapping = {"wasp": "bee", "Katze": 2, "hound": "DOG"}
    if kind == "csv":
        with open("map.csv", "w", newline="") as file:
            csv.writer(file).writerows([("class", "of weights"), *mapping.items()])
    else:
        Path(f"map.{kind}").write_text(json.dumps(mapping))
    words = ("--weights", model.run_dir, "--data.name", "folder:other", "--data.split", "train")
    with pytest.raises(UserError, match=r"Katze.*--classes"):
        validate(*words)
    validate(*words, "--classes", f"map.{kind}")
    _, entry = measured()
    logits = model.predict_logits(images)[kept][:, [1, 2, 3]]
    assert entry["accuracy"] == pytest.approx(np.mean(logits.argmax(axis=1) == labels[kept] - 1))


def test_of_several_right_answers_one_is_enough(trained, here):
    model, images, _ = trained
    names = pictures(here / "real", images)
    rng = np.random.default_rng(1)
    right = [set(rng.choice(NAMES, rng.integers(0, 4), replace=False)) for _ in names]
    right[:4] = [set(NAMES)] * 4
    with open("real/real.csv", "w", newline="") as file:
        rows = [(name, "|".join(sorted(each))) for name, each in zip(names, right, strict=True)]
        csv.writer(file).writerows([("path", "label"), *rows])
    words = ("--weights", model.run_dir, "--data.name", "csv:real/real.csv", "--data.split", "train")
    validate(*words, "--data.task", "any_of")
    results, entry = measured()
    labelled = [place for place, each in enumerate(right) if each]
    predicted = model.predict_logits(images).argmax(axis=1)
    assert entry["accuracy"] == pytest.approx(np.mean([NAMES[predicted[i]] in right[i] for i in labelled]))
    assert results["images"] == len(labelled)
    (note,) = [line for line in results["warnings"] if "without a label" in line]
    assert f"{len(names) - len(labelled)} images" in note
