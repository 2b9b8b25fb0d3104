"""Small pictures of test images, as data inside a page, and heat maps beside pictures."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.base import ImageSource
from jaxtrain.data.decode import BadImageError, read_picture

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 112
"""Longest side of a thumbnail in pixels; smaller images stay as they are."""
_LOSSLESS = 64
_HEAT_SIDE = 224
"""Least side of a picture with its heat map in pixels."""
_OPACITY = 0.5


def data_uri(content: bytes, kind: str) -> str:
    """`data:KIND;base64,...`"""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail(source: ImageSource, index: int, max_pixels: int = 50_000_000) -> str | None:
    """Image `index` as a data URI; None where it cannot be read.

    Small images are PNG, to the bit; large ones are shrunk and JPEG.
    """
    from PIL import Image

    try:
        pixels = read_picture(source, index, channels=3, max_pixels=max_pixels)
    except BadImageError:
        return None
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    small = max(picture.size) <= _LOSSLESS
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    if small:
        picture.save(buffer, "PNG", optimize=True)
        return data_uri(buffer.getvalue(), "image/png")
    picture.save(buffer, "JPEG", quality=82, optimize=True)
    return data_uri(buffer.getvalue(), "image/jpeg")


def heat_thumbnail(image: NDArray[np.floating], heat: NDArray[np.floating]) -> str:
    """An image under its heat map as a data URI; arguments as of `heat_picture`."""
    buffer = io.BytesIO()
    _under_heat(_enlarged(image, _HEAT_SIDE), heat).save(buffer, "JPEG", quality=82, optimize=True)
    return data_uri(buffer.getvalue(), "image/jpeg")


def heat_picture(image: NDArray[np.floating], heat: NDArray[np.floating]) -> Image:
    """An image, and beside it the same under its heat map, which is scaled from its lowest to its highest value.

    image: `float[side, side, channels]`, 0 to 255; heat: `float[rows, columns]`, not negative.
    """
    from PIL import Image

    plain = _enlarged(image, len(image) * -(-_HEAT_SIDE // len(image)))
    both = Image.new("RGB", (2 * plain.width, plain.height))
    both.paste(plain, (0, 0))
    both.paste(_under_heat(plain, heat), (plain.width, 0))
    return both


def _enlarged(image: NDArray[np.floating], side: int) -> Image:
    from PIL import Image

    pixels = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    kind = Image.Resampling.NEAREST if side > len(image) else Image.Resampling.BILINEAR
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize((side, side), kind)


def _under_heat(plain: Image, heat: NDArray[np.floating]) -> Image:
    from matplotlib import colormaps
    from PIL import Image

    low, high = float(heat.min()), float(heat.max())
    scaled = Image.fromarray(((heat - low) / max(high - low, 1e-30)).astype(np.float32))
    values = np.asarray(scaled.resize(plain.size, Image.Resampling.BILINEAR))
    colours = Image.fromarray(colormaps["inferno"](values, bytes=True)[..., :3])
    return Image.blend(plain, colours, _OPACITY)
