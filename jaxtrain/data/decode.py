"""Encoded images to pixels: every kind a data set is likely to hold, and a one-line reason for refusals."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from jaxtrain.data.base import Images, ImageSource
from jaxtrain.errors import DamagedError, RunError, UserError
from jaxtrain.readers import without_name

if TYPE_CHECKING:
    from PIL.Image import Image

# Named, so that no plug-in runs an outside program (EPS) or reads a format nobody trains on.
_SIGNED = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "JPEG2000", "AVIF")
# Those without a real signature come last: TGA would take an ICO for its own.
_FORMATS = (*_SIGNED, "PCX", "TGA")
GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_ORIENTATION = 0x0112
# Start-of-frame markers of baseline, extended and progressive JPEG; the rarer kinds go to Pillow.
_PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)
# Chunks that may hold an orientation: EXIF in its own chunk or as text, and XMP.
_PNG_METADATA = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NO_PIXELS = b"\0\0\0\0IDAT\x35\xaf\x06\x1e"

NOT_AN_IMAGE = "not an image, or cut off in its header"
# What often stands where an image should: where, which bytes (in lower case), what it is and what to do.
_STRANGERS = (
    (
        4,
        (b"ftypheic", b"ftypheix", b"ftypheim", b"ftyphevc", b"ftypmif1", b"ftypmsf1"),
        "a HEIC photo; save it as JPEG",
    ),
    (4, (b"ftyp",), "a video"),
    (0, (b"\xff\x0a", b"\0\0\0\x0cjxl "), "a JPEG XL image; save it as PNG or JPEG"),
    (0, (b"<!doctype html", b"<html", b"<head"), "a web page (HTML); download the image again"),
    (0, (b"version https://git-lfs",), "a pointer of Git LFS; `git lfs pull` fetches the image"),
    (0, (b"<svg",), "an SVG drawing; save it as PNG"),
    (0, (b"<?xml",), "an XML file"),
    (0, (b"%pdf",), "a PDF document; save its pages as PNG"),
    (0, (b"8bps",), "a Photoshop document; save it as PNG"),
    (0, (b"pk\x03\x04", b"\x1f\x8b", b"rar!", b"7z\xbc\xaf"), "an archive; unpack it"),
    (128, (b"dicm",), "a DICOM file; save its pixels as PNG"),
)


class BadImageError(ValueError):
    """An image that cannot be read; the message is the reason in one line, without the image's name."""


def decode_image(data: bytes, *, channels: int, max_pixels: int, shrink: int = 1) -> Images:
    """Decode one encoded image upright: `uint8[height, width, channels]`, with 1 channel or 3.

    EXIF orientation is applied, transparency composited on white, 16-bit samples divided by 257, CMYK and
    palettes converted; of an animation the first frame counts. Grey is ITU-R 601 luma. Colour profiles are
    ignored, as training pipelines commonly do.

    A truncated file is an error, never grey pixels; so is a JPEG with undecodable data in the middle, which
    Pillow and OpenCV return half grey.

    `shrink` 2, 4 or 8 decodes a JPEG that `size_to_shrink` knows at that fraction of its sides, rounded
    up: low-passed in the frequency domain, faster and smaller. Everything else comes whole.

    Raises `BadImageError`: empty, not an image, truncated, corrupt, more than `max_pixels` (checked on the
    header, before anything is decoded), or samples without a known range (float and 32-bit TIFF).
    """
    if channels not in (1, 3):
        raise BadImageError(f"files are read with 1 channel or 3, {channels} are needed")
    header = _plain_jpeg(data)
    if header is None:
        return _decode_with_pillow(data, channels, max_pixels)
    _check_pixels(header.height, header.width, max_pixels)
    import simplejpeg

    smallest = (-(-header.height // shrink), -(-header.width // shrink)) if shrink > 1 else (0, 0)
    try:
        pixels = simplejpeg.decode_jpeg(
            data, "GRAY" if channels == 1 else "RGB", min_height=smallest[0], min_width=smallest[1]
        )
        return _upright(pixels, _orientation(_open(data)) if header.has_metadata else 1)
    except ValueError as error:
        # Data lost inside the file: libjpeg fills in grey, and says so; Pillow would not.
        if "end of data segment" in str(error) or "Huffman" in str(error):
            raise BadImageError(_one_line(error)) from None
        # Everything else (a missing end, stray bytes between markers): Pillow refuses what lacks pixels.
        return _decode_with_pillow(data, channels, max_pixels)


def decode_16_bits(data: bytes, *, channels: int, max_pixels: int) -> Images:
    """As `decode_image`, with all that PNG and TIFF hold: `uint16[height, width, channels]`, 65535 for white."""
    with _reasons():
        image = _open(data)
        _check_pixels(image.height, image.width, max_pixels)
        deep = image.mode.startswith("I;16") or (image.format in ("PNG", "TIFF") and image.mode in ("RGB", "RGBA"))
        if deep:
            image.load()  # which refuses what is cut off
            import cv2

            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if pixels is not None and pixels.dtype == np.uint16:
                pixels = pixels[..., None] if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[-1]]]
                turned = 1 if image.format == "TIFF" else _orientation(image)
                return to_channels(_upright(pixels, turned), channels)
    return decode_image(data, channels=channels, max_pixels=max_pixels).astype(np.uint16) * np.uint16(257)


def image_size_of(data: bytes, *, signed: bool = False) -> tuple[int, int, str]:
    """(height, width, mode) as `decode_image` will see it, from the header alone; mode is Pillow's ("L").

    Of a PNG, all of it must be given, or what `png_without_pixels` makes of it. `signed`: only formats that cannot be
    taken for another. Raises `BadImageError` where the header is not that of an image.
    """
    header = _plain_jpeg(data)
    if header is not None and not header.has_metadata:
        return header.height, header.width, "L" if header.components == 1 else "RGB"
    plain = _plain_png(data)
    if plain is not None:
        return plain
    if data.startswith(PNG_SIGNATURE):
        data = png_without_pixels(io.BytesIO(data))
    with _reasons():
        image = _open(data, _SIGNED if signed else _FORMATS)
        width, height = image.size
        # Pillow itself turns TIFFs, already in `size`.
        if image.format != "TIFF" and _orientation(image) >= 5:
            width, height = height, width
        return height, width, image.mode


def size_to_shrink(data: bytes) -> tuple[int, int] | None:
    """Upright (height, width) of a JPEG that `decode_image` can shrink; None for everything else."""
    header = _plain_jpeg(data)
    if header is None:
        return None
    with _reasons():
        turned = header.has_metadata and _orientation(_open(data)) >= 5
    return (header.width, header.height) if turned else (header.height, header.width)


def read_image(source: ImageSource, index: int, *, channels: int, max_pixels: int) -> Images:
    """Image `index` of a source as `uint8[height, width, channels]`, decoded or converted where needed.

    Raises `BadImageError` as `decode_image` does, also where the file cannot be opened.
    """
    return pixels_of(read_encoded(source, index), channels=channels, max_pixels=max_pixels)


def read_encoded(source: ImageSource, index: int) -> bytes | Images:
    """`source.read(index)`; raises `BadImageError` where the file cannot be read."""
    try:
        return source.read(index)
    except DamagedError as error:
        raise BadImageError(without_name(error, source.describe(index))) from None
    except OSError as error:
        raise BadImageError(error.strerror or _one_line(error)) from None


def pixels_of(encoded: bytes | Images, *, channels: int, max_pixels: int, shrink: int = 1) -> Images:
    """`decode_image` of what a source gave, or only `to_channels` where that is an array already."""
    if isinstance(encoded, bytes):
        return decode_image(encoded, channels=channels, max_pixels=max_pixels, shrink=shrink)
    return to_channels(encoded, channels)


def png_of(pixels: Images) -> bytes:
    """The PNG file of `uint8[height, width, channels]`, with 1 channel or 3; UserError for other pixels."""
    from PIL import Image

    if pixels.dtype != np.uint8 or pixels.shape[-1] not in (1, 3):
        bits = 8 * pixels.dtype.itemsize
        raise UserError(f"PNG is written of 8 bits and 1 or 3 channels, not of {bits} and {pixels.shape[-1]}")

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels)).save(file, "PNG")
    return file.getvalue()


@contextlib.contextmanager
def naming_memory_errors(source: ImageSource, index: int) -> Iterator[None]:
    """Around work on one image: RunError that names it where memory runs out, which OpenCV says in its own way."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or re.search("std::bad_alloc|Insufficient memory", str(error)):
            raise RunError(f"{source.describe(index)}: memory does not suffice for this image") from error
        raise


def to_channels(image: Images, channels: int) -> Images:
    """`[height, width, 1 to 4]` to `[height, width, 1 or 3]`, as `decode_image` converts; of uint8 or uint16.

    Raises `BadImageError` for other numbers of channels that are not equal.
    """
    given = image.shape[-1]
    if given == channels:
        return image
    if given > 4 or channels not in (1, 3):
        raise BadImageError(f"{given} channels, {channels} are needed")
    if given == 1:
        return np.repeat(image, channels, axis=-1)
    if image.dtype == np.uint16:
        return _to_channels_of_16_bits(image, channels)
    from PIL import Image

    return _pixels(Image.fromarray(np.ascontiguousarray(image)), channels)


def _to_channels_of_16_bits(image: Images, channels: int) -> Images:
    """The same rules: transparency on white, grey as ITU-R 601 luma."""
    colour = image.astype(np.float64)
    if image.shape[-1] in (2, 4):
        clear = 1 - colour[..., -1:] / 65535
        colour = colour[..., :-1] * (1 - clear) + 65535 * clear
    if channels == 1 and colour.shape[-1] == 3:
        colour = colour @ np.array([[0.299], [0.587], [0.114]])
    whole: Images = np.rint(np.broadcast_to(colour, (*image.shape[:2], channels))).astype(np.uint16)
    return whole


def read_picture(source: ImageSource, index: int, *, channels: int, max_pixels: int) -> Images:
    """Image `index` for people to look at: `uint8[height, width, 1 or 3]`. Raises as `read_image`.

    Of 16 bits the upper half is shown, of more than 4 channels the first three, or their mean.
    """
    image = read_encoded(source, index)
    if not isinstance(image, bytes):
        image = (image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image
        if image.shape[-1] not in (1, 3, 4):
            three = channels == 3 and image.shape[-1] > 3
            image = image[..., :3] if three else image.mean(axis=-1, keepdims=True).astype(np.uint8)
    return pixels_of(image, channels=channels, max_pixels=max_pixels)


def pillow_pixels(image: Image) -> Images:
    """A Pillow image as `decode_image` gives it: `uint8[height, width, 1 or 3]`, upright; one channel where it is grey.

    Raises `BadImageError` as that does.
    """
    with _reasons():
        image.load()
        grey = image.mode in GREY_MODES or image.mode.startswith("I;16")
        return _upright(_pixels(image, 1 if grey else 3), _orientation(image))


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BadImageError(f"{width}x{height} is more than {max_pixels:,} pixels (data.max_pixels)")


class _JpegHeader(NamedTuple):
    height: int
    width: int
    components: int
    has_metadata: bool
    """EXIF or XMP, which may hold an orientation."""


def _plain_jpeg(data: bytes) -> _JpegHeader | None:
    """The header of an 8-bit grey or colour JPEG, the fast path; None for anything else."""
    if data[:2] != b"\xff\xd8":
        return None
    place, has_metadata, size = 2, False, None
    while place + 9 < len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xDA:  # the scan begins: all headers are read
            return size and _JpegHeader(*size, has_metadata)
        if marker == 0xE1:
            has_metadata = True
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            precision, height, width, components = struct.unpack_from(">BHHB", data, place + 4)
            if marker not in _PLAIN_FRAMES or precision != 8 or components not in (1, 3) or not height:
                return None
            size = (height, width, components)
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def png_without_pixels(file: BinaryIO) -> bytes:
    """A PNG as Pillow sees its header, with the metadata that may also stand behind the pixels, which are not read."""
    file.seek(len(PNG_SIGNATURE))
    parts, behind = [PNG_SIGNATURE], False
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind in (b"IDAT", b"acTL", b"fcTL", b"fdAT"):
            file.seek(length + 4, io.SEEK_CUR)
            behind = behind or kind == b"IDAT"
        elif kind == b"IEND":
            break
        elif not behind or kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            body = file.read(length + 4)
            # Of what comes late, Pillow checks no sum.
            late_sum = zlib.crc32(kind + body[:length]).to_bytes(4, "big")
            parts.append(head + (body[:length] + late_sum if behind else body))
        else:
            file.seek(length + 4, io.SEEK_CUR)
    return b"".join((*parts, _NO_PIXELS))


def _plain_png(data: bytes) -> tuple[int, int, str] | None:
    """Height, width and mode of a PNG without metadata."""
    if data[:8] != PNG_SIGNATURE or data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height, depth, kind = struct.unpack_from(">IIBB", data, 16)
    sound = zlib.crc32(data[12:29]) == int.from_bytes(data[29:33], "big")
    if not sound or not height * width or any(mark in data for mark in _PNG_METADATA):
        return None
    grey = {1: "1", 16: "I;16"}.get(depth, "L")
    mode = {0: grey, 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}.get(kind)
    return None if mode is None else (height, width, mode)


def _open(data: bytes, formats: tuple[str, ...] = _FORMATS) -> Image:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadImageError("empty file")
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        raise BadImageError(_stranger(data)) from None


def _stranger(data: bytes) -> str:
    """The reason why a file is not an image, which says what it is where that is easily seen."""
    head = data[:200].lower()
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for place, signatures, name in _STRANGERS:
        if head.startswith(signatures, place) or (place == 0 and text.startswith(signatures)):
            return f"not an image that can be read: it is {name}"
    return NOT_AN_IMAGE


def _decode_with_pillow(data: bytes, channels: int, max_pixels: int) -> Images:
    with _reasons():
        image = _open(data)
        _check_pixels(image.height, image.width, max_pixels)
        image.load()
        return _upright(_pixels(image, channels), _orientation(image))


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Turns whatever Pillow's plug-ins raise on broken files (a dozen kinds) into `BadImageError`."""
    try:
        yield
    except (BadImageError, MemoryError):
        raise
    except Exception as error:
        raise BadImageError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _orientation(image: Image) -> int:
    """EXIF (or XMP) orientation, 1 to 8; 1 where there is none or it makes no sense."""
    from PIL import Image

    try:
        # Not PngImageFile's own, which would decode a PNG for it: what stands behind the pixels is there already.
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # broken metadata round sound pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: Images, orientation: int) -> Images:
    """Undo an EXIF orientation: 5 to 8 are transposed, the others only flipped."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _pixels(image: Image, channels: int) -> Images:
    """A loaded Pillow image as `uint8[height, width, channels]`."""
    from PIL import Image

    if image.mode.startswith("I"):
        image = Image.fromarray(_from_16_bits(image))
    elif image.mode == "F":
        raise BadImageError("float samples have no known range: convert the file to 8 or 16 bits")
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        clear = image.info.get("transparency")
        if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, of which Pillow keeps the upper half
            image.info["transparency"] = tuple(value >> 8 for value in clear)
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    array = np.array(image.convert("L" if channels == 1 else "RGB"))
    return array[:, :, None] if channels == 1 else array


def _from_16_bits(image: Image) -> Images:
    samples = np.asarray(image)
    if samples.min() < 0 or samples.max() > 65535:
        raise BadImageError("32-bit samples have no known range: convert the file to 8 or 16 bits")
    grey = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # as other transparency, on white
        grey[samples == clear] = 255
    return grey
