"""The blocks of EfficientNets and MobileNets, written as their authors and timm do: `ir_r2_k3_s2_e6_c24_se0.25`.

First the kind (ds: depthwise and pointwise; ir: widen, depthwise, project; er: widen by a full convolution, project;
cn: one convolution; uir: ir with a further depthwise convolution in front), then repeats, kernel (a: of the one in
front), stride of the first, expansion, channels, share of squeeze-excite, nre for ReLU, skip for a shortcut around cn.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

KINDS = ("ds", "ir", "er", "cn", "uir")


class BlockPlan(NamedTuple):
    """One block."""

    kind: str
    stage: int
    block: int
    """Within the stage."""
    channels_in: int
    inside: int
    """Channels after widening."""
    channels: int
    kernel: int
    start: int
    """Kernel of the depthwise convolution in front, else 0."""
    stride: int
    squeeze: float
    """Channels inside of squeeze-excite as a share of `inside`; 0: none."""
    expansion: float
    relu: bool
    """ReLU, whatever the other blocks have."""
    residual: bool


def round_to_8(channels: float, limit: float = 0.9) -> int:
    """The nearest multiple of 8 that is not below `limit` of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < limit * channels else rounded


def plan(
    stages: tuple[str, ...], stem: int, width: float, depth: float, fixed: bool = False, limit: float = 0.9
) -> list[BlockPlan]:
    """All blocks in order. width and depth multiply channels and repeats; fixed: the ends' repeats excepted."""
    blocks: list[BlockPlan] = []
    channels_in = stem
    for stage, texts in enumerate(stages):
        scale = 1.0 if fixed and stage in (0, len(stages) - 1) else depth
        number = 0
        for text in texts.split():
            kind, *words = text.split("_")
            flags = {word for word in words if not re.search(r"\d", word)}
            value = {match[1]: float(match[2]) for word in words if (match := re.fullmatch(r"([a-z]+)([\d.]+)", word))}
            channels = round_to_8(value["c"] * width, limit)
            for i in range(math.ceil(value["r"] * scale)):
                stride, expansion = int(value["s"]) if i == 0 else 1, value.get("e", 1.0)
                blocks.append(
                    BlockPlan(
                        kind=kind,
                        stage=stage,
                        block=number,
                        channels_in=channels_in,
                        inside=channels_in if kind in ("ds", "cn") else round_to_8(channels_in * expansion),
                        channels=channels,
                        kernel=int(value["k"]),
                        start=int(value.get("a", 0)),
                        stride=stride,
                        squeeze=value.get("se", 0.0),
                        expansion=expansion,
                        relu="nre" in flags,
                        residual=stride == 1 and channels_in == channels and (kind != "cn" or "skip" in flags),
                    )
                )
                channels_in, number = channels, number + 1
    return blocks
