"""Pictures of feature extraction: the grid of settings, the embeddings in the plane, nearest neighbours."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.config import DataConfig, chosen
from jaxtrain.data.base import ImageSource
from jaxtrain.data.decode import read_picture
from jaxtrain.evaluation.plots import BLUE, GREY, ORANGE
from jaxtrain.heads import FittedHead, Vectors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 2000
"""Points of a projection; more are sampled, evenly over the classes."""
_NEIGHBOURS, _QUERIES = 7, 8
_MAX_GROUPS = 12
_PANELS = (("val_accuracy", "validation accuracy, %", 100), ("val_loss", "validation loss", 1))
_COLOURS = (BLUE, ORANGE, GREY, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def grid(head: FittedHead) -> Figure | None:
    """Validation accuracy and loss of every setting that was tried: a line for each setting of the other options.

    The axis is the option with the most numbers; settings that have none there are horizontal lines. None where no
    option varies.
    """
    from matplotlib.figure import Figure

    curve = head.curve
    values = {key: {str(entry.get(key)) for entry in curve} for key in head.settings if key not in head.follows}
    options = [key for key in values if len(values[key]) > 1]
    if not options:
        return None
    axis = max(options, key=lambda key: (len(_numbers(curve, key)), len(values[key])))
    numeric = len(_numbers(curve, axis)) > 1
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in curve:
        groups.setdefault(", ".join(f"{key} {entry.get(key)}" for key in options if key != axis), []).append(entry)
    if len(groups) > _MAX_GROUPS:  # drawn values: hardly two share the other options
        groups = {"": [*curve]}
    figure = Figure(figsize=(11, 4), layout="constrained")
    for number, (name, title, factor) in enumerate(_PANELS, start=1):
        axes = figure.add_subplot(1, 2, number)
        for place, (label, entries) in enumerate(groups.items()):
            points = [(entry.get(axis), factor * entry[name]) for entry in entries if entry.get(name) is not None]
            _line(axes, points, numeric, {"color": _COLOURS[place % 7], "label": label or None})
        if numeric:
            _logarithmic(axes, _numbers(curve, axis))
            if _is_number(head.settings[axis]):
                axes.axvline(head.settings[axis], color=GREY, linestyle=":", linewidth=1)
        axes.set_xlabel(axis.replace("_", " "))
        axes.set_title(title)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if number == 1:
            chosen_one = ", ".join(f"{key} {_short(head.settings[key])}" for key in options)
            axes.set_title(f"{title}\nchosen: {chosen_one}", fontsize=9, wrap=True)
        if len(groups) > 1:
            axes.legend(frameon=False, fontsize=8)
    return figure


def _line(axes: Axes, points: Sequence[tuple[Any, float]], numeric: bool, style: dict[str, Any]) -> None:
    """Values by the numbers of an axis, or by its words."""
    if not numeric:
        axes.plot([str(x) for x, _ in points], [y for _, y in points], "o", markersize=4, **style)
        return
    placed = sorted((x, y) for x, y in points if _is_number(x))
    if placed:
        axes.plot(*zip(*placed, strict=True), "o-" if len({x for x, _ in placed}) > 1 else "o", markersize=3, **style)
    for x, y in points:
        if not _is_number(x):
            axes.axhline(y, linestyle="--", linewidth=1, color=style["color"], label=f"{x}")


def projection(vectors: Vectors, class_names: Sequence[str], seed: int) -> Figure:
    """Embeddings in the plane, coloured by class: by principal components, and by t-SNE (van der Maaten 2008)."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    x, y = _sample(vectors, seed)
    reduced = PCA(min(50, *x.shape), random_state=seed).fit_transform(x - x.mean(0))
    perplexity = min(30.0, max((len(x) - 1) / 3, 1.0))
    planes = {"principal components": reduced[:, :2]}
    if len(x) > 3:
        planes["t-SNE"] = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    figure = Figure(figsize=(6 * len(planes) + 1.5, 5.5), layout="constrained")
    colours = colormaps["tab10" if len(class_names) <= 10 else "tab20" if len(class_names) <= 20 else "turbo"]
    spread = 10 if len(class_names) <= 10 else 20 if len(class_names) <= 20 else len(class_names)
    for place, (title, plane) in enumerate(planes.items(), start=1):
        axes = figure.add_subplot(1, len(planes), place)
        for label in np.unique(y):
            points = plane[y == label]
            colour = colours((label + 0.5) / spread)
            axes.scatter(points[:, 0], points[:, -1], s=9, color=colour, linewidths=0, label=class_names[label])
        axes.set_title(f"{len(x):,} validation images, {title}")
        axes.set_xticks([])
        axes.set_yticks([])
    if len(class_names) <= 30:
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside right center", fontsize=8, markerscale=2, frameon=False
        )
    return figure


def neighbours(
    queries: tuple[ImageSource, NDArray[np.float32]],
    train: tuple[ImageSource, NDArray[np.float32]],
    class_names: Sequence[str],
    data: DataConfig,
) -> Figure:
    """Some test images, evenly spread, each beside its nearest training images by cosine similarity."""
    from matplotlib.figure import Figure

    source, vectors = queries
    places = np.unique(np.linspace(0, len(vectors) - 1, _QUERIES).astype(int))
    columns = min(_NEIGHBOURS, len(train[1])) + 1
    known, asked = _unit(train[1]), _unit(vectors[places])
    similarity = asked @ known.T
    figure = Figure(figsize=(1.5 * columns, 1.75 * len(places)), layout="constrained")
    grid = figure.subplots(len(places), columns, squeeze=False)
    for row, place in enumerate(places):
        nearest = np.argsort(-similarity[row], kind="stable")[: columns - 1]
        cells = [(source, int(place), int(source.labels[place]), "")]
        cells += [(train[0], int(i), int(train[0].labels[i]), f" ({similarity[row, i]:.2f})") for i in nearest]
        for axes, (images, index, label, text) in zip(grid[row], cells, strict=True):
            picture = read_picture(images, index, channels=chosen(data.channels), max_pixels=data.max_pixels)
            axes.imshow(picture, cmap="grey", vmin=0, vmax=255)
            right = label == cells[0][2]
            axes.set_title(class_names[label][:14] + text, fontsize=7, color="black" if right else ORANGE)
            axes.set_xticks([])
            axes.set_yticks([])
    grid[0][0].set_ylabel("test image", fontsize=8)
    return figure


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _sample(vectors: Vectors, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    if len(vectors.x) <= MAX_POINTS:
        return vectors.x, vectors.y
    places = np.random.default_rng(seed).permutation(len(vectors.x))[:MAX_POINTS]
    return vectors.x[places], vectors.y[places]


def _numbers(curve: Sequence[Mapping[str, Any]], key: str) -> set[float]:
    return {entry[key] for entry in curve if _is_number(entry.get(key))}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _logarithmic(axes: Any, values: Collection[float]) -> None:
    positive = [value for value in values if value > 0]
    if positive and max(positive) / min(positive) > 20:
        if len(positive) < len(values):
            axes.set_xscale("symlog", linthresh=min(positive))
        else:
            axes.set_xscale("log")
