"""Vision transformers as in timm, in transformers (ViT, DeiT, DINOv2, CLIP, SigLIP), and as their authors have them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxtrain.models.weights.layout import FLAX_LEAVES, Arrays, Family, Fields, Layout, Names

_PARTS = ("query", "key", "value")


def _groups(kwargs: Mapping[str, Any]) -> dict[str, Sequence[Fields]]:
    return {"block": [{"i": i} for i in range(kwargs["depth"])]}


def _square(places: int) -> bool:
    return places > 0 and math.isqrt(places) ** 2 == places


def _position_in_class_token(position: str, token: str) -> Any:
    """The class token's own position becomes part of the token, where the variant has no position for it.

    The sum is what the network computes from the two, so nothing changes.
    """

    def prepare(arrays: Arrays, kwargs: Mapping[str, Any]) -> Arrays:
        if kwargs.get("class_position", True) or position not in arrays or token not in arrays:
            return arrays
        positions = arrays[position]
        if positions.ndim != 3 or not _square(positions.shape[1] - 1) or positions[:, :1].shape != arrays[token].shape:
            return arrays  # the patches' positions alone already
        return arrays | {token: arrays[token] + positions[:, :1], position: positions[:, 1:]}

    return prepare


TIMM = Layout(
    name="timm",
    rules={
        "": {
            "patch_embed": "patch_embed.proj",
            "pos_embed": "pos_embed",
            "cls_token": "cls_token",
            "reg_token": "reg_token",
            "norm_pre": "norm_pre",
            "norm": "norm",
            "attn_pool/latent": "attn_pool.latent",
            **{f"attn_pool/{part}": f"attn_pool.{part}" for part in ("q", "kv", "proj", "norm")},
            **{f"attn_pool/mlp/{part}": f"attn_pool.mlp.{part}" for part in ("fc1", "fc2")},
            "head": "head",
        },
        "block": {
            "blocks/{i}/norm1": "blocks.{i}.norm1",
            "blocks/{i}/attn/qkv": "blocks.{i}.attn.qkv",
            "blocks/{i}/attn/proj": "blocks.{i}.attn.proj",
            "blocks/{i}/ls1/scale": "blocks.{i}.ls1.gamma",
            "blocks/{i}/norm2": "blocks.{i}.norm2",
            "blocks/{i}/mlp/fc1": "blocks.{i}.mlp.fc1",
            "blocks/{i}/mlp/fc2": "blocks.{i}.mlp.fc2",
            "blocks/{i}/ls2/scale": "blocks.{i}.ls2.gamma",
        },
    },
    ignored=("mask_token", "pre_logits.*"),
    prepare=_position_in_class_token("pos_embed", "cls_token"),
)
TIMM_AVERAGE = replace(
    TIMM,
    name="timm, average pooling",
    rules={**TIMM.rules, "": {**TIMM.rules[""], "norm": "fc_norm"}},
    options={"pool": "avg"},
    requires="fc_norm.weight",
)

META_DINO = replace(
    TIMM,
    name="facebookresearch/dinov2",
    rules={**TIMM.rules, "": {**TIMM.rules[""], "reg_token": "register_tokens"}},
    requires="register_tokens",
)
META_DEIT3 = replace(
    TIMM,
    name="facebookresearch/deit III",
    rules={
        **TIMM.rules,
        "block": {**TIMM.rules["block"], **{f"blocks/{{i}}/ls{n}/scale": f"blocks.{{i}}.gamma_{n}" for n in (1, 2)}},
    },
    requires="blocks.0.gamma_1",
)

_EMBEDDINGS = {
    "patch_embed": "embeddings.patch_embeddings.projection",
    "pos_embed": "embeddings.position_embeddings",
    "cls_token": "embeddings.cls_token",
    "norm": "layernorm",
}
_ATTENTION: dict[str, str | Names] = {
    "blocks/{i}/attn/qkv": tuple(f"encoder.layer.{{i}}.attention.attention.{part}" for part in _PARTS),
    "blocks/{i}/attn/proj": "encoder.layer.{i}.attention.output.dense",
}
# Their layer norms have an epsilon of 1e-12 where the weights were trained with 1e-6, as timm's and ours.
TRANSFORMERS = Layout(
    name="transformers",
    rules={
        "": {**_EMBEDDINGS, "head": "classifier"},
        "block": {
            **_ATTENTION,
            "blocks/{i}/norm1": "encoder.layer.{i}.layernorm_before",
            "blocks/{i}/norm2": "encoder.layer.{i}.layernorm_after",
            "blocks/{i}/mlp/fc1": "encoder.layer.{i}.intermediate.dense",
            "blocks/{i}/mlp/fc2": "encoder.layer.{i}.output.dense",
        },
    },
    prefixes=("vit.", "deit."),
    ignored=("pooler.*", "embeddings.mask_token"),
)


def _distillation_as_register(arrays: Arrays, kwargs: Mapping[str, Any]) -> Arrays:
    """DeiT's distillation token, which is a register with a position: their sum is a register without one."""
    token = arrays["embeddings.distillation_token"]
    positions = arrays.get("embeddings.position_embeddings", token)
    if positions.ndim != 3 or positions.shape[1] < 3 or positions[:, :1].shape != token.shape:
        return arrays
    rest = {name: array for name, array in arrays.items() if name != "embeddings.distillation_token"}
    return rest | {
        "embeddings.register_tokens": token + positions[:, 1:2],
        "embeddings.position_embeddings": positions[:, [0, *range(2, positions.shape[1])]],
    }


TRANSFORMERS_DEIT = replace(
    TRANSFORMERS,
    name="transformers, distilled",
    rules={**TRANSFORMERS.rules, "": {**TRANSFORMERS.rules[""], "reg_token": "embeddings.register_tokens"}},
    # The two heads of a teacher's pupil look at two tokens; our head has one: neither of them fits alone.
    ignored=(*TRANSFORMERS.ignored, "cls_classifier.*", "distillation_classifier.*"),
    options={"registers": 1},
    requires="embeddings.distillation_token",
    prepare=_distillation_as_register,
)

TRANSFORMERS_DINO = Layout(
    name="transformers, DINOv2",
    rules={
        "": {**_EMBEDDINGS, "reg_token": "embeddings.register_tokens"},
        "block": {
            **_ATTENTION,
            "blocks/{i}/norm1": "encoder.layer.{i}.norm1",
            "blocks/{i}/ls1/scale": "encoder.layer.{i}.layer_scale1.lambda1",
            "blocks/{i}/norm2": "encoder.layer.{i}.norm2",
            "blocks/{i}/mlp/fc1": "encoder.layer.{i}.mlp.fc1",
            "blocks/{i}/mlp/fc2": "encoder.layer.{i}.mlp.fc2",
            "blocks/{i}/ls2/scale": "encoder.layer.{i}.layer_scale2.lambda1",
        },
    },
    prefixes=("dinov2.", "dinov2_with_registers."),
    # Their classifier takes the class token and the mean of the patches, twice as much as our head.
    ignored=("embeddings.mask_token", "classifier.*"),
    prepare=_position_in_class_token("embeddings.position_embeddings", "embeddings.cls_token"),
)


def _tower(arrays: Arrays, kwargs: Mapping[str, Any]) -> Arrays:
    """Arrays of an image tower with the axes and the parts that ours have; a projection gets a bias of 0.

    A pooling head stays behind where the variant takes the mean of the patches.
    """
    pooled = kwargs.get("pool") == "normed_avg"
    made = {name: array for name, array in arrays.items() if not (pooled and name.startswith("head."))}
    for name, axes in (("embeddings.class_embedding", (0, 1)), ("embeddings.position_embedding.weight", (0,))):
        if name in arrays:
            made[name] = np.expand_dims(arrays[name], axes)
    if "visual_projection.weight" in arrays:
        made["visual_projection.bias"] = np.zeros(arrays["visual_projection.weight"].shape[:1], np.float32)
    for leaf in ("weight", "bias"):
        joined = made.pop(f"head.attention.in_proj_{leaf}", None)
        if joined is not None and joined.ndim:
            third = len(joined) // 3
            made |= {f"head.attention.q.{leaf}": joined[:third], f"head.attention.kv.{leaf}": joined[third:]}
    return made


_LAYER = "encoder.layers.{i}"
TRANSFORMERS_CLIP = Layout(
    name="transformers, CLIP",
    rules={
        "": {
            "patch_embed": "embeddings.patch_embedding",
            "pos_embed": "embeddings.position_embedding.weight",
            "cls_token": "embeddings.class_embedding",
            "norm_pre": "pre_layrnorm",
            "norm": "post_layernorm",
            "head": "visual_projection",
        },
        "block": {
            "blocks/{i}/norm1": f"{_LAYER}.layer_norm1",
            "blocks/{i}/attn/qkv": tuple(f"{_LAYER}.self_attn.{part}_proj" for part in "qkv"),
            "blocks/{i}/attn/proj": f"{_LAYER}.self_attn.out_proj",
            "blocks/{i}/norm2": f"{_LAYER}.layer_norm2",
            "blocks/{i}/mlp/fc1": f"{_LAYER}.mlp.fc1",
            "blocks/{i}/mlp/fc2": f"{_LAYER}.mlp.fc2",
        },
    },
    prefixes=("vision_model.",),
    ignored=("text_model.*", "text_projection.*", "logit_*", "*.position_ids"),
    requires="pre_layrnorm.weight",
    prepare=_tower,
)
TRANSFORMERS_SIGLIP = replace(
    TRANSFORMERS_CLIP,
    name="transformers, SigLIP",
    rules={
        **TRANSFORMERS_CLIP.rules,
        "": {
            "patch_embed": "embeddings.patch_embedding",
            "pos_embed": "embeddings.position_embedding.weight",
            "norm": "post_layernorm",
            "attn_pool/latent": "head.probe",
            "attn_pool/q": "head.attention.q",
            "attn_pool/kv": "head.attention.kv",
            "attn_pool/proj": "head.attention.out_proj",
            "attn_pool/norm": "head.layernorm",
            "attn_pool/mlp/fc1": "head.mlp.fc1",
            "attn_pool/mlp/fc2": "head.mlp.fc2",
            "head": "classifier",
        },
    },
    requires=None,
)


def _google(attention: int, mlp: int, norm: int, position: str, name: str) -> Layout:
    block = "Transformer/encoderblock_{i}"
    return Layout(
        name=name,
        rules={
            "": {
                "patch_embed": "embedding",
                "pos_embed": position,
                "cls_token": "cls",
                "norm": "Transformer/encoder_norm",
                "head": "head",
            },
            "block": {
                "blocks/{i}/norm1": f"{block}/LayerNorm_0",
                "blocks/{i}/attn/qkv": tuple(
                    f"{block}/MultiHeadDotProductAttention_{attention}/{part}" for part in _PARTS
                ),
                "blocks/{i}/attn/proj": f"{block}/MultiHeadDotProductAttention_{attention}/out",
                "blocks/{i}/norm2": f"{block}/LayerNorm_{norm}",
                "blocks/{i}/mlp/fc1": f"{block}/MlpBlock_{mlp}/Dense_0",
                "blocks/{i}/mlp/fc2": f"{block}/MlpBlock_{mlp}/Dense_1",
            },
        },
        leaves=FLAX_LEAVES,
        separator="/",
        transposed=False,
        prefixes=("opt/target/", "params/", "params/img/"),
        ignored=("pre_logits/*", "opt/*"),
    )


GOOGLE = _google(1, 3, 2, "Transformer/posembed_input/pos_embedding", "vision_transformer npz")
BIG_VISION = _google(0, 0, 1, "pos_embedding", "big_vision npz")

VIT = Family(
    layouts=(
        *(TIMM, TIMM_AVERAGE, META_DINO, META_DEIT3),
        *(TRANSFORMERS, TRANSFORMERS_DEIT, TRANSFORMERS_DINO, TRANSFORMERS_CLIP, TRANSFORMERS_SIGLIP),
        *(GOOGLE, BIG_VISION),
    ),
    stem="patch_embed/kernel",
    positions="pos_embed",
    groups=_groups,
)
