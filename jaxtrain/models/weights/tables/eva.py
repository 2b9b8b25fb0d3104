"""DINOv3 and EVA-02 as in timm, DINOv3 as in transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtrain.models.variants import VARIANTS
from jaxtrain.models.weights.layout import Family, Fields, Layout, Names


def _groups(kwargs: Mapping[str, Any]) -> dict[str, Sequence[Fields]]:
    return {"block": [{"i": i} for i in range(kwargs["depth"])]}


_PARTS = ("norm1", "attn/norm", "attn/proj", "norm2", "mlp/norm", "mlp/fc2")


def _timm(name: str, pattern: str, *, norm: str, three: bool, gates: bool, requires: str | None = None) -> Layout:
    """norm: of the tokens. three: queries, keys and values have a kernel each. gates: those have one of their own."""
    attention = "blocks.{i}.attn"
    qkv: dict[str, str | Names] = {
        "blocks/{i}/attn/qkv": f"{attention}.qkv",
        "blocks/{i}/attn/q_bias": f"{attention}.q_bias",
        "blocks/{i}/attn/v_bias": f"{attention}.v_bias",
    }
    if three:
        qkv = {
            "blocks/{i}/attn/qkv": tuple(f"{attention}.{part}_proj" for part in "qkv"),
            "blocks/{i}/attn/q_bias": f"{attention}.q_proj.bias",
            "blocks/{i}/attn/v_bias": f"{attention}.v_proj.bias",
        }
    return Layout(
        name=f"timm, {name}",
        rules={
            "": {
                "patch_embed": "patch_embed.proj",
                "pos_embed": "pos_embed",
                "cls_token": "cls_token",
                "reg_token": "reg_token",
                "norm": norm,
                "head": "head",
            },
            "block": {
                **{f"blocks/{{i}}/{part}": f"blocks.{{i}}.{part.replace('/', '.')}" for part in _PARTS},
                **{f"blocks/{{i}}/ls{n}/scale": f"blocks.{{i}}.gamma_{n}" for n in (1, 2)},
                "blocks/{i}/mlp/fc1": tuple(f"blocks.{{i}}.mlp.fc1_{part}" for part in "gx") if gates else
                                      "blocks.{i}.mlp.fc1",
                **qkv,
            },
        },
        models=tuple(model for model in VARIANTS if re.fullmatch(pattern, model)),
        requires=requires,
    )  # fmt: skip


def _transformers(name: str, fc1: str | Names, requires: str) -> Layout:
    layer = "layer.{i}"
    return Layout(
        name=f"transformers, {name}",
        rules={
            "": {
                "patch_embed": "embeddings.patch_embeddings",
                "cls_token": "embeddings.cls_token",
                "reg_token": "embeddings.register_tokens",
                "norm": "norm",
            },
            "block": {
                "blocks/{i}/norm1": f"{layer}.norm1",
                "blocks/{i}/attn/qkv": tuple(f"{layer}.attention.{part}_proj" for part in "qkv"),
                "blocks/{i}/attn/q_bias": f"{layer}.attention.q_proj.bias",
                "blocks/{i}/attn/v_bias": f"{layer}.attention.v_proj.bias",
                "blocks/{i}/attn/proj": f"{layer}.attention.o_proj",
                "blocks/{i}/norm2": f"{layer}.norm2",
                "blocks/{i}/mlp/fc1": fc1,
                "blocks/{i}/mlp/fc2": f"{layer}.mlp.down_proj",
                **{f"blocks/{{i}}/ls{n}/scale": f"{layer}.layer_scale{n}.lambda1" for n in (1, 2)},
            },
        },
        prefixes=("model.",),
        ignored=("embeddings.mask_token",),
        requires=requires,
    )


_UP = "layer.{i}.mlp.up_proj"

EVA = Family(
    layouts=(
        _timm("DINOv3", ".*(tiny|small|base|large)_patch16_dinov3.*", norm="norm", three=False, gates=False),
        _timm(
            "DINOv3 with gates",
            ".*(plus|7b)_patch16_dinov3.*",
            norm="norm",
            three=False,
            gates=True,
            requires="blocks.0.mlp.fc1_g.weight",
        ),
        _timm(
            "small EVA-02", "eva02_(tiny|small)_.*", norm="fc_norm", three=False, gates=False, requires="fc_norm.weight"
        ),
        _timm(
            "EVA-02",
            r"eva02_(base|large)_patch14_\d+",
            norm="fc_norm",
            three=True,
            gates=True,
            requires="blocks.0.attn.q_proj.weight",
        ),
        _timm(
            "EVA-02 CLIP", "eva02_.*clip.*", norm="norm", three=True, gates=True, requires="blocks.0.attn.norm.weight"
        ),
        _transformers("DINOv3", _UP, "layer.0.mlp.up_proj.weight"),
        _transformers("DINOv3 with gates", ("layer.{i}.mlp.gate_proj", _UP), "layer.0.mlp.gate_proj.weight"),
    ),
    stem="patch_embed/kernel",
    positions="pos_embed",
    groups=_groups,
)
