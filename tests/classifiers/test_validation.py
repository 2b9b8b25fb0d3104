"""Weights measured on sets that they were not trained on: which outputs count, and what is right."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import jaxtrain
from jaxtrain.cli.main import run
from jaxtrain.config import DataConfig
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import UserError
from jaxtrain.evaluation.predictions import Predictions
from jaxtrain.models.weights import export_timm
from tests.models.weights.test_golden import network

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    words = ["benchmark", str(model.run_dir), *QUICK, *words[2:]]
    run([*words, "--data.task", "any_of", "--out", "finished"])
    assert json.loads(Path("finished/results.json").read_text())["models"][0]["accuracy"] == entry["accuracy"]


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_table_of_one_split_alone_is_measured(here, split):
    names = pictures(here, np.zeros((4, 4, 4), np.uint8) + 200)
    rows = [("path", "label", "split"), *((name, "ab"[i % 2], split) for i, name in enumerate(names))]
    with open("table.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(UserError, match="train"):
        load_dataset(DataConfig(name="csv:table.csv"))
    dataset = load_dataset(DataConfig(name="csv:table.csv", split=split))
    assert (len(dataset.train), dataset.val, len(dataset.open_test())) == (0, None, 4)


def test_what_is_measured_alone_is_not_trained_on(here):
    for option in ({"split": "test"}, {"task": "any_of"}):
        with pytest.raises(UserError, match=next(iter(option))):
            jaxtrain.PTClassifier(data=option, tracking={"enabled": False}, quiet=True).fit()


@pytest.fixture(scope="module")
def timms(tmp_path_factory):
    """A tiny network's arrays in timm's names, with a head for five classes."""
    path = tmp_path_factory.mktemp("timms") / "w.safetensors"
    return load_file(export_timm(network("convnext_test", 32, 3), path))


def write(arrays, name="convnext_test.safetensors"):
    save_file(arrays, name)
    return name


def without(arrays, part):
    return {name: array for name, array in arrays.items() if part not in name}


@pytest.mark.slow
def test_files_of_others_have_no_class_names(timms, here):
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    classes(here / "set", images, np.arange(8) % 5, (*NAMES, "eel"))
    words = ("--weights", write(timms), "--data.split", "train")
    validate(*words, "--data.name", "folder:set", "--out", "all")
    assert "5 classes, matched by place" in json.loads(Path("all/results.json").read_text())["warnings"][0]
    classes(here / "numbers", images[:4], np.arange(4) % 2, ("3", "1"))
    validate(*words, "--data.name", "folder:numbers", "--out", "some")
    (path,) = here.glob("runs/weights/numbers-*")
    (whole,) = here.glob("runs/weights/set-*")
    one, all_of = (jaxtrain.load(folder).predict_logits(images) for folder in (path, whole))
    np.testing.assert_allclose(one, all_of[:, [1, 3]], atol=1e-5)


def test_weights_that_cannot_be_measured_are_refused_in_one_line(timms, here):
    classes(here / "set", np.full((4, 8, 8), 200, np.uint8), np.arange(4) % 2, ("ant", "bee"))
    head = next(name for name in timms if name.startswith("head.fc") and name.endswith("weight"))
    nan = {**timms, head: np.full_like(timms[head], np.nan)}
    Path("odd.json").write_text('{"ant": "wasp"}')
    Path("half.json").write_text('{"ant": 0}')
    Path("twice.yaml").write_text("ant: 1\nbee: 1\n")
    Path("far.yaml").write_text("ant: 1\nbee: 9\n")
    Path("wide.csv").write_text("ant,1,2\nbee,2,3\n")
    Path("map.txt").write_text("ant 1")
    Path("broken.json").write_text('{"ant":')
    sound = write(timms)
    for weights, words, reason in (
        ("gone.safetensors", [], "gone"),
        (write(without(timms, "head.fc"), "convnext_test.headless.safetensors"), [], "no classification head"),
        (write(nan, "convnext_test.nan.safetensors"), [], "not finite"),
        (sound, [], "'ant'.*5 classes"),
        (sound, ["--classes", "none.json"], "none.json"),
        (sound, ["--classes", "odd.json"], "says nothing|wasp"),
        (sound, ["--classes", "half.json"], "'bee'"),
        (sound, ["--classes", "twice.yaml"], "ant and bee"),
        (sound, ["--classes", "far.yaml"], "'9'"),
        (sound, ["--classes", "wide.csv"], "3 columns"),
        (sound, ["--classes", "map.txt"], "map.txt"),
        (sound, ["--classes", "broken.json"], "broken.json"),
        (sound, ["--data.split", "val"], "no val images"),
        (sound, ["--data.split", "tran"], "train"),
        (sound, ["--data.shots", "2"], "data.shots"),
        (sound, ["--model-name", "convnxt_test"], "convnext_test"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            validate("--data.name", "folder:set", "--data.split", "train", "--weights", weights, *words)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"data\.name"):
        validate("--weights", sound)
    assert not list(here.glob("runs/*"))
