import io

import numpy as np
import pytest
from PIL import Image

from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.base import ArraySource, FileSource
from jaxtrain.data.header_cache import scan
from jaxtrain.data.scan import collect, drop_bad, find_bad_images, header_of, parallel
from jaxtrain.errors import RunError


def _scan(paths, max_pixels):
    return scan(FileSource(paths, np.zeros(len(paths), np.int32)), max_pixels)


def _encode(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _noise(height, width, *channels):
    return np.random.default_rng(height).integers(0, 256, (height, width, *channels), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_headers_say_size_and_colour(kind):
    assert header_of(_encode(_noise(5, 9, 3), kind))[:2] == (5, 9)
    if kind in ("PNG", "JPEG", "BMP", "TIFF"):
        assert header_of(_encode(_noise(5, 9, 3), kind))[2] is False
        assert header_of(_encode(_noise(5, 9), kind)) == (5, 9, True)


def test_16_bit_grey_is_grey_and_a_rotated_photo_is_upright():
    assert header_of(_encode(_noise(4, 6).astype(np.uint16) * 256)) == (4, 6, True)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG"):
        assert header_of(_encode(_noise(4, 6, 3), kind, exif=exif))[:2] == (6, 4)


def _write(folder, **files):
    paths = []
    for name, data in files.items():
        paths.append(str(folder / name))
        (folder / name).write_bytes(data)
    return paths


def test_a_scan_names_every_unreadable_file(tmp_path):
    good = _encode(_noise(8, 8))
    paths = _write(tmp_path, a=good, b=b"", c=b"no image", d=_encode(_noise(20, 30)), e=good)
    headers = _scan([*paths, str(tmp_path / "gone")], max_pixels=100)
    assert headers.bad.keys() == {1, 2, 3, 5}
    assert "empty" in headers.bad[1]
    assert "not an image" in headers.bad[2]
    assert headers.bad[3] == "30x20 is more than 100 pixels (data.max_pixels)"
    assert headers.bad[5] == "No such file or directory"
    assert headers.uniform_size == (8, 8)
    assert headers.channels == 1


def test_a_header_after_a_long_comment_is_found(tmp_path):
    comment = bytes([0xFF, 0xFE, 0xFF, 0xFF]) + b"x" * 65533
    jpeg = _encode(_noise(8, 10, 3), "JPEG")
    (path,) = _write(tmp_path, a=jpeg[:2] + comment + jpeg[2:])
    assert Image.open(path).size == (10, 8)
    assert _scan([path], 10**6).uniform_size == (8, 10)


def test_sizes_that_differ_are_not_uniform():
    assert collect([(8, 8, True), (8, 9, True)]).uniform_size is None
    mixed = collect([(8, 8, True), (8, 8, False), "broken"])
    assert mixed.uniform_size == (8, 8)
    assert mixed.channels == 3
    assert collect(["broken"]).uniform_size is None


def test_decoding_finds_what_headers_hide(tmp_path):
    jpeg = _encode(_noise(64, 64, 3), "JPEG")
    png = bytearray(_encode(_noise(64, 64, 3)))
    png[len(png) // 2] ^= 0xFF
    paths = _write(tmp_path, a=jpeg, b=jpeg[: len(jpeg) // 2], c=bytes(png), d=jpeg)
    assert _scan(paths, 10**6).bad == {}
    source = FileSource(paths, np.zeros(4, np.int32))
    assert find_bad_images(source, channels=3, max_pixels=10**6).keys() == {1, 2}
    arrays = ArraySource(_noise(3, 4, 4, 1), np.zeros(3, np.int32))
    assert find_bad_images(arrays, channels=1, max_pixels=10**6) == {}


def test_bad_images_are_dropped_up_to_the_limit_and_listed():
    def splits():
        labels = np.arange(4, dtype=np.int32)
        train = FileSource([f"train/{i}" for i in range(4)], labels)
        return {"train": (train, {2: "empty"}), "val": (FileSource(["val/0"], labels[:1]), {})}

    bad = BadImages(allowed=1)
    kept = drop_bad(splits(), bad)
    assert list(kept["train"].paths) == ["train/0", "train/1", "train/3"]
    assert kept["train"].labels.tolist() == [0, 1, 3]
    assert bad.listed() == ["train/2: empty"]
    with pytest.raises(RunError, match=r"^1 unreadable image, data.max_bad_images allows 0: train/2: empty$"):
        drop_bad(splits(), BadImages())


def test_of_many_bad_images_twenty_are_listed():
    source = FileSource([f"{i}.jpg" for i in range(50)], np.zeros(50, np.int32))
    with pytest.raises(RunError) as error:
        drop_bad({"train": (source, dict.fromkeys(range(50), "empty"))}, BadImages(3))
    assert str(error.value).startswith("50 unreadable images, data.max_bad_images allows 3: 0.jpg: empty; ")
    assert str(error.value).count("empty") == 20
    assert str(error.value).endswith("; ...")


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_parallel_keeps_the_order(count):
    assert parallel(lambda i: i * i, count, workers=4) == [i * i for i in range(count)]
