"""Geometry on the host: crops and antialiased resizing of single images, `uint8[height, width, channels]`."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from jaxtrain.data.base import Images


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: Images) -> Images:
        """The part of `uint8[height, width, channels]` inside, as a view."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def scale(self, vertical: float, horizontal: float) -> Box:
        """The same part of the image at another size, to the nearest pixel."""
        top, bottom = round(self.top * vertical), round((self.top + self.height) * vertical)
        left, right = round(self.left * horizontal), round((self.left + self.width) * horizontal)
        return Box(top, left, bottom - top, right - left)


Interpolation = Literal["bilinear", "bicubic"]


def resize(image: Images, height: int, width: int, interpolation: Interpolation = "bilinear") -> Images:
    """Resizing that is antialiased on each axis that shrinks: `uint8[height, width, channels]`.

    Bicubic is Pillow's own, with which most published weights were evaluated. Bilinear is within 1 dB of
    Pillow's antialiased BILINEAR (against LANCZOS; on average closer than it) in a third of the time: up to a
    factor of 2, three taps before OpenCV's bilinear sampling widen its filter to the variance of the triangle
    that Pillow uses (factor^2 / 6 instead of 1 / 6, in input pixels); beyond 2, area averaging.
    """
    if interpolation == "bicubic":
        return _bicubic(image, height, width)
    import cv2

    channels = image.shape[2]
    tall, wide = image.shape[0] / height, image.shape[1] / width
    if max(tall, wide) > 2:
        size = (min(image.shape[1], width), min(image.shape[0], height))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    elif max(tall, wide) > 1:
        image = cv2.sepFilter2D(image, -1, _taps(wide), _taps(tall), borderType=cv2.BORDER_REPLICATE)
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image.reshape(height, width, channels)


def _taps(factor: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Three taps of variance (factor^2 - 1) / 6; none where the axis grows."""
    side = max(factor**2 - 1, 0) / 12
    return np.array([side, 1 - 2 * side, side], np.float32)


def _bicubic(image: Images, height: int, width: int) -> Images:
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    if image.dtype == np.uint16 or image.shape[2] not in (1, 3):
        kind = np.float32 if image.dtype == np.uint16 else np.uint8  # of 16 bits Pillow resizes no others
        layers = [Image.fromarray(layer.astype(kind)) for layer in np.moveaxis(image, -1, 0)]
        tall = [np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC)) for layer in layers]
        whole: Images = np.rint(np.stack(tall, axis=-1).clip(0, np.iinfo(image.dtype).max)).astype(image.dtype)
        return whole
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    return resized.reshape(height, width, image.shape[2])


def center_crop_resize(
    image: Images, size: int, crop_pct: float = 1.0, interpolation: Interpolation = "bilinear"
) -> Images:
    """The evaluation geometry: shorter side to `size / crop_pct`, then the central square, as timm does it.

    Returns `uint8[size, size, channels]`.
    """
    image = _less_elongated(image)
    height, width = image.shape[:2]
    short = max(size, math.floor(size / crop_pct))
    if height <= width:
        image = resize(image, short, max(size, short * width // height), interpolation)
    else:
        image = resize(image, max(size, short * height // width), short, interpolation)
    top, left = round((image.shape[0] - size) / 2), round((image.shape[1] - size) / 2)
    return np.ascontiguousarray(Box(top, left, size, size).cut(image))


def _less_elongated(image: Images) -> Images:
    """Without what is far outside the central square, so that a line of pixels costs no more than other images.

    What remains is at least 4 times as long as wide. An even number of squares goes at each end, so that the rest is
    sampled, and rounded, as in the whole image.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    cut = max((max(height, width) // short - 4) // 4, 0) * 2 * short
    return image[cut : height - cut] if height > width else image[:, cut : width - cut]


def keeps_as_it_is(shape: tuple[int, ...], size: int, crop_pct: float) -> bool:
    """Whether `center_crop_resize` would give images of that shape, [..., height, width, channels], back unchanged."""
    return shape[-3:-1] == (size, size) and math.floor(size / crop_pct) == size


def crop_generator(seed: int, place: int) -> np.random.Generator:
    """The random numbers of the image at `place` of the endless training sequence: 15 us to make."""
    # A counter of its own keeps these numbers apart from `Order`'s, whose keys are (seed, epoch).
    key = np.array([seed, place], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, 1]))


def random_crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """The Inception-style crop (Szegedy et al. 2015) of a `height` x `width` image.

    Its share of the area is uniform in `scale`, the logarithm of width / height uniform in that of `ratio`;
    after ten tries that do not fit, the central crop of the nearest allowed aspect ratio.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area, aspect, down, right in rng.random((10, 4)).tolist():
        pixels = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        shape = math.exp(low + (high - low) * aspect)
        wide, tall = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < wide <= width and 0 < tall <= height:
            return Box(int(down * (height - tall + 1)), int(right * (width - wide + 1)), tall, wide)
    tall = min(height, max(1, round(width / ratio[0])))
    wide = min(width, max(1, round(height * ratio[1])))
    return Box((height - tall) // 2, (width - wide) // 2, tall, wide)


def random_resized_crop(
    image: Images,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Images:
    """A random crop (see `random_crop_box`) as `uint8[size, size, channels]`; only the crop is resampled."""
    box = random_crop_box(image.shape[0], image.shape[1], rng, scale, ratio)
    return resize(box.cut(image), size, size)
