"""What makes each registered model: its family and the arguments of the family's class. Plain data, no JAX.

Those that timm has carry its names. A new row needs one in `catalogue.csv` too, which
`tests/models/make_catalogue.py` writes.
"""

from __future__ import annotations

import re
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

_add("resnet18_cifar", "resnet", depths=(2, 2, 2, 2), bottleneck=False, stem="cifar")
_add("resnet_tiny", "resnet", depths=(1, 1), widths=(8, 16), bottleneck=True, stem="cifar")
_add("wide_resnet16_4", "wide_resnet", depth=16, widen=4)
_add("wide_resnet28_10", "wide_resnet", depth=28, widen=10)
_add("wide_resnet_tiny", "wide_resnet", depth=10, widen=1)

_DEPTHS: dict[str, tuple[tuple[int, ...], bool]] = {
    "10": ((1, 1, 1, 1), False),
    "14": ((1, 1, 1, 1), True),
    "18": ((2, 2, 2, 2), False),
    "26": ((2, 2, 2, 2), True),
    "34": ((3, 4, 6, 3), False),
    "50": ((3, 4, 6, 3), True),
    "101": ((3, 4, 23, 3), True),
    "152": ((3, 8, 36, 3), True),
    "200": ((3, 24, 36, 3), True),
}
_DEEP: dict[str, Any] = {"deep": (32, 32), "average_shortcut": True}
_TIERED: dict[str, Any] = {"deep": (24, 32), "average_shortcut": True}
for _names, _kwargs in (
    ("resnet18 resnet26 resnet34 resnet50 resnet101 resnet152 resnet200", {}),
    ("resnet10t resnet14t resnet26t resnet50t", _TIERED),
    ("resnet18d resnet26d resnet34d resnet50d resnet101d resnet152d resnet200d", _DEEP),
    ("resnetaa50", {"anti_alias": True}),
    ("resnetaa34d resnetaa50d resnetaa101d", {"anti_alias": True, **_DEEP}),
    ("resnext50_32x4d resnext101_32x4d", {"groups": 32, "widen": 2}),
    ("resnext50d_32x4d", {"groups": 32, "widen": 2, **_DEEP}),
    ("resnext101_32x8d", {"groups": 32, "widen": 4}),
    ("resnext101_64x4d", {"groups": 64, "widen": 4}),
    ("resnext101_32x16d", {"groups": 32, "widen": 8}),
    ("resnext101_32x32d", {"groups": 32, "widen": 16}),
    ("seresnet50 seresnet101 seresnet152", {"squeeze": True}),
    ("seresnet152d seresnet200d", {"squeeze": True, **_DEEP}),
    ("seresnext50_32x4d seresnext101_32x4d", {"squeeze": True, "groups": 32, "widen": 2}),
    ("seresnext101_32x8d", {"squeeze": True, "groups": 32, "widen": 4}),
    ("seresnext101d_32x8d", {"squeeze": True, "groups": 32, "widen": 4, **_DEEP}),
    ("wide_resnet50_2 wide_resnet101_2", {"widen": 2}),
):
    for _name in _names.split():
        _depths, _bottleneck = _DEPTHS[re.sub("[a-z]", "", _name.removeprefix("wide_").split("_")[0])]
        _add(_name, "resnet", depths=_depths, bottleneck=_bottleneck, **_kwargs)

for _name, _depths, _widths, _group in [
    ("002", (1, 1, 4, 7), (24, 56, 152, 368), 8),
    ("004", (1, 3, 6, 6), (48, 104, 208, 440), 8),
    ("006", (1, 3, 7, 4), (48, 112, 256, 608), 16),
    ("008", (1, 3, 8, 2), (64, 128, 320, 768), 16),
    ("008_tv", (1, 3, 8, 2), (64, 144, 320, 784), 16),
    ("016", (2, 6, 17, 2), (48, 120, 336, 888), 24),
    ("032", (2, 5, 13, 1), (72, 216, 576, 1512), 24),
    ("040", (2, 6, 12, 2), (128, 192, 512, 1088), 64),
    ("064", (2, 7, 14, 2), (144, 288, 576, 1296), 72),
    ("080", (2, 4, 10, 1), (168, 448, 896, 2016), 56),
    ("080_tv", (2, 4, 10, 1), (224, 448, 896, 2016), 56),
    ("120", (2, 5, 11, 1), (224, 448, 896, 2240), 112),
    ("160", (2, 4, 11, 1), (224, 448, 1232, 3024), 112),
    ("320", (2, 5, 12, 1), (232, 696, 1392, 3712), 232),
    ("640", (2, 5, 12, 1), (328, 984, 1968, 4920), 328),
    ("1280", (2, 7, 17, 1), (528, 1056, 2904, 7392), 264),
    ("2560", (2, 7, 17, 1), (746, 1492, 4103, 10444), 373),
]:
    _add(f"regnety_{_name}", "regnet", depths=_depths, widths=_widths, group=_group)

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
_SIGLIP_SIDES: dict[tuple[str, int], tuple[int, ...]] = {
    ("base", 32): (256,),
    ("base", 16): (224, 256, 384, 512),
    ("large", 16): (256, 384, 512),
    ("so400m", 14): (224, 378, 448, 896),
    ("so400m", 16): (256, 384, 512),
    ("giantopt", 16): (256, 384),
}
for (_size, _patch), _all in _SIGLIP_SIDES.items():
    for _side in _all:
        _name = f"vit_{_size}_patch{_patch}_siglip"
        _act = {}
        if (_size, _patch) in (("base", 32), ("so400m", 16), ("giantopt", 16)) or (_size, _side) == ("large", 512):
            _act = {"act": "gelu_tanh"}  # the weights of SigLIP 2 alone
        if _side not in (448, 896):
            _add(f"{_name}_{_side}", "vit", patch_size=_patch, class_token=False, pool="map", **_act, **_SIGLIP[_size])
        _name = f"{_name}_gap_{_side}"
        _add(_name, "vit", patch_size=_patch, class_token=False, pool="normed_avg", **_act, **_SIGLIP[_size])

for _size in ("tiny", "small"):
    _add(f"vit_{_size}_patch4_32", "vit", patch_size=4, pool="avg", class_token=False, **_VIT[_size])
_add("vit_test", "vit", patch_size=8, width=32, depth=2, heads=2)

# --- Vision transformers with rotary positions

_ROPE: dict[str, dict[str, Any]] = {
    **{size: {**_VIT[size], "hidden": 4 * _VIT[size]["width"]} for size in ("tiny", "small", "base", "large")},
    "small_plus": {**_VIT["small"], "hidden": 1536},
    "huge_plus": {"width": 1280, "depth": 32, "heads": 20, "hidden": 5120},
    "7b": {"width": 4096, "depth": 40, "heads": 32, "hidden": 8192},
}
for _size, _kwargs in _ROPE.items():
    _kwargs = {"patch_size": 16, "rope": "dinov3", "gated": _size in ("small_plus", "huge_plus", "7b"), "registers": 4,
               "layer_scale": 1e-5, "epsilon": 1e-5, "pool": "normed_avg", **_kwargs}  # fmt: skip
    if _size != "tiny":
        _add(f"vit_{_size}_patch16_dinov3", "eva", bias=False, **_kwargs)
    if _size != "7b":
        _add(f"vit_{_size}_patch16_dinov3_qkvb", "eva", **_kwargs)

for _size, _hidden, _sides in (
    ("tiny", 512, (224, 336)),
    ("small", 1024, (224, 336)),
    ("base", 2048, (224, 448)),
    ("large", 2730, (224, 448)),
):
    _norms = {"norms": ("mlp",)} if _size in ("base", "large") else {}
    for _side in _sides:
        _name = f"eva02_{_size}_patch14_{_side}"
        _add(_name, "eva", patch_size=14, rope="eva", **_VIT[_size], hidden=_hidden, **_norms)
for _size, _patch, _side, _hidden in (("base", 16, 224, 2048), ("large", 14, 224, 2730), ("large", 14, 336, 2730)):
    _kwargs = {"patch_size": _patch, "rope": "eva", "norms": ("attn", "mlp"), "pool": "cls", "hidden": _hidden}
    _add(f"eva02_{_size}_patch{_patch}_clip_{_side}", "eva", **_VIT[_size], **_kwargs)

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
    ("huge", (3, 3, 27, 3), 352),
]:
    _kwargs = {"depths": _depths, "widths": tuple(_width * 2**i for i in range(4))}
    if _name != "huge":
        _add(f"convnext_{_name}", "convnext", **_kwargs)
    if _name not in ("small", "xlarge"):
        _add(f"convnextv2_{_name}", "convnext", response_norm=True, **_kwargs)
_add("convnext_test", "convnext", depths=(1, 1), widths=(8, 16))

# --- Swin

for _name, _width, _third, _window in (
    ("tiny_patch4_window7_224", 96, 6, (7, 7, 7, 7)),
    ("small_patch4_window7_224", 96, 18, (7, 7, 7, 7)),
    ("base_patch4_window7_224", 128, 18, (7, 7, 7, 7)),
    ("base_patch4_window12_384", 128, 18, (12, 12, 12, 12)),
    ("large_patch4_window7_224", 192, 18, (7, 7, 7, 7)),
    ("large_patch4_window12_384", 192, 18, (12, 12, 12, 12)),
    ("s3_tiny_224", 96, 6, (7, 7, 14, 7)),
    ("s3_small_224", 96, 18, (14, 14, 14, 7)),
    ("s3_base_224", 96, 30, (7, 7, 14, 7)),
):
    _heads = tuple(_width // 32 * 2**i for i in range(4))
    _add(f"swin_{_name}", "swin", width=_width, depths=(2, 2, _third, 2), heads=_heads, windows=_window)

# --- EfficientNet, MobileNet

_TF: dict[str, Any] = {"padding": "same", "epsilon": 1e-3}
_B0 = (
    "ds_r1_k3_s1_e1_c16_se0.25",
    "ir_r2_k3_s2_e6_c24_se0.25",
    "ir_r2_k5_s2_e6_c40_se0.25",
    "ir_r3_k3_s2_e6_c80_se0.25",
    "ir_r3_k5_s1_e6_c112_se0.25",
    "ir_r4_k5_s2_e6_c192_se0.25",
    "ir_r1_k3_s1_e6_c320_se0.25",
)
_LITE: dict[str, Any] = {"stages": tuple(stage.removesuffix("_se0.25") for stage in _B0), "act": "relu6", "fixed": True}
for _i, (_wide, _deep) in enumerate([(1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8)]):
    _add(f"efficientnet_lite{_i}", "efficientnet", width=_wide, depth=_deep, **_LITE)
    _add(f"tf_efficientnet_lite{_i}", "efficientnet", width=_wide, depth=_deep, **_LITE, **_TF)
_add("efficientnet_lite_test", "efficientnet", width=0.07, depth=0.25, **_LITE)

for _name, _wide, _deep in (
    *(("b0", 1.0, 1.0), ("b1", 1.0, 1.1), ("b2", 1.1, 1.2), ("b3", 1.2, 1.4), ("b4", 1.4, 1.8), ("b5", 1.6, 2.2)),
    *(("b6", 1.8, 2.6), ("b7", 2.0, 3.1), ("b8", 2.2, 3.6), ("l2", 4.3, 5.3)),
):
    _add(f"efficientnet_{_name}", "efficientnet", stages=_B0, width=_wide, depth=_deep)
    _add(f"tf_efficientnet_{_name}", "efficientnet", stages=_B0, width=_wide, depth=_deep, **_TF)

_V2: dict[str, tuple[int, tuple[str, ...]]] = {  # stem, stages
    "b": (
        32,
        (
            *("cn_r1_k3_s1_e1_c16_skip", "er_r2_k3_s2_e4_c32", "er_r2_k3_s2_e4_c48", "ir_r3_k3_s2_e4_c96_se0.25"),
            *("ir_r5_k3_s1_e6_c112_se0.25", "ir_r8_k3_s2_e6_c192_se0.25"),
        ),
    ),
    "s": (
        24,
        (
            *("cn_r2_k3_s1_e1_c24_skip", "er_r4_k3_s2_e4_c48", "er_r4_k3_s2_e4_c64", "ir_r6_k3_s2_e4_c128_se0.25"),
            *("ir_r9_k3_s1_e6_c160_se0.25", "ir_r15_k3_s2_e6_c256_se0.25"),
        ),
    ),
    "m": (
        24,
        (
            *("cn_r3_k3_s1_e1_c24_skip", "er_r5_k3_s2_e4_c48", "er_r5_k3_s2_e4_c80", "ir_r7_k3_s2_e4_c160_se0.25"),
            *("ir_r14_k3_s1_e6_c176_se0.25", "ir_r18_k3_s2_e6_c304_se0.25", "ir_r5_k3_s1_e6_c512_se0.25"),
        ),
    ),
    "l": (
        32,
        (
            *("cn_r4_k3_s1_e1_c32_skip", "er_r7_k3_s2_e4_c64", "er_r7_k3_s2_e4_c96", "ir_r10_k3_s2_e4_c192_se0.25"),
            *("ir_r19_k3_s1_e6_c224_se0.25", "ir_r25_k3_s2_e6_c384_se0.25", "ir_r7_k3_s1_e6_c640_se0.25"),
        ),
    ),
    "xl": (
        32,
        (
            *("cn_r4_k3_s1_e1_c32_skip", "er_r8_k3_s2_e4_c64", "er_r8_k3_s2_e4_c96", "ir_r16_k3_s2_e4_c192_se0.25"),
            *("ir_r24_k3_s1_e6_c256_se0.25", "ir_r32_k3_s2_e6_c512_se0.25", "ir_r8_k3_s1_e6_c640_se0.25"),
        ),
    ),
}
for _name in ("s", "m", "l", "xl"):
    _stem, _stages = _V2[_name]
    _add(f"efficientnetv2_{_name}", "efficientnet", stem=_stem, stages=_stages)
    _add(f"tf_efficientnetv2_{_name}", "efficientnet", stem=_stem, stages=_stages, **_TF)
for _i, (_wide, _deep) in enumerate([(1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4)]):
    _stem, _stages = _V2["b"]
    _kwargs = {"stem": _stem, "stages": _stages, "width": _wide, "depth": _deep, "limit": 0.0}
    _add(f"tf_efficientnetv2_b{_i}", "efficientnet", **_kwargs, **_TF)
_add("efficientnetv2_rw_t", "efficientnet", stem=24, stages=_V2["s"][1], width=0.8, depth=0.9)
_stages = ("er_r2_k3_s1_e1_c24", *_V2["s"][1][1:-1], "ir_r15_k3_s2_e6_c272_se0.25")
_add("efficientnetv2_rw_s", "efficientnet", stem=24, stages=_stages, last=1792)

_V3 = {
    "large": (
        "ds_r1_k3_s1_e1_c16_nre",
        "ir_r1_k3_s2_e4_c24_nre ir_r1_k3_s1_e3_c24_nre",
        "ir_r3_k5_s2_e3_c40_se0.25_nre",
        "ir_r1_k3_s2_e6_c80 ir_r1_k3_s1_e2.5_c80 ir_r2_k3_s1_e2.3_c80",
        "ir_r2_k3_s1_e6_c112_se0.25",
        "ir_r3_k5_s2_e6_c160_se0.25",
        "cn_r1_k1_s1_c960",
    ),
    "small": (
        "ds_r1_k3_s2_e1_c16_se0.25_nre",
        "ir_r1_k3_s2_e4.5_c24_nre ir_r1_k3_s1_e3.67_c24_nre",
        "ir_r1_k5_s2_e4_c40_se0.25 ir_r2_k5_s1_e6_c40_se0.25",
        "ir_r2_k5_s1_e3_c48_se0.25",
        "ir_r3_k5_s2_e6_c96_se0.25",
        "cn_r1_k1_s1_c576",
    ),
}
for _size, _last, _wides in (("large", 1280, (0.75, 1.0)), ("small", 1024, (0.5, 0.75, 1.0))):
    for _wide in _wides:
        _name = f"mobilenetv3_{_size}_{int(100 * _wide):03}"
        _kwargs = {"stages": _V3[_size], "stem": 16, "last": _last, "width": _wide, "fixed": _wide < 0.75,
                   "act": "hard_swish", "head": "pooled"}  # fmt: skip
        _add(_name, "efficientnet", **_kwargs)
        if _wide > 0.5:
            _add(f"tf_{_name}", "efficientnet", **_kwargs, **_TF)

_V4 = {
    "small": (
        "cn_r1_k3_s2_e1_c32 cn_r1_k1_s1_e1_c32",
        "cn_r1_k3_s2_e1_c96 cn_r1_k1_s1_e1_c64",
        "uir_r1_a5_k5_s2_e3_c96 uir_r4_a0_k3_s1_e2_c96 uir_r1_a3_k0_s1_e4_c96",
        "uir_r1_a3_k3_s2_e6_c128 uir_r1_a5_k5_s1_e4_c128 uir_r1_a0_k5_s1_e4_c128 uir_r1_a0_k5_s1_e3_c128"
        " uir_r2_a0_k3_s1_e4_c128",
        "cn_r1_k1_s1_c960",
    ),
    "medium": (
        "er_r1_k3_s2_e4_c48",
        "uir_r1_a3_k5_s2_e4_c80 uir_r1_a3_k3_s1_e2_c80",
        "uir_r1_a3_k5_s2_e6_c160 uir_r2_a3_k3_s1_e4_c160 uir_r1_a3_k5_s1_e4_c160 uir_r1_a3_k3_s1_e4_c160"
        " uir_r1_a3_k0_s1_e4_c160 uir_r1_a0_k0_s1_e2_c160 uir_r1_a3_k0_s1_e4_c160",
        "uir_r1_a5_k5_s2_e6_c256 uir_r1_a5_k5_s1_e4_c256 uir_r2_a3_k5_s1_e4_c256 uir_r1_a0_k0_s1_e4_c256"
        " uir_r1_a3_k0_s1_e4_c256 uir_r1_a3_k5_s1_e2_c256 uir_r1_a5_k5_s1_e4_c256 uir_r2_a0_k0_s1_e4_c256"
        " uir_r1_a5_k0_s1_e2_c256",
        "cn_r1_k1_s1_c960",
    ),
    "large": (
        "er_r1_k3_s2_e4_c48",
        "uir_r1_a3_k5_s2_e4_c96 uir_r1_a3_k3_s1_e4_c96",
        "uir_r1_a3_k5_s2_e4_c192 uir_r3_a3_k3_s1_e4_c192 uir_r1_a3_k5_s1_e4_c192 uir_r5_a5_k3_s1_e4_c192"
        " uir_r1_a3_k0_s1_e4_c192",
        "uir_r4_a5_k5_s2_e4_c512 uir_r1_a5_k0_s1_e4_c512 uir_r1_a5_k3_s1_e4_c512 uir_r2_a5_k0_s1_e4_c512"
        " uir_r1_a5_k3_s1_e4_c512 uir_r1_a5_k5_s1_e4_c512 uir_r3_a5_k0_s1_e4_c512",
        "cn_r1_k1_s1_c960",
    ),
}
for _name, _size, _wide in (
    ("small_035", "small", 0.35),
    ("small_050", "small", 0.5),
    ("small", "small", 1.0),
    ("medium", "medium", 1.0),
    ("large", "large", 1.0),
):
    _kwargs = {"stages": _V4[_size], "stem": 24 if _size == "large" else 32, "width": _wide, "fixed": _wide < 1}
    _add(f"mobilenetv4_conv_{_name}", "efficientnet", act="relu", head="pooled_norm", **_kwargs)
