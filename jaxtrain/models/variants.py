"""What makes each registered model: its family and the arguments of the family's class. Plain data, no JAX.

Those that timm has carry its names. A new row needs one in `catalogue.csv` too, which
`tests/models/make_catalogue.py` writes.
"""

from __future__ import annotations

from typing import Any

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {}


def _add(name: str, family: str, **kwargs: Any) -> None:
    VARIANTS[name] = (family, kwargs)


# --- Small networks

_add("linear", "mlp", hidden=())
_add("mlp_tiny", "mlp", hidden=(64,))
_add("mlp_small", "mlp", hidden=(512, 256))
_add("cnn_tiny", "cnn", stages=((8,), (16,)))
_add("cnn_small", "cnn", stages=((16,), (32,), (64,), (128,)), drop_rate=0.3)
_add("cnn_medium", "cnn", stages=((16,), (48,), (96,), (192,)))

# --- Residual networks

for _name, _depths, _bottleneck in [
    ("18", (2, 2, 2, 2), False),
    ("34", (3, 4, 6, 3), False),
    ("50", (3, 4, 6, 3), True),
    ("101", (3, 4, 23, 3), True),
    ("152", (3, 8, 36, 3), True),
]:
    _add(f"resnet{_name}", "resnet", depths=_depths, bottleneck=_bottleneck)
_add("wide_resnet50_2", "resnet", depths=(3, 4, 6, 3), bottleneck=True, widen=2)
_add("resnet18_cifar", "resnet", depths=(2, 2, 2, 2), bottleneck=False, stem="cifar")
_add("resnet_tiny", "resnet", depths=(1, 1), widths=(8, 16), bottleneck=True, stem="cifar")
_add("wide_resnet16_4", "wide_resnet", depth=16, widen=4)
_add("wide_resnet28_10", "wide_resnet", depth=28, widen=10)
_add("wide_resnet_tiny", "wide_resnet", depth=10, widen=1)

# --- Vision transformers

_VIT: dict[str, dict[str, Any]] = {
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "medium": {"width": 512, "depth": 12, "heads": 8},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
    "huge": {"width": 1280, "depth": 32, "heads": 16},
}

for _size, _patches in {
    "tiny": ((16, 224), (16, 384)),
    "small": ((32, 224), (32, 384), (16, 224), (16, 384), (8, 224)),
    "base": ((32, 224), (32, 384), (16, 224), (16, 384), (8, 224)),
    "large": ((32, 224), (32, 384), (16, 224), (16, 384), (14, 224)),
    "huge": ((14, 224),),
}.items():
    for _patch, _side in _patches:
        _add(f"vit_{_size}_patch{_patch}_{_side}", "vit", patch_size=_patch, **_VIT[_size])

_REGISTERS = {"registers": 4, "class_position": False}
for _size in ("small", "base", "large"):
    _add(f"vit_{_size}_patch14_dinov2", "vit", patch_size=14, layer_scale=1e-5, **_VIT[_size])
    _add(f"vit_{_size}_patch14_reg4_dinov2", "vit", patch_size=14, layer_scale=1e-5, **_VIT[_size], **_REGISTERS)

for _size in ("tiny", "small", "base"):
    _add(f"deit_{_size}_patch16_224", "vit", patch_size=16, **_VIT[_size])
_add("deit_base_patch16_384", "vit", patch_size=16, **_VIT["base"])
for _size, _patch, _sides in (
    ("small", 16, (224, 384)),
    ("medium", 16, (224,)),
    ("base", 16, (224, 384)),
    ("large", 16, (224, 384)),
    ("huge", 14, (224,)),
):
    for _side in _sides:
        _name = f"deit3_{_size}_patch{_patch}_{_side}"
        _add(_name, "vit", patch_size=_patch, layer_scale=1e-6, class_position=False, **_VIT[_size])

# CLIP; its own weights were trained with quick GELU, others' with GELU
_CLIP: dict[str, Any] = {"pre_norm": True, "epsilon": 1e-5}
for _names, _shape in (
    ("xsmall_patch16_clip_224", {"width": 256, "depth": 10, "heads": 4}),
    ("medium_patch32_clip_224 medium_patch16_clip_224", _VIT["medium"]),
    ("betwixt_patch32_clip_224", {"width": 640, "depth": 12, "heads": 10}),
    ("base_patch32_clip_224 base_patch32_clip_256 base_patch32_clip_384 base_patch32_clip_448", _VIT["base"]),
    ("base_patch32_clip_quickgelu_224 base_patch16_clip_quickgelu_224", _VIT["base"]),
    ("base_patch16_clip_224 base_patch16_clip_384", _VIT["base"]),
    ("base_patch16_plus_clip_240", {"width": 896, "depth": 12, "heads": 14}),
    ("large_patch14_clip_224 large_patch14_clip_336", _VIT["large"]),
    ("large_patch14_clip_quickgelu_224 large_patch14_clip_quickgelu_336", _VIT["large"]),
    ("huge_patch14_clip_224 huge_patch14_clip_336 huge_patch14_clip_378", _VIT["huge"]),
    ("huge_patch14_clip_quickgelu_224 huge_patch14_clip_quickgelu_378", _VIT["huge"]),
    ("giant_patch14_clip_224", {"width": 1408, "depth": 40, "heads": 16, "hidden": 6144}),
    ("gigantic_patch14_clip_224", {"width": 1664, "depth": 48, "heads": 16, "hidden": 8192}),
    ("gigantic_patch14_clip_378", {"width": 1664, "depth": 48, "heads": 16, "hidden": 8192}),
    ("gigantic_patch14_clip_quickgelu_224", {"width": 1664, "depth": 48, "heads": 16, "hidden": 8192}),
):
    for _name in _names.split():
        _patch = int(_name.partition("_patch")[2][:2])
        _act = {"act": "quick_gelu"} if "quickgelu" in _name else {}
        _add(f"vit_{_name}", "vit", patch_size=_patch, **_CLIP, **_act, **_shape)

# SigLIP and SigLIP 2, with attention pooling or (gap) the mean of the patches
_SIGLIP: dict[str, dict[str, Any]] = {
    **{size: _VIT[size] for size in ("base", "large")},
    "so400m": {"width": 1152, "depth": 27, "heads": 16, "hidden": 4304},
    "giantopt": {"width": 1536, "depth": 40, "heads": 16},
}
for _size, _patch, _sides in (
    ("base", 32, (256,)),
    ("base", 16, (224, 256, 384, 512)),
    ("large", 16, (256, 384, 512)),
    ("so400m", 14, (224, 378, 448, 896)),
    ("so400m", 16, (256, 384, 512)),
    ("giantopt", 16, (256, 384)),
):
    for _side in _sides:
        _name, _kwargs = f"vit_{_size}_patch{_patch}_siglip", {"patch_size": _patch, "class_token": False}
        if (_size, _patch) in (("base", 32), ("so400m", 16), ("giantopt", 16)) or (_size, _side) == ("large", 512):
            _kwargs["act"] = "gelu_tanh"  # the weights of SigLIP 2 alone
        if _side not in (448, 896):
            _add(f"{_name}_{_side}", "vit", pool="map", **_kwargs, **_SIGLIP[_size])
        _add(f"{_name}_gap_{_side}", "vit", pool="normed_avg", **_kwargs, **_SIGLIP[_size])

for _size in ("tiny", "small"):
    _add(f"vit_{_size}_patch4_32", "vit", patch_size=4, pool="avg", class_token=False, **_VIT[_size])
_add("vit_test", "vit", patch_size=8, width=32, depth=2, heads=2)

# --- ConvNeXt

for _name, _depths, _width in [
    ("atto", (2, 2, 6, 2), 40),
    ("femto", (2, 2, 6, 2), 48),
    ("pico", (2, 2, 6, 2), 64),
    ("nano", (2, 2, 8, 2), 80),
    ("tiny", (3, 3, 9, 3), 96),
    ("small", (3, 3, 27, 3), 96),
    ("base", (3, 3, 27, 3), 128),
    ("large", (3, 3, 27, 3), 192),
    ("xlarge", (3, 3, 27, 3), 256),
]:
    _add(f"convnext_{_name}", "convnext", depths=_depths, widths=tuple(_width * 2**i for i in range(4)))
_add("convnext_test", "convnext", depths=(1, 1), widths=(8, 16))

# --- EfficientNet-Lite

for _i, (_wide, _deep) in enumerate([(1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8)]):
    _add(f"efficientnet_lite{_i}", "efficientnet_lite", width=_wide, depth=_deep)
    _add(f"tf_efficientnet_lite{_i}", "efficientnet_lite", width=_wide, depth=_deep, padding="same", epsilon=1e-3)
_add("efficientnet_lite_test", "efficientnet_lite", width=0.07, depth=0.25)
