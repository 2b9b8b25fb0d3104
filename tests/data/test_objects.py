"""Data sets that are objects: the same images and labels as in the folder that they were made from."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from jaxtrain.config import DataConfig
from jaxtrain.data.decode import read_image
from jaxtrain.data.digest import data_digest
from jaxtrain.data.objects import objects_dataset, open_split
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import UserError
from tests.data.forms import CLASSES, OBJECTS, rows_of


def pixels(source):
    found = [source.read(i) for i in range(len(source))]
    return [
        np.asarray(Image.open(_file(image)).convert("RGB")) if isinstance(image, bytes) else image for image in found
    ]


def _file(data):
    import io

    return io.BytesIO(data)


@pytest.mark.parametrize("form", OBJECTS)
def test_an_object_is_the_folder_of_the_same_images(root, tmp_path, form):
    given = OBJECTS[form](root, tmp_path)
    mine = objects_dataset(**given, config=DataConfig(name="arrays"))
    folder = load_dataset(DataConfig(name=f"folder:{root}"))
    assert mine.uniform_size == (8, 8)
    assert mine.channels == 3
    for one, other in ((mine.train, folder.train), (mine.val, folder.val), (mine.open_test(), folder.open_test())):
        assert one.labels.tolist() == other.labels.tolist()
        assert one.labels.dtype == np.int32
        np.testing.assert_array_equal(pixels(one), pixels(other))
    again = pickle.loads(pickle.dumps(mine.train.select(np.array([3, 1]))))
    np.testing.assert_array_equal(pixels(again), pixels(folder.train.select(np.array([3, 1]))))


@pytest.mark.parametrize("form", ["pictures", "map style"])
def test_nameless_images_are_told_apart_by_their_pixels(root, form):
    def digest(turned):
        rows = [row for row in rows_of(root) if row["split"] == "train"]
        images = [Image.open(row["image"]).copy() for row in rows]
        images[0] = images[0].rotate(turned)
        labels = [row["label"] for row in rows]
        given = (images, labels) if form == "pictures" else (Listed(zip(images, labels, strict=True)),)
        return data_digest(objects_dataset(*given, config=DataConfig(name="arrays", val_fraction=0)).train)

    assert digest(0) == digest(0) != digest(180)


class Listed:
    def __init__(self, items):
        self.items = list(items)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_pictures_of_many_kinds_are_as_from_files(tmp_path):
    """Palettes, transparency, 16 bits and turned photographs."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8))
    clear = Image.fromarray(rng.integers(0, 256, (6, 9, 4), np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (6, 9), np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {"p": colours.convert("P"), "rgba": clear, "deep": deep, "grey": colours.convert("L"), "rgb": colours}
    for name, picture in kinds.items():
        picture.save(tmp_path / f"{name}.png", **({"exif": exif} if name == "rgb" else {}))
    files = sorted(tmp_path.iterdir())
    labels, config = [0, 1, 0, 1, 0], DataConfig(name="arrays", val_fraction=0.0, channels=3)
    of_files = objects_dataset(files, labels, config=config)
    of_pictures = objects_dataset([Image.open(file) for file in files], labels, config=config)
    for i in range(5):
        one, other = (read_image(d.train, i, channels=3, max_pixels=100) for d in (of_files, of_pictures))
        np.testing.assert_array_equal(one, other)
    assert of_pictures.uniform_size is None


def test_labels_are_classes_by_value_as_with_arrays(root):
    files = [row["image"] for row in rows_of(root)][:36]
    found = objects_dataset(pd.Series(files), pd.Series([7, 9, 8] * 12), config=DataConfig(name="arrays"))
    assert (found.class_names, found.classes) == (("7", "8", "9"), (7, 8, 9))
    named = objects_dataset(files, [2, 0, 1] * 12, class_names=CLASSES, config=DataConfig(name="arrays"))
    assert named.class_names == CLASSES


class Endless:
    def __len__(self):
        return 2**62

    def __getitem__(self, index):
        return np.zeros((2, 2), np.uint8), index % 2


class Items:
    def __init__(self, image, label=0):
        self.item = (image, label)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.item


def stream():
    yield np.zeros((2, 2), np.uint8), 0


FLOAT = np.zeros((8, 8, 3), np.float32)
WRONG = {
    "a generator": ((stream(),), r"generator.*no length.*jaxtrain\.data\.cache"),
    "an iterator over pairs": ((iter([1, 2]),), r"jaxtrain\.data\.cache"),
    "no end": ((Endless(),), "no end"),
    "no labels": ((["a.png", "b.png"],), "without labels|be given with labels"),
    "floats": ((Items(FLOAT),), r"image 0: images are float32 in 0\.\.0.*data\.value_range"),
    "channels first": ((Items(FLOAT[..., 0][None].repeat(3, 0)),), r"not \[images, channels, height, width\]"),
    "no image": ((Items({"a": 1}),), "image"),
    "a number": ((5,), r"int.*no length"),
    "no such file": ((["gone.png"] * 4, [0, 1, 0, 1]), "gone"),
    "fewer labels": ((["a.png"] * 4, [0, 1]), "4 images and 2 labels"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_no_labelled_set_gets_one_line(fault):
    given, told = WRONG[fault]
    with pytest.raises(Exception, match=told) as caught:
        objects_dataset(*given, config=DataConfig(name="arrays", val_fraction=0.0))
    assert caught.type.__module__ == "jaxtrain.errors"
    assert "\n" not in str(caught.value)


def test_items_with_a_declared_range(root):
    class Floats:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"image": np.full((4, 4, 3), index / 3), "label": index % 2}

    found = objects_dataset(Floats(), config=DataConfig(name="arrays", val_fraction=0.0, value_range=(0, 1)))
    assert [int(image.max()) for image in pixels(found.train)] == [0, 85, 170, 255]


def test_rows_of_a_table_and_lists_of_mappings(root):
    rows = [row for row in rows_of(root) if row["split"] == "train"]
    config = DataConfig(name="arrays", val_fraction=0.0)
    for given in (pd.DataFrame(rows), rows):
        found = objects_dataset(given, config=config)
        assert found.class_names == CLASSES
        assert found.train.read(5) == Path(rows[5]["image"]).read_bytes()


def test_one_split_of_several_is_asked_for(root):
    with pytest.raises(UserError, match="a mapping of train, test was given"):
        open_split({"train": [], "test": []}, where="the", config=DataConfig())


def test_splits_without_a_training_set(root):
    with pytest.raises(UserError, match="no split called train"):
        objects_dataset({"test": Items(FLOAT)}, config=DataConfig(name="arrays"))


def test_paths_may_be_of_any_kind(root):
    files = [row["image"] for row in rows_of(root)][:36]
    labels = [row["label"] for row in rows_of(root)][:36]
    for given in (files, [Path(file) for file in files], np.array(files), np.array(files, object), tuple(files)):
        found = objects_dataset(given, labels, config=DataConfig(name="arrays", val_fraction=0.0))
        assert found.train.read(3) == Path(files[3]).read_bytes()
