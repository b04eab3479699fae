"""Reading pictures: every kind that works, and one clear line for every kind that does not."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from janus_jax.errors import InputError
from janus_jax.processing import load_image

from .fakes import encoded, picture


def refused(source, *parts, **options):
    """The message of the refusal: one line that names every part."""
    with pytest.raises(InputError) as caught:
        load_image(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


def test_path_bytes_and_pil_agree(tmp_path):
    image = picture(7, 5)
    path = tmp_path / "a picture.png"
    image.save(path)
    for source in (path, str(path), path.read_bytes(), image):
        loaded = load_image(source)
        assert loaded.mode == "RGB" and loaded is not image
        np.testing.assert_array_equal(np.asarray(loaded), np.asarray(image))


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("PPM", {}),
        ("JPEG2000", {"irreversible": False}),
    ],
)
def test_lossless_formats(format, options):
    image = picture(9, 6)
    loaded = load_image(encoded(image, format, **options))
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(image))


def test_transparency_is_composited_on_white():
    rgba = Image.new("RGBA", (1, 3))
    for y, pixel in enumerate([(10, 20, 30, 255), (0, 0, 0, 128), (5, 5, 5, 0)]):
        rgba.putpixel((0, y), pixel)
    loaded = load_image(encoded(rgba, "PNG"))
    assert np.asarray(loaded)[:, 0].tolist() == [[10, 20, 30], [127] * 3, [255] * 3]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert load_image(grey).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([9, 9, 9])
    assert load_image(encoded(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(encoded(palette, "PNG")).getpixel((0, 0)) == (9, 9, 9)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (2, 2), color) for color in ((255, 0, 0), (0, 0, 255))]
    for format, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2
        assert load_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_cmyk():
    # Ink of 0 is white and full black is black, in memory and through an Adobe JPEG file.
    assert load_image(Image.new("CMYK", (1, 1), (0, 255, 255, 0))).getpixel((0, 0)) == (255, 0, 0)
    white = encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG", quality=100)
    assert load_image(white).getpixel((4, 4)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_the_high_byte():
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    expected = [0, 0, 1, 128, 255]
    image = Image.fromarray(values)
    for source in (image, encoded(image, "PNG"), encoded(image, "TIFF")):
        loaded = np.asarray(load_image(source))[0]
        assert loaded.tolist() == [[v] * 3 for v in expected]
    wide = Image.fromarray(values.astype(np.int32))
    assert np.asarray(load_image(wide))[0, :, 0].tolist() == expected


def test_other_modes():
    assert load_image(Image.new("1", (1, 1), 1)).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)
    assert load_image(Image.new("HSV", (1, 1), (0, 255, 255))).getpixel((0, 0)) == (255, 0, 0)
    refused(Image.new("F", (1, 1)), "floating-point", "8-bit")
    lab = load_image(Image.new("LAB", (1, 1), (255, 128, 128)))
    assert lab.mode == "RGB" and min(lab.getpixel((0, 0))) >= 254


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    image = picture(5, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(np.asarray(load_image(data)), expected)
    opened = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(np.asarray(load_image(opened)), expected)
    assert opened.size == (5, 3)  # the caller's image is as it was
    assert opened.getexif()[0x0112] == orientation
    if orientation == 6:
        np.testing.assert_array_equal(expected, np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_was_read_once_stays_as_it_is(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    once = load_image(encoded(picture(5, 3), format, exif=exif))
    np.testing.assert_array_equal(np.asarray(load_image(once)), np.asarray(once))


def test_an_orientation_in_xmp_is_applied_once():
    image = picture(5, 3)
    image.info["xmp"] = b'<rdf:Description tiff:Orientation="6"/>'
    once = load_image(image)
    np.testing.assert_array_equal(np.asarray(once), np.rot90(np.asarray(image), -1))
    np.testing.assert_array_equal(np.asarray(load_image(once)), np.asarray(once))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_tiff_orientation_is_applied_once(orientation):
    # Pillow turns a TIFF itself while decoding, but no other format.
    image = picture(5, 3)
    data = encoded(image, "TIFF", tiffinfo={0x0112: orientation})
    turns = {3: 2, 6: -1, 8: 1}[orientation]
    expected = np.rot90(np.asarray(image), turns)
    np.testing.assert_array_equal(np.asarray(load_image(data)), expected)


def test_damaged_exif_is_ignored():
    image = picture(5, 3)
    loaded = load_image(encoded(image, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(image))


# --- refusals


@pytest.mark.parametrize("source", [None, 7, np.zeros((4, 4, 3), np.uint8), [picture(4, 4)]])
def test_other_types_are_named(source):
    refused(source, f"a picture is given as {type(source).__name__}", "PIL.Image.fromarray")


def test_missing_and_unreadable_paths(tmp_path):
    refused(tmp_path / "none.png", "none.png", "does not exist")
    refused(tmp_path, "not a regular file")
    refused("", "not a regular file")
    refused("a\0b.png", "a\\x00b.png")
    refused("x" * 5000, "cannot be read")
    refused("two\nlines.png", "two\\nlines.png", "does not exist")


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"%PDF-1.7", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", bytes(100)]
)
def test_not_an_image(data, tmp_path):
    refused(data, "given bytes", "not an image")
    path = tmp_path / "file.png"
    path.write_bytes(data)
    refused(path, "file.png", "not an image")


def test_postscript_is_never_run():
    document = encoded(picture(4, 4), "EPS")
    assert Image.open(io.BytesIO(document)).format == "EPS"  # Pillow alone would start Ghostscript
    refused(document, "not an image")


@pytest.mark.parametrize(
    "format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"]
)
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(format, kept):
    data = encoded(picture(64, 48), format)
    refused(data[: int(len(data) * kept)], "given bytes")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_corrupt_bytes_never_escape_as_another_error():
    rng = np.random.default_rng(0)
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "ICO"):
        data = np.frombuffer(encoded(picture(32, 32), format), np.uint8)
        for _ in range(40):
            broken = data.copy()
            where = rng.integers(0, min(len(data), 300), 4)
            broken[where] = rng.integers(0, 256, 4)
            try:
                assert load_image(broken.tobytes()).mode == "RGB"
            except InputError as error:
                assert "\n" not in str(error)


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [9000, 10000, 60000], ids=str)
def test_decompression_bombs_are_refused_before_decoding(side, recwarn):
    refused(png_header(side, side), "too big", "at most 67108864 pixels")
    assert not recwarn.list


def test_pixel_cap():
    image = picture(10, 10)
    assert load_image(image, max_pixels=100).size == (10, 10)
    refused(image, "10x10 = 100 pixels", "at most 99 pixels", max_pixels=99)
    refused(encoded(image, "PNG"), "at most 99 pixels", max_pixels=99)


def test_zero_size():
    refused(Image.new("RGB", (0, 5)), "0x5")
    refused(png_header(0, 5), "given bytes")
    refused(b"P6 0 5 255\n", "given bytes")
