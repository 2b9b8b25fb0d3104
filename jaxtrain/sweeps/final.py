"""The end of a sweep: the chosen setting and the baseline, and no other, on the test set."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jaxtrain.classifiers.files import load
from jaxtrain.errors import JaxtrainError, RunError
from jaxtrain.evaluation.comparison import compare
from jaxtrain.evaluation.finished import leaving_out
from jaxtrain.evaluation.runs import gather, make_report, track, track_report
from jaxtrain.files import optional, write_text
from jaxtrain.readers import read_json
from jaxtrain.sweeps.config import Repeat
from jaxtrain.sweeps.results import Ranked, Results

_log = logging.getLogger(__name__)
CHOSEN, BASELINE = "chosen", "baseline"


def final_test(found: Results, folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Measure both through the Benchmark section, once: what was measured before is read from `folder`.

    Returns {"settings": {name: {"mean", "low", "high", "accuracies"}}, "advice": [...], "looks"}; None where there is
    nothing to test, or the test set cannot be opened (with a warning).
    """
    best = found.best
    if best is None:
        return None
    named = {CHOSEN: best}
    base = next((one for one in found.ranked if one.setting.digest == found.baseline and one.values), None)
    if base is not None and base is not best:
        named[BASELINE] = base
    runs = {
        f"{name}-{each.suffix}": one.setting.run_name(each)
        for name, one in named.items()
        for each in sorted(one.values)
    }
    record = folder / "test.json"
    if record.is_file():
        with leaving_out(str(record), {}):
            kept = read_json(record, "test of a sweep", "it is done again")
            if kept.get("runs") == runs and isinstance(kept.get("result"), dict):
                return dict(kept["result"])
    try:
        result = _measure(found, named, runs, folder / "benchmark", say)
    except JaxtrainError as error:
        _log.warning("nothing was tested: %s", error)
        return None
    write_text(record, json.dumps({"runs": runs, "result": result}, indent=1) + "\n")
    return result


def _measure(
    found: Results, named: dict[str, Ranked], runs: dict[str, str], folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    repeats = [(name, each) for name, one in named.items() for each in sorted(one.values)]
    # In the Benchmark all folds are one entry.
    entries = [f"{name}-{Repeat(each.seed).suffix}" for name, each in repeats]
    paths = [found.sweep.folder / run for run in runs.values()]
    gathered = gather(paths, partial(load, trust_imports=True), costs=False, names=entries, say=say)
    for name, reason in gathered.left_out.items():  # the mean of the others would be another one
        raise RunError(f"{name}: {reason}")
    comparison = compare(gathered.candidates)
    report = make_report(gathered, comparison, columns={}, duplicates=True, corrupted={}, say=say)
    report.save(folder)
    tracking = found.sweep.base.tracking
    ids = track(gathered, comparison, tracking)
    with optional("the report in MLflow"):
        track_report(report, folder, tracking, ids)
    result: dict[str, Any] = {"settings": {}, "looks": gathered.looks}
    for name, one in named.items():
        members = list(
            dict.fromkeys(entry for entry, (owner, _) in zip(entries, repeats, strict=True) if owner == name)
        )
        first = comparison.entry(members[0])
        accuracies = [comparison.entry(member).score for member in members]
        recipe = next((recipe for recipe in comparison.recipes if set(members) <= set(recipe.members)), None)
        if recipe is not None:
            mean, _, interval = recipe.metrics[comparison.figure]
        elif first.over_folds:
            values, mean, _, interval = first.over_folds[comparison.figure]
            accuracies = list(values)
        else:
            mean, interval = accuracies[0], first.measured.intervals[comparison.figure]
        ends = {"mean": float(mean), "low": float(interval.low), "high": float(interval.high)}
        result["settings"][name] = {"label": one.setting.label, "accuracies": accuracies, **ends}
    return result
