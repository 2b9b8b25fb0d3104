import os
import re

import numpy as np
import pytest
from PIL import Image

from jaxtrain.config import DataConfig
from jaxtrain.data.decode import decode_image
from jaxtrain.data.folder import EXTENSIONS
from jaxtrain.data.scan import header_of_file
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import RunError, UserError


def _image(path, size=(6, 4), mode="RGB", value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path)) if value is None else value)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, format="PNG")


def _fill(root, classes=("cat", "dog"), count=5, **options):
    for name in classes:
        for i in range(count):
            _image(root / name / f"{i}.png", value=i, **options)


def _load(root, **options):
    return load_dataset(DataConfig(name=f"folder:{root}", **{"val_fraction": 0.0, **options}))


def _names(source, root):
    return [os.path.relpath(path, root) for path in source.paths]


def test_a_folder_a_class(tmp_path):
    _fill(tmp_path, ("dog", "cat", "Zebra", "été", "10", "2"), count=2)
    data = _load(tmp_path)
    assert data.class_names == ("10", "2", "Zebra", "cat", "dog", "été")
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert _names(data.train, tmp_path)[:3] == ["10/0.png", "10/1.png", "2/0.png"]
    assert data.train.read(3) == (tmp_path / "2" / "1.png").read_bytes()
    assert (data.uniform_size, data.channels, data.val, data.open_test()) == ((4, 6), 3, None, None)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("TRAIN", "Valid", "testing"),
        ("Training", "validation", "eval"),
        ("train", "dev", "Test"),
        ("seg_train", "seg_dev", "seg_test"),
        ("train_images", "val_images", "test_images"),
    ],
)
def test_split_folders_by_any_of_their_names(tmp_path, train, val, test):
    for split, count in ((train, 5), (val, 3), (test, 2)):
        _fill(tmp_path / split, count=count)
    data = _load(tmp_path, val_fraction=0.5)
    assert (len(data.train), len(data.val), len(data.open_test())) == (10, 6, 4)
    assert data.class_names == ("cat", "dog")
    assert all(path.startswith(str(tmp_path / val)) for path in data.val.paths)
    assert set(data.taken.split(", ")) == {f"train: {train}", f"val: {val}", f"test: {test}"}


def test_folders_beside_splits_are_left_alone_and_named(tmp_path, caplog):
    for split in ("train", "test", "unlabelled"):
        _fill(tmp_path / split, count=2)
    data = _load(tmp_path)
    assert (len(data.train), len(data.open_test())) == (4, 4)
    assert "unlabelled" in caplog.text


@pytest.mark.parametrize("wrapper", ["images", "data", "Images", "anything", "a/b"])
def test_folders_that_only_wrap_others_are_looked_through(tmp_path, wrapper):
    _fill(tmp_path / "flat" / wrapper)
    assert _load(tmp_path / "flat").class_names == ("cat", "dog")
    for split in ("Training", "Testing"):
        _fill(tmp_path / "splits" / wrapper / split / "images", count=2)
    data = _load(tmp_path / "splits")
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.open_test())) == (4, 4)
    assert data.taken == f"train: {wrapper}/Training/images, test: {wrapper}/Testing/images"


def test_images_is_a_class_where_other_folders_hold_images_too(tmp_path):
    _fill(tmp_path / "images")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.xml").write_text("<?xml?>")
    assert _load(tmp_path).class_names == ("cat", "dog")
    _image(tmp_path / "charts" / "0.png")
    (tmp_path / "annotations" / "all.xml").unlink()
    (tmp_path / "annotations").rmdir()
    assert _load(tmp_path).class_names == ("charts", "images")


def test_folders_of_folders_are_asked_about_unless_they_are_said_to_be_classes(tmp_path):
    for top in ("fold1", "fold2"):
        _fill(tmp_path / top, count=2)
    with pytest.raises(UserError, match=r"fold1, fold2.*fold1/cat.*data\.layout=classes") as caught:
        _load(tmp_path)
    assert "\n" not in str(caught.value)
    data = _load(tmp_path, layout="classes")
    assert (data.class_names, data.class_counts.tolist()) == (("fold1", "fold2"), [4, 4])


def test_flat_split_folders_are_no_classes(tmp_path):
    for split in ("train", "test"):
        _image(tmp_path / split / "0.png")
    with pytest.raises(UserError, match="train has no class folders"):
        _load(tmp_path)
    assert _load(tmp_path, layout="classes").class_names == ("test", "train")


@pytest.mark.parametrize("empty", [False, True])
def test_a_validation_or_test_set_may_lack_a_class_which_is_named(tmp_path, caplog, empty):
    _fill(tmp_path / "train", ("cat", "dog", "fox"))
    for split in ("val", "test"):
        _fill(tmp_path / split, ("cat", "fox"))
        if empty:
            (tmp_path / split / "dog").mkdir()
    data = _load(tmp_path)
    assert data.val.labels.tolist() == data.open_test().labels.tolist() == [0] * 5 + [2] * 5
    for split in ("val", "test"):
        assert re.search(f"{tmp_path / split} has no images of dog", caplog.text)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="class folders without an image: empty"):
        _load(tmp_path)


def test_a_test_set_of_one_class_with_folders_inside_is_that_class(tmp_path):
    _fill(tmp_path / "train")
    _fill(tmp_path / "test" / "dog", ("day1", "day2"))
    assert set(_load(tmp_path).open_test().labels.tolist()) == {1}


def test_images_are_known_by_their_content_too_and_the_rest_is_counted_by_kind(tmp_path, caplog):
    _fill(tmp_path, count=1)
    for name in ("a.jpg_large", "b", "c.PART"):
        _image(tmp_path / "cat" / name)
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "dog" / "more.TXT").write_text("y")
    (tmp_path / "dog" / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (tmp_path / "dog" / "bytes.bin").write_bytes(
        bytes([0, 0, 2, *[0] * 9, 1, 0, 1, 0, 24, 0]) + bytes(9)
    )  # a TGA header
    _image(tmp_path / "loose.png")
    data = _load(tmp_path)
    assert data.class_counts.tolist() == [4, 1]
    assert all(part in caplog.text for part in ("4 files", "2 .txt", "1 .heic (a HEIC photo", "1 .bin", "loose.png"))


def test_what_systems_and_network_storage_leave_behind_is_ignored(tmp_path, caplog):
    _fill(tmp_path, count=2)
    for folder in ("cat/@eaDir/0.png", "$RECYCLE.BIN", "lost+found", "System Volume Information", "#recycle"):
        _image(tmp_path / folder / "thumb.jpg")
    (tmp_path / "dog" / "Thumbs.db").write_bytes(b"x")
    data = _load(tmp_path)
    assert (data.class_counts.tolist(), caplog.text) == ([2, 2], "")


def test_a_png_turned_by_metadata_behind_its_pixels_is_not_of_one_size_with_the_others(tmp_path):
    _fill(tmp_path, size=(6, 4))
    path = tmp_path / "cat" / "0.png"
    pixels, exif = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8), Image.Exif()
    exif[0x0112] = 6
    for place, (size, name) in enumerate((((6, 4), "small"), ((300, 200), "large"))):
        path = tmp_path / "dog" / f"{name}.png"
        image = Image.fromarray(pixels[: size[1], : size[0]])
        image.save(path, exif=exif)
        data = path.read_bytes()
        start = data.index(b"eXIf") - 4
        stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
        end = data.index(b"IEND") - 4
        path.write_bytes(data[:start] + data[stop:end] + data[start:stop] + data[end:])
        found = header_of_file(str(path))
        assert found == (*decode_image(path.read_bytes(), channels=3, max_pixels=10**6).shape[:2], False)
        assert found[:2] == size, place
    assert _load(tmp_path).uniform_size is None


def test_a_class_may_be_called_train(tmp_path):
    _fill(tmp_path, ("bus", "train"))
    assert _load(tmp_path).class_names == ("bus", "train")


def test_extensions_hidden_files_and_folders_within_classes(tmp_path):
    _fill(tmp_path, count=1)
    for i, extension in enumerate(EXTENSIONS):
        _image(tmp_path / "cat" / "more" / f"{i}{extension.upper()}")
    _image(tmp_path / "cat" / ".hidden.png")
    _image(tmp_path / "cat" / ".thumbnails" / "a.png")
    _image(tmp_path / ".git" / "a.png")
    _image(tmp_path / "__MACOSX" / "a.png")
    _image(tmp_path / "loose.png")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    data = _load(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.class_counts.tolist() == [1 + len(EXTENSIONS), 1]


def test_links_are_followed_each_folder_once(tmp_path):
    _fill(tmp_path / "data")
    _fill(tmp_path / "elsewhere", ("more",), count=2)
    (tmp_path / "data" / "cat" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data" / "cat")
    (tmp_path / "data" / "cat" / "self").symlink_to(tmp_path / "data" / "cat" / "self")
    (tmp_path / "data" / "cat" / "file.png").symlink_to(tmp_path / "data" / "dog" / "0.png")
    os.mkfifo(tmp_path / "data" / "cat" / "pipe.png")
    assert _load(tmp_path / "data").class_counts.tolist() == [5 + 2 + 1, 5]


def test_sizes_and_grey(tmp_path):
    _fill(tmp_path, mode="L")
    data = _load(tmp_path)
    assert (data.uniform_size, data.channels) == ((4, 6), 1)
    assert _load(tmp_path, channels=3).channels == 3
    _image(tmp_path / "cat" / "other.png", size=(7, 4))
    data = _load(tmp_path)
    assert (data.uniform_size, data.channels) == (None, 3)


def _spoil(root):
    (root / "cat" / "zero.jpg").write_bytes(b"")
    (root / "dog" / "text.jpg").write_text("no image")
    (root / "dog" / "gone.jpg").symlink_to(root / "nowhere")


def test_unreadable_images_stop_the_run_with_the_list(tmp_path):
    _fill(tmp_path)
    _spoil(tmp_path)
    with pytest.raises(RunError) as error:
        _load(tmp_path, max_bad_images=2)
    text = str(error.value)
    assert text.startswith("3 unreadable images, data.max_bad_images allows 2: ")
    for name in ("cat/zero.jpg: empty", "dog/text.jpg: not an image", "dog/gone.jpg: No such file"):
        assert f"{tmp_path}/{name}" in text


def test_allowed_ones_are_dropped_before_the_split(tmp_path):
    _fill(tmp_path / "a")
    _fill(tmp_path / "b")
    _spoil(tmp_path / "b")
    clean = _load(tmp_path / "a", val_fraction=0.4)
    spoilt = _load(tmp_path / "b", val_fraction=0.4, max_bad_images=3)
    assert _names(clean.train, tmp_path / "a") == _names(spoilt.train, tmp_path / "b")
    assert _names(clean.val, tmp_path / "a") == _names(spoilt.val, tmp_path / "b")
    assert clean.bad_images.listed() == []
    assert len(spoilt.bad_images.reasons) == 3
    assert spoilt.bad_images.listed()[0].startswith(f"{tmp_path}/b/cat/zero.jpg: ")


def test_the_test_sets_headers_are_read_before_training(tmp_path):
    for split in ("train", "test"):
        _fill(tmp_path / split)
    (tmp_path / "test" / "cat" / "zero.jpg").write_bytes(b"")
    with pytest.raises(RunError, match=r"test/cat/zero\.jpg"):
        _load(tmp_path)
    data = _load(tmp_path, max_bad_images=1)
    assert len(data.open_test()) == 10
    assert len(data.bad_images.reasons) == 1


def test_bombs_are_unreadable(tmp_path):
    _fill(tmp_path)
    with pytest.raises(RunError, match=r"10 unreadable .* 6x4 is more than 23 pixels"):
        _load(tmp_path, max_pixels=23)


def test_wrong_layouts_say_what_is_expected(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(UserError, match="has no class folders: expected PATH/CLASS"):
        _load(root)
    _image(root / "a.png")
    with pytest.raises(UserError, match="has no class folders: expected PATH/CLASS"):
        _load(root)
    with pytest.raises(UserError, match="is a file: expected"):
        _load(root / "a.png")
    (root / "cat").mkdir()
    (root / "dog").mkdir()
    with pytest.raises(UserError, match="holds no images: expected"):
        _load(root)
    _image(root / "cat" / "a.png")
    with pytest.raises(UserError, match="class folders without an image: dog"):
        _load(root)
    with pytest.raises(UserError, match=r"there is no 'cta' in .*: did you mean 'cat'"):
        _load(root / "cta" / "x")


def test_splits_of_different_classes_are_refused(tmp_path):
    _fill(tmp_path / "train", ("cat", "dog", "fox"))
    _fill(tmp_path / "test", ("cat", "dogs", "fox"))
    with pytest.raises(UserError, match=r"test must have the classes .* it lacks dog and has dogs besides"):
        _load(tmp_path)
    (tmp_path / "test" / "dogs").rename(tmp_path / "test" / "dog")
    _fill(tmp_path / "val", ("cat", "dog"))
    _fill(tmp_path / "valid", ("cat", "dog", "fox"))
    with pytest.raises(UserError, match="two folders for one split: val and valid"):
        _load(tmp_path)


def test_an_unlabelled_test_folder_is_refused_by_name(tmp_path):
    _fill(tmp_path / "train")
    _image(tmp_path / "test" / "0.png")
    with pytest.raises(UserError, match="test has no class folders: rename it"):
        _load(tmp_path)


def test_one_class_is_no_task(tmp_path):
    _fill(tmp_path, ("cat",))
    with pytest.raises(UserError, match="one class only"):
        _load(tmp_path)
