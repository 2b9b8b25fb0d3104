"""Pictures for people: learning curves and the confusion matrix, readable in print and by the colour-blind.

Figures are made without pyplot, so nothing is global and no display is needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.files import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008: told apart by all common kinds of colour vision, and by their lightness in grey print.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"
MAX_COUNTS = 20
"""Above this many classes the cells of a confusion matrix hold no numbers."""
MAX_TICKS = 40
"""Above this many classes only some of the names are shown."""
MAX_CELLS = 250
"""Above this many classes a cell represents several, so that a mistake is still seen."""
MAX_NAME = 23


def save(make: Callable[[], Figure | None], path: Path) -> list[Path]:
    """Make a figure and write it as a PNG, 150 dots an inch; the file, or nothing: no run ends for a picture.

    Characters that the font lacks become boxes, without a warning.
    """
    with optional(str(path)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        if (figure := make()) is not None:
            figure.savefig(path, dpi=150, format="png")
            return [path]
    return []


def learning_curves(records: Sequence[Mapping[str, Any]], kept_step: int | None = None) -> Figure:
    """Loss, accuracy and learning rate over steps, from the records of `metrics.jsonl`.

    A record is `{"step": int, "train/loss": float, ...}` with whatever metrics were logged at that step.
    `kept_step`, that of the weights that the run keeps, is marked. Panels without a value are left out.
    """
    from matplotlib.figure import Figure

    panels = [
        ("loss", [("train/loss", "training", BLUE), ("val/loss", "validation", ORANGE)]),
        ("accuracy", [("train/accuracy", "training", BLUE), ("val/accuracy", "validation", ORANGE)]),
        ("mAP", [("val/mAP", "validation", ORANGE)]),
        ("learning rate", [("learning_rate", "", GREY)]),
    ]
    present = [(title, lines) for title, lines in panels if any(_series(records, name)[0].size for name, _, _ in lines)]
    figure = Figure(figsize=(4.4 * max(len(present), 1), 3.6), layout="constrained")
    for place, (title, lines) in enumerate(present, start=1):
        axes = figure.add_subplot(1, len(present), place)
        for name, label, color in lines:
            _draw_series(axes, *_series(records, name), label, color)
        if kept_step is not None and title != "learning rate":
            axes.axvline(kept_step, color=GREY, linewidth=1, linestyle=":", label=f"kept: step {kept_step:,}")
        axes.set_xlabel("step")
        axes.set_title(title)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.locator_params(axis="x", nbins=5, integer=True)
        if title != "learning rate":
            axes.legend(frameon=False, fontsize=9)
    return figure


def confusion_matrix(matrix: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Images `int64[true class, predicted class]`, each row coloured by its share of that class.

    Up to 20 classes the cells hold the counts; with more than 40 only some classes are named; with more than
    250 a cell stands for several classes and shows the largest share among them.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    classes = len(class_names)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = min(max(3.2 + 0.38 * classes, 4.2), 11.0)
    figure = Figure(figsize=(size + 1.0, size), layout="constrained")
    axes = figure.add_subplot()
    block = -(-classes // MAX_CELLS)
    pooled = _pool(share, block)
    edge = len(pooled) * block - 0.5
    # The square root of the share: the few mistakes of a good model would else be invisible.
    picture = axes.imshow(
        pooled,
        cmap="Blues",
        norm=PowerNorm(0.5, vmin=0, vmax=1),
        interpolation="nearest",
        extent=(-0.5, edge, edge, -0.5),
    )
    bar = figure.colorbar(picture, ax=axes, shrink=0.8, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.set_label("share of the true class" if block == 1 else f"largest share in {block} x {block} classes")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    shown = range(0, classes, -(-classes // MAX_TICKS))
    names = [_short(class_names[i]) for i in shown]
    font = 10 if classes <= MAX_COUNTS else 8
    # Names may hold dollar signs, which would else be read as formulas.
    turned = 90 if max(map(len, names)) > 2 else 0
    axes.set_xticks(shown, names, rotation=turned, fontsize=font, parse_math=False)
    axes.set_yticks(shown, names, fontsize=font, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    axes.set_title(f"{accuracy:.2%} of {matrix.sum():,} images right")
    if classes <= MAX_COUNTS:
        points = 0.72 * size * 72 / classes / len(str(matrix.max()))
        for (row, column), count in np.ndenumerate(matrix):
            color = "white" if share[row, column] > 0.3 else "black"
            text = str(count) if count else ""
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=min(points, 10))
    return figure


def _pool(share: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """The largest value of each block x block square."""
    padded = np.pad(share, (0, -len(share) % block))
    cells = len(padded) // block
    return padded.reshape(cells, block, cells, block).max(axis=(1, 3))


def _series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps and values of one metric, by step; of a step that was logged twice the later record counts."""
    found = {int(record["step"]): float(record[name]) for record in records if record.get(name) is not None}
    steps = sorted(found)
    return np.array(steps, np.int64), np.array([found[step] for step in steps], np.float64)


def _draw_series(axes: Axes, steps: NDArray[np.int64], values: NDArray[np.float64], label: str, color: str) -> None:
    """A line; of many noisy points also their running mean, the points themselves then pale."""
    if not steps.size:
        return
    if label == "training" and steps.size > 100:
        axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
        window = steps.size // 40
        values = np.convolve(values, np.ones(window) / window, mode="valid")
        steps = steps[window // 2 :][: values.size]
    marker = "o" if steps.size <= 50 else ""
    axes.plot(steps, values, color=color, linewidth=1.6, label=label, marker=marker, markersize=3)


def _short(name: str) -> str:
    """Cut in the middle: long names often differ at their end."""
    half = (MAX_NAME - 3) // 2
    return name if len(name) <= MAX_NAME else f"{name[:half]}...{name[-half:]}"
