"""How deep in a network each parameter lies: layers counted from the stem to the head."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

_TOP = {"norm", "last", "head", "attn_pool"}
"""What comes after the blocks in any family."""


@dataclass(frozen=True)
class Depth:
    """The layers of a network: 0 is the stem, 1 the first block, `top` the head and what else follows the blocks."""

    stages: tuple[int, ...]
    """Blocks of each stage; one stage where a network has `blocks`."""
    name: str = "blocks"
    """Of the list of blocks."""
    head: str = "head"

    @classmethod
    def of(cls, names: Iterable[str], head: str = "head", own: str | None = None) -> Depth:
        """Of a network, by the names of its parameters.

        own: name of a network that is not one of ours; its blocks are those of its longest list of modules.
        """
        parts: dict[str, set[str]] = defaultdict(set)  # of each part of the network, and of each stage
        for path in map(_split, names):
            for depth in range(1, min(len(path), 3)):
                parts["/".join(path[:depth])].add(path[depth])
        if own is not None:
            lists = {name: len(keys) for name, keys in parts.items() if "/" not in name and _is_list(keys)}
            longest = max(lists, key=lambda name: lists[name], default=None)
            return cls(() if longest is None else (lists[longest],), str(longest), head)
        if "stages" in parts:
            stages = sorted(parts["stages"], key=int)
            return cls(tuple(len(parts[f"stages/{stage}"]) for stage in stages))
        return cls((len(parts["blocks"]),))

    @property
    def top(self) -> int:
        """The last layer: one more than there are blocks."""
        return sum(self.stages) + 1

    def layer(self, name: str) -> int:
        """Of a parameter; what shrinks a ConvNeXt's stages goes with the block after it."""
        if f"{name}/".startswith(f"{self.head}/"):
            return self.top
        match _split(name):
            case [first, block, *_] if first == self.name:
                return int(block) + 1
            case ["stages", stage, block, *_]:
                return sum(self.stages[: int(stage)]) + int(block) + 1
            case ["downsamples", stage, *_]:
                return sum(self.stages[: int(stage) + 1]) + 1
            case [first, *_]:
                return self.top if first in _TOP else 0
        return 0


def _split(name: str) -> list[str]:
    return name.split("/")


def _is_list(keys: set[str]) -> bool:
    return len(keys) > 1 and all(key.isdigit() for key in keys)
