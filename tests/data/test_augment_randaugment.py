"""RandAugment, operation by operation, against PIL at several magnitudes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from PIL import Image, ImageEnhance, ImageOps

from jaxtrain.data import randaugment as ra

MAGNITUDES = (0.0, 3.0, 6.5, 10.0)


def _affine(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _enhance(name):
    return lambda image, level: getattr(ImageEnhance, name)(image).enhance(1 + 0.9 * level)


WITH_PIL = {
    "Identity": lambda image, level: image,
    "AutoContrast": lambda image, level: ImageOps.autocontrast(image),
    "Equalize": lambda image, level: ImageOps.equalize(image),
    "Rotate": lambda image, level: image.rotate(30 * level, Image.Resampling.BILINEAR),
    "Solarize": lambda image, level: ImageOps.solarize(image, round(256 * (1 - abs(level)))),
    "Color": _enhance("Color"),
    "Posterize": lambda image, level: ImageOps.posterize(image, 8 - round(4 * abs(level))),
    "Contrast": _enhance("Contrast"),
    "Brightness": _enhance("Brightness"),
    "Sharpness": _enhance("Sharpness"),
    "ShearX": lambda image, level: _affine(image, 1, 0.3 * level, 0, 0, 1, 0),
    "ShearY": lambda image, level: _affine(image, 1, 0, 0, 0.3 * level, 1, 0),
    "TranslateX": lambda image, level: _affine(image, 1, 0, 150 / 331 * level * image.width, 0, 1, 0),
    "TranslateY": lambda image, level: _affine(image, 1, 0, 0, 0, 1, 150 / 331 * level * image.height),
}


def _images(channels):
    """Dull, bright, dark, one-valued and noisy images, `uint8[5, 24, 30, channels]`."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:24, 0:30]
    waves = np.stack([np.sin(x / 4 + c) + np.cos(y / (2 + c)) for c in range(channels)], -1)
    stack = [
        120 + 20 * waves,
        200 + 40 * waves,
        30 + 40 * waves,
        np.full(waves.shape, 90),
        255 * rng.random(waves.shape),
    ]
    return np.clip(np.stack(stack), 0, 255).astype(np.uint8)


def _apply(images, name, sign, magnitude):
    batch = len(images)
    operations = jnp.full((1, batch), ra.OPERATIONS.index(name), jnp.int32)
    return np.asarray(_jitted(images, operations, jnp.full((1, batch), sign), jnp.float32(magnitude)))


_jitted = jax.jit(ra.apply_operations)


def test_the_operations_are_the_papers_14():
    assert list(ra.OPERATIONS) == list(WITH_PIL)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", WITH_PIL)
def test_operation_is_pils(name, channels):
    images = _images(channels)
    for magnitude in MAGNITUDES:
        for sign in (-1.0, 1.0):
            got = _apply(images, name, sign, magnitude).astype(int)
            for image, result in zip(images, got, strict=True):
                picture = Image.fromarray(image if channels == 3 else image[..., 0])
                # The direction is drawn at random, so that PIL may turn the other way for the same sign.
                level = -sign * magnitude / 10 if name == "Rotate" else sign * magnitude / 10
                expected = np.asarray(WITH_PIL[name](picture, level), int).reshape(image.shape)
                assert np.abs(result - expected).max() <= 1, (magnitude, sign)


def test_most_operations_change_images_and_magnitude_0_does_not():
    images = _images(3)
    for name in ra.OPERATIONS:
        unchanged = (_apply(images, name, 1.0, 0.0) == images).all()
        assert unchanged == (name not in ("AutoContrast", "Equalize")), name
        assert (_apply(images, name, 1.0, 9.0) != images).any() == (name != "Identity"), name


def test_each_image_gets_its_own_operation_and_the_layers_follow_each_other():
    images = np.repeat(_images(3)[1:2], len(ra.OPERATIONS), axis=0)
    first = jnp.arange(len(images), dtype=jnp.int32)
    second = first[::-1]
    signs = jnp.ones((2, len(images)))
    got = np.asarray(_jitted(images, jnp.stack([first, second]), signs, jnp.float32(7)))
    for i, result in enumerate(got):
        once = _apply(images[:1], ra.OPERATIONS[int(first[i])], 1.0, 7.0)
        twice = _apply(once, ra.OPERATIONS[int(second[i])], 1.0, 7.0)
        np.testing.assert_array_equal(result, twice[0])


def test_the_form_for_accelerators_gives_the_same():
    images = np.concatenate([_images(3)] * 3)
    rng = np.random.default_rng(0)
    operations = jnp.asarray(rng.integers(0, len(ra.OPERATIONS), (2, len(images))), jnp.int32)
    levels = jnp.asarray(rng.choice([-0.8, 0.8], (2, len(images))), jnp.float32)
    looped = np.asarray(jax.jit(ra._looped)(images, operations, levels))
    unrolled = np.asarray(jax.jit(ra._unrolled)(images, operations, levels))
    # Rounding differs between programs: a pixel on the border of the input may fall to either side.
    assert (looped == unrolled).mean() > 0.999


@pytest.mark.parametrize("channels", [1, 3])
def test_the_form_for_tpus_gives_the_same_to_one_grey_level(channels, monkeypatch):
    images = np.concatenate([_images(channels)] * len(ra.OPERATIONS))
    operations = jnp.arange(len(images), dtype=jnp.int32)[None] % len(ra.OPERATIONS)
    levels = jnp.asarray(np.random.default_rng(0).choice([-0.8, 0.8], operations.shape), jnp.float32)
    usual = np.asarray(jax.jit(ra._unrolled)(images, operations, levels), int)

    def for_tpu(*arguments, default, tpu=None, cpu=None):
        return (tpu or default)(*arguments)

    monkeypatch.setattr(lax, "platform_dependent", for_tpu)
    text = str(jax.make_jaxpr(lambda *a: ra._unrolled(*a))(images, operations, levels))
    assert "scatter" not in text
    assert "dot_general" in text
    got = np.asarray(jax.jit(lambda *a: ra._unrolled(*a))(images, operations, levels), int)
    assert np.abs(got - usual).max() <= 1


def test_operations_are_drawn_evenly():
    """An image for which most operations give different results tells which one was drawn."""
    count = 2800
    images = np.repeat(_images(3)[:1], count, axis=0)
    by_name = {name: {_apply(images[:1], name, sign, 8.0).tobytes() for sign in (-1.0, 1.0)} for name in ra.OPERATIONS}
    keys = jax.random.split(jax.random.key(3), count)
    got = jax.jit(lambda k, x: ra.randaugment(x, k, 16, layers=1, magnitude=8.0))(keys, images)
    drawn = [image.tobytes() for image in np.asarray(got)[:, None]]
    expected, spread = count / len(ra.OPERATIONS), np.sqrt(count / len(ra.OPERATIONS))
    for name, results in by_name.items():
        assert abs(sum(result in results for result in drawn) - expected) < 4 * spread, name
