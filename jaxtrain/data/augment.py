"""Augmentation on the device, inside the jitted step: what happens to an image follows from its key alone.

Order: geometry (RandomResizedCrop, or pad-and-crop; rotation, zoom and flips in one resampling), colour
jitter, RandAugment, random erasing; then mixup or CutMix on the batch, before or after `normalize` (both give
the same). Options that are off cost nothing: they are looked at while tracing. Keys must be of the default
kind, `threefry2x32`, whose draws under `vmap` do not depend on the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxtrain.config import AugmentConfig
from jaxtrain.data import ops
from jaxtrain.data.mix import mix_pairs
from jaxtrain.data.randaugment import randaugment
from jaxtrain.errors import UserError

# Streams of random numbers (an augmentation may take a few in a row): changing one changes repeated runs.
_CROP, _SHIFT, _FLIP, _ROTATE, _JITTER, _ERASE, _RANDAUGMENT, _MIX = 0, 1, 2, 3, 4, 8, 16, 32

_OFF: Mapping[str, Any] = {
    "crop": "none",
    "scale": (0.08, 1.0),
    "ratio": (3 / 4, 4 / 3),
    "hflip": 0.0,
    "vflip": 0.0,
    "rotate": 0.0,
    "zoom": 0.0,
    "color_jitter": 0.0,
    "randaugment_layers": 0,
    "randaugment_magnitude": 0.0,
    "erasing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}

_FRAMING: Sequence[tuple[float, bool, Mapping[str, Any]]] = (
    # (largest image size, mirrored images keep their label, options)
    # A pixel is an eighth of a digit here: shifts cost 1.0 points of validation accuracy on the embedded digits.
    (16, False, {"crop": "none"}),
    (64, True, {"crop": "pad", "hflip": 0.5}),  # He et al. 2015, arXiv 1512.03385, section 4.2
    (64, False, {"crop": "pad"}),
    (math.inf, True, {"crop": "random_resized", "hflip": 0.5}),  # Szegedy et al. 2014, arXiv 1409.4842
    (math.inf, False, {"crop": "random_resized"}),
)

_POLICIES: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    # Milder than Inception's 0.08: our choice for short runs on few images.
    "light": {"scale": (0.25, 1.0)},
    "auto": {"scale": (0.25, 1.0)},
    # big_vision's vit_s16_i1k (Beyer et al. 2022, arXiv 2205.01580).
    "standard": {"randaugment_layers": 2, "randaugment_magnitude": 10.0, "mixup": 0.2},
    # DeiT (Touvron et al. 2020, arXiv 2012.12877, table 9).
    "strong": {
        "randaugment_layers": 2,
        "randaugment_magnitude": 9.0,
        "erasing": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
}

_SYMBOLS: Mapping[str, Any] = {"rotate": 10.0, "zoom": 0.1, "mixup": 0.2}
"""What `auto` adds for small images that must not be mirrored: digits, letters (mixup: 0.9 points on digits)."""

_SYMBOLS_MAX_SIZE = 32

_PAD_SHARE = 1 / 8
"""Padding as a share of the side: the usual 4 pixels of CIFAR's 32."""


def resolve_augment(
    config: AugmentConfig, *, image_size: int, flips: bool, channels: int, bits: int = 8
) -> AugmentConfig:
    """Fill every option that is None from the policy, for images of this kind; explicit options stay.

    image_size: side in pixels of the model's input; flips: whether a mirrored image keeps its label;
    channels, bits: of the images.
    Raises UserError where options contradict each other.
    """
    options = {**_OFF, "pad": max(1, round(image_size * _PAD_SHARE))}
    if config.policy != "none":
        framing = next(row for size, flip, row in _FRAMING if image_size <= size and flip == flips)
        options |= {**framing, **_POLICIES[config.policy]}
    if config.policy == "auto" and image_size <= _SYMBOLS_MAX_SIZE and not flips:
        options |= _SYMBOLS
    options |= {name: value for name, value in config.model_dump().items() if value is not None}
    _check(options, image_size, channels, bits)
    return AugmentConfig.model_validate(options)


def _check(options: Mapping[str, Any], image_size: int, channels: int, bits: int) -> None:
    coloured = [name for name in ("color_jitter", "randaugment_layers") if options[name]]
    if coloured and channels not in (1, 3):
        raise UserError(f"augment.{coloured[0]}: for images of 1 or 3 channels, not {channels}; set it to 0")
    if options["randaugment_layers"] and bits != 8:
        raise UserError(f"augment.randaugment_layers: for images of 8 bits, not {bits}; set it to 0")
    for name in ("scale", "ratio"):
        low, high = options[name]
        if low > high:
            raise UserError(f"augment.{name}: ({low}, {high}) is empty; did you mean ({high}, {low})?")
    if options["crop"] == "pad" and options["pad"] >= image_size:
        raise UserError(
            f"augment.pad: {options['pad']} moves whole images of {image_size} pixels out of sight; give less"
        )


def augment(config: AugmentConfig, keys: Array, images: Array, *, image_size: int) -> Array:
    """Random changes to each image, at the size that the model sees; labels stay valid as they are.

    config: from `resolve_augment`. Its numbers may be traced (`config.model_copy(update=...)`), then their
    augmentation is always computed.
    keys: one typed PRNG key an image, `[batch]`. images: `uint8[batch, height, width, channels]`, or uint16.
    Result: `float32[batch, image_size, image_size, channels]` in 0..1.
    Image i depends on `keys[i]` and `images[i]` only.
    """
    options = _resolved(config, but=("mixup", "cutmix"))
    if images.dtype == jnp.uint16:
        images = images.astype(jnp.float32) * (255 / 65535)
    images = _geometry(options, keys, images, image_size)
    if _on(options.color_jitter):
        images = ops.color_jitter(images, ops.uniforms(keys, _JITTER, 3), options.color_jitter)
    if options.randaugment_layers:
        images = randaugment(
            images,
            keys,
            _RANDAUGMENT,
            layers=options.randaugment_layers,
            magnitude=options.randaugment_magnitude,
        )
    if _on(options.erasing):
        images = ops.random_erasing(images, keys, _ERASE, options.erasing)
    return prepare_eval(images)


def prepare_eval(images: Array) -> Array:
    """Images as they are, from 0..255 (uint8 or float32) or 0..65535 (uint16) to float32 in 0..1; any shape."""
    # A product, since XLA makes one of the division under jit only: the same bits in and out of jit.
    white = 65535 if images.dtype == jnp.uint16 else 255
    return jnp.clip(images.astype(jnp.float32) * (1 / white), 0.0, 1.0)


def normalize(images: Array, mean: Sequence[float] | Array, std: Sequence[float] | Array) -> Array:
    """Subtract each channel's mean and divide by its standard deviation.

    images: `float32[batch, height, width, channels]` in 0..1; mean, std: one value, or one for each channel.
    """
    return (images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def mix(config: AugmentConfig, keys: Array, images: Array, labels: Array) -> tuple[Array, Array]:
    """Mixup and CutMix between neighbours 2k and 2k + 1, each pair with a draw from the even image's key.

    So a batch that is sharded over devices mixes locally, and alike on any number of devices.
    keys: `[batch]`; images: `float32[batch, height, width, channels]`, normalised or not; labels:
    `float32[batch, classes]`, one-hot or smoothed. Results have the same shapes.
    Raises UserError for an odd batch, while tracing.
    """
    options = _resolved(config)
    mixup, cutmix = (alpha if _on(alpha) else None for alpha in (options.mixup, options.cutmix))
    if mixup is None and cutmix is None:
        return images, labels
    if len(images) % 2:
        raise UserError(
            f"augment.mixup and augment.cutmix pair the images of a batch, but it has {len(images)}: "
            f"use an even number, as {len(images) + 1}, or set both to 0"
        )
    return mix_pairs(images, labels, keys, _MIX, mixup=mixup, cutmix=cutmix)


def mix_weighted(
    config: AugmentConfig, keys: Array, images: Array, labels: Array, weights: Array
) -> tuple[Array, Array, Array]:
    """`mix` of images that do not all count alike: a label takes its weight along to where its share goes.

    weights: `float32[batch]`. Of a mixed image each target counts by its share and by its own weight; what comes back
    are distributions again, `float32[batch, classes]`, and what each image counts in all, `float32[batch]`.
    """
    mixed, terms = mix(config, keys, images, labels * weights[:, None])
    if mixed is images:
        return images, labels, weights
    total = terms.sum(axis=-1)
    shares = terms / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[:, None]
    return mixed, jnp.where(total[:, None] > 0, shares, labels), total


def _geometry(options: Any, keys: Array, images: Array, image_size: int) -> Array:
    batch, height, width, _ = images.shape
    resized = options.crop == "random_resized" or (height, width) != (image_size, image_size)
    shifted = options.crop == "pad" and options.pad > 0
    flipped = _on(options.hflip) or _on(options.vflip)
    turned = _on(options.rotate) or _on(options.zoom)
    if not (resized or shifted or flipped or turned):
        return images

    zero = jnp.zeros(batch, jnp.float32)
    shift, flip = (zero, zero), (zero > 0, zero > 0)
    if shifted:
        draws = ops.uniforms(keys, _SHIFT, 2)
        shift_y, shift_x = (jnp.floor(draws[:, i] * (2 * options.pad + 1)) - options.pad for i in range(2))
        shift = (shift_y, shift_x)
    if flipped:
        draws = ops.uniforms(keys, _FLIP, 2)
        flip = (draws[:, 0] < options.vflip, draws[:, 1] < options.hflip)

    top, tall, left, wide = zero, zero + height, zero, zero + width
    if options.crop == "random_resized":
        draws = ops.uniforms(keys, _CROP, 2 * ops.ATTEMPTS + 2)
        top, tall, left, wide = ops.random_crop_boxes(draws, (height, width), options.scale, options.ratio)
    if resized or not turned:
        # An affine resampling that follows takes the shift and the flips with it.
        shift_now, flip_now = ((zero, zero), (zero > 0, zero > 0)) if turned else (shift, flip)
        axes = zip((height, width), (top, left), (tall, wide), shift_now, flip_now, strict=True)
        rows, columns = (
            ops.axis_taps(
                size,
                image_size,
                start=start,
                length=length,
                shift=move,
                flip=mirror,
                taps=ops.taps_needed(size, image_size) if resized else 1,
            )
            for size, start, length, move, mirror in axes
        )
        images = ops.resample(images, rows, columns)
    if turned:
        draws = 2 * ops.uniforms(keys, _ROTATE, 2) - 1
        matrix = ops.centred_affine(
            (image_size, image_size),
            angle=jnp.deg2rad(options.rotate * draws[:, 0]),
            scale=1 + options.zoom * draws[:, 1],
            shift=shift,
            flip=flip,
        )
        images = ops.affine(images, matrix)
    return images


def _resolved(config: AugmentConfig, but: Sequence[str] = ()) -> Any:
    """The config, its numbers possibly traced; refuses one with options left open, except for those in `but`."""
    missing = [name for name in AugmentConfig.model_fields if name not in but and getattr(config, name) is None]
    if missing:
        raise ValueError(f"augment.{missing[0]} is None: call resolve_augment first")
    return config


def _on(value: float | Array) -> bool:
    """Whether an augmentation is computed at all; a traced strength may be 0 in some members of a sweep."""
    return not isinstance(value, (int, float)) or value > 0
