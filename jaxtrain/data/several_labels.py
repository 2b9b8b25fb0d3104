"""Several labels per image in a table: a column for each label, lists of names, or names parted by |."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.base import Labels
from jaxtrain.data.labels import Given, classes_of, label_values, placed
from jaxtrain.errors import UserError, nearest

_log = logging.getLogger(__name__)
_SEPARATOR = "|"
_WORDS = {"true": 1, "false": 0, "yes": 1, "no": 0}


def columns_of_labels(table: Any, names: Sequence[str], where: str) -> Given:
    """`int8[rows, labels]` of columns of 0, 1 and -1; what is empty is unknown. Raises UserError for anything else."""
    if len(set(names)) < len(names) or len(names) < 2:
        raise UserError(f"data.columns.labels: two columns or more, each once, not {' '.join(names)}")
    found = []
    for name in names:
        if name not in table.column_names:
            known = nearest(name, table.column_names)
            raise UserError(f"data.columns.labels: {where} has no column '{name}': {known}")
        found.append([_number(value, f"{where}: row {i + 1}, '{name}'") for i, value in enumerate(_list(table, name))])
    return label_values(np.array(found, np.float64).T, where, table.num_rows)


def names_in(table: Any, column: str, class_names: tuple[str, ...] | None, *, split: bool) -> Given | None:
    """Names of each row's labels as tuples, None where it has no list, `object[rows]`; None for one label per row.

    split: texts are parted at |. Numbers are places among `class_names` where there are any.
    """
    import pyarrow as pa

    kind = table.column(column).type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists and not (split and (pa.types.is_string(kind) or pa.types.is_large_string(kind))):
        return None
    rows = np.empty(table.num_rows, object)
    for place, value in enumerate(_list(table, column)):
        if value is None:
            continue
        parts = value if lists else [part.strip() for part in value.split(_SEPARATOR)]
        known = class_names if class_names and all(isinstance(part, int) for part in parts) else None
        rows[place] = tuple(sorted({known[part] if known else str(part) for part in parts if part != ""}))
    return rows


def place_several(
    values: Given, splits: Mapping[str, NDArray[np.int64]], names: Sequence[str] | None, where: str, task: str
) -> tuple[tuple[str, ...], dict[str, Labels]]:
    """Names of the labels, and each split's matrix.

    A test split without any label is left out, and said so. Raises UserError for other rows without, unless any label
    of an image is to be right (any_of), and for labels that no training image has.
    """
    lacking: NDArray[np.bool_] = np.array([row is None for row in values])
    if values.ndim == 2:
        lacking = np.all(values < 0, axis=1)
    splits = dict(splits)
    if "test" in splits and lacking[splits["test"]].all():
        _log.warning("%s: the test images have no labels: there is no test set", where)
        del splits["test"]
    for name, places in splits.items():
        if values.ndim != 2 and lacking[places].any() and task != "any_of":
            rows = places[lacking[places]]
            raise UserError(f"{where} {name}: {len(rows)} rows have no labels, the first: {rows[0] + 1}")
    for place in np.flatnonzero(lacking) if values.ndim != 2 else ():
        values[place] = ()
    found, _ = classes_of(values[splits["train"]], names, where, task)
    return found, {name: placed(values[places], found, None, f"{where} {name}") for name, places in splits.items()}


def _list(table: Any, column: str) -> list[Any]:
    values: list[Any] = table.column(column).to_pylist()
    return values


def _number(value: Any, where: str) -> float:
    """0, 1 or -1; NaN of what is empty."""
    if value is None or value == "":
        return float("nan")
    try:
        return float(_WORDS.get(value.lower(), value) if isinstance(value, str) else value)
    except (ValueError, TypeError):
        raise UserError(f"{where}: {value!r} must be 0, 1, or empty where that is unknown") from None
