"""Small pictures of test images, as data inside a page."""

from __future__ import annotations

import base64
import io

import numpy as np

from jaxtrain.data.base import ImageSource
from jaxtrain.data.decode import BadImageError, read_picture

SIDE = 112
"""Longest side of a thumbnail in pixels; smaller images stay as they are."""
_LOSSLESS = 64


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
