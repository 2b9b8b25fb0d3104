"""Pictures of feature extraction: the grid of settings, the embeddings in the plane, nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.config import DataConfig, chosen
from jaxtrain.data.base import ImageSource
from jaxtrain.data.decode import read_image
from jaxtrain.evaluation.plots import BLUE, GREY, ORANGE, save
from jaxtrain.heads import FittedHead, Vectors

MAX_POINTS = 2000
"""Points of a projection; more are sampled, evenly over the classes."""
_NEIGHBOURS, _QUERIES = 7, 8
_COLOURS = (BLUE, ORANGE, GREY, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def save_grid(head: FittedHead, path: Path) -> Path:
    """Validation accuracy and losses of every setting that was tried: a line for each setting of the other options.

    The axis is the numeric option with the most values.
    """
    from matplotlib.figure import Figure

    curve = head.curve
    options = [key for key in head.settings if len({str(entry.get(key)) for entry in curve}) > 1]
    axis = max(options, key=lambda key: (_numeric(curve, key), len({str(entry.get(key)) for entry in curve})))
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in curve:
        groups.setdefault(", ".join(f"{key} {entry.get(key)}" for key in options if key != axis), []).append(entry)
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = (("val_accuracy", "validation accuracy, %", 100), ("val_loss", "validation loss", 1))
    for number, (name, title, factor) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, 2, number)
        for place, (label, entries) in enumerate(groups.items()):
            points = [(entry[axis], factor * entry[name]) for entry in entries if entry.get(name) is not None]
            points.sort(key=lambda point: point[0])
            if points:
                axes.plot(
                    *zip(*points, strict=True), "o-", color=_COLOURS[place % 7], label=label or None, markersize=3
                )
        best = {key: head.settings.get(key) for key in options}
        if _numeric(curve, axis):
            _logarithmic(axes, [float(entry[axis]) for entry in curve])
            axes.axvline(float(head.settings[axis]), color=GREY, linestyle=":", linewidth=1)
        axes.set_xlabel(axis.replace("_", " "))
        axes.set_title(title)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if number == 1:
            chosen_one = ", ".join(f"{key} {value}" for key, value in best.items())
            axes.set_title(f"{title} (chosen: {chosen_one})", fontsize=10)
        if 1 < len(groups) <= 12:
            axes.legend(frameon=False, fontsize=8)
    save(figure, path)
    return path


def save_projection(vectors: Vectors, class_names: Sequence[str], seed: int, path: Path) -> Path:
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
    save(figure, path)
    return path


def save_neighbours(
    queries: tuple[ImageSource, NDArray[np.float32]],
    train: tuple[ImageSource, NDArray[np.float32]],
    class_names: Sequence[str],
    data: DataConfig,
    path: Path,
) -> Path:
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
            picture = read_image(images, index, channels=chosen(data.channels), max_pixels=data.max_pixels)
            axes.imshow(picture, cmap="grey", vmin=0, vmax=255)
            right = label == cells[0][2]
            axes.set_title(class_names[label][:14] + text, fontsize=7, color="black" if right else ORANGE)
            axes.set_xticks([])
            axes.set_yticks([])
    grid[0][0].set_ylabel("test image", fontsize=8)
    save(figure, path)
    return path


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _sample(vectors: Vectors, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    if len(vectors.x) <= MAX_POINTS:
        return vectors.x, vectors.y
    places = np.random.default_rng(seed).permutation(len(vectors.x))[:MAX_POINTS]
    return vectors.x[places], vectors.y[places]


def _numeric(curve: Sequence[Mapping[str, Any]], key: str) -> bool:
    return all(isinstance(entry.get(key), (int, float)) and not isinstance(entry[key], bool) for entry in curve)


def _logarithmic(axes: Any, values: Sequence[float]) -> None:
    positive = [value for value in values if value > 0]
    if positive and max(positive) / min(positive) > 20:
        if len(positive) < len(values):
            axes.set_xscale("symlog", linthresh=min(positive))
        else:
            axes.set_xscale("log")
