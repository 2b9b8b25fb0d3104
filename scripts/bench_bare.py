"""Train steps as a textbook writes them in Flax Linen and optax, in bfloat16: what our own are weighed against.

Each entry of `BARE` takes the number of classes and the variant's arguments (those of our registry) and gives
(initial state from images, step(state, images, labels)). The ViT is that of big_vision's `models/vit.py` (GELU by tanh,
class token and the norm before the head), the ResNet that of Flax's ImageNet example.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


class Block(nn.Module):
    """Pre-norm transformer block."""

    heads: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """`[batch, tokens, width]` -> the same shape."""
        y = nn.LayerNorm(dtype=jnp.bfloat16)(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=jnp.bfloat16)(y, y)
        y = nn.Dense(4 * x.shape[-1], dtype=jnp.bfloat16)(nn.LayerNorm(dtype=jnp.bfloat16)(x))
        return x + nn.Dense(x.shape[-1], dtype=jnp.bfloat16)(nn.gelu(y))


class ViT(nn.Module):
    """Vision transformer with a class token."""

    classes: int
    patch_size: int
    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        """Images to logits."""
        size = (self.patch_size, self.patch_size)
        x = nn.Conv(self.width, size, strides=size, padding="VALID", dtype=jnp.bfloat16)(x)
        x = x.reshape(x.shape[0], -1, self.width)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width)).astype(x.dtype)
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        for _ in range(self.depth):
            x = Block(self.heads)(x)
        x = nn.LayerNorm(dtype=jnp.bfloat16)(x)
        return nn.Dense(self.classes)(x[:, 0].astype(jnp.float32))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut."""

    width: int
    strides: tuple[int, int]

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """`[batch, height, width, channels]` -> `[batch, height', width', 4 * width]`."""
        conv = partial(nn.Conv, use_bias=False, dtype=jnp.bfloat16)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=jnp.bfloat16)
        y = nn.relu(norm()(conv(self.width, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.width, (3, 3), self.strides)(y)))
        y = norm(scale_init=nn.initializers.zeros)(conv(4 * self.width, (1, 1))(y))
        if x.shape != y.shape:
            x = norm()(conv(4 * self.width, (1, 1), self.strides)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet with bottlenecks."""

    classes: int
    depths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        """Images to logits."""
        x = nn.Conv(64, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], use_bias=False, dtype=jnp.bfloat16)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=jnp.bfloat16)(x)
        x = nn.max_pool(nn.relu(x), (3, 3), strides=(2, 2), padding="SAME")
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                x = Bottleneck(64 * 2**stage, (2, 2) if stage > 0 and i == 0 else (1, 1))(x, train)
        return nn.Dense(self.classes)(x.mean(axis=(1, 2)).astype(jnp.float32))


Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def _train(model: nn.Module, classes: int, optimizer: optax.GradientTransformation) -> tuple[Any, Step]:
    def initial(images: Any) -> Any:
        variables = model.init(jax.random.key(0), images)
        params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
        return params, rest, optimizer.init(params)

    def step(state: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        params, rest, moments = state
        x = (images.astype(jnp.float32) / 255 - 0.5) / 0.5
        targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), 0.1)

        def loss(params: Any) -> Any:
            logits, new = model.apply({"params": params, **rest}, x, mutable=list(rest))
            return optax.softmax_cross_entropy(logits, targets).mean(), (new, (logits.argmax(-1) == labels).mean())

        (value, (new, accuracy)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), new, moments), {"loss": value, "accuracy": accuracy}

    return initial, step


def _vit(classes: int, *, patch_size: int, width: int, depth: int, heads: int, **_: Any) -> tuple[Any, Step]:
    return _train(ViT(classes, patch_size, width, depth, heads), classes, optax.adamw(1e-3, weight_decay=0.05))


def _resnet(classes: int, *, depths: tuple[int, ...], bottleneck: bool, **_: Any) -> tuple[Any, Step]:
    return _train(ResNet(classes, depths), classes, optax.sgd(0.1, momentum=0.9, nesterov=True))


BARE: dict[str, Callable[..., tuple[Any, Step]]] = {"vit": _vit, "resnet": _resnet}
"""By family; the ResNet is one of bottlenecks alone."""
