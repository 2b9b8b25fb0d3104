"""Runs on images of many channels and 16 bits: from scratch, fine-tuned, predicted, compared."""

import numpy as np
import pytest

import jaxtrain
from jaxtrain import FEClassifier, FTClassifier, PTClassifier
from jaxtrain.errors import UserError
from jaxtrain.models.weights.adapt import average_channels

COMMON = {"tracking": {"enabled": False}, "quiet": True}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pictures(channels, count=64):
    """Two classes that differ in the last channel alone, in bits that 8 bits would lose."""
    rng, labels = np.random.default_rng(0), np.arange(count) % 2
    images = rng.integers(30_000, 30_040, (count, 20, 20, channels)).astype(np.uint16)
    images[labels == 1, :, :, -1] += 100
    return images, labels


def trained(kind=PTClassifier, *, data=None, model="mlp_tiny", steps=12, images=None, **more):
    named = {"name": model} if isinstance(model, str) else model
    options = {"model": named, "train": {"steps": steps, "batch_size": 16}, "data": data or {}, **COMMON}
    images, labels = images or pictures(6)
    return kind(**{**options, **more}).fit(images, labels, test=(images[:32], labels[:32]))


@pytest.mark.slow
def test_16_bits_of_6_channels_train_from_scratch(tmp_path):
    model = trained(data={"loader": "stream", "workers": 0})
    config = model.fitted.config.data
    assert (config.channels, config.bits, len(config.mean)) == (6, 16, 6)
    images, labels = pictures(6)
    assert model.score(images, labels) > 0.9
    model.save(tmp_path / "saved")
    again = jaxtrain.load(tmp_path / "saved")
    assert np.array_equal(again.predict_proba(images[:8]), model.predict_proba(images[:8]))
    with pytest.raises(UserError, match="3 channels, 6 are needed"):
        model.predict(images[..., :3])
    report = jaxtrain.benchmark([model.run_dir], pictures(6), costs=False)
    assert "data:image/png" in report.to_html()


@pytest.mark.slow
def test_fine_tuning_inflates_the_first_kernel(tmp_path):
    colours, labels = pictures(3)
    start = trained(model="cnn_tiny", images=((colours >> 8).astype(np.uint8), labels), steps=2)
    tuned = trained(FTClassifier, model={"weights": str(start.run_dir)}, steps=1)
    assert "from 3 to 6 channels" in (tuned.run_dir / "weights.json").read_text()
    before = next(v for v in start.fitted.weights["params"].values() if v.ndim == 4 and v.shape[2] == 3)
    after = next(v for v in tuned.fitted.weights["params"].values() if v.ndim == 4 and v.shape[2] == 6)
    np.testing.assert_allclose(after, average_channels(np.asarray(before), 6), atol=0.05)
    assert tuned.fitted.config.data.mean == pytest.approx(pictures(6)[0].mean((0, 1, 2)) / 65535, abs=1e-3)
    with pytest.raises(UserError, match="frozen weights see 3 channels, the images have 6"):
        trained(FEClassifier, model={"weights": str(start.run_dir)}, train={})


def test_a_grey_image_gives_what_it_gave_before_inflation():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 8)).astype(np.float32)
    grey = np.random.default_rng(1).normal(size=(3, 3, 1)).astype(np.float32)
    before = np.einsum("hwc,hwco->o", np.repeat(grey, 3, -1), kernel)
    after = np.einsum("hwc,hwco->o", np.repeat(grey, 6, -1), average_channels(kernel, 6))
    np.testing.assert_allclose(after, before, rtol=1e-4)


@pytest.mark.slow
def test_sources_of_ones_own_have_them_too():
    images, labels = pictures(6)

    class Mine:
        def __init__(self, places):
            self.places = places

        labels = property(lambda self: labels[self.places].astype(np.int32))

        def __len__(self):
            return len(self.places)

        def read(self, index):
            return images[self.places[index]]

        def describe(self, index):
            return f"mine {index}"

        def select(self, indices):
            return Mine(self.places[indices])

    options = {"model": {"name": "mlp_tiny"}, "train": {"steps": 2, "batch_size": 16}, **COMMON}
    mine = PTClassifier(**options).fit(Mine(np.arange(64)))
    arrays = PTClassifier(**options).fit(images, labels)
    assert mine.summary["params_sha256"] == arrays.summary["params_sha256"]
