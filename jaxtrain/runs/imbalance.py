"""What makes up for rare classes in the loss: their weights, and their shares of the training images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from jaxtrain.config import Config, TrainConfig
from jaxtrain.config_io import explain, read_yaml
from jaxtrain.data.base import Dataset, Labels
from jaxtrain.data.order import sampler
from jaxtrain.errors import UserError, nearest
from jaxtrain.losses import log_shares


def resolve_weights(train: TrainConfig, class_names: Sequence[str]) -> TrainConfig:
    """With mappings in the place of files that hold them. Raises UserError for what is not a weight of a class."""
    for option in ("class_weights", "pos_weight"):
        train = _resolved(train, option, class_names)
    return train


def _resolved(train: TrainConfig, option: str, class_names: Sequence[str]) -> TrainConfig:
    given, source = getattr(train, option), f"train.{option}"
    if isinstance(given, Path):
        source = f"{source}: {given}"
        if not given.exists():
            raise UserError(f"{source}: no such file; {nearest(str(given), ('none', 'balanced'))}")
        try:
            # checked as in a config
            given = getattr(TrainConfig.model_validate({option: read_yaml(given, "'cat: 2'")}), option)
        except ValidationError as error:
            raise UserError(explain(error, source)) from None
        train = train.model_copy(update={option: given})
    if isinstance(given, dict):
        unknown = [name for name in given if name not in class_names]
        if unknown:
            raise UserError(f"{source}: no class is called {unknown[0]!r}; {nearest(unknown[0], class_names)}")
    return train


def class_weights(train: TrainConfig, counts: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.float64] | None:
    """`train.class_weights`, resolved, so that their mean over the training images is 1; None: all count the same.

    counts: training images of each class, `int64[classes]`. A class without any gets the weight 0 from `balanced`.
    """
    given = train.class_weights
    if given == "none":
        return None
    if isinstance(given, dict):
        each = np.array([given.get(name, 1.0) for name in names])
        return each * counts.sum() / (each * counts).sum()
    return np.where(counts > 0, counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0.0)


def pos_weight(train: TrainConfig, labels: Labels, names: Sequence[str]) -> tuple[float, ...] | None:
    """`train.pos_weight`, resolved, of each label of `int8[images, labels]`; None: all count the same.

    balanced: how many times more images are known not to have the label than to have it; 1 where there are none of one.
    """
    given = train.pos_weight
    if given == "none":
        return None
    if isinstance(given, dict):
        return tuple(given.get(name, 1.0) for name in names)
    absent, present = np.count_nonzero(labels == 0, axis=0), np.count_nonzero(labels == 1, axis=0)
    balanced = np.where((absent > 0) & (present > 0), absent / np.maximum(present, 1), 1.0)
    return tuple(balanced.tolist())


def adjusted_shares(config: Config, dataset: Dataset) -> tuple[float, ...] | None:
    """Logarithms of the classes' shares of the images as they are drawn; None without `loss.logit_adjustment`."""
    if not config.loss.logit_adjustment:
        return None
    drawn, counts = sampler(config.data, dataset.train.labels, dataset.num_classes), dataset.class_counts
    shares: Any = log_shares(counts if drawn is None else drawn.shares * len(dataset.train))
    return tuple(shares.tolist())
