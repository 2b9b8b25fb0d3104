"""Our weights in timm's names and layout, as safetensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxtrain.config import chosen
from jaxtrain.errors import RunError, UserError
from jaxtrain.files import reason
from jaxtrain.models.registry import ModelSpec, list_models, model_spec
from jaxtrain.models.weights.descriptions import Description
from jaxtrain.models.weights.layout import Arrays, Layout, their_names, to_theirs
from jaxtrain.models.weights.pretrained import Pretrained, load_pretrained
from jaxtrain.models.weights.sources import OURS
from jaxtrain.models.weights.tables import TABLES


def export_timm(weights: Pretrained | str | Path, path: str | Path) -> Path:
    """Writes weights as `timm.create_model(...).load_state_dict` takes them, and as `load_pretrained` reads them back.

    Args:
        weights: from `load_pretrained`, or what it takes (a run directory, a folder written by a classifier's `save`).
        path: the safetensors file; its metadata keeps model, preprocessing and class names.

    Raises:
        UserError: timm has no such network, or the file cannot be written there.
    """
    if not isinstance(weights, Pretrained):
        weights = load_pretrained(str(weights))
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    spec = model_spec(chosen(weights.model.name))
    layout = timm_layout(spec, weights)
    names = layout.names(TABLES[spec.family].groups(spec.kwargs))
    arrays: Arrays = {}
    for ours, array in {**weights.params, **weights.model_state}.items():
        found = their_names(ours, names, layout)
        if not found:
            raise UserError(f"{weights.source}: timm has no {ours} in {spec.name}")
        for theirs, part in zip(found, np.split(array, len(found), axis=-1), strict=True):
            arrays[theirs] = to_theirs(part, ours, layout)
    about = Description(
        model=spec.name,
        options=weights.model.model_dump(exclude_none=True, include={"act", "pool", "registers", "patch_size", "stem"}),
        image_size=weights.image_size,
        channels=weights.channels,
        mean=weights.mean,
        std=weights.std,
        crop_pct=weights.crop_pct,
        interpolation=weights.interpolation,
        class_names=weights.class_names,
    )
    metadata = {"format": "pt", OURS: about.to_json()}
    path = Path(path)
    try:
        save_file(arrays, path, metadata)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} could not be written: {reason(error)}") from error
    return path


def timm_layout(spec: ModelSpec, weights: Pretrained) -> Layout:
    """timm's layout for a network; UserError where timm has none."""
    family = TABLES.get(spec.family)
    if family is None or not family.layouts:
        have = [name for name in list_models() if (f := TABLES.get(model_spec(name).family)) and f.layouts]
        raise UserError(f"{weights.source}: timm has no {spec.name}; it has those of {', '.join(have[:3])}, ...")

    built_with = {**spec.kwargs, **weights.model.model_dump(exclude_none=True)}

    def fits(layout: Layout) -> tuple[bool, bool]:
        options = all(built_with.get(key) == value for key, value in layout.options.items())
        return options and spec.timm_name in layout.models, options and bool(layout.options)

    return max((layout for layout in family.layouts if layout.name.startswith("timm")), key=fits)
