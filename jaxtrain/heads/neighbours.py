"""Heads without training: class means (cosine, ncm) and nearest neighbours (knn); settings chosen on validation.

cosine: similarity to the mean direction of each class (Gidaris & Komodakis 2018, without learning). ncm: distance to
the mean of each class (Mensink et al. 2013, identity metric). knn: votes of the nearest training vectors by cosine
similarity, weighted by exp(similarity / temperature), as DINO evaluates (Caron et al. 2021).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxtrain.config import HeadConfig, chosen
from jaxtrain.heads.base import UNSEEN, Arrays, Floats, JaxHead, Task, blocks, choose, needs_validation
from jaxtrain.heads.measure import even, measure
from jaxtrain.heads.scaling import Scaling, fit_scaling

_SIMILARITIES = 1 << 26  # that knn computes at once


class _ScaledHead(JaxHead):
    """In two parts, so that the scores are computed once for all temperatures."""

    def scores(self, arrays: Mapping[str, Array], x: Array) -> Any:
        """Pure: what does not depend on the temperature, from scaled vectors."""
        raise NotImplementedError

    def finish(self, arrays: Mapping[str, Array], scores: Any, setting: Mapping[str, Any]) -> Array:
        """Pure: logits float32[images, classes]; the setting's numbers may be traced."""
        raise NotImplementedError

    def scaled_scores(self, arrays: Mapping[str, Array], x: Array) -> Any:
        """Pure: `scores` of vectors as they come."""
        with jax.default_matmul_precision("highest"):
            rows = np.bool_(self.settings["scaling"] == "l2")
            return self.scores(arrays, Scaling(rows, arrays["mean"], arrays["scale"])(x))

    def apply(self, arrays: Mapping[str, Array], x: Array) -> Array:
        """Pure: float32[images, features] to float32[images, classes]."""
        return self.finish(arrays, self.scaled_scores(arrays, x), self.settings)


class CosineHead(_ScaledHead):
    """Logits are cosines to the classes' mean directions, divided by the temperature."""

    kind = "cosine"

    def scores(self, arrays: Mapping[str, Array], x: Array) -> Array:
        """Cosines: float32[images, classes]."""
        return _unit(x) @ arrays["means"].T

    def finish(self, arrays: Mapping[str, Array], scores: Array, setting: Mapping[str, Any]) -> Array:
        """Divided by the temperature."""
        return jnp.where(arrays["present"], scores / setting["temperature"], UNSEEN)


class NCMHead(_ScaledHead):
    """Logits are -|x - class mean|^2 / (2 temperature variance), the variance being that about the class means."""

    kind = "ncm"

    def scores(self, arrays: Mapping[str, Array], x: Array) -> Array:
        """Half the squared distance that the nearest class is nearer than each class, negative."""
        means = arrays["means"]
        near = x @ means.T - 0.5 * jnp.sum(means * means, axis=1)  # without |x|^2, which all classes share
        near = jnp.where(arrays["present"], near, -jnp.inf)
        return near - jnp.max(near, axis=1, keepdims=True)

    def finish(self, arrays: Mapping[str, Array], scores: Array, setting: Mapping[str, Any]) -> Array:
        """Divided by variance and temperature; 0 for the nearest class."""
        return jnp.maximum(scores / (arrays["variance"] * setting["temperature"]), UNSEEN)


class KNNHead(_ScaledHead):
    """Logits are log-probabilities: the share of each class in the votes, one of k + 1 of them spread over all."""

    kind = "knn"

    @property
    def block(self) -> int:
        """Vectors that `logits` computes at once."""
        return max(16, _SIMILARITIES // len(self.arrays["labels"]))

    def scores(self, arrays: Mapping[str, Array], x: Array) -> tuple[Array, Array]:
        """Similarity and label of the nearest: [images, k] each."""
        k = min(self.settings["k"], arrays["labels"].shape[0])
        similarity, places = jax.lax.top_k(_unit(x) @ arrays["neighbours"].T, k)
        return similarity, arrays["labels"][places]

    def finish(self, arrays: Mapping[str, Array], scores: tuple[Array, Array], setting: Mapping[str, Any]) -> Array:
        """Weighted votes of the first k."""
        similarity, labels = scores
        k = jnp.minimum(setting["k"], similarity.shape[1])
        counted = jnp.arange(similarity.shape[1]) < k
        weights = jax.nn.softmax(jnp.where(counted, similarity / setting["temperature"], -jnp.inf), axis=1)
        votes = jnp.sum(weights[:, :, None] * jax.nn.one_hot(labels, self.num_classes), axis=1)
        return jnp.log((k * votes + 1.0 / self.num_classes) / (k + 1))


_HEADS: dict[str, type[_ScaledHead]] = {head.kind: head for head in (CosineHead, NCMHead, KNNHead)}


def load(name: str, classes: int, features: int, settings: Any, curve: Any, arrays: Arrays) -> JaxHead:
    """The saved head."""
    return _HEADS[name](classes, features, settings, curve, arrays)


def fit(config: HeadConfig, task: Task) -> JaxHead:
    """Keeps means or neighbours for each scaling, and the setting that is best on validation."""
    axes = [name for name in ("k", "temperature") if getattr(config, name) is not None]
    grid = list(itertools.product(*(chosen(getattr(config, axis)) for axis in axes)))
    scalings = chosen(config.scaling)
    needs_validation(len(grid) * len(scalings), task)
    kind, size = _HEADS[config.name], (task.num_classes, task.train.x.shape[1])
    curve: list[dict[str, Any]] = []
    for scaling in scalings:
        task.check()
        widest = {"scaling": scaling, **{axis: max(chosen(getattr(config, axis))) for axis in axes}}
        head = kind(*size, widest, [], _learn(config.name, scaling, task))
        settings = [dict(zip(axes, values, strict=True)) for values in grid]
        curve += [{"scaling": scaling, **setting} | entry for setting, entry in _figures(head, task, settings)]
    best = curve[choose(curve, config.choose_by) if task.val is not None else 0]
    setting = {name: best[name] for name in ("scaling", *axes)}
    arrays = _learn(config.name, setting["scaling"], task.joined() if config.refit else task)
    return kind(*size, setting, curve, arrays)


def _figures(head: _ScaledHead, task: Task, settings: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Each setting's figures; no loss on training vectors for knn, each of which is its own nearest neighbour."""
    scores, finish, arrays = jax.jit(head.scaled_scores), jax.jit(head.finish), jax.device_put(head.arrays)

    def all_scores(x: Floats) -> list[Any]:
        return [scores(arrays, x[start : start + head.block]) for start in range(0, len(x), head.block)]

    train = None if isinstance(head, KNNHead) else all_scores(task.train.x)
    val = None if task.val is None else all_scores(task.val.x)
    for setting in settings:
        figures: dict[str, float] = {}
        if train is not None:
            logits = np.concatenate([finish(arrays, block, setting) for block in train])
            figures["train_loss"] = float(measure(logits, task.train.y, task.sample_weights())[0])
        if val is not None and task.val is not None:
            logits = np.concatenate([finish(arrays, block, setting) for block in val])
            loss, accuracy = measure(logits, task.val.y, even(task.val))
            figures |= {"val_loss": float(loss), "val_accuracy": float(accuracy)}
        yield setting, figures


def _learn(name: str, scaling: str, task: Task) -> Arrays:
    x, y, _ = task.train
    scale = fit_scaling(scaling, x)
    kept: Arrays = {"mean": np.asarray(scale.mean), "scale": np.asarray(scale.scale)}
    scaled = np.empty_like(x)
    for part in blocks(len(x)):
        scaled[part] = scale(x[part]) if name == "ncm" else _unit(scale(x[part]))
    if name == "knn":
        return {**kept, "neighbours": scaled, "labels": y.astype(np.int32)}
    means = np.zeros((task.num_classes, x.shape[1]))
    np.add.at(means, y, scaled)
    counts = np.bincount(y, minlength=task.num_classes)
    means /= np.maximum(counts, 1)[:, None]
    kept["present"] = counts > 0
    if name == "cosine":
        return {**kept, "means": np.asarray(_unit(means.astype(np.float32)))}
    spread = sum(float(((scaled[part] - means[y[part]]) ** 2).sum()) for part in blocks(len(x)))
    variance = np.float32(max(spread / x.size, 1e-30))
    return {**kept, "means": means.astype(np.float32), "variance": np.asarray(variance)}


def _unit(x: Any) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-30)
