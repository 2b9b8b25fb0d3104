"""Pre-trained weights by one string, from wherever they are, ready to fit into a network."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtrain.config import ModelConfig
from jaxtrain.errors import UserError
from jaxtrain.models.registry import FAMILIES, ModelSpec, model_spec
from jaxtrain.models.weights.convert import Tree, convert, float32
from jaxtrain.models.weights.sources import Found, find


@dataclass(frozen=True)
class Pretrained:
    """A trained network: its arrays, what builds it, and how its images were prepared."""

    source: str
    """What the person wrote."""
    model: ModelConfig
    """Complete: builds the network that these weights fit."""
    params: Tree
    """Nested dicts of `float32` NumPy arrays, with strings as keys."""
    model_state: Tree
    """Batch statistics, likewise."""
    image_size: int
    """Side in pixels of the images that the weights were trained for."""
    channels: int
    mean: tuple[float, ...]
    """Of each channel in 0..1, subtracted."""
    std: tuple[float, ...]
    """Of each channel in 0..1, divided by."""
    crop_pct: float
    """Share of the resized image's side that the centre crop keeps in evaluation."""
    interpolation: str
    """Of that resize: bilinear or bicubic."""
    class_names: tuple[str, ...] | None
    """Of the weights' own head, where known."""
    num_classes: int
    """Rows of that head; 0 if there is none."""
    digest: str
    """SHA-256 over all arrays in a fixed order: identifies backbone and head."""

    def normalization(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation for images of so many channels: averaged where the weights have others."""
        if channels == self.channels:
            return self.mean, self.std
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return (mean,) * channels, (std,) * channels


def load_pretrained(weights: str, model: ModelConfig | None = None) -> Pretrained:
    """The weights that a string names.

    Args:
        weights: a run directory or saved model of jaxtrain, `hf:ORG/NAME[@REVISION]`, `package:NAME`, or the path of
            a `.safetensors`, `.npz` or `.pth` file or of an Orbax folder.
        model: options that a person gave. Its name, where given, has to be that of the weights (or of a network of the
            same shape); other options are kept.

    Raises:
        UserError: there is nothing there, it cannot be told for which model it is, it is for another one, or arrays
            are missing, left over or of the wrong shape.
    """
    from jaxtrain.saved_tree import tree_digest

    model = model or ModelConfig()
    found = find(weights)
    name = _model_name(found, model.name, weights)
    spec = model_spec(name)
    given = model.model_dump(exclude_unset=True, exclude_none=True)
    options = ModelConfig.model_validate({**found.options, **given, "name": name, "weights": weights})
    if found.tree is not None:
        params, state = float32(found.tree["params"]), float32(found.tree["model_state"])
        head = params.get("head", {}).get("kernel")
        size, channels, classes = found.image_size, found.channels, 0 if head is None else head.shape[-1]
    else:
        made = convert(found.arrays, options, weights)
        options, params, state, classes = made.model, made.params, made.model_state, made.num_classes
        size, channels = made.image_size, made.channels
    names = found.class_names
    return Pretrained(
        source=weights,
        model=options,
        params=params,
        model_state=state,
        image_size=size or found.image_size or spec.image_size,
        channels=channels or spec.channels,
        mean=found.mean or spec.mean,
        std=found.std or spec.std,
        crop_pct=found.crop_pct or spec.crop_pct,
        interpolation=found.interpolation or spec.interpolation,
        class_names=names if names is not None and len(names) == classes else None,
        num_classes=classes,
        digest=tree_digest({"params": params, "model_state": state}),
    )


def _model_name(found: Found, given: str | None, weights: str) -> str:
    """The registered model that the weights are for: as the source says, or as the person does."""
    if given is not None:
        spec = model_spec(given)
        if found.model is not None and not _same_network(spec, model_spec(found.model)):
            raise UserError(f"model.name: {weights} holds {found.model}, not {given}")
        return given
    if found.model is None:
        raise UserError(f"model.name: {weights} does not say for which model it is{found.hint}; give model.name")
    return found.model


def _same_network(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether two names stand for one network, whatever the size of its images."""
    return FAMILIES[one.family] is FAMILIES[other.family] and dict(one.kwargs) == dict(other.kwargs)
