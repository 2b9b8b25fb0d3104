"""A network that one poisoned image brings to NaN in a named layer, and the runs that meet it."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain import PTClassifier

IMAGES, BATCH, STEPS = 64, 8, 40
POISONED = 37
"""The image of pixels 255; all others stay below 200."""
RUN: dict[str, Any] = {
    "quiet": True,
    "augment": {"policy": "none"},
    "data": {"mean": (0.0,), "std": (1.0,), "val_fraction": 0.0},
    "optimizer": {"name": "sgd", "learning_rate": 0.01, "weight_decay": 0.0},
    "schedule": {"name": "constant"},
    "tracking": {"enabled": False},
    "parallel": {"compilation_cache": False},
}


class Root(nnx.Module):
    """`x * sqrt(0.9 - mean(x))`, NaN for a white image."""

    def __call__(self, x):
        return x * jnp.sqrt(0.9 - jnp.mean(x, axis=-1, keepdims=True))


class Network(nnx.Module):
    """Flatten, root, head."""

    def __init__(self, pixels: int, classes: int) -> None:
        self.root = Root()
        self.head = nnx.Linear(pixels, classes, rngs=nnx.Rngs(0))

    def __call__(self, x, *, train=False, key=None):
        return self.head(self.root(x.reshape(len(x), -1)))


class Poisonable(PTClassifier):
    """Trains `Network`."""

    def build_model(self, *, num_classes, axis_name):
        return Network(16, num_classes)


def data(poisoned: tuple[int, ...] = (POISONED,)) -> tuple[np.ndarray, np.ndarray]:
    """`uint8[64, 4, 4]` with labels."""
    images = np.random.default_rng(0).integers(0, 200, (IMAGES, 4, 4), np.uint8)
    images[list(poisoned)] = 255
    return images, np.arange(IMAGES) % 4


def train(run_dir, images=None, classifier=Poisonable, checkpoint=None, **train_options):
    """One run of 40 steps of 8 images."""
    options = {"steps": STEPS, "batch_size": BATCH, "log_every": 4, **train_options}
    model = classifier(**RUN, run_dir=run_dir, train=options, checkpoint=checkpoint or {"every_steps": 3, "keep": 30})
    return model.fit(*(data() if images is None else images))
