"""Labels as people give them (names, numbers, a matrix), and as jaxtrain has them; weights of images.

One label per image: its place among the classes, `int32[images]`. Several: `int8[images, classes]`, 1 where an image
has the label, 0 where it has not, -1 where that is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxtrain.data.base import Labels
from jaxtrain.errors import UserError, nearest

Given = NDArray[Any]
"""Labels as given: `[images]` of integers or strings; or several per image, `int8[images, classes]` or tuples of
names, `object[images]`."""
UNKNOWN = -1
"""Of a label that an image may have or not."""


def label_values(labels: ArrayLike, where: str, count: int) -> Given:
    """Checked labels as given."""
    if (sets := _sets_of_names(labels)) is not None:
        _check_count(sets, where, count)
        return sets
    values = np.asarray(labels)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.dtype == object and all(isinstance(value, str) for value in values.flat):
        values = values.astype(str)
    if values.ndim == 2:
        _check_count(values, where, count)
        return _matrix(values, where)
    if values.ndim != 1:
        raise UserError(f"{where} labels have shape {list(values.shape)}, must be [images] or [images, classes]")
    _check_count(values, where, count)
    if values.dtype.kind == "f":
        if np.isnan(values).any():
            raise UserError(f"{where} label {int(np.isnan(values).argmax())} is NaN")
        whole = bool((values == np.floor(values)).all())
        hint = (
            "labels.astype(int)" if whole else "numbers with fractions are not classes, and regression is not supported"
        )
        raise UserError(f"{where} labels are {values.dtype}, must be integers or strings: {hint}")
    if values.dtype.kind not in "iubU":
        raise UserError(f"{where} labels are {values.dtype}, must be integers or strings")
    if values.dtype.kind == "i" and (values < 0).any():
        place = int((values < 0).argmax())
        raise UserError(f"{where} label {place} is {values[place]}: labels must not be negative")
    return values


def _check_count(values: Given, where: str, count: int) -> None:
    if len(values) != count:
        raise UserError(f"{where} has {count} images and {len(values)} labels")


def _sets_of_names(labels: Any) -> Given | None:
    """Several names per image as tuples, `object[images]`; None for anything else."""
    if not isinstance(labels, list | tuple) and np.dtype(getattr(labels, "dtype", float)).kind != "O":
        return None
    rows: list[Any] = list(labels)
    kinds = (list, tuple, set, frozenset, np.ndarray)
    if not rows or not all(isinstance(row, kinds) and all(isinstance(name, str) for name in row) for row in rows):
        return None
    if all(len(row) == 1 for row in rows):  # a column of names
        return None
    sets = np.empty(len(rows), object)
    sets[:] = [tuple(sorted({str(name) for name in row})) for row in rows]
    return sets


def _matrix(values: NDArray[Any], where: str) -> NDArray[np.int8]:
    """`int8[images, classes]` of 0, 1 and -1; NaN is unknown too."""
    form = "several labels per image are a matrix [images, classes] of 0, 1 and -1 (unknown)"
    if values.dtype.kind not in "iubf":
        raise UserError(f"{where} labels have shape {list(values.shape)} of {values.dtype}: {form}, or lists of names")
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), UNKNOWN, values)
    wrong = ~np.isin(values, (0, 1, UNKNOWN))
    if wrong.any():
        raise UserError(f"{where} labels have shape {list(values.shape)} and the value {values[wrong][0]:g}: {form}")
    return values.astype(np.int8)


def several(labels: NDArray[Any]) -> bool:
    """Whether images have several labels each, by what `placed` gives or `label_values`."""
    return labels.ndim == 2 or labels.dtype == object


def placed(values: Given, names: Sequence[str], classes: Given | None, where: str) -> Labels:
    """Labels as jaxtrain has them, by what `classes_of` found in the training labels. Raises UserError for others."""
    if classes is not None:
        if several(values):
            raise UserError(f"{where} labels are several per image, the training labels one")
        return class_indices(values, classes, where)
    if values.ndim == 2:
        if values.shape[1] != len(names):
            raise UserError(f"{where} labels have {values.shape[1]} columns, the training labels {len(names)}")
        return values
    if values.dtype.kind == "U":
        values = np.fromiter(((name,) for name in values.tolist()), object, len(values))
    if values.dtype != object:
        raise UserError(f"{where} labels are one number per image, the training labels several")
    place = {name: column for column, name in enumerate(names)}
    matrix = np.zeros((len(values), len(names)), np.int8)
    for row, given in enumerate(values):
        for name in given:
            if name not in place:
                raise UserError(f"{where} label '{name}' is none of the {len(names)} labels: {nearest(name, names)}")
            matrix[row, place[name]] = 1
    return matrix


def class_indices(values: NDArray[Any], classes: NDArray[Any], where: str) -> Labels:
    """Place of each label in `classes`: `int32[images]`."""
    if (values.dtype.kind == "U") != (classes.dtype.kind == "U"):
        raise UserError(f"{where} labels are {values.dtype}, the training labels {classes.dtype}")
    order = np.argsort(classes, kind="stable")
    places = np.searchsorted(classes, values, sorter=order).clip(max=len(classes) - 1)
    indices = order[places].astype(np.int32)
    unknown = classes[indices] != values
    if unknown.any():
        value = str(values[unknown.argmax()])
        raise UserError(
            f"{where} label '{value}' is none of the {len(classes)} classes: {nearest(value, map(str, classes))}"
        )
    return indices


def classes_of(
    values: Given, names: Sequence[str] | None, where: str, task: str = "auto"
) -> tuple[tuple[str, ...], Given | None]:
    """Names of the classes, and what each was given as, in their order: `[classes]`; None: several labels per image.

    With `names`, integers are places among them and columns have them; without, the values that occur, sorted, are the
    classes. Raises UserError where a name occurs twice, and where `task` (`data.task`) is another one.
    """
    classes: Given | None = None
    if several(values):
        _check_several(values, names, where, task)
        if names is None and values.ndim == 2:
            names = [str(column) for column in range(values.shape[1])]
        names = names or sorted({name for given in values for name in given})
    elif task == "multilabel":
        raise UserError(
            f"data.task multilabel: {where} labels are one per image; several are lists of names, or a matrix "
            "[images, classes] of 0 and 1"
        )
    elif names is None:
        classes = np.unique(values)
    else:
        classes = np.array(names) if values.dtype.kind == "U" else np.arange(len(names))
    names = tuple(map(str, classes)) if names is None and classes is not None else tuple(names or ())
    if len(set(names)) < len(names):
        raise UserError(f"{where} class_names holds a name twice: {', '.join(names)}")
    return names, classes


def _check_several(values: Given, names: Sequence[str] | None, where: str, task: str) -> None:
    """UserError where several labels per image are not what is meant, or not what class names say."""
    if task == "multiclass":
        raise UserError(f"data.task multiclass: {where} labels are several per image, must be [images]")
    if values.ndim != 2:
        return
    if task == "auto" and (values.sum(axis=1) == 1).all() and (values >= 0).all():
        raise UserError(
            f"{where} labels have shape {list(values.shape)}, and every row is one-hot: give labels.argmax(1), or "
            "data.task multilabel if images may have several labels"
        )
    if names is not None and len(names) != values.shape[1]:
        raise UserError(f"{where} class_names are {len(names)}, the labels have {values.shape[1]} columns")


def given_as(classes: Given | None) -> tuple[int, ...] | tuple[str, ...] | None:
    """`Dataset.classes` of what `classes_of` found: None where labels are places already, or columns."""
    if classes is None:
        return None
    places = classes.dtype.kind != "U" and np.array_equal(classes, np.arange(len(classes)))
    return None if places else tuple(classes.tolist())


def image_weights(given: ArrayLike, count: int, where: str) -> NDArray[np.float32]:
    """Checked weights of images with a mean of 1: `float32[images]`."""
    weights = np.asarray(given, np.float32)
    if weights.shape != (count,) or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        raise UserError(f"{where} must be {count} numbers of at least 0, not all 0, one for each image")
    return weights * (count / weights.sum(dtype=np.float64)).astype(np.float32)


def encode_labels(
    labels: ArrayLike,
    class_names: Sequence[str],
    count: int,
    classes: Sequence[int] | Sequence[str] | None = None,
    *,
    multilabel: bool = False,
) -> Labels:
    """Labels as jaxtrain has them: strings are looked up, integers are places already, a matrix is as it is.

    classes: what integers stand for each class, where they are not places.
    """
    values = label_values(labels, "the", count)
    if multilabel:
        return placed(values, class_names, None, "the")
    numbers = np.arange(len(class_names)) if classes is None or isinstance(classes[0], str) else np.asarray(classes)
    return placed(values, class_names, np.array(class_names) if values.dtype.kind == "U" else numbers, "the")
