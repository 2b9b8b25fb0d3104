"""The test evaluation with which every run ends: one look at the test set, kept and tracked.

Nothing else opens the test set.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jaxtrain.config import TrackingConfig
from jaxtrain.data.base import Dataset, ImageSource
from jaxtrain.data.digest import digest_of_test_set, duplicates, image_ids
from jaxtrain.errors import RunError, UserError, nearest
from jaxtrain.evaluation import plots
from jaxtrain.evaluation.calibration import fit_temperature
from jaxtrain.evaluation.looks import count_look
from jaxtrain.evaluation.metrics import classification_metrics, confusion_matrix, outcomes, per_class_table
from jaxtrain.evaluation.predictions import Predictions
from jaxtrain.evaluation.statistics import RESAMPLES, Interval, Resampled, intervals, resample
from jaxtrain.files import write_csv, write_text
from jaxtrain.label_metrics import label_outcomes, per_label_table
from jaxtrain.tasks import softmax
from jaxtrain.tracking import Measures, Tracker

LOOKS_FILE = Path("runs/.test_looks.json")
SCALED = ("loss", "ece", "adaptive_ece", "brier")
"""Metrics that are also told after temperature scaling."""

_log = logging.getLogger(__name__)


class Predictor(Protocol):
    """What the Benchmark asks of a model."""

    @property
    def class_names(self) -> Sequence[str]:
        """In the order of the logits."""

    def predict_logits(self, source: ImageSource) -> NDArray[np.float32]:
        """`float32[images, classes]`, in the order of the source."""


@dataclass(frozen=True)
class OpenTestSet:
    """An open test set."""

    dataset: Dataset
    images: ImageSource
    ids: tuple[str, ...]
    """`image_id` of each image."""
    digest: str
    """See `digest_of_test_set`."""
    any_of: bool = False
    """Whether each image has several right answers, of which one is enough."""
    unlabelled: int = 0
    """Images without any right answer, which were left out then."""


@dataclass(frozen=True)
class Measured:
    """The figures that follow from predictions."""

    resampled: Resampled
    """Metrics of `classification_metrics`, and their bootstrap replicates."""
    intervals: dict[str, Interval]
    """95% intervals of the metrics that have one."""
    confusion: NDArray[np.int64] | None
    """Images `int64[true class, predicted class]`; None of several labels per image."""
    per_class: list[dict[str, Any]]
    """See `per_class_table` and `per_label_table`."""
    temperature: float | None
    """Fitted on validation images; None where none of them is wrong."""
    scaled: dict[str, float]
    """`loss`, `brier`, `ece` and `adaptive_ece` with that temperature; empty where there is none."""

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics by their plain names."""
        return self.resampled.metrics

    def flat(self) -> dict[str, float]:
        """All of it under the names of MLflow: `test/accuracy`, `test/accuracy_low`, `test/ece_scaled`, ..."""
        flat = dict(self.metrics)
        for name, interval in self.intervals.items():
            flat |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        flat |= {f"{name}_scaled": value for name, value in self.scaled.items()}
        if self.temperature is not None:
            flat["temperature"] = self.temperature
        return {f"test/{name}": value for name, value in flat.items()}


@dataclass(frozen=True)
class Record:
    """What is kept and tracked of a model on a test set."""

    predictions: Predictions
    measured: Measured
    duplicates: dict[str, list[tuple[int, int]]]
    """Of "training" and "validation": test images that stand there too, as (index there, index in test)."""
    looks: int | None
    """How many different models were measured on this test set (`count_look`); None: not counted."""
    artifacts: tuple[Path, ...]
    """The files that were written."""

    @property
    def metrics(self) -> dict[str, float]:
        """`test/accuracy`, `test/loss`, ...: see `Measured.flat`."""
        return self.measured.flat()


@dataclass(frozen=True)
class Evaluation(Record):
    """What a model does on a test set."""

    test: ImageSource
    """The test set, which has been opened now."""


def evaluate_on_test(
    classifier: Predictor,
    dataset: Dataset,
    *,
    folder: Path,
    technique: str,
    model: str,
    params_sha256: str,
    looks_file: Path = LOOKS_FILE,
    resamples: int = RESAMPLES,
) -> Evaluation | None:
    """Open the test set, measure the classifier on every image of it, and write the result into `folder`.

    `dataset` holds images, as `predict_logits` takes them. The classifier's classes may be in another order than
    the data set's. On the validation images a temperature is fitted. Writes `predictions.npz`, `metrics.json`,
    `per_class.csv` and `confusion_matrix.png`. Warns (through logging) where test images are also in the training
    or validation set. Returns None where the data set has no test images.

    Raises UserError where the classifier's classes are not those of the data set, RunError where its logits
    are not finite.
    """
    test = open_test_set(dataset)
    if test is None:
        return None
    predictions = predict(classifier, test, technique=technique, model=model, params_sha256=params_sha256)
    duplicates = find_duplicates(test)
    looks = count_look(looks_file, test.digest, params_sha256, dataset.name)
    measured = measure(predictions, resamples=resamples)
    written = write_evaluation(predictions, measured, duplicates, looks, folder)
    return Evaluation(predictions, measured, duplicates, looks, written, test.images)


def open_test_set(dataset: Dataset, *, any_of: bool = False) -> OpenTestSet | None:
    """The test images and their digest; None where the data set has none.

    `any_of`: of several labels per image one is enough, and images without any are left out.
    """
    images = dataset.open_test()
    if images is None or not len(images):
        return None
    any_of, total = any_of and images.labels.ndim == 2, len(images)
    if any_of:
        images = images.select(np.flatnonzero((images.labels == 1).any(axis=1)))
        if not len(images):
            raise UserError(f"no test image of {dataset.name} has a label")
    ids = image_ids(images)
    digest = digest_of_test_set(ids, images.labels, dataset.class_names)
    return OpenTestSet(dataset, images, ids, digest, any_of, total - len(images))


def predict(
    classifier: Predictor,
    test: OpenTestSet,
    *,
    technique: str,
    model: str,
    params_sha256: str,
    notes: Sequence[str] = (),
) -> Predictions:
    """Logits for every test image, and for the validation images that can be read. Raises as `evaluate_on_test`."""
    dataset = test.dataset
    order = order_of_classes(tuple(classifier.class_names), dataset)
    thresholds = thresholds_of(classifier)
    several = test.images.labels.ndim == 2 and not test.any_of
    if several != (thresholds is not None):
        has, knows = ("several labels", "one class") if several else ("one class", "several labels")
        advice = ": --data.task any_of counts any of an image's labels as right" if several else ""
        raise UserError(f"the test set of {dataset.name} has {has} per image, the model gives {knows}{advice}")
    logits = classifier.predict_logits(test.images)[:, order]
    bad = np.count_nonzero(~np.isfinite(logits).all(axis=1))
    if bad:
        raise RunError(f"the model's logits are not finite for {bad} of {len(logits)} test images of {dataset.name}")
    val_labels = val_logits = None
    if dataset.val is not None and len(dataset.val) and not test.any_of:
        val_logits = classifier.predict_logits(dataset.val)[:, order]
        sound = np.isfinite(val_logits).all(axis=1)
        val_labels, val_logits = dataset.val.labels[sound], val_logits[sound]
    return Predictions(
        ids=test.ids,
        labels=test.images.labels,
        logits=logits,
        class_names=dataset.class_names,
        test_digest=test.digest,
        params_sha256=params_sha256,
        technique=technique,
        model=model,
        dataset=dataset.name,
        val_labels=val_labels,
        val_logits=val_logits,
        thresholds=None if thresholds is None else tuple(thresholds[place] for place in order),
        any_of=test.any_of,
        notes=(*notes, *_of_several(test)),
    )


def _of_several(test: OpenTestSet) -> list[str]:
    if not test.any_of:
        return []
    left_out = f"; {test.unlabelled:,} images without a label are left out" if test.unlabelled else ""
    return [f"any of an image's labels is right, and the most probable one of them counts as its class{left_out}"]


def thresholds_of(classifier: Predictor) -> Sequence[float] | None:
    """The probability from which on each label is given; None, and where a model does not say: one class per image."""
    return getattr(classifier, "thresholds", None)


def measure(predictions: Predictions, *, resamples: int = RESAMPLES, seed: int = 0) -> Measured:
    """Metrics with intervals, and calibration before and after temperature scaling."""
    if predictions.multilabel:
        return _measure_labels(predictions, resamples, seed)
    labels, logits, names = predictions.answers, predictions.logits, predictions.class_names
    resampled = resample(outcomes(labels, softmax(logits), logits), resamples, seed)
    confusion = confusion_matrix(labels, logits.argmax(axis=1), len(names))
    temperature, after = None, dict[str, float]()
    if predictions.val_labels is not None and predictions.val_logits is not None:
        temperature = fit_temperature(predictions.val_labels, predictions.val_logits)
    if temperature is not None:
        cooler = logits.astype(np.float64) / temperature
        every = classification_metrics(labels, softmax(cooler), cooler)
        after = {name: every[name] for name in SCALED}
    table = per_class_table(confusion, names)
    return Measured(resampled, intervals(resampled), confusion, table, temperature, after)


def _measure_labels(predictions: Predictions, resamples: int, seed: int) -> Measured:
    """Of several labels per image: no temperature is fitted."""
    thresholds = predictions.thresholds or (0.5,) * len(predictions.class_names)
    found = label_outcomes(predictions.labels, predictions.logits, thresholds)
    resampled = resample(found, resamples, seed)
    table = per_label_table(found, predictions.class_names, thresholds)
    return Measured(resampled, intervals(resampled), None, table, None, {})


def track_evaluation(
    evaluation: Record,
    config: TrackingConfig,
    *,
    root: Path,
    folder: Path,
    run_name: str,
    source_run_id: str | None,
    model_id: str | None,
    metrics: Mapping[str, float] | None = None,
) -> Tracker:
    """Store an evaluation as one run of the MLflow experiment `Benchmark`; `finish` of what is returned waits for that.

    The run leads back to the training run by the tags `source_run_id` and `params_sha256`. What the tracker keeps
    lies under `folder` in the run directory `root`, apart for each model and test set, so the same evaluation, tracked
    again, continues its run. `model_id` is that of the model in MLflow, which gets the metrics too.
    `metrics` are stored besides the evaluation's own, such as costs.
    """
    about = _about(evaluation.predictions)
    own = {key: str(about[key]) for key in ("technique", "model", "dataset", "params_sha256", "test_digest")}
    own |= {"kind": "evaluation", **({"notes": str(about["notes"])} if "notes" in about else {})}
    if source_run_id is not None:
        own["source_run_id"] = source_run_id
    kept = folder / "tracking" / f"{own['params_sha256'][:12]}-{own['test_digest'][:12]}"
    tracker = Tracker.start(
        config.model_copy(update={"system_metrics": False}),
        run_dir=kept,
        root=root,
        experiment="Benchmark",
        run_name=run_name,
        params={key: about[key] for key in ("technique", "model", "dataset", "images", "classes")},
        tags=own,
        measures=None if model_id is None else Measures(model_id, own["dataset"], own["test_digest"]),
    )
    tracker.log_input(
        own["dataset"],
        own["dataset"],
        own["test_digest"],
        "test",
        {"images": about["images"], "classes": about["classes"]},
    )
    tracker.log(0, {**evaluation.metrics, **_counts(evaluation.duplicates, evaluation.looks), **(metrics or {})})
    for path in evaluation.artifacts:
        tracker.artifact(path)
    return tracker


def order_of_classes(known: tuple[str, ...], dataset: Dataset) -> list[int]:
    """Where in the model's classes each class of the data set stands. Raises UserError where they differ."""
    names = dataset.class_names
    here = f"the test set of {dataset.name}"
    if len(known) != len(names):
        raise UserError(f"the model knows {len(known)} classes, {here} has {len(names)}")
    place = {name: index for index, name in enumerate(known)}
    unknown = [name for name in names if name not in place]
    if unknown:
        raise UserError(
            f"{here} has the class {unknown[0]!r}, which the model does not know: {nearest(unknown[0], known)}"
        )
    return [place[name] for name in names]


def find_duplicates(test_set: OpenTestSet) -> dict[str, list[tuple[int, int]]]:
    """Exact duplicates between test and other images, warned about; a set of which that is unknown is left out."""
    dataset, test = test_set.dataset, test_set.images
    found = {}
    for name, source in (("training", dataset.train), ("validation", dataset.val)):
        if source is not None and not len(source):
            continue
        pairs = duplicates(source, test) if source is not None else []
        if pairs is None:
            reason = "one holds encoded files, the other pixels"
            _log.warning("%s: whether test images are also in the %s set is unknown: %s", dataset.name, name, reason)
            continue
        found[name] = pairs
        if source is not None and pairs:
            other, index = pairs[0]
            _log.warning(
                "%d of %d test images of %s are also in the %s set (%s is %s): test figures are too good",
                len(pairs),
                len(test),
                dataset.name,
                name,
                test.describe(index),
                source.describe(other),
            )
    return found


def _about(predictions: Predictions) -> dict[str, str | int]:
    return {
        "technique": predictions.technique,
        "model": predictions.model,
        "dataset": predictions.dataset,
        "images": len(predictions.ids),
        "classes": len(predictions.class_names),
        "params_sha256": predictions.params_sha256,
        "test_digest": predictions.test_digest,
        **({"notes": "; ".join(predictions.notes)} if predictions.notes else {}),
    }


def _counts(duplicates: Mapping[str, list[tuple[int, int]]], looks: int | None) -> dict[str, int]:
    counts = {f"test/duplicates_in_{name}": len(found) for name, found in duplicates.items()}
    return counts if looks is None else {**counts, "test/looks": looks}


def write_evaluation(
    predictions: Predictions,
    measured: Measured,
    duplicates: Mapping[str, list[tuple[int, int]]],
    looks: int | None,
    folder: Path,
) -> tuple[Path, ...]:
    """Write `predictions.npz`, `metrics.json`, `per_class.csv` and `confusion_matrix.png`; returns their paths.

    Of several labels per image there is no confusion matrix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("predictions.npz", "metrics.json", "per_class.csv")]
    predictions.save(files[0])
    summary = {**_about(predictions), **measured.flat(), **_counts(duplicates, looks)}
    write_text(files[1], json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write_csv(files[2], measured.per_class)
    matrix, confusion = folder / "confusion_matrix.png", measured.confusion
    if confusion is None:
        return tuple(files)
    return (*files, *plots.save(lambda: plots.confusion_matrix(confusion, predictions.class_names), matrix))
