"""`audit(data)`: what may be wrong with the images and labels of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.classifiers.embedding import Embedding, embedding_of
from jaxtrain.classifiers.feature_extraction import FEClassifier
from jaxtrain.config import Config, DataConfig, HeadConfig
from jaxtrain.data.base import ArraySource, ImageSource, class_counts
from jaxtrain.data.holdout import fold_numbers
from jaxtrain.data.objects import objects_dataset
from jaxtrain.data.sources import ARRAYS
from jaxtrain.data.worker_watch import refuse_in_worker
from jaxtrain.errors import UserError
from jaxtrain.evaluation.audit import (
    Audit,
    Place,
    find_label_errors,
    find_near_duplicates,
    find_outliers,
    find_overlaps,
    splits_of,
)
from jaxtrain.evaluation.audit_page import write_audit
from jaxtrain.heads import Vectors, fit_head
from jaxtrain.runs.extraction import RowsOf
from jaxtrain.screen.loading import load_with_bar
from jaxtrain.screen.progress import Progress
from jaxtrain.tasks import softmax
from jaxtrain.training.parallel import check_devices

FOLDS = 5
"""By default."""


def audit(data: Any, out: str | Path | None = None, **options: Any) -> Audit:
    """Look for label errors, near duplicates, outliers and overlapping classes in the images that are trained on.

    A linear head on the embeddings of a frozen backbone judges each label without having seen the image: it was
    trained on the other folds (`data.folds`, 5 by default; groups of `data.group` stay together).

    Args:
        data: The name of a data set (as `data.name`), its options, a pair of arrays (images, labels), or an object
            that `fit` takes.
        out: A folder for `audit.html` and `suggestions.csv`, made where it is missing.
        **options: Of technique fe, as of `FEClassifier`: `model={"weights": "runs/pt/mine"}`, `features`, `seed`.

    Raises UserError for wrong input, and for several labels per image.
    """
    found = audited(*open_audit(data, **options))
    if out is not None:
        write_audit(found, Path(out))
    return found


def open_audit(data: Any, **options: Any) -> tuple[Embedding, int]:
    """The images that `audit` looks at with their backbone, and the number of folds. Raises UserError as it does."""
    refuse_in_worker()
    check_devices()
    named = isinstance(data, str | DataConfig)
    about = DataConfig(name=data) if isinstance(data, str) else data if named else DataConfig(name=ARRAYS)
    folds = about.folds or FOLDS
    about = about.model_copy(update={"val_fraction": 0.0, "folds": None})
    technique = FEClassifier(data=about, **options)
    loaded, quiet = technique.data_config, technique.config.quiet
    if named:
        dataset = load_with_bar(loaded, quiet=quiet)
    else:
        dataset = objects_dataset(*(data if isinstance(data, tuple) else (data,)), config=loaded)
    if dataset.multilabel:
        raise UserError(f"{dataset.name}: an audit judges one label per image, and these images have several")
    return embedding_of(technique, dataset), folds


def audited(embedding: Embedding, folds: int, rows: RowsOf | None = None) -> Audit:
    """What is found; `rows` computes the embeddings that the store lacks (None: this process does)."""
    config, dataset, backbone = embedding.config, embedding.dataset, embedding.backbone
    learned, splits = splits_of(dataset)
    readable = {name: backbone.embedded(source, name, rows=rows) for name, source in learned.items()}
    first, *others = (part.vectors for part in readable.values())
    vectors = first.joined(*others)
    places = [Place(name, int(index)) for name, part in readable.items() for index in part.places]
    counts = class_counts(vectors.y, dataset.num_classes)
    judged = np.flatnonzero(counts[vectors.y] > 1)  # nothing else says what the only image of a class looks like
    numbered = config.data.model_copy(update={"folds": folds})
    images = _together([source.select(readable[name].places) for name, source in learned.items()], config.data)
    numbers = fold_numbers(images.select(judged), numbered, dataset.class_names)
    x, y = vectors.x[judged], vectors.y[judged].astype(np.int32)
    probabilities, decay = out_of_fold(Vectors(x, y), numbers, dataset.num_classes, config)
    judged_places = [places[i] for i in judged.tolist()]
    return Audit(
        name=dataset.name,
        class_names=dataset.class_names,
        splits=splits,
        judged=len(judged),
        accuracy=float(np.mean(probabilities.argmax(axis=1) == y)),
        label_errors=find_label_errors(judged_places, y, probabilities),
        overlaps=find_overlaps(y, probabilities),
        near_duplicates=find_near_duplicates(splits, config.data.max_pixels),
        outliers=find_outliers(places, vectors.x, config.seed),
        unreadable=dataset.bad_images.reasons,
        method=f"{config.model.label} at {config.data.image_size} px, weight decay {decay:.2g}, {folds} folds",
    )


def out_of_fold(
    vectors: Vectors, numbers: NDArray[np.int64], classes: int, config: Config
) -> tuple[NDArray[np.float64], float]:
    """What the heads of the other folds give each vector, `float64[images, classes]`; and their weight decay.

    That is chosen once, on the first fold, for all: one of 15 numbers, by all labels of the fold.
    """
    probabilities = np.empty((len(vectors.y), classes))
    head = HeadConfig(scaling=("standard",))
    with Progress(title="judging labels", quiet=config.quiet) as bar:
        for number in range(int(numbers.max()) + 1):
            bar.count(int(np.count_nonzero(numbers < number)), len(numbers))
            train, held = (vectors.select(np.flatnonzero(mask)) for mask in (numbers != number, numbers == number))
            val = held if number == 0 else None
            # With a check Ctrl-C is heard meanwhile.
            found = fit_head(head, train, val, num_classes=classes, seed=config.seed, check=lambda: None)
            probabilities[numbers == number] = softmax(found.logits(held.x))
            decay = float(found.settings["weight_decay"])
            head = HeadConfig(scaling=("standard",), weight_decay=(decay,))
        bar.count(len(numbers), len(numbers))
    return probabilities, decay


def _together(sources: Sequence[ImageSource], config: DataConfig) -> ArraySource:
    """Labels and groups of some sources in one, whose images are empty."""
    labels = np.concatenate([source.labels for source in sources])
    columns = [getattr(source, "metadata", {}) for source in sources]
    metadata = {}
    if config.group is not None and all(config.group in each for each in columns):
        metadata = {config.group: np.concatenate([each[config.group] for each in columns])}
    return ArraySource(np.zeros((len(labels), 0), np.uint8), labels, metadata=metadata)
