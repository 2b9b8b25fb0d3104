import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from jaxtrain.data.base import ArraySource, FileSource
from jaxtrain.data.decode import (
    BadImageError,
    decode_image,
    image_size_of,
    read_image,
    size_to_shrink,
    to_channels,
)

HEIGHT, WIDTH = 37, 52


def _picture(mode="RGB"):
    """Smooth enough that lossy formats stay close, odd-sized, and unlike any of its own mirror images."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    planes = [128 + 90 * np.sin(x / 9) + y / 2, x * 4, 255 - y * 6, 60 + x * 2 + y * 2]
    pixels = np.stack(planes, -1).clip(0, 255).astype(np.uint8)
    if mode in ("RGB", "RGBA", "CMYK"):
        return Image.fromarray(pixels[..., : len(mode)], mode)
    if mode == "LA":
        return Image.fromarray(pixels[..., [0, 3]], "LA")
    return Image.fromarray(pixels[..., :3]).convert(mode)


def _save(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _sixteen_bits():
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return (x * 1200 + y * 90).astype(np.uint16)


def _xmp_turned():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    return _save(_picture(), "JPEG", xmp=xmp)


KINDS = {
    "jpeg": _save(_picture(), "JPEG", quality=90),
    "jpeg-grey": _save(_picture("L"), "JPEG"),
    "jpeg-progressive": _save(_picture(), "JPEG", progressive=True),
    "jpeg-444": _save(_picture(), "JPEG", subsampling=0),
    "jpeg-422": _save(_picture(), "JPEG", subsampling=1),
    "jpeg-optimised": _save(_picture(), "JPEG", optimize=True, restart_marker_blocks=2),
    "jpeg-comment": _save(_picture(), "JPEG", comment=b"\xff\xd8\xff\xd9", dpi=(72, 72)),
    "jpeg-trailing-bytes": _save(_picture(), "JPEG") + b"\0" * 100,
    "jpeg-rgb": _save(_picture(), "JPEG", keep_rgb=True),
    "jpeg-cmyk": _save(_picture("CMYK"), "JPEG"),
    "jpeg-xmp-turned": _xmp_turned(),
    "mpo": _save(_picture(), "MPO", save_all=True, append_images=[_picture()]),
    "png": _save(_picture(), "PNG"),
    "png-grey": _save(_picture("L"), "PNG"),
    "png-1-bit": _save(_picture("1"), "PNG"),
    "png-palette": _save(_picture().quantize(16), "PNG"),
    "gif": _save(_picture(), "GIF"),
    "gif-animated": _save(_picture(), "GIF", save_all=True, append_images=[_picture().rotate(180)]),
    "webp": _save(_picture(), "WEBP", quality=90),
    "webp-lossless": _save(_picture(), "WEBP", lossless=True),
    "bmp": _save(_picture(), "BMP"),
    "bmp-palette": _save(_picture().quantize(16), "BMP"),
    "bmp-1-bit": _save(_picture("1"), "BMP"),
    "tiff": _save(_picture(), "TIFF"),
    "tiff-lzw": _save(_picture(), "TIFF", compression="tiff_lzw"),
    "tiff-jpeg": _save(_picture(), "TIFF", compression="jpeg"),
    "tiff-1-bit": _save(_picture("1"), "TIFF", compression="group4"),
    "tiff-cmyk": _save(_picture("CMYK"), "TIFF"),
    "tiff-ycbcr": _save(_picture("YCbCr"), "TIFF"),
    "ppm": _save(_picture(), "PPM"),
    "tga": _save(_picture(), "TGA"),
    "jpeg2000": _save(_picture(), "JPEG2000"),
}
for turn in range(1, 9):
    KINDS[f"jpeg-exif-{turn}"] = _save(_picture(), "JPEG", exif=_exif(turn))
for turn in (3, 6):
    KINDS[f"png-exif-{turn}"] = _save(_picture(), "PNG", exif=_exif(turn))
    KINDS[f"webp-exif-{turn}"] = _save(_picture(), "WEBP", exif=_exif(turn))
    KINDS[f"tiff-exif-{turn}"] = _save(_picture(), "TIFF", exif=_exif(turn))
    KINDS[f"jpeg-grey-exif-{turn}"] = _save(_picture("L"), "JPEG", exif=_exif(turn))


def _decode(data, channels=3, max_pixels=10**6):
    pixels = decode_image(data, channels=channels, max_pixels=max_pixels)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == channels
    assert pixels.flags.c_contiguous
    return pixels


def _reference(data, mode):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert(mode)).astype(int)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_pillow(kind):
    data = KINDS[kind]
    np.testing.assert_array_equal(_decode(data), _reference(data, "RGB"))
    # Grey comes straight from a JPEG's luma plane, before the rounding through RGB that Pillow does.
    difference = np.abs(_decode(data, 1)[:, :, 0] - _reference(data, "L"))
    assert difference.mean() < 0.5
    assert difference.max() <= (6 if "jpeg" in kind or kind == "mpo" else 0)
    assert image_size_of(data)[:2] == _decode(data).shape[:2]


def test_ycck_jpeg_is_close_to_the_colours_it_was_made_from():
    cmyk = np.asarray(_picture("CMYK")).astype(int)
    # Adobe writes CMYK inverted, and libjpeg turns it into YCCK.
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(255 - cmyk).astype(np.uint8), 95, "CMYK", "444")
    expected = (255 - cmyk[..., :3]) * (255 - cmyk[..., 3:]) / 255
    assert np.abs(_decode(data) - expected).mean() < 3


def _on_white(rgba):
    rgb, alpha = rgba[..., :3].astype(float), rgba[..., 3:] / 255
    return rgb * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_rgba_is_composited_on_white(kind):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = _save(_picture("RGBA"), kind, **options)
    assert np.abs(_decode(data) - _on_white(np.asarray(_picture("RGBA")))).max() <= 1.0


def test_grey_with_alpha_is_composited_on_white():
    data = _save(_picture("LA"), "PNG")
    expected = _on_white(np.asarray(_picture("LA"))[..., [0, 0, 0, 1]])
    assert np.abs(_decode(data) - expected).max() <= 1.0
    assert np.abs(_decode(data, 1) - expected[..., :1]).max() <= 1.0


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(kind):
    image = _picture().quantize(8)
    entries = np.asarray(image)
    transparent = int(entries[20, 20])
    pixels = _decode(_save(image, kind, transparency=transparent))
    expected = np.where((entries == transparent)[..., None], 255, np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(pixels, expected)


def test_a_transparent_grey_level_is_white():
    grey = np.asarray(_picture("L"))
    level = int(grey[9, 9])
    pixels = _decode(_save(_picture("L"), "PNG", transparency=level), 1)
    np.testing.assert_array_equal(pixels[..., 0], np.where(grey == level, 255, grey))


def _big_endian_tiff():
    """16-bit grey, big-endian: Pillow writes this machine's order only."""
    entries = [(256, 3, WIDTH), (257, 3, HEIGHT), (258, 3, 16), (259, 3, 1), (262, 3, 1)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 3, HEIGHT), (279, 4, WIDTH * HEIGHT * 2)]
    pixels = _sixteen_bits().astype(">u2").tobytes()
    directory = struct.pack(">H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack(">HHI", tag, kind, 1)
        directory += struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value)
    return b"MM\0*" + struct.pack(">I", 8 + len(pixels)) + pixels + directory + b"\0" * 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "big-endian"])
def test_16_bits_are_scaled_not_clipped(kind):
    data = _big_endian_tiff() if kind == "big-endian" else _save(Image.fromarray(_sixteen_bits()), kind)
    expected = np.rint(_sixteen_bits() / 257.0)
    assert expected.max() > 240
    assert len(np.unique(expected)) > 200
    np.testing.assert_array_equal(_decode(data, 1)[..., 0], expected)
    np.testing.assert_array_equal(_decode(data, 3), np.repeat(expected[..., None], 3, -1))


def test_a_transparent_level_of_16_bits_is_white():
    samples = _sixteen_bits()
    level = int(samples[9, 9])
    data = _save(Image.fromarray(samples), "PNG", transparency=level)
    expected = np.where(samples == level, 255, np.rint(samples / 257.0))
    np.testing.assert_array_equal(_decode(data, 1)[..., 0], expected)


@pytest.mark.parametrize("samples", [np.float32(0.5), np.int32(2**24)])
def test_samples_without_a_known_range_are_refused(samples):
    data = _save(Image.fromarray(np.full((4, 4), samples)), "TIFF")
    with pytest.raises(BadImageError, match="no known range"):
        _decode(data)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("jpeg-trailing-bytes", "mpo", "gif-animated")])
def test_truncated_files_are_refused(kind):
    data = KINDS[kind]
    for share in (0.1, 0.5, 0.7, 0.9):  # of a PNG this small, the last tenth holds no pixels
        with pytest.raises(BadImageError):
            _decode(data[: int(len(data) * share)])
    if kind.startswith("jpeg-") or kind == "jpeg":
        with pytest.raises(BadImageError):
            _decode(data[:-30])


def test_a_truncated_jpeg_with_a_thumbnail_is_refused():
    # The thumbnail's end marker must not pass for the image's.
    thumbnail = _save(_picture().resize((16, 16)), "JPEG")
    data = _save(_picture(), "JPEG", exif=b"Exif\0\0" + thumbnail)
    with pytest.raises(BadImageError, match="truncated"):
        _decode(data[: len(data) * 9 // 10])


def test_a_jpeg_with_a_hole_is_refused():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = _save(noise, "JPEG")
    with pytest.raises(BadImageError, match="Corrupt JPEG data: premature end of data segment"):
        _decode(data[: len(data) // 2] + data[-2:])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"\xff", "not an image"),
        (b"\xff\xd8\xff", "not an image"),
        (b"hello " * 100, "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
    ],
)
def test_the_reason_is_one_line(data, reason):
    with pytest.raises(BadImageError, match=reason) as caught:
        _decode(data)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadImageError, match=reason):
        image_size_of(data)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(99), "HEIC"),
        (b"\n <!DOCTYPE HTML><html>404</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git lfs pull"),
        (b"%PDF-1.7", "PDF"),
        (bytes(128) + b"DICM" + bytes(99), "DICOM"),
        (b"PK\x03\x04" + bytes(99), "archive"),
    ],
)
def test_what_stands_where_an_image_should_is_named(data, name):
    for read in (_decode, image_size_of):
        with pytest.raises(BadImageError, match=name):
            read(data)


def test_formats_without_a_signature_come_last():
    data = _save(_picture("RGBA").resize((128, 130)), "ICO", sizes=[(128, 130)], bitmap_format="bmp")
    assert image_size_of(data)[:2] == _decode(data).shape[:2] == (130, 128)  # to TGA it is 32 pixels wide


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "tiff", "webp", "jpeg-exif-6"])
def test_too_many_pixels_are_refused_before_decoding(kind):
    data = KINDS[kind]
    assert _decode(data, max_pixels=HEIGHT * WIDTH).size
    with pytest.raises(BadImageError, match=r"52x37 is more than 1,923 pixels"):
        # Cut off: a decoder that had started would complain of that instead.
        _decode(data[:-30] if kind != "webp" else data, max_pixels=HEIGHT * WIDTH - 1)


def test_a_decompression_bomb_is_refused_by_its_header():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(BadImageError):
        _decode(b"\x89PNG\r\n\x1a\n" + chunk + b"\0" * 64, max_pixels=10**10)


def test_damaged_files_give_pixels_or_a_reason_and_nothing_else():
    rng = np.random.default_rng(0)
    decoded, reasons = 0, []
    for data in KINDS.values():
        for _ in range(8):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 4):
                damaged[place] = rng.integers(256)
            try:
                decoded += _decode(bytes(damaged)).ndim == 3
            except BadImageError as error:
                reasons.append(str(error))
    assert decoded > 20
    assert len(reasons) > 20
    assert not any("\n" in reason for reason in reasons)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_shrinking_while_decoding_is_like_shrinking_afterwards(orientation, shrink):
    data = _save(_picture().resize((56, 40)), "JPEG", exif=_exif(orientation))
    whole = _decode(data)
    small = decode_image(data, channels=3, max_pixels=10**6, shrink=shrink)
    assert size_to_shrink(data) == whole.shape[:2]
    expected = np.asarray(Image.fromarray(whole).reduce(shrink)).astype(int)
    assert small.shape == expected.shape
    assert np.abs(small - expected).mean() < 2


def test_sides_that_shrink_does_not_divide_are_rounded_up():
    assert size_to_shrink(KINDS["jpeg"]) == (HEIGHT, WIDTH) == (37, 52)
    assert decode_image(KINDS["jpeg"], channels=1, max_pixels=10**6, shrink=8).shape == (5, 7, 1)


def test_other_kinds_do_not_shrink():
    assert size_to_shrink(KINDS["png"]) is None
    assert decode_image(KINDS["png"], channels=3, max_pixels=10**6, shrink=4).shape == (37, 52, 3)


def test_a_jpeg_that_only_pillow_reads_comes_whole():
    # Stray bytes before the end: libjpeg warns, all pixels are there.
    data = KINDS["jpeg"]
    stray = data[:-2] + b"\x12\x34" * 20 + data[-2:]
    with pytest.raises(ValueError, match="extraneous bytes"):
        simplejpeg.decode_jpeg(stray)
    np.testing.assert_array_equal(decode_image(stray, channels=3, max_pixels=10**6, shrink=2), _decode(data))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_converted_as_files_are(mode, channels):
    image = _picture(mode)
    array = np.asarray(image).reshape(HEIGHT, WIDTH, -1)
    np.testing.assert_array_equal(to_channels(array, channels), _decode(_save(image, "PNG"), channels))


def test_reads_from_any_source(tmp_path):
    array = np.asarray(_picture())
    path = tmp_path / "picture.png"
    _picture().save(path)
    labels = np.zeros(2, np.int32)
    files = FileSource([path, tmp_path / "missing.png"], labels)
    arrays = ArraySource(array[None], labels[:1])
    np.testing.assert_array_equal(read_image(files, 0, channels=3, max_pixels=10**6), array)
    np.testing.assert_array_equal(read_image(arrays, 0, channels=3, max_pixels=10**6), array)
    with pytest.raises(BadImageError, match="No such file"):
        read_image(files, 1, channels=3, max_pixels=10**6)
