import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jaxtrain.config import DataConfig
from jaxtrain.data.arrays import from_arrays
from jaxtrain.data.base import ArraySource, Subset
from jaxtrain.data.decode import read_image
from jaxtrain.data.digest import images_fingerprint
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import DamagedError, UserError

NO_VAL = DataConfig(val_fraction=0.0)


def _images(count=20, *shape):
    shape = shape or (4, 5)
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def _labels(count=20, classes=2):
    return np.arange(count) % classes


def test_digits_are_scikit_learns():
    data = load_dataset(DataConfig())
    test = data.open_test()
    assert (len(data.train), len(data.val), len(test)) == (1293, 144, 360)
    images = np.concatenate([split.images for split in (data.train, data.val, test)])[..., 0]
    labels = np.concatenate([split.labels for split in (data.train, data.val, test)])
    theirs = load_digits()
    ours = sorted((int(y), x.tobytes()) for x, y in zip(images, labels, strict=True))
    scaled = np.floor(theirs.images * 15.9375 + 0.5).astype(np.uint8)
    assert ours == sorted((int(y), x.tobytes()) for x, y in zip(scaled, theirs.target, strict=True))
    assert (data.class_names, data.channels, data.uniform_size) == (tuple("0123456789"), 1, (8, 8))
    assert data.flips is False


def test_the_digits_test_set_is_pinned_whatever_the_options():
    plain = load_dataset(DataConfig())
    other = load_dataset(DataConfig(split_seed=9, val_fraction=0.4, max_train_images=100))
    assert images_fingerprint(plain.open_test()) == images_fingerprint(other.open_test())
    assert images_fingerprint(plain.open_test()).startswith("e0e4d440536a3d20")
    assert images_fingerprint(plain.val) != images_fingerprint(other.val)


def test_digits_statistics_are_those_of_its_training_images():
    data = load_dataset(NO_VAL)
    pixels = data.train.images / 255
    np.testing.assert_allclose([data.mean[0], data.std[0]], [pixels.mean(), pixels.std()], atol=5e-4)


def test_arrays_go_in_without_a_copy():
    images = _images()
    data = from_arrays(images, _labels(), config=NO_VAL)
    assert np.shares_memory(data.train.images, images)
    assert data.train.images.shape == (20, 4, 5, 1)
    assert data.uniform_size == (4, 5)
    assert data.class_names == ("0", "1")
    assert data.val is None
    assert data.open_test() is None


@pytest.mark.parametrize(
    ("labels", "class_names", "names", "indices"),
    [
        (["b", "a", "b"], None, ("a", "b"), [1, 0, 1]),
        ([7, 3, 7], None, ("3", "7"), [1, 0, 1]),
        ([1, 0, 1], ["cat", "dog"], ("cat", "dog"), [1, 0, 1]),
        (["dog", "cat", "dog"], ["dog", "cat"], ("dog", "cat"), [0, 1, 0]),
        ([[1], [0], [1]], None, ("0", "1"), [1, 0, 1]),
        (np.array(["b", "a", "b"], object), None, ("a", "b"), [1, 0, 1]),
        (np.array([True, False, True]), None, ("False", "True"), [1, 0, 1]),
        ([10, 9, 10], None, ("9", "10"), [1, 0, 1]),
    ],
)
def test_labels_become_places_in_the_class_names(labels, class_names, names, indices):
    data = from_arrays(_images(3), labels, class_names=class_names, config=NO_VAL)
    assert data.class_names == names
    assert data.train.labels.tolist() == indices
    assert data.train.labels.dtype == np.int32


def test_validation_and_test_use_the_training_classes():
    pair = (_images(2), [7, 7])
    data = from_arrays(_images(4), [3, 5, 7, 5], validation=pair, test=pair)
    assert len(data.train) == 4
    assert data.val.labels.tolist() == [2, 2]
    assert data.open_test().labels.tolist() == [2, 2]
    with pytest.raises(UserError, match="arrays validation label '4' is none of the 3 classes"):
        from_arrays(_images(4), [3, 5, 7, 5], validation=(_images(2), [3, 4]))


def test_the_test_set_is_not_looked_at_before_it_is_opened():
    data = from_arrays(_images(), _labels(), test=(_images(2), [0]))
    with pytest.raises(UserError, match="arrays test has 2 images and 1 labels"):
        data.open_test()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (_images() / 255, _labels(), r"float64 in 0\..*, must be uint8: \(images \* 255\)\.round"),
        (_images().astype(np.float32), _labels(), r"float32 in .*: images\.round\(\)\.astype"),
        (_images() / 99 - 1, _labels(), "rescale to 0..255 first"),
        (np.where(_images() > 9, np.nan, 0.5), _labels(), r"in 0.5..0.5, .*rescale to 0..255 first"),
        (_images().astype(np.int64), _labels(), r"int64 in .*: images\.astype\(numpy\.uint8\)"),
        (_images() > 9, _labels(), r"bool, must be uint8: images\.astype\(numpy\.uint8\) \* 255"),
        (np.array([None] * 20), _labels(), "object, must be uint8: pass an array of numbers"),
        ([np.zeros((2, 2)), np.zeros((3, 3))], [0, 1], "different shapes"),
        (_images(0), [], "empty"),
        (_images(20, 3, 4, 5), _labels(), r"shape \[20, 3, 4, 5\].*not \[images, channels, height, width\].*moveaxis"),
        (_images(20, 3, 4, 5) / 255, _labels(), r"not \[images, channels, height, width\]"),
        (_images(20, 4, 5, 2), _labels(), r"shape \[20, 4, 5, 2\]"),
        (_images(), _labels(19), "20 images and 19 labels"),
        (_images(), np.where(_labels(), np.nan, 0.0), "label 1 is NaN"),
        (_images(), _labels().astype(float), r"float64, must be integers or strings: labels\.astype\(int\)"),
        (_images(), _labels() - 1, "label 0 is -1"),
        (_images(), _labels() + 0.5, "regression is not supported"),
        (_images(), np.eye(20, dtype=int), "argmax"),
        (_images(), np.eye(20, dtype=np.float32), "argmax"),
        (_images(), np.full((20, 3), 2), "the value 2: several labels per image are a matrix"),
        (_images(), np.full((20, 3), 0.5), "the value 0.5: several labels per image are a matrix"),
        (_images(), np.ones((19, 3), int), "20 images and 19 labels"),
        (_images(), [None] * 20, "object, must be integers or strings"),
        (_images(), np.zeros(20, int), r"one class only \(0\)"),
    ],
)
def test_wrong_arrays_are_refused_in_one_line(images, labels, message):
    with pytest.raises(UserError, match=message) as error:
        from_arrays(images, labels)
    assert "\n" not in str(error.value)
    assert ("argmax" in message) == ("argmax" in str(error.value))


@pytest.mark.parametrize("low_high", [(0, 1), (0, 255)])
def test_the_conversion_that_an_error_names_works(low_high):
    images = np.linspace(*low_high, 20 * 20).reshape(20, 4, 5)
    with pytest.raises(UserError) as error:
        from_arrays(images, _labels())
    advice = str(error.value).partition("must be uint8: ")[2].partition(";")[0].replace("numpy", "np")
    converted = eval(advice, {"images": images, "np": np})
    assert (converted.min(), converted.max()) == (0, 255)
    from_arrays(converted, _labels())


@pytest.mark.parametrize(
    ("given", "value_range", "expected"),
    [
        (np.array([0.0, 0.5, 1.0], np.float32), (0, 1), [0, 128, 255]),
        (np.array([-1.0, 0.0, 1.0]), (-1, 1), [0, 128, 255]),
        (np.array([0.0, 127.6, 255.0], np.float16), (0, 255), [0, 128, 255]),
        (np.array([0, 2048, 4095], np.uint16), (0, 4095), [0, 128, 255]),
        (np.array([0, 9, 255], np.uint8), (0, 1), [0, 9, 255]),
    ],
)
def test_values_are_rescaled_from_the_range_that_was_declared(given, value_range, expected):
    images = np.tile(given, (20, 2, 1))
    data = from_arrays(images, _labels(), config=DataConfig(value_range=value_range))
    assert data.train.images[0, 0, :, 0].tolist() == expected


@pytest.mark.parametrize(("wrong", "told"), [(1.5, "the value 1.5"), (-0.1, "the value -0.1"), (np.nan, "not finite")])
def test_values_out_of_that_range_are_refused(wrong, told):
    images = np.full((20, 2, 2), 0.5)
    images[7, 1, 0] = wrong
    with pytest.raises(UserError, match=rf"data\.value_range 0 1: .*{told}"):
        from_arrays(images, _labels(), config=DataConfig(value_range=(0, 1)))


def test_wrong_class_names_and_sizes_are_refused():
    with pytest.raises(UserError, match="label '2' is none of the 2 classes"):
        from_arrays(_images(), _labels(20, 3), class_names=["a", "b"])
    with pytest.raises(UserError, match="label 'dgo' is none of the 2 classes: did you mean 'dog'"):
        from_arrays(_images(2), ["dgo", "cat"], class_names=["cat", "dog"])
    with pytest.raises(UserError, match="a name twice"):
        from_arrays(_images(), _labels(), class_names=["a", "a"])
    with pytest.raises(UserError, match="validation images are 6x4, the training images 5x4"):
        from_arrays(_images(), _labels(), validation=(_images(2, 4, 6), [0, 1]))
    with pytest.raises(UserError, match="validation labels are"):
        from_arrays(_images(), _labels(), validation=(_images(2), ["0", "1"]))


def test_memory_mapped_images_stay_on_disk_and_are_converted_one_by_one(tmp_path):
    np.save(tmp_path / "images.npy", _images(20, 4, 5, 3))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    data = from_arrays(images, _labels(), config=DataConfig(channels=1))
    assert isinstance(data.train, Subset)
    assert isinstance(data.train.source, ArraySource)
    assert isinstance(data.train.source.images, np.memmap)
    pixels = read_image(data.train, 0, channels=1, max_pixels=100)
    expected = Image.fromarray(images[int(data.train.indices[0])]).convert("L")
    np.testing.assert_array_equal(pixels[..., 0], np.asarray(expected))


def _npz(path, **arrays):
    np.savez(path, **arrays)
    return DataConfig(name=f"npz:{path}")


@pytest.mark.parametrize("names", [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_npz_in_both_namings(tmp_path, names):
    arrays = {}
    for split, count in (("train", 20), ("val", 6), ("test", 8)):
        arrays[names[0].format(split)] = _images(count)
        arrays[names[1].format(split)] = _labels(count)[:, None]  # as MedMNIST has them
    data = load_dataset(_npz(tmp_path / "a.npz", **arrays, class_names=np.array(["cat", "dog"])))
    assert (len(data.train), len(data.val), len(data.open_test())) == (20, 6, 8)
    assert data.class_names == ("cat", "dog")
    np.testing.assert_array_equal(data.train.images[..., 0], _images(20))
    assert data.val.labels.tolist() == [0, 1] * 3


def test_npz_without_test_and_validation(tmp_path):
    data = load_dataset(_npz(tmp_path / "a.npz", x_train=_images(), y_train=_labels()))
    assert data.open_test() is None
    assert (len(data.train), len(data.val)) == (18, 2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": _images(), "labels": _labels()}, r"needs x_train and y_train .*it holds: images, labels"),
        ({"x_train": _images()}, "lacks y_train; it holds: x_train"),
        ({"x_train": _images(), "y_train": np.array([{}] * 20)}, "y_train holds Python objects"),
        ({"x_train": _images(), "y_train": _labels(), "class_names": np.arange(2)}, "list of strings"),
        ({"train_images": _images(), "train_labels": np.eye(20, dtype=int)}, r"shape \[20, 20\]"),
    ],
)
def test_wrong_npz_files_are_refused(tmp_path, arrays, message):
    with pytest.raises(UserError, match=message):
        load_dataset(_npz(tmp_path / "a.npz", **arrays))


def test_what_is_no_npz_and_what_is_damaged(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"hello")
    with pytest.raises(UserError, match="is not a sound npz file"):
        load_dataset(DataConfig(name=f"npz:{tmp_path / 'a.npz'}"))
    np.save(tmp_path / "b.npy", _images())
    with pytest.raises(UserError, match="one array without a name"):
        load_dataset(DataConfig(name=f"npz:{tmp_path / 'b.npy'}"))
    config = _npz(tmp_path / "c.npz", x_train=_images(), y_train=_labels())
    data = bytearray((tmp_path / "c.npz").read_bytes())
    data[300] ^= 0xFF  # within x_train
    (tmp_path / "c.npz").write_bytes(data)
    with pytest.raises(DamagedError, match=r"c\.npz: is not a sound npz file .*x_train"):
        load_dataset(config)
