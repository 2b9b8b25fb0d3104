"""Every recipe under configs/ trains: a few steps on generated images of the shape that it is for."""

from pathlib import Path

import numpy as np
import pytest

from jaxtrain import PTClassifier
from jaxtrain.classifiers.files import TECHNIQUES
from jaxtrain.config_io import load_config

ROOT = Path(__file__).resolve().parents[1] / "configs"
SHAPES = {
    "digits": (8, 8, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "imagenet": (48, 64, 3),
    "pets": (48, 64, 3),
    "elpv": (40, 40, 1),
}
QUIET = {"quiet": True, "tracking.enabled": False}
# Long to compile, or broken at the level that the fast tests compile at.
LARGE = {"elpv", "fashion_mnist", "cifar10_resnet18", "fashion_mnist_gpu", "imagenet_vit_s16", "pets_vit_lora"}
TINY = {"vit": "vit_test", "efficientnet": "efficientnet_lite_test"}


def generated(shape):
    images = np.random.default_rng(0).integers(0, 256, (80, *shape), dtype=np.uint8)
    return images, np.arange(80) % 10


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Weights of a tiny network of the family that a recipe's weights are for."""
    made = {}

    def of(weights):
        model = next(tiny for family, tiny in TINY.items() if family in weights)
        if model not in made:
            made[model] = tmp_path_factory.mktemp(model) / "run"
            options = {"model": {"name": model}, "train": {"steps": 1, "batch_size": 16}}
            classifier = PTClassifier(run_dir=made[model], quiet=True, tracking={"enabled": False}, **options)
            classifier.fit(*generated((32, 32, 3)))
        return str(made[model])

    return of


def slow(path):
    return path.stem in LARGE or path.parent.name == "fe"


RECIPES = [
    pytest.param(path, id=f"{path.parent.name}-{path.stem}", marks=[pytest.mark.slow] if slow(path) else [])
    for path in sorted(ROOT.glob("*/*.yaml"))
    if path.parent.name != "sweeps"  # tests/sweeps/test_sweep_files.py
]


@pytest.mark.parametrize("path", RECIPES)
def test_recipe(path, tmp_path, backbone, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the embedding store is under the working directory
    config = load_config(path)
    shape = next(shape for name, shape in SHAPES.items() if path.stem.startswith(name))
    small = {"run_dir": tmp_path / "run", "data.mean": None, "data.std": None, **QUIET}
    small |= {"parallel.cpu_devices": None}  # this process runs JAX already
    if config.technique != "fe":
        small |= {"train.epochs": None, "train.steps": 2, "train.batch_size": 16, "schedule.warmup_epochs": 0.1}
    if config.technique != "pt":
        small |= {"model.weights": backbone(config.model.weights), "data.image_size": 32}
    if path.stem.startswith("imagenet"):
        small |= {"data.image_size": 32, "model.patch_size": 16}
    if config.finetune.blocks is not None:
        small |= {"finetune.blocks": 2}
    classifier = TECHNIQUES[config.technique](config.replace(**small)).fit(*generated(shape))
    assert classifier.summary["technique"] == path.parent.name
    assert config.technique == "fe" or classifier.summary["steps"] == 2
