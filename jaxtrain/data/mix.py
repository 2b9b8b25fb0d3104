"""Mixup and CutMix between neighbours of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxtrain.data.ops import Scalar, inside_box, uniforms


def mix_pairs(
    images: Array, labels: Array, keys: Array, stage: int, *, mixup: Scalar | None, cutmix: Scalar | None
) -> tuple[Array, Array]:
    """Mix each image 2k with its neighbour 2k + 1, both ways, with one draw a pair from the even image's key.

    images: `float32[batch, height, width, channels]`; labels: `float32[batch, classes]`; keys: `[batch]`.
    mixup, cutmix: alpha of the symmetric Beta distribution of the share that an image keeps, None for off.
    With both on, each pair draws one of the two with probability 1/2. A (traced) alpha of 0 mixes nothing.

    Mixup: Zhang et al. 2017, arXiv 1710.09412. CutMix: Yun et al. 2019, arXiv 1905.04899; the labels follow
    the exact area of the box, after clipping at the border.
    """
    batch, height, width, _ = images.shape
    pair_keys = keys.reshape(-1, 2)[:, 0]
    draws = uniforms(pair_keys, stage, 3)
    blend = jnp.zeros((batch // 2, 1, 1), jnp.float32)  # share of the other image, for each pair and pixel
    if mixup is not None:
        blend = blend + (1 - _beta(pair_keys, stage + 1, mixup))[:, None, None]
    share = blend[:, 0, 0]
    if cutmix is not None:
        box = _box((height, width), 1 - _beta(pair_keys, stage + 2, cutmix), draws[:, 0], draws[:, 1])
        area = box.mean(axis=(1, 2), dtype=jnp.float32)
        cut = draws[:, 2] < (0.5 if mixup is not None else 1.0)
        blend = jnp.where(cut[:, None, None], box, blend)
        share = jnp.where(cut, area, share)
    return _towards_partner(images, blend[:, None, :, :, None]), _towards_partner(labels, share[:, None, None])


def _towards_partner(values: Array, blend: Array) -> Array:
    """values: `[batch, ...]`; blend: share of the neighbour, `[batch / 2, 1, ...]`."""
    pairs = values.reshape(-1, 2, *values.shape[1:])
    return (pairs * (1 - blend) + pairs[:, ::-1] * blend).reshape(values.shape)


def _beta(keys: Array, stage: int, alpha: Scalar) -> Array:
    """Draws of Beta(alpha, alpha), `float32[batch]`; 1 where alpha is 0.

    Exact and without rejection, whose loops would wait for all devices: Ulrich's formula (1984) gives
    Beta(alpha + 1, alpha + 1), and Gamma(alpha) is Gamma(alpha + 1) times a uniform to the power 1 / alpha.
    """
    safe = jnp.maximum(alpha, 1e-3)
    draws = uniforms(keys, stage, 4)
    turn, radius, first, second = (1 - draws[:, i] for i in range(4))  # in (0, 1]
    place = jnp.cos(2 * jnp.pi * turn) * jnp.sqrt(1 - radius ** (2 / (2 * safe + 1)))
    log_odds = jnp.log1p(place) - jnp.log1p(-place) + (jnp.log(first) - jnp.log(second)) / safe
    return jnp.where(jnp.asarray(alpha) > 0, jax.nn.sigmoid(log_odds), 1.0)


def _box(size: tuple[int, int], area: Array, place_y: Array, place_x: Array) -> Array:
    """A box of the image's proportions and a share `area` of it, centred anywhere: `bool[batch, *size]`."""
    height, width = size
    side = jnp.sqrt(area)
    tall, wide = jnp.floor(side * height), jnp.floor(side * width)
    top = jnp.floor(place_y * height) - jnp.floor(tall / 2)
    left = jnp.floor(place_x * width) - jnp.floor(wide / 2)
    return inside_box(size, top, left, tall, wide)
