"""The test evaluation with which every run ends: one look at the test set, kept and tracked.

Nothing else opens the test set.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jaxtrain.benchmark.looks import count_look
from jaxtrain.benchmark.metrics import classification_metrics, confusion_matrix, per_class_table, softmax
from jaxtrain.benchmark.predictions import Predictions, digest_of_test_set, image_ids
from jaxtrain.config import TrackingConfig
from jaxtrain.data.base import Dataset, ImageSource
from jaxtrain.errors import RunError, UserError

if TYPE_CHECKING:
    from jaxtrain.tracking import TrackerReport

LOOKS_FILE = Path("runs/.test_looks.json")

_log = logging.getLogger(__name__)


class Predictor(Protocol):
    """What the Benchmark asks of a model."""

    @property
    def class_names(self) -> Sequence[str]:
        """In the order of the logits."""

    def predict_logits(self, source: ImageSource) -> NDArray[np.float32]:
        """`float32[images, classes]`, in the order of the source."""


@dataclass(frozen=True)
class Evaluation:
    """What a model does on a test set."""

    predictions: Predictions
    metrics: dict[str, float]
    """`test/accuracy`, `test/loss`, ...: see `classification_metrics`."""
    confusion: NDArray[np.int64]
    """Images `int64[true class, predicted class]`."""
    per_class: list[dict[str, Any]]
    """See `per_class_table`."""
    duplicates: dict[str, list[tuple[int, int]]]
    """Of "training" and "validation": test images that stand there too, as (index there, index in test)."""
    looks: int | None
    """How many different models were measured on this test set (`count_look`); None: not counted."""
    artifacts: tuple[Path, ...]
    """The files that were written."""
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
) -> Evaluation | None:
    """Open the test set, measure the classifier on every image of it, and write the result into `folder`.

    Writes `predictions.npz`, `metrics.json`, `per_class.csv` and `confusion_matrix.png`. Warns (through
    logging) where test images also stand in the training or validation set. Returns None where the data
    set has no test images.

    Raises UserError where the classifier's classes are not those of the data set, RunError where its logits
    are not finite.
    """
    test = dataset.open_test()
    if test is None or not len(test):
        return None
    _check_classes(tuple(classifier.class_names), dataset)
    logits = classifier.predict_logits(test)
    bad = np.count_nonzero(~np.isfinite(logits).all(axis=1))
    if bad:
        raise RunError(f"the model's logits are not finite for {bad} of {len(test)} test images of {dataset.name}")
    ids = image_ids(test)
    predictions = Predictions(
        ids=ids,
        labels=test.labels,
        logits=logits,
        class_names=dataset.class_names,
        test_digest=digest_of_test_set(ids, test.labels, dataset.class_names),
        params_sha256=params_sha256,
        technique=technique,
        model=model,
        dataset=dataset.name,
    )
    duplicates = _find_duplicates(dataset, test)
    looks = count_look(looks_file, predictions.test_digest, params_sha256, dataset.name)
    return _measure_and_write(predictions, duplicates, looks, folder, test)


def track_evaluation(
    evaluation: Evaluation,
    config: TrackingConfig,
    *,
    folder: Path,
    run_name: str,
    source_run_id: str | None,
    tags: Mapping[str, str] | None = None,
) -> TrackerReport:
    """Store an evaluation as one run of the MLflow experiment `Benchmark`; say how that went.

    The run leads back to the training run by the tags `source_run_id` and `params_sha256`. What the tracker
    keeps lies under `folder`, apart for each model and test set, so the same evaluation, tracked again,
    continues its run.
    """
    from jaxtrain.tracking import Tracker

    about = _about(evaluation.predictions)
    own = {key: str(about[key]) for key in ("technique", "model", "dataset", "params_sha256", "test_digest")}
    if source_run_id is not None:
        own["source_run_id"] = source_run_id
    kept = folder / "tracking" / f"{own['params_sha256'][:12]}-{own['test_digest'][:12]}"
    tracker = Tracker.start(
        config.model_copy(update={"system_metrics": False}),
        run_dir=kept,
        experiment="Benchmark",
        run_name=run_name,
        params={key: about[key] for key in ("technique", "model", "dataset", "images", "classes")},
        tags={**own, **(tags or {})},
    )
    tracker.log_input(
        own["dataset"],
        own["dataset"],
        own["test_digest"],
        "test",
        {"images": about["images"], "classes": about["classes"]},
    )
    tracker.log(0, {**evaluation.metrics, **_counts(evaluation.duplicates, evaluation.looks)})
    for path in evaluation.artifacts:
        tracker.artifact(path)
    return tracker.finish("FINISHED")


def _check_classes(known: tuple[str, ...], dataset: Dataset) -> None:
    if known == dataset.class_names:
        return
    here = f"the test set of {dataset.name}"
    if len(known) != len(dataset.class_names):
        raise UserError(f"the model knows {len(known)} classes, {here} has {len(dataset.class_names)}")
    first = next(i for i, name in enumerate(known) if name != dataset.class_names[i])
    raise UserError(
        f"class {first} of the model is {known[first]!r}, of {here} {dataset.class_names[first]!r}: "
        "names and order must be the same"
    )


def _find_duplicates(dataset: Dataset, test: ImageSource) -> dict[str, list[tuple[int, int]]]:
    """Exact duplicates between test and other images, warned about."""
    from jaxtrain.data.digest import duplicates

    found = {}
    for name, source in (("training", dataset.train), ("validation", dataset.val)):
        pairs = duplicates(source, test) if source is not None else []
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
    }


def _counts(duplicates: Mapping[str, list[tuple[int, int]]], looks: int | None) -> dict[str, int]:
    counts = {f"test/duplicates_in_{name}": len(found) for name, found in duplicates.items()}
    return counts if looks is None else {**counts, "test/looks": looks}


def _measure_and_write(
    predictions: Predictions,
    duplicates: dict[str, list[tuple[int, int]]],
    looks: int | None,
    folder: Path,
    test: ImageSource,
) -> Evaluation:
    from jaxtrain.benchmark import plots

    labels, logits, names = predictions.labels, predictions.logits, predictions.class_names
    metrics = classification_metrics(labels, softmax(logits), logits)
    metrics = {f"test/{name}": value for name, value in metrics.items()}
    confusion = confusion_matrix(labels, logits.argmax(axis=1), len(names))
    per_class = per_class_table(confusion, names)

    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("predictions.npz", "metrics.json", "per_class.csv", "confusion_matrix.png")]
    predictions.save(files[0])
    summary = {**_about(predictions), **metrics, **_counts(duplicates, looks)}
    _replace(files[1], json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    rows = io.StringIO(newline="")
    table = csv.DictWriter(rows, fieldnames=list(per_class[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(per_class)
    _replace(files[2], rows.getvalue())
    plots.save(plots.confusion_matrix(confusion, names), files[3])
    return Evaluation(predictions, metrics, confusion, per_class, duplicates, looks, tuple(files), test)


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
