"""How other software names and lays out the parameters of a network: a table for each family and origin.

A table says, for each module of ours, which module of theirs holds the same numbers. Parts that repeat (blocks, stages)
are written once, with places to fill: `"blocks/{i}/norm1": "blocks.{i}.norm1"`. The same table serves both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = dict[str, Array]
"""Arrays by their full name, in one flat dict."""
Names = tuple[str, ...]
Fields = Mapping[str, int]
Groups = Callable[[Mapping[str, Any]], Mapping[str, Sequence[Fields]]]
"""From a variant's arguments (the registry's `kwargs`) to the repetitions of each group of rules."""

TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
FLAX_LEAVES = {"kernel": "kernel", "scale": "scale", "bias": "bias"}


@dataclass(frozen=True)
class Layout:
    """One origin's names for the parameters of a family."""

    name: str
    rules: Mapping[str, Mapping[str, str | Names]]
    """Group ("" for what is there once) -> our module or array -> theirs; several of theirs are joined along the
    outputs."""
    leaves: Mapping[str, str] = field(default_factory=lambda: TORCH_LEAVES)
    """Names of a module's arrays, ours -> theirs."""
    separator: str = "."
    """Between the name of a module and of its array."""
    transposed: bool = True
    """Kernels lie as PyTorch has them: [out, in] and [out, in, height, width]."""
    prefixes: Names = ()
    """What may stand before names, where the network is a part of a larger one."""
    ignored: Names = ()
    """Shell patterns of their arrays that play no part in classifying."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `ModelConfig` that weights in this layout call for."""
    convolutions: Names = ()
    """Shell patterns of our linear kernels that are 1x1 convolutions there."""
    models: Names = ()
    """timm's names of the models that it has in this layout, where it has others of the family in another."""
    requires: str | None = None
    """An array of theirs without which weights are not in this layout."""
    variant: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of every network whose weights are in this layout; a name that says otherwise is wrong."""
    mean: tuple[float, ...] | None = None
    """Of the images that all weights in this layout were trained on; None: as the registry says."""
    std: tuple[float, ...] | None = None
    prepare: Callable[[Arrays, Mapping[str, Any]], Arrays] | None = None
    """Makes their arrays (by name, without prefix) ready for the rules, given the variant's arguments."""

    def names(self, repetitions: Mapping[str, Sequence[Fields]]) -> dict[str, Names]:
        """Our modules and arrays -> theirs, every repetition written out."""
        return {
            ours.format(**fields): tuple(name.format(**fields) for name in _tuple(theirs))
            for group, rules in self.rules.items()
            for fields in (repetitions[group] if group else [{}])
            for ours, theirs in rules.items()
        }


@dataclass(frozen=True)
class Family:
    """What is known about a family's weights."""

    stem: str
    """Path of the kernel that sees the images."""
    layouts: tuple[Layout, ...] = ()
    """The first is timm's."""
    positions: str | None = None
    """Path of the embedding that holds a vector for each patch, after those for other tokens."""
    groups: Groups = lambda kwargs: {}


def _tuple(names: str | Names) -> Names:
    return (names,) if isinstance(names, str) else names


def their_names(path: str, names: Mapping[str, Names], layout: Layout) -> Names:
    """The arrays of theirs that make up our array at `path`; () where the table has none."""
    if path in names:
        return names[path]
    module, _, leaf = path.rpartition("/")
    if module not in names or leaf not in layout.leaves:
        return ()
    return tuple(f"{name}{layout.separator}{layout.leaves[leaf]}" for name in names[module])


def to_ours(parts: Sequence[Array], path: str, shape: tuple[int, ...], layout: Layout) -> Array | None:
    """Their arrays as our one at `path`, as near to `shape` as the layout can bring it: `float32`.

    None where several of them cannot be joined.
    """
    if not layout.transposed:
        parts = [_as_matrix(part, path, shape) for part in parts]
    try:
        array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=0 if layout.transposed else -1)
    except ValueError:
        return None
    if layout.transposed and path.endswith("/kernel"):
        if array.ndim == 4 and len(shape) == 2 and array.shape[2:] == (1, 1):  # 1x1 convolution for a linear layer
            array = array[:, :, 0, 0]
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return np.ascontiguousarray(array, np.float32)


def _as_matrix(part: Array, path: str, shape: tuple[int, ...]) -> Array:
    """Flax keeps attention's kernels as [width, heads, width / heads] or the other way round."""
    if part.ndim == 3 and len(shape) == 2 and path.endswith("/kernel"):
        first, second, third = part.shape
        return part.reshape((first, second * third) if first == shape[0] else (first * second, third))
    return part.reshape(-1) if part.ndim == 2 and path.endswith("/bias") else part


def to_theirs(array: Array, path: str, layout: Layout) -> Array:
    """Our array at `path` as timm's: the inverse of `to_ours` where one array makes one."""
    if path.endswith("/kernel"):
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        if any(fnmatchcase(path, pattern) for pattern in layout.convolutions):
            array = array[:, :, None, None]
    return np.ascontiguousarray(array)
