"""Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929) and its descendants of the same shape.

CLIP's image towers (Radford et al. 2021, arXiv 2103.00020) normalise the tokens before the first block, SigLIP's
(Zhai et al. 2023, arXiv 2303.15343; 2502.14786) pool by attention; MAE (arXiv 2111.06377) trains the plain network.
DeiT (arXiv 2012.12877) is the same network; DeiT III (arXiv 2204.07118) and DINOv2 (arXiv 2304.07193) add a
learned scale to each branch; registers are extra tokens without a position (Darcet et al. 2023, arXiv
2309.16588). The variants without a class token average the patches, which trains better from scratch (Beyer
et al. 2022, arXiv 2205.01580).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxtrain.errors import UserError
from jaxtrain.models import forms
from jaxtrain.models.build import Build
from jaxtrain.models.classifier import Classifier, Pool
from jaxtrain.models.layers import (
    Conv,
    Key,
    LayerNorm,
    LayerScale,
    Linear,
    Mlp,
    Module,
    Taps,
    drop_path,
    drop_path_rates,
    fold,
    normal_002,
    run_blocks,
    uniform,
)


class Attention(Module):
    """Multi-head self-attention; logits and softmax in float32."""

    def __init__(self, width: int, heads: int, build: Build) -> None:
        self.heads = heads
        self.qkv = Linear(width, 3 * width, build, kernel_init=normal_002)
        self.proj = Linear(width, width, build, kernel_init=normal_002)

    def __call__(self, x: Array) -> Array:
        """`[batch, tokens, width]` -> `[batch, tokens, width]`."""
        q, k, v = self.qkv.split(x, 3)
        return self.proj(forms.attention(q, k, v, self.heads))

    def shares(self, x: Array) -> Array:
        """How much each token takes from each: `float32[batch, heads, tokens, tokens]`, whose rows sum to 1."""
        q, k, _ = self.qkv.split(x, 3)
        depth = q.shape[-1] // self.heads
        q, k = (y.reshape(*y.shape[:2], self.heads, depth) for y in (q * depth**-0.5, k))
        return jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32), axis=-1)


class AttentionPool(Module):
    """One learned query attends to all tokens, then an MLP (Zhai et al. 2021, arXiv 2106.04560)."""

    def __init__(self, width: int, heads: int, hidden: int, act: str, epsilon: float, build: Build) -> None:
        self.heads, self.dtype = heads, build.dtype
        self.latent = _token(1, width, width**-0.5, build)
        self.q = Linear(width, width, build, kernel_init=normal_002)
        self.kv = Linear(width, 2 * width, build, kernel_init=normal_002)
        self.proj = Linear(width, width, build, kernel_init=normal_002)
        self.norm = LayerNorm(width, build, epsilon)
        self.mlp = Mlp(width, hidden, build, act)

    def __call__(self, x: Array) -> Array:
        """`[batch, tokens, width]` -> `[batch, width]`."""
        query = jnp.broadcast_to(self.latent[...].astype(self.dtype), (x.shape[0], 1, x.shape[2]))
        k, v = self.kv.split(x, 2)
        x = self.proj(forms.attention(self.q(query), k, v, self.heads))
        return (x + self.mlp(self.norm(x)))[:, 0]


class Block(Module):
    """Pre-norm transformer block."""

    def __init__(
        self,
        width: int,
        attention: Callable[[], Module],
        mlp: Callable[[], Module],
        build: Build,
        *,
        layer_scale: float | None,
        epsilon: float,
        rate: float,
    ) -> None:
        """`attention` and `mlp` are made here, in the order in which the block is passed: seeds depend on it."""
        self.drop_path_rate, self.axis_name = rate, build.axis_name
        self.norm1 = LayerNorm(width, build, epsilon)
        self.attn = attention()
        self.ls1 = None if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = LayerNorm(width, build, epsilon)
        self.mlp = mlp()
        self.ls2 = None if layer_scale is None else LayerScale(width, layer_scale)

    def __call__(self, x: Array, train: bool, key: Key) -> Array:
        """`[batch, tokens, width]` -> `[batch, tokens, width]`."""
        y = self.attn(self.norm1(x))
        y = y if self.ls1 is None else self.ls1(y)
        x = x + drop_path(y, self.drop_path_rate, fold(key, 0), self.axis_name)
        y = self.mlp(self.norm2(x))
        y = y if self.ls2 is None else self.ls2(y)
        return x + drop_path(y, self.drop_path_rate, fold(key, 1), self.axis_name)


class VisionTransformer(Classifier):
    """pool: "cls" gives the normalised class token, "avg" the normalised mean of the patches, "normed_avg"
    the mean of the normalised patches, "map" an `AttentionPool`.

    class_token is kept under pool="avg" where the variant has one, so that one set of weights fits both.
    class_position: whether the class token has a position embedding; register tokens never have one.
    positions: whether patches have a learned position. attention, mlp: make those of a block, in the place of ours.
    hidden: width inside of the MLPs, 4 times `width` unless given. epsilon: of all norms.
    pre_norm: the tokens are normalised before the first block, and patches embedded without a bias.
    """

    def __init__(
        self,
        build: Build,
        *,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int | None = None,
        act: str = "gelu",
        epsilon: float = 1e-6,
        pre_norm: bool = False,
        pool: Literal["cls", "avg", "normed_avg", "map"] = "cls",
        class_token: bool = True,
        class_position: bool = True,
        registers: int = 0,
        layer_scale: float | None = None,
        positions: bool = True,
        attention: Callable[[], Module] | None = None,
        mlp: Callable[[], Module] | None = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(width, build)
        _check_patches(build.image_size, patch_size)
        class_token = class_token or pool == "cls"
        self.image_size, self.pooling, self.dtype = build.image_size, pool, build.dtype
        self.class_position = class_token and class_position
        self.prefix = class_token + registers
        self.normalised = pool != "avg"
        hidden = hidden or 4 * width

        init = uniform((patch_size * patch_size * build.channels) ** -0.5)
        self.patch_embed = Conv(
            build.channels,
            width,
            patch_size,
            build,
            stride=patch_size,
            kernel_init=init,
            bias_init=None if pre_norm else init,
        )
        places = (build.image_size // patch_size) ** 2 + self.class_position
        self.pos_embed = _token(places, width, 0.02, build) if positions else None
        self.cls_token = _token(1, width, 1e-6, build) if class_token else None
        self.reg_token = _token(registers, width, 1e-6, build) if registers else None
        rates = drop_path_rates(drop_path_rate, depth)
        self.norm_pre = LayerNorm(width, build, epsilon) if pre_norm else None
        attention = attention or functools.partial(Attention, width, heads, build)
        mlp = mlp or functools.partial(Mlp, width, hidden, build, act)
        self.blocks = nnx.List(
            Block(width, attention, mlp, build, layer_scale=layer_scale, epsilon=epsilon, rate=rate) for rate in rates
        )
        self.norm = LayerNorm(width, build, epsilon)
        self.attn_pool = AttentionPool(width, heads, hidden, act, epsilon, build) if pool == "map" else None
        self.head = nnx.Linear(width, build.num_classes, kernel_init=normal_002, rngs=build.rngs)

    def features(self, images: Array, *, train: bool = False, key: Key = None, taps: Taps = None) -> Array:
        """Tokens `[batch, tokens, width]`: class token, registers, patches row by row.

        After the final norm; with pool="avg" that comes after pooling, as in timm.
        """
        self.check(images)
        x = self._tokens(self.patch_embed(images))
        x = x if self.norm_pre is None else self.norm_pre(x)
        x = run_blocks(self.blocks, x, train, key, self.remat, taps)
        return self.norm(x) if self.normalised else x

    def pool(self, features: Array) -> Array:
        """Tokens `[batch, tokens, width]` -> embedding `float32[batch, width]`."""
        if self.pooling == "cls":
            return features[:, 0].astype(jnp.float32)
        if self.attn_pool is not None:
            return self.attn_pool(features).astype(jnp.float32)
        mean = features[:, self.prefix :].astype(jnp.float32).mean(axis=1)
        return mean if self.normalised else self.norm(mean).astype(jnp.float32)

    def pool_block(self, output: Array, pool: Pool) -> Array:
        """Tokens after a block -> class token, mean of the patches, or both: `float32[batch, width or twice]`."""
        own = "cls" if self.pooling == "cls" else "avg"
        return self._pool_tokens(self.norm(output), own if pool == "auto" else pool)

    def pool_features(self, features: Array, pool: Pool) -> Array:
        """As `pool_block`, of what `features` gives."""
        if pool == "auto":
            return self.pool(features)
        return self._pool_tokens(features if self.normalised else self.norm(features), pool)

    def _pool_tokens(self, tokens: Array, pool: str) -> Array:
        if pool != "avg" and self.cls_token is None:
            raise UserError(f"features.pool: this model has no class token for '{pool}'; valid: auto, avg")
        tokens = tokens.astype(jnp.float32)
        parts = {"cls": tokens[:, 0], "avg": tokens[:, self.prefix :].mean(axis=1)}
        return jnp.concatenate([parts[name] for name in pool.split("+")], axis=-1)

    def _tokens(self, patches: Array) -> Array:
        batch, rows, columns, width = patches.shape
        patches = patches.reshape(batch, rows * columns, width)
        if self.pos_embed is None:
            positions, tokens = None, [patches]
        else:
            positions = self.pos_embed[...].astype(self.dtype)
            tokens = [patches + positions[:, int(self.class_position) :]]
        if self.reg_token is not None:
            tokens.insert(0, self._repeated(self.reg_token[...], batch))
        if self.cls_token is not None:
            class_token = self.cls_token[...].astype(self.dtype)
            if self.class_position and positions is not None:
                class_token = class_token + positions[:, :1]
            tokens.insert(0, self._repeated(class_token, batch))
        return jnp.concatenate(tokens, axis=1)

    def _repeated(self, token: Array, batch: int) -> Array:
        return jnp.broadcast_to(token.astype(self.dtype), (batch, *token.shape[1:]))


def _token(tokens: int, width: int, stddev: float, build: Build) -> nnx.Param:
    return nnx.Param(stddev * jax.random.normal(build.rngs.params(), (1, tokens, width), jnp.float32))


def _check_patches(image_size: int, patch_size: int) -> None:
    if image_size % patch_size or image_size < patch_size:
        below = image_size // patch_size * patch_size
        works = f"{below} or {below + patch_size}" if below else f"{patch_size}"
        raise UserError(
            f"image size {image_size} does not divide into patches of {patch_size} pixels; "
            f"nearest image size that works: {works} (data.image_size), or change model.patch_size"
        )
