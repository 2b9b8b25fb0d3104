"""A trained model of any technique, from its folder."""

from __future__ import annotations

from pathlib import Path

from jaxtrain.classifiers.base import BaseClassifier
from jaxtrain.classifiers.feature_extraction import FEClassifier
from jaxtrain.classifiers.fine_tuning import FTClassifier
from jaxtrain.classifiers.pre_training import PTClassifier
from jaxtrain.runs.fitted import read_model

TECHNIQUES: dict[str, type[BaseClassifier]] = {cls.technique: cls for cls in (FEClassifier, FTClassifier, PTClassifier)}


def load(path: str | Path) -> BaseClassifier:
    """The trained classifier of a run directory or a folder written by `save`; UserError if there is none."""
    weights, meta = read_model(Path(path))
    return TECHNIQUES[meta["technique"]].of_saved(weights, meta)
