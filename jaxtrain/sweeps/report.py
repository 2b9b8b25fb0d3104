"""The results of a sweep as files: tables, the best config, one page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtrain.config import Config
from jaxtrain.config_io import dump_config, load_config
from jaxtrain.escape import plain
from jaxtrain.files import write_csv, write_text
from jaxtrain.sweeps.plan import Plan
from jaxtrain.sweeps.results import Estimate, Outcome, Ranked, Results, category, results_of
from jaxtrain.sweeps.study import Trials
from jaxtrain.sweeps.worker import objective

BEST = "best.yaml"


def read_outcomes(plan: Plan, trials: Trials) -> list[Outcome]:
    """How every run of the sweep ended, from the study and the run directories."""
    ended, found = trials.ended(), []
    for slot, run in trials.runs():
        value, summary, how = None, plan.summary(run), ended.get(slot, "not run")
        if summary is not None:
            number = objective(plan.sweep.objective, summary, plan.sweep.folder / run.name)
            value, how = (number, "done") if math.isfinite(number) else (None, how)
        found.append(Outcome(run.setting, run.repeat, run.name, value, how, summary or {}))
    return found


def results(plan: Plan, trials: Trials) -> Results:
    """All that can be said now."""
    return results_of(plan.sweep, plan.axes, read_outcomes(plan, trials), plan.baseline)


def write_tables(found: Results, folder: Path) -> list[Path]:
    """CSV and JSON of everything, and the best config as YAML; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[dict[str, Any]]] = {
        "runs": [_run_row(found, one) for one in found.outcomes],
        "settings": [setting_row(found, one) for one in found.ranked],
        "effects": [_flat(asdict(one)) for one in found.effects],
        "interactions": [_flat(asdict(one)) for one in found.interactions],
        "importances": [{"axis": axis, "share": share} for axis, share in found.importances.items()],
    }
    files = [write_csv(folder / f"{name}.csv", rows) for name, rows in tables.items()]
    content = {
        name: [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]
        for name, rows in tables.items()
    }
    write_text(folder / "results.json", json.dumps({"sweep": found.sweep.name, **content}, indent=1) + "\n")
    files.append(folder / "results.json")
    if found.best is not None:
        write_text(folder / BEST, _best_yaml(found, found.best))
        files.append(folder / BEST)
    return files


def in_words(one: Estimate, higher: bool, *, signed: bool = False) -> str:
    """A mean with its interval; accuracies in percent or points."""
    if one.count == 0:
        return ""
    factor, form = (100.0, ".2f") if higher else (1.0, ".4f")
    mean, low, high = (f"{factor * value:{'+' if signed else ''}{form}}" for value in (one.mean, one.low, one.high))
    return f"{mean} [{low}, {high}]" if math.isfinite(one.low) else mean


def setting_row(found: Results, one: Ranked) -> dict[str, Any]:
    """A setting as a row: its values, the mean over its runs with its interval, the difference to the baseline."""
    row: dict[str, Any] = {axis.name: category(axis, one.setting.options) for axis in found.axes}
    row |= {"digest": one.setting.digest, "baseline": one.setting.digest == found.baseline}
    row |= _flat({"estimate": asdict(one.estimate), "against": asdict(one.against) if one.against else {}})
    return row | {"unfinished": one.unfinished} | {str(repeat): value for repeat, value in one.values.items()}


def _run_row(found: Results, one: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {axis.name: category(axis, one.setting.options) for axis in found.axes}
    kept = ("steps", "best_step", "wall_seconds", "images_per_second", "params", "params_sha256", "mlflow_run_id")
    row |= {"seed": one.repeat.seed} | ({} if one.repeat.fold is None else {"fold": one.repeat.fold})
    row |= {found.sweep.objective: one.value, "ended": one.how, "run": one.name}
    return row | {key: one.summary.get(key) for key in kept}


def _best_yaml(found: Results, best: Ranked) -> str:
    """The resolved config of the best setting's first seed, for all folds' images, with the base's own tracking."""
    resolved = load_config(found.sweep.folder / best.setting.run_name(min(best.values)) / "config.yaml")
    tree = resolved.replace(**{"data.fold": None, "data.folds": None}).model_dump()
    config = Config.model_validate({**tree, "quiet": False, "tracking": found.sweep.base.tracking.model_dump()})
    words = in_words(best.estimate, found.sweep.higher_is_better)
    return (
        f"# The best setting of sweep {plain(found.sweep.name)}: {plain(best.setting.label)}\n"
        f"# {found.sweep.objective} {words} over {len(best.values)} {found.sweep.repeated}\n{dump_config(config)}"
    )


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}_{inner}": number for inner, number in value.items()}
        else:
            flat[key] = " x ".join(value) if isinstance(value, tuple) else value
    return flat
