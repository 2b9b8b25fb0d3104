"""Feature extraction from Python: a backbone of our own, its embeddings computed once, heads on them."""

import csv
import json

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from jaxtrain import FEClassifier, PTClassifier, UserError, load
from jaxtrain.evaluation.costs import costs_of_training
from jaxtrain.models.weights import load_pretrained

OFF = {"enabled": False}


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return (bunch.images * 255 / 16).round().astype(np.uint8), bunch.target


@pytest.fixture(scope="module")
def backbone(digits, tmp_path_factory):
    """The directory of a run that has learned the digits 0 to 4."""
    images, labels = digits
    small = labels < 5
    folder = tmp_path_factory.mktemp("pt") / "run"
    options = {
        "model": {"name": "cnn_tiny"},
        "train": {"epochs": 15, "batch_size": 64},
        "optimizer": {"learning_rate": 5e-3},
    }
    PTClassifier(run_dir=folder, quiet=True, tracking=OFF, **options).fit(images[small], labels[small])
    return folder


def extractor(backbone, folder, name="fe", **options):
    features = {"store": folder / "store", **options.pop("features", {})}
    return FEClassifier(
        run_dir=folder / name, quiet=True, tracking=OFF, model={"weights": str(backbone)}, features=features, **options
    )


@pytest.fixture(scope="module")
def halves(digits):
    """The digits 5 to 9: training and test images."""
    images, labels = digits
    big = np.flatnonzero(labels >= 5)
    order = np.random.default_rng(0).permutation(big)
    return (images[order[:600]], labels[order[:600]]), (images[order[600:]], labels[order[600:]])


@pytest.fixture(scope="module")
def run(backbone, halves, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fe")
    return extractor(backbone, folder).fit(*halves[0], test=halves[1]), folder


@pytest.mark.slow
def test_a_head_on_a_backbone_that_never_saw_these_classes(run, halves):
    classifier, _ = run
    (_, _), (images, labels) = halves
    summary = classifier.summary
    assert summary["test_accuracy"] > 0.75
    assert summary["test_accuracy"] == pytest.approx(np.mean(classifier.predict(images) == labels))
    assert summary["embedding_dim"] == 16
    assert summary["cache_hit"] is False
    assert {"embedding_seconds", "head_seconds", "head_settings", "val_accuracy", "params_sha256"} <= set(summary)
    assert summary["trainable_params"] < 300 < summary["params"]


def test_the_head_agrees_with_scikit_learn_on_the_same_vectors(run, halves):
    classifier, _ = run
    (images, labels), (test_images, test_labels) = halves
    decay = classifier.summary["head_settings"]["weight_decay"]
    x, y = classifier.embed(images), labels
    scaling = classifier.summary["head_settings"]["scaling"]
    if scaling == "standard":
        mean, std = x.mean(0), x.std(0)
    else:
        mean, std = 0.0, 1.0
    if scaling != "l2":
        reference = LogisticRegression(C=1 / (decay * 540), max_iter=5000).fit((x - mean) / std, y)
        theirs = reference.score((classifier.embed(test_images) - mean) / std, test_labels)
        assert abs(theirs - classifier.summary["test_accuracy"]) < 0.02  # trained on a tenth more


def test_a_second_run_computes_no_embedding(run, backbone, halves, monkeypatch):
    from jaxtrain.runs.extraction import Extractor

    first, folder = run

    def never(*_):
        raise AssertionError("an embedding was computed")

    monkeypatch.setattr(Extractor, "rows", never)
    again = extractor(backbone, folder, name="again").fit(*halves[0], test=halves[1])
    assert again.summary["cache_hit"] is True
    assert again.summary["params_sha256"] == first.summary["params_sha256"]
    assert again.summary["test_loss"] == first.summary["test_loss"]


def test_what_is_loaded_predicts_the_same(run, halves, tmp_path):
    classifier, _ = run
    images = halves[1][0][:20]
    loaded = load(classifier.run_dir)
    assert isinstance(loaded, FEClassifier)
    np.testing.assert_array_equal(loaded.predict_logits(images), classifier.predict_logits(images))
    copy = FEClassifier.load(classifier.save(tmp_path / "copy"))
    np.testing.assert_array_equal(copy.predict(images), classifier.predict(images))


def test_a_finished_run_is_not_repeated(run, backbone, halves, capsys):
    classifier, folder = run
    again = extractor(backbone, folder).fit(*halves[0], test=halves[1])
    assert again.summary == json.loads((classifier.run_dir / "summary.json").read_text())


def test_pictures_are_made(run):
    classifier, _ = run
    names = {path.name for path in classifier.run_dir.iterdir()}
    assert {"head_grid.png", "embeddings.png", "neighbours.png", "metrics.jsonl"} <= names


def test_the_grid_is_a_table_and_the_journal_has_the_chosen_setting_alone(run):
    classifier, _ = run
    summary, folder = classifier.summary, classifier.run_dir
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validated = [record for record in records if "val/accuracy" in record]
    assert [record["step"] for record in validated] == [summary["best_step"]]
    assert validated[0]["val/accuracy"] == summary["val_accuracy"]
    shares = round(summary["val_accuracy"] * 60) / 60  # of the images, in no other precision
    assert summary["val_accuracy"] == shares
    grid = list(csv.DictReader((folder / "head_grid.csv").open()))
    assert len(grid) == summary["steps"] == 45
    assert [place for place, row in enumerate(grid) if row["chosen"] == "True"] == [summary["best_step"]]
    assert float(grid[summary["best_step"]]["val_loss"]) == min(float(row["val_loss"]) for row in grid)
    assert not any("grid/" in name for record in records for name in record)


def test_the_training_of_the_weights_is_counted(run, backbone):
    classifier, _ = run
    before = json.loads((backbone / "summary.json").read_text())["wall_seconds"]
    assert classifier.summary["pretraining_seconds"] == before > 0
    costs = costs_of_training(classifier.summary)
    assert costs["train_seconds"] == pytest.approx(before + classifier.summary["wall_seconds"])


@pytest.mark.slow
def test_augmented_views_are_kept_apart_and_used(backbone, halves, tmp_path):
    options = {
        "features": {"views": 3},
        "augment": {"policy": "none", "rotate": 10.0},
        "head": {"weight_decay": (1e-3,), "scaling": ("none",)},
    }
    one = extractor(backbone, tmp_path, **options).fit(*halves[0])
    assert len(list((tmp_path / "store").glob("*/*/meta.json"))) == 4
    two = extractor(backbone, tmp_path, name="two", **options).fit(*halves[0])
    assert two.summary["cache_hit"] is True
    assert two.summary["params_sha256"] == one.summary["params_sha256"]


@pytest.mark.slow
def test_few_shot_draws(backbone, halves, tmp_path):
    few = extractor(backbone, tmp_path, data={"shots": 5, "draws": 4}).fit(*halves[0], test=halves[1])
    rows = (few.run_dir / "few_shot.csv").read_text().splitlines()
    tests = [float(row.split(",")[3]) for row in rows[1:]]
    assert len(tests) == 4
    assert len(set(tests)) > 1
    assert few.summary["few_shot_test_accuracy"] == pytest.approx(np.mean(tests))
    assert few.summary["few_shot_test_accuracy_ci95"] == pytest.approx(3.182446 * np.std(tests, ddof=1) / 2, rel=1e-5)
    assert few.summary["test_accuracy"] == pytest.approx(tests[0])


def test_too_few_images_for_the_shots(backbone, halves, tmp_path):
    with pytest.raises(UserError, match=r"data.shots: 500 images per class asked for, class '.' has \d+ for training"):
        extractor(backbone, tmp_path, data={"shots": 500}).fit(*halves[0])


@pytest.mark.slow
def test_vectors_of_ones_own():
    generator = np.random.default_rng(0)
    labels = np.array(["cat", "dog", "eel"])[np.arange(300) % 3]
    vectors = generator.normal(size=(300, 8)) + 2 * np.eye(8)[np.arange(300) % 3]
    model = FEClassifier().fit_embeddings(vectors[:200], labels[:200])
    right = np.array(model.class_names)[model.predict_embeddings(vectors[200:])] == labels[200:]
    theirs = LogisticRegression(max_iter=1000).fit(vectors[:200], labels[:200]).score(vectors[200:], labels[200:])
    assert abs(right.mean() - theirs) < 0.05
    with pytest.raises(UserError, match="it has no backbone"):
        model.predict(np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(UserError, match="validation has labels that training has not"):
        FEClassifier().fit_embeddings(vectors, labels, validation=(vectors[:1], ["cow"]))


def test_weights_that_are_not_there(tmp_path, halves):
    with pytest.raises(UserError, match="nowhere"):
        extractor(tmp_path / "nowhere", tmp_path).fit(*halves[0])


@pytest.mark.slow
def test_a_head_from_the_names_of_classes(run, backbone, halves, tmp_path):
    """Zero-shot: the logits of images are 100 times the cosine of their embeddings to the vectors of the names."""
    (images, labels), test = halves
    file, names = tmp_path / "text.npz", tuple("56789")
    options = {"head": {"init": file, "epochs": 0}}
    np.savez(file, embeddings=np.ones((5, 15)), class_names=names)
    with pytest.raises(UserError, match="width 15; images have 16"):
        extractor(backbone, tmp_path, **options).fit(images, labels, test=test)
    assert not (tmp_path / "fe" / "config.yaml").exists()
    assert not (tmp_path / "store").exists()
    vectors = run[0].embed(test[0])
    text = np.stack([vectors[test[1] == label].mean(0) for label in range(5, 10)])
    np.savez(file, embeddings=text, class_names=names)
    classifier = extractor(backbone, tmp_path, **options).fit(images, labels, test=test)
    expected = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)) @ (
        text / np.linalg.norm(text, axis=1)[:, None]
    ).T
    np.testing.assert_allclose(classifier.predict_logits(test[0]), 100 * expected, atol=1e-3)
    assert classifier.summary["test_accuracy"] == pytest.approx((expected.argmax(1) + 5 == test[1]).mean())
    np.savez(
        tmp_path / "shared.npz", embeddings=text[:, :5] - 0.1, class_names=names
    )  # as wide as the weights' own head
    options = {"head": {"init": tmp_path / "shared.npz", "epochs": 0}}
    shared = extractor(backbone, tmp_path, "shared", **options).fit(images, labels, test=test)
    projected = vectors @ load_pretrained(str(backbone)).params["head/kernel"]
    names_there = (text[:, :5] - 0.1) / np.linalg.norm(text[:, :5] - 0.1, axis=1, keepdims=True)
    np.testing.assert_array_equal(shared.predict_logits(test[0]).argmax(1), (projected @ names_there.T).argmax(1))
    file.unlink()
    np.testing.assert_array_equal(load(tmp_path / "fe").predict(test[0]), classifier.predict(test[0]))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_half_of_the_digits_teach_the_other_half(digits, tmp_path):
    """A backbone that has learned 0 to 4, and a linear head on all its blocks for 5 to 9: at least 97% right."""
    images, labels = digits
    low, high = labels < 5, np.flatnonzero(labels >= 5)
    augment = {"rotate": 10.0, "zoom": 0.1, "mixup": 0.2, "crop": "none", "hflip": 0.0}  # as digits have by default
    options = {"model": {"name": "cnn_small"}, "train": {"epochs": 100}, "augment": augment}
    pt = PTClassifier(run_dir=tmp_path / "pt", quiet=True, tracking=OFF, **options)
    pt.fit(images[low], labels[low])
    order = np.random.default_rng(0).permutation(high)
    train, test = order[:-180], order[-180:]
    fe = extractor(tmp_path / "pt", tmp_path, features={"blocks": 4})
    fe.fit(images[train], labels[train], test=(images[test], labels[test]))
    assert fe.summary["test_accuracy"] >= 0.97


def test_a_misspelt_head_is_refused_before_an_image_is_embedded(backbone, halves, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = extractor(backbone, tmp_path / "fe", head={"name": "sklearn:randm_forest"})
    with pytest.raises(UserError, match="random_forest"):
        model.fit(*halves[0])
    assert not list(tmp_path.rglob("*.npy"))
    assert not list(tmp_path.rglob("config.yaml"))
