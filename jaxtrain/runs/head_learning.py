"""Learning of FE: embed every image once, fit heads on the vectors, keep the one that validation chooses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxtrain.config import Config
from jaxtrain.data.base import Dataset, ImageSource, class_counts
from jaxtrain.data.labels import classes_of, label_values, placed
from jaxtrain.data.splits import stratified_split
from jaxtrain.errors import UserError
from jaxtrain.evaluation.plots import save
from jaxtrain.files import write_csv
from jaxtrain.heads import FittedHead, Vectors, class_kernel, fit_head
from jaxtrain.heads.several import SeveralHeads, SeveralJaxHeads
from jaxtrain.runs import pictures
from jaxtrain.runs.backbone import Backbone, Embedded
from jaxtrain.runs.few_shot import FewShot, summarize
from jaxtrain.runs.fitted import Fitted, HeadPredictor, Predictor
from jaxtrain.runs.imbalance import class_weights, pos_weight, resolve_weights
from jaxtrain.runs.learning import Job, Learned, Learns
from jaxtrain.runs.report import head_plan
from jaxtrain.screen.console import Plan
from jaxtrain.tasks import check_options
from jaxtrain.tracking import Tracker
from jaxtrain.training.inference import host_batches
from jaxtrain.training.parallel import check_devices
from jaxtrain.training.technique import Binding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)


class HeadLearning:
    """A run of FE. What a kill interrupts is the store's to keep; heads are fitted again, to the same bits."""

    history: list[dict[str, Any]]

    def __init__(self, job: Job, start: NDArray[np.float32] | None = None) -> None:
        """Builds the backbone from its weights; `start`: as of `fit_head`."""
        self._job, self._start = job, start
        self.dataset: Dataset = job.dataset
        self.history = []
        self._backbone = Backbone(job.technique, job.dataset.num_classes, job.dataset.bad_images)
        self._technique, self.inference = self._backbone.technique, self._backbone.inference
        self._train: Embedded | None = None
        self._few_shot: FewShot | None = None

    @property
    def position(self) -> str:
        """Where a resumed run goes on."""
        return "the first image without an embedding"

    def plan(self, run_dir: Path, look: str | None) -> Plan:
        """What a person is told before."""
        for note in self._backbone.notes:
            _log.warning("%s", note)
        return head_plan(self._job.config, self.dataset, self.inference, run_dir, look)

    def learn(self, tracker: Tracker) -> Learned:
        """Embed, fit, choose."""
        config = self._job.config
        train = self.embedded(self.dataset.train, "train", views=config.features.views)
        val = None if self.dataset.val is None else self.embedded(self.dataset.val, "val")
        self._train = train
        started = time.monotonic()
        weights = vector_weights(config, train.vectors, self.dataset.class_names)
        vectors = val.vectors if val else None
        fit = self._fitter(vectors, weights)
        if config.data.shots is None:
            head = fit(train.vectors, config.seed)
        else:
            self._few_shot = FewShot(config, self.dataset, train.vectors, vectors, fit)
            head = self._few_shot.heads[0]
            self._few_shot.log(tracker)
        head_seconds = time.monotonic() - started
        self.check()
        self._record(head, vectors, tracker)
        self._pictures(head, vectors, tracker)
        several = self.dataset.multilabel
        computed = train.computed + (val.computed if val else 0)
        return Learned(
            weights={**self._backbone.weights, "params": dict(head.arrays)},
            technique=self._technique,
            example=np.asarray(next(host_batches(config, self.dataset.train, 1)).image),
            steps=len(head.curve),
            seconds=train.seconds + (val.seconds if val else 0.0) + head_seconds,
            images=computed,
            val_accuracy=None if several or vectors is None else _val_accuracy(head, vectors),
            best_step=head.chosen,
            devices=[str(device.device_kind) for device in self.inference.strategy.devices],
            extra={"head": head.meta()},
            summary={
                **({"val_mAP": self._validation(head, vectors).get("val/mAP")} if several else {}),
                "head": config.head.name,
                "head_settings": head.settings,
                "weights": config.model.weights,
                "embedding_seconds": round(train.seconds + (val.seconds if val else 0.0), 3),
                "head_seconds": round(head_seconds, 3),
                "embedding_dim": int(train.vectors.x.shape[1]),
                "cache_hit": computed == 0,
            },
        )

    def predictor(self, fitted: Fitted) -> Predictor:
        """Embeds through the store, as in training."""
        return HeadPredictor(fitted, extractor=self._backbone.extractor)

    def after_test(self, test: ImageSource, predictor: Predictor, tracker: Tracker) -> dict[str, Any]:
        """Neighbours of test images as a picture; few-shot: the test accuracy of every draw, as mean and interval."""
        vectors, labels = predictor.embed(test), test.labels
        assert self._train is not None
        places, data = self._train.places, self._job.config.data
        known = (self.dataset.train.select(places), self._train.vectors.x[: len(places)])
        names = self.dataset.class_names
        if not self.dataset.multilabel:
            self._picture(tracker, "neighbours", lambda: pictures.neighbours((test, vectors), known, names, data))
        if self._few_shot is None:
            return {}
        return summarize(self._few_shot.figures(vectors, labels), self._few_shot, self._job.directory.path, tracker)

    def close(self) -> None:
        """Nothing is open."""

    def _fitter(self, val: Vectors | None, weights: NDArray[np.float32] | None) -> Callable[[Vectors, int], FittedHead]:
        config = self._job.config

        def fit(train: Vectors, seed: int) -> FittedHead:
            return fit_head(
                config.head,
                train,
                val,
                num_classes=self.dataset.num_classes,
                seed=seed,
                class_weights=weights,
                loss=config.loss,
                check=self.check,
                start=self._start,
            )

        return fit

    def check(self) -> None:
        """Raises Interrupted after a signal."""
        self._job.check("stopped; the embeddings are kept")

    def embedded(self, source: ImageSource, name: str, views: int = 1) -> Embedded:
        """The readable images of a split as vectors, all views one after the other."""

        def check() -> None:
            self._job.check("stopped while embedding; finished shards are kept")

        return self._backbone.embedded(source, name, views=views, check=check)

    def _record(self, head: FittedHead, val: Vectors | None, tracker: Tracker) -> None:
        """The chosen setting as parameters and as the run's metrics; every setting as a row of `head_grid.csv`."""
        entry = head.curve[head.chosen]
        values: dict[str, Any] = {
            f"train/{name}": entry[f"train_{name}"] for name in ("loss", "accuracy") if f"train_{name}" in entry
        }
        chosen = [head.chosen]
        if isinstance(head, SeveralHeads | SeveralJaxHeads):
            values, chosen = {}, head.places
        if val is not None:
            values |= self._validation(head, val)
        tracker.log(head.chosen, values)
        if not self.dataset.multilabel:
            tracker.params({f"chosen_head.{name}": value for name, value in head.settings.items()})
        path = self._job.directory.path / "head_grid.csv"
        write_csv(path, [{**row, "chosen": place in chosen} for place, row in enumerate(head.curve)])
        tracker.artifact(path)

    def _validation(self, head: FittedHead, val: Vectors | None) -> dict[str, float]:
        """`val/...` of the chosen setting, one's own too."""
        if val is None:
            return {}
        entry, own = head.curve[head.chosen], self._technique.metrics
        if self.dataset.multilabel:
            values = self.inference.task.validation({"logits": head.logits(val.x)}, val.y)
        else:
            values = {"val/loss": entry["val_loss"], "val/accuracy": _val_accuracy(head, val)}
        return values | {name: float(metric(head.logits(val.x), val.y)) for name, metric in own.items()}

    def _pictures(self, head: FittedHead, val: Vectors | None, tracker: Tracker) -> None:
        names, seed = self.dataset.class_names, self._job.config.seed
        if self.dataset.multilabel:  # they show one class of each image
            return
        self._picture(tracker, "head_grid", lambda: pictures.grid(head))
        if val is not None and len(val.x) > 2:
            self._picture(tracker, "embeddings", lambda: pictures.projection(val, names, seed))

    def _picture(self, tracker: Tracker, name: str, make: Callable[[], Figure | None]) -> None:
        for path in save(make, self._job.directory.path / f"{name}.png"):
            tracker.artifact(path)
        self.check()


def fit_vectors(
    technique: Learns, vectors: ArrayLike, labels: ArrayLike, validation: tuple[ArrayLike, ArrayLike] | None
) -> Fitted:
    """A head on vectors that somebody brings: `[images, features]` and `[images]`, integers or strings.

    Several labels per image are `[images, labels]` of 0, 1 and -1 (unknown).
    """
    check_devices()
    config = technique.config
    x, values = np.asarray(vectors, np.float32), np.asarray(labels)
    if x.ndim != 2 or len(x) != len(values):
        raise UserError(f"vectors [images, features] and as many labels are needed, not {x.shape} and {values.shape}")
    names, y, held = _labels_of_vectors(values, None if validation is None else np.asarray(validation[1]), config)
    if y.ndim == 2:
        config = config.replace(**{"data.task": "multilabel"})
        check_options(config, "multilabel")
    train, val = Vectors(x, y), None
    if validation is not None:
        val = Vectors(np.asarray(validation[0], np.float32), held)
    elif config.data.val_fraction > 0:
        kept, out = stratified_split(train.y, config.data.val_fraction, config.data.split_seed)
        train, val = Vectors(x[kept], train.y[kept]), Vectors(x[out], train.y[out])
    config = config.model_copy(update={"train": resolve_weights(config.train, names)})
    weights = vector_weights(config, train, names)
    given: dict[str, Any] = {"num_classes": len(names), "seed": config.seed, "class_weights": weights}
    start = None if config.head.init is None else class_kernel(config.head.init, names, x.shape[1])
    head = fit_head(config.head, train, val, **given, loss=config.loss, start=start)
    tree = {"params": dict(head.arrays), "frozen": {}, "model_state": {}}
    bound = technique.bind(config, Binding(len(names)))
    return Fitted(bound, names, tree, {"head": head.meta()})


def _labels_of_vectors(
    values: NDArray[Any], held: NDArray[Any] | None, config: Config
) -> tuple[tuple[str, ...], Any, Any]:
    """Names, and the labels of training and validation vectors as places among them, or as matrices."""
    if values.ndim == 2 and values.shape[1] > 1:
        y = label_values(values, "the", len(values))
        names, _ = classes_of(y, None, "the", config.data.task)
        if held is not None:
            held = placed(label_values(held, "validation", len(held)), names, None, "validation")
        return names, y, held
    known, y = np.unique(values, return_inverse=True)
    if held is not None:
        if unknown := set(held.tolist()) - set(known.tolist()):
            raise UserError(f"validation has labels that training has not: {sorted(unknown)[:5]}")
        held = np.searchsorted(known, held).astype(np.int32)
    return tuple(map(str, known)), y.astype(np.int32), held


def _val_accuracy(head: FittedHead, val: Vectors) -> float:
    """Of the chosen setting, as a share of this many images to the last bit: heads sum in float32 or float64."""
    return round(head.curve[head.chosen]["val_accuracy"] * len(val.y)) / len(val.y)


def vector_weights(config: Config, train: Vectors, names: Sequence[str]) -> NDArray[np.float32] | None:
    """`train.class_weights`, resolved, for vectors; 1 for a class without any; None: all count the same.

    Of several labels `train.pos_weight`.
    """
    if train.y.ndim == 2:
        positive = pos_weight(config.train, train.y, names)
        return None if positive is None else np.asarray(positive, np.float32)
    counts = class_counts(train.y, len(names))
    weights = class_weights(config.train, counts, names)
    return None if weights is None else np.where(counts > 0, weights, 1.0).astype(np.float32)


__all__ = ["HeadLearning", "fit_vectors"]
