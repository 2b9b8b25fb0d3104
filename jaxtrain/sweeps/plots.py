"""Pictures of a sweep."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxtrain.evaluation.comparison_plots import COLORS, MAX_ROWS
from jaxtrain.sweeps.results import Effect, Results, category, in_order
from jaxtrain.sweeps.settings import Axis, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MUTED = "#888888"
_COLUMNS = 3


def settings(found: Results) -> Figure | None:
    """Every setting's runs as points, with the mean and its interval; best at the top."""
    shown = [one for one in found.ranked if one.values][:MAX_ROWS]
    if not shown:
        return None
    factor, unit = _scale(found)
    figure, axes = _figure(8.0, 0.9 + 0.34 * len(shown))
    for row, one in enumerate(shown):
        color = COLORS[1] if one.setting.digest == found.baseline else COLORS[0]
        values = [factor * value for value in one.values.values()]
        axes.plot(values, [row] * len(values), "|", color=_MUTED, markersize=8)
        if math.isfinite(one.estimate.low):
            ends = [factor * one.estimate.low, factor * one.estimate.high]
            axes.plot(ends, [row, row], color=color, linewidth=2.5, solid_capstyle="butt")
        axes.plot(factor * one.estimate.mean, row, "o", color=color, markersize=6)
    labels = [one.setting.label + (" (baseline)" if one.setting.digest == found.baseline else "") for one in shown]
    axes.set_yticks(
        range(len(shown)), [label if len(label) < 60 else f"{label[:58]}..." for label in labels], fontsize=8
    )
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel(f"{found.sweep.objective}{unit}, mean over {found.sweep.repeated} with 95% interval")
    axes.grid(axis="x", alpha=0.25)
    return figure


def effects(found: Results) -> Figure | None:
    """Main effects: a panel for each axis, values from left to right with their intervals."""
    by_axis = {axis.name: [one for one in found.effects if one.axis == axis.name] for axis in found.axes}
    by_axis = {name: members for name, members in by_axis.items() if members}
    if not by_axis:
        return None
    from matplotlib.figure import Figure

    factor, unit = _scale(found)
    columns = min(len(by_axis), _COLUMNS)
    rows = -(-len(by_axis) // columns)
    figure = Figure(figsize=(4.0 * columns, 3.0 * rows), layout="constrained")
    panels: Any = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(by_axis) :]:
        axes.set_visible(False)
    for axes, (name, members) in zip(panels.flat, by_axis.items(), strict=False):
        _effect(axes, members, factor)
        axes.set_xlabel(name, fontsize=8)
    what = "difference to the baseline" if found.sweep.combine == "one_at_a_time" else "difference to the mean"
    for row in panels:
        row[0].set_ylabel(f"{what}{' in points' if unit else ''}", fontsize=8)
    return figure


def importances(found: Results) -> Figure | None:
    """Share of each axis in the variance of the objective."""
    if not found.importances:
        return None
    shares = sorted(found.importances.items(), key=lambda item: item[1])
    figure, axes = _figure(7.2, 0.9 + 0.34 * len(shares))
    axes.barh([name for name, _ in shares], [100 * share for _, share in shares], color=COLORS[0], height=0.6)
    axes.set_xlabel(f"share in the variance of {found.sweep.objective}, %")
    axes.set_xlim(0, 100)
    axes.grid(axis="x", alpha=0.25)
    return figure


def parallel_coordinates(found: Results) -> Figure | None:
    """One line per run across all axes to its objective; the better, the more colour."""
    runs = [one for one in found.outcomes if one.value is not None]
    if not runs or len(found.axes) < 1:
        return None
    import matplotlib

    factor, unit = _scale(found)
    values = np.asarray([factor * float(one.value or 0.0) for one in runs])
    spread = max(float(np.ptp(values)), 1e-12)
    good = (values - values.min()) / spread
    good = good if found.sweep.higher_is_better else 1 - good
    columns = [_places(axis, [one.setting.options for one in runs]) for axis in found.axes]
    columns.append(((values - values.min()) / spread, [(0.0, f"{values.min():.4g}"), (1.0, f"{values.max():.4g}")]))
    names = [*(", ".join(map(short, axis.paths)) for axis in found.axes), f"{found.sweep.objective}{unit}"]
    figure, axes = _figure(max(6.0, 1.8 * len(columns)), 4.0)
    colors = matplotlib.colormaps["viridis"]
    for number in np.argsort(good):
        line = [float(places[number]) for places, _ in columns]
        axes.plot(range(len(columns)), line, color=colors(0.9 * good[number]), alpha=0.35 + 0.6 * good[number])
    for place, (_, ticks) in enumerate(columns):
        axes.axvline(place, color=_MUTED, linewidth=0.8)
        for height, text in ticks:
            axes.annotate(text, (place, height), xytext=(4, 2), textcoords="offset points", fontsize=7)
    axes.set_xticks(range(len(columns)), names, fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) - 0.6)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def _places(axis: Axis, options: list[Any]) -> tuple[Any, list[tuple[float, str]]]:
    """Heights in 0..1 of the runs on an axis, and its ticks."""
    if axis.range is not None:
        scale = np.log if axis.range.log else np.asarray
        low, high = scale(axis.range.low), scale(axis.range.high)
        numbers = np.asarray([float(one[axis.paths[0]]) for one in options])
        ticks = [(0.0, f"{axis.range.low:g}"), (1.0, f"{axis.range.high:g}")]
        return (scale(numbers) - low) / (high - low), ticks
    words = [category(axis, one) for one in options]
    names = in_order(axis, words)
    with suppress(ValueError):  # numbers go upwards
        names = sorted(names, key=float)
    heights = {name: place / max(len(names) - 1, 1) for place, name in enumerate(names)}
    return np.asarray([heights[word] for word in words]), [(height, name) for name, height in heights.items()]


def _effect(axes: Axes, members: list[Effect], factor: float) -> None:
    axes.axhline(0, color=_MUTED, linewidth=0.8)
    for place, one in enumerate(members):
        if math.isfinite(one.estimate.low):
            ends = [factor * one.estimate.low, factor * one.estimate.high]
            axes.plot([place, place], ends, color=COLORS[0], linewidth=2.5, solid_capstyle="butt")
        axes.plot(place, factor * one.estimate.mean, "o", color=COLORS[0], markersize=6)
    axes.set_xticks(range(len(members)), [one.value[:24] for one in members], fontsize=8)
    axes.set_xlim(-0.5, len(members) - 0.5)
    axes.grid(axis="y", alpha=0.25)


def _scale(found: Results) -> tuple[float, str]:
    """Accuracies are shown in percent."""
    return (100.0, ", %") if found.sweep.higher_is_better else (1.0, "")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()
