"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) of a whole batch at once, on 8-bit grey levels as in PIL.

The paper's 14 operations with torchvision's ranges: its bin 3 m of 31 is magnitude m here. To draw an
operation for each image by `lax.switch` under `vmap` would run all 14 on all images. Instead they fall into
three groups, each the identity for images that drew from another one: an affine resampling, a table of 256
levels for each channel, and a blend with a grey or smoothed copy. TPUs gather and scatter slowly and multiply matrices
fast: there a level is looked up and counted by products with the one-hot vectors of its upper and lower bits.
"""

from __future__ import annotations

import functools

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
    draws = jnp.stack([uniforms(keys, stage + layer, 2) for layer in range(layers)])
    operations = jnp.floor(draws[..., 0] * len(OPERATIONS)).astype(jnp.int32)
    return apply_operations(images, operations, jnp.where(draws[..., 1] < 0.5, -1.0, 1.0), magnitude)


def apply_operations(images: Array, operations: Array, signs: Array, magnitude: Scalar) -> Array:
    """One operation of `OPERATIONS` after another on each image.

    images: `[batch, height, width, channels]`; operations: `int32[layers, batch]`, places in `OPERATIONS`;
    signs: `float32[layers, batch]`, -1 or 1, for the operations that have a direction. Result: uint8.
    """
    levels = signs * magnitude / 10
    images = to_levels(images)
    # On CPU, XLA computes each group again inside every read of the next, optimization barriers or not; the
    # borders of a loop hold (measured: 3 times faster with two layers).
    return lax.platform_dependent(images, operations, levels, cpu=_looped, default=_unrolled)


def _unrolled(images: Array, operations: Array, levels: Array) -> Array:
    for operation, level in zip(operations, levels, strict=True):
        images = _warp(images, operation, level)
        images = _look_up(images, _table(images, operation, level))
        images = _blend(images, operation, level)
    return images


def _looped(images: Array, operations: Array, levels: Array) -> Array:
    groups = (
        lambda images, table, *drawn: (_warp(images, *drawn), table),
        lambda images, table, *drawn: (images, _table(images, *drawn)),
        lambda images, table, *drawn: (_look_up(images, table), table),
        lambda images, table, *drawn: (_blend(images, *drawn), table),
    )

    def turn(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        layer, group = i // len(groups), i % len(groups)
        return lax.switch(group, groups, *state, operations[layer], levels[layer])

    table = jnp.zeros((images.shape[0], images.shape[-1], 256), jnp.uint8)
    return lax.fori_loop(0, len(groups) * len(operations), turn, (images, table))[0]


def _is(operation: Array, name: str) -> Array:
    return operation == OPERATIONS.index(name)


def _factor(level: Array) -> Array:
    """An enhancement in 65536ths: with whole numbers, rounding does not depend on the compiler."""
    return jnp.round(65536 * (1 + MAX_ENHANCE * level)).astype(jnp.int32)


def _warp(images: Array, operation: Array, level: Array) -> Array:
    """Rotate, ShearX, ShearY, TranslateX, TranslateY."""
    _, height, width, _ = images.shape

    def amount(name: str, largest: float) -> Array:
        return jnp.where(_is(operation, name), largest * level, 0.0)

    angle = jnp.deg2rad(amount("Rotate", MAX_ROTATE))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Rotation is about the centre, shear about the top left corner: as in timm and torchvision.
    x0 = width / 2 - cos * (width / 2) - sin * (height / 2) + amount("TranslateX", MAX_TRANSLATE * width)
    y0 = height / 2 + sin * (width / 2) - cos * (height / 2) + amount("TranslateY", MAX_TRANSLATE * height)
    row_x = jnp.stack([cos, sin + amount("ShearX", MAX_SHEAR), x0], -1)
    row_y = jnp.stack([amount("ShearY", MAX_SHEAR) - sin, cos, y0], -1)
    return to_levels(affine(images, jnp.stack([row_x, row_y], 1)))


def _table(images: Array, operation: Array, level: Array) -> Array:
    """AutoContrast, Equalize, Solarize, Posterize, Brightness, Contrast: `uint8[batch, channels, 256]`."""
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

    strength = jnp.abs(level)[:, None, None]
    lost_bits = jnp.round(MAX_POSTERIZE * strength).astype(jnp.int32)
    factor = _factor(level)[:, None, None]
    mean = jnp.floor(luma(images).mean(axis=(1, 2, 3), dtype=jnp.float32) + 0.5).astype(jnp.int32)[:, None, None]
    candidates = {
        "AutoContrast": stretched,
        "Equalize": equalized,
        "Solarize": jnp.where(values < jnp.round(256 * (1 - strength)), values, 255 - values),
        "Posterize": (values >> lost_bits) << lost_bits,
        "Brightness": (values * factor) >> 16,
        "Contrast": mean + ((factor * (values - mean)) >> 16),
    }
    table = jnp.broadcast_to(values, counts.shape)
    for name, candidate in candidates.items():
        table = jnp.where(_is(operation, name)[:, None, None], candidate, table)
    return jnp.clip(table, 0, 255).astype(jnp.uint8)


def _look_up(images: Array, table: Array) -> Array:
    """Each level's new value; `table` is `uint8[batch, channels, 256]`."""
    return lax.platform_dependent(images, table, tpu=_look_up_by_halves, default=_look_up_gather)


def _look_up_gather(images: Array, table: Array) -> Array:
    return jnp.take_along_axis(table.reshape(len(table), -1), _bins(images), 1).reshape(images.shape)


def _look_up_by_halves(images: Array, table: Array) -> Array:
    upper, lower = _halves(images, lower_bits=3)
    # Exact: each sum has one term that is not 0, and bfloat16 holds whole numbers up to 256.
    rows = table.reshape(*table.shape[:2], 32, 8).astype(jnp.bfloat16)
    rows = jnp.einsum("bcuhw,bcul->bclhw", upper.astype(jnp.bfloat16), rows)
    return jnp.moveaxis(jnp.where(lower, rows, jnp.bfloat16(0)).sum(2), 1, 3).astype(jnp.uint8)


def _halves(images: Array, lower_bits: int) -> tuple[Array, Array]:
    """Which values the upper and the lower bits have: two of `bool[batch, channels, values, height, width]`."""
    levels = jnp.moveaxis(images, 3, 1)[:, :, None]
    upper, lower = (jnp.arange(2**bits, dtype=jnp.uint8)[:, None, None] for bits in (8 - lower_bits, lower_bits))
    return levels >> lower_bits == upper, levels & (2**lower_bits - 1) == lower


def _bins(images: Array) -> Array:
    """The place of each value in a table `[channels * 256]`: `int32[batch, height * width * channels]`."""
    batch, _, _, channels = images.shape
    return (images.astype(jnp.int32) + 256 * jnp.arange(channels)).reshape(batch, -1)


def _histogram(images: Array) -> Array:
    """Pixels at each grey level: `int32[batch, channels, 256]`."""
    return lax.platform_dependent(images, tpu=_histogram_by_halves, default=_histogram_scatter)


def _histogram_scatter(images: Array) -> Array:
    batch, _, _, channels = images.shape
    counts = jax.vmap(lambda bins: jnp.zeros(256 * channels, jnp.int32).at[bins].add(1))(_bins(images))
    return counts.reshape(batch, channels, 256)


def _histogram_by_halves(images: Array) -> Array:
    upper, lower = (half.astype(jnp.bfloat16) for half in _halves(images, lower_bits=4))
    counts = jnp.einsum("bcuhw,bclhw->bcul", upper, lower, preferred_element_type=jnp.float32)
    return counts.reshape(*counts.shape[:2], 256).astype(jnp.int32)


def luma(images: Array) -> Array:
    """PIL's `convert("L")` of uint8 images: `int32[batch, height, width, 1]`."""
    images = images.astype(jnp.int32)
    if images.shape[-1] == 1:
        return images
    red, green, blue = jnp.split(images, 3, axis=-1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _blend(images: Array, operation: Array, level: Array) -> Array:
    """Color and Sharpness: towards, or away from, a copy without it."""
    values = images.astype(jnp.int32)
    without = _smooth(values)
    active = _is(operation, "Sharpness")
    if images.shape[-1] > 1:
        color = _is(operation, "Color")
        without = jnp.where(per_image(color), luma(images), without)
        active = active | color
    factor = per_image(jnp.where(active, _factor(level), 65536))
    return jnp.clip(without + ((factor * (values - without)) >> 16), 0, 255).astype(jnp.uint8)


def _smooth(values: Array) -> Array:
    """PIL's `ImageFilter.SMOOTH` of whole levels: 3x3, the centre five times the others; the border stays."""
    height, width = values.shape[1:3]
    box = lax.platform_dependent(values, tpu=_box_by_window, default=_box_by_shifts)
    row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    inner = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    return jnp.where(inner, (2 * (box + 4 * values) + 13) // 26, values)


def _box_by_window(values: Array) -> Array:
    """Sums over 3x3."""
    return lax.reduce_window(values, 0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


def _box_by_shifts(values: Array) -> Array:
    height, width = values.shape[1:3]
    padded = jnp.pad(values, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = (padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3))
    return functools.reduce(jnp.add, shifted)
