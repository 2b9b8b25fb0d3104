"""What a task is: one class per image, or several labels. The one place that tells them apart.

Techniques, heads, evaluation and prediction ask the task of a run for targets, loss, figures and decisions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxtrain.config import AugmentConfig, Config, DataConfig, LossConfig
from jaxtrain.data.augment import mix, mix_weighted
from jaxtrain.errors import UserError
from jaxtrain.label_metrics import label_metrics, sigmoid
from jaxtrain.losses import Loss, image_metrics, label_loss, named_loss, soft_labels

Array = jax.Array
Each = Mapping[str, NDArray[Any]]


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Probabilities `float64[images, classes]` of `logits[images, classes]`."""
    result = logits.astype(np.float64)
    result -= result.max(axis=1, keepdims=True)
    np.exp(result, out=result)
    result /= result.sum(axis=1, keepdims=True)
    return result


class Task(Protocol):
    """What depends on whether an image has one class or several labels. All methods are pure."""

    name: str
    """Of `data.task`."""
    figure: str
    """The metric by which models are chosen and ranked; as `val/...` it is the default of `train.monitor`."""
    measured: tuple[str, ...]
    """The validation metrics that there are, as `val/...`."""

    def targets(self, labels: Array, classes: int, smoothing: float | Array) -> Array:
        """Labels as jaxtrain has them to `float32[batch, classes]`."""

    def mixed(
        self, augment: AugmentConfig, keys: Array, images: Array, targets: Array, weight: Array | None
    ) -> tuple[Array, Array, Array | None]:
        """Mixup and CutMix of images, targets and, where there are any, weights `float32[batch]`."""

    def loss(self, config: LossConfig, pos_weight: Sequence[float] | None) -> Loss:
        """The loss that the options name, of each image; `pos_weight` is of each label."""

    def train_metrics(self, logits: Array, targets: Array) -> dict[str, Array]:
        """Scalars to log besides the loss, as `train/...`."""

    def image_metrics(self, logits: Array, labels: Array) -> dict[str, Array]:
        """What `validation` needs of each image: arrays `[batch, ...]`."""

    def validation(self, each: Each, labels: NDArray[Any]) -> dict[str, float]:
        """Validation metrics of the images that could be read, from what `image_metrics` gave."""

    def probabilities(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """`float64[images, classes]`."""

    def averaged(self, logits: Array) -> Array:
        """Logits of the mean probabilities: `float32[images, views, classes]` to `float32[images, classes]`."""


class Multiclass:
    """Each image has one class: softmax."""

    name = "multiclass"
    figure = "accuracy"
    measured: tuple[str, ...] = ("val/accuracy", "val/loss", "val/top5_accuracy")

    def targets(self, labels: Array, classes: int, smoothing: float | Array) -> Array:
        """From places among the classes, `int32[batch]`."""
        return soft_labels(labels, classes, smoothing)

    def mixed(
        self, augment: AugmentConfig, keys: Array, images: Array, targets: Array, weight: Array | None
    ) -> tuple[Array, Array, Array | None]:
        """Targets stay distributions."""
        if weight is None:
            return (*mix(augment, keys, images, targets), None)
        return mix_weighted(augment, keys, images, targets, weight)

    def loss(self, config: LossConfig, pos_weight: Sequence[float] | None) -> Loss:
        """Any."""
        del pos_weight
        return named_loss(config)

    def train_metrics(self, logits: Array, targets: Array) -> dict[str, Array]:
        """Accuracy."""
        hits = jnp.argmax(logits, axis=-1) == jnp.argmax(targets, axis=-1)
        return {"accuracy": jnp.mean(hits.astype(jnp.float32))}

    def image_metrics(self, logits: Array, labels: Array) -> dict[str, Array]:
        """Loss and hits."""
        return image_metrics(logits, labels)

    def validation(self, each: Each, labels: NDArray[Any]) -> dict[str, float]:
        """Their means, in float64 so that they are the same for any batch size and number of devices."""
        means = {name: np.mean(rows, dtype=np.float64) for name, rows in each.items() if name != "logits"}
        return {f"val/{name}": float(mean) for name, mean in means.items()}

    def probabilities(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Softmax."""
        return softmax(logits)

    def averaged(self, logits: Array) -> Array:
        """Logarithms of the mean probabilities."""
        return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=1) - jnp.log(logits.shape[1])


class Multilabel:
    """Each image has any number of labels: sigmoids. What is unknown (-1) counts in no loss and no metric."""

    name = "multilabel"
    figure = "mAP"
    measured: tuple[str, ...] = ("val/mAP", "val/loss", "val/macro_f1", "val/subset_accuracy")

    def targets(self, labels: Array, classes: int, smoothing: float | Array) -> Array:
        """From `int8[batch, classes]`; smoothing moves each target towards one half."""
        targets = labels.astype(jnp.float32)
        return jnp.where(labels < 0, -1.0, targets * (1.0 - smoothing) + smoothing / 2)

    def mixed(
        self, augment: AugmentConfig, keys: Array, images: Array, targets: Array, weight: Array | None
    ) -> tuple[Array, Array, Array | None]:
        """Targets are mixed like the images: by their shares. What is unknown of either image is unknown."""
        known = (targets >= 0).astype(jnp.float32)
        each = jnp.ones(len(targets)) if weight is None else weight
        columns = jnp.concatenate([targets * known * each[:, None], known, each[:, None]], axis=1)
        image, columns = mix(augment, keys, images, columns)
        share, known = jnp.split(columns[:, :-1], 2, axis=1)
        total = columns[:, -1]
        mean = share / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[:, None]
        return image, jnp.where(known > 1 - 1e-5, mean, -1.0), None if weight is None else total

    def loss(self, config: LossConfig, pos_weight: Sequence[float] | None) -> Loss:
        """Of each label by itself, summed."""
        return label_loss(config, pos_weight)

    def train_metrics(self, logits: Array, targets: Array) -> dict[str, Array]:
        """Share of the known entries on the right side of one half."""
        known = targets >= 0
        right = known & ((logits > 0) == (targets > 0.5))
        return {"label_accuracy": jnp.sum(right) / jnp.maximum(jnp.sum(known), 1)}

    def image_metrics(self, logits: Array, labels: Array) -> dict[str, Array]:
        """The logits: these figures are of all images together."""
        return {"logits": logits.astype(jnp.float32)}

    def validation(self, each: Each, labels: NDArray[Any]) -> dict[str, float]:
        """`measured`; NaN where a logit is not finite."""
        if not np.isfinite(each["logits"]).all():
            return dict.fromkeys(self.measured, float("nan"))
        found = label_metrics(labels, each["logits"])
        return {name: found[name.removeprefix("val/")] for name in self.measured}

    def probabilities(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Sigmoid."""
        return sigmoid(logits)

    def averaged(self, logits: Array) -> Array:
        """Log-odds of the mean probabilities."""
        present, absent = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        return jax.nn.logsumexp(present, axis=1) - jax.nn.logsumexp(absent, axis=1)


TASKS: dict[str, Task] = {"multiclass": Multiclass(), "multilabel": Multilabel()}


def task_of(config: Config | DataConfig) -> Task:
    """The task of a resolved config; those of earlier versions, which know one only, leave it open."""
    data = config.data if isinstance(config, Config) else config
    return TASKS["multilabel" if data.task == "multilabel" else "multiclass"]


_ONE_LABEL = {
    "data.sampling": "sampling by class is",
    "train.class_weights": "weights of classes (of labels: train.pos_weight) are",
    "loss.logit_adjustment": "logit adjustment is",
    "head.init": "a start from the names of classes is",
}
_LOSSES = ("cross_entropy", "bce", "focal", "asymmetric")


def check_options(config: Config, task: str) -> None:
    """Raises UserError for an option that several labels per image have no use for yet, before anything is computed."""
    default = Config(technique=config.technique)
    if task != "multilabel":
        if config.decision != default.decision:
            raise UserError("decision: thresholds are for several labels per image, and these images have one class")
        if config.train.pos_weight != default.train.pos_weight:
            raise UserError("train.pos_weight: for several labels per image; for one class, use train.class_weights")
        return
    for path, what in _ONE_LABEL.items():
        if config.get(path) != default.get(path):
            raise UserError(f"{path}: {what} for one class per image, and these images have several labels")
    if config.loss.name not in _LOSSES:
        raise UserError(
            f"loss.name: {config.loss.name} is for one class per image; of several labels {', '.join(_LOSSES)}"
        )
