"""Pre-trained weights by one string, from wherever they are, ready to fit into a network."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtrain.config import ModelConfig, chosen
from jaxtrain.errors import UserError
from jaxtrain.models.registry import ModelSpec, model_spec
from jaxtrain.models.weights.convert import content, convert, float32
from jaxtrain.models.weights.layout import Arrays
from jaxtrain.models.weights.sources import Found, find
from jaxtrain.models.weights.tables import TABLES
from jaxtrain.trees import tree_digest


@dataclass(frozen=True)
class Pretrained:
    """A trained network: its arrays, what builds it, and how its images were prepared."""

    source: str
    """What the person wrote."""
    model: ModelConfig
    """Complete: builds the network that these weights fit."""
    params: Arrays
    """`float32` NumPy arrays by name: `{"blocks/0/norm1/scale": array}`."""
    model_state: Arrays
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
        """Mean and standard deviation for images of this many channels: averaged where the weights have others."""
        return _of_channels(self.mean, channels), _of_channels(self.std, channels)


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
    model = model or ModelConfig()
    found = find(weights)
    about = found.about
    if model.network is not None or "network" in about.options:
        return _own(found, model, weights)
    name = _model_name(found, model.name, weights)
    spec = model_spec(name)
    given = model.model_dump(exclude_unset=True, exclude_none=True)
    options = ModelConfig.model_validate({**about.options, **given, "name": name, "weights": weights})
    size, channels = about.image_size, about.channels
    mean, std = about.mean or spec.mean, about.std or spec.std
    if found.tree is not None:
        params, state = float32(found.tree["params"]), float32(found.tree["model_state"])
        classes = params["head/kernel"].shape[-1] if "head/kernel" in params else 0
        family = TABLES.get(spec.family)
        if family is not None and family.stem in params:
            channels = params[family.stem].shape[2]
    else:
        made = convert(found.arrays, options, weights)
        options, params, state, classes = made.model, made.params, made.model_state, made.num_classes
        size, channels = size or made.image_size, made.channels
        mean, std = about.mean or made.layout.mean or mean, about.std or made.layout.std or std
    names, channels = about.class_names, channels or spec.channels
    return Pretrained(
        source=weights,
        model=options,
        params=params,
        model_state=state,
        image_size=size or spec.image_size,
        channels=channels,
        mean=_of_channels(mean, channels),
        std=_of_channels(std, channels),
        crop_pct=about.crop_pct or spec.crop_pct,
        interpolation=about.interpolation or spec.interpolation,
        class_names=tuple(names) if names is not None and len(names) == classes else None,
        num_classes=classes,
        digest=tree_digest({"params": params, "model_state": state}),
    )


def _own(found: Found, model: ModelConfig, weights: str) -> Pretrained:
    """The weights of a network of one's own, which a run of jaxtrain has trained."""
    about, tree = found.about, found.tree
    network = model.network or about.options.get("network")
    if tree is None or None in (about.image_size, about.channels, about.mean, about.std):
        raise UserError(f"model.weights: {weights} holds no weights of {network}; give the directory of a run")
    if "network" not in about.options:
        raise UserError(f"model.network: {weights} holds {about.model}, not {network}")
    params, state = float32(tree["params"]), float32(tree["model_state"])
    return Pretrained(
        source=weights,
        model=ModelConfig(network=network, weights=weights),
        params=params,
        model_state=state,
        image_size=chosen(about.image_size),
        channels=chosen(about.channels),
        mean=chosen(about.mean),
        std=chosen(about.std),
        crop_pct=about.crop_pct or 1.0,
        interpolation=about.interpolation or "bilinear",
        class_names=about.class_names,
        num_classes=len(about.class_names or ()),
        digest=tree_digest({"params": params, "model_state": state}),
    )


def _of_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A value for each channel: their mean where there are values of another number of channels."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _model_name(found: Found, given: str | None, weights: str) -> str:
    """The registered model that the weights are for: as the source says, or as the person does.

    Neither is believed where the arrays are such as only another model has.
    """
    said = found.about.model or given
    if said is None:
        raise UserError(f"model.name: {weights} does not say for which model it is; give model.name")
    held = content(found.arrays, model_spec(said)) if found.tree is None else model_spec(said)
    if given is None:
        return held.name
    if not _same_network(model_spec(given), held):
        raise UserError(f"model.name: {weights} holds {held.name}, not {given}")
    return given


def _same_network(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether two names stand for one network, whatever the size of its images."""
    return one.family == other.family and dict(one.kwargs) == dict(other.kwargs)
