"""ResNet as in timm (torchvision's names) and in transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxtrain.models.variants import VARIANTS
from jaxtrain.models.weights.layout import Family, Fields, Layout


def _groups(kwargs: Mapping[str, Any]) -> dict[str, Sequence[Fields]]:
    places = [(stage, block) for stage, depth in enumerate(kwargs["depths"]) for block in range(depth)]
    return {"block": [{"i": i, "stage": s, "layer": s + 1, "block": b} for i, (s, b) in enumerate(places)]}


TIMM = Layout(
    name="timm",
    rules={
        "": {"conv1": "conv1", "bn1": "bn1", "head": "fc"},
        "block": {
            **{f"blocks/{{i}}/conv{n}": f"layer{{layer}}.{{block}}.conv{n}" for n in (1, 2, 3)},
            **{f"blocks/{{i}}/bn{n}": f"layer{{layer}}.{{block}}.bn{n}" for n in (1, 2, 3)},
            "blocks/{i}/shortcut/conv": "layer{layer}.{block}.downsample.0",
            "blocks/{i}/se/reduce": "layer{layer}.{block}.se.fc1",
            "blocks/{i}/se/expand": "layer{layer}.{block}.se.fc2",
            "blocks/{i}/shortcut/bn": "layer{layer}.{block}.downsample.1",
        },
    },
    ignored=("*.num_batches_tracked",),
)
TIMM_DEEP = replace(
    TIMM,
    name="timm, deep stem",
    rules={
        "": {
            "conv1": "conv1.0",
            "bn1": "conv1.1",
            "deep1/conv": "conv1.3",
            "deep1/bn": "conv1.4",
            "deep2/conv": "conv1.6",
            "deep2/bn": "bn1",
            "head": "fc",
        },
        "block": {
            **TIMM.rules["block"],
            "blocks/{i}/shortcut/conv": "layer{layer}.{block}.downsample.1",
            "blocks/{i}/shortcut/bn": "layer{layer}.{block}.downsample.2",
        },
    },
    models=tuple(name for name, (_, kwargs) in VARIANTS.items() if "deep" in kwargs),
    requires="conv1.6.weight",
)

_LAYER = "encoder.stages.{stage}.layers.{block}"
TRANSFORMERS = Layout(
    name="transformers",
    rules={
        "": {
            "conv1": "embedder.embedder.convolution",
            "bn1": "embedder.embedder.normalization",
            "head": "classifier.1",
        },
        "block": {
            **{f"blocks/{{i}}/conv{n}": f"{_LAYER}.layer.{n - 1}.convolution" for n in (1, 2, 3)},
            **{f"blocks/{{i}}/bn{n}": f"{_LAYER}.layer.{n - 1}.normalization" for n in (1, 2, 3)},
            "blocks/{i}/shortcut/conv": f"{_LAYER}.shortcut.convolution",
            "blocks/{i}/shortcut/bn": f"{_LAYER}.shortcut.normalization",
        },
    },
    prefixes=("resnet.",),
    ignored=("*.num_batches_tracked",),
)

RESNET = Family(layouts=(TIMM, TIMM_DEEP, TRANSFORMERS), stem="conv1/kernel", groups=_groups)
