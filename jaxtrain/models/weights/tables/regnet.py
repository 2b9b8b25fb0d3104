"""RegNet as in timm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtrain.models.weights.layout import Family, Fields, Layout


def _groups(kwargs: Mapping[str, Any]) -> dict[str, Sequence[Fields]]:
    places = [(stage, block) for stage, depth in enumerate(kwargs["depths"]) for block in range(depth)]
    return {"block": [{"i": i, "stage": stage + 1, "block": block + 1} for i, (stage, block) in enumerate(places)]}


TIMM = Layout(
    name="timm",
    rules={
        "": {"stem/conv": "stem.conv", "stem/bn": "stem.bn", "head": "head.fc"},
        "block": {
            f"blocks/{{i}}/{ours}": f"s{{stage}}.b{{block}}.{theirs}"
            for ours, theirs in {
                **{f"conv{n}/{part}": f"conv{n}.{part}" for n in (1, 2, 3) for part in ("conv", "bn")},
                **{f"shortcut/{part}": f"downsample.{part}" for part in ("conv", "bn")},
                "se/reduce": "se.fc1",
                "se/expand": "se.fc2",
            }.items()
        },
    },
    ignored=("*.num_batches_tracked",),
)

REGNET = Family(layouts=(TIMM,), stem="stem/conv/kernel", groups=_groups)
