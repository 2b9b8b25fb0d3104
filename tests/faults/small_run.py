"""Whole runs that take a second or two: a linear model, or a head on it, on noise of 4x4 pixels."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain import FEClassifier, PTClassifier
from tests.clock import without_clock

_RNG = np.random.default_rng(0)
IMAGES, LABELS = _RNG.integers(0, 256, (96, 4, 4), np.uint8), np.arange(96) % 4
VALIDATION, TEST = (IMAGES[64:80], LABELS[64:80]), (IMAGES[80:], LABELS[80:])
BASE: dict[str, Any] = {
    "quiet": True,
    "model": {"name": "linear"},
    "augment": {"policy": "none"},
    "train": {"steps": 40, "batch_size": 16, "log_every": 4},
    "checkpoint": {"every_steps": 5, "every_seconds": 1e6},
    "tracking": {"enabled": False},
    "parallel": {"compilation_cache": False},
}


def merged(options):
    """`BASE` with the options of some sections changed."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in BASE.items()}
    for key, value in options.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return tree


def fit(run_dir: Path, classifier=PTClassifier, images=IMAGES, **options):
    """A run from arrays; the same call on the same directory continues it."""
    model = classifier(**merged(options), run_dir=run_dir)
    return model.fit(images[:64], LABELS[:64], validation=VALIDATION, test=TEST)


def embed(run_dir: Path, weights: Path, **options):
    """A run of feature extraction on the same images, its store beside the run."""
    others = ("model", "train", "augment", "checkpoint")  # act under other techniques
    tree = {key: value for key, value in merged(options).items() if key not in others}
    tree = {"head": {"name": "ncm"}, **tree, "model": {"weights": str(weights)}}
    tree |= {"features": {"store": run_dir.with_name(f"{run_dir.name}-store"), "batch_size": 8}}
    model = FEClassifier(**tree, run_dir=run_dir)
    return model.fit(IMAGES[:64], LABELS[:64], validation=VALIDATION, test=TEST)


def history(run_dir: Path):
    """The journal without what a clock decides."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [without_clock(record) for record in records]


def result(model):
    """What a fault must not change."""
    summary = model.summary
    return [summary[name] for name in ("params_sha256", "val_accuracy", "test_loss")], history(model.run_dir)
