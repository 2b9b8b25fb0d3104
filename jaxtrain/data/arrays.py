"""Images that come as arrays: passed in Python, from an npz file, and scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxtrain.archives import Npz, open_npz
from jaxtrain.config import DataConfig
from jaxtrain.data.assemble import assemble, natural_channels
from jaxtrain.data.base import ArraySource, Dataset, Images, ImageSource
from jaxtrain.data.holdout import column_of_groups
from jaxtrain.data.known import KNOWN, Known
from jaxtrain.data.labels import classes_of, given_as, image_weights, label_values, placed
from jaxtrain.data.paths import existing
from jaxtrain.data.splits import stratified_split
from jaxtrain.errors import UserError

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
    groups: ArrayLike | None = None,
) -> Dataset:
    """A data set from arrays; nothing is copied but what a split takes.

    `images` is `uint8[images, height, width]` or `uint8[images, height, width, channels]` with up to 16 channels, also
    of uint16 and memory-mapped. `labels` is `[images]`: strings or integers. With `class_names`, integers are places in
    it; without, the values that occur, sorted, are the classes (so 0..k-1 stay as they are). Several labels per image
    are a matrix `[images, classes]` of 0, 1 and -1 (unknown), or lists of names. `validation` and
    `test` are pairs (images, labels); without `validation`, `config.val_fraction` of the training images is
    held out. `sample_weight` is `float[images]`: how much each image counts in training. `groups` is `[images]`: what
    belongs together, as `config.group`.

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
        groups=groups,
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
    groups: ArrayLike | None = None,
) -> Dataset:
    """Arrays of any origin, checked; `open_test` is called when the test set is opened."""
    images = as_pixels(train[0], f"{name} train", config)
    of_train = config.model_copy(update={"bits": 16 if images.dtype == np.uint16 else 8})
    values = label_values(train[1], f"{name} train", len(images))
    names, classes = classes_of(values, known.class_names, name, config.task)

    def source(pair: Pair, split: str) -> ImageSource:
        where = f"{name} {split}"
        pixels = as_pixels(pair[0], where, of_train)
        if pixels.shape[1:3] != images.shape[1:3]:
            raise UserError(f"{where} images are {_size(pixels)}, the training images {_size(images)}")
        labels = placed(label_values(pair[1], where, len(pixels)), names, classes, where)
        return ArraySource(pixels, labels, where)

    labels, where = placed(values, names, classes, f"{name} train"), f"{name} train"
    weights = None if sample_weight is None else image_weights(sample_weight, len(images), "sample_weight")
    columns = column_of_groups(groups, len(images), config)
    dataset = assemble(
        config,
        name=name,
        class_names=names,
        train=ArraySource(images, labels, where, weights=weights, metadata=columns),
        val=None if val is None else source(val, "validation"),
        open_test=lambda: None if open_test is None else source(open_test(), "test"),
        natural_channels=natural_channels(images.shape[-1], config.channels),
        uniform_size=(images.shape[1], images.shape[2]),
        known=known,
    )
    return replace(dataset, classes=given_as(classes))


def digits_dataset(config: DataConfig) -> Dataset:
    """scikit-learn's digits: 1,797 grey images of 8x8 (Alpaydin and Kaynak 1998, the test part of UCI's set).

    Values 0..16 are rescaled to 0..255 and rounded. The test set is always the same stratified fifth (360
    images), drawn with seed 0 whatever the options say.
    """
    values, labels = _digits()
    images = np.rint(values * (255 / 16)).astype(np.uint8)
    rest, test = stratified_split(labels, 0.2, seed=0)
    return arrays_dataset(
        config,
        name="digits",
        known=KNOWN["digits"],
        train=(images[rest], labels[rest]),
        val=None,
        open_test=lambda: (images[test], labels[test]),
    )


def _digits() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`int64[1797, 8, 8]` and `int64[1797]`, from scikit-learn's file: importing that library would take a second."""
    found = find_spec("sklearn")
    assert found is not None
    assert found.submodule_search_locations is not None
    file = Path(found.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    if file.is_file():
        rows = np.loadtxt(file, np.int64, delimiter=",")
        return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.int64), bunch.target


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


def as_pixels(images: ArrayLike, where: str, config: DataConfig) -> Images:
    """Checked, as `uint8[images, height, width, channels]`; other numbers are rescaled from `value_range`.

    As uint16 where `bits` says so, or is open and the array is.
    """
    try:
        array = images if isinstance(images, np.ndarray) else np.asarray(images)
    except ValueError:
        raise UserError(f"{where} images have different shapes: stack images of one size") from None
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where} images are {array.dtype}, must be uint8: pass an array of numbers")
    if not array.size:
        raise UserError(f"{where} images are empty: shape {list(array.shape)}")
    shape = array.shape if array.ndim != 3 else (*array.shape, 1)
    if hint := _why_no_images(shape, config.channels):
        raise UserError(
            f"{where} images have shape {list(array.shape)}, must be [images, height, width] or "
            f"[images, height, width, channels]{hint}"
        )
    bits = config.bits or (16 if array.dtype == np.uint16 and config.value_range is None else 8)
    kind = np.uint16 if bits == 16 else np.uint8
    if array.dtype == np.uint8 and bits == 16:
        array = array.astype(np.uint16) * np.uint16(257)
    elif array.dtype != kind or (config.value_range is not None and array.dtype != np.uint8):
        array = _rescaled(array, config.value_range, where, kind)
    return array.reshape(shape)


def _why_no_images(shape: tuple[int, ...], channels: int | None) -> str | None:
    """What is wrong with a shape; None where nothing is. Few channels, and many where they cannot be rows, are last."""
    if len(shape) != 4:
        return " of numbers"
    likely, most = (1, 3, 4), 16
    first = shape[1] in likely if shape[-1] in range(1, most + 1) else shape[1] <= most
    if shape[-1] in likely or channels == shape[-1] or (shape[-1] <= most and not first):
        return None
    advice = f"; where they are, give data.channels {shape[-1]}" if shape[-1] <= most else ""
    told = ", not [images, channels, height, width]: numpy.moveaxis(images, 1, -1) puts the channels last"
    return told + advice if first else f" with at most {most} channels"


def _rescaled(array: NDArray[Any], value_range: tuple[float, float] | None, where: str, kind: Any) -> Images:
    if value_range is None or array.dtype.kind == "b":
        seen = _range(array)
        values, declared = (f" in {seen[0]:g}..{seen[1]:g}", "; or declare data.value_range") if seen else ("", "")
        raise UserError(f"{where} images are {array.dtype}{values}, must be uint8: {_conversion(array)}{declared}")
    low, high = value_range
    pixels = np.empty(array.shape, kind)
    for start in range(0, len(array), 256):
        part = array[start : start + 256].astype(np.float32)
        if not ((part >= low) & (part <= high)).all():
            raise UserError(f"data.value_range {low:g} {high:g}: {where} images have {_outside(part, low, high)}")
        pixels[start : start + 256] = np.rint((part - low) * (np.iinfo(kind).max / (high - low)))
    return pixels


def _outside(values: NDArray[Any], low: float, high: float) -> str:
    """What of the values is not in the range."""
    wrong = values[~((values >= low) & (values <= high))]
    return "values that are not finite" if not np.isfinite(wrong).all() else f"the value {wrong[0]:g}"


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
    low, high = _range(array) or (np.nan, np.nan)
    if array.dtype == np.uint16 and high > 255:
        return "data.bits 16 keeps them, or (images // 257).astype(numpy.uint8) where 65535 is white"
    if not (low >= 0 and high <= 255) or np.isnan(array[:1000]).any():
        return "rescale to 0..255 first, then .round().astype(numpy.uint8)"
    if array.dtype.kind != "f":
        return "images.astype(numpy.uint8)"
    return ("(images * 255)" if high <= 1 else "images") + ".round().astype(numpy.uint8)"


def _size(images: Images) -> str:
    return f"{images.shape[2]}x{images.shape[1]}"
