"""How vectors are scaled before a head sees them, and what of that a head keeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from jaxtrain.heads.base import Floats, blocks


class Scaling(NamedTuple):
    """(x, its rows brought to one length or not, - mean) * scale."""

    rows: Any
    """bool[]: bring each vector to length sqrt(features), so that a feature is of size 1; zero stays zero."""
    mean: Any
    """float32[features]"""
    scale: Any
    """float32[features]"""

    def __call__(self, x: Any) -> Array:
        """Pure: float32[images, features] scaled."""
        norm = jnp.linalg.norm(x, axis=1, keepdims=True)
        factor = jnp.sqrt(jnp.float32(x.shape[1])) / jnp.maximum(norm, 1e-30)
        return (x * jnp.where(self.rows, factor, 1.0) - self.mean) * self.scale


def stacked(scalings: Iterable[Scaling]) -> Scaling:
    """Several as one, whose arrays have them as their first axis."""
    return Scaling(*(np.stack(parts) for parts in zip(*scalings, strict=True)))


def fit_scaling(name: str, x: Floats, *, center: bool = False) -> Scaling:
    """The scaling of this name for these vectors.

    Args:
        name: none; center: mean 0; standard: mean 0 and variance 1 (a constant feature becomes 0, as in scikit-learn's
            StandardScaler); l2: all vectors of one length.
        x: float32[images, features].
        center: take the mean away in any case.
    """
    features = x.shape[1]
    rows = name == "l2"
    mean, scale = np.zeros(features), np.ones(features)
    if center or name in ("center", "standard"):
        mean = sum((_rows(x[part], rows).sum(0) for part in blocks(len(x))), np.zeros(features)) / len(x)
    if name == "standard":
        square = sum((((x[part] - mean) ** 2).sum(0) for part in blocks(len(x))), np.zeros(features)) / len(x)
        deviation = np.sqrt(square)
        constant = deviation <= 1e-6 * np.abs(mean) + 1e-30
        scale = 1.0 / np.where(constant, 1.0, deviation)
    return Scaling(np.bool_(rows), mean.astype(np.float32), scale.astype(np.float32))


def _rows(x: Floats, rows: bool) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    if not rows:
        return wide
    return wide * np.sqrt(x.shape[1]) / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)
