"""LP-FT (Kumar et al. 2022, arXiv 2202.10054): the head as feature extraction fits it, before anything else moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jaxtrain.classifiers.feature_extraction import FEClassifier
from jaxtrain.config import Config, HeadConfig, acting
from jaxtrain.heads import fit_head
from jaxtrain.heads.several import linear_layer
from jaxtrain.models.weights import Pretrained
from jaxtrain.runs.few_shot import few_shot_indices
from jaxtrain.runs.head_learning import HeadLearning, vector_weights
from jaxtrain.runs.learning import Job
from jaxtrain.runs.resolve import resolve_features
from jaxtrain.training.state import Tree

_SHARED = {"seed", "quiet", "data", "model", "parallel"}


def probed_head(job: Job, pretrained: Pretrained) -> Tree:
    """{"kernel": `float32[features, classes]`, "bias": `float32[classes]`} of a linear head fitted to convergence.

    Embeddings come from the store that technique fe uses, or go there. The setting is chosen on validation images;
    without any, it is scikit-learn's default (C = 1) on standardised features.
    """
    shared = acting("fe", job.config.model_dump(include=_SHARED))
    config = resolve_features(Config.model_validate({**shared, "technique": "fe"}))
    technique = FEClassifier(config).bind(config, pretrained=pretrained)
    dataset = job.dataset
    if config.data.shots is not None:
        places = few_shot_indices(config, dataset.train.labels, dataset.class_names)
        dataset = replace(dataset, train=dataset.train.select(places))
    learning = HeadLearning(replace(job, technique=technique, dataset=dataset))
    train = learning.embedded(dataset.train, "train").vectors
    val = None if dataset.val is None else learning.embedded(dataset.val, "val").vectors
    options = HeadConfig(scaling=("none", "standard"))  # the third would not fold into a kernel and a bias
    if val is None:
        options = HeadConfig(scaling=("standard",), weight_decay=(1 / len(train.y),))
    head = fit_head(
        options,
        train,
        val,
        num_classes=dataset.num_classes,
        seed=job.config.seed,
        class_weights=vector_weights(job.config, train, dataset.class_names),
        loss=job.config.loss,
        check=learning.check,
    )
    if dataset.multilabel:
        return dict(zip(("kernel", "bias"), linear_layer(head), strict=True))
    kernel, mean = head.arrays["kernel"], head.arrays["mean"]
    shift = (mean.astype(np.float64) @ kernel).astype(np.float32)
    return {"kernel": kernel, "bias": head.arrays["bias"] - shift}
