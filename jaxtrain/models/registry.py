"""Every model by name. Reading the table imports neither JAX nor Flax; building a model does.

What makes a model is in `variants.py`, what is known about it in `catalogue.csv`.

Names, sizes and preprocessing of models that timm has are timm's, those of its default weights for the name.
"""

from __future__ import annotations

import csv
import functools
import importlib
import importlib.resources
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxtrain.config import ModelConfig, chosen
from jaxtrain.errors import UserError, nearest
from jaxtrain.models.build import Build
from jaxtrain.models.variants import VARIANTS

if TYPE_CHECKING:
    from jax.typing import ArrayLike, DTypeLike

    from jaxtrain.models.classifier import Classifier


HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class ModelSpec:
    """A registered model, and how the images for its pre-trained weights are prepared."""

    name: str
    family: str
    """Key of `FAMILIES`."""
    kwargs: Mapping[str, Any]
    """What makes the variant: arguments of the family's class."""
    image_size: int
    """Side of the square images, in pixels, unless the data says otherwise."""
    timm_name: str | None = None
    """The same network in timm, parameter for parameter; None where timm has none."""
    mean: tuple[float, ...] = HALF
    """Of each channel in 0..1, subtracted."""
    std: tuple[float, ...] = HALF
    """Of each channel in 0..1, divided by."""
    crop_pct: float = 1.0
    """Share of the resized image's side that the centre crop keeps in evaluation."""
    interpolation: str = "bicubic"
    """bicubic or bilinear, of that resize."""
    channels: int = 3
    """Channels of the images that the pre-trained weights take."""


@dataclass(frozen=True)
class Family:
    """Where a family's class is, and which options of `ModelConfig` it has."""

    module: str
    cls: str
    options: frozenset[str] = field(default_factory=frozenset)


EVERYWHERE = frozenset({"drop_rate", "remat"})
"""Options that every family has."""
FAMILIES = {
    "mlp": Family("simple", "MLP"),
    "cnn": Family("simple", "CNN"),
    "eva": Family("eva", "Eva", frozenset({"drop_path_rate"})),
    "swin": Family("swin", "Swin", frozenset({"drop_path_rate"})),
    "regnet": Family("regnet", "RegNet", frozenset({"drop_path_rate"})),
    "resnet": Family("resnet", "ResNet", frozenset({"drop_path_rate", "stem"})),
    "wide_resnet": Family("resnet", "WideResNet", frozenset({"drop_path_rate"})),
    "vit": Family("vit", "VisionTransformer", frozenset({"act", "drop_path_rate", "patch_size", "pool", "registers"})),
    "convnext": Family("convnext", "ConvNeXt", frozenset({"drop_path_rate"})),
    "efficientnet": Family("efficientnet", "EfficientNet", frozenset({"drop_path_rate"})),
}


@functools.cache
def catalogue() -> Mapping[str, Mapping[str, str]]:
    """The rows of `catalogue.csv` by name: what is known about each model beside its architecture, as text.

    parameters, embedding and flops (twice the multiply-adds of an image's forward pass, at image_size) are those of the
    model with 1,000 classes; weights lists timm's, TAG=LICENCE each; top1 what timm measured of them, TAG=PERCENT@SIZE.
    """
    text = (importlib.resources.files("jaxtrain.models") / "catalogue.csv").read_text(encoding="utf-8")
    return {row["name"]: row for row in csv.DictReader(text.splitlines())}


def sources(name: str) -> dict[str, str]:
    """Where published weights of a model are, as `model.weights` takes them, and under which licence."""
    return _by_source(name, "weights")


def top1(name: str) -> dict[str, str]:
    """ImageNet top-1 accuracy of published weights, PERCENT@SIZE of the images, from timm's results-imagenet.csv."""
    return _by_source(name, "top1")


def undominated(names: Iterable[str]) -> dict[str, str]:
    """Published weights that none with fewer FLOPs (at the size measured) beat on ImageNet: model by source.

    Accuracy there goes along with that on other images, of a head on embeddings (r = 0.99 over 12 data sets) and after
    fine-tuning (r = 0.96): Kornblith, Shlens & Le 2019, "Do better ImageNet models transfer better?".
    """
    measured = []
    for name in names:
        row = catalogue()[name]
        for source, value in top1(name).items():
            percent, size = map(float, value.split("@"))
            measured.append((float(row["flops"]) * (size / float(row["image_size"])) ** 2, -percent, name, source))
    found: dict[str, str] = {}
    best = 0.0
    for _, error, name, source in sorted(measured):
        if -error > best:
            best, found[source] = -error, name
    return found


def _by_source(name: str, column: str) -> dict[str, str]:
    tags = [tag.partition("=") for tag in catalogue()[name][column].split()]
    return {tag if ":" in tag else f"hf:timm/{name}.{tag}": value for tag, _, value in tags}


def _spec(name: str, row: Mapping[str, str]) -> ModelSpec:
    family, kwargs = VARIANTS[name]
    mean, std = (tuple(map(float, row[column].split())) for column in ("mean", "std"))
    return ModelSpec(
        name,
        family,
        MappingProxyType(kwargs),
        int(row["image_size"]),
        timm_name=name if row["timm"] else None,
        mean=mean,
        std=std,
        crop_pct=float(row["crop_pct"]),
        interpolation=row["interpolation"],
    )


_MODELS = {name: _spec(name, row) for name, row in catalogue().items() if name in VARIANTS}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the registered models that match a shell pattern, sorted.

    >>> list_models("resnet18*")
    ['resnet18', 'resnet18_cifar', 'resnet18d']
    """
    return sorted(name for name in _MODELS if fnmatchcase(name, pattern))


def model_spec(name: str) -> ModelSpec:
    """The registered model of that name; UserError with the nearest name where there is none."""
    if name not in _MODELS:
        raise UserError(f"no model '{name}'; {nearest(name, _MODELS)}")
    return _MODELS[name]


def create_model(
    config: ModelConfig | str,
    *,
    num_classes: int,
    channels: int = 3,
    image_size: int,
    seed: ArrayLike = 0,
    dtype: DTypeLike = np.float32,
    axis_name: str | None = None,
) -> Classifier:
    """Build a model with fresh parameters: an `nnx.Module` from images to logits (see `classifier.Classifier`).

    Nothing is compiled here and `seed` may be traced: call it inside `jax.jit` (or `nnx.eval_shape`), which
    is many times faster than op by op. `image_size` is the side of square images in pixels, `dtype` that of
    the computation (parameters are float32 always), `axis_name` the axis of `jax.pmap` over which batch norm
    and dropout see one global batch. Raises UserError for an unknown model, an option that it does not have,
    or a size it cannot take.
    """
    if isinstance(config, str):
        config = ModelConfig(name=config)
    spec = model_spec(chosen(config.name))
    kwargs = dict(spec.kwargs) | _overrides(config, spec)

    import jax
    from flax import nnx

    family = FAMILIES[spec.family]
    build = Build(
        num_classes=num_classes,
        channels=channels,
        image_size=image_size,
        dtype=dtype,
        axis_name=axis_name,
        rngs=nnx.Rngs(params=jax.random.key(seed)),
        drop_rate=kwargs.pop("drop_rate", 0.0),
        remat=config.remat,
    )
    cls = getattr(importlib.import_module(f"jaxtrain.models.{family.module}"), family.cls)
    return cls(build, **kwargs)


def _overrides(config: ModelConfig, spec: ModelSpec) -> dict[str, Any]:
    """The options that were given, each checked against the family's."""
    given = config.model_dump(exclude={"name", "weights", "dtype", "remat"}, exclude_none=True)
    valid = FAMILIES[spec.family].options | EVERYWHERE
    for option in given:
        if option not in valid:
            has = ", ".join(sorted(valid))
            raise UserError(f"model {spec.name} has no option model.{option}; it has: {has}")
    return given
