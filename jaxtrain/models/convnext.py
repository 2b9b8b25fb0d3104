"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545), with timm's smaller variants; and ConvNeXt V2.

V2 (Woo et al. 2023, arXiv 2301.00808) has a global response norm inside of each block in the place of the layer scale.

timm runs atto, femto, pico and nano with 1x1 convolutions for the linear layers: the same mathematics and the same
parameters as here.
"""

from __future__ import annotations

from itertools import pairwise

import jax.numpy as jnp
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
    LayerScale,
    Linear,
    Module,
    Taps,
    drop_path,
    drop_path_rates,
    normal_002,
    run_stages,
    zeros,
)


class GlobalResponseNorm(Module):
    """Each channel is weighed by its norm over all places, relative to the other channels'."""

    def __init__(self, channels: int, build: Build) -> None:
        self.dtype = build.dtype
        self.scale = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        """`[batch, height, width, channels]` -> the same shape."""
        wide = x.astype(jnp.float32)
        square = jnp.square(wide).sum((1, 2), keepdims=True)
        norm = jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0)  # its slope at 0 would not be finite
        share = norm / (norm.mean(-1, keepdims=True) + 1e-6)
        return (wide + self.bias[...] + self.scale[...] * (wide * share)).astype(self.dtype)


class Block(Module):
    """Depthwise 7x7 convolution, norm, two linear layers with GELU between, layer scale (V1); and a shortcut."""

    def __init__(self, channels: int, rate: float, response_norm: bool, build: Build) -> None:
        self.drop_path_rate, self.axis_name = rate, build.axis_name
        self.conv_dw = Conv(channels, channels, 7, build, groups=channels, kernel_init=normal_002, bias_init=zeros)
        self.norm = LayerNorm(channels, build)
        self.fc1 = Linear(channels, 4 * channels, build, kernel_init=normal_002)
        self.fc2 = Linear(4 * channels, channels, build, kernel_init=normal_002)
        self.grn = GlobalResponseNorm(4 * channels, build) if response_norm else None
        self.gamma = None if response_norm else LayerScale(channels, 1e-6)

    def __call__(self, x: Array, train: bool, key: Key) -> Array:
        """`[batch, height, width, channels]` -> the same shape."""
        y = forms.gelu(self.fc1(self.norm(self.conv_dw(x))))
        y = self.fc2(y if self.grn is None else self.grn(y))
        y = y if self.gamma is None else self.gamma(y)
        return x + drop_path(y, self.drop_path_rate, key, self.axis_name)


class Downsample(Module):
    """Norm, then a convolution over patches of 2x2."""

    def __init__(self, channels_in: int, channels_out: int, build: Build) -> None:
        self.norm = LayerNorm(channels_in, build)
        self.conv = _patches(channels_in, channels_out, 2, build)

    def __call__(self, x: Array) -> Array:
        """`[batch, height, width, channels_in]` -> `[batch, height / 2, width / 2, channels_out]`."""
        return self.conv(self.norm(x))


def _patches(channels_in: int, channels_out: int, size: int, build: Build) -> Conv:
    return Conv(channels_in, channels_out, size, build, stride=size, kernel_init=normal_002, bias_init=zeros)


class ConvNeXt(Classifier):
    """depths: blocks in each stage; widths: their channels; response_norm: as ConvNeXt V2 has it."""

    def __init__(
        self,
        build: Build,
        *,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        response_norm: bool = False,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(widths[-1], build)
        smallest = 4 * 2 ** (len(depths) - 1)
        if build.image_size < smallest:
            raise UserError(
                f"image size {build.image_size} is too small: {len(depths)} stages leave nothing of it; "
                f"nearest image size that works: {smallest} (data.image_size)"
            )
        self.stem = _patches(build.channels, widths[0], 4, build)
        self.stem_norm = LayerNorm(widths[0], build)
        self.downsamples = nnx.List(Downsample(a, b, build) for a, b in pairwise(widths))
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.stages = nnx.List(
            nnx.List(Block(width, next(rates), response_norm, build) for _ in range(depth))
            for depth, width in zip(depths, widths, strict=True)
        )
        self.norm = LayerNorm(widths[-1], build)
        self.head = nnx.Linear(widths[-1], build.num_classes, kernel_init=normal_002, rngs=build.rngs)

    def features(self, images: Array, *, train: bool = False, key: Key = None, taps: Taps = None) -> Array:
        """Feature map `[batch, height / 32, width / 32, num_features]`; the final norm follows pooling."""
        self.check(images)
        x = self.stem_norm(self.stem(images))
        return run_stages(self.stages, self.downsamples, x, train, key, self.remat, taps)

    def pool(self, features: Array) -> Array:
        """Feature map -> embedding `float32[batch, num_features]`: the mean over all places, normalised."""
        return self.norm(super().pool(features)).astype(jnp.float32)
