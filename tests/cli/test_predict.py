"""Files labelled by a model: on the screen and as a table, whatever the files are called and however often it stops."""

import csv
import io
import json
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import jaxtrain
from jaxtrain.cli.main import run
from jaxtrain.cli.rows import Rows
from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.base import ArraySource, FileSource
from jaxtrain.errors import RunError, UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and a folder with five pictures and one file that is none."""
    folder = tmp_path_factory.mktemp("predict")
    images, labels = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), np.uint8), np.arange(40) % 3
    options = {"model": {"name": "mlp_tiny"}, "train": {"steps": 2, "batch_size": 8}, "tracking": {"enabled": False}}
    classifier = jaxtrain.PTClassifier(**options, run_dir=folder / "run", quiet=True)
    classifier.fit(images, np.array(["=cat", "dog", "owl"])[labels])
    (folder / "pictures" / "deep").mkdir(parents=True)
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / "deep" / f"{number}.png")
    (folder / "pictures" / "bad.jpg").write_text("no picture")
    return folder, classifier


def predict(folder, *words):
    with pytest.raises(RunError, match="1 of 6"):
        run(["predict", str(folder / "run"), str(folder / "pictures"), *words])


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_table_of_each_format_has_what_the_model_says(trained, tmp_path, ending, capsys):
    folder, classifier = trained
    out = tmp_path / f"table{ending}"
    predict(folder, "--out", str(out), "--topk", "2", *([] if ending == ".csv" else ["--embeddings", "True"]))
    assert str(out) in capsys.readouterr().out.replace("\n", "")
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    read = {".csv": pd.read_csv, ".jsonl": lambda path: pd.read_json(path, lines=True), ".parquet": pd.read_parquet}
    table = read[ending](out)
    bad, good = table.iloc[0], table.iloc[1:]
    assert bad["file"].endswith("bad.jpg")
    assert "not an image" in bad["reason"]
    files = sorted((folder / "pictures" / "deep").iterdir())
    assert list(good["file"]) == list(map(str, files))
    source = FileSource(files, np.zeros(5, np.int32))
    wanted = classifier.predict_proba(source)
    np.testing.assert_allclose(good["probability"].astype(float), wanted.max(axis=1), rtol=1e-5)
    names = [classifier.class_names[best] for best in wanted.argmax(axis=1)]
    assert list(good["label"]) == [f"'{name}" if ending == ".csv" and name[0] == "=" else name for name in names]
    if ending == ".csv":
        np.testing.assert_allclose(good["probability_2"], np.sort(wanted, axis=1)[:, -2], rtol=1e-5)
    else:
        assert [len(top) for top in good["top"]] == [2] * 5
        np.testing.assert_allclose(np.stack(list(good["embedding"])), classifier.embed(source), rtol=1e-4, atol=1e-5)


def test_each_readable_image_is_explained_beside_its_row(trained, tmp_path, capsys):
    folder, classifier = trained
    predict(folder, "--out", str(tmp_path / "table.parquet"), "--explain", str(tmp_path / "heat"))
    assert "gradients of the pixels" in capsys.readouterr().err
    table = pd.read_parquet(tmp_path / "table.parquet").iloc[1:]
    files = sorted((tmp_path / "heat").iterdir())
    assert list(table["explanation"]) == list(map(str, files))
    assert [path.name for path in files] == [f"00000{i + 1}-{i}.png" for i in range(5)]
    wanted = classifier.predict_proba(FileSource(list(table["file"]), np.zeros(5, np.int32)))
    np.testing.assert_allclose(table["probability"], wanted.max(axis=1), rtol=1e-5)
    with Image.open(files[0]) as shown:
        assert shown.size == (2 * 228, 228)  # 12 pixels, each as 19


def test_a_head_of_a_library_explains_nothing(trained, tmp_path):
    folder, _ = trained
    images, labels = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), np.uint8), np.arange(40) % 3
    options = {"model": {"weights": str(folder / "run")}, "features": {"store": tmp_path / "store"}}
    options |= {"tracking": {"enabled": False}, "quiet": True, "head": {"name": "sklearn:gaussian_nb", "trials": 1}}
    jaxtrain.FEClassifier(**options, run_dir=tmp_path / "fe").fit(images, labels)
    words = [str(tmp_path / "fe"), str(folder / "pictures"), "--explain", str(tmp_path / "heat")]
    with pytest.raises(UserError, match="gaussian_nb"):
        run(["predict", *words])
    assert not (tmp_path / "heat").exists()


def test_a_method_that_does_not_fit_is_refused(trained, tmp_path):
    folder, _ = trained
    words = ["predict", str(folder / "run"), str(folder / "pictures"), "--explain-method", "rollout"]
    with pytest.raises(UserError, match="explain_method needs --explain"):
        run(words)
    with pytest.raises(UserError, match="attention rollout is for a vision transformer"):
        run([*words, "--explain", str(tmp_path / "heat")])
    assert not (tmp_path / "heat").exists()


@pytest.mark.slow
def test_a_vision_transformer_is_explained_by_its_attention_unless_asked_otherwise(trained, tmp_path, capsys):
    folder, _ = trained
    images, labels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8), np.arange(40) % 3
    quick = {"tracking": {"enabled": False}, "quiet": True}
    options = {**quick, "model": {"name": "vit_test", "patch_size": 4}, "train": {"steps": 1, "batch_size": 8}}
    classifier = jaxtrain.PTClassifier(**options, run_dir=tmp_path / "pt").fit(images, labels)
    pictures = str(folder / "pictures" / "deep")
    run(["predict", str(tmp_path / "pt"), pictures, "--explain", str(tmp_path / "heat")])
    assert "attention rollout to 5 tokens" in capsys.readouterr().err
    assert len(list((tmp_path / "heat").iterdir())) == 5
    assert classifier.fitted.predictor.explained_by("gradcam") == "Grad-CAM on 5 tokens"
    rolled = classifier.explain(images)
    assert rolled.shape == (40, 2, 2)
    assert (rolled.sum(axis=(1, 2)) > 0).all()
    assert (rolled.sum(axis=(1, 2)) < 1).all()  # the class token keeps the rest
    weights = {"model": {"weights": str(tmp_path / "pt")}, "features": {"store": tmp_path / "store", "pool": "avg"}}
    weights["head"] = {"name": "ncm"}
    head = jaxtrain.FEClassifier(**quick, **weights, run_dir=tmp_path / "fe").fit(images, labels)
    assert head.fitted.predictor.explained_by() == "Grad-CAM on 5 tokens"  # another vector than the class token


@pytest.mark.slow
def test_the_heat_is_where_the_square_is(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 80, (400, 16, 16, 3)).astype(np.uint8), np.arange(400) % 2
    corners = rng.integers(0, 11, (400, 2))
    for image, label, (row, column) in zip(images, labels, corners, strict=True):
        image[row : row + 6, column : column + 6, label] = 255  # red or green
    options = {"tracking": {"enabled": False}, "quiet": True}
    own = {"model": {"name": "cnn_tiny"}, "train": {"steps": 60, "batch_size": 32}, "run_dir": tmp_path / "pt"}
    head = {"model": {"weights": str(tmp_path / "pt")}, "features": {"store": tmp_path / "store"}}
    head["run_dir"] = tmp_path / "fe"
    for classifier in (jaxtrain.PTClassifier(**options, **own), jaxtrain.FEClassifier(**options, **head)):
        predictor = classifier.fit(images[:300], labels[:300]).fitted.predictor
        assert predictor.explained_by() == "Grad-CAM on 8 x 8 places"
        source = ArraySource(images[300:], labels[300:].astype(np.int32))
        parts = list(predictor.explain(source, BadImages(), embedding=False))
        logits, heat = (np.concatenate([part[name] for part in parts]) for name in ("logits", "heat"))
        np.testing.assert_allclose(logits, predictor.predict_logits(source), atol=1e-3)
        np.testing.assert_allclose(classifier.explain(images[300:]), heat, atol=1e-5)
        assert np.mean(logits.argmax(axis=1) == labels[300:]) > 0.9
        centres = np.arange(8) * 2 + 1
        rows, columns = (np.abs(corners[300:, i, None] + 3 - centres) < 4 for i in (0, 1))
        square = rows[:, :, None] & columns[:, None, :]
        inside, outside = ((heat * part).sum(axis=(1, 2)) / part.sum(axis=(1, 2)) for part in (square, ~square))
        assert np.mean(inside > outside) > 0.95
        assert inside.mean() > 3 * outside.mean()


def test_paths_from_standard_input(trained, capsys, monkeypatch):
    folder, _ = trained
    paths = sorted(map(str, (folder / "pictures" / "deep").iterdir()))[:2]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(paths) + "\n"))
    run(["predict", str(folder / "run"), "-", "--topk", "3"])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == paths
    assert all(sum(map(float, line[2::2])) == pytest.approx(1, abs=2e-4) for line in lines)


def test_what_was_cut_off_goes_on_and_what_differs_begins_again(tmp_path):
    rows, out = [{"file": f"{number}"} for number in range(9)], tmp_path / "table.csv"
    with Rows(out, "key") as table:
        table.add(rows[:4])
    with open(tmp_path / "table.csv.partial", "a") as file:
        file.write('{"file": "4"')
    with Rows(out, "key") as table:
        assert table.done == 4
        table.add(rows[4:6])
        with pytest.raises(RunError, match=r"table\.csv"), Rows(out, "key"):
            pass
    with Rows(out, "key") as table:
        assert table.done == 6
        table.add(rows[6:])
        assert table.finish() == 0
    with open(out, newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [str(number) for number in range(9)]
    other = tmp_path / "other.jsonl"
    with Rows(other, "key") as table:
        table.add(rows)
    with Rows(other, "another key") as table:
        assert table.done == 0
        table.add(rows[:1])
        table.finish()
    assert [json.loads(line) for line in other.read_text().splitlines()] == rows[:1]


def test_a_wrong_table_is_refused_before_anything_is_computed(trained, tmp_path):
    folder, _ = trained
    words = ["predict", str(folder / "run"), str(folder / "pictures"), "--out"]
    (tmp_path / "there.csv").touch()
    for out, more, reason in (
        (tmp_path / "table.xls", [], ".parquet"),
        (tmp_path / "there.csv", [], "there already"),
        (tmp_path / "gone" / "table.csv", [], "gone"),
        (tmp_path / "table.csv", ["--embeddings", "True"], "embeddings"),
        (tmp_path / "table.csv", ["--topk", "0"], "topk"),
    ):
        with pytest.raises(UserError, match=reason):
            run([*words, str(out), *more])
    assert [path.name for path in tmp_path.iterdir()] == ["there.csv"]
