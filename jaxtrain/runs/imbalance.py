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
from jaxtrain.data.base import Dataset
from jaxtrain.data.order import sampler
from jaxtrain.errors import UserError, nearest
from jaxtrain.losses import log_shares


def resolve_class_weights(train: TrainConfig, class_names: Sequence[str]) -> TrainConfig:
    """With the mapping in the place of a file that holds one. Raises UserError for what is not a weight of a class."""
    given, source = train.class_weights, "train.class_weights"
    if isinstance(given, Path):
        source = f"{source}: {given}"
        if not given.exists():
            raise UserError(f"{source}: no such file; {nearest(str(given), ('none', 'balanced'))}")
        try:
            given = TrainConfig(class_weights=read_yaml(given, "'cat: 2'")).class_weights  # checked as in a config
        except ValidationError as error:
            raise UserError(explain(error, source)) from None
        train = train.model_copy(update={"class_weights": given})
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


def adjusted_shares(config: Config, dataset: Dataset) -> tuple[float, ...] | None:
    """Logarithms of the classes' shares of the images as they are drawn; None without `loss.logit_adjustment`."""
    if not config.loss.logit_adjustment:
        return None
    drawn, counts = sampler(config.data, dataset.train.labels, dataset.num_classes), dataset.class_counts
    shares: Any = log_shares(counts if drawn is None else drawn.shares * len(dataset.train))
    return tuple(shares.tolist())
