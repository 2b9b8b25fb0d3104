"""RegNet Y (Radosavovic et al. 2020, arXiv 2003.13678): blocks that do not narrow, grouped, with squeeze-excite."""

from __future__ import annotations

import jax
from flax import nnx
from jax import Array

from jaxtrain.models.build import Build
from jaxtrain.models.classifier import Classifier
from jaxtrain.models.layers import (
    ConvNorm,
    Key,
    Module,
    SqueezeExcite,
    Taps,
    drop_path,
    drop_path_rates,
    normal,
    run_blocks,
)

_STEM = 32


class Block(Module):
    """1x1, grouped 3x3, squeeze-excite, 1x1, and a shortcut."""

    def __init__(self, channels_in: int, channels: int, group: int, stride: int, rate: float, build: Build) -> None:
        self.drop_path_rate, self.axis_name = rate, build.axis_name
        self.conv1 = ConvNorm(channels_in, channels, 1, build)
        self.conv2 = ConvNorm(channels, channels, 3, build, stride=stride, groups=channels // group)
        self.se = SqueezeExcite(channels, round(channels_in / 4), build)
        self.conv3 = ConvNorm(channels, channels, 1, build, zero_scale=True)
        changes = stride != 1 or channels_in != channels
        self.shortcut = ConvNorm(channels_in, channels, 1, build, stride=stride) if changes else None

    def __call__(self, x: Array, train: bool, key: Key) -> Array:
        """`[batch, height, width, channels_in]` -> `[batch, height', width', channels]`."""
        y = self.conv1(x, train, jax.nn.relu)
        y = self.se(self.conv2(y, train, jax.nn.relu))
        y = drop_path(self.conv3(y, train), self.drop_path_rate, key, self.axis_name)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x, train)))


class RegNet(Classifier):
    """depths: blocks of each stage; widths: their channels; group: channels in a group of the 3x3 convolutions."""

    def __init__(
        self,
        build: Build,
        *,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        group: int,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(widths[-1], build)
        self.stem = ConvNorm(build.channels, _STEM, 3, build, stride=2)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        blocks, channels_in = [], _STEM
        for depth, width in zip(depths, widths, strict=True):
            for i in range(depth):
                blocks.append(Block(channels_in, width, group, 1 if i else 2, next(rates), build))
                channels_in = width
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(widths[-1], build.num_classes, kernel_init=normal(0.01), rngs=build.rngs)

    def features(self, images: Array, *, train: bool = False, key: Key = None, taps: Taps = None) -> Array:
        """Feature map `[batch, height / 32, width / 32, num_features]`."""
        self.check(images)
        x = self.stem(images, train, jax.nn.relu)
        return run_blocks(self.blocks, x, train, key, self.remat, taps)
