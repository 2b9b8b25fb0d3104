"""DINOv3 and EVA-02 as in timm."""

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
    ),
    stem="patch_embed/kernel",
    positions="pos_embed",
    groups=_groups,
)
