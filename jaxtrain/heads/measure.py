"""Loss and accuracy of logits on labelled vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.heads.base import UNSEEN, Floats, Task, Vectors, blocks

DIVERGED = 1e30
"""The loss of a member that is not a number any more."""


def measure(logits: Any, y: NDArray[np.int32], weights: Floats) -> tuple[Any, Any]:
    """Weighted cross-entropy and accuracy, float64[...].

    Args:
        logits: float[images, classes, ...].
        y: int32[images]; -1 for a class without a column.
        weights: float[images]; they should sum to 1.
    """
    wide = np.asarray(logits, np.float64)
    top = wide.max(axis=1, keepdims=True)
    total = np.log(np.exp(wide - top).sum(axis=1)) + top[:, 0]
    truth = wide[np.arange(len(y)), y]
    truth[y < 0] = UNSEEN
    hit = (y == wide.argmax(axis=1).T).T
    share = weights.astype(np.float64)
    return np.tensordot(share, total - truth, 1), np.tensordot(share, hit, 1)


def measure_in_blocks(
    logits: Callable[[Floats], Any], task: Task, vectors: Vectors, weights: Floats
) -> tuple[Any, Any]:
    """`measure` of a function of vectors, block by block; the loss of what is not a number is DIVERGED."""
    parts = [
        measure(logits(vectors.x[part]), task.places(vectors.y[part]), weights[part]) for part in blocks(len(vectors.x))
    ]
    loss, accuracy = (sum(figures) for figures in zip(*parts, strict=True))
    return np.minimum(np.nan_to_num(loss, nan=DIVERGED), DIVERGED), accuracy


def even(vectors: Vectors) -> Floats:
    """The same weight for each vector."""
    return np.full(len(vectors.x), 1 / max(len(vectors.x), 1), np.float32)
