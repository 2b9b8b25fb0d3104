"""A trained model of any technique, from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtrain.classifiers.base import BaseClassifier
from jaxtrain.classifiers.feature_extraction import FEClassifier
from jaxtrain.classifiers.fine_tuning import FTClassifier
from jaxtrain.classifiers.pre_training import PTClassifier
from jaxtrain.runs.fitted import read_model

TECHNIQUES: dict[str, type[BaseClassifier]] = {cls.technique: cls for cls in (FEClassifier, FTClassifier, PTClassifier)}


def load(path: str | Path, *, network: Any = None, trust_imports: bool = False) -> BaseClassifier:
    """The trained classifier of a run directory or a folder written by `save`.

    A network or class of one's own is found by the path that is recorded, in modules that are imported already;
    `network` is used instead, and `trust_imports` imports what the model names: to import is to execute. Raises
    UserError if there is no model, or its network or class cannot be found.
    """
    saved = read_model(Path(path))
    return TECHNIQUES[saved.about.technique].of_saved(saved, network=network, trust_imports=trust_imports)
