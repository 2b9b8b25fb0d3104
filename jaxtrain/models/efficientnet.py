"""EfficientNet and its relatives, which differ in the list of their blocks (see `mobile_blocks`).

EfficientNet (Tan and Le 2019, arXiv 1905.11946), EfficientNetV2 (2021, arXiv 2104.00298), EfficientNet-Lite
(tensorflow/tpu, models/official/efficientnet/lite), MobileNetV3 (Howard et al. 2019, arXiv 1905.02244) and MobileNetV4
without attention (Qin et al. 2024, arXiv 2404.10518). The names with `tf_` pad as TensorFlow does and have its
batch-norm epsilon, so that weights trained there fit; those without are PyTorch's.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxtrain.models.build import Build
from jaxtrain.models.classifier import Classifier
from jaxtrain.models.layers import (
    ACTIVATIONS,
    BatchNorm,
    Conv,
    ConvNorm,
    Key,
    Module,
    Padding,
    SqueezeExcite,
    Taps,
    drop_path,
    fan_out_normal,
    run_blocks,
    uniform,
    zeros,
)
from jaxtrain.models.mobile_blocks import BlockPlan, plan, round_to_8

Head = Literal["conv", "pooled", "pooled_norm"]


class Block(Module):
    """Whatever parts its plan has: depthwise, widen, depthwise, squeeze-excite, project; and a shortcut."""

    def __init__(
        self, plan: BlockPlan, act: str, head: Head, rate: float, padding: Padding, epsilon: float, build: Build
    ) -> None:
        self.drop_path_rate, self.axis_name, self.residual = rate, build.axis_name, plan.residual
        self.act = "relu" if plan.relu else act
        self.activated = plan.kind == "cn"

        def conv(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> ConvNorm:
            return ConvNorm(
                channels_in, channels, kernel, build, stride=stride, groups=groups, padding=padding, epsilon=epsilon
            )

        inside, kernel, stride, wide = plan.inside, plan.kernel, plan.stride, plan.channels_in
        deep = plan.kind in ("ds", "ir", "uir") and kernel > 0
        self.start = conv(wide, wide, plan.start, 1 if deep else stride, wide) if plan.start else None
        widening = {"er": (kernel, stride), "ir": (1, 1), "uir": (1, 1)}.get(plan.kind)
        self.expand = None if widening is None else conv(wide, inside, *widening)
        self.depthwise = conv(inside, inside, kernel, stride, inside) if deep else None
        self.se = _squeeze(plan, head, self.act, build) if plan.squeeze else None
        last = (kernel, stride) if plan.kind == "cn" else (1, 1)
        self.project = conv(inside, plan.channels, *last)

    def __call__(self, x: Array, train: bool, key: Key) -> Array:
        """`[batch, height, width, channels_in]` -> `[batch, height', width', channels]`."""
        act = ACTIVATIONS[self.act]
        y = x if self.start is None else self.start(x, train)
        y = y if self.expand is None else self.expand(y, train, act)
        y = y if self.depthwise is None else self.depthwise(y, train, act)
        y = y if self.se is None else self.se(y)
        y = self.project(y, train, act if self.activated else None)
        return x + drop_path(y, self.drop_path_rate, key, self.axis_name) if self.residual else y


def _squeeze(plan: BlockPlan, head: Head, act: str, build: Build) -> SqueezeExcite:
    """EfficientNet squeezes to a share of the channels that come in, MobileNetV3 to one of those inside."""
    if head == "conv":
        return SqueezeExcite(plan.inside, round(plan.inside * (plan.squeeze / plan.expansion)), build, act)
    return SqueezeExcite(plan.inside, round_to_8(plan.inside * plan.squeeze), build, "relu", "hard_sigmoid")


class PooledHead(Module):
    """What MobileNets have after pooling: a linear layer, written as a convolution, with a bias (V3) or a norm (V4)."""

    def __init__(self, channels_in: int, channels: int, norm: bool, epsilon: float, build: Build) -> None:
        bias = None if norm else zeros
        self.conv = Conv(channels_in, channels, 1, build, kernel_init=fan_out_normal(), bias_init=bias)
        self.norm = BatchNorm(channels, build, epsilon=epsilon) if norm else None

    def __call__(self, x: Array, train: bool) -> Array:
        """`[batch, 1, 1, channels_in]` -> `[batch, 1, 1, channels]`."""
        x = self.conv(x)
        return x if self.norm is None else self.norm(x, train)


class EfficientNet(Classifier):
    """width and depth multiply the channels and blocks of the stages.

    stages: the blocks of each. stem, last: channels before and after all blocks. limit: share of its channels that
    rounding leaves a layer at least. fixed: stem and last keep their channels, the first and last stage their depth.
    head: "conv" ends in a 1x1 convolution before pooling, "pooled" and "pooled_norm" in a `PooledHead`.
    """

    def __init__(
        self,
        build: Build,
        *,
        stages: tuple[str, ...],
        stem: int = 32,
        last: int = 1280,
        width: float = 1.0,
        depth: float = 1.0,
        limit: float = 0.9,
        fixed: bool = False,
        act: str = "silu",
        head: Head = "conv",
        padding: Padding = "torch",
        epsilon: float = 1e-5,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(last if fixed or head != "conv" else round_to_8(last * width, limit), build)
        self.act, self.head_kind = act, head
        stem = stem if fixed else round_to_8(stem * width, limit)
        self.stem = ConvNorm(build.channels, stem, 3, build, stride=2, padding=padding, epsilon=epsilon)
        plans = plan(stages, stem, width, depth, fixed, limit)
        # timm's rates and TensorFlow's: they stop one block short of the full rate
        self.blocks = nnx.List(
            Block(one, act, head, drop_path_rate * i / len(plans), padding, epsilon, build)
            for i, one in enumerate(plans)
        )
        wide = plans[-1].channels
        if head == "conv":
            self.last = ConvNorm(wide, self.num_features, 1, build, padding=padding, epsilon=epsilon)
        else:
            self.last = PooledHead(wide, self.num_features, head == "pooled_norm", epsilon, build)
        init = uniform(build.num_classes**-0.5)
        self.head = nnx.Linear(self.num_features, build.num_classes, kernel_init=init, rngs=build.rngs)

    def features(self, images: Array, *, train: bool = False, key: Key = None, taps: Taps = None) -> Array:
        """Feature map `[batch, height / 32, width / 32, channels]`."""
        self.check(images)
        x = self.stem(images, train, ACTIVATIONS[self.act])
        x = run_blocks(self.blocks, x, train, key, self.remat, taps)
        return self.last(x, train, ACTIVATIONS[self.act]) if self.head_kind == "conv" else x

    def pool(self, features: Array) -> Array:
        """Feature map -> embedding `float32[batch, num_features]`."""
        return self._pooled(features, train=False)

    def embed(self, images: Array, *, train: bool = False, key: Key = None) -> Array:
        """See `Classifier.embed`; in training what follows pooling trains too."""
        return self._pooled(self.features(images, train=train, key=key), train)

    def _pooled(self, features: Array, train: bool) -> Array:
        mean = super().pool(features)
        if self.head_kind == "conv":
            return mean
        return ACTIVATIONS[self.act](self.last(mean[:, None, None], train))[:, 0, 0].astype(jnp.float32)
