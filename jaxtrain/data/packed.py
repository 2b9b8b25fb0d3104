"""Many strings in little memory: paths and names of images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALL_PART = 4
"""Of more than a quarter the buffer is sent as it is: that is quicker than to make strings of it."""


@dataclass(frozen=True, eq=False)
class Packed(Sequence[str]):
    """Strings in one buffer: a Python string takes 50 bytes more."""

    text: NDArray[np.uint8]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, names: Iterable[str]) -> Packed:
        """The same strings."""
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    @classmethod
    def of_arrow(cls, texts: Any) -> Packed:
        """An array of pyarrow without nulls, which is not copied where it holds large strings."""
        import pyarrow as pa

        texts = texts.cast(pa.large_string())
        _, offsets, data = texts.buffers()
        ends = np.frombuffer(offsets, np.int64)[texts.offset + 1 : texts.offset + len(texts) + 1]
        start = np.frombuffer(offsets, np.int64)[texts.offset]
        return cls(np.frombuffer(data or b"", np.uint8)[start:], ends - start)

    @classmethod
    def joined(cls, parts: Sequence[Packed]) -> Packed:
        """One after the other."""
        starts = np.cumsum([0, *(len(part.text) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts, strict=False)]
        return cls(np.concatenate([part.text for part in parts]), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.text[start : self.ends[index]].tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Picked(Sequence[str]):
    """Some of many strings, which are not copied; a small part travels to other processes without the rest."""

    names: Sequence[str]
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.names[int(place)] for place in self.indices[index]]
        return self.names[int(self.indices[index])]

    def __reduce__(self) -> tuple[Any, ...]:
        if len(self.indices) < len(self.names) // _SMALL_PART:
            return list, (list(self),)
        return Picked, (self.names, self.indices)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def picked_names(names: Sequence[Any], indices: NDArray[np.int64]) -> Picked:
    """`Picked`, also of what is picked already."""
    return Picked(names.names, names.indices[indices]) if isinstance(names, Picked) else Picked(names, indices)
