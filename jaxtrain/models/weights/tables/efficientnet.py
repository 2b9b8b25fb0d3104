"""EfficientNets and MobileNets as in timm, and EfficientNet-Lite as in the package efficientnet_lite_pytorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtrain.models.mobile_blocks import KINDS, plan
from jaxtrain.models.weights.layout import Family, Fields, Layout


def _groups(kwargs: Mapping[str, Any]) -> dict[str, Sequence[Fields]]:
    blocks = plan(kwargs["stages"], 8, 1.0, kwargs.get("depth", 1.0), kwargs.get("fixed", False))
    fields = [(one.kind, {"i": i, "stage": one.stage, "block": one.block}) for i, one in enumerate(blocks)]
    return {kind: [place for of, place in fields if of == kind] for kind in KINDS}


_BLOCK = "blocks.{stage}.{block}"


def _timm(**parts: str) -> dict[str, str]:
    """Rules of a block: our part = their convolution and norm."""
    names = {part: names.split() for part, names in parts.items()}
    return {
        **{f"blocks/{{i}}/{part}/conv": f"{_BLOCK}.{conv}" for part, (conv, _) in names.items()},
        **{f"blocks/{{i}}/{part}/bn": f"{_BLOCK}.{norm}" for part, (_, norm) in names.items()},
        **{f"blocks/{{i}}/se/{part}": f"{_BLOCK}.se.conv_{part}" for part in ("reduce", "expand")},
    }


TIMM = Layout(
    name="timm",
    rules={
        "": {
            "stem/conv": "conv_stem",
            "stem/bn": "bn1",
            "last/conv": "conv_head",
            "last/bn": "bn2",
            "last/norm": "norm_head",
            "head": "classifier",
        },
        "ds": _timm(depthwise="conv_dw bn1", project="conv_pw bn2"),
        "ir": _timm(expand="conv_pw bn1", depthwise="conv_dw bn2", project="conv_pwl bn3"),
        "er": _timm(expand="conv_exp bn1", project="conv_pwl bn2"),
        "cn": _timm(project="conv bn1"),
        "uir": _timm(
            start="dw_start.conv dw_start.bn",
            expand="pw_exp.conv pw_exp.bn",
            depthwise="dw_mid.conv dw_mid.bn",
            project="pw_proj.conv pw_proj.bn",
        ),
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
        "ds": _PACKAGE_BLOCK,
        "ir": _PACKAGE_BLOCK,
    },
    ignored=("*.num_batches_tracked",),
    variant={"padding": "same", "epsilon": 1e-3},  # Google's weights, whatever the file is called
    mean=(127 / 255,) * 3,  # images are (x - 127) / 128
    std=(128 / 255,) * 3,
)

EFFICIENTNET = Family(layouts=(TIMM, PACKAGE), stem="stem/conv/kernel", groups=_groups)
