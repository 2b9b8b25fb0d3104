"""Finished run directories: what they hold, and on which test set each was measured or can be."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, StrictStr

from jaxtrain.config import FREE_ON_RESUME, Config, DataConfig
from jaxtrain.config_io import load_config
from jaxtrain.data.base import Labels
from jaxtrain.data.digest import digest_of_test_set
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import DamagedError, JaxtrainError, RunError, UserError
from jaxtrain.evaluation.evaluate import OpenTestSet, open_test_set, order_of_classes
from jaxtrain.evaluation.folds import digest_of_all, open_all_folds
from jaxtrain.evaluation.predictions import Predictions
from jaxtrain.readers import read_json, reading
from jaxtrain.saved_model import SavedModel

STUDY_LOCK = "study.lock"
"""A file that the folder of every sweep has."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run directory."""

    path: Path
    config: Config
    summary: Mapping[str, Any]
    parts: tuple[Run, ...] = ()
    """In cross-validation the runs of all folds, in their order, which are one entry; the rest is the first one's."""

    @property
    def name(self) -> str:
        """Technique and folder."""
        return f"{self.technique}/{self.path.name.removesuffix('-f0') if self.parts else self.path.name}"

    @property
    def technique(self) -> str:
        """By which it was trained; `weights`: it was not, but is validated."""
        return str(self.summary.get("technique", self.config.technique))

    @property
    def digest(self) -> str:
        """Of the trained parameters."""
        return str(self.summary["params_sha256"])

    @property
    def recipe(self) -> str:
        """What runs share that differ in nothing but their seed."""
        return self._digest_without("seed", "data.fold")

    @property
    def sweep(self) -> Path | None:
        """The folder of the sweep that the run is part of."""
        folder = self.path.absolute().parent
        return folder if (folder / STUDY_LOCK).is_file() else None

    @property
    def program(self) -> str:
        """What runs share that predict with the same computation."""
        return self._digest_without("seed", "data.fold", "train", "optimizer", "schedule", "augment")

    def _digest_without(self, *options: str) -> str:
        free = [path for path in FREE_ON_RESUME if path.partition(".")[0] not in options]
        return hashlib.sha256(json.dumps(self.config.without((*free, *options)), sort_keys=True).encode()).hexdigest()


class _Summary(BaseModel):
    """What a comparison takes from `summary.json`; older ones lack the rest."""

    model_config = ConfigDict(allow_inf_nan=False)

    params_sha256: StrictStr
    model: StrictStr
    params: NonNegativeInt = 0
    trainable_params: NonNegativeInt = 0
    wall_seconds: NonNegativeFloat = 0.0
    images_per_second: NonNegativeFloat = 0.0
    images_seen: NonNegativeFloat = 0.0
    pretraining_seconds: NonNegativeFloat | None = None
    mlflow_run_id: StrictStr | None = None
    notes: tuple[StrictStr, ...] = ()


def finished_runs() -> list[Path]:
    """Directories of finished runs, `runs/TECHNIQUE/NAME`; UserError where there is none."""
    found = sorted(
        path.parent for path in Path("runs").glob("*/*/summary.json") if (path.parent / "config.yaml").is_file()
    )
    if not found:
        raise UserError("runs holds no finished run: train one, or give run directories")
    return found


def read_run(path: Path) -> Run:
    """Raises UserError where there is no finished run, and where its evaluations would be written somewhere else."""
    if (kept := path / "benchmark").is_symlink():
        raise DamagedError(f"{kept} is a link, which is not written through: put a folder there")
    try:
        summary = read_json(path / "summary.json", "summary of a run")
    except FileNotFoundError:
        why = "the run is not finished" if (path / "config.yaml").is_file() else "no run is there"
        raise UserError(f"{path}: {why}: {path / 'summary.json'} is missing") from None
    with reading(path / "summary.json", "summary of a run"):
        _Summary.model_validate(summary)
    return Run(path, load_config(path / "config.yaml"), summary)


def joined_folds(named: Sequence[tuple[str, Run]]) -> list[tuple[str, Run]]:
    """Runs by name, those of all folds of one cross-validation as one, under the name of the first.

    A sweep calls their folders NAME-f0, NAME-f1 and so on; their configs differ in what was measured of the training
    images. Where folds are missing, their runs stay what each is: a run with a test set of its own.
    """
    groups: dict[object, list[tuple[str, Run]]] = {}
    for name, run in named:
        data, (path, end) = run.config.data, (run.path.absolute(), f"-f{run.config.data.fold}")
        of_all = (
            path.with_name(path.name.removesuffix(end)),
            run.config.technique,
            data.name,
            data.split_seed,
            data.group,
        )
        groups.setdefault(of_all if path.name.endswith(end) else path, []).append((name, run))
    found = []
    for group in groups.values():
        group.sort(key=lambda pair: pair[1].config.data.fold or 0)
        name, first = group[0]
        if [run.config.data.fold for _, run in group] != [*range(first.config.data.folds or 0)]:
            found += group
            continue
        parts = tuple(run for _, run in group)
        summary = {**first.summary, "params_sha256": digest_of_all([run.digest for run in parts])}
        for key in ("wall_seconds", "images_seen"):
            if all(key in run.summary for run in parts):
                summary[key] = sum(run.summary[key] for run in parts) / len(parts)
        found.append((name, Run(first.path, first.config, summary, parts)))
    return found


class TestSets:
    """The test sets of runs, each opened once: another one for all of them, or their own."""

    def __init__(self, data: DataConfig | None = None) -> None:
        """`data`: of the test set for all runs; None: each has its own."""
        self._data = data
        self._opened: dict[str, OpenTestSet] = {}

    def open(self, run: Run) -> OpenTestSet:
        """The test set of a run with its images. Raises UserError where it has none, or they are gone."""
        data = self._data or run.config.data
        key = f"{len(run.parts)} {data.model_dump_json()}"
        if key not in self._opened:
            test = (
                open_all_folds(data) if run.parts else open_test_set(load_dataset(data), any_of=data.task == "any_of")
            )
            if test is None:
                raise UserError(f"{data.name} has no test images")
            self._opened[key] = test
        return self._opened[key]

    def kept(self, run: Run) -> tuple[Path, Predictions | None]:
        """Where the evaluation of a run on its test set is kept, and the predictions that are there."""
        own = run.path / "benchmark"
        kept = _kept(own, run)
        if self._data is None or (kept is not None and kept.test_digest == self.open(run).digest):
            return own, kept
        folder = own / f"test-{self.open(run).digest[:12]}"
        return folder, _kept(folder, run)

    def digest(self, run: Run) -> str:
        """Of the test set on which a run can be measured. Raises UserError where it cannot, before it computes."""
        if run.parts:
            ids, labels, names = zip(*map(self._tested, run.parts), strict=True)
            return digest_of_test_set([name for part in ids for name in part], np.concatenate(labels), names[0])
        _, kept = self.kept(run)
        if kept is not None:
            return kept.test_digest
        test, model = self.open(run), run.path / "model"
        if not model.is_dir():
            raise UserError(f"{run.path}: its model is gone")
        if (model / "meta.json").is_file():
            try:
                order_of_classes(SavedModel.open(model).about.class_names, test.dataset)
            except DamagedError:
                raise
            except UserError as error:
                raise UserError(f"{run.name}: {error}") from None
        return test.digest

    def _tested(self, run: Run) -> tuple[Sequence[str], Labels, Sequence[str]]:
        """Ids, labels and class names of the test images of a run."""
        _, kept = self.kept(run)
        if kept is not None:
            return kept.ids, kept.labels, kept.class_names
        self.digest(run)  # which raises where the run cannot be measured
        test = self.open(run)
        return test.ids, test.images.labels, test.dataset.class_names

    def images(self, run: Run) -> OpenTestSet | None:
        """The test set of a run for its pictures; None, with a warning, where it is gone or another one by now."""
        try:
            test = self.open(run)
        except JaxtrainError as error:
            _log.warning("no images are shown, and no duplicates looked for: %s", error)
            return None
        if test.digest != self.digest(run):
            _log.warning("the test set of %s has changed since: no images are shown", test.dataset.name)
            return None
        return test


@contextlib.contextmanager
def leaving_out(name: str, reasons: dict[str, str]) -> Iterator[None]:
    """Around work on one of several models: where it is not sound, a warning and `reasons` say why, and no more."""
    try:
        yield
    except (DamagedError, RunError) as error:
        _log.warning("%s is left out: %s", name, error)
        reasons[name] = str(error)


def by_test_set(
    paths: Sequence[Path], data: DataConfig | None = None, damaged: dict[str, str] | None = None
) -> list[list[Path]]:
    """The runs that can be compared with each other, the largest group first; warns of each that cannot, and why.

    Nothing is computed. `damaged` gets the reasons of those whose files are. Raises UserError where none is left.
    """
    groups: dict[str, list[Path]] = {}
    sets, reasons = TestSets(data), {} if damaged is None else damaged
    read: list[tuple[str, Run]] = []

    @contextlib.contextmanager
    def skipping(name: str) -> Iterator[None]:
        try:
            with leaving_out(name, reasons):
                yield
        except UserError as error:
            _log.warning("%s is left out: %s", name, error)

    for path in paths:
        with skipping(str(path)):
            read.append((str(path), read_run(path)))
    for name, run in read if data is not None else joined_folds(read):
        with skipping(name):
            groups.setdefault(sets.digest(run), []).extend(part.path for part in run.parts or (run,))
    if not groups:
        raise UserError("no finished run has a test set that it can be measured on: give --data.name, or other runs")
    return sorted(groups.values(), key=len, reverse=True)


def _kept(folder: Path, run: Run) -> Predictions | None:
    path = folder / "predictions.npz"
    if not path.is_file():
        return None
    try:
        predictions = Predictions.load(path)
    except UserError as error:
        _log.warning("%s; they are computed again", error)
        return None
    return predictions if predictions.params_sha256 == run.digest else None
