from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from jaxtrain.data.base import ArraySource, FileSource
from jaxtrain.evaluation import near_duplicates as module
from jaxtrain.evaluation.near_duplicates import near_duplicates, perceptual_hashes


def picture(seed, size=96):
    """Coloured clouds: smooth, like photographs."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def source(images):
    return ArraySource(np.stack([np.asarray(image) for image in images]), np.zeros(len(images), np.int32))


def test_five_changed_copies_are_found_and_nothing_else():
    train = [picture(seed) for seed in range(40)]
    changed = [
        jpeg(train[3], 40),
        train[7].resize((48, 48)).resize((96, 96)),
        train[11].filter(ImageFilter.GaussianBlur(1.5)),
        train[20].point(lambda value: value * 0.8 + 20),
        train[33].crop((1, 1, 95, 95)).resize((96, 96)),
    ]
    test = [*[picture(seed) for seed in range(100, 130)], *changed]
    found = near_duplicates(source(train), source(test))
    assert sorted((pair.test, pair.other) for pair in found) == [(30, 3), (31, 7), (32, 11), (33, 20), (34, 33)]
    assert [pair.correlation for pair in found] == sorted((pair.correlation for pair in found), reverse=True)
    assert all(pair.bits <= 6 for pair in found)


def test_files_of_other_sizes_and_broken_ones(tmp_path):
    picture(1, 200).save(tmp_path / "train.jpg")
    picture(2, 200).save(tmp_path / "other.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    picture(1, 200).resize((320, 320)).save(tmp_path / "test.png")
    train = FileSource([tmp_path / name for name in ("broken.jpg", "other.jpg", "train.jpg")], np.zeros(3, np.int32))
    test = FileSource([tmp_path / name for name in ("broken.jpg", "test.png")], np.zeros(2, np.int32))
    assert [(pair.test, pair.other) for pair in near_duplicates(train, test)] == [(1, 2)]


def test_parts_give_the_same_as_the_whole(monkeypatch):
    train, test = source([picture(seed) for seed in range(20)]), source([picture(seed) for seed in range(10, 30)])
    whole = near_duplicates(train, test)
    monkeypatch.setattr(module, "_PAIRS", 50)
    assert near_duplicates(train, test) == whole
    assert len(whole) == 10


def test_the_hash_is_that_of_its_definition():
    from scipy.fft import dct

    thumbnail = np.asarray(picture(5, 32).convert("L"))
    rows = dct(dct(thumbnail.astype(float), axis=0, norm="ortho"), axis=1, norm="ortho")[:8, :8].ravel()
    expected = rows > np.median(rows[1:])
    expected[0] = False
    bits = np.unpackbits(perceptual_hashes(thumbnail[None]).view(np.uint8)).astype(bool)
    assert bits.tolist() == expected.tolist()


def test_blank_images_are_like_nothing():
    blank = ArraySource(np.full((3, 20, 20, 1), 7, np.uint8), np.zeros(3, np.int32))
    assert near_duplicates(blank, blank) == []


def test_too_many_images_are_not_looked_through(monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGES", 5)
    few = source([picture(seed) for seed in range(3)])
    assert near_duplicates(few, few) is None
    nothing = ArraySource(np.zeros((0, 4, 4, 1), np.uint8), np.zeros(0, np.int32))
    assert near_duplicates(nothing, few) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_are_compared_by_brightness(channels):
    grey = [np.asarray(picture(seed).convert("L")) for seed in range(6)]
    images = np.stack([np.repeat(image[..., None], channels, axis=-1) for image in grey])
    found = near_duplicates(source([picture(seed) for seed in range(6)]), ArraySource(images, np.zeros(6, np.int32)))
    assert [(pair.test, pair.other) for pair in sorted(found, key=lambda pair: pair.test)] == [(i, i) for i in range(6)]
