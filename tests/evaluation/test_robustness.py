from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter1d

from jaxtrain.data.base import ArraySource, FileSource
from jaxtrain.evaluation import robustness
from jaxtrain.evaluation.robustness import CORRUPTIONS, corrupt, corruption_accuracy
from tests.marks import mostly_slow


def images(count=6, side=24, channels=3):
    noise = np.random.default_rng(0).integers(40, 216, (count, 6, 6, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(image).resize((side, side))) for image in noise]
    return np.stack(smooth)[..., :channels]


def distance(kind, severity, seed=0):
    given = images()
    return np.abs(corrupt(given, kind, severity, seed=seed).astype(float) - given).mean()


@pytest.mark.parametrize("kind", mostly_slow(CORRUPTIONS, {"brightness", "gaussian_noise"}))
def test_each_grows_with_its_severity_and_repeats_itself(kind, monkeypatch):
    given = images()
    distances = [distance(kind, severity) for severity in (1, 3, 5)]
    assert 0.3 < distances[0] < distances[1] < distances[2] < 130
    corrupted = corrupt(given, kind, 2, seed=1)
    assert (corrupted.shape, corrupted.dtype) == (given.shape, np.uint8)
    monkeypatch.setattr(robustness, "_BATCH", 4)
    assert np.array_equal(corrupt(given, kind, 2, seed=1), corrupted)


def test_noise_has_the_published_strength_and_differs_by_seed():
    grey = np.full((4, 64, 64, 1), 128, np.uint8)
    assert corrupt(grey, "gaussian_noise", 1).std() / 255 == pytest.approx(0.08, rel=0.03)
    assert not np.array_equal(corrupt(grey, "gaussian_noise", 1), corrupt(grey, "gaussian_noise", 1, seed=1))
    salted = corrupt(grey, "impulse_noise", 5)
    assert np.mean(salted == 0) == pytest.approx(0.135, abs=0.01)
    assert np.mean(salted == 255) == pytest.approx(0.135, abs=0.01)
    photons = corrupt(grey, "shot_noise", 1) / 255
    assert photons.std() == pytest.approx(np.sqrt(128 / 255 / 60), rel=0.03)


def test_blur_contrast_brightness_and_cells_equal_plain_numpy():
    given = images(2, 224)
    blurred = corrupt(given, "gaussian_blur", 1)
    expected = gaussian_filter1d(gaussian_filter1d(given.astype(float), 2, axis=1, truncate=8), 2, axis=2, truncate=8)
    assert np.abs(blurred[:, 20:-20, 20:-20] - expected[:, 20:-20, 20:-20]).max() <= 1
    mean = given.mean(axis=(1, 2), keepdims=True)
    assert np.abs(corrupt(given, "contrast", 1) - (mean + 0.4 * (given - mean))).max() <= 1
    assert np.abs(corrupt(given, "brightness", 2) - np.minimum(given + 51.0, 255)).max() <= 1
    cells = corrupt(given, "pixelate", 1)
    assert len(np.unique(cells[0, :, 0, 0])) <= int(224 * 0.6)


class Brightness:
    """Answers 1 for bright images."""

    class_names = ("dark", "bright")

    def predict_logits(self, source):
        bright = np.array([source.read(i).mean() > 127 for i in range(len(source))])
        return np.eye(2, dtype=np.float32)[bright.astype(int)]


class Wrong(Brightness):
    def predict_logits(self, source):
        return -super().predict_logits(source)


def halves(count=20):
    pixels = np.zeros((count, 12, 12, 1), np.uint8)
    pixels[: count // 2] = 80
    pixels[count // 2 :] = 180
    return ArraySource(pixels, (np.arange(count) >= count // 2).astype(np.int32))


@pytest.mark.slow
def test_accuracy_of_every_model_under_every_corruption():
    found = corruption_accuracy({"right": Brightness(), "wrong": Wrong()}, halves(), side=12)
    assert list(found) == ["right", "wrong"]
    assert list(found["right"]) == list(CORRUPTIONS)
    assert all(len(curve) == 6 for curves in found.values() for curve in curves.values())
    assert {curve[0] for curve in found["right"].values()} == {1.0}
    assert found["right"]["brightness"] == [1, 1, 0.5, 0.5, 0.5, 0.5]
    for kind, curve in found["right"].items():
        assert found["wrong"][kind] == pytest.approx([1 - value for value in curve])


def test_files_become_arrays_and_large_sets_a_part(tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "MAX_IMAGES", 4)
    monkeypatch.setattr(robustness, "CORRUPTIONS", {"contrast": CORRUPTIONS["contrast"]})
    paths = []
    for i in range(8):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(np.full((30, 20, 3), 40 if i < 4 else 200, np.uint8)).save(paths[-1])
    source = FileSource(paths, np.repeat([0, 1], 4).astype(np.int32))
    assert corruption_accuracy({"m": Brightness()}, source, side=16) == {"m": {"contrast": [1.0] * 6}}
