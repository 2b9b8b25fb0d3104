"""What the registry hands to the parts of a network. It needs no JAX, so that the table of models is read without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flax import nnx
    from jax.typing import DTypeLike


@dataclass(frozen=True)
class Build:
    """What the parts of one network share while it is built."""

    num_classes: int
    channels: int
    image_size: int
    dtype: DTypeLike
    """Of the computation; parameters and statistics are float32."""
    axis_name: str | None
    """The axis of `jax.pmap` that the batch is spread over, else None."""
    rngs: nnx.Rngs
    drop_rate: float = 0.0
    """Dropout before the head."""
    remat: bool = False
