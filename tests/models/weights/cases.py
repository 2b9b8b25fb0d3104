"""Networks of other software, small, with weights that NumPy draws from their names alone.

So a reference's logits can be computed once, with torch, and compared ever after without it: `make_golden.py` keeps
names, shapes and logits in `golden/`, and `test_golden.py` draws the same weights and images again.
"""

import functools
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.models.variants import VARIANTS

GOLDEN = Path(__file__).parent / "golden"
CLASSES = 7


def draw(name, shape):
    """`float32[*shape]` for an array of a reference network: the same whoever asks, and nowhere 0 or 1 alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    leaf = name.replace("/", ".").rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    values = rng.standard_normal(shape)
    if leaf in ("weight", "kernel") and len(shape) > 1:
        inputs = np.prod(shape[1:] if leaf == "weight" else shape[:-1])
        return (values / np.sqrt(inputs)).astype(np.float32)
    scale = leaf in ("weight", "scale", "gamma", "lambda1", "layer_scale_parameter")
    return (scale + (0.1 if scale or leaf in ("bias", "running_mean") else 0.5) * values).astype(np.float32)


def images(size, channels=3):
    """`float32[2, size, size, channels]`."""
    return np.random.default_rng(0).standard_normal((2, size, size, channels)).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A reference network, and the row of our registry that is the same one."""

    reference: Any
    """Makes it, in torch; called without arguments."""
    family: str
    kwargs: dict[str, Any]
    size: int
    file: str = "safetensors"
    """Or "npz"."""
    classes: int = CLASSES
    """0: the reference's head is not one of ours, and the embedding is compared."""
    timm_name: str | None = None
    """Of a model that timm has in a layout of its own."""


def samples(output):
    """What is kept of a block's output: mean, deviation, and the values at ten places."""
    return [output.mean(), output.std(), *output.reshape(-1)[np.linspace(0, output.size - 1, 10).astype(int)]]


def golden_blocks(name):
    """`samples` of each block, for timm's networks."""
    return np.array(json.loads((GOLDEN / f"{name}.json").read_text())["blocks"], np.float32)


def golden(name):
    """Names and shapes of the arrays, and logits `float32[2, classes]` (embedding, where there is no head)."""
    stored = json.loads((GOLDEN / f"{name}.json").read_text())
    return {key: tuple(shape) for key, shape in stored["shapes"].items()}, np.array(stored["outputs"], np.float32)


def _timm(cls, **kwargs):
    import timm.models

    return getattr(timm.models, cls)(num_classes=CLASSES, **kwargs)


def _norm(epsilon):
    from timm.layers import LayerNorm

    return functools.partial(LayerNorm, eps=epsilon)


def _timm_resnet(block, **kwargs):
    from timm.models import resnet

    return resnet.ResNet(getattr(resnet, block), num_classes=CLASSES, **kwargs)


def _timm_efficientnet(name):
    from timm.models import efficientnet

    return efficientnet._gen_efficientnet_lite(
        name, channel_multiplier=0.07, depth_multiplier=0.25, num_classes=CLASSES,
        **({"bn_eps": 1e-3, "pad_type": "same"} if name.startswith("tf_") else {}),
    )  # fmt: skip


def _lazy_norm(width, **kwargs):
    return _norm(1e-5)(width, **kwargs)


def _average():
    from torch import nn

    return nn.AvgPool2d


def _timm_regnet(**kwargs):
    from timm.models import regnet

    return regnet.RegNet(regnet.RegNetCfg(**kwargs), num_classes=CLASSES)


def _timm_blocks(cls, stages, act, **kwargs):
    from timm.layers import get_act_layer
    from timm.models import _efficientnet_builder, efficientnet, mobilenetv3

    made = getattr(efficientnet, cls, None) or getattr(mobilenetv3, cls)
    blocks = _efficientnet_builder.decode_arch_def([stage.split() for stage in stages])
    return made(blocks, num_classes=CLASSES, act_layer=get_act_layer(act), **kwargs)


def _batch_norm(epsilon):
    from torch import nn

    return functools.partial(nn.BatchNorm2d, eps=epsilon)


def _mobile_squeeze():
    from timm.models._efficientnet_blocks import SqueezeExcite
    from timm.models._efficientnet_builder import round_channels
    from torch import nn

    return functools.partial(
        SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=nn.ReLU, rd_round_fn=round_channels
    )


def _transformers(cls, config, **options):
    import transformers

    model = getattr(transformers, cls)(getattr(transformers, config)(**options))
    return model


_HF_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
           "num_labels": CLASSES}  # fmt: skip
_HF_TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
_HF_DINO3 = {**_HF_TOWER, "intermediate_size": 48, "num_register_tokens": 4}
_VIT = {"patch_size": 8, "width": 32, "depth": 2, "heads": 2}
_TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
_DINO3 = {**_VIT, "rope": "dinov3", "hidden": 48, "layer_scale": 1e-5, "epsilon": 1e-5, "pool": "normed_avg"}
_TIMM_DINO3 = {
    **_TIMM_VIT, "mlp_ratio": 1.5, "init_values": 1e-5, "rope_type": "dinov3", "rope_temperature": 100,
    "rope_rotate_half": True, "use_rot_pos_emb": True, "use_abs_pos_emb": False, "use_fc_norm": False,
    "dynamic_img_size": True, "norm_layer": _lazy_norm,
}  # fmt: skip
_EVA = {**_VIT, "rope": "eva", "hidden": 48}
_TIMM_EVA = {**_TIMM_VIT, "mlp_ratio": 1.5, "swiglu_mlp": True, "use_rot_pos_emb": True, "ref_feat_shape": (16, 16)}
_TIMM_SIGLIP = {"class_token": False, "mlp_ratio": 1.25}
_DINO = {**_VIT, "patch_size": 7, "layer_scale": 1e-5}
_TIMM_DINO = {**_TIMM_VIT, "img_size": 28, "patch_size": 7, "init_values": 1e-5}
_REGISTERS = {"registers": 4, "class_position": False}
_LITE = dict(VARIANTS["efficientnet_lite_test"][1])
_EFFICIENT = ("cn_r1_k3_s1_e1_c8_skip ds_r1_k3_s1_e1_c8_se0.25", "er_r2_k3_s2_e4_c16", "ir_r2_k5_s2_e6_c16_se0.25")
_MOBILE3 = ("ds_r1_k3_s2_e1_c8_se0.25_nre", "ir_r1_k3_s2_e4.5_c16_nre ir_r1_k5_s1_e3.67_c16_se0.25", "cn_r1_k1_s1_c24")
_MOBILE4 = (
    "cn_r1_k3_s2_e1_c8 er_r1_k3_s1_e2_c8",
    "uir_r1_a5_k3_s2_e3_c16 uir_r2_a0_k3_s1_e2_c16",
    "uir_r1_a3_k0_s2_e4_c16 uir_r1_a0_k0_s1_e2_c16",
    "cn_r1_k1_s1_c24",
)
_RESNET = {"depths": (2, 1, 1, 1), "widths": (64, 8, 8, 16)}
_TIMM_RESNET = {"layers": (2, 1, 1, 1), "channels": (64, 8, 8, 16)}
_CONVNEXT = {"depths": (1, 2, 1, 1), "widths": (8, 12, 16, 24)}
_TIMM_CONVNEXT = {"depths": (1, 2, 1, 1), "dims": (8, 12, 16, 24)}

_HF_RESNET = functools.partial(
    _transformers, "ResNetForImageClassification", "ResNetConfig", depths=[2, 1, 1, 1], embedding_size=64,
    num_labels=CLASSES,
)  # fmt: skip

CASES = {
    "timm_vit": Case(lambda: _timm("VisionTransformer", **_TIMM_VIT), "vit", _VIT, 32),
    "timm_vit_avg": Case(lambda: _timm("VisionTransformer", **_TIMM_VIT, global_pool="avg"), "vit", _VIT, 32),
    "timm_deit3": Case(
        lambda: _timm("VisionTransformer", **_TIMM_VIT, no_embed_class=True, init_values=1e-6),
        "vit",
        {**_VIT, "layer_scale": 1e-6, "class_position": False},
        32,
    ),
    "timm_dinov2": Case(lambda: _timm("VisionTransformer", **_TIMM_DINO), "vit", _DINO, 28),
    "timm_dinov2_reg": Case(
        lambda: _timm("VisionTransformer", **_TIMM_DINO, reg_tokens=4, no_embed_class=True),
        "vit",
        {**_DINO, **_REGISTERS},
        28,
    ),
    "timm_vit_clip": Case(
        lambda: _timm(
            "VisionTransformer", **_TIMM_VIT, pre_norm=True, act_layer="quick_gelu", norm_layer=_norm(1e-5)
        ),
        "vit",
        {**_VIT, "pre_norm": True, "act": "quick_gelu", "epsilon": 1e-5},
        32,
    ),
    "timm_vit_siglip": Case(
        lambda: _timm("VisionTransformer", **_TIMM_VIT, **_TIMM_SIGLIP, act_layer="gelu_tanh", global_pool="map"),
        "vit",
        {**_VIT, "class_token": False, "pool": "map", "act": "gelu_tanh", "hidden": 40},
        32,
    ),
    "timm_vit_siglip_gap": Case(
        lambda: _timm("VisionTransformer", **_TIMM_VIT, **_TIMM_SIGLIP, fc_norm=False, global_pool="avg"),
        "vit",
        {**_VIT, "class_token": False, "pool": "normed_avg", "hidden": 40},
        32,
    ),
    "timm_dinov3": Case(
        lambda: _timm("Eva", **_TIMM_DINO3, num_reg_tokens=4, qkv_bias=False),
        "eva",
        {**_DINO3, "gated": False, "bias": False, "registers": 4},
        32,
        timm_name="vit_small_patch16_dinov3",
    ),
    "timm_dinov3_plus": Case(
        lambda: _timm("Eva", **_TIMM_DINO3, num_reg_tokens=4, swiglu_mlp=True, swiglu_align_to=8),
        "eva",
        {**_DINO3, "registers": 4},
        32,
        timm_name="vit_small_plus_patch16_dinov3_qkvb",
    ),
    "timm_eva02_small": Case(
        lambda: _timm("Eva", **_TIMM_EVA),
        "eva",
        _EVA,
        32,
        timm_name="eva02_small_patch14_224",
    ),
    "timm_eva02": Case(
        lambda: _timm("Eva", **_TIMM_EVA, qkv_fused=False, scale_mlp=True),
        "eva",
        {**_EVA, "norms": ("mlp",)},
        32,
        timm_name="eva02_base_patch14_224",
    ),
    "timm_eva02_clip": Case(
        lambda: _timm("Eva", **_TIMM_EVA, qkv_fused=False, scale_mlp=True, scale_attn_inner=True, global_pool="token"),
        "eva",
        {**_EVA, "norms": ("attn", "mlp"), "pool": "cls"},
        32,
        timm_name="eva02_base_patch16_clip_224",
    ),
    "timm_swin": Case(
        lambda: _timm("SwinTransformer", img_size=60, embed_dim=8, depths=(2, 2), num_heads=(2, 2), window_size=4),
        "swin",
        {"width": 8, "depths": (2, 2), "heads": (2, 2), "windows": (4, 4)},
        60,
    ),
    "google_vit": Case(lambda: _timm("VisionTransformer", **_TIMM_VIT), "vit", _VIT, 32, file="npz"),
    "transformers_vit": Case(
        lambda: _transformers("ViTForImageClassification", "ViTConfig", **_HF_VIT, image_size=32, patch_size=8),
        "vit",
        _VIT,
        32,
    ),
    "transformers_deit": Case(
        lambda: _transformers("DeiTForImageClassification", "DeiTConfig", **_HF_VIT, image_size=32, patch_size=8),
        "vit",
        _VIT,
        32,
    ),
    "transformers_dinov2": Case(
        lambda: _transformers("Dinov2Model", "Dinov2Config", **_HF_VIT, image_size=28, patch_size=7),
        "vit",
        _DINO,
        28,
        classes=0,
    ),
    "transformers_dinov2_reg": Case(
        lambda: _transformers(
            "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **_HF_VIT, image_size=28, patch_size=7
        ),
        "vit",
        {**_DINO, **_REGISTERS},
        28,
        classes=0,
    ),
    "transformers_clip": Case(
        lambda: _transformers(
            "CLIPVisionModelWithProjection", "CLIPVisionConfig", **_HF_TOWER, intermediate_size=128,
            projection_dim=CLASSES,
        ),
        "vit",
        {**_VIT, "pre_norm": True, "act": "quick_gelu", "epsilon": 1e-5},
        32,
    ),
    "transformers_siglip": Case(
        lambda: _transformers("SiglipVisionModel", "SiglipVisionConfig", **_HF_TOWER, intermediate_size=40),
        "vit",
        {**_VIT, "class_token": False, "pool": "map", "act": "gelu_tanh", "hidden": 40},
        32,
        classes=0,
    ),
    "transformers_dinov3": Case(
        lambda: _transformers("DINOv3ViTModel", "DINOv3ViTConfig", **_HF_DINO3),
        "eva",
        {**_DINO3, "gated": False, "registers": 4, "pool": "cls"},
        32,
        classes=0,
    ),
    "transformers_dinov3_plus": Case(
        lambda: _transformers(
            "DINOv3ViTModel", "DINOv3ViTConfig", **_HF_DINO3, use_gated_mlp=True, hidden_act="silu", query_bias=False,
            value_bias=False,
        ),
        "eva",
        {**_DINO3, "gated": True, "bias": False, "registers": 4, "pool": "cls"},
        32,
        classes=0,
    ),
    "timm_resnet_basic": Case(
        lambda: _timm_resnet("BasicBlock", **_TIMM_RESNET), "resnet", {**_RESNET, "bottleneck": False}, 64
    ),
    "timm_resnet_bottleneck": Case(
        lambda: _timm_resnet("Bottleneck", **_TIMM_RESNET), "resnet", {**_RESNET, "bottleneck": True}, 64
    ),
    "timm_resnet_deep": Case(
        lambda: _timm_resnet(
            "Bottleneck", **_TIMM_RESNET, stem_width=32, stem_type="deep_tiered", avg_down=True, cardinality=4,
            base_width=32, block_args={"attn_layer": "se"},
        ),
        "resnet",
        {**_RESNET, "bottleneck": True, "deep": (24, 32), "average_shortcut": True, "groups": 4, "widen": 2,
         "squeeze": True},
        75,
        timm_name="resnet50d",
    ),
    "timm_resnet_aa": Case(
        lambda: _timm_resnet("BasicBlock", **_TIMM_RESNET, aa_layer=_average()),
        "resnet",
        {**_RESNET, "bottleneck": False, "anti_alias": True},
        64,
    ),
    "timm_regnet": Case(
        lambda: _timm_regnet(depth=6, w0=8, wa=8.0, wm=2.0, group_size=4, se_ratio=0.25),
        "regnet",
        {"depths": (1, 1, 3, 1), "widths": (8, 16, 32, 64), "group": 4},
        64,
    ),
    "transformers_resnet_basic": Case(
        lambda: _HF_RESNET(hidden_sizes=[64, 8, 8, 16], layer_type="basic"),
        "resnet",
        {**_RESNET, "bottleneck": False},
        64,
    ),
    "transformers_resnet_bottleneck": Case(
        lambda: _HF_RESNET(hidden_sizes=[256, 32, 32, 64], layer_type="bottleneck"),
        "resnet",
        {**_RESNET, "bottleneck": True},
        64,
    ),
    "timm_convnext": Case(lambda: _timm("ConvNeXt", **_TIMM_CONVNEXT), "convnext", _CONVNEXT, 64),
    "timm_convnext_atto": Case(
        lambda: _timm("ConvNeXt", **_TIMM_CONVNEXT, conv_mlp=True),
        "convnext",
        _CONVNEXT,
        64,
        timm_name="convnext_atto",
    ),
    "timm_convnextv2": Case(
        lambda: _timm("ConvNeXt", **_TIMM_CONVNEXT, use_grn=True, ls_init_value=None),
        "convnext",
        {**_CONVNEXT, "response_norm": True},
        64,
    ),
    "transformers_convnext": Case(
        lambda: _transformers(
            "ConvNextForImageClassification", "ConvNextConfig", depths=[1, 2, 1, 1], hidden_sizes=[8, 12, 16, 24],
            num_labels=CLASSES,
        ),
        "convnext",
        _CONVNEXT,
        64,
    ),
    "timm_efficientnet_lite": Case(
        lambda: _timm_efficientnet("efficientnet_lite0"), "efficientnet", _LITE, 64
    ),
    "timm_tf_efficientnet_lite": Case(
        lambda: _timm_efficientnet("tf_efficientnet_lite0"),
        "efficientnet",
        {**_LITE, "padding": "same", "epsilon": 1e-3},
        63,
    ),
    "timm_efficientnet": Case(
        lambda: _timm_blocks(
            "EfficientNet", _EFFICIENT, "silu", num_features=24, stem_size=8, pad_type="same",
            norm_layer=_batch_norm(1e-3),
        ),
        "efficientnet",
        {"stages": _EFFICIENT, "stem": 8, "last": 24, "padding": "same", "epsilon": 1e-3},
        63,
    ),
    "timm_mobilenetv3": Case(
        lambda: _timm_blocks(
            "MobileNetV3", _MOBILE3, "hard_swish", num_features=24, stem_size=8, se_layer=_mobile_squeeze()
        ),
        "efficientnet",
        {"stages": _MOBILE3, "stem": 8, "last": 24, "act": "hard_swish", "head": "pooled"},
        64,
    ),
    "timm_mobilenetv4": Case(
        lambda: _timm_blocks(
            "MobileNetV3", _MOBILE4, "relu", num_features=24, stem_size=8, head_bias=False, head_norm=True
        ),
        "efficientnet",
        {"stages": _MOBILE4, "stem": 8, "last": 24, "act": "relu", "head": "pooled_norm"},
        64,
    ),
}  # fmt: skip
