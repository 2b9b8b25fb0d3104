"""Vision transformers with rotary positions: DINOv3 (arXiv 2508.10104) and EVA-02 (arXiv 2303.11331).

Queries and keys of patches are rotated by their row and column (Su et al. 2021, arXiv 2104.09864); class token and
registers are not. Keys have no bias; MLPs may be gated (SwiGLU: Shazeer 2020, arXiv 2002.05202).
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxtrain.models import forms
from jaxtrain.models.build import Build
from jaxtrain.models.layers import LayerNorm, Linear, Mlp, Module, normal_002
from jaxtrain.models.vit import VisionTransformer

Rope = Literal["dinov3", "eva"]
_REFERENCE = 16
"""Side of the grid, in patches, that EVA-02's positions are stretched to."""


@functools.cache
def rotations(rope: Rope, side: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Sines and cosines `float32[side * side, depth / 2]` of each patch's angles: half of them by row, half by column.

    rope: DINOv3 measures from the middle, in halves of the image, whatever its size.
    """
    share = np.arange(depth // 4, dtype=np.float32) / np.float32(depth // 4)
    if rope == "dinov3":
        places = 2 * ((np.arange(side, dtype=np.float32) + 0.5) / side) - 1
        speeds = 2 * np.pi / np.float32(100.0) ** share
    else:
        places = np.arange(side, dtype=np.float32) / side * _REFERENCE
        speeds = 1 / np.float32(10000.0) ** share
    grid = np.stack(np.meshgrid(places, places, indexing="ij"), -1).reshape(-1, 2, 1)
    angles = (grid * speeds).reshape(side * side, depth // 2).astype(np.float32)
    return np.sin(angles), np.cos(angles)


def rotate(x: Array, rope: Rope, heads: int, prefix: int, side: int) -> Array:
    """`[batch, tokens, width]` -> the same, all tokens but the first `prefix` turned pair by pair within each head.

    Pairs are neighbours in EVA-02, and places of the two halves of a head in DINOv3.
    """
    batch, tokens, width = x.shape
    depth = width // heads
    sines, cosines = (jnp.asarray(part)[:, None] for part in rotations(rope, side, depth))
    axis = -1 if rope == "eva" else -2
    shape = (depth // 2, 2) if rope == "eva" else (2, depth // 2)
    pairs = x[:, prefix:].astype(jnp.float32).reshape(batch, tokens - prefix, heads, *shape)
    first, second = (jnp.squeeze(part, axis) for part in jnp.split(pairs, 2, axis))
    turned = jnp.stack([first * cosines - second * sines, second * cosines + first * sines], axis)
    return jnp.concatenate([x[:, :prefix], turned.reshape(batch, -1, width).astype(x.dtype)], axis=1)


class Attention(Module):
    """Multi-head self-attention of rotated queries and keys."""

    def __init__(
        self,
        width: int,
        heads: int,
        rope: Rope,
        prefix: int,
        side: int,
        build: Build,
        *,
        bias: bool,
        norm: bool,
        epsilon: float,
    ) -> None:
        self.heads, self.rope, self.prefix, self.side = heads, rope, prefix, side
        self.qkv = Linear(width, 3 * width, build, kernel_init=normal_002, use_bias=False)
        self.q_bias = nnx.Param(jnp.zeros((width,), jnp.float32)) if bias else None
        self.v_bias = nnx.Param(jnp.zeros((width,), jnp.float32)) if bias else None
        self.norm = LayerNorm(width, build, epsilon) if norm else None
        self.proj = Linear(width, width, build, kernel_init=normal_002)

    def __call__(self, x: Array) -> Array:
        """`[batch, tokens, width]` -> `[batch, tokens, width]`."""
        q, k, v = self.qkv.split(x, 3)
        if self.q_bias is not None and self.v_bias is not None:
            q, v = q + self.q_bias[...].astype(q.dtype), v + self.v_bias[...].astype(v.dtype)
        q, k = (rotate(part, self.rope, self.heads, self.prefix, self.side) for part in (q, k))
        y = forms.attention(q, k, v, self.heads)
        return self.proj(y if self.norm is None else self.norm(y))


class GatedMlp(Module):
    """SwiGLU: half of what the first layer gives lets the other through; then perhaps a norm, and a linear layer."""

    def __init__(self, width: int, hidden: int, norm: bool, epsilon: float, build: Build) -> None:
        self.fc1 = Linear(width, 2 * hidden, build, kernel_init=normal_002)
        self.norm = LayerNorm(hidden, build, epsilon) if norm else None
        self.fc2 = Linear(hidden, width, build, kernel_init=normal_002)

    def __call__(self, x: Array) -> Array:
        """`[..., width]` -> `[..., width]`."""
        gate, x = self.fc1.split(x, 2)
        x = jax.nn.silu(gate) * x
        return self.fc2(x if self.norm is None else self.norm(x))


class Eva(VisionTransformer):
    """rope: how patches are rotated; "eva" has learned positions as well.

    hidden: width inside of the MLPs. gated: SwiGLU. bias: of queries and values. norms: inside of "attn" and "mlp".
    """

    def __init__(
        self,
        build: Build,
        *,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        rope: Rope,
        gated: bool = True,
        bias: bool = True,
        norms: tuple[str, ...] = (),
        registers: int = 0,
        layer_scale: float | None = None,
        epsilon: float = 1e-6,
        pool: Literal["cls", "avg", "normed_avg"] = "avg",
        drop_path_rate: float = 0.0,
    ) -> None:
        prefix, side = 1 + registers, build.image_size // patch_size

        def attention() -> Module:
            return Attention(width, heads, rope, prefix, side, build, bias=bias, norm="attn" in norms, epsilon=epsilon)

        def mlp() -> Module:
            return GatedMlp(width, hidden, "mlp" in norms, epsilon, build) if gated else Mlp(width, hidden, build)

        super().__init__(
            build,
            patch_size=patch_size,
            width=width,
            depth=depth,
            heads=heads,
            epsilon=epsilon,
            registers=registers,
            pool=pool,
            drop_path_rate=drop_path_rate,
            positions=rope == "eva",
            layer_scale=layer_scale,
            attention=attention,
            mlp=mlp,
        )
