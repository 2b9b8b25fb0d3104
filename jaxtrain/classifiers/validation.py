"""Weights from anywhere as a finished run, so that the Benchmark measures them on any set without training."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxtrain.classifiers.pre_training import PTClassifier
from jaxtrain.config import AugmentConfig, Config, DataConfig, ModelConfig
from jaxtrain.config_io import dump_config
from jaxtrain.data.base import Dataset, relabelled
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import JaxtrainError, UserError
from jaxtrain.evaluation.evaluate import OpenTestSet, open_test_set
from jaxtrain.files import run_name, temporary_name, write_text
from jaxtrain.models.weights import Pretrained, adapt, load_pretrained
from jaxtrain.models.weights.classes import match_classes
from jaxtrain.readers import read_json
from jaxtrain.runs.fitted import Fitted, save_model
from jaxtrain.runs.report import versions
from jaxtrain.runs.resolve import resolve
from jaxtrain.saved_model import SavedModel
from jaxtrain.training.network import Network
from jaxtrain.training.technique import Binding
from jaxtrain.trees import tree_digest

TECHNIQUE = "weights"
"""In the place of how it was trained, in summaries and names."""
_FOLDER = Path("runs") / TECHNIQUE
_AUGMENT = AugmentConfig(policy="none")
Dtype = Literal["auto", "float32", "bfloat16"]


def weights_as_run(
    weights: str, data: DataConfig, *, model: str | None = None, classes: Path | None = None, dtype: Dtype = "auto"
) -> Path:
    """The directory of a finished run that holds these weights with a head for the classes of a data set.

    The head keeps the outputs of these classes alone (`match_classes`). The same weights for the same test set give
    the same directory, `runs/weights/DATASET-WEIGHTS-N`, where predictions are kept.

    Args:
        weights: what `load_pretrained` takes.
        data: of the test set, as options of a run; `split` says which images. Of several labels per image any is
            right.
        model: name of the network, where the weights don't say.
        classes: file that maps the data set's classes to those of the weights.
        dtype: of the computation.

    Raises:
        UserError: weights without a head or with numbers that are not finite, or that lack a class of the data set.
    """
    pretrained = load_pretrained(weights, ModelConfig(name=model))
    _check(pretrained)
    data = data.model_copy(update={"val_fraction": 0.0, "split": data.split or "test"})
    if data.channels is None:
        data = data.model_copy(update={"channels": pretrained.channels})
    dataset = load_dataset(data)
    if dataset.multilabel:
        data = data.model_copy(update={"task": "any_of"})
    test = open_test_set(dataset, any_of=True)
    if test is None:
        raise UserError(f"{data.name} has no {data.split} images: --data.split says which to measure on")
    fitted, notes = _fitted(pretrained, data, dataset, classes, dtype)
    summary = _summary(fitted, pretrained, dataset, test, notes)
    return _kept(fitted, summary, f"{dataset.name}-{_short(weights)}")


def _check(pretrained: Pretrained) -> None:
    """UserError where the weights cannot be measured as they are."""
    source = pretrained.source
    own = Path(source).expanduser()
    if any((own / name).is_file() for name in ("meta.json", "model/meta.json")):
        about = SavedModel.open(own).about
        if about.technique == "fe" or about.extra.get("thresholds") is not None or pretrained.model.network is not None:
            raise UserError(f"--weights {source}: `jaxtrain benchmark {source} --data.name ...` measures this run")
    if not pretrained.num_classes or "head/kernel" not in pretrained.params:
        raise UserError(f"--weights {source}: has no classification head; train one (jaxtrain train --technique fe)")
    for name, array in {**pretrained.params, **pretrained.model_state}.items():
        if not np.isfinite(array).all():
            raise UserError(f"--weights {source}: {name} holds numbers that are not finite")


def _fitted(
    pretrained: Pretrained, data: DataConfig, dataset: Dataset, classes: Path | None, dtype: Dtype
) -> tuple[Fitted, list[str]]:
    """The network with the head's outputs for the classes of the data set, and what a reader has to know of it."""
    names = dataset.class_names
    matched = match_classes(names, pretrained, classes)
    head = {name: array[..., list(matched.places)] for name, array in pretrained.params.items() if _in_head(name)}
    some = replace(pretrained, params={**pretrained.params, **head}, num_classes=len(names), class_names=tuple(names))
    nothing = replace(dataset, train=relabelled(dataset.train, np.empty(0, np.int32)))  # which has no task
    config = Config(
        data=data.model_copy(update={"task": "auto"}),
        model=pretrained.model.model_copy(update={"dtype": dtype}),
        augment=_AUGMENT,
    )
    resolved = resolve(config, nothing, some).replace(**{"data.task": data.task})
    technique = PTClassifier(config).bind(resolved, Binding(len(names)))
    params, model_state, adapted = adapt(some, Network.of(technique, None).shapes)
    some_of = "" if len(names) == pretrained.num_classes else f"the logits of {len(names):,} of its "
    notes = [f"{some_of}{pretrained.num_classes:,} classes, matched {matched.how}", *adapted.notes]
    return Fitted(technique, names, {"params": params, "frozen": {}, "model_state": model_state}), notes


def _in_head(name: str) -> bool:
    return name in ("head/kernel", "head/bias")


def _summary(
    fitted: Fitted, pretrained: Pretrained, dataset: Dataset, test: OpenTestSet, notes: list[str]
) -> dict[str, Any]:
    """`summary.json`, without anything about training."""
    count = sum(array.size for array in fitted.weights["params"].values())
    return {
        "technique": TECHNIQUE,
        "model": fitted.config.model.label,
        "dataset": dataset.name,
        "classes": dataset.num_classes,
        "params": count,
        "params_sha256": tree_digest(fitted.weights["params"]),
        "weights": pretrained.source,
        "weights_sha256": pretrained.digest,
        "test_digest": test.digest,
        "notes": notes,
        "mlflow_run_id": None,
        "versions": versions(),
    }


def _kept(fitted: Fitted, summary: dict[str, Any], name: str) -> Path:
    """The directory where this is, or is written now: complete, or not there."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    config = dump_config(fitted.config)
    for number in itertools.count(1):
        path = _FOLDER / f"{run_name(name)}-{number}"
        if path.exists():
            if _is(path, config, summary):
                return path
            continue
        made = temporary_name(path)
        try:
            made.mkdir()
            save_model(fitted, made / "model")
            write_text(made / "config.yaml", config)
            write_text(made / "summary.json", json.dumps(summary, indent=2) + "\n")
            made.rename(path)
            return path
        finally:
            shutil.rmtree(made, ignore_errors=True)
    raise AssertionError


def _is(path: Path, config: str, summary: dict[str, Any]) -> bool:
    """Whether a directory has the same weights for the same test set, measured in the same way."""
    try:
        there = read_json(path / "summary.json", "summary of a run")
        same = all(there.get(key) == summary[key] for key in ("params_sha256", "test_digest", "notes"))
        return same and (path / "config.yaml").read_text() == config
    except (JaxtrainError, OSError):
        return False


def _short(weights: str) -> str:
    """`hf:timm/resnet50.a1_in1k` -> `resnet50.a1_in1k`; of a path the last part."""
    return weights.partition("@")[0].rstrip("/").rpartition("/")[2].rpartition(":")[2]
