from __future__ import annotations

import dataclasses
import hashlib
import pickle
import zipfile

import numpy as np
import pytest

from jaxtrain.data.base import ArraySource
from jaxtrain.data.digest import digest_of_test_set, image_id, image_ids
from jaxtrain.errors import UserError
from jaxtrain.evaluation.predictions import Predictions


def make(images=6, classes=3):
    rng = np.random.default_rng(0)
    source = ArraySource(
        rng.integers(0, 255, (images, 4, 4, 1), dtype=np.uint8), np.arange(images, dtype=np.int32) % classes
    )
    ids, names = image_ids(source), ("a", "bé", "c d")
    logits = rng.normal(size=(images, classes)).astype(np.float32)
    digest = digest_of_test_set(ids, source.labels, names)
    val = np.array([2, 0], np.int32), rng.normal(size=(2, classes)).astype(np.float32)
    return Predictions(ids, source.labels, logits, names, digest, "f" * 64, "pt", "mlp", "digits", *val)


def test_validation_may_be_missing(tmp_path):
    dataclasses.replace(make(), val_labels=None, val_logits=None).save(tmp_path / "predictions.npz")
    assert Predictions.load(tmp_path / "predictions.npz").val_logits is None


def test_save_and_load_give_the_same_back(tmp_path):
    before = make()
    before.save(tmp_path / "predictions.npz")
    after = Predictions.load(tmp_path / "predictions.npz")
    for field in dataclasses.fields(Predictions):
        old, new = getattr(before, field.name), getattr(after, field.name)
        assert type(old) is type(new)
        assert np.array_equal(old, new), field.name
    assert after.logits.dtype == np.float32
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.npz"]


def test_ids_are_the_digest_of_the_file_or_of_shape_and_pixels():
    assert image_id(b"jpeg") == hashlib.sha256(b"jpeg").hexdigest()
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    assert image_id(image) == hashlib.sha256(b"(4, 4, 1)" + image.tobytes()).hexdigest()
    assert image_id(image) != image_id(image.reshape(2, 8, 1))
    assert image_id(image[::-1]) == image_id(image[::-1].copy())
    assert image_id(np.asfortranarray(image)) == image_id(image)


def test_a_grey_image_has_one_id_with_one_channel_and_with_three():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    rgb = np.repeat(image, 3, axis=-1)
    assert image_id(rgb) == image_id(image)
    rgb[2, 3, 1] += 1
    assert image_id(rgb) != image_id(image)


def test_digest_of_the_set_ignores_order_and_numbering_but_not_labels():
    ids, labels = ("aa", "bb", "cc"), np.array([0, 1, 1], np.int32)
    digest = digest_of_test_set(ids, labels, ("cat", "dog"))
    assert digest == digest_of_test_set(("cc", "aa", "bb"), np.array([1, 0, 1], np.int32), ("cat", "dog"))
    assert digest == digest_of_test_set(ids, 1 - labels, ("dog", "cat"))
    assert digest != digest_of_test_set(ids, np.array([0, 1, 0], np.int32), ("cat", "dog"))
    assert digest != digest_of_test_set(ids[:2], labels[:2], ("cat", "dog"))


@pytest.mark.slow
def test_every_flipped_byte_is_refused_or_harmless(tmp_path):
    before = make()
    path = tmp_path / "predictions.npz"
    before.save(path)
    sound = path.read_bytes()
    messages = []
    for place in range(0, len(sound), 2):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 0x10]) + sound[place + 1 :])
        try:
            after = Predictions.load(path)
        except UserError as error:
            messages.append(str(error))
        else:
            assert np.array_equal(after.logits, before.logits)
            assert (after.ids, after.class_names) == (before.ids, before.class_names)
    assert len(messages) > 300
    assert all(str(path) in message and "\n" not in message for message in messages)


@pytest.mark.parametrize("length", [0, 10, 500])
def test_a_cut_file_is_refused(tmp_path, length):
    path = tmp_path / "predictions.npz"
    make().save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="is not a sound file of predictions"):
        Predictions.load(path)


def test_a_pickle_is_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = tmp_path / "predictions.npz"
    np.savez(path, about=np.array([Trap()], dtype=object))
    with pytest.raises(UserError):
        Predictions.load(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError):
        Predictions.load(path)
    assert not (tmp_path / "sprung").exists()


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Predictions.load(tmp_path / "nothing.npz")
    np.savez(tmp_path / "other.npz", logits=np.zeros(3))
    with pytest.raises(UserError, match=r"other\.npz: is not a sound file of predictions"):
        Predictions.load(tmp_path / "other.npz")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("about", "{}")
    with pytest.raises(UserError):
        Predictions.load(tmp_path / "zip.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(UserError):
        Predictions.load(tmp_path / "array.npy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(5, np.int32)}, "labels are"),
        ({"labels": np.zeros(6, np.int64)}, "labels are int64"),
        ({"labels": np.full(6, 3, np.int32)}, r"labels 3\.\.3 for 3 classes"),
        ({"logits": np.zeros((6, 4), np.float32)}, "logits are"),
        ({"logits": np.zeros((6, 3))}, "logits are float64"),
        ({"class_names": ("a", "b", "c")}, "test digest"),
        ({"labels": np.zeros(6, np.int32)}, "test digest"),
        ({"val_labels": None}, "go together"),
        ({"val_labels": np.array([0, 3], np.int32)}, r"labels 0\.\.3 for 3 classes"),
        ({"val_labels": np.zeros(3, np.int32)}, "validation logits are"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make(), **change)
