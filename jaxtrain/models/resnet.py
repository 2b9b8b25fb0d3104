"""ResNet (He et al. 2015, arXiv 1512.03385) and WideResNet (Zagoruyko and Komodakis 2016, arXiv 1605.07146).

ResNet is the "v1.5" of torchvision and timm: the stride sits in the 3x3 convolution of a bottleneck. The last
batch norm of each branch starts at 0 (Goyal et al. 2017, arXiv 1706.02677). ResNet-D (He et al. 2018, arXiv 1812.01187)
has three 3x3 convolutions for a stem and averages where shortcuts shrink; the names with `aa` average where blocks do;
ResNeXt (arXiv 1611.05431) has groups, SE-ResNet squeeze-excite. WideResNet is the pre-activation
network for small images; `wide_resnet50_2` is a ResNet with bottlenecks twice as wide.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
from flax import nnx
from jax import Array

from jaxtrain.models import forms
from jaxtrain.models.build import Build
from jaxtrain.models.classifier import Classifier
from jaxtrain.models.layers import (
    BatchNorm,
    Conv,
    ConvNorm,
    Key,
    Module,
    SqueezeExcite,
    Taps,
    average_pool,
    conv_norm,
    drop_path,
    drop_path_rates,
    fan_out_normal,
    run_blocks,
    torch_linear,
)


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int, build: Build, groups: int = 1) -> Conv:
    return Conv(
        channels_in, channels_out, kernel, build, stride=stride, groups=groups, kernel_init=fan_out_normal(groups)
    )


class Style(NamedTuple):
    """What blocks have beside the plain ones' parts."""

    groups: int = 1
    """Of the 3x3 convolution of a bottleneck."""
    average_shortcut: bool = False
    anti_alias: bool = False
    squeeze: bool = False


class BasicBlock(Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(
        self, build: Build, channels_in: int, channels_out: int, width: int, stride: int, rate: float, style: Style
    ) -> None:
        self.drop_path_rate, self.axis_name = rate, build.axis_name
        self.average = style.anti_alias and stride > 1
        self.conv1 = _conv(channels_in, width, 3, 1 if self.average else stride, build)
        self.bn1 = BatchNorm(width, build)
        self.conv2, self.bn2 = (
            _conv(width, channels_out, 3, 1, build),
            BatchNorm(channels_out, build, zero_scale=True),
        )
        self.se = _squeeze(channels_out, build) if style.squeeze else None
        self.shortcut = _shortcut(build, channels_in, channels_out, stride, style)

    def __call__(self, x: Array, train: bool, key: Key) -> Array:
        """`[batch, height, width, channels_in]` -> `[batch, height', width', channels_out]`."""
        y = self.bn1(self.conv1(x), train, jax.nn.relu)
        y = average_pool(y) if self.average else y
        y = self.bn2(self.conv2(y), train)
        y = y if self.se is None else self.se(y)
        y = drop_path(y, self.drop_path_rate, key, self.axis_name)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x, train)))


class Bottleneck(Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut."""

    def __init__(
        self, build: Build, channels_in: int, channels_out: int, width: int, stride: int, rate: float, style: Style
    ) -> None:
        self.drop_path_rate, self.axis_name = rate, build.axis_name
        self.average = style.anti_alias and stride > 1
        self.conv1, self.bn1 = _conv(channels_in, width, 1, 1, build), BatchNorm(width, build)
        self.conv2 = _conv(width, width, 3, 1 if self.average else stride, build, style.groups)
        self.bn2 = BatchNorm(width, build)
        self.conv3, self.bn3 = (
            _conv(width, channels_out, 1, 1, build),
            BatchNorm(channels_out, build, zero_scale=True),
        )
        self.se = _squeeze(channels_out, build) if style.squeeze else None
        self.shortcut = _shortcut(build, channels_in, channels_out, stride, style)

    def __call__(self, x: Array, train: bool, key: Key) -> Array:
        """`[batch, height, width, channels_in]` -> `[batch, height', width', channels_out]`."""
        y = self.bn1(self.conv1(x), train, jax.nn.relu)
        y = self.bn2(self.conv2(y), train, jax.nn.relu)
        y = average_pool(y) if self.average else y
        y = conv_norm(self.conv3, self.bn3, y, train)
        y = y if self.se is None else self.se(y)
        y = drop_path(y, self.drop_path_rate, key, self.axis_name)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x, train)))


class Projection(Module):
    """The shortcut where a block changes the shape: a strided 1x1 convolution and a norm; or the mean of 2x2 first."""

    def __init__(self, build: Build, channels_in: int, channels_out: int, stride: int, average: bool) -> None:
        self.average = average and stride > 1
        self.conv = _conv(channels_in, channels_out, 1, 1 if self.average else stride, build)
        self.bn = BatchNorm(channels_out, build)

    def __call__(self, x: Array, train: bool) -> Array:
        """`[batch, height, width, channels_in]` -> `[batch, height', width', channels_out]`."""
        return conv_norm(self.conv, self.bn, average_pool(x) if self.average else x, train)


def _shortcut(build: Build, channels_in: int, channels_out: int, stride: int, style: Style) -> Projection | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return Projection(build, channels_in, channels_out, stride, style.average_shortcut)


def _squeeze(channels: int, build: Build) -> SqueezeExcite:
    return SqueezeExcite(channels, max(8, (channels // 16 + 4) // 8 * 8), build)


class ResNet(Classifier):
    """depths: blocks of each stage; widths: channels of their 3x3 convolutions, times `widen` in bottlenecks.

    deep: channels of the first two of three 3x3 convolutions that are the ImageNet stem then. Others: see `Style`.
    """

    def __init__(
        self,
        build: Build,
        *,
        depths: tuple[int, ...],
        bottleneck: bool,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        widen: int = 1,
        groups: int = 1,
        deep: tuple[int, int] | None = None,
        average_shortcut: bool = False,
        anti_alias: bool = False,
        squeeze: bool = False,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        drop_path_rate: float = 0.0,
    ) -> None:
        expansion = 4 if bottleneck else 1
        super().__init__(widths[-1] * expansion, build)
        self.stem, self.anti_alias = stem, anti_alias
        style = Style(groups, average_shortcut, anti_alias, squeeze)
        deep = deep if stem == "imagenet" else None
        kernel, stride = {"imagenet": (7 if deep is None else 3, 2), "cifar": (3, 1)}[stem]
        first = widths[0] if deep is None else deep[0]
        self.conv1 = _conv(build.channels, first, kernel, stride, build)
        self.bn1 = BatchNorm(first, build)
        self.deep1 = None if deep is None else ConvNorm(*deep, 3, build)
        self.deep2 = None if deep is None else ConvNorm(deep[1], widths[0], 3, build)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        block = Bottleneck if bottleneck else BasicBlock
        blocks, channels_in = [], widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(build, channels_in, width * expansion, width * widen, stride, next(rates), style))
                channels_in = width * expansion
        self.blocks = nnx.List(blocks)
        self.head = torch_linear(self.num_features, build.num_classes, build)

    def features(self, images: Array, *, train: bool = False, key: Key = None, taps: Taps = None) -> Array:
        """Feature map `[batch, height / 32, width / 32, num_features]` (/ 8 with the CIFAR stem)."""
        self.check(images)
        x = self.bn1(self.conv1(images), train, jax.nn.relu)
        for conv in (self.deep1, self.deep2):
            x = x if conv is None else conv(x, train, jax.nn.relu)
        if self.stem == "imagenet":
            x = average_pool(x, cut=True) if self.anti_alias else forms.max_pool(x, 3, 2, padding=1)
        return run_blocks(self.blocks, x, train, key, self.remat, taps)


class WideBlock(Module):
    """Pre-activation block of two 3x3 convolutions; a projecting shortcut sees the activation too."""

    def __init__(self, build: Build, channels_in: int, channels_out: int, stride: int, rate: float) -> None:
        self.drop_path_rate, self.axis_name = rate, build.axis_name
        self.bn1, self.conv1 = (
            BatchNorm(channels_in, build),
            _conv(channels_in, channels_out, 3, stride, build),
        )
        self.bn2, self.conv2 = BatchNorm(channels_out, build), _conv(channels_out, channels_out, 3, 1, build)
        self.shortcut = _conv(channels_in, channels_out, 1, stride, build) if channels_in != channels_out else None

    def __call__(self, x: Array, train: bool, key: Key) -> Array:
        """`[batch, height, width, channels_in]` -> `[batch, height', width', channels_out]`."""
        activated = self.bn1(x, train, jax.nn.relu)
        y = self.conv1(activated)
        y = self.conv2(self.bn2(y, train, jax.nn.relu))
        y = drop_path(y, self.drop_path_rate, key, self.axis_name)
        return y + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(Classifier):
    """WRN-`depth`-`widen` for small images; depth = 6 n + 4."""

    def __init__(
        self,
        build: Build,
        *,
        depth: int,
        widen: int,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(64 * widen, build)
        self.conv1 = _conv(build.channels, 16, 3, 1, build)
        per_stage = (depth - 4) // 6
        rates = iter(drop_path_rates(drop_path_rate, 3 * per_stage))
        blocks, channels_in = [], 16
        for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for i in range(per_stage):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(WideBlock(build, channels_in, width, stride, next(rates)))
                channels_in = width
        self.blocks = nnx.List(blocks)
        self.norm = BatchNorm(self.num_features, build)
        self.head = torch_linear(self.num_features, build.num_classes, build)

    def features(self, images: Array, *, train: bool = False, key: Key = None, taps: Taps = None) -> Array:
        """Feature map `[batch, height / 4, width / 4, num_features]`, normalised and activated."""
        self.check(images)
        x = run_blocks(self.blocks, self.conv1(images), train, key, self.remat, taps)
        return self.norm(x, train, jax.nn.relu)
