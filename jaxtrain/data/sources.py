"""One way to name a data set: `load_dataset` reads what `data.name` says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from jaxtrain.config import ColumnsConfig, DataConfig
from jaxtrain.data.arrays import digits_dataset, npz_dataset
from jaxtrain.data.base import Dataset
from jaxtrain.data.elpv import elpv_dataset
from jaxtrain.data.folder import folder_dataset
from jaxtrain.data.hf_source import hf_dataset
from jaxtrain.data.idx import idx_dataset
from jaxtrain.data.known import KNOWN
from jaxtrain.data.manifest import manifest_dataset
from jaxtrain.data.tar_source import tar_dataset
from jaxtrain.data.tfds_source import tfds_dataset
from jaxtrain.errors import UserError, nearest

ARRAYS = "arrays"
"""The name in the config of a run on arrays that were given in Python."""
_TABLES = ("csv", "jsonl", "parquet")
_WITH_COLUMNS = (*_TABLES, "wds", "hf", ARRAYS)
_SCHEMES: dict[str, Callable[[DataConfig, str], Dataset]] = {
    "folder": folder_dataset,
    **{kind: partial(manifest_dataset, kind) for kind in _TABLES},
    "idx": idx_dataset,
    "npz": npz_dataset,
    "tfds": tfds_dataset,
    "wds": tar_dataset,
    "hf": hf_dataset,
    "elpv": elpv_dataset,
}
_FORMS = (
    *("digits", "elpv:SPLIT", "folder:PATH", "csv:FILE", "jsonl:FILE", "parquet:FILE", "idx:PATH", "npz:PATH"),
    *("tfds:NAME", "wds:PATTERN", "hf:NAME"),
)


def load_dataset(config: DataConfig) -> Dataset:
    """The data set that `config.name` names: training and validation images; the test set is not read.

    Which images are in which split depends on the data and on `split_seed`, `val_fraction` and
    `max_train_images` alone.

    Raises `UserError` for names, paths and files that are not what they should be, `RunError` for damaged
    data.
    """
    scheme, colon, rest = config.name.partition(":")
    if config.dir is not None and scheme in {"digits", *_SCHEMES} - {"tfds"}:
        raise UserError(f"data.dir is an option of tfds:NAME, not of {config.name}")
    if config.columns != ColumnsConfig() and scheme not in _WITH_COLUMNS:
        raise UserError(f"data.columns: an option of {', '.join(_WITH_COLUMNS)}, not of {config.name}")
    if config.value_range is not None and scheme not in ("npz", "hf", ARRAYS):
        raise UserError(f"data.value_range: an option of npz, hf and arrays given to fit(), not of {config.name}")
    if config.name == "digits":
        return digits_dataset(config)
    if config.name == ARRAYS:
        raise UserError(
            "data.name: arrays: the images were given to fit() in Python and are in no file; call fit() with them, or "
            "name a data set"
        )
    if config.name == "elpv":
        return elpv_dataset(config, "")
    if not colon or scheme not in _SCHEMES:
        raise UserError(f"data.name: unknown data set '{config.name}': {_suggestion(config.name)}")
    if not rest:
        raise UserError(f"data.name: '{config.name}' names nothing: write {_form(scheme)}")
    if config.columns.labels is not None and scheme not in _TABLES:
        raise UserError(f"data.columns.labels: an option of {', '.join(_TABLES)}, not of {config.name}")
    dataset = _SCHEMES[scheme](config, rest)
    if config.task == "multilabel" and not dataset.multilabel:
        raise UserError(f"data.task multilabel: the labels of {config.name} are one class per image")
    return dataset


def _suggestion(name: str) -> str:
    scheme, colon, _ = name.partition(":")
    if colon:
        return nearest(f"{scheme}:", [f"{known}:" for known in _SCHEMES])
    if name.lower() in KNOWN and name.lower() != "digits":
        return f"did you mean 'tfds:{name.lower()}'?"
    path = Path(name).expanduser()
    if path.is_dir():
        return f"did you mean 'folder:{name}'?"
    if path.suffix[1:] in ("npz", *_TABLES):
        return f"did you mean '{path.suffix[1:]}:{name}'?"
    return nearest(name, _FORMS)


def _form(scheme: str) -> str:
    return next(form for form in _FORMS if form.startswith(scheme))
