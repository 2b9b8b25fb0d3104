"""Several labels per image: one head of any kind for each label, each with the setting that is best for its label.

The head of a label sees two classes, without and with it, and the vectors of which that is known; its logit here is the
difference of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jax import Array
from jax import numpy as jnp
from numpy.typing import NDArray

from jaxtrain.config import HeadConfig, LossConfig
from jaxtrain.errors import UserError
from jaxtrain.heads import linear
from jaxtrain.heads.base import PLAIN, Arrays, FittedHead, Floats, JaxHead, Task, Vectors, digest_of

Fit = Callable[[Task], FittedHead]
Load = Callable[[str, int, int, Any, Any, Arrays], FittedHead]


@dataclass(frozen=True, eq=False)
class _Several(FittedHead):
    heads: tuple[FittedHead | float, ...]
    """Of each label; the log-odds alone where all training vectors have it, or none has."""

    @property
    def name(self) -> str:
        """The name under which this head is asked for in the config, after `several:`."""
        return f"several:{self.settings['head']}"

    @property
    def chosen(self) -> int:
        """The place in the curve of the setting of the first label that has a head."""
        return self.places[0] if self.places else 0

    @property
    def places(self) -> list[int]:
        """The place in the curve of the setting of each label that has a head."""
        start, found = 0, []
        for head in self.heads:
            if isinstance(head, FittedHead):
                found.append(start + head.chosen)
                start += len(head.curve)
        return found


class SeveralHeads(_Several):
    """Of classifiers that are not JAX functions."""

    kind = "several"

    def logits(self, x: Floats) -> Floats:
        """float32[images, features] to float32[images, labels]."""
        columns = [
            np.full(len(x), head, np.float32) if isinstance(head, float) else np.subtract(*head.logits(x).T[::-1])
            for head in self.heads
        ]
        return np.stack(columns, axis=1).astype(np.float32)


class SeveralJaxHeads(_Several, JaxHead):
    """Of heads that are JAX functions: one function of all."""

    kind = "several"

    @property
    def block(self) -> int:
        """Vectors that `logits` computes at once: as many as every head can."""
        return min((head.block for head in self.heads if isinstance(head, JaxHead)), default=super().block)

    def apply(self, arrays: Mapping[str, Array], x: Array) -> Array:
        """Pure: float32[images, features] to float32[images, labels]."""
        columns = []
        for place, head in enumerate(self.heads):
            if not isinstance(head, float):
                assert isinstance(head, JaxHead)
                both = head.apply({name: arrays[key] for name, key in self.settings["arrays"][place].items()}, x)
                columns.append(both[:, 1] - both[:, 0])
            else:
                columns.append(jnp.full(len(x), head))
        return jnp.stack(columns, axis=1)


def fit(config: HeadConfig, task: Task, fit_one: Fit) -> FittedHead:
    """Fits the head of each label by `fit_one`. Raises as that does, and UserError for labels that cannot be fitted."""
    task = replace(task, loss=_loss(task.loss))
    heads: list[Any] = [_log_odds(task, label) for label in range(task.num_classes)]
    labels = [label for label, head in enumerate(heads) if head is None]
    if not labels:
        raise UserError("no label is on some training vectors and not on others; a head needs one that is")
    if config.name == "linear" and linear.fits_labels(config, task):
        fitted: Iterable[FittedHead] = linear.fit_labels(config, task, labels)
    else:
        fitted = (fit_one(_of_label(task, label)) for label in labels)
    for label, head in zip(labels, fitted, strict=True):
        heads[label] = head
    curve, arrays, known = list[dict[str, Any]](), Arrays(), dict[str, str]()
    settings: dict[str, Any] = {"head": config.name, "labels": [], "arrays": []}
    for label, head in enumerate(heads):
        if not isinstance(head, FittedHead):
            settings["labels"].append({"log_odds": head})
            settings["arrays"].append({})
            continue
        settings["labels"].append({**head.settings, "curve": len(head.curve)})
        curve += [{"label": label, **entry} for entry in head.curve]
        keys = {}
        for name, array in head.arrays.items():  # those that labels share, such as neighbours, are kept once
            keys[name] = known.setdefault(digest_of({name: array}), f"{label}/{name}")
            arrays[keys[name]] = array
        settings["arrays"].append(keys)
    return _made(heads, task.num_classes, task.train.x.shape[1], settings, curve, arrays)


def load(name: str, classes: int, features: int, settings: Any, curve: Any, arrays: Arrays, load_one: Load) -> Any:
    """The saved head; `load_one` loads that of a label."""
    if name != f"several:{settings['head']}" or not len(settings["labels"]) == len(settings["arrays"]) == classes:
        raise ValueError(f"its settings are not of {classes} labels of {name}")
    heads, start = list[FittedHead | float](), 0
    for own, keys in zip(settings["labels"], settings["arrays"], strict=True):
        if "log_odds" in own:
            heads.append(float(own["log_odds"]))
            continue
        own, length = {key: value for key, value in own.items() if key != "curve"}, int(own["curve"])
        mine = [{key: value for key, value in entry.items() if key != "label"} for entry in curve[start:][:length]]
        here = {key: arrays[place] for key, place in keys.items()}
        heads.append(load_one(settings["head"], 2, features, own, mine, here))
        start += length
    return _made(heads, classes, features, settings, curve, arrays)


def linear_layer(head: FittedHead) -> tuple[Floats, Floats]:
    """Kernel `float32[features, labels]` and bias `float32[labels]` of linear heads that do not scale by length."""
    kernel = np.zeros((head.num_features, head.num_classes), np.float32)
    bias = np.zeros(head.num_classes, np.float32)
    assert isinstance(head, _Several)
    for label, one in enumerate(head.heads):
        if isinstance(one, float):
            bias[label] = one
            continue
        kernel[:, label] = one.arrays["kernel"][:, 1] - one.arrays["kernel"][:, 0]
        shift = one.arrays["mean"].astype(np.float64) @ kernel[:, label]
        bias[label] = one.arrays["bias"][1] - one.arrays["bias"][0] - shift
    return kernel, bias


def _made(heads: list[Any], classes: int, features: int, settings: Any, curve: Any, arrays: Arrays) -> FittedHead:
    together = all(isinstance(head, JaxHead | float) for head in heads)
    kind = SeveralJaxHeads if together else SeveralHeads
    return kind(classes, features, settings, curve, arrays, tuple(heads))


def _log_odds(task: Task, label: int) -> float | None:
    """Of a label that all training vectors have, or none; None for one that a head can learn."""
    y = task.train.y[:, label]
    absent, present = np.count_nonzero(y == 0), np.count_nonzero(y == 1)
    if not absent + present:
        raise UserError(f"label {label} is unknown of every training vector")
    if not (absent and present):
        return float(np.log((present + 0.5) / (absent + 0.5)))
    if task.val is not None and not (task.val.y[:, label] >= 0).any():
        raise UserError(f"label {label} is unknown of every validation vector: there is nothing to choose its head by")
    return None


def _of_label(task: Task, label: int) -> Task:
    """Of two classes: without and with the label."""
    val = None if task.val is None else _known(task.val, label)
    weights = np.array([1.0, task.class_weights[label]], np.float32)
    return replace(task, train=_known(task.train, label), val=val, num_classes=2, class_weights=weights)


def _known(vectors: Vectors, label: int) -> Vectors:
    """Those of which the label is known, 0 or 1 each."""
    y: NDArray[np.int32] = vectors.y[:, label].astype(np.int32)
    one, places = Vectors(vectors.x, y, vectors.w), np.flatnonzero(y >= 0)
    return one if len(places) == len(y) else one.select(places)


def _loss(loss: LossConfig) -> LossConfig:
    """Of two classes: there the softmax's cross-entropy is the binary one."""
    if loss.name == "bce" and loss.target_threshold is None:
        return PLAIN.resolved()
    if loss.name not in ("cross_entropy", "focal"):
        raise UserError(f"loss.name {loss.name}: heads of several labels have cross_entropy, bce and focal")
    return loss
