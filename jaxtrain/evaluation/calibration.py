"""Temperature scaling: one number, fitted on validation images, that makes a model as sure as it should be."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.evaluation.metrics import nll_from_logits

_HOTTEST = 100.0


def fit_temperature(labels: NDArray[np.integer[Any]], logits: NDArray[np.floating[Any]]) -> float | None:
    """The T that minimises the negative log-likelihood of `logits / T` (Guo et al. 2017, arXiv 1706.04599).

    `labels` is `int[images]`, `logits` `float[images, classes]`, of validation images: fitted on the test set it
    would flatter. The likelihood has one optimum (it is concave in 1 / T), which is looked for from 1/100 to 100. None
    where there are no images, or the model is right on every one: then it could never be too sure.
    """
    from scipy.optimize import minimize_scalar

    if not np.any(logits.argmax(axis=1) != labels):
        return None
    wide = logits.astype(np.float64)

    def loss(logarithm: float) -> float:
        return float(nll_from_logits(labels, wide / np.exp(logarithm)).mean())

    limit = np.log(_HOTTEST)
    found = minimize_scalar(loss, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
