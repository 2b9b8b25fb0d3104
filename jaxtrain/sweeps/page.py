"""The results of a sweep as one page, in the style of the Benchmark's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxtrain.evaluation.comparison_plots import inked
from jaxtrain.evaluation.page import MAX_ROWS, Cell, picture, render_template
from jaxtrain.sweeps import plots
from jaxtrain.sweeps.report import in_words
from jaxtrain.sweeps.results import Estimate, Ranked, Results, category

Table = tuple[list[str], list[list[Cell]]]


def render(found: Results, best: str | None, test: Mapping[str, Any] | None) -> str:
    """The page; `best` is the YAML of the best config, `test` what `final_test` gives."""
    return render_template("sweep.html.j2", _context(found, best, test), Path(__file__).parent)


FIGURES = {
    "settings": plots.settings,
    "effects": plots.effects,
    "importances": plots.importances,
    "parallel": plots.parallel_coordinates,
}
"""What makes each picture; None where it would show nothing."""
_TEXTS = {
    "settings": "The objective of every setting with its interval",
    "effects": "Main effects of every axis",
    "importances": "Share of each axis in the variance",
    "parallel": "Parallel coordinates of all runs",
}


def _context(found: Results, best: str | None, test: Mapping[str, Any] | None) -> dict[str, Any]:
    sweep = found.sweep
    with inked():
        shown = {name: picture(partial(make, found), _TEXTS[name]) for name, make in FIGURES.items()}
    against = "baseline" if sweep.combine == "one_at_a_time" else "mean over all settings in the same place"
    return {
        "title": sweep.name,
        "objective": sweep.objective,
        "repeated": sweep.repeated,
        "facts": _facts(found),
        "warnings": warnings(found),
        "test": _test(test),
        "settings": _settings(found),
        "effects": _effects(found),
        "effect_text": f"Difference to the {against}, mean over {sweep.repeated} with its 95% interval.",
        "interactions": _interactions(found),
        "runs": _runs(found),
        "figures": shown,
        "best": best,
    }


def warnings(found: Results) -> list[str]:
    """What speaks against trusting the figures."""
    lines = []
    ended = [one for one in found.outcomes if one.value is None]
    if ended:
        lines.append(f"{len(ended)} of {len(found.outcomes)} runs have no result: they are in no mean")
    if len(found.sweep.repeats) < 3:
        lines.append("fewer than 3 seeds say little about what another seed would give")
    if same := found.seedless:
        some = "every setting" if len(same) == len(found.ranked) else f"{len(same)} settings"
        lines.append(f"all seeds of {some} came to the same parameters: one result each, without an interval")
    if tied := found.tied:
        labels = "; ".join(one.setting.label for one in tied[:3]) + ("; ..." if len(tied) > 3 else "")
        lines.append(f"a tie for the best, of which the cheapest was chosen (parameters, then seconds); also: {labels}")
    best, base = found.best, found.baseline
    if best is not None and best.setting.digest != base and best.against is not None:
        sign = 1.0 if found.sweep.higher_is_better else -1.0
        if not sign * (best.against.low if sign > 0 else best.against.high) > 0:
            lines.append("the chosen setting cannot be told apart from the baseline by these runs")
    return lines


def _facts(found: Results) -> list[tuple[str, str]]:
    sweep = found.sweep
    done = sum(one.value is not None for one in found.outcomes)
    seconds = sum(float(one.summary.get("wall_seconds") or 0.0) for one in found.outcomes)
    return [
        ("settings", f"{len(found.ranked)} x {len(sweep.repeats)} {sweep.repeated}, {done} runs done"),
        ("combined", sweep.combine),
        ("objective", sweep.objective),
        ("training", f"{seconds:.0f} s in all"),
        ("jaxtrain", version("jaxtrain")),
    ]


def _settings(found: Results) -> Table:
    names = [axis.name for axis in found.axes]
    rows = []
    for rank, one in enumerate(found.ranked[:MAX_ROWS], start=1):
        words = [Cell(category(axis, one.setting.options), "", "name") for axis in found.axes]
        rows.append([Cell(str(rank)), *words, *_numbers(found, one)])
    return ["", *names, found.sweep.objective, "to baseline", found.sweep.repeated], rows


def _numbers(found: Results, one: Ranked) -> list[Cell]:
    higher = found.sweep.higher_is_better
    gap = Cell("baseline") if one.setting.digest == found.baseline else _gap(one.against, higher)
    seeds = f"{len(one.values)}" + (f" of {len(one.values) + one.unfinished}" if one.unfinished else "")
    return [Cell(in_words(one.estimate, higher)), gap, Cell(seeds)]


def _gap(one: Estimate | None, higher: bool) -> Cell:
    """Coloured where the interval excludes 0."""
    if one is None:
        return Cell("")
    sign = 1.0 if higher else -1.0
    low, high = sorted((sign * one.low, sign * one.high))
    kind = "better" if low > 0 else "worse" if high < 0 else ""
    return Cell(in_words(one, higher, signed=True), "", kind)


def _effects(found: Results) -> Table:
    higher = found.sweep.higher_is_better
    rows = [
        [Cell(one.axis, "", "name"), Cell(one.value, "", "name"), _gap(one.estimate, higher)]
        for one in found.effects[:MAX_ROWS]
    ]
    return ["axis", "value", "effect"], rows


def _interactions(found: Results) -> Table:
    higher = found.sweep.higher_is_better
    rows = [
        [Cell(" x ".join(one.axes), "", "name"), Cell(" x ".join(one.values), "", "name"), _gap(one.estimate, higher)]
        for one in found.interactions[:MAX_ROWS]
    ]
    return ["axes", "values", "interaction"], rows


def _runs(found: Results) -> Table:
    rows = [
        [
            Cell(one.name, one.setting.label, "name"),
            Cell(str(one.repeat)),
            Cell("" if one.value is None else f"{one.value:.4f}"),
            Cell(one.how),
        ]
        for one in found.outcomes
    ]
    return ["run", "of", found.sweep.objective, "ended"], rows


def _test(test: Mapping[str, Any] | None) -> Table:
    rows: list[list[Cell]] = []
    for name, one in (test or {}).get("settings", {}).items():
        interval = f"{100 * one['low']:.2f} to {100 * one['high']:.2f}"
        each = ", ".join(f"{100 * value:.2f}" for value in one["accuracies"])
        rows.append([Cell(name, one["label"], "name"), Cell(f"{100 * one['mean']:.2f}", interval), Cell(each)])
    return ["model", "test accuracy, %", "each"], rows


def rows_for_terminal(found: Results, most: int) -> Sequence[dict[str, str]]:
    """The best settings, and the baseline, as rows of a table."""
    head, rows = _settings(found)
    kept = [
        dict(zip(head, (cell.text for cell in row), strict=True))
        for row, one in zip(rows, found.ranked, strict=False)
        if int(row[0].text) <= most or one.setting.digest == found.baseline
    ]
    # Spaces, at which a narrow terminal breaks the name of an option.
    return [{name.rpartition(".")[2].replace("_", " ") or "rank": text for name, text in row.items()} for row in kept]
