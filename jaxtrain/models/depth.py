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
    name: str = "blocks"
    """Of the list of blocks."""
    head: tuple[str, ...] = ("head",)

    @classmethod
    def of(cls, params: Mapping[Any, Any], head: tuple[str, ...] = ("head",), own: str | None = None) -> Depth:
        """Of a model's parameters as a pure dict (or of anything with its keys).

        own: name of a network that is not one of ours; its blocks are those of its longest list of modules.
        """
        if own is not None:
            lists = {name: len(part) for name, part in params.items() if _is_list(part)}
            longest = max(lists, key=lambda name: lists[name], default=None)
            return cls(() if longest is None else (lists[longest],), str(longest), head)
        if "stages" in params:
            stages = sorted(params["stages"].items(), key=lambda item: int(item[0]))
            return cls(tuple(len(stage) for _, stage in stages))
        return cls((len(params.get("blocks", ())),))

    @property
    def top(self) -> int:
        """The last layer: one more than there are blocks."""
        return sum(self.stages) + 1

    def layer(self, path: Sequence[Any]) -> int:
        """Of the parameter at a path, as `nnx.split` names it; what shrinks a ConvNeXt's stages goes with the block
        after it."""
        names = [str(entry) for entry in path]
        if names[0] == self.name:
            return int(names[1]) + 1
        if tuple(names[: len(self.head)]) == self.head:
            return self.top
        match names:
            case ["stages", stage, block, *_]:
                return sum(self.stages[: int(stage)]) + int(block) + 1
            case ["downsamples", stage, *_]:
                return sum(self.stages[: int(stage) + 1]) + 1
            case [name, *_]:
                return self.top if name in _TOP else 0
        return 0


def _is_list(part: Any) -> bool:
    return isinstance(part, Mapping) and len(part) > 1 and all(str(key).isdigit() for key in part)
