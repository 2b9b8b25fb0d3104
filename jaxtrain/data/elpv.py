"""`elpv` and `elpv:SPLIT`: 2,624 solar cells, electroluminescence images of 300x300, sound or defective.

Buerhop-Lukic et al. 2018; Deitsch et al. 2019 (arXiv 1807.02894). Each has a defect probability of 0, 1/3, 2/3 or 1;
it counts as defective from 1/2 on. A quarter of the cells is the test set, stratified by probability and module type
(mono- or polycrystalline), drawn with the split's number as seed. The images come with the package `elpv-dataset` and
may be used non-commercially (CC BY-NC-SA 4.0).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from jaxtrain.config import DataConfig
from jaxtrain.data.assemble import assemble
from jaxtrain.data.base import Dataset, FileSource
from jaxtrain.data.known import ELPV
from jaxtrain.errors import RunError, UserError

CLASS_NAMES = ("sound", "defective")
_TEST_SHARE = 0.25


def elpv_dataset(config: DataConfig, split: str) -> Dataset:
    """The data set with the test set of the given split (a number; "" is 0).

    Raises UserError where the package is not installed or the split is not a number, RunError for a damaged package.
    """
    from sklearn.model_selection import train_test_split

    if not (split or "0").isdecimal():
        raise UserError(f"data.name: 'elpv:{split}': the split must be a number, as in elpv:0")
    table = _table()
    labels = (table["probability"] >= 0.5).astype(np.int32)
    groups = [f"{row['probability']:.2f} {row['type']}" for row in table]
    places = np.arange(len(table))
    rest, test = train_test_split(places, test_size=_TEST_SHARE, stratify=groups, random_state=int(split or 0))
    root = _root()
    paths = [root / str(name) for name in table["path"]]

    def part(indices: np.ndarray) -> FileSource:  # type: ignore[type-arg]
        known = {"module type": table["type"][indices], "defect probability": table["probability"][indices].round(2)}
        return FileSource([paths[i] for i in indices], labels[indices], known)

    return assemble(
        config,
        name=f"elpv-{int(split or 0)}",
        class_names=CLASS_NAMES,
        train=part(np.sort(rest)),
        val=None,
        open_test=lambda: part(np.sort(test)),
        natural_channels=1,
        uniform_size=(300, 300),
        known=ELPV,
    )


def _root() -> Path:
    spec = find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise UserError('data.name: elpv needs the package elpv-dataset: pip install -e ".[elpv]"')
    return Path(spec.origin).parent / "data"


def _table() -> np.ndarray:  # type: ignore[type-arg]
    path = _root() / "labels.csv"
    columns = [("path", "U40"), ("probability", "f8"), ("type", "U8")]
    try:
        return np.loadtxt(path, dtype=columns)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: {error}; reinstall elpv-dataset") from error
