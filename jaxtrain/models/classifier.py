"""`Classifier`: the protocol that all model families keep."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxtrain.errors import UserError
from jaxtrain.models.build import Build
from jaxtrain.models.layers import Key, Module, Taps, dropout, fold

Pool = Literal["auto", "cls", "avg", "cls+avg"]

_HEAD = 2**31 - 1
"""Folded into the key for the dropout before the head; blocks fold in 0, 1, 2, ..."""


class Classifier(Module):
    """What every model is: a backbone, a pooled embedding and a linear `head`.

    A family implements `features` and, where global average pooling is not what it does, `pool`.
    `key` is needed only where a drop rate is above 0; without one nothing is dropped.
    """

    head: nnx.Linear
    """The final classifier, at the path `head` in every family: swap it or filter parameters by it."""
    num_features: int
    """Length of the embedding."""
    num_classes: int

    def __init__(self, num_features: int, build: Build) -> None:
        self.num_features = num_features
        self.num_classes = build.num_classes
        self.channels = build.channels
        self.image_size: int | None = None  # set by families whose parameters depend on it
        self.drop_rate = build.drop_rate
        self.remat = build.remat
        self.axis_name = build.axis_name

    def features(self, images: Array, *, train: bool = False, key: Key = None, taps: Taps = None) -> Array:
        """Feature map `[batch, height, width, channels]` or tokens `[batch, tokens, channels]`.

        taps: gets the output of each block, for `embed_blocks`.
        """
        raise NotImplementedError

    def pool(self, features: Array) -> Array:
        """What `features` gives -> embedding `float32[batch, num_features]`: the mean over all places."""
        return features.astype(jnp.float32).mean(axis=tuple(range(1, features.ndim - 1)))

    def embed(self, images: Array, *, train: bool = False, key: Key = None) -> Array:
        """Embedding `float32[batch, num_features]`: what the head sees, before dropout."""
        return self.pool(self.features(images, train=train, key=key))

    def pool_block(self, output: Array, pool: Pool) -> Array:
        """What one of the `blocks` gives -> `float32[batch, width]`. UserError where there is no such pooling."""
        if pool not in ("auto", "avg"):
            raise UserError(f"features.pool: this model has no class token for '{pool}'; valid: auto, avg")
        return output.astype(jnp.float32).mean(axis=tuple(range(1, output.ndim - 1)))

    def pool_features(self, features: Array, pool: Pool) -> Array:
        """What `features` gives, by the named pooling -> `float32[batch, width]`; auto: as the head sees it."""
        return self.pool(features) if pool == "auto" else self.pool_block(features, pool)

    def embed_blocks(self, images: Array, *, pool: Pool = "auto", blocks: int = 1) -> Array:
        """The vectors of the last `blocks` blocks, joined: `float32[batch, sum of widths]`.

        The last one is that of `features` (with what comes after the blocks); those before it are pooled and, in a
        vision transformer, normalised as the last one is (Caron et al. 2021, arXiv 2104.14294, appendix F.2).
        UserError for more blocks than there are, or a pooling that the model does not have.
        """
        outputs: list[Array] = []
        vector = self.pool_features(self.features(images, taps=outputs), pool)
        if blocks > max(len(outputs), 1):
            raise UserError(f"features.blocks: {blocks} asked for, this model has {len(outputs)}")
        earlier = outputs[len(outputs) - blocks : -1]
        return jnp.concatenate([*(self.pool_block(output, pool) for output in earlier), vector], axis=-1)

    def __call__(self, images: Array, *, train: bool = False, key: Key = None) -> Array:
        """Logits `float32[batch, num_classes]` of `float[batch, height, width, channels]`.

        `train` normalises with the batch's own statistics, moves the running ones, and drops where `key` is
        given.
        """
        x = self.embed(images, train=train, key=key)
        x = dropout(x, self.drop_rate, fold(key, _HEAD) if train else None, self.axis_name)
        return self.head(x)

    def check(self, images: Array) -> None:
        """UserError for images that this model was not built for (shapes are static: free under jit)."""
        size = self.image_size
        wanted = f"[batch, {size or 'height'}, {size or 'width'}, {self.channels}]"
        if images.ndim != 4 or images.shape[3] != self.channels or (size and images.shape[1:3] != (size, size)):
            raise UserError(f"the model was built for images {wanted}, got {list(images.shape)}")
