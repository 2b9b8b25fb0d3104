"""Small networks for small images: a linear classifier, perceptrons, and plain convolutional networks.

The CNNs follow VGG (Simonyan and Zisserman 2014, arXiv 1409.1556) with batch norm (arXiv 1502.03167): 3x3
convolutions, and 2x2 pooling between stages. They are sized for training on a few CPU cores.
"""

from __future__ import annotations

import jax
from flax import nnx
from jax import Array

from jaxtrain.errors import UserError
from jaxtrain.models import forms
from jaxtrain.models.build import Build
from jaxtrain.models.classifier import Classifier
from jaxtrain.models.layers import (
    BatchNorm,
    Conv,
    Key,
    Linear,
    Module,
    Taps,
    fan_out_normal,
    run_blocks,
    torch_linear,
)


class Dense(Module):
    """Linear layer and ReLU."""

    def __init__(self, features_in: int, features_out: int, build: Build) -> None:
        self.linear = Linear(features_in, features_out, build, kernel_init=nnx.initializers.he_normal())

    def __call__(self, x: Array, train: bool, key: Key) -> Array:
        """`[..., features_in]` -> `[..., features_out]`."""
        return jax.nn.relu(self.linear(x))


class MLP(Classifier):
    """Hidden layers over the flattened image; without any, a linear (softmax) classifier."""

    def __init__(self, build: Build, *, hidden: tuple[int, ...]) -> None:
        sizes = (build.image_size**2 * build.channels, *hidden)
        super().__init__(sizes[-1], build)
        self.image_size = build.image_size
        self.blocks = nnx.List(Dense(a, b, build) for a, b in zip(sizes, hidden, strict=False))
        self.head = torch_linear(sizes[-1], build.num_classes, build)

    def features(self, images: Array, *, train: bool = False, key: Key = None, taps: Taps = None) -> Array:
        """One token: `[batch, 1, num_features]`, the last hidden layer (of a linear classifier: pixels)."""
        self.check(images)
        return run_blocks(self.blocks, images.reshape(images.shape[0], 1, -1), train, key, self.remat, taps)


class ConvBlock(Module):
    """3x3 convolution, batch norm, ReLU, and perhaps pooling that halves the sides."""

    def __init__(self, channels_in: int, channels_out: int, pool: bool, build: Build) -> None:
        self.pool = pool
        self.conv = Conv(channels_in, channels_out, 3, build, kernel_init=fan_out_normal())
        self.bn = BatchNorm(channels_out, build)

    def __call__(self, x: Array, train: bool, key: Key) -> Array:
        """`[batch, height, width, channels_in]` -> `[batch, height', width', channels_out]`."""
        x = self.bn(self.conv(x), train, jax.nn.relu)
        return forms.max_pool(x, 2, 2) if self.pool else x


class CNN(Classifier):
    """stages: channels of each stage's convolutions; sides are halved after every stage but the last."""

    def __init__(self, build: Build, *, stages: tuple[tuple[int, ...], ...]) -> None:
        super().__init__(stages[-1][-1], build)
        smallest = 2 ** (len(stages) - 1)
        if build.image_size < smallest:
            raise UserError(
                f"image size {build.image_size} is too small: it is halved {len(stages) - 1} times; "
                f"nearest image size that works: {smallest} (data.image_size)"
            )
        blocks, channels_in = [], build.channels
        for i, stage in enumerate(stages):
            for j, width in enumerate(stage):
                pool = i < len(stages) - 1 and j == len(stage) - 1
                blocks.append(ConvBlock(channels_in, width, pool, build))
                channels_in = width
        self.blocks = nnx.List(blocks)
        self.head = torch_linear(self.num_features, build.num_classes, build)

    def features(self, images: Array, *, train: bool = False, key: Key = None, taps: Taps = None) -> Array:
        """Feature map `[batch, height / 4, width / 4, num_features]` with three stages."""
        self.check(images)
        return run_blocks(self.blocks, images, train, key, self.remat, taps)
