"""Every model by name: one row each. Reading the table imports neither JAX nor Flax; building a model does.

Names, sizes and preprocessing of models that timm has are timm's, those of its default weights for the name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxtrain.config import ModelConfig, chosen
from jaxtrain.errors import UserError, nearest
from jaxtrain.models.build import Build

if TYPE_CHECKING:
    from jax.typing import ArrayLike, DTypeLike

    from jaxtrain.models.classifier import Classifier


HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    "resnet": Family("resnet", "ResNet", frozenset({"drop_path_rate", "stem"})),
    "wide_resnet": Family("resnet", "WideResNet", frozenset({"drop_path_rate"})),
    "vit": Family("vit", "VisionTransformer", frozenset({"drop_path_rate", "patch_size", "pool", "registers"})),
    "convnext": Family("convnext", "ConvNeXt", frozenset({"drop_path_rate"})),
    "efficientnet_lite": Family("efficientnet_lite", "EfficientNetLite", frozenset({"drop_path_rate"})),
}

_MODELS: dict[str, ModelSpec] = {}


def _add(name: str, family: str, image_size: int, kwargs: dict[str, Any], **more: Any) -> None:
    _MODELS[name] = ModelSpec(name, family, MappingProxyType(kwargs), image_size, **more)


def _add_imagenet(name: str, family: str, image_size: int, kwargs: dict[str, Any], **more: Any) -> None:
    """A model that timm has under the same name, and that takes ImageNet's mean and deviation unless told."""
    _add(
        name,
        family,
        image_size,
        kwargs,
        **{"timm_name": name, "mean": IMAGENET_MEAN, "std": IMAGENET_STD} | more,
    )


# --- Small networks

_add("linear", "mlp", 28, {"hidden": ()})
_add("mlp_tiny", "mlp", 28, {"hidden": (64,)})
_add("mlp_small", "mlp", 28, {"hidden": (512, 256)})
_add("cnn_tiny", "cnn", 28, {"stages": ((8,), (16,))})
_add("cnn_small", "cnn", 28, {"stages": ((16,), (32,), (64,), (128,)), "drop_rate": 0.3})
_add("cnn_medium", "cnn", 28, {"stages": ((16,), (48,), (96,), (192,))})

# --- Residual networks

for _name, _depths, _bottleneck, _crop in [
    ("resnet18", (2, 2, 2, 2), False, 0.95),
    ("resnet34", (3, 4, 6, 3), False, 0.95),
    ("resnet50", (3, 4, 6, 3), True, 0.95),
    ("resnet101", (3, 4, 23, 3), True, 0.95),
    ("resnet152", (3, 8, 36, 3), True, 0.95),
]:
    _kwargs: dict[str, Any] = {"depths": _depths, "bottleneck": _bottleneck}
    _add_imagenet(_name, "resnet", 224, _kwargs, crop_pct=_crop)
_kwargs = {"depths": (3, 4, 6, 3), "bottleneck": True, "widen": 2}
_add_imagenet("wide_resnet50_2", "resnet", 224, _kwargs, crop_pct=0.875)
_add("resnet18_cifar", "resnet", 32, {"depths": (2, 2, 2, 2), "bottleneck": False, "stem": "cifar"})
_kwargs = {"depths": (1, 1), "widths": (8, 16), "bottleneck": True, "stem": "cifar"}
_add("resnet_tiny", "resnet", 32, _kwargs)
_add("wide_resnet16_4", "wide_resnet", 32, {"depth": 16, "widen": 4})
_add("wide_resnet28_10", "wide_resnet", 32, {"depth": 28, "widen": 10})
_add("wide_resnet_tiny", "wide_resnet", 32, {"depth": 10, "widen": 1})

# --- Vision transformers

_VIT: dict[str, dict[str, Any]] = {
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "medium": {"width": 512, "depth": 12, "heads": 8},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
}

for _size, _patches in [
    ("tiny", ((16, 224), (16, 384))),
    ("small", ((32, 224), (32, 384), (16, 224), (16, 384))),
    ("base", ((32, 224), (32, 384), (16, 224), (16, 384), (8, 224))),
    ("large", ((32, 384), (16, 224), (16, 384), (14, 224))),
]:
    for _patch, _side in _patches:
        _kwargs = {"patch_size": _patch, **_VIT[_size]}
        _crop = 0.9 if _side == 224 else 1.0
        _more: dict[str, Any] = {"mean": HALF, "std": HALF, "crop_pct": _crop}
        _add_imagenet(f"vit_{_size}_patch{_patch}_{_side}", "vit", _side, _kwargs, **_more)
_add_imagenet("vit_small_patch8_224", "vit", 224, {"patch_size": 8, **_VIT["small"]}, crop_pct=0.9)
_kwargs = {"patch_size": 32, **_VIT["large"]}
_add_imagenet("vit_large_patch32_224", "vit", 224, _kwargs, mean=HALF, std=HALF, crop_pct=0.9)

for _size in ("small", "base", "large"):
    _kwargs = {"patch_size": 14, "layer_scale": 1e-5, **_VIT[_size]}
    _add_imagenet(f"vit_{_size}_patch14_dinov2", "vit", 518, _kwargs)
    _kwargs = _kwargs | {"registers": 4, "class_position": False}
    _add_imagenet(f"vit_{_size}_patch14_reg4_dinov2", "vit", 518, _kwargs)

for _size in ("tiny", "small", "base"):
    _add_imagenet(f"deit_{_size}_patch16_224", "vit", 224, {"patch_size": 16, **_VIT[_size]}, crop_pct=0.9)
_add_imagenet("deit_base_patch16_384", "vit", 384, {"patch_size": 16, **_VIT["base"]})
for _size in ("small", "medium", "base", "large"):
    _kwargs = {"patch_size": 16, "layer_scale": 1e-6, "class_position": False, **_VIT[_size]}
    _add_imagenet(f"deit3_{_size}_patch16_224", "vit", 224, _kwargs, crop_pct=0.9)

for _size in ("tiny", "small"):
    _kwargs = {"patch_size": 4, "pool": "avg", "class_token": False, **_VIT[_size]}
    _add(f"vit_{_size}_patch4_32", "vit", 32, _kwargs)
_add("vit_test", "vit", 32, {"patch_size": 8, "width": 32, "depth": 2, "heads": 2})

# --- ConvNeXt

for _name, _depths, _width, _crop in [
    ("atto", (2, 2, 6, 2), 40, 0.875),
    ("femto", (2, 2, 6, 2), 48, 0.875),
    ("pico", (2, 2, 6, 2), 64, 0.875),
    ("nano", (2, 2, 8, 2), 80, 0.95),
    ("tiny", (3, 3, 9, 3), 96, 0.95),
    ("small", (3, 3, 27, 3), 96, 0.95),
    ("base", (3, 3, 27, 3), 128, 0.875),
    ("large", (3, 3, 27, 3), 192, 0.875),
]:
    _kwargs = {"depths": _depths, "widths": (_width, 2 * _width, 4 * _width, 8 * _width)}
    _add_imagenet(f"convnext_{_name}", "convnext", 224, _kwargs, crop_pct=_crop)
_add("convnext_test", "convnext", 32, {"depths": (1, 1), "widths": (8, 16)})

# --- EfficientNet-Lite

for _i, (_wide, _deep, _side, _crop, _tf_crop, _tf_resize) in enumerate(
    [
        (1.0, 1.0, 224, 0.875, 0.875, "bicubic"),
        (1.0, 1.1, 240, 0.882, 0.882, "bicubic"),
        (1.1, 1.2, 260, 0.890, 0.890, "bicubic"),
        (1.2, 1.4, 300, 0.904, 0.904, "bilinear"),
        (1.4, 1.8, 380, 0.922, 0.920, "bilinear"),
    ]
):
    _name, _kwargs = f"efficientnet_lite{_i}", {"width": _wide, "depth": _deep}
    _add_imagenet(_name, "efficientnet_lite", _side, _kwargs, crop_pct=_crop)
    _kwargs = _kwargs | {"padding": "same", "epsilon": 1e-3}
    _more = {"mean": HALF, "std": HALF, "crop_pct": _tf_crop, "interpolation": _tf_resize}
    _add_imagenet(f"tf_{_name}", "efficientnet_lite", _side, _kwargs, **_more)
_add("efficientnet_lite_test", "efficientnet_lite", 32, {"width": 0.07, "depth": 0.25})


def list_models(pattern: str = "*") -> list[str]:
    """Names of the registered models that match a shell pattern, sorted.

    >>> list_models("resnet*")
    ['resnet101', 'resnet152', 'resnet18', 'resnet18_cifar', 'resnet34', 'resnet50', 'resnet_tiny']
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
