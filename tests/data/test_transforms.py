import math

import numpy as np
import pytest
from PIL import Image

from jaxtrain.data import transforms
from jaxtrain.data.transforms import (
    Box,
    center_crop_resize,
    crop_generator,
    keeps_as_it_is,
    random_crop_box,
    random_resized_crop,
    resize,
)


def _photo(height, width, channels=3):
    """Smooth fields, edges and fine texture: what photographs are made of."""
    rng = np.random.default_rng(0)
    picture = np.zeros((height, width, channels))
    for cells, strength in ((4, 60), (16, 30), (80, 12)):
        field = rng.normal(size=(cells, cells, channels)).astype(np.float32)
        for c in range(channels):
            plane = Image.fromarray(field[..., c]).resize((width, height), Image.Resampling.BICUBIC)
            picture[..., c] += strength * np.asarray(plane)
    y, x = np.mgrid[0:height, 0:width]
    picture[(x - width / 2) ** 2 + (y - height / 3) ** 2 < (height / 5) ** 2] += 50
    return (picture + 128 + rng.normal(scale=4, size=(height, width, 1))).clip(0, 255).astype(np.uint8)


def _pillow(image, height, width, how):
    return np.asarray(Image.fromarray(image).resize((width, height), how))


def _psnr(a, b):
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return 10 * math.log10(255**2 / max(error, 1e-9))


SIZES = [(375, 500), (318, 318), (240, 260), (640, 480), (1200, 900), (300, 200), (150, 160), (224, 400)]


def test_resizing_is_no_worse_than_pillows_antialiased_filters():
    gains = []
    for height, width in SIZES:
        image = _photo(height, width)
        ours = resize(image, 224, 224)
        bilinear = _pillow(image, 224, 224, Image.Resampling.BILINEAR)
        box = _pillow(image, 224, 224, Image.Resampling.BOX)
        best = _pillow(image, 224, 224, Image.Resampling.LANCZOS)
        assert _psnr(ours, bilinear) > 49
        assert _psnr(ours, best) > _psnr(box, best) + 2
        gains.append(_psnr(ours, best) - _psnr(bilinear, best))
    assert min(gains) > -1.0
    assert np.mean(gains) > 0


@pytest.mark.parametrize("factor", [1.42, 1.67, 1.96, 2.5, 3, 4.3])
@pytest.mark.parametrize("vertical", [False, True])
def test_detail_too_fine_for_the_output_does_not_alias(factor, vertical):
    side = int(224 * factor)
    for frequency in (0.8, 0.9, 0.95):  # of the input's own limit: half a cycle a pixel
        wave = 128 + 100 * np.cos(np.pi * frequency * np.arange(side))
        grating = np.broadcast_to(wave[:, None, None], (side, side, 3)).astype(np.uint8)
        if not vertical:
            grating = np.ascontiguousarray(grating.transpose(1, 0, 2))
        left = resize(grating, 224, 224).std()
        assert left <= _pillow(grating, 224, 224, Image.Resampling.BOX).std() + 0.1
        assert left < 0.45 * grating.std()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(10, 10), (5, 40), (40, 5), (1, 1), (20, 10), (21, 43)])
def test_flat_stays_flat_and_shapes_hold(height, width, channels):
    image = np.full((height, width, channels), 77, np.uint8)
    out = resize(image, 20, 10)
    assert out.shape == (20, 10, channels)
    assert out.dtype == np.uint8
    assert np.ptp(out) == 0
    assert abs(int(out[0, 0, 0]) - 77) <= 1


def test_same_size_is_untouched():
    image = _photo(64, 48)
    np.testing.assert_array_equal(resize(image, 64, 48), image)


def test_resizing_does_not_shift():
    # The centre of mass of a blob, in units of the picture, stays where it is.
    y, x = np.mgrid[0:400, 0:300]
    blob = (255 * np.exp(-((x - 100) ** 2 + (y - 250) ** 2) / 800)).astype(np.uint8)[..., None]
    for height, width in ((224, 224), (112, 112), (300, 260), (500, 500)):
        out = resize(blob, height, width)[..., 0].astype(float)
        rows, columns = np.mgrid[0:height, 0:width]
        assert abs((out * (rows + 0.5)).sum() / out.sum() / height - 250.5 / 400) < 1e-3
        assert abs((out * (columns + 0.5)).sum() / out.sum() / width - 100.5 / 300) < 1e-3


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (224, 224), (100, 90), (30, 300), (225, 224)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_center_crop_equals_pillow(height, width, crop_pct):
    image = _photo(height, width)
    out = center_crop_resize(image, 224, crop_pct)
    short = int(224 / crop_pct)
    tall, wide = (short, short * width // height) if height <= width else (short * height // width, short)
    whole = Image.fromarray(image).resize((wide, tall), Image.Resampling.BILINEAR)
    left, top = round((wide - 224) / 2), round((tall - 224) / 2)
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224)))
    assert out.shape == (224, 224, 3)
    assert out.flags.c_contiguous
    assert _psnr(out, expected) > 40


def test_center_crop_of_the_right_size_is_the_image():
    image = _photo(32, 32, 1)
    np.testing.assert_array_equal(center_crop_resize(image, 32), image)


def _boxes(height, width, count=4000, **options):
    return [random_crop_box(height, width, crop_generator(1, i), **options) for i in range(count)]


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 500), (64, 48)])
def test_boxes_lie_inside_and_follow_the_published_distribution(height, width):
    boxes = np.array(_boxes(height, width))
    top, left, tall, wide = boxes.T
    assert (boxes >= 0).all()
    assert ((top + tall <= height) & (left + wide <= width)).all()
    assert ((tall > 0) & (wide > 0)).all()
    shape = wide / tall
    rounding = 1 + 4 / min(height, width)
    assert (shape > 3 / 4 / 1.1).all()
    assert (shape < 4 / 3 * 1.1).all()
    area = tall * wide / (height * width)
    assert area.min() < 0.08 * rounding**4
    # Small areas always fit, so there the density is that of a uniform distribution, up to the rejected rest.
    below = [np.mean((area > a) & (area <= a + 0.1)) for a in (0.1, 0.2, 0.3, 0.4)]
    assert np.ptp(below) < 0.035
    # Every corner can be reached.
    assert (top == 0).any()
    assert (left == 0).any()
    assert (top + tall == height).any()
    assert (left + wide == width).any()


def test_box_equals_a_plain_transcription_of_the_method():
    rng, again = crop_generator(5, 9), crop_generator(5, 9)
    box = random_crop_box(375, 500, rng)
    area, aspect, down, right = again.random((10, 4))[0]
    pixels = 375 * 500 * (0.08 + 0.92 * area)
    shape = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * aspect)
    tall, wide = round(math.sqrt(pixels / shape)), round(math.sqrt(pixels * shape))
    assert tall <= 375
    assert wide <= 500
    assert box == (int(down * (376 - tall)), int(right * (501 - wide)), tall, wide)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(100, 1000, (0, 433, 100, 133)), (1000, 100, (433, 0, 133, 100)), (1, 1, (0, 0, 1, 1))],
)
def test_what_never_fits_falls_back_to_the_centre(height, width, expected):
    assert random_crop_box(height, width, crop_generator(0, 0), scale=(1.0, 1.0)) == expected


def test_only_the_crop_is_resampled():
    image = np.zeros((100, 100, 3), np.uint8)
    box = random_crop_box(100, 100, crop_generator(0, 3))
    Box(*box).cut(image)[:] = 200
    assert (random_resized_crop(image, 32, crop_generator(0, 3)) >= 199).all()


def test_random_numbers_follow_seed_and_place_alone():
    draws = {(seed, place): tuple(crop_generator(seed, place).random(4)) for seed in range(4) for place in range(50)}
    assert len(set(draws.values())) == len(draws)
    assert draws[3, 49] == tuple(crop_generator(3, 49).random(4))
    assert crop_generator(2**32 - 1, 2**50).random() < 1
    # Not the numbers that shuffle epoch 3 of the same seed.
    shuffle = np.random.Generator(np.random.Philox(key=np.array([1, 3], np.uint64)))
    assert tuple(shuffle.random(4)) != draws[1, 3]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (224, 224), (100, 130)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_bicubic_evaluation_is_pillows_bit_for_bit(height, width, channels, crop_pct):
    """torchvision's Resize and CenterCrop on a Pillow image, which timm evaluates with, written out."""
    image = _photo(height, width, channels)
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    short = math.floor(224 / crop_pct)
    tall, wide = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
    resized = picture.resize((wide, tall), Image.Resampling.BICUBIC)
    top, left = round((tall - 224) / 2), round((wide - 224) / 2)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224))).reshape(224, 224, channels)
    np.testing.assert_array_equal(center_crop_resize(image, 224, crop_pct, "bicubic"), expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("shape", "crop_pct"), [((224, 224), 1.0), ((224, 224), 0.99), ((8, 8), 0.95), ((8, 9), 1.0)])
def test_what_is_said_to_stay_as_it_is_does(shape, crop_pct, interpolation):
    image = _photo(*shape)
    same = np.array_equal(center_crop_resize(image, shape[0], crop_pct, interpolation), image)
    assert keeps_as_it_is((5, *image.shape), shape[0], crop_pct) == same


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(10, 300), (300, 10), (3, 1000), (64, 641), (1, 400)])
def test_of_elongated_images_only_the_part_around_the_centre_is_resized(monkeypatch, height, width, interpolation):
    image, sizes, whole = _photo(height, width), [], transforms.resize
    scaled = whole(image, *_short_to_32(height, width), interpolation)
    top, left = round((scaled.shape[0] - 32) / 2), round((scaled.shape[1] - 32) / 2)
    monkeypatch.setattr(transforms, "resize", lambda *a: sizes.append(a[1] * a[2]) or whole(*a))
    out = center_crop_resize(image, 32, 1.0, interpolation)
    assert sizes[0] <= 8 * 32 * 32
    difference = np.abs(out.astype(int) - scaled[top : top + 32, left : left + 32])
    assert difference.max() <= (0 if max(height, width) % min(height, width) == 0 else 3)


def _short_to_32(height, width):
    return (32, 32 * width // height) if height <= width else (32 * height // width, 32)


def test_a_line_of_pixels_costs_no_more_than_other_images():
    line = np.full((1, 65_535, 3), 128, np.uint8)
    assert (center_crop_resize(line, 224) == 128).all()  # of the whole line resized: 10 GB
