"""Predictions of made-up models, for the tests of comparisons."""

from __future__ import annotations

import numpy as np

from jaxtrain.data.digest import digest_of_test_set
from jaxtrain.evaluation.comparison import Candidate
from jaxtrain.evaluation.predictions import Predictions

NAMES = ("cat", "dog", "fox", "owl")


def ids_of(images):
    return tuple(f"{i:064x}" for i in range(images))


def predictions(accuracy, *, seed=0, images=400, names=NAMES, technique="pt", model="mlp", val=True, sure=4.0):
    """Right on exactly so many images, the first ones in an order that most models share."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(images) % len(names)).astype(np.int32)
    difficulty = np.random.default_rng(99).random(images) + rng.normal(0, 0.1, images)
    right = np.argsort(np.argsort(difficulty)) < round(accuracy * images)
    answers = np.where(right, labels, (labels + 1 + rng.integers(0, len(names) - 1, images)) % len(names))
    logits = rng.normal(0, 0.5, (images, len(names))).astype(np.float32)
    logits[np.arange(images), answers] += np.float32(sure)
    ids = ids_of(images)
    held = (labels[:100].copy(), logits[:100] * np.float32(0.5)) if val else (None, None)
    digest = digest_of_test_set(ids, labels, names)
    return Predictions(ids, labels, logits, names, digest, f"{seed:064x}", technique, model, "pets", *held)


def candidate(name, accuracy, *, recipe=None, costs=None, **kind):
    return Candidate(name, predictions(accuracy, **kind), costs or {}, recipe=recipe, seed=kind.get("seed"))
