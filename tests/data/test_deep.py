"""Images of 16 bits, and of other numbers of channels than 1 and 3: exact to the last bit, or one line."""

import io

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from jaxtrain.config import AugmentConfig, DataConfig
from jaxtrain.data.arrays import from_arrays
from jaxtrain.data.assemble import convert_channels
from jaxtrain.data.augment import augment, prepare_eval, resolve_augment
from jaxtrain.data.decode import BadImageError, decode_16_bits, decode_image, to_channels
from jaxtrain.data.order import Order
from jaxtrain.data.sources import load_dataset
from jaxtrain.data.stream import eval_batches, train_batches
from jaxtrain.data.transforms import resize
from jaxtrain.errors import UserError

RNG = np.random.default_rng(0)


def noise(*shape, kind=np.uint16):
    return RNG.integers(0, np.iinfo(kind).max + 1, shape).astype(kind)


def encoded(pixels, kind):
    order = [2, 1, 0, 3][: pixels.shape[-1]] if pixels.shape[-1] > 1 else [0]
    return cv2.imencode(kind, pixels[..., order])[1].tobytes()


@pytest.mark.parametrize("kind", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_files_of_16_bits_keep_them(kind, channels):
    pixels = noise(5, 7, channels)
    data = encoded(pixels, kind)
    assert np.array_equal(decode_16_bits(data, channels=channels, max_pixels=100), pixels)
    three = decode_16_bits(data, channels=3, max_pixels=100)
    assert np.array_equal(three, pixels if channels == 3 else np.repeat(pixels, 3, -1))


def test_what_has_8_bits_is_scaled_to_16():
    data = encoded(noise(4, 4, 3, kind=np.uint8), ".png")
    deep = decode_16_bits(data, channels=3, max_pixels=100)
    assert np.array_equal(deep, decode_image(data, channels=3, max_pixels=100).astype(np.uint16) * 257)


def test_an_orientation_is_undone_at_16_bits_too():
    pixels = noise(4, 6, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "TIFF"):
        Image.fromarray(pixels[..., 0]).save(file := io.BytesIO(), kind, exif=exif)
        assert np.array_equal(decode_16_bits(file.getvalue(), channels=1, max_pixels=100), np.rot90(pixels, -1)), kind


@pytest.mark.parametrize("kind", [".png", ".tiff"])
def test_files_of_16_bits_that_cannot_be_read(kind):
    data = encoded(noise(40, 40, 3), kind)
    with pytest.raises(BadImageError):
        decode_16_bits(data[: len(data) // 2], channels=3, max_pixels=10_000)
    with pytest.raises(BadImageError, match="max_pixels"):
        decode_16_bits(data, channels=3, max_pixels=100)
    with pytest.raises(BadImageError, match="6 are needed"):
        decode_image(data, channels=6, max_pixels=10_000)


@pytest.mark.parametrize("given", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_converted_as_at_8_bits(given, channels):
    shallow = noise(6, 6, given, kind=np.uint8)
    deep = to_channels(shallow.astype(np.uint16) * 257, channels)
    np.testing.assert_allclose(deep / 257, to_channels(shallow, channels), atol=1)
    whole = convert_channels(shallow.astype(np.uint16)[None] * 257, channels)
    assert np.array_equal(whole[0], deep)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(5, 6), (13, 9), (30, 31)])
def test_every_channel_is_resized_as_alone(interpolation, size):
    many = 60 + noise(20, 18, 7, kind=np.uint8) // 2  # Pillow cuts what overshoots at 8 bits, axis by axis
    alone = np.concatenate([resize(np.ascontiguousarray(many[..., [i]]), *size, interpolation) for i in range(7)], -1)
    np.testing.assert_allclose(resize(many, *size, interpolation), alone, atol=1)
    deep = resize(many.astype(np.uint16) * 257, *size, interpolation)
    np.testing.assert_allclose(deep / 257, alone, atol=1.5)


@pytest.mark.slow
def test_16_bits_reach_the_network_as_8_do():
    shallow = noise(4, 12, 12, 5, kind=np.uint8)
    deep = shallow.astype(np.uint16) * np.uint16(257)
    np.testing.assert_allclose(prepare_eval(deep), prepare_eval(shallow), atol=1e-7)
    assert len(np.unique(prepare_eval(np.arange(65536, dtype=np.uint16)))) == 65536
    options = AugmentConfig(policy="none", hflip=0.5)
    config = resolve_augment(options, image_size=12, flips=True, channels=5, bits=16)
    keys = jax.random.split(jax.random.key(0), 4)
    one, other = (augment(config, keys, images, image_size=12) for images in (deep, shallow))
    np.testing.assert_allclose(one, other, atol=0.01)


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"randaugment_layers": 1}, {"channels": 3, "bits": 16}, "randaugment_layers: for images of 8 bits"),
        ({"randaugment_layers": 1}, {"channels": 6}, "randaugment_layers: for images of 1 or 3 channels"),
        ({"color_jitter": 0.5}, {"channels": 6}, "color_jitter: for images of 1 or 3 channels"),
    ],
)
def test_augmentations_that_cannot_say_so(options, kind, told):
    with pytest.raises(UserError, match=told):
        resolve_augment(AugmentConfig(**options), image_size=8, flips=True, **kind)


@pytest.mark.parametrize(("channels", "natural"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (16, 16)])
def test_arrays_keep_their_channels(channels, natural):
    data = from_arrays(noise(40, 20, 20, channels), np.arange(40) % 2, config=DataConfig(test_fraction=0.2))
    assert (data.channels, data.bits) == (natural, 16)
    for split in (data.train, data.val, data.open_test()):
        assert split.read(0).shape == (20, 20, natural)
        assert split.read(0).dtype == np.uint16


@pytest.mark.parametrize(
    ("shape", "options", "told"),
    [
        ((4, 6, 32, 32), {}, r"not \[images, channels, height, width\]"),
        ((4, 3, 8, 8), {}, r"not \[images, channels, height, width\].*data\.channels 8"),
        ((4, 32, 32, 17), {}, "at most 16 channels"),
        ((4, 32, 32, 6), {"channels": 5}, r"data\.channels 5: the images .* have 6"),
        ((4, 32), {}, "must be"),
        ((4, 32, 32, 3), {"channels": 2}, r"data\.channels 2: the images .* have 3"),
    ],
)
def test_shapes_that_are_no_images(shape, options, told):
    with pytest.raises(UserError, match=told):
        from_arrays(noise(*shape), [0, 1, 0, 1], config=DataConfig(val_fraction=0.0, **options))


def test_8_bits_and_declared_channels_are_as_asked():
    small = from_arrays(noise(4, 3, 8, 8), [0, 1, 0, 1], config=DataConfig(val_fraction=0, channels=8))
    assert small.channels == 8
    four = from_arrays(noise(4, 9, 9, 4), [0, 1, 0, 1], config=DataConfig(val_fraction=0, channels=4))
    assert four.channels == 4
    with pytest.raises(UserError, match=r"data\.bits 16 keeps them, or \(images // 257\)"):
        from_arrays(noise(4, 9, 9), [0, 1, 0, 1], config=DataConfig(val_fraction=0, bits=8))
    pixels = noise(4, 9, 9, kind=np.uint8)
    deep = from_arrays(pixels, [0, 1, 0, 1], config=DataConfig(val_fraction=0, bits=16))
    assert np.array_equal(deep.train.images[..., 0], pixels.astype(np.uint16) * 257)
    ranged = from_arrays(
        pixels / 255.0, [0, 1, 0, 1], config=DataConfig(val_fraction=0, bits=16, value_range=(0.0, 1.0))
    )
    assert np.array_equal(ranged.train.images, deep.train.images)


def test_a_folder_of_16_bits_is_streamed_whole(tmp_path):
    pixels = noise(8, 6, 6, 3)
    for i, image in enumerate(pixels):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(image, ".png"))
    data = load_dataset(DataConfig(name=f"folder:{tmp_path}", val_fraction=0, bits=16))
    assert data.bits == 16
    order = [int(path.split("/")[-1][0]) for path in data.train.source.paths]
    options = {"image_size": 6, "channels": 3, "workers": 0, "pixel_type": "uint16"}
    with eval_batches(data.train, batch_size=8, **options) as batches:
        assert np.array_equal(next(batches).images, pixels[order])


def test_training_batches_have_many_channels():
    data = from_arrays(noise(16, 20, 20, 6), np.arange(16) % 2, config=DataConfig(val_fraction=0))
    order = Order(16, 4, seed=0)
    options = {"image_size": 20, "channels": 6, "crop": "center", "seed": 0, "workers": 0, "pixel_type": "uint16"}
    with train_batches(data.train, order, stop_step=1, **options) as batches:
        batch = next(batches)
    assert np.array_equal(batch.images, data.train.images[batch.indices])
