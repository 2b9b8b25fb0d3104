"""What timm's and transformers' config.json, and names of files, say about weights: the model and its preprocessing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from jaxtrain.config import ModelConfig, Positive
from jaxtrain.errors import UserError, nearest
from jaxtrain.models.registry import ModelSpec, list_models, model_spec
from jaxtrain.readers import json_object, reading

Json = Mapping[str, Any]


@pydantic_dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class Description:
    """What is known beside the arrays. None: nothing was said."""

    model: str | None = None
    """Name in the registry."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `ModelConfig`."""
    image_size: Annotated[int, Field(ge=1, le=8192)] | None = None
    channels: Annotated[int, Field(ge=1, le=64)] | None = None
    mean: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    std: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    interpolation: str | None = None
    class_names: tuple[str, ...] | None = None

    def to_json(self) -> str:
        """As text; `from_json` gives an equal description back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Description:
        """Raises TypeError or ValueError for a text that `to_json` never gives."""
        about = cls(**json_object(text))
        ModelConfig.model_validate(about.options)
        return about


def describe(config: Json, processor: Json, source: str) -> Description:
    """From config.json and, of transformers, preprocessor_config.json.

    Raises UserError where the network is none of the registry's.
    """
    with reading(source, "config.json", "fetch it again"):
        if "architecture" in config:
            return _timm(config, source)
        if "model_type" in config:
            return _transformers(config, processor, source)
    return Description()


# --- timm

_PLAIN_ARGUMENTS = {
    *("img_size", "num_classes", "in_chans", "global_pool", "fc_norm", "dynamic_img_size", "strict_img_size"),
    *("drop_rate", "drop_path_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
}
"""Arguments of a timm model that leave its layers alone, or show in its arrays."""


def _timm(config: Json, source: str) -> Description:
    architecture = config["architecture"]
    names = {timm: name for name in list_models() if (timm := model_spec(name).timm_name) is not None}
    if architecture not in names:
        raise UserError(f"{source} holds timm's {architecture}, which jaxtrain has not; {nearest(architecture, names)}")
    arguments = config.get("model_args") or {}
    odd = sorted(arguments.keys() - _PLAIN_ARGUMENTS)
    if odd:
        raise UserError(f"{source} holds {architecture} built with {', '.join(odd)}, which jaxtrain has not")
    given = config.get("pretrained_cfg") or {}
    labels = given.get("label_names") or config.get("label_names")
    size = given.get("input_size")
    return Description(
        model=names[architecture],
        image_size=size[1] if size else None,
        mean=_floats(given.get("mean")),
        std=_floats(given.get("std")),
        crop_pct=given.get("crop_pct"),
        interpolation=_interpolation(given.get("interpolation")),
        class_names=tuple(map(str, labels)) if labels else None,
    )


# --- transformers

_VIT = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")


@dataclass(frozen=True)
class _Type:
    """A `model_type` of transformers, as variants of a family of ours."""

    family: str
    describe: Any
    """From config.json to the `kwargs` that the registry has for the same network."""
    plain: Mapping[str, Any]
    """Options of theirs that our network has no other value for."""
    prefix: str = ""
    """Of the names to prefer."""
    tower: Json | None = None
    """Of an image tower, perhaps within a larger model: what its part of config.json leaves out."""


def _vit(config: Json, **more: Any) -> dict[str, Any]:
    width, depth, heads, patch = (config[key] for key in _VIT)
    return {"width": width, "depth": depth, "heads": heads, "patch_size": patch, **more}


_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}


def _tower(config: Json) -> dict[str, Any]:
    act = config["hidden_act"]
    return _vit(config, hidden=config["intermediate_size"], act=_ACTIVATIONS.get(act, act))


def _siglip(config: Json) -> dict[str, Any]:
    pool = "normed_avg" if "SiglipForImageClassification" in config.get("architectures", ()) else "map"
    return {**_tower(config), "class_token": False, "pool": pool}


def _dinov3(config: Json) -> dict[str, Any]:
    gated, act = config["use_gated_mlp"], config["hidden_act"]
    odd = {} if act == ("silu" if gated else "gelu") else {"act": act}
    registers, bias = config["num_register_tokens"], config["query_bias"]
    return (
        _vit(config, hidden=config["intermediate_size"], rope="dinov3", gated=gated, registers=registers, bias=bias)
        | odd
    )


_PLAIN_VIT = {"hidden_act": "gelu", "qkv_bias": True}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_CLIP = _Type(
    "vit",
    lambda config: {**_tower(config), "pre_norm": True},
    {"layer_norm_eps": 1e-5},
    tower={**_BASE, "patch_size": 32, "hidden_act": "quick_gelu", "image_size": 224},
)
_SIGLIP = _Type(
    "vit",
    _siglip,
    {"layer_norm_eps": 1e-6, "vision_use_head": True},
    tower={**_BASE, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "image_size": 224},
)
_DINOV3 = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
_TYPES = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "dinov3_vit": _Type(
        "eva",
        _dinov3,
        {"layer_norm_eps": 1e-5, "rope_theta": 100.0, "key_bias": False, "proj_bias": True, "mlp_bias": True},
        tower={
            **_DINOV3,
            "patch_size": 16,
            "hidden_act": "gelu",
            "use_gated_mlp": False,
            "num_register_tokens": 0,
            "query_bias": True,
        },
    ),
    "vit": _Type("vit", _vit, _PLAIN_VIT, "vit_"),
    "deit": _Type("vit", _vit, _PLAIN_VIT, "deit_"),
    "dinov2": _Type(
        "vit", lambda config: _vit(config, layer_scale=1e-5), {**_PLAIN_VIT, "use_swiglu_ffn": False, "mlp_ratio": 4}
    ),
    "dinov2_with_registers": _Type(
        "vit",
        lambda config: _vit(
            config, layer_scale=1e-5, registers=config.get("num_register_tokens", 4), class_position=False
        ),
        {**_PLAIN_VIT, "use_swiglu_ffn": False, "mlp_ratio": 4},
    ),
    "resnet": _Type(
        "resnet",
        lambda config: {
            "depths": tuple(config["depths"]),
            "bottleneck": config.get("layer_type", "bottleneck") == "bottleneck",
            "_widths": tuple(config["hidden_sizes"]),
        },
        {"hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False},
    ),
    "convnext": _Type(
        "convnext",
        lambda config: {"depths": tuple(config["depths"]), "widths": tuple(config["hidden_sizes"])},
        {"hidden_act": "gelu", "patch_size": 4},
    ),
}


def _transformers(config: Json, processor: Json, source: str) -> Description:
    name = config["model_type"]
    if name not in _TYPES:
        raise UserError(f"{source} holds a model of type {name}, which jaxtrain has not; {nearest(name, _TYPES)}")
    kind, labels = _TYPES[name], config.get("id2label") or {}
    if kind.tower is not None:
        config = {
            **kind.tower,
            "architectures": config.get("architectures") or (),
            **config.get("vision_config", config),
        }
    for option, value in kind.plain.items():
        if config.get(option, value) != value:
            raise UserError(f"{source}: {option}={config[option]} is not what jaxtrain's {kind.family} has ({value})")
    wanted = kind.describe(config)
    fits = [spec for spec in map(model_spec, list_models()) if spec.family == kind.family and _same(wanted, spec)]
    if not fits:
        shown = ", ".join(f"{key.strip('_')} {value}" for key, value in wanted.items())
        raise UserError(f"{source} holds a {name} of a size that jaxtrain has not: {shown}")
    size = config.get("image_size")
    act = wanted.get("act", "gelu")
    spec = max(
        fits,
        key=lambda spec: (
            *(spec.kwargs.get("act", "gelu") == act, spec.image_size == size, spec.name.startswith(kind.prefix)),
            spec.name,
        ),
    )
    options = {} if spec.kwargs.get("act", "gelu") == act else {"act": act}
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    generic = all(name == f"LABEL_{i}" for i, name in enumerate(names))
    class_names = None if generic else names
    return Description(model=spec.name, options=options, class_names=class_names, **_processing(processor))


_NOT_THEIRS = {
    *("act", "anti_alias", "average_shortcut", "deep", "groups", "hidden", "norms", "pool", "pre_norm"),
    *("response_norm", "squeeze"),
}
"""Arguments of variants that a `model_type` above does not have unless it says so."""


def _same(wanted: Json, spec: ModelSpec) -> bool:
    """Whether a row of the registry builds that network."""
    if spec.family != "eva" and (_NOT_THEIRS - wanted.keys()) & spec.kwargs.keys():
        return False
    kwargs = {"layer_scale": None, "registers": 0, "class_position": True, "bias": True, **spec.kwargs}
    if spec.family == "resnet":
        expansion = 4 if kwargs["bottleneck"] else 1
        widths = tuple(expansion * width for width in kwargs.get("widths", (64, 128, 256, 512)))
        kwargs["_widths"] = () if kwargs.get("widen", 1) != 1 or "stem" in kwargs else widths
    theirs = {"layer_scale": None, "registers": 0} | dict(wanted)
    layer_scale = theirs.pop("layer_scale") is None
    if spec.family == "vit":
        kwargs = {"hidden": 4 * kwargs["width"], "class_token": True, **kwargs}
        theirs = {"class_token": True, **theirs}
        if theirs.get("act") in _ACTIVATIONS.values():  # an option: the variant's own need not be the same
            del theirs["act"]
        if layer_scale != (kwargs["layer_scale"] is None):
            return False
    return all(kwargs.get(key) == value for key, value in theirs.items())


def _processing(processor: Json) -> dict[str, Any]:
    """Of an image processor: the size that is cut out, and of what."""
    size, crop = _side(processor.get("size")), _side(processor.get("crop_size"))
    if not processor.get("do_center_crop", False):
        crop = size
    share = crop / size if crop and size else None
    if "crop_pct" in processor and size is not None and size < 384:  # ConvNeXt's
        share = processor["crop_pct"]
    return {
        "image_size": crop,
        "mean": _floats(processor.get("image_mean")),
        "std": _floats(processor.get("image_std")),
        "crop_pct": share,
        "interpolation": {2: "bilinear", 3: "bicubic"}.get(processor.get("resample", 0)),
    }


def _side(size: Any) -> int | None:
    """Of 224, {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    if isinstance(size, Mapping):
        return size.get("shortest_edge") or size.get("height")
    return size


def _floats(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return tuple(map(float, values)) if values else None


def _interpolation(name: str | None) -> str | None:
    return name if name in ("bilinear", "bicubic") else None


# --- names of files

_GOOGLE = re.compile(r"(?:^|[-_+])(?P<size>Ti|S|B|L)[_-](?P<patch>\d+)(?=\D|$)(?:.*res_(?P<side>\d+))?")
_GOOGLE_SIZES = {"Ti": "tiny", "S": "small", "B": "base", "L": "large"}


def describe_name(stem: str) -> Description:
    """From a file's name: `MODEL[.RECIPE]`, or Google's, as `S_16-i21k-...-res_224` and `ViT-B_16`."""
    for name in (stem, stem.partition(".")[0]):
        if name in list_models():
            return Description(model=name)
    found = None if re.match(r"R\d*[+_]", stem) else _GOOGLE.search(stem)
    if found:
        name = f"vit_{_GOOGLE_SIZES[found['size']]}_patch{found['patch']}_{found['side'] or 224}"
        if name in list_models():
            return Description(model=name)
    return Description()
