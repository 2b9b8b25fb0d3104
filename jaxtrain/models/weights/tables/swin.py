"""Swin as in timm."""

from __future__ import annotations

from jaxtrain.models.weights.layout import Family, Layout
from jaxtrain.models.weights.tables.convnext import stages

_PARTS = ("norm1", "attn/qkv", "attn/proj", "norm2", "mlp/fc1", "mlp/fc2")

TIMM = Layout(
    name="timm",
    rules={
        "": {"stem": "patch_embed.proj", "stem_norm": "patch_embed.norm", "norm": "norm", "head": "head.fc"},
        "downsample": {
            f"downsamples/{{i}}/{part}": f"layers.{{stage}}.downsample.{part}" for part in ("norm", "reduction")
        },
        "block": {
            **{f"stages/{{stage}}/{{block}}/{part}": f"layers.{{stage}}.blocks.{{block}}.{part.replace('/', '.')}"
               for part in _PARTS},
            "stages/{stage}/{block}/attn/bias_table":
                "layers.{stage}.blocks.{block}.attn.relative_position_bias_table",
        },
    },
    ignored=("*.relative_position_index", "*.attn_mask"),
)  # fmt: skip

SWIN = Family(layouts=(TIMM,), stem="stem/kernel", groups=stages)
