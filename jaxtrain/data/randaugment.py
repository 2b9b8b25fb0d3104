"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) for a whole batch at once, on 8-bit grey levels as in PIL.

The paper's 14 operations and its ranges, as torchvision has them (its bin 3 m of 31 is magnitude m here). An operation
for each image, by `lax.switch` under vmap, would run all 14 on all images. Instead they fall into three groups, each
of which is the identity for the images that drew another one: one affine resampling, one table of 256 levels for
each channel, one blend with a grey or smoothed copy.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxtrain.data.ops import Scalar, affine, per_image, to_levels, uniforms

OPERATIONS = (
    "Identity",
    "AutoContrast",
    "Equalize",
    "Rotate",
    "Solarize",
    "Color",
    "Posterize",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)

MAX_ROTATE = 30.0
"""Degrees, at magnitude 10."""
MAX_SHEAR = 0.3
MAX_TRANSLATE = 150 / 331
"""Share of the side: AutoAugment's 150 of 331 pixels."""
MAX_ENHANCE = 0.9
"""Factors 0.1 or 1.9 of Color, Contrast, Brightness and Sharpness."""
MAX_POSTERIZE = 4
"""Bits that are lost."""


def randaugment(images: Array, keys: Array, stage: int, *, layers: int, magnitude: Scalar) -> Array:
    """Apply `layers` operations to each image, drawn with replacement, with random signs.

    images: `[batch, height, width, channels]`, 0..255, uint8 or float32 (then rounded); keys: `[batch]`;
    magnitude: 0 to 10. Result: uint8, the same shape. AutoContrast and Equalize have no magnitude.
    """
    images = to_levels(images)
    for layer in range(layers):
        draws = uniforms(keys, stage + layer, 2)
        operation = jnp.floor(draws[:, 0] * len(OPERATIONS)).astype(jnp.int32)
        images = apply_operation(images, operation, jnp.where(draws[:, 1] < 0.5, -1.0, 1.0), magnitude)
    return images


def apply_operation(images: Array, operation: Array, sign: Array, magnitude: Scalar) -> Array:
    """One operation of `OPERATIONS` for each image.

    images: `uint8[batch, height, width, channels]`; operation: `int32[batch]`, places in `OPERATIONS`; sign:
    `float32[batch]`, -1 or 1, for the operations that have a direction. Result: uint8, the same shape.
    """
    level = magnitude / 10
    # The barriers keep XLA from computing a group again inside each of its readers (measured: 2 to 3 times slower).
    images = lax.optimization_barrier(
        to_levels(affine(images, _matrix(images.shape, operation, sign * level)))
    )
    table = lax.optimization_barrier(_table(images, operation, sign * level, level))
    images = lax.optimization_barrier(_look_up(images, table))
    return lax.optimization_barrier(_blend(images, operation, sign * level))


def _is(operation: Array, name: str) -> Array:
    return operation == OPERATIONS.index(name)


def _matrix(shape: tuple[int, ...], operation: Array, level: Array) -> Array:
    _, height, width, _ = shape

    def amount(name: str, largest: float) -> Array:
        return jnp.where(_is(operation, name), largest * level, 0.0)

    angle = jnp.deg2rad(amount("Rotate", MAX_ROTATE))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Rotation is about the centre, shear about the top left corner: as in the paper's code, timm and torchvision.
    x0 = width / 2 - cos * (width / 2) - sin * (height / 2) + amount("TranslateX", MAX_TRANSLATE * width)
    y0 = height / 2 + sin * (width / 2) - cos * (height / 2) + amount("TranslateY", MAX_TRANSLATE * height)
    row_x = [cos, sin + amount("ShearX", MAX_SHEAR), x0]
    row_y = [amount("ShearY", MAX_SHEAR) - sin, cos, y0]
    return jnp.stack([jnp.stack(row_x, -1), jnp.stack(row_y, -1)], 1)


def _table(images: Array, operation: Array, signed_level: Array, level: Scalar) -> Array:
    """The new value of each grey level: `uint8[batch, channels, 256]`."""
    values = jnp.arange(256)
    counts = _histogram(images)
    present = counts > 0
    lowest = jnp.argmax(present, axis=-1, keepdims=True)
    highest = 255 - jnp.argmax(present[..., ::-1], axis=-1, keepdims=True)
    span = highest - lowest
    stretched = jnp.where(span > 0, (values - lowest) * 255 // jnp.maximum(span, 1), values)

    below = jnp.cumsum(counts, axis=-1) - counts
    step = jnp.take_along_axis(below, highest, axis=-1) // 255
    equalized = jnp.where(step > 0, (step // 2 + below) // jnp.maximum(step, 1), values)

    lost_bits = jnp.round(MAX_POSTERIZE * level).astype(jnp.int32)
    factor = (1 + MAX_ENHANCE * signed_level)[:, None, None]
    mean = jnp.floor(luma(images).mean(axis=(1, 2, 3), dtype=jnp.float32) + 0.5)[:, None, None]
    candidates = {
        "AutoContrast": stretched,
        "Equalize": equalized,
        "Solarize": jnp.where(values < 256 * (1 - level), values, 255 - values),
        "Posterize": (values >> lost_bits) << lost_bits,
        "Brightness": values * factor,
        "Contrast": mean + factor * (values - mean),
    }
    table = jnp.broadcast_to(values.astype(jnp.float32), counts.shape)
    for name, candidate in candidates.items():
        table = jnp.where(_is(operation, name)[:, None, None], candidate, table)
    return jnp.clip(table, 0, 255).astype(jnp.uint8)


def _look_up(images: Array, table: Array) -> Array:
    """Each level's new value; `table` is `uint8[batch, channels, 256]`."""
    return jnp.take_along_axis(table.reshape(len(table), -1), _bins(images), 1).reshape(images.shape)


def _bins(images: Array) -> Array:
    """The place of each value in a table `[channels * 256]`: `int32[batch, height * width * channels]`."""
    batch, _, _, channels = images.shape
    return (images.astype(jnp.int32) + 256 * jnp.arange(channels)).reshape(batch, -1)


def _histogram(images: Array) -> Array:
    """Pixels at each grey level: `int32[batch, channels, 256]`."""
    batch, _, _, channels = images.shape
    counts = jax.vmap(lambda bins: jnp.zeros(256 * channels, jnp.int32).at[bins].add(1))(_bins(images))
    return counts.reshape(batch, channels, 256)


def luma(images: Array) -> Array:
    """PIL's `convert("L")` of uint8 images: `int32[batch, height, width, 1]`."""
    images = images.astype(jnp.int32)
    if images.shape[-1] == 1:
        return images
    red, green, blue = jnp.split(images, 3, axis=-1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _blend(images: Array, operation: Array, level: Array) -> Array:
    """Color and Sharpness: away from, or towards, a copy without it."""
    levels = images.astype(jnp.float32)
    without = _smooth(levels)
    active = _is(operation, "Sharpness")
    if images.shape[-1] > 1:
        color = _is(operation, "Color")
        without = jnp.where(per_image(color), luma(images).astype(jnp.float32), without)
        active = active | color
    factor = jnp.where(active, 1 + MAX_ENHANCE * level, 1.0)
    return jnp.clip(without + per_image(factor) * (levels - without), 0, 255).astype(jnp.uint8)


def _smooth(levels: Array) -> Array:
    """PIL's `ImageFilter.SMOOTH`: 3x3, the centre five times the others; the border stays as it is."""
    height, width = levels.shape[1:3]
    padded = jnp.pad(levels, ((0, 0), (1, 1), (1, 1), (0, 0)))
    box = sum(padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3))
    row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    inner = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    return jnp.where(inner, jnp.floor((box + 4 * levels) / 13 + 0.5), levels)
