"""Pictures of a comparison, for a light and a dark page: text and axes take the page's colour."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.evaluation.comparison import Comparison, Entry
from jaxtrain.evaluation.predictions import Predictions
from jaxtrain.evaluation.wording import COSTS, with_prefix
from jaxtrain.label_metrics import sigmoid
from jaxtrain.tasks import softmax

Records = Sequence[Mapping[str, Any]]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008, those that are seen on white and on black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#999999")
INK = "#010203"
"""Stands for the colour of text in an SVG."""
_MUTED = "#888888"
_OF_INK = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor")
_CLEAR = ("figure.facecolor", "axes.facecolor", "legend.facecolor")
MAX_LINES = 8
"""Models that are drawn over each other."""
MAX_ROWS = 40
_NAMED = 6
_COUNTED = 20
_BINS = 10


@contextlib.contextmanager
def inked() -> Iterator[None]:
    """Figures that are made inside have no background, and text and axes in `INK`."""
    import matplotlib

    options: dict[Any, Any] = dict.fromkeys(_OF_INK, INK) | dict.fromkeys(_CLEAR, "none")
    with matplotlib.rc_context(options | {"text.parse_math": False}):
        yield


def to_svg(figure: Figure) -> bytes:
    """An SVG whose `INK` is dark on a light page and light on a dark one; the same figure gives the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "jaxtrain", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode()
    style = "<style>svg{color:#1c2024}@media (prefers-color-scheme:dark){svg{color:#e4e7eb}}</style>"
    start = text.index(">", text.index("<svg")) + 1
    return (text[:start] + style + text[start:]).replace(INK, "currentColor").encode()


def leaderboard(comparison: Comparison) -> Figure:
    """Accuracy (or mAP) of each model with its 95% interval, best at the top."""
    entries = comparison.entries[:MAX_ROWS]
    figure, axes = _figure(7.2, 0.9 + 0.34 * len(entries))
    techniques = sorted({entry.candidate.predictions.technique for entry in entries})
    for row, entry in enumerate(entries):
        low, high = (100 * bound for bound in entry.measured.intervals[comparison.figure])
        technique = entry.candidate.predictions.technique
        color = COLORS[techniques.index(technique) % len(COLORS)]
        axes.plot([low, high], [row, row], color=color, linewidth=2.5, solid_capstyle="butt")
        axes.plot(100 * entry.score, row, "o", color=color, markersize=7)
    axes.set_yticks(range(len(entries)), [_short(entry.name) for entry in entries])
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.set_xlabel(f"test {comparison.figure}, %, with 95% interval")
    axes.grid(axis="x", alpha=0.25)
    return figure


def pareto(comparison: Comparison) -> Figure | None:
    """Accuracy against each cost; models for which another is as accurate and as cheap are grey.

    Of runs that differ in their seed alone the mean is shown. Few points have names, many the ranks of the leaderboard.
    """
    points = [(recipe.name, recipe.metrics[comparison.figure][0], recipe.costs) for recipe in comparison.recipes] or [
        (entry.name, entry.score, entry.candidate.costs) for entry in comparison.entries
    ]
    known = [name for name in COSTS if any(costs.get(name) for _, _, costs in points)]
    if not known:
        return None
    figure, panels = _panels(len(known), width=4.2, height=3.6)
    for axes, name in zip(panels, known, strict=True):
        shown = [(place, *point) for place, point in enumerate(points) if point[2].get(name)]
        costs = np.array([found[name] for *_, found in shown])
        accuracy = np.array([100 * share for _, _, share, _ in shown])
        best = frontier(costs, accuracy)
        axes.scatter(costs[~best], accuracy[~best], color=_MUTED, s=26)
        order = np.argsort(costs[best])
        axes.plot(
            costs[best][order], accuracy[best][order], "o-", color=COLORS[0], drawstyle="steps-post", markersize=6
        )
        middle = np.sqrt(costs.min() * costs.max())
        for (place, label, *_), x, y in zip(shown, costs, accuracy, strict=True):
            left = x > middle
            axes.annotate(
                _short(label, 22) if len(points) <= _NAMED else str(place + 1),
                (x, y),
                xytext=(-6 if left else 6, -10 if place % 2 else 5),
                textcoords="offset points",
                fontsize=8,
                ha="right" if left else "left",
            )
        if costs.max() > 3 * costs.min():
            _logarithmic(axes, costs.max() / costs.min())
        axes.margins(x=0.1, y=0.15)
        axes.set_xlabel(_with_unit(name))
        axes.grid(alpha=0.25)
    panels[0].set_ylabel(f"test {comparison.figure}, %")
    return figure


def _logarithmic(axes: Axes, factor: float) -> None:
    """An axis from the least value to `factor` times it, with plain numbers: 10^3 would need formulas."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if factor < 30 else (1.0,), numticks=6))
    axes.xaxis.set_major_formatter(lambda value, _: with_prefix(value).replace(" ", ""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def frontier(costs: NDArray[np.float64], accuracy: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which models no other one beats: as accurate at a lower cost, or more accurate at the same."""
    cheaper = costs[None, :] <= costs[:, None]
    better = accuracy[None, :] >= accuracy[:, None]
    strictly = (costs[None, :] < costs[:, None]) | (accuracy[None, :] > accuracy[:, None])
    return np.logical_not((cheaper & better & strictly).any(axis=1))


def calibration(comparison: Comparison) -> Figure:
    """Reliability diagram, and share of mistakes among the most confident images, of the first models."""
    figure, (left, right) = _panels(2, width=4.6, height=4.2)
    left.plot([0, 100], [0, 100], color=_MUTED, linewidth=1, linestyle=":")
    for place, entry in enumerate(comparison.entries[:MAX_LINES]):
        confidence, correct = _confidence(entry)
        bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
        used = [b for b in range(_BINS) if (bins == b).sum() >= 5]
        x = [100 * confidence[bins == b].mean() for b in used]
        y = [100 * correct[bins == b].mean() for b in used]
        left.plot(x, y, "o-", color=_color(place), label=_short(entry.name), markersize=4, linewidth=1.4)
        order = np.argsort(-confidence, kind="stable")
        risk = np.cumsum(~correct[order]) / np.arange(1, len(order) + 1)
        coverage = 100 * np.arange(1, len(order) + 1) / len(order)
        start = min(len(order) // 50, len(order) - 1)  # the share among a handful of images is noise
        right.plot(coverage[start:], 100 * risk[start:], color=_color(place), linewidth=1.4)
    left.set_xlabel("confidence, %")
    left.set_ylabel("accuracy, %")
    left.set_title("reliability: on the diagonal is right", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    right.set_xlabel("share of images answered, the surest first, %")
    right.set_ylabel("mistakes among them, %")
    right.set_title("what refusing unsure answers would gain", fontsize=10)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    return figure


def per_class(comparison: Comparison) -> Figure:
    """Share of right answers in each class; of many classes, those that the models find hardest."""
    names = comparison.predictions.class_names
    several = comparison.predictions.multilabel
    column = "average_precision" if several else "recall"
    recalls = np.array([[row[column] for row in entry.measured.per_class] for entry in comparison.entries])
    support = np.array([row["support"] for row in comparison.entries[0].measured.per_class])
    present = np.flatnonzero(support)
    hardest = present[np.argsort(recalls[:, present].mean(axis=0), kind="stable")[:MAX_ROWS]]
    rows = np.sort(hardest) if len(present) <= MAX_ROWS else hardest
    figure, axes = _figure(7.2, 1.1 + 0.28 * len(rows))
    for row, place in enumerate(rows):
        axes.plot([100 * recalls[:, place].min(), 100 * recalls[:, place].max()], [row, row], color=_MUTED, linewidth=1)
    for place, entry in list(enumerate(comparison.entries[:MAX_LINES]))[::-1]:
        marker = "osD^vPX*"[place % 8]
        axes.plot(
            100 * recalls[place, rows],
            range(len(rows)),
            marker,
            color=_color(place),
            label=_short(entry.name),
            markersize=5,
            alpha=0.85,
        )
    axes.set_yticks(range(len(rows)), [f"{_short(names[i])}  ({support[i]:,})" for i in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    told = "average precision of the label" if several else "right answers in the class"
    axes.set_xlabel(f"{told}, % (number of test images)")
    axes.grid(axis="x", alpha=0.25)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def labels_together(comparison: Comparison) -> Figure | None:
    """Which labels the test images have together; None where images have one class."""
    predictions = comparison.predictions
    if not predictions.multilabel:
        return None
    names, rows, shares = _label_squares(predictions, (predictions.labels == 1).astype(np.float64))
    return _label_picture(names, rows, shares, ("label of the image", "label it also has"), "share of its images")


def label_errors(entry: Entry) -> Figure | None:
    """Which labels one model misses, on the diagonal, and which it wrongly gives beside each; None for one class."""
    predictions = entry.candidate.predictions
    if not predictions.multilabel:
        return None
    given = (entry.predicted & (predictions.labels == 0)).astype(np.float64)
    names, rows, shares = _label_squares(predictions, given)
    true = (predictions.labels == 1)[:, rows]
    missed = np.count_nonzero(true & ~entry.predicted[:, rows], axis=0) / np.maximum(np.count_nonzero(true, axis=0), 1)
    np.fill_diagonal(shares, missed)
    told = "label of the image", "label wrongly given (diagonal: the label missed)"
    return _label_picture(names, rows, shares, told, "share of the images with the label")


def _label_squares(predictions: Predictions, marked: NDArray[Any]) -> tuple[list[str], NDArray[Any], NDArray[Any]]:
    """Names and places of the most frequent labels, and the share of each one's images that are marked for another.

    Of images with label i of which j is known, those that `marked[images, classes]` holds: `[i, j]`.
    """
    true, known = (predictions.labels == 1).astype(np.float64), (predictions.labels >= 0).astype(np.float64)
    rows = np.sort(np.argsort(-true.sum(axis=0), kind="stable")[:MAX_ROWS])
    mine = true[:, rows]
    shares = mine.T @ marked[:, rows] / np.maximum(mine.T @ known[:, rows], 1)
    return [f"{_short(predictions.class_names[i], 24)} ({int(true[:, i].sum()):,})" for i in rows], rows, shares


def _label_picture(
    names: Sequence[str], rows: NDArray[Any], shares: NDArray[Any], told: tuple[str, str], unit: str
) -> Figure:
    size = min(max(3.0 + 0.36 * len(rows), 4.2), 11.0)
    figure, axes = _figure(size + 1.0, size)
    bar = figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), ax=axes, shrink=0.8)
    bar.set_label(unit)
    axes.set_xticks(range(len(rows)), [name.rpartition(" (")[0] for name in names], rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_ylabel(f"{told[0]} (test images)")
    axes.set_xlabel(told[1])
    if len(rows) <= _COUNTED:
        for (row, column), share in np.ndenumerate(shares):
            text = f"{100 * share:.0f}" if share >= 0.005 else ""
            axes.text(column, row, text, ha="center", va="center", color="white" if share > 0.5 else "#333", fontsize=8)
    return figure


def learning_curves(runs: Sequence[tuple[str, Records]], metric: str) -> Figure | None:
    """Validation `metric` and training loss over the steps of each run (name, records of its journal), side by side."""
    name = f"val/{metric}"
    shown = [(place, *run) for place, run in enumerate(runs[:MAX_LINES]) if len(_series(run[1], name)[0]) > 1]
    if not shown:
        return None
    figure, (left, right) = _panels(2, width=4.6, height=3.6)
    for place, run, records in shown:
        steps, values = _series(records, name)
        left.plot(steps, 100 * values, color=_color(place), label=_short(run), linewidth=1.4)
        steps, values = _series(records, "train/loss")
        if len(steps) > 1:
            right.plot(steps, values, color=_color(place), linewidth=1.2)
    left.set_title(f"validation {metric}, %", fontsize=10)
    right.set_title("training loss", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        axes.grid(alpha=0.25)
    return figure


def robustness(found: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure | None:
    """Mean accuracy over all corruptions at each severity, 0 the clean images; `{model: {corruption: accuracies}}`."""
    if not found:
        return None
    figure, axes = _figure(6.0, 3.8)
    for place, (name, by_corruption) in enumerate(list(found.items())[:MAX_LINES]):
        means = 100 * np.mean(list(by_corruption.values()), axis=0)
        axes.plot(range(len(means)), means, "o-", color=_color(place), label=_short(name), markersize=4)
    axes.set_xlabel("severity of the corruption")
    axes.set_ylabel("mean accuracy, %")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _confidence(entry: Entry) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Of each image; of several labels, of each known entry, by one half."""
    predictions = entry.candidate.predictions
    if predictions.multilabel:
        known, p = predictions.labels >= 0, sigmoid(predictions.logits)
        return np.maximum(p, 1 - p)[known], ((p >= 0.5) == (predictions.labels == 1))[known]
    return softmax(predictions.logits).max(axis=1), entry.correct


def _series(records: Records, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    found = {int(record["step"]): float(record[name]) for record in records if name in record}
    steps = sorted(found)
    return np.array(steps, np.int64), np.array([found[step] for step in steps], np.float64)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure, (axes,) = _panels(1, width=width, height=height)
    return figure, axes


def _panels(count: int, *, width: float, height: float) -> tuple[Figure, Sequence[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height), layout="constrained")
    panels = [figure.add_subplot(1, count, place) for place in range(1, count + 1)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _color(place: int) -> str:
    return COLORS[place % len(COLORS)]


def _with_unit(name: str) -> str:
    return {
        "train_seconds": "training time, s",
        "flops_per_image": "operations per image",
        "latency_ms_p50": "latency of one image, ms",
    }[name]


def _short(name: str, longest: int = 32) -> str:
    half = (longest - 3) // 2
    return name if len(name) <= longest else f"{name[:half]}...{name[-half:]}"
