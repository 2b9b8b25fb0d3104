"""What an embedding depends on: the address of a split's vectors in the embedding store."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

EXTRACTION_VERSION = 1
"""Part of every key. Raise it when a change of the code makes other vectors from the same images and options."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class EmbeddingKey(BaseModel):
    """Everything that decides the embeddings of a split; no field has a default, so that none is forgotten.

    Not in it, because only the last bits of a vector can depend on them: batch size, device, number of devices.
    Labels are not in it either, nor the name of the split: equal images share their vectors.

    Raises `pydantic.ValidationError` for a value of another type, NaN or infinity.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    images: Sha256
    """`images_fingerprint` of the split: content and order."""
    weights: Sha256
    """Digest of the backbone's parameters and batch statistics."""
    model: str
    """Registered name of the backbone."""
    model_options: dict[str, JsonValue]
    """Options that make another network or another forward pass of the same weights (patch size, stem, ...)."""
    image_size: int
    """Side in pixels of the squares that the backbone sees."""
    channels: int
    """1 or 3, what images are converted to."""
    mean: tuple[float, ...] = Field(strict=False)
    """Of each channel in 0..1, subtracted."""
    std: tuple[float, ...] = Field(strict=False)
    """Of each channel in 0..1, divided by."""
    crop_pct: float
    """Share of the resized image's side that the centre crop keeps."""
    interpolation: str
    """Of that resize."""
    max_pixels: int
    """Images with more count as unreadable: their vectors are NaN."""
    pool: str
    """How tokens or a feature map become one vector."""
    blocks: int
    """How many of the last blocks are joined."""
    dtype: str
    """Computation type of the forward pass."""
    view: int
    """0: the images themselves; n: their n-th augmented view."""
    augmentation: dict[str, JsonValue] | None
    """Seed and options of the augmentation; None for view 0."""

    @model_validator(mode="after")
    def _augmented_views_say_how(self) -> Self:
        if self.view < 0 or (self.view == 0) != (self.augmentation is None):
            raise ValueError("view 0 has no augmentation, any other view has one")
        return self

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all fields and the version of the code, as hexadecimal."""
        fields = {"extraction_version": EXTRACTION_VERSION, **self.model_dump(mode="json")}
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
