"""Every way to an evaluation prepares images alike."""

import numpy as np
import pytest

from jaxtrain.classifiers.inference import host_batches
from jaxtrain.config import Config
from jaxtrain.data.base import ArraySource, Dataset
from jaxtrain.data.residence import make_resident
from jaxtrain.data.transforms import center_crop_resize

LABELS = np.arange(5, dtype=np.int32) % 2


class Encoded:
    """The same images, not as one array."""

    def __init__(self, images):
        self.images, self.labels = images, LABELS

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        return self.images[index]

    def describe(self, index):
        return str(index)


def collected(config, source):
    batches = list(host_batches(config, source, 2))
    assert [batch.weight.tolist() for batch in batches] == [[1, 1], [1, 1], [1, 0]]
    return np.concatenate([batch.image for batch in batches])[:5]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
@pytest.mark.parametrize("side", [16, 24])
def test_arrays_files_and_residents_are_prepared_alike(side, crop_pct, interpolation):
    images = np.random.default_rng(0).integers(0, 256, (5, side, side + 1, 3), np.uint8)[:, :, :side]
    geometry = {"image_size": 16, "channels": 3, "crop_pct": crop_pct, "interpolation": interpolation, "workers": 0}
    config = Config(data={**geometry, "loader": "device"}, augment={"crop": "none"})
    expected = np.stack([center_crop_resize(image, 16, crop_pct, interpolation) for image in images])
    source = ArraySource(images, LABELS)
    np.testing.assert_array_equal(collected(config, source), expected)
    np.testing.assert_array_equal(collected(config, Encoded(images)), expected)
    dataset = Dataset(
        name="x",
        class_names=("a", "b"),
        train=source,
        val=source,
        open_test=lambda: None,
        channels=3,
        uniform_size=(side, side),
    )
    resident = make_resident(dataset, config)
    for split in (resident.train, resident.val):
        np.testing.assert_array_equal(split.images, expected)
        np.testing.assert_array_equal(collected(config, split), expected)
        np.testing.assert_array_equal(collected(config, split.select(np.arange(5))), expected)
