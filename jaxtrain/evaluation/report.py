"""The report of a comparison: tables as data first, then one page that explains itself."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtrain.escape import markdown
from jaxtrain.evaluation import comparison_plots
from jaxtrain.evaluation.comparison import Entry, Pair
from jaxtrain.evaluation.content import Content
from jaxtrain.evaluation.findings import Shown
from jaxtrain.evaluation.page import picture, render
from jaxtrain.evaluation.statistics import Interval
from jaxtrain.evaluation.wording import METRICS, cost, training_time, value
from jaxtrain.files import optional, write_csv, write_text

if TYPE_CHECKING:
    import pandas as pd

FILES = ("results.json", "leaderboard.csv", "pairs.csv", "per_class.csv", "report.md", "report.html")
_TABLE = ("accuracy", "balanced_accuracy", "mAP", "macro_f1", "subset_accuracy", "loss", "ece", "auroc_ovr", "auroc")
_SHORT = "{:.4g}".format
_COSTS = ("params", "train_seconds", "flops_per_image", "latency_ms_p50")


@dataclass(frozen=True, repr=False)
class Report(Content):
    """What `benchmark` returns."""

    def to_pandas(self) -> pd.DataFrame:
        """One row per model, best first: metrics with the ends of their intervals, then costs."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """The same as plain dicts."""
        return [_row(entry) for entry in self.comparison.entries]

    def results(self) -> dict[str, Any]:
        """Everything as JSON types."""
        comparison, predictions = self.comparison, self.comparison.predictions
        return {
            "dataset": predictions.dataset,
            "test_digest": predictions.test_digest,
            "images": len(predictions.labels),
            "class_names": list(predictions.class_names),
            "looks": self.looks,
            "resamples": comparison.resamples,
            "seed": comparison.seed,
            "margin": comparison.margin,
            "warnings": self.warnings,
            "advice": self.advice,
            "models": [{**row, **_details(entry)} for row, entry in zip(self.rows(), comparison.entries, strict=True)],
            "pairs": [
                {**_plain(pair), "sentence": text} for pair, text in zip(comparison.pairs, self.verdicts, strict=True)
            ],
            "recipes": [asdict(recipe) for recipe in comparison.recipes],
            "recipe_pairs": [_plain(pair) for pair in comparison.recipe_pairs],
            "slices": [asdict(part) for part in self.slices],
            "likely_label_errors": [self._described(shown) for shown in self.label_errors],
            "worst_mistakes": [self._described(shown) for shown in self.worst],
            "duplicates": {name: [list(pair) for pair in pairs] for name, pairs in self.duplicates.items()},
            "near_duplicates": {
                name: None if pairs is None else [asdict(pair) for pair in pairs] for name, pairs in self.near.items()
            },
            "robustness": self.robustness,
        }

    def to_markdown(self) -> str:
        """Leaderboard, advice and pairs, for a README."""
        names = [name for name in _TABLE if any(name in e.measured.metrics for e in self.comparison.entries)]
        head = ["model", *(METRICS[name] for name in names), *(_COST_NAMES[name] for name in _COSTS)]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for entry in self.comparison.entries:
            cells = [markdown(entry.name)]
            for name in names:
                cells.append(_with_interval(name, entry.measured.metrics.get(name), entry.measured.intervals.get(name)))
            costs = entry.candidate.costs
            cells += [
                training_time(costs) if name == "train_seconds" else cost(name, costs.get(name)) for name in _COSTS
            ]
            lines.append(f"| {' | '.join(cells)} |")
        predictions = self.comparison.predictions
        title = f"# {markdown(predictions.dataset)}: {len(predictions.labels):,} test images"
        parts = [title, "\n".join(lines)]
        for name, items in (("Warnings", self.warnings), ("In numbers", self.advice), ("Pairs", self.verdicts)):
            if items:
                parts.append(f"## {name}\n\n" + "\n".join(f"- {markdown(item)}" for item in items))
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """One page that needs nothing else."""
        return render(self)

    def save(self, folder: str | Path) -> Path:
        """Write `results.json`, tables as CSV, `report.md` and `report.html` into a folder, which is made."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        indent = 1 if len(self.comparison.pairs) <= _READABLE_PAIRS else None  # written far more quickly
        write_text(folder / "results.json", json.dumps(self.results(), indent=indent, ensure_ascii=False) + "\n")
        write_csv(folder / "leaderboard.csv", self.rows())
        write_csv(folder / "pairs.csv", [_pair_row(pair) for pair in self.comparison.pairs])
        classes = [{"model": e.name, **row} for e in self.comparison.entries for row in e.measured.per_class]
        write_csv(folder / "per_class.csv", classes)
        for name, page in (("report.md", self.to_markdown), ("report.html", self.to_html)):
            with optional(str(folder / name)):
                write_text(folder / name, page())
        return folder

    def __repr__(self) -> str:
        """The leaderboard and the advice."""
        return "\n".join([self._leaders().to_string(index=False, float_format=_SHORT), *self.advice])

    def _repr_html_(self) -> str:
        """The leaderboard, its picture and the advice, in a notebook."""
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in self.advice)
        leaders = picture(lambda: comparison_plots.leaderboard(self.comparison), "Leaderboard with intervals")
        image = "" if leaders is None else f'<img alt="{leaders.text}" src="{leaders.source}">'
        table = self._leaders().to_html(index=False, escape=True, float_format=_SHORT, border=0)
        return f"{table}{image}<ul>{lines}</ul>"

    def _leaders(self) -> pd.DataFrame:
        table = self.to_pandas()
        return table[[name for name in ("model", *_TABLE, *_COSTS) if name in table.columns]]

    def _described(self, shown: Shown) -> dict[str, Any]:
        where = {} if self.images is None else {"image": self.images.describe(shown.index)}
        return {**asdict(shown), **where, "id": self.comparison.predictions.ids[shown.index]}


_READABLE_PAIRS = 500
_COST_NAMES = {
    "params": "parameters",
    "train_seconds": "training",
    "flops_per_image": "operations",
    "latency_ms_p50": "latency",
}


def _row(entry: Entry) -> dict[str, Any]:
    predictions = entry.candidate.predictions
    row: dict[str, Any] = {"model": entry.name, "technique": predictions.technique, "network": predictions.model}
    for name, number in entry.measured.metrics.items():
        row[name] = number
        interval = entry.measured.intervals.get(name)
        if interval is not None:
            row |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    if entry.measured.temperature is not None:
        row["temperature"] = entry.measured.temperature
    row |= {f"{name}_scaled": number for name, number in entry.measured.scaled.items()}
    return row | entry.candidate.costs


def _details(entry: Entry) -> dict[str, Any]:
    run_dir = entry.candidate.run_dir
    return {
        "run_dir": None if run_dir is None else str(run_dir),
        "seed": entry.candidate.seed,
        "params_sha256": entry.candidate.predictions.params_sha256,
        "per_class": entry.measured.per_class,
        "confusion": [] if entry.measured.confusion is None else entry.measured.confusion.tolist(),
        "over_folds": {name: over._asdict() for name, over in entry.over_folds.items()},
    }


def _plain(pair: Pair) -> dict[str, Any]:
    """What `asdict` gives, which takes seconds for thousands of pairs."""
    gaps = {name: dict(vars(gap)) for name, gap in pair.gaps.items()}
    return {**vars(pair), "gaps": gaps, "paired": None if pair.paired is None else dict(vars(pair.paired))}


def _pair_row(pair: Pair) -> dict[str, Any]:
    gap = pair.gap
    row = {"first": pair.first, "second": pair.second, "verdict": pair.verdict, "difference": gap.difference}
    row |= {"low": gap.interval.low, "high": gap.interval.high}
    row |= {"corrected_low": gap.corrected.low, "corrected_high": gap.corrected.high}
    return row | (vars(pair.paired) if pair.paired is not None else {})


def _with_interval(name: str, number: float | None, interval: Interval | None) -> str:
    text = value(name, number)
    return text if interval is None else f"{text} [{value(name, interval.low)}, {value(name, interval.high)}]"
