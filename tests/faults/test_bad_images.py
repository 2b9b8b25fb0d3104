"""Images that are unreadable, truncated, empty or bombs; labels out of range; empty class folders; archives."""

import logging
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxtrain
from jaxtrain import Callback, FEClassifier, PTClassifier
from jaxtrain.cli.main import run
from jaxtrain.config import DataConfig
from jaxtrain.data.base import FileSource
from jaxtrain.data.digest import image_ids
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import RunError, UserError
from jaxtrain.evaluation.predictions import Predictions
from tests.faults.small_run import merged
from tests.marks import mostly_slow

COUNT = 12
BAD = ("bomb.png", "empty.png", "text.png", "truncated.png")
TRUNCATED = "truncated.png: image file is truncated"


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


@pytest.mark.parametrize("loader", mostly_slow(["device", "stream"], {"device"}))
def test_as_many_as_are_allowed_are_left_out_and_named(folder, tmp_path, caplog, loader):
    with caplog.at_level(logging.WARNING):
        model = fit(folder, tmp_path / "run", loader=loader, max_bad_images=4)
    assert model.summary["steps"] == 6
    assert np.isfinite(model.summary["val_accuracy"])
    assert model.summary["skipped_images"] == len(model.summary["skipped"]) == 4
    for name in BAD:
        assert sum(f"cat/{name}: " in entry for entry in model.summary["skipped"]) == 1
        assert caplog.text.count(f"cat/{name}: ") == 1
    with pytest.raises(RunError, match=r"data\.max_bad_images allows 2"):
        fit(folder, tmp_path / "other", loader=loader, max_bad_images=2)


def only_truncated(folder):
    for name in BAD[:3]:
        (folder / "cat" / name).unlink()


def test_what_was_skipped_before_a_run_was_stopped_is_in_its_summary(folder, tmp_path):
    class Stop(Callback):
        def checkpoint(self, step, metrics, run):
            raise RunError("enough")

    only_truncated(folder)
    data = {"name": f"folder:{folder}", "image_size": 8, "loader": "stream", "max_bad_images": 1, "val_fraction": 0.0}
    options = merged({"train": {"steps": 6, "batch_size": 8}, "data": data, "checkpoint": {"every_steps": 5}})
    with pytest.raises(RunError, match="enough"):
        PTClassifier(**options, run_dir=tmp_path / "run", callbacks=[Stop()]).fit()
    picture(folder / "cat" / "truncated.png", 99)
    model = PTClassifier(**options, run_dir=tmp_path / "run").fit()
    assert model.summary["steps"] == 6
    assert [Path(entry.partition(": ")[0]).name for entry in model.summary["skipped"]] == ["truncated.png"]


@pytest.mark.slow
def test_embeddings_from_the_store_lack_the_same_images_for_the_same_reason(folder, tmp_path):
    only_truncated(folder)
    fit(folder, tmp_path / "pt", max_bad_images=1)
    for name in ("computed", "kept"):
        data = {"name": f"folder:{folder}", "image_size": 8, "max_bad_images": 1}
        options = {"model": {"weights": str(tmp_path / "pt")}, "data": data, "tracking": {"enabled": False}}
        features = {"store": str(tmp_path / "store")}
        model = FEClassifier(**options, features=features, quiet=True, run_dir=tmp_path / name).fit()
        assert model.summary["cache_hit"] == (name == "kept")
        assert [re.sub(".*/", "", entry) for entry in model.summary["skipped"]] == [TRUNCATED]
        options["data"] = data | {"max_bad_images": 0}
        with pytest.raises(RunError, match=r"1 unreadable image, data\.max_bad_images allows 0: .*truncated\.png"):
            FEClassifier(**options, features=features, quiet=True, run_dir=tmp_path / f"{name}-strict").fit()


def new_images(folder, *names):
    paths = [folder / "cat" / name for name in names]
    return paths, FileSource(paths, np.zeros(len(paths), np.int32))


def test_predictions_of_what_cannot_be_read(folder, tmp_path, capsys):
    paths, images = new_images(folder, "00.png", "truncated.png", "01.png", "text.png", "missing.png")
    model = fit(folder, tmp_path / "run", max_bad_images=9)
    right = model.predict(new_images(folder, "00.png", "01.png")[1]).tolist()
    assert model.predict(images).tolist() == [right[0], -1, right[1], -1, -1]
    assert np.isnan(model.predict_proba(images)).any(axis=1).tolist() == [False, True, False, True, True]
    with pytest.raises(RunError, match=r"3 of 5 images cannot be read: .*truncated\.png: .*text\.png: "):
        model.evaluate(images, images.labels)
    with pytest.raises(RunError, match="3 of 5 images cannot be read"):
        run(["predict", str(tmp_path / "run"), *map(str, paths)])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == list(map(str, paths))
    assert [line[1].startswith("unreadable: ") for line in lines] == [False, True, False, True, True]
    assert [len(line) for line in lines] == [3, 2, 3, 2, 2]


def test_a_folder_is_predicted_with_all_in_it(folder, tmp_path, capsys):
    fit(folder, tmp_path / "run", max_bad_images=9)
    capsys.readouterr()
    run(["predict", str(tmp_path / "run"), str(folder / "dog")])
    assert len(capsys.readouterr().out.splitlines()) == COUNT


def test_among_strings_there_is_no_label_for_what_cannot_be_read(folder, tmp_path):
    pixels, labels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8), np.array(["a", "b"] * 12)
    model = PTClassifier(**merged({"train": {"steps": 2, "batch_size": 8}}), run_dir=tmp_path / "run").fit(
        pixels, labels
    )
    assert set(model.predict(new_images(folder, "00.png")[1])) <= {"a", "b"}
    with pytest.raises(RunError, match=r"1 of 2 images cannot be read: .*truncated\.png"):
        model.predict(new_images(folder, "00.png", "truncated.png")[1])


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


@pytest.mark.slow
def test_bad_test_images_that_are_allowed_are_named_and_not_tested(tested_folder, tmp_path, caplog):
    model = fit(tested_folder, tmp_path / "run", max_bad_images=1)
    assert re.search(r"skipped: .*test/cat/07\.png: .*truncated", caplog.text)
    predictions = Predictions.load(tmp_path / "run" / "benchmark" / "predictions.npz")
    (tested_folder / "test" / "cat" / "07.png").unlink()
    rest = load_dataset(DataConfig(name=f"folder:{tested_folder}")).open_test()
    assert predictions.ids == image_ids(rest)  # and the digest is of these, or they had not loaded
    assert model.summary["test_accuracy"] == np.mean(predictions.logits.argmax(1) == rest.labels)


@pytest.mark.slow
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
    assert not re.search(r"extractall|\.extract\(|unpack_archive", source)
