"""One page for any run directories, finished or not: results, options, learning curves and pictures."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from jaxtrain.config import Config
from jaxtrain.config_io import cut, dump_config, load_config, without_passwords
from jaxtrain.errors import UserError
from jaxtrain.evaluation.comparison_plots import inked, learning_curves
from jaxtrain.evaluation.gallery import data_uri
from jaxtrain.evaluation.page import MAX_ROWS, Cell, Picture, picture, render_template
from jaxtrain.evaluation.wording import METRICS, cost, value, with_prefix
from jaxtrain.readers import read_bytes, read_json
from jaxtrain.runs.report import Reporter, flat_config
from jaxtrain.screen.program import command
from jaxtrain.tasks import task_of
from jaxtrain.tracking.journal import Journal

_PICTURES = {
    "learning_curves.png": "Learning curves",
    "head_grid.png": "Settings of the head",
    "embeddings.png": "Embeddings of training images in two dimensions",
    "neighbours.png": "Nearest training images",
    "benchmark/confusion_matrix.png": "Confusion matrix on the test set",
    "benchmark/label_errors.png": "Errors by label on the test set",
}
_NEXT = {"predict": "IMAGE", "benchmark": "OTHER_RUN"}
_LARGEST_PICTURE = 20_000_000
_MAX_COLUMNS = 12
_OF_THE_PLACE = {"run_dir", "name", "quiet", "data.mean", "data.std"}
"""Options that say nothing of what was trained, and what was measured of the images."""


@dataclass(frozen=True)
class RunOnPage:
    """A run directory as the page takes it."""

    path: Path
    config: Config
    summary: Mapping[str, Any]
    """Empty of a run that has not finished."""
    tested: Mapping[str, Any]
    """Metrics on the test set, empty where none were measured."""
    records: Sequence[Mapping[str, Any]] = field(repr=False)

    @property
    def name(self) -> str:
        """Technique and folder."""
        return f"{self.config.technique}/{self.path.name}"

    @property
    def figure(self) -> str:
        """What the run is ranked by."""
        return task_of(self.config).figure

    @property
    def step(self) -> int:
        """The last one done."""
        return int(self.summary.get("steps") or max((record["step"] for record in self.records), default=0))

    def best(self) -> float | None:
        """The figure on validation images: of the weights kept, or the best so far."""
        kept = self.summary.get(f"val_{self.figure}")
        seen = [record[f"val/{self.figure}"] for record in self.records if f"val/{self.figure}" in record]
        return float(kept) if kept is not None else max(seen, default=None)


class Section(NamedTuple):
    """What the page shows of one run by itself."""

    title: str
    pictures: list[Picture]
    commands: list[str]
    config: str


def read_run_directory(path: Path) -> RunOnPage:
    """Raises UserError where no run is there, DamagedError where its files cannot be read."""
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path}: no run is there: {path / 'config.yaml'} is missing")
    files = {"summary": path / "summary.json", "tested": path / "benchmark" / "metrics.json"}
    found = {name: read_json(file, f"{name} of a run") if file.is_file() else {} for name, file in files.items()}
    journal = path / "metrics.jsonl"
    records = Journal(journal).records() if journal.is_file() else []
    return RunOnPage(path, load_config(path / "config.yaml"), found["summary"], found["tested"], records)


def render(runs: Sequence[RunOnPage]) -> str:
    """The page."""
    one = runs[0]
    with inked():
        curves = [
            picture(partial(learning_curves, one, figure), f"Learning curves: {METRICS[figure]}")
            for figure, one in _curves(runs).items()
            if len(runs) > 1  # that of one is among its pictures
        ]
    context = {
        "title": one.name if len(runs) == 1 else f"{len(runs):,} runs",
        "facts": [("runs", f"{len(runs):,}"), ("jaxtrain", version("jaxtrain"))],
        "results": _results(runs),
        "differences": _differences(runs),
        "curves": curves,
        "sections": [_section(run) for run in runs[:MAX_ROWS]],
    }
    return render_template("runs.html.j2", context, Path(__file__).parent)


def _curves(runs: Sequence[RunOnPage]) -> dict[str, list[tuple[str, Sequence[Mapping[str, Any]]]]]:
    """By the figure that runs are ranked by."""
    figures = dict.fromkeys(run.figure for run in runs)
    return {figure: [(run.name, run.records) for run in runs if run.figure == figure] for figure in figures}


def _results(runs: Sequence[RunOnPage]) -> tuple[list[str], list[list[Cell]]]:
    head = ["model", "state", "validation", "test", "test loss", "steps", "time", "parameters", "data"]
    ranked = sorted(runs, key=lambda run: -(run.best() or -1.0))
    rows = []
    for run in ranked[:MAX_ROWS]:
        summary, figure = run.summary, run.figure
        seconds = summary.get("wall_seconds")
        rows.append(
            [
                Cell(run.name, str(summary.get("model") or run.config.model.name), "name"),
                _state(run),
                Cell(value(figure, run.best()), METRICS[figure]),
                _tested(run),
                Cell(value("loss", run.tested.get("test/loss"))),
                Cell(f"{run.step:,}"),
                Cell(cost("train_seconds", seconds) if seconds else "-"),
                Cell(with_prefix(summary["params"]) if summary.get("params") else "-"),
                Cell(str(summary.get("dataset") or run.config.data.name)),
            ]
        )
    return head, rows


def _state(run: RunOnPage) -> Cell:
    if run.summary:
        return Cell("finished")
    if not run.records:
        return Cell("not finished", "nothing recorded yet")
    last = datetime.fromtimestamp(run.records[-1]["time"]).astimezone()
    return Cell("not finished", f"last record {last:%Y-%m-%d %H:%M}")


def _tested(run: RunOnPage) -> Cell:
    name = f"test/{run.figure}"
    if (number := run.tested.get(name)) is None:
        return Cell("-")
    low, high = (run.tested.get(f"{name}_{end}") for end in ("low", "high"))
    images = run.tested.get("images")
    interval = f"{value(run.figure, low)} to {value(run.figure, high)}" if low is not None and high is not None else ""
    return Cell(value(run.figure, number), f"{interval}, {images:,} images" if images else interval)


def _differences(runs: Sequence[RunOnPage]) -> tuple[list[str], list[list[Cell]]]:
    """The options in which the runs differ, as rows, or as columns where there are more runs; none of one run."""
    runs = runs[:MAX_ROWS]
    options = [flat_config(run.config) for run in runs]
    names = [name for name in dict.fromkeys(name for one in options for name in one) if name not in _OF_THE_PLACE]
    differing = [name for name in names if len({str(one.get(name)) for one in options}) > 1]
    columns = [[cut(_shown(one.get(name))) for name in differing] for one in options]
    head, firsts = ["model", *differing[:_MAX_COLUMNS]], [run.name for run in runs]
    table = [column[:_MAX_COLUMNS] for column in columns]
    if len(runs) < len(differing):
        head, firsts, table = ["option", *firsts], differing, [list(row) for row in zip(*columns, strict=True)]
    rows = [[Cell(first, "", "name"), *map(Cell, row)] for first, row in zip(firsts, table, strict=True)]
    return head, rows if differing else []


def _section(run: RunOnPage) -> Section:
    pictures = []
    for name, text in _PICTURES.items():
        if (path := run.path / name).is_file():
            pictures.append(Picture(data_uri(read_bytes(path, _LARGEST_PICTURE), "image/png"), f"{text} of {run.name}"))
    if run.summary:
        commands = [shlex.join(command(name, run.path, what)) for name, what in _NEXT.items()]
    else:
        commands = [Reporter(run.config, run.path.absolute()).resume_command()]
    return Section(
        title=run.name,
        pictures=pictures,
        commands=commands,
        config=dump_config(without_passwords(run.config)),
    )


def _shown(option: object) -> str:
    return "-" if option is None else str(option)
