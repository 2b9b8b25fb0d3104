"""Images that come as arrays: passed in Python, from an npz file, and scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxtrain.archives import Npz, open_npz
from jaxtrain.config import DataConfig
from jaxtrain.data.assemble import assemble, convert_channels
from jaxtrain.data.base import ArraySource, Dataset, Images, ImageSource, Labels
from jaxtrain.data.known import KNOWN, Known
from jaxtrain.data.paths import existing
from jaxtrain.data.splits import stratified_split
from jaxtrain.errors import UserError, nearest

Pair = tuple[ArrayLike, ArrayLike]

# Keras's names and MedMNIST's.
_NPZ_KEYS = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels")),
    "val": (("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}


def from_arrays(
    images: ArrayLike,
    labels: ArrayLike,
    *,
    validation: Pair | None = None,
    test: Pair | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
    config: DataConfig | None = None,
    sample_weight: ArrayLike | None = None,
) -> Dataset:
    """A data set from arrays; nothing is copied but what a split takes.

    `images` is `uint8[images, height, width]` or `uint8[images, height, width, 1, 3 or 4]`, also a
    memory-mapped one. `labels` is `[images]`: strings or integers. With `class_names`, integers are places in
    it; without, the values that occur, sorted, are the classes (so 0..k-1 stay as they are). `validation` and
    `test` are pairs (images, labels); without `validation`, `config.val_fraction` of the training images is
    held out. `sample_weight` is `float[images]`: how much each image counts in training.

    Raises `UserError` for other dtypes and shapes, labels that are missing, negative, NaN or unknown, and for
    fewer than two classes.
    """
    known = Known(class_names=tuple(class_names) if class_names is not None else None)
    return arrays_dataset(
        config or DataConfig(),
        name=name,
        known=known,
        train=(images, labels),
        val=validation,
        open_test=None if test is None else lambda: test,
        sample_weight=sample_weight,
    )


def arrays_dataset(
    config: DataConfig,
    *,
    name: str,
    known: Known,
    train: Pair,
    val: Pair | None,
    open_test: Callable[[], Pair] | None,
    sample_weight: ArrayLike | None = None,
) -> Dataset:
    """Arrays of any origin, checked; `open_test` is called when the test set is opened."""
    images = _images(train[0], f"{name} train")
    values = _label_values(train[1], f"{name} train", len(images))
    if known.class_names is None:
        classes = np.unique(values)
    elif values.dtype.kind == "U":
        classes = np.array(known.class_names)
    else:
        classes = np.arange(len(known.class_names))
    names = known.class_names or tuple(str(value) for value in classes)
    if len(set(names)) < len(names):
        raise UserError(f"{name} class_names holds a name twice: {', '.join(names)}")

    def source(pair: Pair, split: str) -> ImageSource:
        where = f"{name} {split}"
        pixels = _images(pair[0], where)
        if pixels.shape[1:3] != images.shape[1:3]:
            raise UserError(f"{where} images are {_size(pixels)}, the training images {_size(images)}")
        indices = _class_indices(_label_values(pair[1], where, len(pixels)), classes, where)
        return ArraySource(pixels, indices, where)

    labels, where = _class_indices(values, classes, f"{name} train"), f"{name} train"
    weights = None if sample_weight is None else _weights(sample_weight, len(images))
    dataset = assemble(
        config,
        name=name,
        class_names=names,
        train=ArraySource(images, labels, where, weights=weights),
        val=None if val is None else source(val, "validation"),
        open_test=lambda: None if open_test is None else source(open_test(), "test"),
        natural_channels=1 if images.shape[-1] == 1 else 3,
        uniform_size=(images.shape[1], images.shape[2]),
        known=known,
    )
    places = values.dtype.kind != "U" and np.array_equal(classes, np.arange(len(classes)))
    return dataset if places else replace(dataset, classes=tuple(classes.tolist()))


def _weights(given: ArrayLike, count: int) -> NDArray[np.float32]:
    weights = np.asarray(given, np.float32)
    if weights.shape != (count,) or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        raise UserError(f"sample_weight must be {count} numbers of at least 0, not all 0, one for each image")
    return weights * (count / weights.sum(dtype=np.float64)).astype(np.float32)


def digits_dataset(config: DataConfig) -> Dataset:
    """scikit-learn's digits: 1,797 grey images of 8x8 (Alpaydin and Kaynak 1998, the test part of UCI's set).

    Values 0..16 are rescaled to 0..255 and rounded. The test set is always the same stratified fifth (360
    images), drawn with seed 0 whatever the options say.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    rest, test = stratified_split(bunch.target, 0.2, seed=0)
    return arrays_dataset(
        config,
        name="digits",
        known=KNOWN["digits"],
        train=(images[rest], bunch.target[rest]),
        val=None,
        open_test=lambda: (images[test], bunch.target[test]),
    )


def npz_dataset(config: DataConfig, text: str) -> Dataset:
    """`npz:PATH`: x_train, y_train[, x_val, y_val][, x_test, y_test][, class_names], or MedMNIST's names."""
    path = existing(text, "npz")
    with _open(path) as file:
        keys = {split: _pair_keys(tuple(file), split, path) for split in _NPZ_KEYS}
        if keys["train"] is None:
            raise UserError(
                f"npz:{path} needs x_train and y_train (or train_images and train_labels); "
                f"it holds: {', '.join(file) or 'nothing'}"
            )
        train, val = _read_pair(file, keys["train"]), _read_pair(file, keys["val"])
        names = file.get("class_names")
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise UserError(f"npz:{path} class_names must be a list of strings, is {names.dtype}{list(names.shape)}")
    assert train is not None

    def open_test() -> Pair:
        with _open(path) as file:
            pair = _read_pair(file, keys["test"])
        assert pair is not None
        return pair

    return arrays_dataset(
        config,
        name=config.name,
        known=Known(class_names=None if names is None else tuple(map(str, names))),
        train=train,
        val=val,
        open_test=None if keys["test"] is None else open_test,
    )


def _open(path: Path) -> AbstractContextManager[Npz]:
    return open_npz(path, "npz file of images and labels", "write one with numpy.savez")


def _pair_keys(keys: Sequence[str], split: str, path: Path) -> tuple[str, str] | None:
    for images, labels in _NPZ_KEYS[split]:
        if images in keys or labels in keys:
            missing = labels if images in keys else images
            if missing not in keys:
                raise UserError(f"npz:{path} lacks {missing}; it holds: {', '.join(keys)}")
            return images, labels
    return None


def _read_pair(file: Npz, keys: tuple[str, str] | None) -> Pair | None:
    if keys is None:
        return None
    shapes = [file.header(key).shape for key in keys]
    if len({shape[:1] for shape in shapes}) > 1:
        raise ValueError(f"{keys[0]} has shape {list(shapes[0])}, {keys[1]} {list(shapes[1])}")
    return file[keys[0]], file[keys[1]]


def _images(images: ArrayLike, where: str) -> Images:
    """Checked, as `uint8[images, height, width, channels]`."""
    try:
        array = images if isinstance(images, np.ndarray) else np.asarray(images)
    except ValueError:
        raise UserError(f"{where} images have different shapes: stack images of one size") from None
    if array.dtype.kind in "UST" or (array.dtype == object and array.size and isinstance(array.flat[0], str | Path)):
        raise UserError(
            f"{where} images are given as file paths; give their pixels, uint8[images, height, width, channels], or "
            "name their folder: data.name=folder:PATH to train, `jaxtrain predict RUN_DIR IMAGE ...` to label them"
        )
    if array.dtype != np.uint8:
        seen = _range(array)
        values = f" in {seen[0]:g}..{seen[1]:g}" if seen else ""
        raise UserError(f"{where} images are {array.dtype}{values}, must be uint8: {_conversion(array)}")
    if not array.size:
        raise UserError(f"{where} images are empty: shape {list(array.shape)}")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4):
        hint = ""
        if array.ndim == 4 and array.shape[1] in (1, 3, 4):
            hint = ": numpy.moveaxis(images, 1, -1) puts the channels last"
        raise UserError(
            f"{where} images have shape {list(array.shape)}, must be [images, height, width] or "
            f"[images, height, width, 1, 3 or 4]{hint}"
        )
    return array


def _range(array: NDArray[Any]) -> tuple[float, float] | None:
    """Least and greatest number among the first thousand images."""
    if array.dtype.kind not in "iuf":
        return None
    part = array[:1000]
    part = part[np.isfinite(part)]
    return (part.min(), part.max()) if part.size else None


def _conversion(array: NDArray[Any]) -> str:
    """How to make it uint8, as Python."""
    if array.dtype.kind == "b":
        return "images.astype(numpy.uint8) * 255"
    if (seen := _range(array)) is None:
        return "pass an array of numbers"
    low, high = seen
    if array.dtype == np.uint16 and high > 255:
        return "(images // 257).astype(numpy.uint8) where 65535 is white"
    if low < 0 or high > 255 or np.isnan(array[:1000]).any():
        return "rescale to 0..255 first, then .round().astype(numpy.uint8)"
    if array.dtype.kind != "f":
        return "images.astype(numpy.uint8)"
    return ("(images * 255)" if high <= 1 else "images") + ".round().astype(numpy.uint8)"


def _label_values(labels: ArrayLike, where: str, count: int) -> NDArray[Any]:
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


def _class_indices(values: NDArray[Any], classes: NDArray[Any], where: str) -> Labels:
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


def _size(images: Images) -> str:
    return f"{images.shape[2]}x{images.shape[1]}"


def as_source(images: ArrayLike, *, channels: int) -> ArraySource:
    """Images to predict on, without labels (zeros stand in). Raises `UserError` as `from_arrays` does."""
    pixels = convert_channels(_images(images, "the"), channels)
    return ArraySource(pixels, np.zeros(len(pixels), np.int32), "given")


def encode_labels(
    labels: ArrayLike, class_names: Sequence[str], count: int, classes: Sequence[int] | Sequence[str] | None = None
) -> Labels:
    """Labels as places in `class_names`, `int32[images]`: strings are looked up, integers are places already.

    classes: what integers stand for each class, where they are not places.
    """
    values = _label_values(labels, "the", count)
    numbers = np.arange(len(class_names)) if classes is None or isinstance(classes[0], str) else np.asarray(classes)
    names = np.array(class_names) if values.dtype.kind == "U" else numbers
    return _class_indices(values, names, "the")
