"""How deep in a network each parameter lies: layers counted from the stem to the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TOP = {"norm", "last", "head"}
"""What comes after the blocks in any family."""


@dataclass(frozen=True)
class Depth:
    """The layers of a network: 0 is the stem, 1 the first block, `top` the head and what else follows the blocks."""

    stages: tuple[int, ...]
    """Blocks of each stage; one stage where a network has `blocks`."""

    @classmethod
    def of(cls, params: Mapping[Any, Any]) -> Depth:
        """Of a model's parameters as a pure dict (or of anything with its keys)."""
        if "stages" in params:
            return cls(
                tuple(len(stage) for _, stage in sorted(params["stages"].items(), key=lambda item: int(item[0])))
            )
        return cls((len(params.get("blocks", ())),))

    @property
    def top(self) -> int:
        """The last layer: one more than there are blocks."""
        return sum(self.stages) + 1

    def layer(self, path: Sequence[Any]) -> int:
        """Of the parameter at a path, as `nnx.split` names it; what shrinks a ConvNeXt's stages goes with the block
        after it."""
        match [str(entry) for entry in path]:
            case ["blocks", block, *_]:
                return int(block) + 1
            case ["stages", stage, block, *_]:
                return sum(self.stages[: int(stage)]) + int(block) + 1
            case ["downsamples", stage, *_]:
                return sum(self.stages[: int(stage) + 1]) + 1
            case [name, *_]:
                return self.top if name in _TOP else 0
        return 0
