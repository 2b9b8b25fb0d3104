"""What a model said about a test set, kept so that no comparison has to compute it again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.archives import open_npz
from jaxtrain.data.base import Labels
from jaxtrain.data.digest import digest_of_test_set
from jaxtrain.errors import UserError
from jaxtrain.files import replacing
from jaxtrain.readers import json_object

FORMAT = "jaxtrain predictions 1"
_ARRAYS = ("labels", "logits", "val_labels", "val_logits")


@dataclass(frozen=True)
class Predictions:
    """The logits of one model for every image of one test set.

    Raises ValueError where the arrays do not fit each other.
    """

    ids: tuple[str, ...]
    """`image_id` of each image, in the order of the test set."""
    labels: Labels
    """`int32[images]`, or several labels per image, `int8[images, classes]`"""
    logits: NDArray[np.float32]
    """`float32[images, classes]`"""
    class_names: tuple[str, ...]
    test_digest: str
    """`digest_of_test_set`: predictions may be compared where these are equal."""
    params_sha256: str
    """Digest of the model's trainable parameters, as in `summary.json`."""
    technique: str
    model: str
    dataset: str
    val_labels: Labels | None = None
    """`int32[validation images]`: on these, never on the test set, a model may be calibrated."""
    val_logits: NDArray[np.float32] | None = None
    """`float32[validation images, classes]`"""
    thresholds: tuple[float, ...] | None = None
    """Of several labels per image: the probability from which on each is given."""
    any_of: bool = False
    """Of several labels per image: one class is predicted, and right where it is among them (1)."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures has to know."""

    @property
    def multilabel(self) -> bool:
        """Whether several labels are predicted for each image."""
        return self.labels.ndim == 2 and not self.any_of

    @cached_property
    def answers(self) -> NDArray[np.int32]:
        """The class by which each image is judged, `int32[images]`: of several right ones the most probable."""
        return self.likeliest(self.logits)

    def likeliest(self, scores: NDArray[Any]) -> NDArray[np.int32]:
        """Of each image the right class with the highest score, `int32[images]`; scores are `[images, classes]`."""
        if self.labels.ndim == 1:
            return self.labels
        return np.where(self.labels == 1, scores, -np.inf).argmax(axis=1).astype(np.int32)

    def __post_init__(self) -> None:
        images, classes = len(self.ids), len(self.class_names)
        texts = (*self.class_names, self.test_digest, self.params_sha256, self.technique, self.model, self.dataset)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a name that is not text")
        if not np.isfinite(self.logits).all():
            raise ValueError("logits that are not finite")
        several = self.labels.ndim == 2
        kind, shape = ("int8", (images, classes)) if several else ("int32", (images,))
        if self.labels.shape != shape or self.labels.dtype != kind:
            raise ValueError(f"labels are {self.labels.dtype}{self.labels.shape}, not {kind}{shape}")
        if self.thresholds is not None and not (self.multilabel and len(self.thresholds) == classes):
            raise ValueError("thresholds are for several labels per image, one each")
        if self.any_of and not (several and (self.labels == 1).any(axis=1).all()):
            raise ValueError("any_of is for images of one right label or more each")
        least, greatest = (-1, 1) if several else (0, classes - 1)
        if self.logits.shape != (images, classes) or self.logits.dtype != np.float32:
            raise ValueError(f"logits are {self.logits.dtype}{self.logits.shape}, not float32{images, classes}")
        for labels in (self.labels, self.val_labels):
            if labels is not None and len(labels) and not least <= labels.min() <= labels.max() <= greatest:
                raise ValueError(f"labels {labels.min()}..{labels.max()} for {classes} classes")
        if (self.val_labels is None) != (self.val_logits is None):
            raise ValueError("validation labels and logits go together")
        if self.val_labels is not None and self.val_logits is not None:
            expected = (len(self.val_labels), classes)
            if self.val_labels.shape[1:] != self.labels.shape[1:]:
                raise ValueError(f"validation labels {self.val_labels.shape} for labels {self.labels.shape}")
            if self.val_logits.shape != expected or self.val_logits.dtype != np.float32:
                raise ValueError(
                    f"validation logits are {self.val_logits.dtype}{self.val_logits.shape}, not {expected}"
                )
        if self.test_digest != digest_of_test_set(self.ids, self.labels, self.class_names):
            raise ValueError("ids, labels and class names are not those of the test digest")

    def save(self, path: Path) -> None:
        """Write an `.npz` without pickled objects; a file of that name is replaced in one move."""
        about = {
            "format": FORMAT,
            "class_names": self.class_names,
            "test_digest": self.test_digest,
            "params_sha256": self.params_sha256,
            "technique": self.technique,
            "model": self.model,
            "dataset": self.dataset,
            **({} if self.thresholds is None else {"thresholds": self.thresholds}),
            **({"any_of": True} if self.any_of else {}),
            **({"notes": self.notes} if self.notes else {}),
        }
        arrays: dict[str, Any] = {"ids": np.array(self.ids, dtype="S64"), "labels": self.labels, "logits": self.logits}
        if self.val_labels is not None and self.val_logits is not None:
            arrays |= {"val_labels": self.val_labels, "val_logits": self.val_logits}
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read what `save` wrote; nothing is unpickled. Raises UserError for an unsound file."""
        try:
            with open_npz(path, "file of predictions", "predict again") as arrays:
                about = json_object(str(arrays["about"][()]))
                if about.pop("format") != FORMAT:
                    raise ValueError("another format")
                about["class_names"] = tuple(about["class_names"])
                about["notes"] = tuple(map(str, about.get("notes", ())))
                if about.get("thresholds") is not None:
                    about["thresholds"] = tuple(map(float, about["thresholds"]))
                ids = tuple(str(name, "ascii") for name in arrays["ids"].tolist())
                rest: dict[str, Any] = {name: arrays[name] for name in _ARRAYS if name in arrays}
                return cls(ids=ids, **rest, **about)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file of predictions") from None
