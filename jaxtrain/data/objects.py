"""Data sets that are objects in Python: of Hugging Face, torch, Grain and tfds, lists of files or Pillow images."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.config import ColumnsConfig, DataConfig
from jaxtrain.data.arrays import as_pixels, from_arrays
from jaxtrain.data.assemble import assemble_splits
from jaxtrain.data.base import ArraySource, Dataset, FileSource, Images, ImageSource, Labels, picked, relabelled
from jaxtrain.data.decode import BadImageError, pillow_pixels
from jaxtrain.data.holdout import column_of_groups
from jaxtrain.data.labels import Given, classes_of, encode_labels, given_as, image_weights, label_values, placed
from jaxtrain.data.manifest import slices_by
from jaxtrain.data.remote import RemotePaths, checked, is_remote
from jaxtrain.data.remote_cache import Cache
from jaxtrain.data.scan import Header, Headers, collect, header_of_image, parallel, refuse_large
from jaxtrain.data.splits import SPLIT_NAMES
from jaxtrain.data.table import choose_columns, group_values
from jaxtrain.errors import UserError

_log = logging.getLogger(__name__)
_ENDLESS = 2**40
"""Grain's length of what repeats for ever is greater."""
_CACHE = "`jaxtrain.data.cache(images, FOLDER)` writes it to a folder once, whose data set is trained on"


@dataclass(frozen=True)
class ItemsSource:
    """Images that are the items of an indexed object, or one field of them."""

    items: Any
    field: Any
    """Key or place of the image in an item; None: the item is the image."""
    labels: Labels
    origin: str
    places: NDArray[np.int64]
    """Number of each image in `items`."""
    config: DataConfig
    """Says what numbers in arrays mean."""
    metadata: Mapping[str, NDArray[Any]] = dataclass_field(default_factory=dict)
    """As of `FileSource`."""
    weights: NDArray[np.float32] | None = None
    """As of `FileSource`."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes | Images:
        """An encoded file, or pixels."""
        return self.image_of(self.items[int(self.places[index])], index)

    def image_of(self, item: Any, index: int) -> bytes | Images:
        """The image in an item. Raises UserError where it is none, OSError where its file cannot be read."""
        image = item if self.field is None else item[self.field]
        return image_in(image, self.describe(index), self.config)

    def describe(self, index: int) -> str:
        """Its file, else its number."""
        place = int(self.places[index])
        item = self.items[place] if self.field is None and isinstance(self.items, list) else None
        path = item if isinstance(item, str | Path) else getattr(item, "filename", "")
        return os.fspath(path) if path else f"{self.origin} image {place}"

    def select(self, indices: NDArray[np.int64]) -> ItemsSource:
        """The same items, fewer or in another order."""
        return replace(self, places=self.places[indices], **picked(self, indices))


@dataclass(frozen=True)
class Split:
    """Images of one split, with all that the object itself says of them."""

    images: ImageSource
    headers: Headers | None
    """Where they were looked at."""
    values: Given | None
    """Labels as the object gives them."""
    class_names: tuple[str, ...] | None
    """Where integers are places among them."""


def is_object(images: Any) -> bool:
    """Whether images come as anything but an array of numbers, or lists that make one."""
    if isinstance(images, list | tuple):
        return bool(images) and (_is_file_or_picture(images[0]) or isinstance(images[0], Mapping))
    if hasattr(images, "__array__") and hasattr(images, "dtype"):  # of NumPy, JAX, torch or TensorFlow; a column
        kind = str(images.dtype)
        return kind in ("object", "str", "string") or kind.startswith("<U")
    return True


def objects_dataset(
    images: Any,
    labels: Any = None,
    *,
    validation: Any = None,
    test: Any = None,
    class_names: Sequence[str] | None = None,
    config: DataConfig,
    sample_weight: Any = None,
    groups: Any = None,
) -> Dataset:
    """The data set of what was given to `fit`.

    `images` are one array with `labels`, or an object that `open_split` knows, with its labels in it or given; a
    mapping of splits (as a `DatasetDict`) and a tfds builder hold validation and test images too. `validation` and
    `test` are pairs (images, labels), or such objects. `groups` is `[images]`, as `data.group`. Raises `UserError` for
    what is not a labelled image.
    """
    parts: dict[str, Any] = {"train": (images, labels), "val": validation, "test": test}
    parts = {name: part for name, part in parts.items() if part is not None}
    if (found := _splits_of(images)) is not None:
        if labels is not None:
            raise UserError("labels were given besides splits that hold their own")
        parts = {**found, **{name: part for name, part in parts.items() if name != "train"}}
    pairs: dict[str, Any] = {name: part if _is_pair(part) else (part, None) for name, part in parts.items()}
    if not any(is_object(pair[0]) for pair in pairs.values()):
        if (lacking := next((name for name, pair in pairs.items() if pair[1] is None), None)) is not None:
            raise UserError(f"{lacking} images were given without labels")
        return from_arrays(
            *pairs["train"],
            validation=pairs.get("val"),
            test=pairs.get("test"),
            class_names=class_names,
            config=config,
            sample_weight=sample_weight,
            groups=groups,
        )
    splits = {name: open_split(*pair, where=name, config=config) for name, pair in pairs.items()}
    return joined(splits, config, class_names, sample_weight, groups)


def joined(
    splits: Mapping[str, Split],
    config: DataConfig,
    class_names: Sequence[str] | None = None,
    sample_weight: Any = None,
    groups: Any = None,
) -> Dataset:
    """The data set of the splits train, val and test, of which the latter two may be missing.

    Raises UserError for missing and unknown labels, RunError for more unreadable images than allowed.
    """
    values: dict[str, Given] = {}
    if "test" in splits and splits["test"].values is None and splits["test"].class_names is not None:
        _log.warning("the test images have no labels: there is no test set")
        splits = {name: split for name, split in splits.items() if name != "test"}
    for name, split in splits.items():
        if split.values is None:
            raise UserError(f"{name} images were given without labels")
        values[name] = split.values
    names, classes = classes_of(values["train"], class_names or splits["train"].class_names, "train", config.task)
    sources: dict[str, ImageSource] = {}
    for name, split in splits.items():
        of_split = placed(values[name], names, classes, name)
        weights = None
        if name == "train" and sample_weight is not None:
            weights = image_weights(sample_weight, len(of_split), "sample_weight")
        columns = column_of_groups(groups if name == "train" else None, len(of_split), config)
        sources[name] = relabelled(split.images, of_split, weights, columns)
    headers = {name: split.headers for name, split in splits.items() if split.headers is not None}
    dataset = assemble_splits(config, names, sources, headers=headers)
    return replace(dataset, classes=given_as(classes))


def open_split(images: Any, labels: Any = None, *, where: str, config: DataConfig, labelled: bool = True) -> Split:
    """Images of any form, and their labels where these are given, or are in the object and asked for (`labelled`).

    Forms are: an `ImageSource`; a Hugging Face `Dataset`; an object with a length whose items are pairs (image, label)
    or mappings with such columns (map-style sets of torch, Grain's `MapDataset`, data sources of tfds); with `labels`
    also one whose items are images: a list or column of paths, Pillow images or arrays. An array is as it is.

    Raises `UserError` for what has no length or cannot be indexed, and for items that are not images.
    """
    if isinstance(images, Mapping):
        raise UserError(f"{where}: a mapping of {', '.join(map(str, images))} was given: give one of them")
    given = None if labels is None else label_values(labels, where, len(labels))
    if not is_object(images):
        pixels = as_pixels(images, where, config)
        split = Split(ArraySource(pixels, np.zeros(len(pixels), np.int32), where), None, given, None)
    elif isinstance(images, ImageSource):
        own = np.asarray(images.labels)
        split = Split(images, None, own if given is None else given, None)
    elif type(images).__module__.partition(".")[0] == "datasets" and hasattr(images, "features"):
        split = _hugging_face(images, labelled and given is None, where, config)
    else:
        split = _items(images, labelled and given is None, where, config)
    values = split.values if given is None else given
    if values is not None and len(values) != len(split.images):
        raise UserError(f"{where} has {len(split.images)} images and {len(values)} labels")
    return replace(split, values=values)


def _splits_of(images: Any) -> dict[str, Any] | None:
    """The splits in a mapping of them or a tfds builder, by our names; None for anything else."""
    if hasattr(images, "as_data_source") and hasattr(images, "info"):
        found = {name: images.as_data_source(name) for name in images.info.splits}
    elif isinstance(images, Mapping):
        found = dict(images)
    else:
        return None
    splits = {SPLIT_NAMES[name.lower()]: part for name, part in found.items() if str(name).lower() in SPLIT_NAMES}
    if "train" not in splits:
        raise UserError(f"fit: there is no split called train; the splits are {', '.join(map(str, found)) or 'none'}")
    return {name: (part, None) for name, part in splits.items()}


def _hugging_face(dataset: Any, labelled: bool, where: str, config: DataConfig) -> Split:
    """Images stay encoded until they are read; class names are those of a ClassLabel."""
    import datasets

    if not hasattr(dataset, "__len__"):
        raise UserError(f"{where}: a streaming data set has no length: load it with streaming=False, or {_CACHE}")
    features = dataset.features
    typed = {}
    for role, kind in (("image", "Image"), ("label", "ClassLabel")):
        found = [name for name, feature in features.items() if type(feature).__name__ == kind]
        typed[role] = getattr(config.columns, role) or (found[0] if len(found) == 1 else None)
    roles = ("image", "label") if labelled else ("image",)
    chosen = choose_columns(config.columns.model_copy(update=typed), list(features), where, roles)
    pictures = dataset.select_columns([chosen["image"]]).with_format(None)
    if type(features[chosen["image"]]).__name__ == "Image":
        pictures = pictures.cast_column(chosen["image"], datasets.Image(decode=False))
    source = _source(pictures, chosen["image"], where, config)
    plain = [n for n, f in features.items() if type(f).__name__ in ("Value", "ClassLabel") and n not in chosen.values()]
    table = dataset.select_columns(plain).with_format("arrow")[:]
    columns = {name: slices_by(table.column(name)) for name in plain}
    if config.group is not None:
        columns[config.group] = group_values(table, config.group, chosen, where)
    source = replace(source, metadata={name: values for name, values in columns.items() if values is not None})
    if not labelled:
        return Split(source, None, None, None)
    given, names = dataset.with_format(None)[chosen["label"]][:], getattr(features[chosen["label"]], "names", None)
    hidden = names is not None and set(given) == {-1}  # as in the test sets of competitions
    values = None if hidden else label_values(given, where, len(dataset))
    return Split(source, None, values, None if names is None else tuple(names))


def _items(items: Any, labelled: bool, where: str, config: DataConfig) -> Split:
    """Anything with a length and items by number; all are looked at once, for labels and sizes."""
    if hasattr(items, "tolist") and hasattr(items, "dtype"):  # a column of a table
        items = items.tolist()
    elif hasattr(items, "to_dict") and hasattr(items, "columns"):  # a table of pandas
        items = items.to_dict("records")
    kind = f"{type(items).__module__.partition('.')[0]}.{type(items).__qualname__}"
    try:
        count = len(items)
    except TypeError:
        count = None
    if count is None or not hasattr(items, "__getitem__"):
        raise UserError(f"{where}: {kind} cannot be read by number, as it has no length or no items: {_CACHE}")
    if not 0 < count < _ENDLESS:
        raise UserError(f"{where}: {kind} {'is empty' if not count else 'has no end: give it before repeat()'}")
    fields = fields_of(items[0], labelled, where, config.columns)
    source = _source(items, fields[0], where, config)
    if isinstance(source, FileSource):
        return Split(source, None, None, None)

    def look(index: int) -> tuple[Any, Header]:
        item = items[index]
        try:
            header: Header = header_of_image(source.image_of(item, index))
        except (OSError, BadImageError) as error:
            header = getattr(error, "strerror", None) or str(error)
        return None if fields[1] is None else item[fields[1]], header

    seen = parallel(look, count, workers=4)
    headers = refuse_large(collect([header for _, header in seen]), config.max_pixels)
    if fields[1] is None:
        return Split(source, headers, None, None)
    try:
        values = np.array([label.item() if hasattr(label, "item") else label for label, _ in seen])
    except ValueError:
        raise UserError(f"{where}: labels are not one name or number for each image") from None
    return Split(source, headers, label_values(values, where, count), None)


def fields_of(item: Any, labelled: bool, where: str, columns: ColumnsConfig) -> tuple[Any, Any]:
    """Keys or places of image and label in an item; None: the item is the image, or no label is asked for."""
    if isinstance(item, Mapping):
        chosen = choose_columns(columns, list(item), where, ("image", "label") if labelled else ("image",))
        return chosen["image"], chosen["label"] if labelled else None
    if isinstance(item, tuple | list) and len(item) >= 2:
        return 0, 1 if labelled else None
    if labelled and _is_file_or_picture(item):
        raise UserError(f"{where} images were given without labels")
    if labelled:
        what = type(item).__name__
        raise UserError(f"{where}: items are {what}, must be pairs (image, label) or mappings, or be given with labels")
    return None, None


def _source(items: Any, field: Any, where: str, config: DataConfig) -> FileSource | ItemsSource:
    if field is None and isinstance(items, list | tuple) and all(isinstance(item, str | Path) for item in items):
        names = [os.fspath(item).removeprefix("file://") for item in items]
        remote = [checked(name, where) for name in names if is_remote(name)]
        paths = RemotePaths(names, Cache.of(config.cache_gb)) if remote else names
        return FileSource(paths, np.zeros(len(names), np.int32))
    count, held = len(items), list(items) if isinstance(items, tuple) else items
    return ItemsSource(held, field, np.zeros(count, np.int32), where, np.arange(count), config)


def image_in(image: Any, where: str, config: DataConfig) -> bytes | Images:
    """An encoded image, or its pixels, of what stands for one: bytes, a path, a Pillow image, an array.

    Raises UserError for anything else, OSError where a file cannot be read.
    """
    if isinstance(image, Mapping):  # as Hugging Face keeps what is not decoded
        image = image.get("bytes") or image.get("path") or b""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if hasattr(image, "getbands"):
        return pillow_pixels(image)
    return as_pixels(np.asarray(image)[None], f"{where}:", config)[0]


def placed_labels(
    split: Split,
    class_names: Sequence[str],
    classes: Sequence[int] | Sequence[str] | None,
    *,
    multilabel: bool = False,
) -> Labels:
    """Labels of a split as a model has them, places among its classes or a matrix; by name where both have names.

    classes: as of `encode_labels`. Raises UserError where there are no labels, or unknown ones.
    """
    values = split.values
    if values is None:
        raise UserError("the images were given without labels")
    named = split.class_names is not None and values.dtype.kind in "iu" and values.ndim == 1
    if named and set(split.class_names or ()) <= set(class_names):
        values = np.array(split.class_names)[values]
    return encode_labels(values, class_names, len(values), classes, multilabel=multilabel)


def _is_pair(part: Any) -> bool:
    return isinstance(part, tuple | list) and len(part) == 2


def _is_file_or_picture(item: Any) -> bool:
    return isinstance(item, str | Path | bytes) or hasattr(item, "getbands")
