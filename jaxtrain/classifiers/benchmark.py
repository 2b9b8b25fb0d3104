"""`benchmark(models, data)`: from trained models to a report, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from jaxtrain.classifiers.files import load
from jaxtrain.config import DataConfig, chosen
from jaxtrain.data.assemble import with_channels
from jaxtrain.data.base import Dataset, relabelled
from jaxtrain.data.objects import open_split, placed_labels
from jaxtrain.data.sources import load_dataset
from jaxtrain.data.worker_watch import refuse_in_worker
from jaxtrain.errors import DamagedError, UserError
from jaxtrain.evaluation.comparison import Candidate, compare
from jaxtrain.evaluation.costs import Costed, costs_of_training, measure_costs
from jaxtrain.evaluation.evaluate import LOOKS_FILE, OpenTestSet, Predictor, find_duplicates, open_test_set, predict
from jaxtrain.evaluation.explained import check_explainable, explained
from jaxtrain.evaluation.finished import leaving_out
from jaxtrain.evaluation.looks import count_look
from jaxtrain.evaluation.predictions import Predictions
from jaxtrain.evaluation.report import Report
from jaxtrain.evaluation.runs import Gathered, gather, load_each, make_report
from jaxtrain.evaluation.significance import MARGIN
from jaxtrain.evaluation.statistics import RESAMPLES
from jaxtrain.trees import tree_digest

Data = str | DataConfig | Dataset | Any


def benchmark(
    models: Mapping[str, Any] | Sequence[Any],
    data: Data | None = None,
    *,
    columns: Mapping[str, Sequence[Any]] | None = None,
    margin: float = MARGIN,
    resamples: int = RESAMPLES,
    seed: int = 0,
    costs: bool = True,
    duplicates: bool = True,
    robustness: bool = False,
    explain: bool = False,
) -> Report:
    """Compare models on one test set.

    Args:
        models: Trained classifiers or directories of finished runs, in a list or by the names they shall have.
        data: The name of a data set (as `data.name`), its options, a `Dataset`, or arrays (images, labels). May be
            left out where all models are run directories: then on the test set of the runs.
        columns: Values by which the test set is sliced, one an image, by the name of the column.
        margin: Accuracies that differ by less (a share: 0.01 is one point) count as equivalent.
        resamples: Bootstrap resamples.
        seed: Of the resamples.
        costs: Measure latency, throughput, operations and memory of each model: seconds each.
        duplicates: Look for test images that are also in the training or validation set, exactly or nearly.
        robustness: Measure accuracy under corruptions too: 50 times the work.
        explain: Show heat maps beside the worst mistakes of the best model.

    The look at the test set is counted. Nothing is tracked: `jaxtrain benchmark` does that. Raises UserError for
    models without a name of their own, not trained, of other classes, or measured on different test sets.
    """
    refuse_in_worker()
    named = dict(models) if isinstance(models, Mapping) else _named(models)
    if not named:
        raise UserError("nothing to compare: no model was given")
    paths = {name: Path(model) for name, model in named.items() if isinstance(model, str | Path)}
    options = DataConfig(name=data) if isinstance(data, str) else data
    if len(paths) == len(named) and (options is None or isinstance(options, DataConfig)):
        gathered = gather(list(paths.values()), load, data=options, costs=costs, names=list(paths))
        used: dict[str, Any] = dict(paths)
    else:
        if options is None:
            raise UserError("no data: give the name of a data set, a Dataset, or (images, labels)")
        used, left_out = {}, dict[str, str]()
        for name, model in named.items():
            with leaving_out(name, left_out):
                used[name] = load(model) if name in paths else model
        gathered = _gather_classifiers(used, options, costs, left_out)
    comparison = compare(gathered.candidates, margin=margin, resamples=resamples, seed=seed)
    corrupted = load_each(gathered, used, load) if robustness else {}
    if explain:
        check_explainable(gathered)
    report = make_report(gathered, comparison, columns=columns or {}, duplicates=duplicates, corrupted=corrupted)
    if explain:
        best = used[comparison.entries[0].name]
        report = explained(report, load(best) if isinstance(best, str | Path) else best)
    return report


def _gather_classifiers(models: Mapping[str, Any], data: Data, costs: bool, left_out: dict[str, str]) -> Gathered:
    """The same as `gather` for classifiers in memory; `left_out`: those that were not sound."""
    if not models:
        raise DamagedError("nothing to compare: every run was left out")
    dataset = _dataset(data, next(iter(models.values())))
    test = open_test_set(dataset)
    if test is None:
        raise UserError(f"{dataset.name} has no test images")
    gathered = Gathered([], [], [], [], test, find_duplicates(test), left_out=left_out)
    for name, model in models.items():
        with leaving_out(name, left_out):
            predictions = _predictions(model, test)
            found = costs_of_training(model.summary)
            if costs:
                found |= measure_costs(cast(Costed, model), test.images)
            gathered.candidates.append(Candidate(name, predictions, found, model.run_dir, model.fitted.config.seed))
            gathered.looks = count_look(LOOKS_FILE, test.digest, predictions.params_sha256, dataset.name)
    if not gathered.candidates:
        raise DamagedError("nothing to compare: every model was left out")
    return gathered


def _predictions(model: Any, test: OpenTestSet) -> Predictions:
    digest = model.summary.get("params_sha256") or tree_digest(model.fitted.weights["params"])
    return predict(
        cast(Predictor, model), test, technique=model.technique, model=model.model_name, params_sha256=digest
    )


def _dataset(data: Data, model: Any) -> Dataset:
    """Arrays have the classes and channels of a model."""
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str):
        data = DataConfig(name=data)
    if isinstance(data, DataConfig):
        return load_dataset(data)
    config = model.fitted.config.data
    pair = data if isinstance(data, tuple) else (data, None)
    split = open_split(*pair, where="the", config=config)
    several = model.thresholds is not None
    labels = placed_labels(split, model.class_names, model.fitted.classes, multilabel=several)
    test = relabelled(with_channels(split.images, chosen(config.channels), config), labels)
    nothing = test.select(np.arange(0))
    return Dataset("arrays", tuple(model.class_names), nothing, None, lambda: test, chosen(config.channels), None)


def _named(models: Sequence[Any]) -> dict[str, Any]:
    """Names from run directories, else technique and network, numbered where that is not enough."""
    names = []
    for model in models:
        run_dir = Path(model) if isinstance(model, str | Path) else model.run_dir
        name = f"{model.technique}-{model.model_name}" if run_dir is None else f"{run_dir.parent.name}/{run_dir.name}"
        names.append(name)
    numbered = [
        name if names.count(name) == 1 else f"{name} {names[:place].count(name) + 1}"
        for place, name in enumerate(names)
    ]
    return dict(zip(numbered, models, strict=True))
