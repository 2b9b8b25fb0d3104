"""`jaxtrain audit` on images whose wrong labels were planted."""

import csv
from pathlib import Path

import numpy as np
import pytest

import jaxtrain
from jaxtrain.cli.main import run
from jaxtrain.errors import UserError
from jaxtrain.files import write_csv
from tests.data.forms import rows_of

FLIPPED = (3, 20, 41, 57)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A backbone, and an npz file of three kinds of image, four with the label of another kind, one of a fourth."""
    folder, rng = tmp_path_factory.mktemp("audit"), np.random.default_rng(0)
    kinds = np.arange(91) % 3
    images = rng.integers(0, 60, (91, 8, 8, 3)).astype(np.uint8)
    for place, kind in enumerate(kinds):
        images[place, :, :, kind] += 120
    labels = kinds.copy()
    labels[list(FLIPPED)] = (kinds[list(FLIPPED)] + 1) % 3
    labels[90] = 3
    np.savez(folder / "data.npz", x_train=images, y_train=labels, x_test=images[:2], y_test=labels[:2])
    options = {"model": {"name": "mlp_tiny"}, "train": {"steps": 2}, "tracking": {"enabled": False}}
    jaxtrain.PTClassifier(**options, run_dir=folder / "run", quiet=True).fit(images, kinds)
    return folder, images, labels


def test_planted_label_errors_are_found(planted, tmp_path, monkeypatch, capsys):
    folder, *_ = planted
    monkeypatch.chdir(tmp_path)
    words = ["audit", "--data.name", f"npz:{folder}/data.npz", "--model.weights", f"{folder}/run"]
    run([*words, "--data.folds", "3"])
    (out,) = (tmp_path / "runs" / "audit").iterdir()
    assert "label errors 4 of 90" in capsys.readouterr().out
    with open(out / "suggestions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    errors = [row for row in rows if row["issue"] == "label error"]
    assert {int(row["index"]) for row in errors} == set(FLIPPED)
    assert all(int(row["suggested_label"]) == int(row["index"]) % 3 for row in errors)
    twins = {(row["index"], row["other_index"]) for row in rows if row["split"] == "test"}
    assert twins == {("0", "0"), ("1", "1")}
    assert "Labels that may be wrong" in (out / "audit.html").read_text()


@pytest.mark.slow
def test_arrays_in_python(planted):
    folder, images, labels = planted
    found = jaxtrain.audit((images, labels), model={"weights": str(folder / "run")}, quiet=True)
    assert {one.place.number for one in found.label_errors} == set(FLIPPED)
    assert (found.judged, len(found.splits)) == (90, 1)


@pytest.mark.slow
def test_groups_a_validation_split_and_an_unreadable_file(planted, root, tmp_path):
    folder, *_ = planted
    (tmp_path / "bad.png").write_text("no picture")
    rows = [{**row, "who": Path(row["image"]).stem} for row in rows_of(root)]
    rows.append({"image": str(tmp_path / "bad.png"), "label": "cat", "split": "train", "who": "00"})
    wrong = next(row for row in rows if row["split"] == "val" and row["label"] == "cat")
    wrong["label"] = "emu"
    write_csv(tmp_path / "table.csv", rows)
    words = ["audit", "--data.name", f"csv:{tmp_path}/table.csv", "--model.weights", f"{folder}/run"]
    run([*words, "--data.group", "who", "--data.folds", "3", "--data.max_bad_images", "1", "--out", f"{tmp_path}/out"])
    with open(tmp_path / "out" / "suggestions.csv", newline="") as file:
        found = list(csv.DictReader(file))
    (error,) = [row for row in found if row["issue"] == "label error"]
    assert (error["split"], error["image"], error["suggested_label"]) == ("val", wrong["image"], "cat")
    (bad,) = [row for row in found if row["issue"] == "unreadable"]
    assert bad["image"] == str(tmp_path / "bad.png")


def test_what_cannot_be_audited_is_refused(planted, tmp_path):
    folder, images, labels = planted
    several = np.eye(4, dtype=int)[labels]
    several[0] = 1
    with pytest.raises(UserError, match="one label per image"):
        jaxtrain.audit((images, several), model={"weights": str(folder / "run")})
    (tmp_path / "file").touch()
    for words, reason in (
        (["--data.shots", "5"], "data.shots"),
        (["--data.val_fraction", "0.2"], "data.val_fraction"),
        (["--features.views", "2"], "features.views"),
        (["--out", str(tmp_path / "file")], "is a file"),
        (["--data.folds", "200", "--data.name", f"npz:{folder}/data.npz"], "data.folds 200"),
    ):
        with pytest.raises(UserError, match=reason):
            run(["audit", "--model.weights", f"{folder}/run", *words])
