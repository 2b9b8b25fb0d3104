"""Image operations on a batch, each image with its own parameters: the parts of `jaxtrain.data.augment`.

Written as gathers with the batch as a batch dimension: on CPU these were several times faster than one-hot
matrices or selects, and a batch that is sharded over devices stays so, without communication. Pixels are on
the scale 0..255, in uint8 or float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

Scalar = float | Array
"""A Python number, or a traced scalar: strengths may differ between the members of a vmapped sweep."""

ATTEMPTS = 10
"""Random boxes tried for each image before the fallback, as in torchvision."""


def uniforms(keys: Array, stage: int, count: int) -> Array:
    """Numbers in [0, 1) for each image, `float32[batch, count]`, from that image's key and the stage alone.

    Each stage has its own stream: switching one augmentation on leaves the draws of the others as they were.
    """
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, stage), (count,)))(keys)


def per_image(values: Array) -> Array:
    """`[batch]` to `[batch, 1, 1, 1]`."""
    return values[:, None, None, None]


def to_levels(images: Array) -> Array:
    """Whole grey levels: float32 on the scale 0..255 to uint8; uint8 as it is."""
    return images if images.dtype == jnp.uint8 else jnp.round(jnp.clip(images, 0, 255)).astype(jnp.uint8)


def grey(images: Array) -> Array:
    """Luma with torchvision's weights (ITU-R 601), `float32[..., 1]`; images of one channel as they are."""
    if images.shape[-1] == 1:
        return images
    red, green, blue = jnp.split(images, 3, axis=-1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


class Taps(NamedTuple):
    """How each output position along one axis is made of input positions."""

    place: Array
    """`int32[batch, out, taps]`, positions along the input axis."""
    weight: Array
    """`float32[batch, out, taps]`"""


def axis_taps(
    size_in: int, size_out: int, *, start: Array, length: Array, shift: Array, flip: Array, taps: int
) -> Taps:
    """Resample `start .. start + length` of one axis to `size_out` positions, then flip, then shift.

    The kernel is a triangle that widens when shrinking (antialiased, as PIL's BILINEAR). Positions that the
    shift moves in from outside get weight 0: black. All arguments are `float32[batch]`, `flip` `bool[batch]`.
    `taps` must be at least `taps_needed`; 1 is exact where the axis is only shifted and flipped.
    """
    out = jnp.arange(size_out, dtype=jnp.float32)
    out = jnp.where(flip[:, None], size_out - 1 - out, out) + shift[:, None]
    inside = (out >= 0) & (out < size_out)
    scale = (length / size_out)[:, None]
    support = jnp.maximum(scale, 1.0)
    centre = (jnp.clip(out, 0, size_out - 1) + 0.5) * scale + start[:, None] - 0.5
    index = (jnp.floor(centre - support) + 1)[..., None] + jnp.arange(taps)
    weight = jnp.maximum(0.0, 1.0 - jnp.abs(index - centre[..., None]) / support[..., None])
    first = start[:, None, None]
    weight = jnp.where((index >= first) & (index < first + length[:, None, None]), weight, 0.0)
    weight = weight / weight.sum(-1, keepdims=True) * inside[..., None]
    return Taps(jnp.clip(index, 0, size_in - 1).astype(jnp.int32), weight)


def taps_needed(size_in: int, size_out: int) -> int:
    """Taps that cover the triangle kernel at the strongest possible shrinking, that of the whole axis."""
    return math.ceil(2 * max(1.0, size_in / size_out))


def resample(images: Array, rows: Taps, columns: Taps) -> Array:
    """`[batch, height, width, channels]`, uint8 or float32, to `float32[batch, rows, columns, channels]`."""
    # TPUs gather slowly and multiply matrices fast; elsewhere it is the other way round.
    return lax.platform_dependent(images, rows, columns, tpu=_resample_dense, default=_resample_gather)


def _resample_gather(images: Array, rows: Taps, columns: Taps) -> Array:
    batch, height, width, channels = images.shape
    out = rows.place.shape[1]
    flat = images.reshape(batch, height, width * channels)
    parts = (
        rows.weight[:, :, tap, None] * _take(flat, rows.place[:, :, tap, None], axis=1).astype(jnp.float32)
        for tap in range(rows.place.shape[-1])
    )
    tall = sum(parts, jnp.float32(0)).reshape(batch, out, width, channels)
    parts = (
        columns.weight[:, None, :, tap, None] * _take(tall, columns.place[:, None, :, tap, None], axis=2)
        for tap in range(columns.place.shape[-1])
    )
    return sum(parts, jnp.float32(0))


def _resample_dense(images: Array, rows: Taps, columns: Taps) -> Array:
    def matrix(taps: Taps, size: int) -> Array:
        return (jax.nn.one_hot(taps.place, size) * taps.weight[..., None]).sum(-2)

    _, height, width, _ = images.shape
    tall = jnp.einsum("bih,bhwc->biwc", matrix(rows, height), images.astype(jnp.float32), precision="high")
    return jnp.einsum("bjw,biwc->bijc", matrix(columns, width), tall, precision="high")


def _take(array: Array, index: Array, axis: int) -> Array:
    return jnp.take_along_axis(array, index, axis=axis, mode="promise_in_bounds")


def affine(images: Array, matrix: Array) -> Array:
    """Bilinear affine resampling, as PIL's `Image.transform(size, AFFINE, ..., BILINEAR)`; outside is black.

    images: `[batch, height, width, channels]`, uint8 or float32; result: float32, the same shape.
    matrix: `float32[batch, 2, 3]`, (x, y, 1) of the output to (x, y) of the input; centres at halves.
    """
    _, height, width, _ = images.shape
    x_out = jnp.arange(width) + 0.5
    y_out = (jnp.arange(height) + 0.5)[:, None]
    entry = matrix[:, :, :, None, None]
    x = entry[:, 0, 0] * x_out + entry[:, 0, 1] * y_out + entry[:, 0, 2]
    y = entry[:, 1, 0] * x_out + entry[:, 1, 1] * y_out + entry[:, 1, 2]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
    right_share, bottom_share = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]
    packed = _corners_packed if images.dtype == jnp.uint8 else _corners
    corners = lax.platform_dependent(images, left, top, tpu=packed, default=_corners)
    upper = corners[0] * (1 - right_share) + corners[1] * right_share
    lower = corners[2] * (1 - right_share) + corners[3] * right_share
    return jnp.where(inside[..., None], upper * (1 - bottom_share) + lower * bottom_share, 0.0)


def _corners(images: Array, left: Array, top: Array) -> list[Array]:
    """The pixels at the upper left, upper right, lower left and lower right, four float32 images; edges go on."""
    batch, height, width, channels = images.shape
    flat = images.reshape(batch, height * width, channels)

    def pixel(row: Array, column: Array) -> Array:
        row = jnp.clip(row, 0, height - 1).astype(jnp.int32)
        column = jnp.clip(column, 0, width - 1).astype(jnp.int32)
        index = (row * width + column).reshape(batch, height * width, 1)
        return _take(flat, index, axis=1).reshape(images.shape).astype(jnp.float32)

    return [pixel(row, column) for row in (top, top + 1) for column in (left, left + 1)]


def _corners_packed(images: Array, left: Array, top: Array) -> list[Array]:
    """The same of uint8 images: the four bytes as one word, and each channel a table of its own."""
    batch, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge").astype(jnp.uint32)
    views = [padded[:, row : row + height + 1, column : column + width + 1] for row in (0, 1) for column in (0, 1)]
    words = sum((view << 8 * i for i, view in enumerate(views)), jnp.uint32(0)).reshape(batch, -1, channels)
    index = jnp.clip(top + 1, 0, height) * (width + 1) + jnp.clip(left + 1, 0, width)
    index = index.astype(jnp.int32).reshape(batch, height * width)
    planes = [_take(words[..., i], index, axis=1).reshape(batch, height, width) for i in range(channels)]
    found = jnp.stack(planes, axis=-1)
    return [((found >> 8 * i) & 255).astype(jnp.float32) for i in range(4)]


def centred_affine(
    size: tuple[int, int],
    *,
    angle: Array,
    scale: Array,
    shift: tuple[Array, Array],
    flip: tuple[Array, Array],
) -> Array:
    """`float32[batch, 2, 3]` for `affine`: shift, then flip, then rotate and scale, about the centre.

    angle: radians; scale: over 1 enlarges; shift: pixels; shift and flip: (vertical, horizontal).
    """
    height, width = size
    cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    flip_y, flip_x = (jnp.where(f, -1.0, 1.0) for f in flip)
    xx, xy, yx, yy = flip_x * cos, flip_x * sin, -flip_y * sin, flip_y * cos
    x0 = width / 2 + shift[1] - xx * (width / 2) - xy * (height / 2)
    y0 = height / 2 + shift[0] - yx * (width / 2) - yy * (height / 2)
    return jnp.stack([jnp.stack([xx, xy, x0], -1), jnp.stack([yx, yy, y0], -1)], 1)


def random_boxes(
    draws: Array, size: tuple[int, int], area: tuple[Scalar, Scalar], ratio: tuple[Scalar, Scalar]
) -> tuple[Array, Array, Array]:
    """Heights and widths of boxes in whole pixels, and whether one fitted: three `[batch]`.

    draws: `float32[batch, attempts, 2]` in [0, 1). The area is uniform in `area` (shares of the image), the
    ratio of width to height log-uniform in `ratio`; the first attempt that fits is taken (as in torchvision's
    RandomResizedCrop and RandomErasing).
    """
    height, width = size
    pixels = height * width * (area[0] + (area[1] - area[0]) * draws[..., 0])
    low, high = jnp.log(ratio[0]), jnp.log(ratio[1])
    aspect = jnp.exp(low + (high - low) * draws[..., 1])
    tall, wide = jnp.round(jnp.sqrt(pixels / aspect)), jnp.round(jnp.sqrt(pixels * aspect))
    fits = (tall >= 1) & (tall <= height) & (wide >= 1) & (wide <= width)
    first = jnp.argmax(fits, axis=1)[:, None]
    return _take(tall, first, 1)[:, 0], _take(wide, first, 1)[:, 0], fits.any(axis=1)


def random_crop_boxes(
    draws: Array, size: tuple[int, int], area: tuple[Scalar, Scalar], ratio: tuple[Scalar, Scalar]
) -> tuple[Array, Array, Array, Array]:
    """Top, height, left, width of the Inception-style crops, `float32[batch]` each, whole pixels.

    draws: `float32[batch, 2 * ATTEMPTS + 2]`. Where no attempt fits: the largest centred one.
    (Szegedy et al. 2014, arXiv 1409.4842, as in torchvision's RandomResizedCrop.)
    """
    height, width = size
    attempts = draws[:, : 2 * ATTEMPTS].reshape(-1, ATTEMPTS, 2)
    tall, wide, found = random_boxes(attempts, size, area, ratio)
    aspect = jnp.clip(width / height, ratio[0], ratio[1])
    tall = jnp.where(found, tall, jnp.round(jnp.minimum(height, width / aspect)))
    wide = jnp.where(found, wide, jnp.round(jnp.minimum(width, height * aspect)))
    place = jnp.where(found[:, None], draws[:, 2 * ATTEMPTS :], 0.5)
    return (
        jnp.floor(place[:, 0] * (height - tall + 1)),
        tall,
        jnp.floor(place[:, 1] * (width - wide + 1)),
        wide,
    )


def color_jitter(images: Array, draws: Array, strength: Scalar) -> Array:
    """Brightness, then contrast, then saturation, each by a factor uniform in 1 - strength .. 1 + strength.

    images: `[batch, height, width, channels]`, 0..255; draws: `float32[batch, 3]` in [0, 1); result: float32.
    As torchvision's ColorJitter, which shuffles the order; here it is fixed. Images of one channel have no
    saturation.
    """
    brightness, contrast, saturation = (per_image(1 + strength * (2 * draws[:, i] - 1)) for i in range(3))
    images = jnp.clip(brightness * images, 0, 255)
    mean = grey(images).mean(axis=(1, 2, 3), keepdims=True)
    images = jnp.clip(mean + contrast * (images - mean), 0, 255)
    if images.shape[-1] == 1:
        return images
    luma = grey(images)
    return jnp.clip(luma + saturation * (images - luma), 0, 255)


def random_erasing(images: Array, keys: Array, stage: int, probability: Scalar) -> Array:
    """Fill a random box with noise, uniform for each pixel (Zhong et al. 2017, arXiv 1708.04896: RE-R).

    images: `[batch, height, width, channels]`, 0..255; keys: `[batch]`; result: float32. The area is 2 to 33%
    of the image, the ratio 0.3 to 3.3 (torchvision's); where no attempt fits, the image stays as it is.
    """
    batch, height, width, _ = images.shape
    draws = uniforms(keys, stage, 2 * ATTEMPTS + 3)
    attempts = draws[:, 3:].reshape(batch, ATTEMPTS, 2)
    tall, wide, found = random_boxes(attempts, (height, width), (0.02, 0.33), (0.3, 3.3))
    top, left = jnp.floor(draws[:, 1] * (height - tall + 1)), jnp.floor(draws[:, 2] * (width - wide + 1))
    erase = found & (draws[:, 0] < probability)
    box = erase[:, None, None] & inside_box((height, width), top, left, tall, wide)
    return jnp.where(box[..., None], _noise(keys, stage, images.shape), images.astype(jnp.float32))


def _noise(keys: Array, stage: int, shape: tuple[int, ...]) -> Array:
    """Whole numbers 0..255, `float32[shape]`; each random word gives four of them."""
    count = math.prod(shape[1:])

    def one(key: Array) -> Array:
        words = jax.random.bits(jax.random.fold_in(key, stage + 1), (-(-count // 4),), jnp.uint32)
        return lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[:count]

    return jax.vmap(one)(keys).reshape(shape).astype(jnp.float32)


def inside_box(size: tuple[int, int], top: Array, left: Array, height: Array, width: Array) -> Array:
    """`bool[batch, size...]`: the pixels of each image inside its box."""
    row = jnp.arange(size[0])[:, None] - top[:, None, None]
    column = jnp.arange(size[1]) - left[:, None, None]
    return (row >= 0) & (row < height[:, None, None]) & (column >= 0) & (column < width[:, None, None])
