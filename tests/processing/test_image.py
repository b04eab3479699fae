"""Image reading and both image paths, with exact expectations."""

import hashlib
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from janus_jax.errors import InputError
from janus_jax.processing import (
    ImageSettings,
    generation_pixels,
    load_image,
    to_uint8,
    understanding_canvas,
    understanding_pixels,
)

FIXTURE = json.loads(
    (Path(__file__).parent.parent / "fixtures" / "understanding_pixels.json").read_text()
)
JANUS = ImageSettings()


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def refused(source, *parts, **options):
    """The message of the refusal: one line that names every part."""
    with pytest.raises(InputError) as caught:
        load_image(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


# --- understanding path


@pytest.mark.parametrize(
    "row", FIXTURE["rows"], ids=[f"{row[1]}x{row[2]}" for row in FIXTURE["rows"]]
)
def test_understanding_matches_the_reference(row):
    seed, width, height, sha256, mean = row
    image = picture(width, height, seed)
    canvas = understanding_canvas(image, JANUS)
    assert canvas.dtype == np.uint8 and canvas.shape == (384, 384, 3)
    assert hashlib.sha256(canvas.tobytes()).hexdigest() == sha256
    pixels = understanding_pixels(image, JANUS)
    assert pixels.dtype == np.float32
    assert round(float(pixels.mean(dtype=np.float64)), 7) == pytest.approx(mean, abs=2e-7)


def test_the_fixture_has_all_twelve():
    assert len(FIXTURE["rows"]) == 12


# sha256 of the canvases of tall pictures, made with Pillow 13.0.0's own resize. Pillow 12 orders
# its two passes differently there, so on Pillow 12 these hold only because we order them.
TALL = {
    (20, 386): "f2e08fede206f985",  # 2 rows less, 1 column less: just not vertically first
    (13, 900): "32aa4a545526e209",
    (60, 900): "c78e57f19a2a0c15",
    (101, 300): "76565b413b554d72",
    (300, 1000): "0f41f7ee59dab23e",
    (1000, 2617): "865802fecf053725",
}


@pytest.mark.parametrize("size", TALL, ids=str)
def test_tall_pictures_do_not_depend_on_the_pillow_version(size):
    canvas = understanding_canvas(picture(*size), JANUS)
    assert hashlib.sha256(canvas.tobytes()).hexdigest()[:16] == TALL[size]


def test_generation_does_not_depend_on_the_pillow_version():
    sizes = [(300, 1000), (50, 60), (60, 50), (1, 20000), (3, 901), (49, 48), (500, 333)]
    pixels = [generation_pixels(picture(*size), 48) for size in sizes]
    assert hashlib.sha256(np.stack(pixels).tobytes()).hexdigest()[:16] == "60525978a63e0db1"


HF_SIZES = [(384, 384), (640, 427), (383, 384), (29, 900), (1280, 50), (5, 7), (500, 333), (1, 999)]


@pytest.mark.parametrize("size", HF_SIZES, ids=str)
def test_hf_mode_equals_transformers(size):
    # The PIL processor: the tensor one needs torchvision, which is not a dependency of ours.
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    theirs = JanusImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    image = picture(*size)
    expected = theirs(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    pixels = understanding_pixels(image, ImageSettings(resize="hf"))
    np.testing.assert_array_equal(pixels, expected)


def test_the_modes_differ_where_truncation_and_rounding_do():
    image = Image.new("RGB", (640, 427), (255, 0, 0))  # 427 / 640 * 384 = 256.2
    same = (
        understanding_canvas(image, JANUS),
        understanding_canvas(image, ImageSettings(resize="hf")),
    )
    np.testing.assert_array_equal(*same)
    image = Image.new("RGB", (500, 333), (255, 0, 0))  # 333 / 500 * 384 = 255.7
    rows = [
        int((understanding_canvas(image, ImageSettings(resize=mode))[:, 0, 1] == 0).sum())
        for mode in ("reference", "hf")
    ]
    assert rows == [255, 256]


def test_truncation_is_of_the_ratio_times_the_size():
    # 55 / 88 * 384 is 240; 55 * (384 / 88) is a hair less in floating point.
    canvas = understanding_canvas(Image.new("RGB", (55, 88), (255, 0, 0)), JANUS)
    assert int((canvas[0, :, 1] == 0).sum()) == 240


def test_canvas_by_hand():
    settings = ImageSettings(image_size=4, min_size=1, background=(1, 2, 3))
    canvas = understanding_canvas(Image.new("RGB", (4, 1), (9, 9, 9)), settings)
    bar, red = [[1, 2, 3]] * 4, [[9, 9, 9]] * 4
    assert canvas.tolist() == [bar, red, bar, bar]  # (4 - 1) // 2 = 1


def test_padding_is_normalised_and_settings_are_used():
    image = Image.new("RGB", (8, 4), (255, 255, 255))
    pixels = understanding_pixels(image, ImageSettings(image_size=8, min_size=1))
    assert pixels[0, 0, 0] == np.float32(np.float32(127 / 255) - np.float32(0.5)) / np.float32(0.5)
    assert pixels[4, 0].tolist() == [1, 1, 1]
    settings = ImageSettings(8, (0, 0.5, 1), (1, 0.5, 2), (0, 0, 0), min_size=1)
    assert understanding_pixels(image, settings)[4, 0].tolist() == [1, 1, 0]


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1)], ids=str)
def test_extreme_shapes(size):
    image = load_image(encoded(picture(*size), "PNG"))
    canvas = understanding_canvas(image, JANUS)
    if size == (1, 1):
        assert (canvas == np.asarray(image)[0, 0]).all()
    else:
        bars = (canvas == 127).all(axis=(-1, 0 if size[0] == 1 else 1))
        assert bars.tolist() == [True] * 185 + [False] * 14 + [True] * 185
    pixels = generation_pixels(image, 48)
    assert pixels.shape == (48, 48, 3) and np.isfinite(pixels).all()


@pytest.mark.parametrize(
    "field",
    [
        {"image_size": 0},
        {"min_size": 385},
        {"mean": (0.5, 0.5, float("nan"))},
        {"mean": (0.5, 0.5, 10**400)},
        {"std": (0.5, 0.5, 0)},
        {"background": (127, 127, 256)},
    ],
    ids=str,
)
def test_settings_refuse_bad_values(field):
    with pytest.raises(InputError, match=next(iter(field))):
        ImageSettings(**field)


# --- generation path


def test_generation_of_a_square_is_resize_and_scale():
    image = picture(64, 64)
    resized = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC), np.float32)
    np.testing.assert_array_equal(generation_pixels(image, 48), resized / 127.5 - 1)


def test_generation_crops_the_centre():
    image = picture(12, 8)
    crop = np.asarray(image, np.float32)[:, 2:10]
    pixels = generation_pixels(image, 8)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, crop / np.float32(127.5) - 1)
    tall = np.asarray(picture(8, 12), np.float32)[2:10]
    np.testing.assert_array_equal(generation_pixels(picture(8, 12), 8), tall / 127.5 - 1)


def test_generation_range():
    black, white = Image.new("RGB", (3, 5)), Image.new("RGB", (3, 5), (255, 255, 255))
    assert set(generation_pixels(black, 4).ravel()) == {-1.0}
    assert set(generation_pixels(white, 4).ravel()) == {1.0}


def test_to_uint8_truncates_and_clips():
    x = np.array([-2, -1, -0.999, 0, 0.5, 0.999, 1, 7], np.float32)
    assert to_uint8(x).tolist() == [0, 0, 0, 127, 191, 254, 255, 255]
    assert to_uint8(x).dtype == np.uint8


def test_all_bytes_survive_the_round_trip():
    image = Image.fromarray(np.arange(768, dtype=np.uint16).reshape(16, 16, 3).astype(np.uint8))
    # Truncation may lose one level where float32 lands below the integer, never more.
    back = to_uint8(generation_pixels(image, 16)).astype(int)
    difference = np.asarray(image).astype(int) - back
    assert set(np.unique(difference)) <= {0, 1}


# --- reading


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
    if orientation == 6:
        np.testing.assert_array_equal(expected, np.rot90(np.asarray(image), -1))


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
    for empty in (Image.new("RGB", (0, 5)), Image.new("RGB", (5, 0))):
        with pytest.raises(InputError, match="empty"):
            understanding_canvas(empty, JANUS)
        with pytest.raises(InputError, match="empty"):
            generation_pixels(empty, 48)
