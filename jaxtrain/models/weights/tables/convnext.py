"""ConvNeXt as in timm, in transformers, and in the files of its authors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxtrain.models.weights.layout import Family, Fields, Layout


def stages(kwargs: Mapping[str, Any]) -> dict[str, Sequence[Fields]]:
    """The repetitions of a network of stages with something between them."""
    depths = kwargs["depths"]
    return {
        "block": [{"stage": stage, "block": block} for stage, depth in enumerate(depths) for block in range(depth)],
        "downsample": [{"i": i, "stage": i + 1} for i in range(len(depths) - 1)],
    }


TIMM = Layout(
    name="timm",
    rules={
        "": {"stem": "stem.0", "stem_norm": "stem.1", "norm": "head.norm", "head": "head.fc"},
        "downsample": {
            "downsamples/{i}/norm": "stages.{stage}.downsample.0",
            "downsamples/{i}/conv": "stages.{stage}.downsample.1",
        },
        "block": {
            "stages/{stage}/{block}/conv_dw": "stages.{stage}.blocks.{block}.conv_dw",
            "stages/{stage}/{block}/norm": "stages.{stage}.blocks.{block}.norm",
            "stages/{stage}/{block}/fc1": "stages.{stage}.blocks.{block}.mlp.fc1",
            "stages/{stage}/{block}/fc2": "stages.{stage}.blocks.{block}.mlp.fc2",
            "stages/{stage}/{block}/grn": "stages.{stage}.blocks.{block}.mlp.grn",
            "stages/{stage}/{block}/gamma/scale": "stages.{stage}.blocks.{block}.gamma",
        },
    },
)

TIMM_CONVOLUTIONS = replace(
    TIMM,
    name="timm, 1x1 convolutions",
    convolutions=("*/fc1/kernel", "*/fc2/kernel"),
    models=tuple(f"{name}_{size}" for name in ("convnext", "convnextv2") for size in ("atto", "femto", "pico", "nano")),
)

FACEBOOK = Layout(
    name="facebookresearch/ConvNeXt",
    rules={
        "": {"stem": "downsample_layers.0.0", "stem_norm": "downsample_layers.0.1", "norm": "norm", "head": "head"},
        "downsample": {
            "downsamples/{i}/norm": "downsample_layers.{stage}.0",
            "downsamples/{i}/conv": "downsample_layers.{stage}.1",
        },
        "block": {
            "stages/{stage}/{block}/conv_dw": "stages.{stage}.{block}.dwconv",
            "stages/{stage}/{block}/norm": "stages.{stage}.{block}.norm",
            "stages/{stage}/{block}/fc1": "stages.{stage}.{block}.pwconv1",
            "stages/{stage}/{block}/fc2": "stages.{stage}.{block}.pwconv2",
            "stages/{stage}/{block}/gamma/scale": "stages.{stage}.{block}.gamma",
        },
    },
)

_LAYER = "encoder.stages.{stage}.layers.{block}"
TRANSFORMERS = Layout(
    name="transformers",
    rules={
        "": {
            "stem": "embeddings.patch_embeddings",
            "stem_norm": "embeddings.layernorm",
            "norm": "layernorm",
            "head": "classifier",
        },
        "downsample": {
            "downsamples/{i}/norm": "encoder.stages.{stage}.downsampling_layer.0",
            "downsamples/{i}/conv": "encoder.stages.{stage}.downsampling_layer.1",
        },
        "block": {
            "stages/{stage}/{block}/conv_dw": f"{_LAYER}.dwconv",
            "stages/{stage}/{block}/norm": f"{_LAYER}.layernorm",
            "stages/{stage}/{block}/fc1": f"{_LAYER}.pwconv1",
            "stages/{stage}/{block}/fc2": f"{_LAYER}.pwconv2",
            "stages/{stage}/{block}/gamma/scale": f"{_LAYER}.layer_scale_parameter",
        },
    },
    prefixes=("convnext.",),
)

CONVNEXT = Family(layouts=(TIMM, TIMM_CONVOLUTIONS, FACEBOOK, TRANSFORMERS), stem="stem/kernel", groups=stages)
