import numpy as np
import pytest
from PIL import Image

from jaxtrain.config import DataConfig
from jaxtrain.data.arrays import from_arrays
from jaxtrain.data.assemble import assemble, convert_channels
from jaxtrain.data.base import ArraySource
from jaxtrain.data.known import Known
from jaxtrain.errors import UserError


def _source(count=100, classes=4, channels=1):
    images = np.zeros((count, 2, 2, channels), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return ArraySource(images, (np.arange(count) % classes).astype(np.int32))


def _assemble(config, val=None, channels=1, known=None, test=None):
    return assemble(
        config,
        name="x",
        class_names=("a", "b", "c", "d"),
        train=_source(channels=channels),
        val=val,
        open_test=lambda: test,
        natural_channels=channels,
        uniform_size=(2, 2),
        known=known or Known(),
    )


def _ids(source):
    return source.images[:, 0, 0, 0].tolist()


def test_validation_is_split_off_once_and_a_subset_comes_after():
    whole, small = _assemble(DataConfig()), _assemble(DataConfig(max_train_images=20))
    assert sorted(_ids(whole.train) + _ids(whole.val)) == list(range(100))
    assert whole.class_counts.tolist() == [22, 23, 22, 23] or whole.class_counts.sum() == 90
    assert _ids(small.val) == _ids(whole.val)
    assert small.class_counts.tolist() == [5, 5, 5, 5]
    assert set(_ids(small.train)) < set(_ids(whole.train))


def test_a_source_with_its_own_validation_keeps_its_training_images():
    data = _assemble(DataConfig(val_fraction=0.5), val=_source(8))
    assert (len(data.train), len(data.val)) == (100, 8)


def test_split_seed_alone_decides():
    assert _ids(_assemble(DataConfig()).val) == _ids(_assemble(DataConfig(channels=3, prefetch=9)).val)
    assert _ids(_assemble(DataConfig()).val) != _ids(_assemble(DataConfig(split_seed=1)).val)


def test_a_split_that_leaves_nothing_is_refused():
    images, labels = np.zeros((2, 2, 2), np.uint8), [0, 1]
    with pytest.raises(UserError, match=r"data.val_fraction 0.1 of 2 .* 0 held out"):
        from_arrays(images, labels)
    with pytest.raises(UserError, match=r"data.max_train_images 3 is too few: 3 images cannot hold 4 classes"):
        _assemble(DataConfig(max_train_images=3))


def test_a_test_set_is_drawn_first_where_there_is_none():
    whole, tested = _assemble(DataConfig()), _assemble(DataConfig(test_fraction=0.2))
    held = tested.open_test()
    assert np.bincount(held.labels).tolist() == [5, 5, 5, 5]
    assert sorted(_ids(held) + _ids(tested.train) + _ids(tested.val)) == list(range(100))
    assert (len(tested.val), len(tested.train)) == (8, 72)
    assert _ids(_assemble(DataConfig(test_fraction=0.2, val_fraction=0.0, channels=3)).open_test()) == _ids(held)
    assert _ids(_assemble(DataConfig(test_fraction=0.2, split_seed=1)).open_test()) != _ids(held)
    assert whole.open_test() is None
    images, labels = np.full((40, 2, 2), 99, np.uint8), np.arange(40) % 2
    assert len(from_arrays(images, labels, config=DataConfig(test_fraction=0.25)).open_test()) == 10


def test_a_test_set_that_is_there_is_never_added_to():
    with pytest.raises(UserError, match=r"data\.test_fraction: x has a test set of its own"):
        _assemble(DataConfig(test_fraction=0.2), test=_source(4))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("given", [1, 3, 4])
def test_channels_are_converted_as_pillow_does(given, channels):
    images = np.random.default_rng(0).integers(0, 256, (1500, 4, 5, given), dtype=np.uint8)
    converted = convert_channels(images, channels)
    assert converted.shape == (1500, 4, 5, channels)
    for i in (0, 700, 1499):
        image = Image.fromarray(images[i, ..., 0] if given == 1 else images[i])
        if given == 4:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        expected = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        np.testing.assert_array_equal(converted[i].squeeze(), expected.squeeze())


def test_every_grey_of_luma_is_pillows_to_the_bit():
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    images = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, len(levels), 3)
    expected = np.asarray(Image.fromarray(images[0]).convert("L"))
    np.testing.assert_array_equal(convert_channels(images, 1)[0, ..., 0], expected)


def test_every_split_gets_the_channels():
    data = _assemble(DataConfig(channels=3), val=_source(8), test=_source(4))
    for source in (data.train, data.val, data.open_test()):
        assert source.images.shape[-1] == 3
    assert data.channels == 3


KNOWN_GREY, KNOWN_RGB = Known((0.5,), (0.1,)), Known((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("options", "channels", "known", "mean", "std"),
    [
        ({}, 1, Known(), None, None),
        ({}, 1, KNOWN_GREY, (0.5,), (0.1,)),
        ({"channels": 3}, 1, KNOWN_GREY, (0.5,) * 3, (0.1,) * 3),
        ({"channels": 1}, 3, KNOWN_RGB, None, None),
        ({"mean": (0.7,)}, 3, KNOWN_RGB, (0.7,) * 3, KNOWN_RGB.std),
        ({"mean": (0.0,), "std": (1.0,)}, 1, KNOWN_GREY, (0.0,), (1.0,)),
    ],
)
def test_statistics_fit_the_channels(options, channels, known, mean, std):
    data = _assemble(DataConfig(**options), channels=channels, known=known)
    assert (data.mean, data.std) == (mean, std)


def test_statistics_of_a_wrong_length_are_refused():
    with pytest.raises(UserError, match=r"data.std has 3 values, the images have 1 channels"):
        _assemble(DataConfig(std=(0.1, 0.1, 0.1)))


def test_images_that_never_pass_an_eighth_of_the_range_are_warned_about(caplog):
    pixels = np.full((20, 4, 4), 16, np.uint8)
    from_arrays(pixels, np.arange(20) % 2)
    assert "no brighter than 16 of 255" in caplog.text
    caplog.clear()
    pixels[::5, 1, 1] = 32
    from_arrays(pixels, np.arange(20) % 2)
    assert caplog.text == ""
