"""Images that are unreadable, truncated, empty or bombs; labels out of range; empty class folders; archives."""

import logging
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxtrain
from jaxtrain import PTClassifier
from jaxtrain.config import DataConfig
from jaxtrain.data.digest import image_ids
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import RunError, UserError
from jaxtrain.evaluation.predictions import Predictions
from tests.faults.small_run import merged

COUNT = 12
BAD = ("bomb.png", "empty.png", "text.png", "truncated.png")


def picture(path, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes of good images; the first also has every kind of bad one."""
    root = tmp_path / "images"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(COUNT):
            picture(root / name / f"{number:02d}.png", number)
    cat = root / "cat"
    (cat / "empty.png").write_bytes(b"")
    (cat / "text.png").write_text("no image at all")
    whole = (cat / "00.png").read_bytes()
    (cat / "truncated.png").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (10_000, 10_000)).save(cat / "bomb.png")
    assert (cat / "bomb.png").stat().st_size < 100_000
    return root


def fit(root, run_dir, **data):
    options = merged(
        {"train": {"steps": 6, "batch_size": 8}, "data": {"name": f"folder:{root}", "image_size": 8, **data}}
    )
    return PTClassifier(**options, run_dir=run_dir).fit()


@pytest.mark.parametrize("loader", ["device", "stream"])
def test_each_bad_image_is_named_and_stops_the_run(folder, tmp_path, loader):
    with pytest.raises(RunError) as caught:
        fit(folder, tmp_path / "run", loader=loader)
    told = str(caught.value)
    assert "data.max_bad_images allows 0" in told
    assert {name for name in BAD if name in told} >= {"bomb.png", "empty.png", "text.png"}
    (folder / "cat" / "bomb.png").unlink()
    (folder / "cat" / "empty.png").unlink()
    (folder / "cat" / "text.png").unlink()
    # What only decoding shows.
    with pytest.raises(RunError, match=r"1 (unreadable image|images cannot be read).*truncated\.png"):
        fit(folder, tmp_path / "run2", loader=loader)


@pytest.mark.parametrize("loader", ["device", "stream"])
def test_as_many_as_are_allowed_are_left_out_and_named(folder, tmp_path, caplog, loader):
    with caplog.at_level(logging.WARNING):
        model = fit(folder, tmp_path / "run", loader=loader, max_bad_images=4)
    assert model.summary["steps"] == 6
    assert np.isfinite(model.summary["val_accuracy"])
    with pytest.raises(RunError, match=r"data\.max_bad_images allows 2"):
        fit(folder, tmp_path / "other", loader=loader, max_bad_images=2)


@pytest.fixture
def tested_folder(tmp_path):
    """Good images to train on; of the test images one is cut short, which its header does not show."""
    root = tmp_path / "split"
    for place, (split, name) in enumerate((s, n) for s in ("train", "test") for n in ("cat", "dog")):
        (root / split / name).mkdir(parents=True)
        for number in range(COUNT):
            picture(root / split / name / f"{number:02d}.png", 100 * place + number)
    cut = root / "test" / "cat" / "07.png"
    cut.write_bytes(cut.read_bytes()[:200])
    return root


def test_bad_test_images_that_are_allowed_are_named_and_not_tested(tested_folder, tmp_path, caplog):
    model = fit(tested_folder, tmp_path / "run", max_bad_images=1)
    assert re.search(r"left out of the test: .*test/cat/07\.png: .*truncated", caplog.text)
    predictions = Predictions.load(tmp_path / "run" / "benchmark" / "predictions.npz")
    (tested_folder / "test" / "cat" / "07.png").unlink()
    rest = load_dataset(DataConfig(name=f"folder:{tested_folder}")).open_test()
    assert predictions.ids == image_ids(rest)  # and the digest is of these, or they had not loaded
    assert model.summary["test_accuracy"] == np.mean(predictions.logits.argmax(1) == rest.labels)


def test_more_bad_test_images_than_are_allowed_are_named(tested_folder, tmp_path):
    with pytest.raises(RunError, match=r"1 unreadable image.*allows 0: .*test/cat/07\.png"):
        fit(tested_folder, tmp_path / "run")
    whole = (tested_folder / "test" / "dog" / "03.png").read_bytes()
    (tested_folder / "test" / "dog" / "03.png").write_bytes(whole[:200])
    with pytest.raises(RunError, match=r"2 unreadable images.*allows 1: .*test/cat/07\.png.*test/dog/03\.png"):
        fit(tested_folder, tmp_path / "other", max_bad_images=1)


def test_a_bomb_is_refused_by_its_header(folder, tmp_path, monkeypatch):
    """No 100 million pixels are ever decoded."""
    from PIL import ImageFile

    for name in ("empty.png", "text.png", "truncated.png"):
        (folder / "cat" / name).unlink()
    decoded, load = [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self.size) or load(self))
    with pytest.raises(RunError, match=r"bomb\.png.*100,000,000 pixels|bomb\.png.*pixels"):
        fit(folder, tmp_path / "run")
    assert (10_000, 10_000) not in decoded
    (folder / "cat" / "bomb.png").unlink()
    fit(folder, tmp_path / "run")
    assert (12, 12) in decoded  # so that what is decoded is seen here


def test_an_empty_class_folder_is_named(folder, tmp_path):
    (folder / "bird").mkdir()
    with pytest.raises(UserError, match="bird"):
        fit(folder, tmp_path / "run", max_bad_images=9)


@pytest.mark.parametrize("wrong", [7, -1])
def test_a_label_out_of_range_is_refused(tmp_path, wrong):
    images, labels = np.zeros((16, 4, 4), np.uint8), np.arange(16) % 4
    labels[5] = wrong
    names = ("a", "b", "c", "d")
    with pytest.raises(UserError, match=str(wrong)):
        PTClassifier(**merged({}), run_dir=tmp_path / "run").fit(images, labels, class_names=names)


def test_an_archive_that_climbs_out_writes_nothing(tmp_path):
    """Archives are read, member by member, in memory; nothing in the package unpacks one."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    np.savez(inside / "data.npz", x_train=np.zeros((16, 4, 4), np.uint8), y_train=np.arange(16) % 4)
    with zipfile.ZipFile(inside / "data.npz", "a") as archive:
        archive.writestr("../../climbed.npy", b"outside")
        archive.writestr("/tmp/jaxtrain-climbed.npy", b"outside")
    before = set(tmp_path.rglob("*"))
    options = merged({"train": {"steps": 2, "batch_size": 4}, "data": {"name": f"npz:{inside / 'data.npz'}"}})
    PTClassifier(**options, run_dir=inside / "run").fit()
    outside = {path for path in tmp_path.rglob("*") if not path.is_relative_to(inside / "run")}
    assert outside == before
    assert not Path("/tmp/jaxtrain-climbed.npy").exists()
    source = "\n".join(path.read_text() for path in Path(jaxtrain.__file__).parent.rglob("*.py"))
    assert not re.search(r"extractall|\.extract\(|unpack_archive|import tarfile", source)
