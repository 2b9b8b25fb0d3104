import os

import numpy as np
import pytest
from PIL import Image

from jaxtrain.config import DataConfig
from jaxtrain.data.folder import EXTENSIONS
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


@pytest.mark.parametrize("val_name", ["val", "valid", "validation", "Val"])
def test_split_folders(tmp_path, val_name):
    for split, count in (("train", 5), (val_name, 3), ("test", 2), ("unlabelled", 1)):
        _fill(tmp_path / split, count=count)
    data = _load(tmp_path, val_fraction=0.5)
    assert (len(data.train), len(data.val), len(data.open_test())) == (10, 6, 4)
    assert data.class_names == ("cat", "dog")
    assert all(path.startswith(str(tmp_path / val_name)) for path in data.val.paths)


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
    assert clean.bad_images == ()
    assert len(spoilt.bad_images) == 3
    assert spoilt.bad_images[0].startswith(f"{tmp_path}/b/cat/zero.jpg: ")


def test_the_test_sets_headers_are_read_before_training(tmp_path):
    for split in ("train", "test"):
        _fill(tmp_path / split)
    (tmp_path / "test" / "cat" / "zero.jpg").write_bytes(b"")
    with pytest.raises(RunError, match=r"test/cat/zero\.jpg"):
        _load(tmp_path)
    data = _load(tmp_path, max_bad_images=1)
    assert len(data.open_test()) == 10
    assert len(data.bad_images) == 1


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
    with pytest.raises(UserError, match=r"val must have the classes .* it lacks fox$"):
        _load(tmp_path)
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
