"""EfficientNet-Lite as in timm and in the package efficientnet_lite_pytorch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtrain.models.weights.layout import Family, Fields, Layout

_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks a stage before scaling; the first and the last stage are never scaled."""


def _groups(kwargs: Mapping[str, Any]) -> dict[str, Sequence[Fields]]:
    depths = [blocks if s in (0, 6) else math.ceil(blocks * kwargs["depth"]) for s, blocks in enumerate(_BLOCKS)]
    places = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    fields = [{"i": i, "stage": stage, "block": block} for i, (stage, block) in enumerate(places)]
    return {"first": fields[:1], "block": fields[1:]}


TIMM = Layout(
    name="timm",
    rules={
        "": {
            "stem/conv": "conv_stem",
            "stem/bn": "bn1",
            "last/conv": "conv_head",
            "last/bn": "bn2",
            "head": "classifier",
        },
        "first": {
            "blocks/{i}/depthwise/conv": "blocks.{stage}.{block}.conv_dw",
            "blocks/{i}/depthwise/bn": "blocks.{stage}.{block}.bn1",
            "blocks/{i}/project/conv": "blocks.{stage}.{block}.conv_pw",
            "blocks/{i}/project/bn": "blocks.{stage}.{block}.bn2",
        },
        "block": {
            "blocks/{i}/expand/conv": "blocks.{stage}.{block}.conv_pw",
            "blocks/{i}/expand/bn": "blocks.{stage}.{block}.bn1",
            "blocks/{i}/depthwise/conv": "blocks.{stage}.{block}.conv_dw",
            "blocks/{i}/depthwise/bn": "blocks.{stage}.{block}.bn2",
            "blocks/{i}/project/conv": "blocks.{stage}.{block}.conv_pwl",
            "blocks/{i}/project/bn": "blocks.{stage}.{block}.bn3",
        },
    },
    ignored=("*.num_batches_tracked",),
)

_PACKAGE_BLOCK = {
    "blocks/{i}/expand/conv": "_blocks.{i}._expand_conv",
    "blocks/{i}/expand/bn": "_blocks.{i}._bn0",
    "blocks/{i}/depthwise/conv": "_blocks.{i}._depthwise_conv",
    "blocks/{i}/depthwise/bn": "_blocks.{i}._bn1",
    "blocks/{i}/project/conv": "_blocks.{i}._project_conv",
    "blocks/{i}/project/bn": "_blocks.{i}._bn2",
}
PACKAGE = Layout(
    name="efficientnet_lite_pytorch",
    rules={
        "": {
            "stem/conv": "_conv_stem",
            "stem/bn": "_bn0",
            "last/conv": "_conv_head",
            "last/bn": "_bn1",
            "head": "_fc",
        },
        "first": _PACKAGE_BLOCK,
        "block": _PACKAGE_BLOCK,
    },
    ignored=("*.num_batches_tracked",),
    variant={"padding": "same", "epsilon": 1e-3},  # Google's weights, whatever the file is called
    mean=(127 / 255,) * 3,  # images are (x - 127) / 128
    std=(128 / 255,) * 3,
)

EFFICIENTNET_LITE = Family(layouts=(TIMM, PACKAGE), stem="stem/conv/kernel", groups=_groups)
