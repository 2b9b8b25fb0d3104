"""From finished run directories to candidates: predictions that are kept are read, others computed once and kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from jaxtrain.config import DataConfig, TrackingConfig, chosen
from jaxtrain.errors import DamagedError, JaxtrainError, UserError
from jaxtrain.evaluation.comparison import Candidate, Comparison, Entry
from jaxtrain.evaluation.costs import Costed, Costs, costs_of_training, folder_megabytes, kept_costs, measure_costs
from jaxtrain.evaluation.evaluate import (
    LOOKS_FILE,
    OpenTestSet,
    Predictor,
    Record,
    find_duplicates,
    predict,
    track_evaluation,
    write_evaluation,
)
from jaxtrain.evaluation.finished import Run, TestSets, joined_folds, leaving_out, read_run
from jaxtrain.evaluation.folds import in_other_folds, out_of_fold
from jaxtrain.evaluation.looks import count_look, settings_measured
from jaxtrain.evaluation.near_duplicates import NearDuplicate, near_duplicates
from jaxtrain.evaluation.predictions import Predictions
from jaxtrain.evaluation.report import FILES, Report
from jaxtrain.evaluation.robustness import corruption_accuracy
from jaxtrain.files import optional
from jaxtrain.tracking import Journal, Tracker, stored_model

_log = logging.getLogger(__name__)


class Model(Predictor, Costed, Protocol):
    """A trained classifier, as the Benchmark sees it."""


MANY, MEDIUM, FEW = "many (over 100)", "medium (20 to 100)", "few (under 20)"
_TRACKED_AT_ONCE = 32
"""Evaluations on their way to MLflow together: waiting for one at a time takes the most of a comparison of many."""
Load = Callable[[Path], Model]
"""`jaxtrain.load`."""
Predicting = Callable[[Path], Predictor]
"""The model of a run directory, for its predictions alone."""


@dataclass
class Gathered:
    """What a comparison starts from."""

    runs: list[Run]
    candidates: list[Candidate]
    folders: list[Path]
    """Where the evaluation of each is kept."""
    fresh: list[bool]
    """Whose predictions were computed now."""
    test: OpenTestSet | None
    """The test set; None where its images are gone."""
    duplicates: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """See `find_duplicates`."""
    looks: int | None = None
    """How many models were measured on this test set so far."""
    sweeps: dict[str, int] = field(default_factory=dict)
    """How many settings of each sweep that runs here are part of, by its folder."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Why, by name."""


def gather(
    paths: Sequence[Path],
    load: Load,
    *,
    data: DataConfig | None = None,
    costs: bool = True,
    costs_again: bool = False,
    names: Sequence[str] | None = None,
    looks_file: Path = LOOKS_FILE,
    say: Callable[[str], None] = lambda _: None,
    predicting: Predicting | None = None,
) -> Gathered:
    """Predictions, costs and learning curves of finished runs.

    `data` names another test set than the runs' own. A run whose files are damaged, or whose model gives no finite
    numbers, is left out with a warning that names it. Raises UserError for directories without a finished run, data
    that cannot be found, models whose classes are not those of the data, and where no run is left. `names` are theirs
    (default: technique and folder); `costs_again` measures kept costs again; `say` is called with what takes long.
    `predicting`: who predicts (None: what `load` gives).
    """
    sets, gathered = TestSets(data), Gathered([], [], [], [], None)
    read: list[tuple[str, Run]] = []
    sound: list[tuple[str, Run, str]] = []
    for name, path in zip(names or map(str, paths), paths, strict=True):
        with leaving_out(name, gathered.left_out):
            read.append((name, read_run(path)))
    for name, run in read if data is not None else joined_folds(read):
        with leaving_out(name, gathered.left_out):
            sound.append((name, run, sets.digest(run)))
    if not names:
        unique = _unique_names([run for _, run, _ in sound])
        sound = [(name, run, digest) for name, (_, run, digest) in zip(unique, sound, strict=True)]
    for name, run, digest in sound:
        if digest != sound[0][2]:
            one, two = f"{name} ({run.config.data.name}, {digest[:8]})", f"{sound[0][0]} ({sound[0][2][:8]})"
            advice, folds = "give --data.name to measure all on one", run.config.data.folds
            if folds is not None and not run.parts:
                advice = f"of data.folds give the runs of all {folds}, which are one entry"
            raise UserError(f"{one} has another test set than {two}: {advice}")
    measured: dict[str, Costs] = {}
    for name, run, _ in sound:
        with leaving_out(name, gathered.left_out):
            gathered.test = gathered.test or sets.images(run)
            folder, predictions, fresh, parts = _all_predictions(run, predicting or load, sets, say)
            found: Costs = {}
            if costs:
                say(f"costs of {name}")
                found = _costs(run, load, gathered.test, measured, again=costs_again)
            curves, seed = [] if parts else _records(run.path / "metrics.jsonl"), run.config.seed
            gathered.runs.append(run)
            gathered.candidates.append(Candidate(name, predictions, found, run.path, seed, run.recipe, curves, parts))
            gathered.folders.append(folder)
            gathered.fresh.append(fresh)
            about = (predictions.test_digest, run.digest, predictions.dataset)
            sweep = None if run.sweep is None else (str(run.sweep), run.recipe)
            gathered.looks = count_look(looks_file, *about, setting=sweep)
    if not gathered.runs:
        raise DamagedError("nothing to compare: every run was left out")
    counted = settings_measured(looks_file, gathered.candidates[0].predictions.test_digest)
    here = {str(run.sweep) for run in gathered.runs if run.sweep is not None}
    gathered.sweeps = {folder: count for folder, count in counted.items() if folder in here}
    if every_fold := gathered.candidates[0].folds:
        gathered.duplicates = {"training": in_other_folds(every_fold)}
    elif gathered.test is not None:
        gathered.duplicates = find_duplicates(gathered.test)
    return gathered


def load_each(gathered: Gathered, models: Mapping[str, Any], load: Load) -> dict[str, Any]:
    """The candidates themselves, for `make_report`: `models` has them by name, or where they are."""
    if any(candidate.folds for candidate in gathered.candidates):
        raise UserError("robustness is that of one model on images that it was not trained on: not of folds together")
    found = {}
    for name in (candidate.name for candidate in gathered.candidates):
        with leaving_out(f"{name}, under corruptions,", gathered.left_out):
            found[name] = load(models[name]) if isinstance(models[name], Path) else models[name]
    return found


def track(gathered: Gathered, comparison: Comparison, config: TrackingConfig | None = None) -> list[str | None]:
    """Write what is new, and store each evaluation as a run of the MLflow experiment `Benchmark`.

    `config` defaults to that of each run. Returns the id of each MLflow run, None where MLflow did not answer.
    """
    ids: list[str | None] = []
    each = list(zip(gathered.runs, gathered.folders, gathered.fresh, gathered.candidates, strict=True))
    for start in range(0, len(each), _TRACKED_AT_ONCE):
        some = each[start : start + _TRACKED_AT_ONCE]
        trackers = [_begin_tracking(gathered, comparison, config, *one) for one in some]
        for (*_, candidate), tracker in zip(some, trackers, strict=True):
            ids.append(None if tracker is None else _end_tracking(tracker, candidate.name))
    return ids


def _begin_tracking(
    gathered: Gathered,
    comparison: Comparison,
    config: TrackingConfig | None,
    run: Run,
    folder: Path,
    fresh: bool,
    candidate: Candidate,
) -> Tracker | None:
    entry, predictions = comparison.entry(candidate.name), candidate.predictions
    measured = entry.measured
    with optional(f"the evaluation of {candidate.name} in MLflow"):
        if fresh:
            files = write_evaluation(predictions, measured, gathered.duplicates, gathered.looks, folder)
        else:
            files = tuple(path for path in sorted(folder.iterdir()) if path.suffix in (".npz", ".csv", ".png"))
        return track_evaluation(
            Record(predictions, measured, gathered.duplicates, gathered.looks, files),
            config or run.config.tracking,
            root=run.path,
            folder=folder,
            run_name=candidate.name.replace("/", "-"),
            source_run_id=None if run.parts else run.summary.get("mlflow_run_id"),
            model_id=None if run.parts else stored_model(run.path),
            metrics={f"cost/{name}": value for name, value in candidate.costs.items()} | _over_folds(entry),
        )
    return None


def _end_tracking(tracker: Tracker, name: str) -> str | None:
    """The id of its run; None where MLflow did not answer."""
    with optional(f"the evaluation of {name} in MLflow"):
        report = tracker.finish("FINISHED")
        if report.problem is not None:
            _log.warning("%s: MLflow lacks %d records (%s)", name, report.unsent_rows, report.problem)
        return report.run_id
    return None


def make_report(
    gathered: Gathered,
    comparison: Comparison,
    *,
    columns: Mapping[str, Sequence[Any]],
    duplicates: bool,
    corrupted: Mapping[str, Any],
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """The report of a comparison; the models in `corrupted` are also measured under corruptions.

    `say` is told what takes a while.
    """
    test = gathered.test
    values = dict(columns)
    near: dict[str, list[NearDuplicate] | None] = {}
    robustness: dict[str, Any] = {}
    if test is not None:
        values = {**getattr(test.images, "metadata", {}), **values}
        if comparison.predictions.labels.ndim == 1 and all(run.config.data.shots is None for run in gathered.runs):
            values |= by_frequency(test)
        if duplicates:
            others = {"training": test.dataset.train, "validation": test.dataset.val}
            near = {
                name: near_duplicates(source, test.images)
                for name, source in others.items()
                if source is not None and len(source)
            }
        if corrupted:
            side = max(chosen(model.fitted.config.data.image_size) for model in corrupted.values())
            robustness = corruption_accuracy(corrupted, test.images, side=side, say=say)
    return Report(
        comparison,
        images=None if test is None else test.images,
        dataset=None if test is None else test.dataset,
        duplicates=gathered.duplicates,
        near=near,
        looks=gathered.looks,
        sweeps=gathered.sweeps,
        left_out=gathered.left_out,
        columns=values,
        robustness=robustness,
    )


def by_frequency(test: OpenTestSet) -> dict[str, list[str]]:
    """The test images by how many training images their class has, as Liu et al. 2019 part them; {} if all alike."""
    counts = test.dataset.class_counts[test.images.labels]
    parts = (MANY, MEDIUM, FEW)
    words = [parts[0] if count > 100 else parts[1] if count >= 20 else parts[2] for count in counts.tolist()]
    return {"training images of the class": words} if len(set(words)) > 1 else {}


def track_report(report: Report, folder: Path, config: TrackingConfig, ids: Sequence[str | None]) -> str | None:
    """Store a saved report as one more run of the experiment `Benchmark`, tagged `kind: comparison`.

    `ids` are those of the evaluations that it compares. Returns the id of the MLflow run.
    """
    comparison = report.comparison
    predictions = comparison.predictions
    tracker = Tracker.start(
        config.model_copy(update={"system_metrics": False}),
        run_dir=folder / "tracking",
        root=folder,
        experiment="Benchmark",
        run_name=f"comparison-{folder.name}",
        params={"dataset": predictions.dataset, "models": len(comparison.entries), "resamples": comparison.resamples},
        tags={
            "kind": "comparison",
            "dataset": predictions.dataset,
            "test_digest": predictions.test_digest,
            "best": comparison.entries[0].name,
            "evaluations": " ".join(filter(None, ids)),
        },
    )
    for path in (folder / name for name in FILES):
        if path.is_file():
            tracker.artifact(path)
    told = tracker.finish("FINISHED")
    if told.problem is not None:
        _log.warning("MLflow lacks the report (%s); it is in %s", told.problem, folder)
    return told.run_id


def _over_folds(entry: Entry) -> dict[str, float]:
    """For MLflow."""
    found: dict[str, float] = {}
    for name, over in entry.over_folds.items():
        found |= {f"folds/{name}": over.mean, f"folds/{name}_low": over.interval.low}
        found |= {f"folds/{name}_high": over.interval.high, f"folds/{name}_std": over.deviation}
    return found


def _all_predictions(
    run: Run, predicting: Predicting, sets: TestSets, say: Callable[[str], None]
) -> tuple[Path, Predictions, bool, tuple[Predictions, ...]]:
    """As `_predictions`; of all folds, each on its own, joined. Last come those of each fold, where there are any."""
    if not run.parts:
        return *_predictions(run, predicting, sets, say), ()
    parts = tuple(_predictions(part, predicting, sets, say)[1] for part in run.parts)
    return run.path / "benchmark" / "out-of-fold", out_of_fold(parts, run.config.data.name), True, parts


def _predictions(
    run: Run, predicting: Predicting, sets: TestSets, say: Callable[[str], None]
) -> tuple[Path, Predictions, bool]:
    """The folder of this evaluation, its predictions, and whether they were computed now."""
    folder, kept = sets.kept(run)
    if kept is not None:
        return folder, kept, False
    say(f"predictions of {run.name}")
    test = sets.open(run)
    model, notes = str(run.summary["model"]), run.summary.get("notes", ())
    try:
        predictions = predict(
            predicting(run.path), test, technique=run.technique, model=model, params_sha256=run.digest, notes=notes
        )
    except DamagedError:
        raise
    except UserError as error:
        raise UserError(f"{run.name}: {error}") from None
    with optional(str(folder / "predictions.npz")):
        folder.mkdir(parents=True, exist_ok=True)
        predictions.save(folder / "predictions.npz")
    return folder, predictions, True


def _costs(run: Run, load: Load, test: OpenTestSet | None, measured: dict[str, Costs], *, again: bool) -> Costs:
    """Of training from the summary, of predicting as measured on this machine, once for runs that do it in one way."""
    folder = run.path / "benchmark"
    with optional(str(folder)):
        folder.mkdir(exist_ok=True)
        if again:
            (folder / "costs.json").unlink(missing_ok=True)
    source = None if test is None else test.images

    def measure() -> Costs:
        return measured.get(run.program) or measure_costs(load(run.path), source)

    measured[run.program] = kept_costs(folder / "costs.json", run.digest, measure)
    return costs_of_training(run.summary) | {"model_mb": folder_megabytes(run.path / "model")} | measured[run.program]


def _unique_names(runs: Sequence[Run]) -> list[str]:
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.path) for name, run in zip(names, runs, strict=True)]


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        return Journal(path).records()
    except JaxtrainError as error:
        _log.warning("no learning curve: %s", error)
        return []
