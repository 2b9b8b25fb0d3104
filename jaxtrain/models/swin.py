"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030): attention within windows, which every second block shifts."""

from __future__ import annotations

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxtrain.errors import UserError
from jaxtrain.models import forms
from jaxtrain.models.build import Build
from jaxtrain.models.classifier import Classifier
from jaxtrain.models.layers import (
    Conv,
    Key,
    LayerNorm,
    Linear,
    Mlp,
    Module,
    Taps,
    drop_path,
    drop_path_rates,
    fold,
    normal_002,
    run_stages,
    uniform,
)

_EPSILON = 1e-5
_PATCH = 4


@functools.cache
def offsets(height: int, width: int, window: int) -> np.ndarray:
    """Place in the table of biases for each pair of places in a window of these sides: `int[places, places]`."""
    rows, columns = (part.reshape(-1) for part in np.meshgrid(np.arange(height), np.arange(width), indexing="ij"))
    down, right = (part[:, None] - part[None] + window - 1 for part in (rows, columns))
    return down * (2 * window - 1) + right


@functools.cache
def strangers(height: int, width: int, sides: tuple[int, int], shifts: tuple[int, int]) -> np.ndarray:
    """-100 for places that meet in a window only because the map was rolled: `float32[windows, 1, places, places]`."""
    parts = [
        np.where(places < size - side, 0, np.where(places < size - shift, 1, 2)) if shift else np.zeros(size, int)
        for size, side, shift in zip((height, width), sides, shifts, strict=True)
        for places in [np.arange(size)]
    ]
    regions = parts[0][:, None] * 3 + parts[1][None]
    windows = (
        regions.reshape(height // sides[0], sides[0], width // sides[1], sides[1])
        .transpose(0, 2, 1, 3)
        .reshape(-1, 1, sides[0] * sides[1])
    )
    return np.where(windows[..., :, None] != windows[..., None, :], np.float32(-100), np.float32(0))


class WindowAttention(Module):
    """Self-attention within windows, with a learned bias for each offset between two places."""

    def __init__(self, width: int, heads: int, window: int, shifted: bool, build: Build) -> None:
        self.heads, self.window, self.shifted = heads, window, shifted
        table = ((2 * window - 1) ** 2, heads)
        self.bias_table = nnx.Param(jax.random.normal(build.rngs.params(), table, jnp.float32) * 0.02)
        self.qkv = Linear(width, 3 * width, build, kernel_init=normal_002)
        self.proj = Linear(width, width, build, kernel_init=normal_002)

    def __call__(self, x: Array) -> Array:
        """`[batch, height, width, channels]` -> the same shape. A map no larger than a window is one, unshifted."""
        batch, height, width, channels = x.shape
        sides = (min(height, self.window), min(width, self.window))
        shifts = tuple(self.window // 2 if self.shifted and size > self.window else 0 for size in (height, width))
        x = jnp.roll(x, tuple(-shift for shift in shifts), (1, 2))
        x = jnp.pad(x, ((0, 0), (0, -height % sides[0]), (0, -width % sides[1]), (0, 0)))
        rows, columns = x.shape[1] // sides[0], x.shape[2] // sides[1]
        x = x.reshape(batch, rows, sides[0], columns, sides[1], channels).transpose(0, 1, 3, 2, 4, 5)
        q, k, v = self.qkv.split(x.reshape(-1, sides[0] * sides[1], channels), 3)
        bias = self.bias_table[...][offsets(*sides, self.window)].transpose(2, 0, 1)[None]
        if any(shifts):
            bias = bias + strangers(rows * sides[0], columns * sides[1], sides, shifts)
        x = self.proj(forms.attention(q, k, v, self.heads, bias))
        x = x.reshape(batch, rows, columns, *sides, channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, rows * sides[0], columns * sides[1], channels)[:, :height, :width]
        return jnp.roll(x, shifts, (1, 2))


class Block(Module):
    """Pre-norm transformer block on a map."""

    def __init__(self, width: int, heads: int, window: int, shifted: bool, rate: float, build: Build) -> None:
        self.drop_path_rate, self.axis_name = rate, build.axis_name
        self.norm1 = LayerNorm(width, build, _EPSILON)
        self.attn = WindowAttention(width, heads, window, shifted, build)
        self.norm2 = LayerNorm(width, build, _EPSILON)
        self.mlp = Mlp(width, 4 * width, build)

    def __call__(self, x: Array, train: bool, key: Key) -> Array:
        """`[batch, height, width, channels]` -> the same shape."""
        y = self.attn(self.norm1(x))
        x = x + drop_path(y, self.drop_path_rate, fold(key, 0), self.axis_name)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path_rate, fold(key, 1), self.axis_name)


class Merge(Module):
    """Places of 2x2 joined, normalised and projected."""

    def __init__(self, channels_in: int, channels_out: int, build: Build) -> None:
        self.norm = LayerNorm(4 * channels_in, build, _EPSILON)
        self.reduction = Linear(4 * channels_in, channels_out, build, kernel_init=normal_002, use_bias=False)

    def __call__(self, x: Array) -> Array:
        """`[batch, height, width, channels_in]` -> `[batch, height / 2, width / 2, channels_out]`, sides rounded up."""
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(batch, height // 2, width // 2, 4 * channels)))


class Swin(Classifier):
    """depths, heads, windows (their side): of each stage; width: channels of the first, doubled by each after it."""

    def __init__(
        self,
        build: Build,
        *,
        width: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        windows: tuple[int, ...],
        drop_path_rate: float = 0.0,
    ) -> None:
        widths = [width * 2**stage for stage in range(len(depths))]
        super().__init__(widths[-1], build)
        if build.image_size < _PATCH:
            raise UserError(
                f"image size {build.image_size} is smaller than a patch of {_PATCH} pixels (data.image_size)"
            )
        init = uniform((_PATCH * _PATCH * build.channels) ** -0.5)
        self.stem = Conv(build.channels, width, _PATCH, build, stride=_PATCH, kernel_init=init, bias_init=init)
        self.stem_norm = LayerNorm(width, build, _EPSILON)
        self.downsamples = nnx.List(Merge(a, b, build) for a, b in pairwise(widths))
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.stages = nnx.List(
            nnx.List(Block(wide, head, window, i % 2 == 1, next(rates), build) for i in range(depth))
            for wide, depth, head, window in zip(widths, depths, heads, windows, strict=True)
        )
        self.norm = LayerNorm(widths[-1], build, _EPSILON)
        self.head = nnx.Linear(widths[-1], build.num_classes, kernel_init=normal_002, rngs=build.rngs)

    def features(self, images: Array, *, train: bool = False, key: Key = None, taps: Taps = None) -> Array:
        """Feature map `[batch, height / 32, width / 32, num_features]`, normalised."""
        self.check(images)
        x = self.stem_norm(self.stem(images))
        return self.norm(run_stages(self.stages, self.downsamples, x, train, key, self.remat, taps))
