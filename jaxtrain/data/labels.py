"""Labels as people give them (names or numbers), and as places among the classes; weights of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxtrain.data.base import Labels
from jaxtrain.errors import UserError, nearest

Given = NDArray[Any]
"""Labels as given: `[images]` of integers or strings."""


def label_values(labels: ArrayLike, where: str, count: int) -> NDArray[Any]:
    """Checked labels as given: `[images]` of integers or strings."""
    values = np.asarray(labels)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.dtype == object and all(isinstance(value, str) for value in values.flat):
        values = values.astype(str)
    if values.ndim != 1:
        raise UserError(f"{where} labels have shape {list(values.shape)}, must be [images]{_why_a_matrix(values)}")
    if len(values) != count:
        raise UserError(f"{where} has {count} images and {len(values)} labels")
    if values.dtype.kind == "f":
        if np.isnan(values).any():
            raise UserError(f"{where} label {int(np.isnan(values).argmax())} is NaN")
        whole = bool((values == np.floor(values)).all())
        hint = (
            "labels.astype(int)" if whole else "numbers with fractions are no classes, and regression is not supported"
        )
        raise UserError(f"{where} labels are {values.dtype}, must be integers or strings: {hint}")
    if values.dtype.kind not in "iubU":
        raise UserError(f"{where} labels are {values.dtype}, must be integers or strings")
    if values.dtype.kind == "i" and (values < 0).any():
        place = int((values < 0).argmax())
        raise UserError(f"{where} label {place} is {values[place]}: labels must not be negative")
    return values


def _why_a_matrix(values: NDArray[Any]) -> str:
    """What to do about labels in rows, where that is known."""
    if values.ndim != 2 or values.dtype.kind not in "iubf" or not np.isin(values, (0, 1)).all():
        return ""
    if (values.sum(axis=1) == 1).all():
        return ": labels.argmax(1), for the rows are one-hot"
    return ": some rows name several classes or none, and multi-label classification is not supported yet"


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


def classes_of(values: Given, names: Sequence[str] | None, where: str) -> tuple[tuple[str, ...], Given]:
    """Names of the classes, and what each was given as, in their order: `[classes]`.

    With `names`, integers are places among them; without, the values that occur, sorted, are the classes. Raises
    UserError where a name occurs twice.
    """
    if names is None:
        classes = np.unique(values)
    else:
        classes = np.array(names) if values.dtype.kind == "U" else np.arange(len(names))
    names = tuple(names or map(str, classes))
    if len(set(names)) < len(names):
        raise UserError(f"{where} class_names holds a name twice: {', '.join(names)}")
    return names, classes


def given_as(classes: Given) -> tuple[int, ...] | tuple[str, ...] | None:
    """`Dataset.classes` of what `classes_of` found: None where labels are places already."""
    places = classes.dtype.kind != "U" and np.array_equal(classes, np.arange(len(classes)))
    return None if places else tuple(classes.tolist())


def image_weights(given: ArrayLike, count: int, where: str) -> NDArray[np.float32]:
    """Checked weights of images with a mean of 1: `float32[images]`."""
    weights = np.asarray(given, np.float32)
    if weights.shape != (count,) or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        raise UserError(f"{where} must be {count} numbers of at least 0, not all 0, one for each image")
    return weights * (count / weights.sum(dtype=np.float64)).astype(np.float32)


def encode_labels(
    labels: ArrayLike, class_names: Sequence[str], count: int, classes: Sequence[int] | Sequence[str] | None = None
) -> Labels:
    """Labels as places in `class_names`, `int32[images]`: strings are looked up, integers are places already.

    classes: what integers stand for each class, where they are not places.
    """
    values = label_values(labels, "the", count)
    numbers = np.arange(len(class_names)) if classes is None or isinstance(classes[0], str) else np.asarray(classes)
    names = np.array(class_names) if values.dtype.kind == "U" else numbers
    return class_indices(values, names, "the")
