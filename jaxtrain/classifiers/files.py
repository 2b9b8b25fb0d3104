"""A trained model of any technique, from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtrain.classifiers.base import BaseClassifier
from jaxtrain.classifiers.feature_extraction import FEClassifier
from jaxtrain.classifiers.fine_tuning import FTClassifier
from jaxtrain.classifiers.pre_training import PTClassifier
from jaxtrain.readers import reading
from jaxtrain.runs.fitted import read_model
from jaxtrain.saved_model import OTHER

TECHNIQUES: dict[str, type[BaseClassifier]] = {cls.technique: cls for cls in (FEClassifier, FTClassifier, PTClassifier)}


def load(path: str | Path, *, network: Any = None) -> BaseClassifier:
    """The trained classifier of a run directory or a folder written by `save`.

    `network`: of one's own, where it cannot be imported by the path that is recorded. Raises UserError if there is no
    model, or its network or class cannot be found.
    """
    saved = read_model(Path(path))
    with reading(saved.path, "saved model", OTHER):
        return TECHNIQUES[saved.about.technique].of_saved(saved, network=network)
