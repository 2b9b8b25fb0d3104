"""Pre-trained weights fitted to the network that is to be trained: other image sizes, channels and classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.models.registry import model_spec
from jaxtrain.models.weights.convert import Problems
from jaxtrain.models.weights.layout import Array, Arrays
from jaxtrain.models.weights.pretrained import Pretrained
from jaxtrain.models.weights.tables import TABLES


@dataclass(frozen=True)
class Adapted:
    """What was changed to make weights fit."""

    head: bool
    """Whether the head came along; if not, `params` has none, and the network's stays as it was initialised."""
    notes: tuple[str, ...] = ()
    """Each other change as a sentence for the log."""
    why: str | None = None
    """Why the head stays behind, which is as it should be for other classes."""


def adapt(
    pretrained: Pretrained,
    shapes: Mapping[str, Mapping[str, Any]],
    *,
    class_names: Sequence[str] | None = None,
    head: str = "head",
) -> tuple[Arrays, Arrays, Adapted]:
    """Parameters and batch statistics for a network of these shapes.

    Position embeddings are resized to the network's grid, the first kernel averaged over channels (and scaled so that
    a grey image gives what it gave as RGB). The head stays behind where its shape is another or the classes are not
    `class_names`; only it may.

    Args:
        pretrained: the weights.
        shapes: {"params", "model_state"}, anything with a shape by name.
        class_names: the data set's classes; None: those of the weights.
        head: where the head is in the network.

    Returns:
        `float32` arrays by name: params (without `head` where it stays behind), model_state, and what was done.

    Raises:
        UserError: lists what is missing, left over or of the wrong shape.
    """
    family = None if pretrained.model.network else TABLES.get(model_spec(pretrained.model.name or "").family)
    stem, positions = (family.stem, family.positions) if family else (None, None)
    problems, notes = Problems(), []
    wanted = {part: dict(shapes[part]) for part in ("params", "model_state")}
    have = {"params": dict(pretrained.params), "model_state": dict(pretrained.model_state)}
    reason = _why_not_the_head(have["params"], wanted["params"], pretrained, class_names, f"{head}/")
    if reason is not None:
        for leaves in (have["params"], wanted["params"]):
            for path in [path for path in leaves if path.startswith(f"{head}/")]:
                del leaves[path]
    elif class_names is not None and pretrained.class_names is None:
        notes.append(f"the head comes along: its {len(class_names)} classes have no names and are taken for the data "
                     "set's, in the same order")  # fmt: skip
    for part, leaves in wanted.items():
        problems.missing += leaves.keys() - have[part].keys()
        problems.left_over += have[part].keys() - leaves.keys()
        for path in leaves.keys() & have[part].keys():
            array, shape = have[part][path], tuple(leaves[path].shape)
            if array.shape != shape and path == positions and _resizable(array, shape):
                notes.append(f"position embeddings resized from {array.shape[1]} to {shape[1]} places")
                array = resize_positions(array, shape[1])
            elif array.shape != shape and path == stem and array.ndim == 4:
                notes.append(f"the first kernel averaged from {array.shape[2]} to {shape[2]} channels")
                array = average_channels(array, shape[2])
            if array.shape != shape:
                problems.misfits.append(f"{path} is {list(array.shape)}, {list(shape)} is needed")
            have[part][path] = array
    problems.check(f"model.weights: {pretrained.source} does not fit this model {pretrained.model.label}")
    return have["params"], have["model_state"], Adapted(head=reason is None, notes=tuple(notes), why=reason)


def _why_not_the_head(
    have: Mapping[str, Array],
    wanted: Mapping[str, Any],
    pretrained: Pretrained,
    class_names: Sequence[str] | None,
    head: str,
) -> str | None:
    """Why the head of the weights cannot be used; None where it can."""
    heads = [{path: tuple(leaf.shape) for path, leaf in leaves.items() if path.startswith(head)}
             for leaves in (have, wanted)]  # fmt: skip
    if not heads[0]:
        return "the weights have none"
    if heads[0] != heads[1]:
        return f"the weights' is for {pretrained.num_classes} classes"
    if class_names is not None and pretrained.class_names not in (None, tuple(class_names)):
        return "the weights' is for other classes"
    return None


def _resizable(array: Array, shape: tuple[int, ...]) -> bool:
    return array.ndim == 3 == len(shape) and array.shape[2] == shape[2] and _prefix(array.shape[1]) == _prefix(shape[1])


def _prefix(places: int) -> int:
    """1 where a class token stands before a square of patches, else 0."""
    return 0 if math.isqrt(places) ** 2 == places else 1


def resize_positions(positions: Array, places: int) -> Array:
    """Position embeddings `[1, places, width]` for another square grid: antialiased bicubic, as timm does it.

    A first place that is not part of the square (the class token's) stays as it is.
    """
    import jax

    prefix = _prefix(places)
    old, new = math.isqrt(positions.shape[1] - prefix), math.isqrt(places - prefix)
    width = positions.shape[2]
    grid = positions[:, prefix:].reshape(1, old, old, width)
    grid = np.asarray(jax.image.resize(grid, (1, new, new, width), "cubic"))
    return np.concatenate([positions[:, :prefix], grid.reshape(1, new * new, width)], axis=1)


def average_channels(kernel: Array, channels: int) -> Array:
    """A kernel `[height, width, channels, out]` for images of another number of channels."""
    mean = kernel.mean(axis=2, keepdims=True) * (kernel.shape[2] / channels)
    return np.ascontiguousarray(np.broadcast_to(mean, (*kernel.shape[:2], channels, kernel.shape[3])), np.float32)
