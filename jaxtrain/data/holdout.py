"""What is held out of the training images: drawn splits and folds, none of which cuts a group."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxtrain.config import DataConfig
from jaxtrain.data.base import ImageSource, Labels
from jaxtrain.data.splits import Indices, grouped_split, stratified_split
from jaxtrain.errors import UserError, nearest

NOTHING_HELD_OUT = {"val_fraction": 0.0, "test_fraction": 0.0, "folds": None, "fold": None}
"""Options of a data set in whose training images are all that its source has."""
GROUPS = "groups"
"""The value of `data.group` where groups were given to `fit`."""
_USUAL_GROUPS = frozenset(
    f"{what}{end}" for what in ("group", "patient", "subject", "case") for end in ("", "_id", "id")
)
_SHOWN = 5
_log = logging.getLogger(__name__)


def hold_out(
    train: ImageSource, option: str, config: DataConfig, class_names: Sequence[str]
) -> tuple[ImageSource, ImageSource]:
    """The images that remain for training, and the share that the option says. UserError where one has none."""
    fraction, groups = getattr(config, option), groups_of(train, config)
    if groups is None:
        kept, held = stratified_split(train.labels, fraction, config.split_seed)
    else:
        _one_label_each(train, "group")
        kept, held = grouped_split(train.labels, groups, fraction, config.split_seed)
    if not len(kept) or not len(held):
        raise UserError(
            f"data.{option} {fraction} of {len(train)} training images leaves {len(kept)} to train on and "
            f"{len(held)} held out" + ("" if groups is None else f", as {groups.max() + 1} groups are not cut")
        )
    if groups is not None and len(lacking := np.setdiff1d(train.labels, train.labels[held])):
        names = ", ".join(class_names[place] for place in lacking[:_SHOWN])
        _log.warning(
            "data.%s: no images of %d classes are held out, as groups are not cut: %s", option, len(lacking), names
        )
    _hint(train, option, config)
    return train.select(kept), train.select(held)


def _one_label_each(train: ImageSource, option: str) -> None:
    if train.labels.ndim == 2:
        raise UserError(f"data.{option}: for one class per image, and these images have several labels")


def hold_out_fold(
    train: ImageSource, config: DataConfig, class_names: Sequence[str]
) -> tuple[ImageSource, ImageSource]:
    """The images that remain for training, and those of fold number `data.fold`."""
    if config.fold is None:
        raise UserError(
            f"data.folds {config.folds} is trained by a sweep whose base has it (`jaxtrain sweep`); a single run tests "
            f"on one of them: data.fold, 0 to {config.folds - 1 if config.folds else 0}"
        )
    numbers = fold_numbers(train, config, class_names)
    _hint(train, "folds", config)
    return train.select(np.flatnonzero(numbers != config.fold)), train.select(np.flatnonzero(numbers == config.fold))


def fold_numbers(train: ImageSource, config: DataConfig, class_names: Sequence[str]) -> Indices:
    """The fold of each image, stratified and seeded: `int64[images]`. UserError where a class is too small."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    _one_label_each(train, "folds")
    labels, groups, count = train.labels, groups_of(train, config), config.folds or 0
    units = len(labels) if groups is None else int(groups.max()) + 1
    most = int(np.bincount(labels).max())
    if min(units, most) < count:
        raise UserError(
            f"data.folds {count}: there are {units} {'images' if groups is None else 'groups'}, and at most "
            f"{most} images per class: ask for fewer folds"
        )
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    numbers = np.empty(len(labels), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # classes with fewer images than folds
        parts = kind(count, shuffle=True, random_state=config.split_seed).split(labels, labels, groups)
        for number, (_, held) in enumerate(parts):
            numbers[held] = number
    table = _counts(numbers, labels, count, len(class_names))
    if (table.sum(axis=1) == 0).any():
        raise UserError(f"data.folds {count}: the groups are too large for that many folds: ask for fewer")
    if len(alone := np.flatnonzero((table == table.sum(axis=0)).any(axis=0) & (table.sum(axis=0) > 0))):
        names = ", ".join(class_names[place] for place in alone[:_SHOWN])
        raise UserError(
            f"data.folds {count}: classes that would be in one fold only, and not be trained there: {names}"
        )
    return numbers


def groups_of(source: ImageSource, config: DataConfig) -> Indices | None:
    """A number for the group of each image, from 0 on: `int64[images]`; None without `data.group`."""
    if config.group is None:
        return None
    columns = getattr(source, "metadata", {})
    if config.group not in columns:
        known = nearest(config.group, columns) if columns else "it has no columns besides image and label"
        raise UserError(f"data.group: {config.name} has no column '{config.group}': {known}")
    return np.unique(columns[config.group].astype(str), return_inverse=True)[1].astype(np.int64)


def column_of_groups(groups: ArrayLike | None, images: int, config: DataConfig) -> dict[str, NDArray[Any]]:
    """What was given to `fit` as `groups`, as `{name: object[images]}`; empty for None. UserError where some lack."""
    if groups is None:
        return {}
    values = np.asarray(groups, object)
    if values.shape != (images,):
        raise UserError(f"groups: {images} training images need one group each, not shape {list(values.shape)}")
    if any(value is None or value != value for value in values.tolist()):
        raise UserError("groups: some are missing (None or NaN): each image needs one")
    return {config.group or GROUPS: np.array([str(value) for value in values.tolist()], object)}


def warn_of_shared_groups(sources: Mapping[str, ImageSource], config: DataConfig) -> None:
    """Says how many groups are in two of the splits that the source itself has, and how many images they are."""
    if config.group is None:
        return
    columns = {name: getattr(source, "metadata", {}).get(config.group, []) for name, source in sources.items()}
    for one, other in combinations(columns, 2):
        there = np.isin(np.asarray(columns[other], str), np.asarray(columns[one], str))
        if there.any():
            groups = set(np.asarray(columns[other], str)[there].tolist())
            _log.warning(
                "%s: %d of %d groups (%s) of the split %s are in %s too, with %d of its %d images: figures on it are "
                "too good",
                config.name,
                len(groups),
                len(set(columns[other])),
                config.group,
                other,
                one,
                int(there.sum()),
                len(there),
            )


def _hint(train: ImageSource, option: str, config: DataConfig) -> None:
    """Says so where a column looks like one of groups that are cut."""
    if config.group is None:
        for name in getattr(train, "metadata", {}):
            if name.lower().replace(" ", "_") in _USUAL_GROUPS:
                _log.warning(
                    "data.%s may put images of one %s on both sides: data.group %s prevents it", option, name, name
                )


def _counts(numbers: Indices, labels: Labels, folds: int, classes: int) -> Indices:
    """Images of each fold and class: `int64[folds, classes]`."""
    return np.bincount(numbers * classes + labels, minlength=folds * classes).reshape(folds, classes)
