"""Every way to an evaluation prepares images alike."""

import numpy as np
import pytest

from jaxtrain import PTClassifier
from jaxtrain.config import Config
from jaxtrain.data.base import ArraySource, Dataset
from jaxtrain.data.residence import make_resident
from jaxtrain.data.transforms import center_crop_resize
from jaxtrain.training.inference import Inference, host_batches
from jaxtrain.training.parallel import make_strategy

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


@pytest.mark.slow
@pytest.mark.parametrize(("flips", "views"), [("h", 2), ("hv", 4)])
def test_flips_at_test_time_average_the_probabilities(tmp_path, flips, views):
    images, labels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8), np.arange(60) % 3
    validation = images[40:], labels[40:]

    def fitted(which):
        options = {"train": {"steps": 6, "batch_size": 8, "select": "last"}, "augment": {"test_flips": which}}
        options |= {"model": {"name": "cnn_tiny"}, "tracking": {"enabled": False}}
        model = PTClassifier(**options, run_dir=tmp_path / which, quiet=True)
        return model.fit(images[:40], labels[:40], validation=validation)

    plain, averaged = fitted("none"), fitted(flips)
    assert averaged.summary["params_sha256"] == plain.summary["params_sha256"]
    turned = [images[40:], images[40:, :, ::-1], images[40:, ::-1], images[40:, ::-1, ::-1]][:views]
    expected = np.mean([plain.predict_proba(np.ascontiguousarray(each)) for each in turned], axis=0)
    np.testing.assert_allclose(averaged.predict_proba(images[40:]), expected, atol=1e-6)
    assert abs(expected - plain.predict_proba(images[40:])).max() > 1e-3
    assert averaged.summary["val_accuracy"] == np.mean(expected.argmax(1) == labels[40:])
    loss = averaged.evaluate(images[40:], labels[40:])["loss"]
    assert loss == pytest.approx(-np.log(expected[np.arange(20), labels[40:]]).mean(), rel=1e-5)


def test_a_part_of_a_split_gets_whole_batches_and_a_few_predictions_small_ones(tmp_path):
    """How many images of a split are still to be embedded must not change the bits of their vectors."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    classifier = PTClassifier(
        model={"name": "linear"}, train={"steps": 1, "batch_size": 16}, run_dir=tmp_path / "run", quiet=True,
        tracking={"enabled": False},
    )  # fmt: skip
    fitted = classifier.fit(images, np.arange(40) % 2).fitted
    inference = Inference(fitted.technique, make_strategy(fitted.config.parallel))
    for count in (1, 3, 5, 40):
        source = ArraySource(images[:count], np.zeros(count, np.int32))
        assert {len(batch.image) for batch, _ in inference.batches(source)} == {16}
        few = {len(batch.image) for batch, _ in inference.batches(source, few=True)}
        assert few == {{1: 1, 3: 4, 5: 8, 40: 16}[count]}
