"""Other software's arrays as the parameters of one of our networks: every one accounted for, or an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from jaxtrain.config import ModelConfig, chosen
from jaxtrain.errors import UserError
from jaxtrain.models.registry import ModelSpec, create_model, list_models, model_spec
from jaxtrain.models.weights.layout import Array, Arrays, Family, Layout, Names, their_names, to_ours
from jaxtrain.models.weights.tables import TABLES
from jaxtrain.trees import flat

Shape = tuple[int, ...]

_WRAPPERS = ("_orig_mod.", "module.", "timm_model.", "model.", "backbone.")
"""Put before all names by `torch.compile`, data-parallel training and wrapping modules."""
_HEAD = "head/"
_SHOWN = 5


@dataclass(frozen=True)
class Converted:
    """A network's arrays in our names, and what they say of it."""

    model: ModelConfig
    layout: Layout
    params: Arrays
    model_state: Arrays
    image_size: int | None
    """Side of the images that the position embeddings are for; None where any size does."""
    channels: int
    num_classes: int


def convert(arrays: Arrays, model: ModelConfig, source: str) -> Converted:
    """Maps all `arrays` to the network that `model` describes.

    Raises UserError where the family has no table, and one that lists what is missing, left over or of the wrong shape.
    """
    spec = model_spec(chosen(model.name))
    family = TABLES.get(spec.family)
    if family is None or not family.layouts:
        raise UserError(f"model.weights: only weights that jaxtrain saved fit model {spec.name}, not {source}")
    layout, names, arrays = _layout_of(_unwrapped(arrays), family, spec)
    options = {**layout.options, **model.model_dump(exclude_none=True)}
    model = ModelConfig.model_validate(options)
    if layout.prepare is not None:
        arrays = layout.prepare(arrays, spec.kwargs)
    image_size, channels, classes = _measures(arrays, family, names, layout, spec, model)
    wanted = shapes_of(model, image_size or spec.image_size, channels, classes or 1)
    params: Arrays = {}
    state: Arrays = {}
    used: set[str] = set()
    problems = Problems()
    for path, shape in wanted["params"].items() | wanted["model_state"].items():
        theirs = their_names(path, names, layout)
        if path.startswith(_HEAD) and not classes:
            continue
        used |= set(theirs)
        missing = [name for name in theirs if name not in arrays]
        if missing or not theirs:
            problems.missing += missing or [path]
            continue
        array = to_ours([arrays[name] for name in theirs], path, shape, layout)
        if array is None or array.shape != shape:
            makes = "nothing" if array is None else list(array.shape)
            problems.misfits.append(f"{' + '.join(theirs)} makes {makes}, {list(shape)} is needed")
        else:
            (params if path in wanted["params"] else state)[path] = array
    spare = arrays.keys() - used
    problems.left_over += [name for name in spare if not any(fnmatchcase(name, p) for p in layout.ignored)]
    problems.check(f"model.weights: {source} ({layout.name} layout) does not fit model {spec.name}")
    return Converted(model, layout, params, state, image_size, channels, classes)


def content(arrays: Arrays, spec: ModelSpec) -> ModelSpec:
    """The model that arrays said to be of `spec` are for: its twin, where their layout is only used for that one."""
    family = TABLES.get(spec.family)
    if family is None or not family.layouts:
        return spec
    kwargs = dict(spec.kwargs) | dict(_layout_of(_unwrapped(arrays), family, spec)[0].variant)
    if kwargs == dict(spec.kwargs):
        return spec
    twins = (other for other in map(model_spec, list_models()) if other.family == spec.family)
    return next((other for other in twins if dict(other.kwargs) == kwargs), spec)


class Problems:
    """What stands between weights and a network, told in one error."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.left_over: list[str] = []
        self.misfits: list[str] = []

    def check(self, what: str) -> None:
        """Raises UserError with all lists, each cut after a few entries, if there is anything in them."""
        lists = {"missing": self.missing, "left over": self.left_over, "of the wrong shape": self.misfits}
        said = [f"{len(names)} {title}: {_shortened(sorted(names))}" for title, names in lists.items() if names]
        if said:
            raise UserError(f"{what}; {'; '.join(said)}")


def _shortened(names: list[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


# --- names


def _unwrapped(arrays: Arrays) -> Arrays:
    """Without what stands before every single name."""
    for prefix in _WRAPPERS:
        if arrays and all(name.startswith(prefix) for name in arrays):
            return _unwrapped({name.removeprefix(prefix): array for name, array in arrays.items()})
    return arrays


def _layout_of(arrays: Arrays, family: Family, spec: ModelSpec) -> tuple[Layout, dict[str, Names], Arrays]:
    """The layout that knows most of the arrays, its names, and the arrays without the layout's prefix."""
    repetitions = family.groups(spec.kwargs)
    best: tuple[int, Layout, dict[str, Names], Arrays] | None = None
    for layout in family.layouts:
        names = layout.names(repetitions)
        modules = {name for group in names.values() for name in group}
        for prefix in ("", *layout.prefixes):
            stripped = {name.removeprefix(prefix): array for name, array in arrays.items()}
            if layout.requires is not None and layout.requires not in stripped:
                continue
            known = sum(name in modules or name.rpartition(layout.separator)[0] in modules for name in stripped) + (
                layout.requires is not None
            )
            if best is None or known > best[0]:
                best = known, layout, names, stripped
    assert best is not None
    return best[1:]


def _measures(
    arrays: Arrays, family: Family, names: Mapping[str, Names], layout: Layout, spec: ModelSpec, model: ModelConfig
) -> tuple[int | None, int, int]:
    """Image size (of position embeddings), channels and classes that the arrays are for."""

    def theirs(path: str) -> Array | None:
        found = their_names(path, names, layout)
        return arrays.get(found[0]) if found else None

    stem, head = theirs(family.stem), theirs("head/kernel")
    channels = stem.shape[1 if layout.transposed else 2] if stem is not None and stem.ndim == 4 else 0
    size = None
    positions = theirs(family.positions) if family.positions else None
    if positions is not None and positions.ndim == 3:
        with_class = spec.kwargs.get("class_token", True) and spec.kwargs.get("class_position", True)
        patch = model.patch_size or spec.kwargs["patch_size"]
        size = math.isqrt(max(positions.shape[1] - with_class, 0)) * patch
    if head is None or head.ndim != 2:
        return size, channels or spec.channels, 0 if head is None else 1
    return size, channels or spec.channels, head.shape[0 if layout.transposed else 1]


# --- trees


def shapes_of(model: ModelConfig, image_size: int, channels: int, num_classes: int) -> dict[str, dict[str, Shape]]:
    """ "params" and "model_state" -> the shape at each path of the network; nothing is computed."""
    from flax import nnx

    network = nnx.eval_shape(
        lambda: create_model(model, num_classes=num_classes, channels=channels, image_size=image_size)
    )
    _, params, state = nnx.split(network, nnx.Param, ...)
    trees = {"params": nnx.to_pure_dict(params), "model_state": nnx.to_pure_dict(state)}
    return {part: {path: tuple(leaf.shape) for path, leaf in flat(tree).items()} for part, tree in trees.items()}


def float32(tree: Mapping[Any, Any]) -> Arrays:
    """The leaves by name, as float32."""
    return {path: np.asarray(leaf, np.float32) for path, leaf in flat(tree).items()}
