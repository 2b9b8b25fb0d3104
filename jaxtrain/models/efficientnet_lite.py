"""EfficientNet-Lite: EfficientNet (Tan and Le 2019, arXiv 1905.11946) with ReLU6, without squeeze-excite.

Made by the EfficientNet authors for quantised inference (tensorflow/tpu, models/official/efficientnet/lite).
The names with `tf_` pad as TensorFlow does and have its batch-norm epsilon, so that weights trained there
fit; those without are PyTorch's. Expansion is 6 except in the first block; stem, head and the first and last
stage are never scaled.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
from flax import nnx
from jax import Array

from jaxtrain.models.build import Build
from jaxtrain.models.classifier import Classifier
from jaxtrain.models.layers import (
    BatchNorm,
    Conv,
    Key,
    Module,
    Padding,
    Taps,
    drop_path,
    fan_out_normal,
    run_blocks,
    uniform,
)

# expansion, kernel, stride, channels, blocks
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM, HEAD = 32, 1280


class Style(NamedTuple):
    """Where the weights come from: PyTorch or TensorFlow."""

    padding: Padding
    epsilon: float
    """Of batch norm."""


class ConvNorm(Module):
    """Convolution without bias, then batch norm."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        style: Style,
        build: Build,
        *,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        init = fan_out_normal(groups)
        self.conv = Conv(
            channels_in,
            channels_out,
            kernel,
            build,
            kernel_init=init,
            stride=stride,
            groups=groups,
            padding=style.padding,
        )
        self.bn = BatchNorm(channels_out, build, epsilon=style.epsilon)

    def __call__(self, x: Array, train: bool) -> Array:
        """`[batch, height, width, channels_in]` -> `[batch, height', width', channels_out]`."""
        return self.bn(self.conv(x), train)


class InvertedResidual(Module):
    """Widen, filter each channel, project back (MobileNetV2: Sandler et al. 2018, arXiv 1801.04381)."""

    def __init__(
        self, channels_in: int, layout: tuple[int, int, int, int], rate: float, style: Style, build: Build
    ) -> None:
        expansion, kernel, stride, channels_out = layout
        width = channels_in * expansion
        self.drop_path_rate, self.axis_name = rate, build.axis_name
        self.residual = stride == 1 and channels_in == channels_out
        self.expand = ConvNorm(channels_in, width, 1, style, build) if expansion > 1 else None
        self.depthwise = ConvNorm(width, width, kernel, style, build, stride=stride, groups=width)
        self.project = ConvNorm(width, channels_out, 1, style, build)

    def __call__(self, x: Array, train: bool, key: Key) -> Array:
        """`[batch, height, width, channels_in]` -> `[batch, height', width', channels_out]`."""
        y = x if self.expand is None else jax.nn.relu6(self.expand(x, train))
        y = jax.nn.relu6(self.depthwise(y, train))
        y = self.project(y, train)
        return x + drop_path(y, self.drop_path_rate, key, self.axis_name) if self.residual else y


class EfficientNetLite(Classifier):
    """width and depth multiply the channels and blocks of the middle stages."""

    def __init__(
        self,
        build: Build,
        *,
        width: float,
        depth: float,
        padding: Padding = "torch",
        epsilon: float = 1e-5,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(HEAD, build)
        style = Style(padding, epsilon)
        self.stem = ConvNorm(build.channels, STEM, 3, style, build, stride=2)
        layouts = _layouts(width, depth)
        channels_in, blocks = STEM, []
        for i, layout in enumerate(layouts):
            # timm's rates and TensorFlow's: they stop one block short of the full rate
            blocks.append(InvertedResidual(channels_in, layout, drop_path_rate * i / len(layouts), style, build))
            channels_in = layout[-1]
        self.blocks = nnx.List(blocks)
        self.last = ConvNorm(channels_in, HEAD, 1, style, build)
        self.head = nnx.Linear(HEAD, build.num_classes, kernel_init=uniform(build.num_classes**-0.5), rngs=build.rngs)

    def features(self, images: Array, *, train: bool = False, key: Key = None, taps: Taps = None) -> Array:
        """Feature map `[batch, height / 32, width / 32, 1280]`."""
        self.check(images)
        x = jax.nn.relu6(self.stem(images, train))
        x = run_blocks(self.blocks, x, train, key, self.remat, taps)
        return jax.nn.relu6(self.last(x, train))


def _layouts(width: float, depth: float) -> list[tuple[int, int, int, int]]:
    """Expansion, kernel, stride and output channels of each block."""
    layouts = []
    for stage, (expansion, kernel, stride, channels, blocks) in enumerate(STAGES):
        repeats = blocks if stage in (0, len(STAGES) - 1) else math.ceil(blocks * depth)
        for i in range(repeats):
            layouts.append((expansion, kernel, stride if i == 0 else 1, _round_to_8(channels * width)))
    return layouts


def _round_to_8(channels: float) -> int:
    """The nearest multiple of 8 that is not below 90% of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
