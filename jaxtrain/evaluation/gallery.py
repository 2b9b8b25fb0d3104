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


def heat_picture(image: NDArray[np.floating], heat: NDArray[np.floating]) -> Image:
    """An image, and beside it the same under its heat map, which is scaled to its highest value.

    image: `float[side, side, channels]`, 0 to 255; heat: `float[rows, columns]`, not negative.
    """
    from matplotlib import colormaps
    from PIL import Image

    side = len(image) * -(-_HEAT_SIDE // len(image))
    pixels = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    plain = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    scaled = Image.fromarray((heat / max(float(heat.max()), 1e-30)).astype(np.float32))
    values = np.asarray(scaled.resize((side, side), Image.Resampling.BILINEAR))
    colours = Image.fromarray(colormaps["inferno"](values, bytes=True)[..., :3])
    both = Image.new("RGB", (2 * side, side))
    both.paste(plain, (0, 0))
    both.paste(Image.blend(plain, colours, _OPACITY), (side, 0))
    return both
