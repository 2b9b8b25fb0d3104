"""Accuracy under common corruptions at five severities, computed on the device.

The kinds and severities follow ImageNet-C (Hendrycks & Dietterich 2019, arXiv 1903.12261). Lengths are scaled from its
224 pixels to the images' own side; small images are blurred no less than in CIFAR-10-C. Corruptions that no linear
operation or noise makes (JPEG, snow, frost, elastic) are left out, so the mean is not comparable with published ones;
it compares models here, all on the same corrupted images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.base import ArraySource, Images, ImageSource
from jaxtrain.data.decode import read_picture
from jaxtrain.data.splits import stratified_subset
from jaxtrain.data.transforms import center_crop_resize
from jaxtrain.evaluation.evaluate import Predictor, thresholds_of
from jaxtrain.label_metrics import label_metrics

if TYPE_CHECKING:
    import jax

SEVERITIES = 5
MAX_IMAGES = 2000
"""At most this many images of the test set are used, stratified."""
_BATCH = 256
_SIDE = 224
_ZOOMS = 8

Curves = dict[str, list[float]]
"""By corruption: accuracy at severity 0 (clean), 1, ..., 5."""


def corruption_accuracy(
    models: Mapping[str, Predictor],
    images: ImageSource,
    *,
    side: int,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Curves]:
    """Accuracy of every model under every corruption: `{model: {corruption: [clean, 1, ..., 5]}}`.

    All models see the same corrupted images, `uint8[images, side, side, channels]` except for arrays of one size, which
    keep theirs. `say` is called with the next corruption.
    """
    source = _as_array(images, side)
    clean = {name: _accuracy(model, source) for name, model in models.items()}
    found: dict[str, Curves] = {name: {} for name in models}
    for place, kind in enumerate(CORRUPTIONS):
        say(f"corruption {place + 1} of {len(CORRUPTIONS)}: {kind}")
        curves = {name: [clean[name]] for name in models}
        for severity in range(1, SEVERITIES + 1):
            corrupted = corrupt(source.images, kind, severity, seed=seed * 1000 + place)
            for name, model in models.items():
                curves[name].append(_accuracy(model, ArraySource(corrupted, source.labels)))
        for name in models:
            found[name][kind] = curves[name]
    return found


def corrupt(images: Images, kind: str, severity: int, *, seed: int = 0) -> Images:
    """Corrupted `uint8[images, height, width, channels]`; the same for the same seed, whatever the batch size."""
    import jax

    run = _compiled(kind)
    keys = jax.random.split(jax.random.key(seed), len(images))
    parts = [
        np.asarray(run(images[start : start + _BATCH], keys[start : start + _BATCH], severity - 1))
        for start in range(0, len(images), _BATCH)
    ]
    return np.concatenate(parts)


@lru_cache
def _compiled(kind: str) -> Callable[[Any, Any, int], Any]:
    import jax
    import jax.numpy as jnp

    @jax.jit
    def run(batch: Any, keys: Any, level: Any) -> Any:
        changed = CORRUPTIONS[kind](batch.astype(jnp.float32) / 255, keys, level)
        return jnp.clip(jnp.round(changed * 255), 0, 255).astype(jnp.uint8)

    return run


def _at(level: jax.Array, *values: float) -> jax.Array:
    """The value of a level."""
    import jax.numpy as jnp

    return jnp.asarray(values, jnp.float32)[level]


def _gaussian_noise(x: jax.Array, keys: jax.Array, level: jax.Array) -> jax.Array:
    import jax

    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
    return x + _at(level, 0.08, 0.12, 0.18, 0.26, 0.38) * noise


def _shot_noise(x: jax.Array, keys: jax.Array, level: jax.Array) -> jax.Array:
    import jax

    photons = _at(level, 60, 25, 12, 5, 3)
    return jax.vmap(lambda key, image: jax.random.poisson(key, image * photons) / photons)(keys, x)


def _impulse_noise(x: jax.Array, keys: jax.Array, level: jax.Array) -> jax.Array:
    """Salt and pepper."""
    import jax
    import jax.numpy as jnp

    share = _at(level, 0.03, 0.06, 0.09, 0.17, 0.27)
    draw = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:]))(keys)
    return jnp.where(draw < share / 2, 0.0, jnp.where(draw > 1 - share / 2, 1.0, x))


def _gaussian_blur(x: jax.Array, keys: jax.Array, level: jax.Array) -> jax.Array:
    del keys

    def matrix(side: int, scale: float, strength: int) -> NDArray[Any]:
        deviation = max((2.0, 3.0, 4.0, 6.0, 8.0)[strength] * scale, 0.4 + 0.15 * strength)
        return _weights(side, lambda distance: np.exp(-0.5 * (distance / deviation) ** 2))

    return _linear(x, level, rows=matrix, columns=matrix)


def _motion_blur(x: jax.Array, keys: jax.Array, level: jax.Array) -> jax.Array:
    """Along the rows."""
    del keys

    def matrix(side: int, scale: float, strength: int) -> NDArray[Any]:
        half = max((8.0, 12.0, 16.0, 20.0, 24.0)[strength] * scale / 2, 0.6 + 0.3 * strength)
        return _weights(side, lambda distance: np.clip(half + 0.5 - np.abs(distance), 0, 1))

    return _linear(x, level, rows=lambda side, scale, strength: np.eye(side, dtype=np.float32), columns=matrix)


def _pixelate(x: jax.Array, keys: jax.Array, level: jax.Array) -> jax.Array:
    del keys

    def matrix(side: int, scale: float, strength: int) -> NDArray[Any]:
        del scale
        cells = max(int(side * (0.6, 0.5, 0.4, 0.3, 0.25)[strength]), 1)
        owner = np.arange(side) * cells // side
        same = (owner[:, None] == owner[None, :]).astype(np.float32)
        return same / same.sum(axis=1, keepdims=True)

    return _linear(x, level, rows=matrix, columns=matrix)


def _zoom_blur(x: jax.Array, keys: jax.Array, level: jax.Array) -> jax.Array:
    """The mean of enlargements up to a factor."""
    import jax.numpy as jnp

    del keys

    def enlarge(step: int) -> Callable[[int, float, int], NDArray[Any]]:
        def matrix(side: int, scale: float, strength: int) -> NDArray[Any]:
            del scale
            factor = 1 + ((1.11, 1.16, 1.21, 1.26, 1.31)[strength] - 1) * step / (_ZOOMS - 1)
            centre = (side - 1) / 2
            source = centre + (np.arange(side) - centre) / factor
            return np.maximum(1 - np.abs(source[:, None] - np.arange(side)[None, :]), 0).astype(np.float32)

        return matrix

    zoomed = [_linear(x, level, rows=enlarge(step), columns=enlarge(step)) for step in range(_ZOOMS)]
    return jnp.mean(jnp.stack(zoomed), axis=0)


def _linear(
    x: jax.Array,
    level: jax.Array,
    *,
    rows: Callable[[int, float, int], NDArray[Any]],
    columns: Callable[[int, float, int], NDArray[Any]],
) -> jax.Array:
    """A matrix on the rows and one on the columns, each made from (side, scale, severity from 0)."""
    import jax.numpy as jnp

    height, width = x.shape[1:3]
    scale = max(height, width) / _SIDE
    on_rows = jnp.asarray(np.stack([rows(height, scale, strength) for strength in range(SEVERITIES)]))[level]
    on_columns = jnp.asarray(np.stack([columns(width, scale, strength) for strength in range(SEVERITIES)]))[level]
    return jnp.einsum("ih,nhwc,jw->nijc", on_rows, x, on_columns)


def _weights(side: int, kernel: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[Any]:
    """Each row a weighted mean by distance; at the border over what is inside."""
    place = np.arange(side)
    matrix = kernel(place[:, None] - place[None, :]).astype(np.float32)
    return matrix / matrix.sum(axis=1, keepdims=True)


def _brightness(x: jax.Array, keys: jax.Array, level: jax.Array) -> jax.Array:
    del keys
    return x + 0.1 * (level + 1)


def _contrast(x: jax.Array, keys: jax.Array, level: jax.Array) -> jax.Array:
    del keys
    mean = x.mean(axis=(1, 2), keepdims=True)
    return mean + (x - mean) * _at(level, 0.4, 0.3, 0.2, 0.1, 0.05)


def _fog(x: jax.Array, keys: jax.Array, level: jax.Array) -> jax.Array:
    """White clouds: noise of several wavelengths, the long ones strongest."""
    import jax
    import jax.numpy as jnp

    height, width = x.shape[1:3]

    def cloud(key: jax.Array) -> jax.Array:
        total = jnp.zeros((height, width))
        for octave in range(4):
            cells = 2 ** (octave + 1)
            draw = jax.random.uniform(jax.random.fold_in(key, octave), (cells, cells))
            total = total + jax.image.resize(draw, (height, width), "linear") / 2**octave
        return total / (2 - 0.5**3)

    density = _at(level, 0.3, 0.4, 0.5, 0.6, 0.7)
    thickness = density * (0.5 + jax.vmap(cloud)(keys))[..., None]
    return x * (1 - thickness) + thickness


CORRUPTIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "gaussian_blur": _gaussian_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "pixelate": _pixelate,
    "brightness": _brightness,
    "contrast": _contrast,
    "fog": _fog,
}
"""(`float32[images, height, width, channels]` in 0..1, a key an image, level 0 to 4) to the same, not clipped."""


def _as_array(images: ImageSource, side: int) -> ArraySource:
    if len(images) > MAX_IMAGES:
        images = images.select(stratified_subset(images.labels, MAX_IMAGES, 0))
    if isinstance(images, ArraySource):
        return ArraySource(np.asarray(images.images), images.labels)
    read = [read_picture(images, index, channels=3, max_pixels=50_000_000) for index in range(len(images))]
    return ArraySource(np.stack([center_crop_resize(image, side) for image in read]), images.labels)


def _accuracy(model: Predictor, source: ArraySource) -> float:
    """Of several labels: mAP."""
    logits = model.predict_logits(source)
    if thresholds_of(model) is not None:
        return label_metrics(source.labels, logits)["mAP"]
    return float(np.mean(logits.argmax(axis=1) == source.labels))
