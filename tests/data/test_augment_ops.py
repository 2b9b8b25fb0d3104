"""Image operations against PIL and NumPy, which know nothing of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxtrain.data import ops


@pytest.fixture(scope="module")
def photo():
    """A smooth colour image with edges and texture, `uint8[40, 56, 3]`."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:40, 0:56]
    waves = np.stack([np.sin(x / 5 + c) + np.cos(y / (3 + c)) for c in range(3)], -1)
    image = 128 + 50 * waves + 60 * (x > y)[..., None] + rng.normal(0, 8, (40, 56, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def vector(*values):
    return jnp.array(values, jnp.float32)


axis_taps = jax.jit(ops.axis_taps, static_argnums=(0, 1), static_argnames="taps")
centred_affine = jax.jit(ops.centred_affine, static_argnums=0)
affine = jax.jit(ops.affine)
color_jitter = jax.jit(ops.color_jitter)
random_erasing = jax.jit(ops.random_erasing, static_argnums=2)
resample = jax.jit(ops.resample)
crop_boxes = jax.jit(ops.random_crop_boxes, static_argnums=(1, 2, 3))
uniforms = jax.jit(ops.uniforms, static_argnums=(1, 2))


def taps(size_in, size_out, boxes, flip=False, shift=0.0, count=None):
    start, length = (jnp.array(v, jnp.float32) for v in zip(*boxes, strict=True))
    return axis_taps(
        size_in,
        size_out,
        start=start,
        length=length,
        shift=jnp.full(len(boxes), shift, jnp.float32),
        flip=jnp.full(len(boxes), flip),
        taps=count or ops.taps_needed(size_in, size_out),
    )


BOXES = [
    (0, 0, 40, 56),
    (3, 5, 30, 20),
    (10, 30, 7, 9),
    (39, 55, 1, 1),
    (0, 0, 40, 3),
]  # top, left, height, width


@pytest.mark.parametrize("method", [ops.resample, ops._resample_dense], ids=["gather", "dense"])
@pytest.mark.parametrize("size", [9, 64])
def test_crop_and_resize_is_pils(photo, method, size):
    rows = taps(40, size, [(top, tall) for top, _, tall, _ in BOXES])
    columns = taps(56, size, [(left, wide) for _, left, _, wide in BOXES])
    got = np.asarray(jax.jit(method)(np.stack([photo] * len(BOXES)), rows, columns))
    for (top, left, tall, wide), image in zip(BOXES, got, strict=True):
        crop = Image.fromarray(photo).crop((left, top, left + wide, top + tall))
        expected = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR), np.float32)
        assert np.abs(image - expected).max() <= 1.01


def test_flip_and_shift_move_pixels_exactly_and_fill_with_black(photo):
    square = photo[:, :40]
    rows = taps(40, 40, [(0, 40)], shift=3.0, count=1)
    columns = taps(40, 40, [(0, 40)], shift=-5.0, flip=True, count=1)
    got = np.asarray(resample(square[None], rows, columns))[0]
    padded = np.zeros((60, 60, 3))
    padded[10:50, 10:50] = square
    np.testing.assert_array_equal(got, padded[13:53, 5:45][:, ::-1])


def test_dense_equals_gather_with_shift_and_flip(photo):
    rows, columns = taps(40, 24, [(2, 31)], shift=2.0), taps(56, 24, [(9, 40)], shift=-4.0, flip=True)
    gathered = ops._resample_gather(photo[None], rows, columns)
    np.testing.assert_allclose(ops._resample_dense(photo[None], rows, columns), gathered, atol=1e-3)


MATRICES = {
    "identity": (1, 0, 0, 0, 1, 0),
    "shear": (1, 0.3, 0, 0, 1, 0),
    "translate": (1, 0, 7.3, 0, 1, -4.6),
    "turn": (0.9, -0.5, 8.0, 0.4, 1.1, -6.0),
}


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_affine_is_pils(photo, matrix):
    got = np.asarray(affine(photo[None], jnp.array(matrix, jnp.float32).reshape(1, 2, 3)))[0]
    expected = Image.fromarray(photo).transform(
        (56, 40), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(0, 0, 0)
    )
    difference = np.abs(got - np.asarray(expected, np.float32))
    assert difference.max() <= 1.01


def test_rotation_and_zoom_about_the_centre_are_pils(photo):
    """Enlarging by `scale` is taking a smaller box about the centre."""
    square = photo[:, :40]
    still = (vector(0, 0), vector(0, 0)), (jnp.zeros(2, bool), jnp.zeros(2, bool))
    angle, scale = 17.0, 1.25
    matrix = centred_affine(
        (40, 40),
        angle=-jnp.deg2rad(vector(angle, 0)),
        scale=vector(1, scale),
        shift=still[0],
        flip=still[1],
    )
    turned, enlarged = np.asarray(affine(np.stack([square, square]), matrix))
    picture = Image.fromarray(square)
    by_pil = {
        "ccw": np.asarray(picture.rotate(angle, Image.Resampling.BILINEAR), np.float32),
        "cw": np.asarray(picture.rotate(-angle, Image.Resampling.BILINEAR), np.float32),
    }
    assert min(np.abs(turned - other).max() for other in by_pil.values()) <= 1.01
    side = 40 / scale
    box = ((40 - side) / 2, (40 - side) / 2, (40 + side) / 2, (40 + side) / 2)
    expected = np.asarray(picture.resize((40, 40), Image.Resampling.BILINEAR, box=box), np.float32)
    assert np.abs(enlarged - expected)[2:-2, 2:-2].max() <= 1.01


def test_one_affine_equals_flip_then_shift_after_it(photo):
    square = photo[:, :40]
    matrix = centred_affine(
        (40, 40),
        angle=vector(0),
        scale=vector(1),
        shift=(vector(3), vector(-5)),
        flip=(jnp.array([False]), jnp.array([True])),
    )
    rows, columns = (
        taps(40, 40, [(0, 40)], shift=3.0, count=1),
        taps(40, 40, [(0, 40)], shift=-5.0, flip=True, count=1),
    )
    np.testing.assert_array_equal(affine(square[None], matrix), resample(square[None], rows, columns))


@pytest.mark.parametrize(
    ("size", "area", "ratio"), [((64, 64), (0.08, 1), (0.75, 4 / 3)), ((48, 80), (0.3, 0.6), (0.5, 2))]
)
def test_crop_boxes_follow_torchvisions_distribution(size, area, ratio):
    """The same rejection scheme written one image at a time in NumPy, compared by two-sample tests."""
    from scipy import stats

    count = 4000
    draws = uniforms(keys(count), 0, 2 * ops.ATTEMPTS + 2)
    top, tall, left, wide = (np.asarray(v) for v in crop_boxes(draws, size, area, ratio))
    assert (top >= 0).all()
    assert (top + tall <= size[0]).all()
    assert (left >= 0).all()
    assert (left + wide <= size[1]).all()

    rng = np.random.default_rng(1)
    expected = []
    for _ in range(count):
        for _ in range(10):
            pixels = size[0] * size[1] * rng.uniform(*area)
            aspect = np.exp(rng.uniform(*np.log(ratio)))
            h, w = round(np.sqrt(pixels / aspect)), round(np.sqrt(pixels * aspect))
            if 0 < h <= size[0] and 0 < w <= size[1]:
                expected.append((h, w, rng.integers(0, size[0] - h + 1), rng.integers(0, size[1] - w + 1)))
                break
    h, w, i, j = np.array(expected).T
    for got, want in [(tall * wide, h * w), (wide / tall, w / h), (top, i), (left, j)]:
        assert stats.ks_2samp(got, want).pvalue > 1e-3


def test_crop_where_nothing_fits_is_the_largest_centred_one():
    draws = uniforms(keys(4), 0, 2 * ops.ATTEMPTS + 2)
    boxes = crop_boxes(draws, (20, 200), (1.0, 1.0), (0.75, 4 / 3))
    for got, want in zip(boxes, (0, 20, 86, 27), strict=True):
        assert np.asarray(got).tolist() == pytest.approx([want] * 4, abs=1)


def test_color_jitter_is_torchvisions_formulas(photo):
    draws = np.array([[0.9, 0.2, 0.7]], np.float32)
    brightness, contrast, saturation = 1 + 0.4 * (2 * draws[0] - 1)
    x = np.clip(photo.astype(np.float64) * brightness, 0, 255)
    weights = np.array([0.2989, 0.587, 0.114])
    x = np.clip(contrast * x + (1 - contrast) * (x @ weights).mean(), 0, 255)
    x = np.clip(saturation * x + (1 - saturation) * (x @ weights)[..., None], 0, 255)
    np.testing.assert_allclose(color_jitter(photo[None], draws, 0.4)[0], x, atol=2e-2)
    grey = photo[None, :, :, :1]
    assert color_jitter(grey, draws, 0.4).shape == grey.shape
    np.testing.assert_array_equal(color_jitter(grey, draws, 0.0), grey)


def test_random_erasing_fills_a_box_of_noise():
    count, side = 600, 24
    images = jnp.full((count, side, side, 3), 77, jnp.uint8)
    got = np.asarray(random_erasing(images, keys(count), 8, 0.25))
    changed = (got != 77).any(-1)
    erased = changed.any((1, 2))
    assert abs(erased.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / count)
    noise = []
    for image, mask in zip(got[erased], changed[erased], strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box != 77).any(-1).mean() > 0.98  # one solid box: a noise pixel is grey 77 once in 256^3
        area = box.shape[0] * box.shape[1] / side**2
        assert 0.01 < area < 0.36
        noise.append(box.ravel())
    levels = np.concatenate(noise)
    assert levels.min() == 0
    assert levels.max() == 255
    assert abs(levels.mean() - 127.5) < 1
    assert (levels == np.round(levels)).all()
