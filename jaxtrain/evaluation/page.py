"""The report as one page: no script, nothing from the network, every text escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtrain.evaluation import comparison_plots as pictures
from jaxtrain.evaluation import plots
from jaxtrain.evaluation.comparison import Comparison, Entry, Pair
from jaxtrain.evaluation.content import Content
from jaxtrain.evaluation.costs import Costs
from jaxtrain.evaluation.findings import Shown, Slice, label_text
from jaxtrain.evaluation.gallery import data_uri, thumbnail
from jaxtrain.evaluation.statistics import Interval
from jaxtrain.evaluation.wording import METRICS, cost, in_points, value
from jaxtrain.files import optional

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_FOLDER = Path(__file__).parent
_METRICS = (
    *("accuracy", "top5_accuracy", "balanced_accuracy", "mAP", "micro_mAP", "macro_f1", "micro_f1", "mcc"),
    *("subset_accuracy", "hamming_loss", "lrap", "coverage_error", "auroc_ovr", "auroc", "loss", "brier", "ece"),
)
_COSTS = {
    "params": "parameters",
    "trainable_params": "trained",
    "train_seconds": "training time",
    "images_seen": "images seen in the run",
    "flops_per_image": "operations per image",
    "latency_ms_p50": "latency p50",
    "latency_ms_p95": "p95",
    "latency_ms_p99": "p99",
    "images_per_second": "images/s",
    "best_batch": "at batch",
    "memory_mb": "memory",
    "decode_images_per_second": "decoding, images/s",
    "model_mb": "size on disk",
}
MAX_MATRIX = 12
"""Models in the matrix of wins, and confusion matrices."""
MAX_ROWS = 100
"""Rows of a table; the rest is in the files."""


class Cell(NamedTuple):
    """Text of a table, what is said below it in small, and its class in the style sheet."""

    text: str
    small: str = ""
    kind: str = ""


class Picture(NamedTuple):
    """A figure and its description for those who do not see it."""

    source: str
    text: str


class Tile(NamedTuple):
    """An image of a gallery with the lines below it."""

    source: str | None
    title: str
    lines: Sequence[tuple[str, str, bool | None]]
    """An answer, who gave it, and whether it is right; None: neither."""
    heat: str | None = None
    """The same image under a heat map."""


def render(report: Content) -> str:
    """The page."""
    return render_template("report.html.j2", _context(report))


def render_template(name: str, context: Mapping[str, Any], folder: Path = _FOLDER) -> str:
    """A page in the style of the report: the template of that name in `folder`, which may use `macros.html.j2`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([folder, _FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (_FOLDER / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template(name).render(style=style, style_digest=digest, **context)


def _context(report: Content) -> dict[str, Any]:
    comparison = report.comparison
    predictions = comparison.predictions
    figure = METRICS[comparison.figure]
    curves = [(entry.name, entry.candidate.curves) for entry in comparison.entries]
    figure = figure[0].upper() + figure[1:] if comparison.figure == "accuracy" else figure
    with pictures.inked():
        figures = {
            "leaderboard": picture(lambda: pictures.leaderboard(comparison), f"{figure} and interval of each model"),
            "pareto": picture(lambda: pictures.pareto(comparison), f"{figure} against costs"),
            "calibration": picture(lambda: pictures.calibration(comparison), "Reliability, and mistakes by coverage"),
            "per_class": picture(lambda: pictures.per_class(comparison), "Results by class and model"),
            "together": picture(lambda: pictures.labels_together(comparison), "Labels that images have together"),
            "curves": picture(
                lambda: pictures.learning_curves(curves, comparison.figure), "Learning curves of the runs"
            ),
            "robustness": picture(lambda: pictures.robustness(report.robustness), "Accuracy by severity of corruption"),
        }
        confusions = [_confusion(entry, predictions.class_names) for entry in comparison.entries[:MAX_MATRIX]]
    return {
        "title": predictions.dataset,
        "figure": figure,
        "several": predictions.multilabel,
        "facts": _facts(report),
        "warnings": report.warnings,
        "advice": report.advice[:MAX_ROWS],
        "leaderboard": _leaderboard(comparison),
        "recipes": _recipes(comparison),
        "folds": _folds(comparison),
        "costs": _costs(comparison.entries),
        "matrix": _matrix(comparison),
        "pairs": _pairs(comparison.pairs[:MAX_ROWS], report.verdicts),
        "pairs_left_out": max(len(comparison.pairs) - MAX_ROWS, 0),
        "calibration": _calibration(comparison.entries),
        "slices": _slices(report.slices),
        "figures": figures,
        "confusions": [one for one in confusions if one is not None],
        "galleries": _galleries(report),
        "near": _near(report),
        "robustness": _robustness(report.robustness),
        "margin": in_points(comparison.margin),
        "resamples": f"{comparison.resamples:,}",
    }


def picture(make: Callable[[], Figure | None], text: str) -> Picture | None:
    """A figure as the page takes it; None, with a warning, where it cannot be made."""
    with optional(f"the picture '{text}'"):
        if (figure := make()) is not None:
            return Picture(data_uri(pictures.to_svg(figure), "image/svg+xml"), text)
    return None


def _confusion(entry: Entry, class_names: Sequence[str]) -> Picture | None:
    if (confusion := entry.measured.confusion) is None:
        return picture(lambda: pictures.label_errors(entry), entry.name)
    return picture(lambda: plots.confusion_matrix(confusion, class_names), entry.name)


def _facts(report: Content) -> list[tuple[str, str]]:
    predictions = report.comparison.predictions
    parts = f"in {len(predictions.class_names):,} classes"
    if predictions.multilabel:
        parts = f"with any of {len(predictions.class_names):,} labels"
    looks = "not counted" if report.looks is None else f"{report.looks:,} models were measured on it so far"
    return [
        ("test images", f"{len(predictions.labels):,} {parts}"),
        ("test set", f"{predictions.test_digest[:12]}; {looks}"),
        ("models", f"{len(report.comparison.entries):,}"),
        ("jaxtrain", version("jaxtrain")),
    ]


def _leaderboard(comparison: Comparison) -> tuple[list[str], list[list[Cell]]]:
    """The first column says who is not told apart from the most accurate model."""
    first = comparison.entries[0]
    behind = {pair.second for pair in comparison.pairs if pair.first == first.name and pair.verdict == "better"}
    names = [name for name in _METRICS if any(name in entry.measured.metrics for entry in comparison.entries)]
    rows = []
    for rank, entry in enumerate(comparison.entries[:MAX_ROWS], start=1):
        tied = rank > 1 and entry.name not in behind
        row = [Cell(str(rank), "", "tied" if tied else ""), Cell(entry.name, entry.candidate.predictions.model, "name")]
        for name in names:
            number, interval = entry.measured.metrics.get(name), entry.measured.intervals.get(name)
            row.append(Cell(value(name, number), _range(name, interval)))
        rows.append(row)
    return ["", "model", *(METRICS[name] for name in names)], rows


def _recipes(comparison: Comparison) -> tuple[list[str], list[list[Cell]]]:
    names = [name for name in _METRICS if all(name in recipe.metrics for recipe in comparison.recipes)]
    rows = []
    for recipe in comparison.recipes[:MAX_ROWS]:
        row = [Cell(recipe.name, ", ".join(recipe.members) if len(recipe.members) > 1 else "", "name")]
        for name in names:
            mean, deviation, interval = recipe.metrics[name]
            spread = f" ± {value(name, deviation)}" if deviation else ""
            row.append(Cell(f"{value(name, mean)}{spread}", _range(name, interval)))
        rows.append(row)
    return ["recipe", *(METRICS[name] for name in names)], rows


def _folds(comparison: Comparison) -> tuple[list[str], list[list[Cell]]]:
    """Of the models that were cross-validated."""
    entries = [entry for entry in comparison.entries if entry.over_folds]
    names = [name for name in _METRICS if any(name in entry.over_folds for entry in entries)]
    rows = []
    for entry in entries[:MAX_ROWS]:
        row = [Cell(entry.name, f"{len(entry.candidate.folds)} folds", "name")]
        for name in names:
            over = entry.over_folds.get(name)
            text = "" if over is None else f"{value(name, over.mean)} ± {value(name, over.deviation)}"
            row.append(Cell(text, _range(name, over.interval if over else None)))
        rows.append(row)
    return ["model", *(METRICS[name] for name in names)], rows


def _costs(entries: Sequence[Entry]) -> tuple[list[str], list[list[Cell]]]:
    names = [name for name in _COSTS if any(name in entry.candidate.costs for entry in entries)]
    rows = [
        [Cell(entry.name, "", "name"), *(_cost(name, entry.candidate.costs) for name in names)]
        for entry in entries[:MAX_ROWS]
        if entry.candidate.costs
    ]
    return ["model", *(_COSTS[name] for name in names)], rows


def _cost(name: str, costs: Costs) -> Cell:
    more = name == "train_seconds" and costs.get("pretraining_unknown")
    return Cell(cost(name, costs.get(name)), "plus pre-training" if more else "")


def _matrix(comparison: Comparison) -> tuple[list[str], list[list[Cell]]]:
    """Row less column, in points."""
    names = [entry.name for entry in comparison.entries[:MAX_MATRIX]]
    by_names = {(pair.first, pair.second): pair for pair in comparison.pairs}
    rows = []
    for row in names:
        cells = [Cell(row, "", "name")]
        for column in names:
            pair = by_names.get((row, column)) or by_names.get((column, row))
            cells.append(Cell("") if pair is None else _win(pair, flipped=pair.first != row))
        rows.append(cells)
    return ["", *names], rows


def _win(pair: Pair, *, flipped: bool) -> Cell:
    gap = pair.gap
    sign = -1 if flipped else 1
    low, high = sorted((100 * sign * gap.corrected.low, 100 * sign * gap.corrected.high))
    kinds = {"better": "worse", "worse": "better"}
    kind = kinds.get(pair.verdict, pair.verdict) if flipped else pair.verdict
    return Cell(_signed(100 * sign * gap.difference), f"{_signed(low)} to {_signed(high)}", kind)


def _signed(points: float) -> str:
    """With its sign, which a zero has not."""
    text = f"{points:+.1f}"
    return text if float(text) else "0.0"


def _pairs(pairs: Sequence[Pair], sentences: Sequence[str]) -> tuple[list[str], list[list[Cell]]]:
    head = ["pair", "both right", "only first", "only second", "both wrong", "agree", "McNemar p", "Holm p"]
    several = any(pair.gap.p_holm is not None for pair in pairs)
    rows = []
    for pair, sentence in zip(pairs, sentences, strict=False):
        paired = pair.paired
        assert paired is not None
        rows.append(
            [
                Cell(f"{pair.first} / {pair.second}", sentence, "name"),
                *(Cell(f"{count:,}") for count in (paired.both_right, paired.only_first, paired.only_second)),
                Cell(f"{paired.both_wrong:,}"),
                Cell(f"{100 * paired.agreement:.1f}%"),
                *(Cell(f"{p:.2g}") for p in (paired.p, paired.p_holm, paired.p_equivalent)),
                Cell(f"{100 * paired.detectable:.1f} points"),
                *([Cell(f"{pair.gap.p_holm:.2g}")] if pair.gap.p_holm is not None else []),
            ]
        )
    return [*head, "equivalence p", "detectable", *(["mAP, Holm p"] if several else [])], rows


def _calibration(entries: Sequence[Entry]) -> tuple[list[str], list[list[Cell]]]:
    names = ("ece", "adaptive_ece", "loss")
    if "aurc" not in entries[0].measured.metrics:
        return _calibration_of_labels(entries)
    rows = []
    for entry in entries[:MAX_ROWS]:
        measured = entry.measured
        row = [Cell(entry.name, "", "name")]
        for name in names:
            row.append(Cell(value(name, measured.metrics[name]), _range(name, measured.intervals[name])))
        row.append(Cell("-" if measured.temperature is None else f"{measured.temperature:.2f}"))
        row += [Cell(value(name, measured.scaled.get(name))) for name in names]
        row += [Cell(value(name, measured.metrics[name])) for name in ("aurc", "coverage_at_1pct_risk")]
        rows.append(row)
    told = [METRICS[name] for name in names]
    return ["model", *told, "temperature", *(f"{name} then" for name in told), "AURC", "coverage at 1% risk"], rows


def _calibration_of_labels(entries: Sequence[Entry]) -> tuple[list[str], list[list[Cell]]]:
    names = ("label_ece", "loss", "brier")
    rows = []
    for entry in entries[:MAX_ROWS]:
        metrics, intervals = entry.measured.metrics, entry.measured.intervals
        cells = [Cell(value(name, metrics[name]), _range(name, intervals.get(name))) for name in names]
        rows.append([Cell(entry.name, "", "name"), *cells])
    return ["model", *(METRICS[name] for name in names)], rows


def _slices(slices: Sequence[Slice]) -> list[tuple[str, tuple[list[str], list[list[Cell]]]]]:
    """A table a column; of many values the hardest."""
    tables = []
    for column in dict.fromkeys(part.column for part in slices):
        parts = [part for part in slices if part.column == column]
        models = list(parts[0].accuracy)[:MAX_MATRIX]
        if len(parts) > MAX_ROWS:
            parts = sorted(parts, key=lambda part: part.accuracy[models[0]][0])[:MAX_ROWS]
        rows = []
        for part in parts:
            best = max(part.accuracy[model][0] for model in models)
            row = [Cell(part.value, "", "name"), Cell(f"{part.images:,}")]
            for model in models:
                share, interval = part.accuracy[model]
                row.append(Cell(value("accuracy", share), _range("accuracy", interval), "top" if share == best else ""))
            rows.append(row)
        tables.append((column, ([column, "images", *models], rows)))
    return tables


def _robustness(found: Mapping[str, Mapping[str, Sequence[float]]]) -> tuple[list[str], list[list[Cell]]]:
    """Accuracy on clean images, over all corruptions, and under each, the mean of its severities."""
    kinds = list(next(iter(found.values()))) if found else []
    rows = []
    for name, curves in found.items():
        means = [sum(curves[kind][1:]) / len(curves[kind][1:]) for kind in kinds]
        numbers = [curves[kinds[0]][0], sum(means) / len(means), *means]
        rows.append([Cell(name, "", "name"), *(Cell(value("accuracy", number)) for number in numbers)])
    return ["model", "clean", "all corruptions", *(kind.replace("_", " ") for kind in kinds)], rows


def _galleries(report: Content) -> list[tuple[str, str, list[Tile]]]:
    """Heading, explanation and images."""
    best = report.comparison.entries[0].name
    found = [
        (
            "Worst mistakes",
            f"Where {best}, the best model, gave the truth the lowest probability.{_about_heat(report)}",
            _tiles(report, report.worst, report.heat),
        )
    ]
    for one, other, shown in report.disagreements:
        text = f"{one.name} has these right and {other.name} has them wrong, the surest first."
        found.append((f"Right by {one.name} alone", text, _tiles(report, shown)))
    found.append(
        (
            "Labels that may be wrong",
            "All models together speak against the label, the surest first. A person has to judge.",
            _tiles(report, report.label_errors[:24]),
        )
    )
    return [gallery for gallery in found if gallery[2]]


def _about_heat(report: Content) -> str:
    if not report.heat:
        return ""
    what = "where the model looks" if "rollout" in report.heat_is else "what speaks for its answer"
    return f" Bright in the picture beside it is {what} ({report.heat_is})."


def _tiles(report: Content, shown: Iterable[Shown], heat: Mapping[int, str] | None = None) -> list[Tile]:
    tiles = []
    for one in shown:
        source = None if report.images is None else thumbnail(report.images, one.index)
        lines = [(f"{answer} {100 * sure:.0f}%", name, right) for name, answer, sure, right in one.answers[:6]]
        tiles.append(Tile(source, f"{one.label} · test {one.index}", lines, (heat or {}).get(one.index)))
    return tiles


def _near(report: Content) -> list[tuple[str, list[tuple[Tile, Tile]]]]:
    """Of each other set: how many test images look like one of it, and the first of them beside it."""
    found: list[tuple[str, list[tuple[Tile, Tile]]]] = []
    names = report.comparison.predictions.class_names
    for name, pairs in report.near.items():
        if pairs is None:
            found.append((f"The {name} set has too many images to look for some that are like test images", []))
            continue
        assert report.dataset is not None
        assert report.images is not None
        source = report.dataset.train if name == "training" else report.dataset.val
        assert source is not None
        tiles = []
        for pair in pairs[:12]:
            label, other = (
                label_text(split.labels[place], names)
                for split, place in ((report.images, pair.test), (source, pair.other))
            )
            tiles.append(
                (
                    Tile(thumbnail(report.images, pair.test), f"{label} · test {pair.test}", []),
                    Tile(thumbnail(source, pair.other), f"{other} · {name} {pair.other}", []),
                )
            )
        some = f"{len(pairs):,} test images look" if len(pairs) != 1 else "1 test image looks"
        found.append(
            (f"{some} like one of the {name} set" if pairs else f"None looks like one of the {name} set", tiles)
        )
    return found


def _range(name: str, interval: Interval | None) -> str:
    return "" if interval is None else f"{value(name, interval.low)} to {value(name, interval.high)}"
