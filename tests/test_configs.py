"""Every recipe under configs/ trains: a few steps on generated images of the shape that it is for."""

from pathlib import Path

import numpy as np
import pytest

from jaxtrain import PTClassifier
from jaxtrain.config_io import load_config

ROOT = Path(__file__).resolve().parents[1] / "configs"
SHAPES = {"digits": (8, 8, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3), "imagenet": (48, 64, 3)}


@pytest.mark.parametrize("path", sorted(ROOT.glob("pt/*.yaml")), ids=lambda path: path.stem)
def test_recipe(path, tmp_path):
    config = load_config(path)
    shape = next(shape for name, shape in SHAPES.items() if path.stem.startswith(name))
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (80, *shape), dtype=np.uint8)
    labels = np.arange(80) % 10
    small = {
        "train.epochs": None,
        "train.steps": 2,
        "train.batch_size": 16,
        "schedule.warmup_epochs": 0.1,
        "run_dir": tmp_path / "run",
        "quiet": True,
        "tracking.enabled": False,
        "data.mean": None,
        "data.std": None,
        "parallel.cpu_devices": None,  # this process runs JAX already
    }
    if path.stem.startswith("imagenet"):
        small |= {"data.image_size": 32, "model.patch_size": 16}
    classifier = PTClassifier(config.replace(**small)).fit(images, labels)
    assert classifier.summary["steps"] == 2
