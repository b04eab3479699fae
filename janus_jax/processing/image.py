"""Pictures in and out: reading files safely, the two image paths, and back to bytes.

The language model sees an image through the *understanding* path (whole picture, letterboxed for
SigLIP) and learns to draw one through the *generation* path (centre crop for the VQ tokenizer). The
two disagree on purpose: one must not lose content, the other must not paint grey bars.

Dims: S side of the square model input in pixels.
"""

import contextlib
import io
import math
import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image

from janus_jax.errors import InputError

MAX_PIXELS = 2**26
"""Default cap on width x height: 67 megapixels, about 270 MB while decoding RGBA."""

_MAX_SIDE = 2**16

# Raster formats whose decoders are in process and recognise a file by its first bytes. Pillow would
# also try EPS (which starts Ghostscript) and other formats no one sends to a vision model.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageSettings:
    """How the understanding path turns a picture into SigLIP's input.

    Attributes:
        image_size: Side S of the square canvas, in pixels.
        mean: Per-channel mean subtracted after scaling to [0, 1].
        std: Per-channel standard deviation divided by after that.
        background: Canvas colour around the picture, 0..255 per channel.
        min_size: Smallest side, in pixels, that a thin picture is resized to.
        resize: 'reference' truncates the resized side, as the published weights saw it; 'hf' rounds
            it, as transformers 5 does. About half of all picture sizes differ by one pixel.

    Raises:
        InputError: A value is out of range.
    """

    image_size: int = 384
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    background: tuple[int, int, int] = (127, 127, 127)
    min_size: int = 14
    resize: Literal["reference", "hf"] = "reference"

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= _MAX_SIDE:
            raise InputError(f"image_size is {self.image_size}", f"1 to {_MAX_SIDE} pixels")
        if not 1 <= self.min_size <= self.image_size:
            raise InputError(
                f"min_size is {self.min_size}", f"1 to image_size ({self.image_size}) pixels"
            )
        if not all(abs(value) < 1e30 for value in self.mean):  # false for NaN
            raise InputError(f"mean is {self.mean}", "finite numbers")
        if not all(0 < value < 1e30 for value in self.std):
            raise InputError(f"std is {self.std}", "finite numbers above 0")
        if not all(0 <= value <= 255 for value in self.background):
            raise InputError(f"background is {self.background}", "integers 0 to 255")


def load_image(
    source: str | Path | bytes | Image.Image,
    max_pixels: int = MAX_PIXELS,
    *,
    at_least: int | None = None,
) -> Image.Image:
    """Reads one picture as upright 8-bit RGB.

    Transparency is composited on white; the EXIF orientation is applied; of an animation the first
    frame is taken; 16-bit grey keeps its high byte, as Pillow does for 16-bit colour. Size is
    checked before any pixel is decoded. A file that ends early is refused: a half-grey picture
    would be answered as if it were whole.

    Args:
        source: File path, the bytes of a file, or a PIL image (which is left unchanged, and read at
            the frame it stands on).
        max_pixels: Largest width x height accepted.
        at_least: A JPEG file may be decoded at a half, a quarter or an eighth of its size, as long
            as its longer side stays this long. Several times faster; the pixels are others than
            those of resizing the whole picture. By default it is decoded whole.

    Returns:
        A new RGB image without metadata: read again, it is the same image.

    Raises:
        InputError: The source is of another type, or the file is missing, unreadable, not an image,
            broken, empty or too big.
    """
    if isinstance(source, Image.Image):
        with _quiet():
            return _to_rgb(source, "the given PIL image", max_pixels)
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), "the given bytes", max_pixels, at_least)
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"a picture is given as {type(source).__name__}",
            "a file, the bytes of one, or a PIL image (of an array: PIL.Image.fromarray)",
        )
    name = f"image file {str(source)!r}"
    try:
        path = Path(source)
        if not path.exists():
            raise InputError(f"{name} does not exist", fix="check the path")
        if not path.is_file():
            raise InputError(f"{name} is not a regular file", "a picture file")
        with path.open("rb") as file:
            return _read(file, name, max_pixels, at_least)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        # Unreadable for this user, a name with a null byte, a name the file system refuses.
        raise InputError(f"{name} cannot be read ({_reason(error)})") from error


def _read(file: BinaryIO, name: str, max_pixels: int, at_least: int | None) -> Image.Image:
    """Opens a seekable binary file as an image; `name` is what messages call it."""
    Image.init()
    formats = [f for f in _FORMATS if f in Image.OPEN]  # AVIF and JPEG 2000 are optional builds
    with _quiet():
        try:
            image = Image.open(file, formats=formats)
        except Image.DecompressionBombError as error:
            raise _too_big(name, str(error), max_pixels) from error
        except Image.UnidentifiedImageError as error:
            raise InputError(
                f"{name} is not an image that can be read", "PNG, JPEG, WebP, GIF, BMP, TIFF, ..."
            ) from error
        except Exception as error:  # decoders of untrusted bytes raise anything
            raise InputError(f"{name} is a broken image ({_reason(error)})") from error
        with image:
            if at_least is not None:
                _check_size(image.size, name, max_pixels)
                width, height = (math.ceil(n * at_least / max(image.size)) for n in image.size)
                image.draft(None, (width, height))
            return _to_rgb(image, name, max_pixels, own=True)


_quiet_lock = threading.Lock()
_quiet_stack = contextlib.ExitStack()
_quiet_depth = 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides Pillow's warnings, of damaged metadata and of sizes that are refused anyway.

    Python's own filters belong to the process: of two threads that change them at once, the one
    that ends last would leave them changed for good. So the first thread in sets them, and the
    last one out restores them.
    """
    global _quiet_depth
    with _quiet_lock:
        if not _quiet_depth:
            _quiet_stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if not _quiet_depth:
                _quiet_stack.close()


def _to_rgb(image: Image.Image, name: str, max_pixels: int, own: bool = False) -> Image.Image:
    """Decodes, turns upright and converts to RGB; never changes `image` unless it is our `own`."""
    _check_size(image.size, name, max_pixels)
    try:
        image.load()
        _check_size(image.size, name, max_pixels)  # an icon's header may have lied
        turn = _UPRIGHT.get(_orientation(image))
        if own and image.mode == "RGB" and image.format == "JPEG":
            rgb = image  # spares a copy; a file of one frame is a plain picture once it is decoded
        else:
            rgb = _flatten(image)
        upright = rgb if turn is None else rgb.transpose(turn)
        upright.info = {}  # Pillow hands the orientation on: whoever reads the image would turn it
        return upright
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_big(name, str(error), max_pixels) from error
    except Exception as error:  # decoders of untrusted bytes raise anything
        raise InputError(
            f"{name} is a broken image ({_reason(error)})", fix="save it again or send another"
        ) from error


def _flatten(image: Image.Image) -> Image.Image:
    """Any decoded image as a new RGB image, transparency over white."""
    if image.mode == "F":
        raise InputError(
            "the image holds floating-point pixels, whose range is not known",
            fix="save it as an 8-bit picture",
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow clips these at 255 when it converts. Its "I" images are 16-bit data too (PNG, PGM).
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged metadata around sound pixels: show the picture as stored
        return 1


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{name} is empty: {width}x{height} pixels", "at least 1x1")
    if width * height > max_pixels:
        raise _too_big(name, f"{width}x{height} = {width * height} pixels", max_pixels)


def _too_big(name: str, detail: str, max_pixels: int) -> InputError:
    return InputError(
        f"{name} is too big: {detail}", f"at most {max_pixels} pixels", "scale it down first"
    )


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text or type(error).__name__


def understanding_canvas(
    image: Image.Image, settings: ImageSettings, out: np.ndarray | None = None
) -> np.ndarray:
    """Letterboxes a picture on the background colour.

    The longer side becomes S (bicubic with antialiasing, also upwards), the other keeps the aspect
    ratio but not below `min_size`, and the result is centred, rounding towards the top left. Bit
    equal to the public reference implementation on Pillow 13 in 'reference' mode, whatever Pillow
    is installed; to transformers' PIL image processor on the installed Pillow in 'hf' mode.

    Args:
        image: RGB picture of any size.
        settings: Canvas size, background and rounding rule.
        out: uint8 [S, S, 3], contiguous, to draw on; by default a new array.

    Returns:
        uint8 [S, S, 3].

    Raises:
        InputError: The picture has no pixels.
    """
    image = _as_rgb(image)
    side = settings.image_size
    longest = max(image.size)
    if settings.resize == "reference":
        target = [int(length / longest * side) for length in image.size]
    else:
        scale = side / longest
        target = [round(length * scale) for length in image.size]
    width, height = (max(length, settings.min_size) for length in target)
    if settings.resize == "reference":
        resized = _resize(image, width, height)
    else:
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
    canvas = np.empty((side, side, 3), np.uint8) if out is None else out
    canvas.reshape(side, -1)[:] = np.tile(np.array(settings.background, np.uint8), side)
    left, top = (side - width) // 2, (side - height) // 2
    canvas[top : top + height, left : left + width] = np.asarray(resized)
    return canvas


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bicubic resize in the pass order of Pillow 13, on any version.

    Pillow rounds to bytes between its two passes, so their order shows. Before 13 it went
    horizontally first (but for extreme strips); 13 goes vertically first where that removes more
    than twice as many rows as columns, which tall pictures do: up to 11 levels apart.
    """
    rows, columns = image.height - height, image.width - width
    vertical_first = rows > 0 and rows > 2 * columns
    between = (image.width, height) if vertical_first else (width, image.height)
    bicubic = Image.Resampling.BICUBIC
    return image.resize(between, bicubic).resize((width, height), bicubic)


def understanding_pixels(image: Image.Image, settings: ImageSettings) -> np.ndarray:
    """Canvas of `understanding_canvas`, scaled to [0, 1] and normalised.

    The order of operations and roundings is that of the reference: the scaling in float64, then
    float32. Padding comes first, so the bars are normalised as well.

    Args:
        image: RGB picture of any size.
        settings: Canvas, mean and standard deviation.

    Returns:
        float32 [S, S, 3].

    Raises:
        InputError: The picture has no pixels.
    """
    scaled = understanding_canvas(image, settings).astype(np.float64) * (1 / 255)
    mean, std = np.array([settings.mean, settings.std], np.float32)
    return (scaled.astype(np.float32) - mean) / std


def generation_pixels(image: Image.Image, image_size: int) -> np.ndarray:
    """The central square, resized (bicubic with antialiasing), as the VQ tokenizer takes it.

    Same as resizing the short side to S and cropping the centre, without ever holding the resized
    picture: a 1x20000 strip would need gigabytes. Source: Janus-Pro report, section 2 (384 x 384),
    and the usual preprocessing of the VQ tokenizer it names.

    Args:
        image: RGB picture of any size.
        image_size: S, in pixels.

    Returns:
        float32 [S, S, 3] in [-1, 1].

    Raises:
        InputError: The picture has no pixels.
    """
    image = _as_rgb(image)
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    # One pass a call, the cropped axis first: small in between, and the same on every Pillow.
    if width >= height:
        size, box = (image_size, height), (left, 0, left + short, height)
    else:
        size, box = (width, image_size), (0, top, width, top + short)
    bicubic = Image.Resampling.BICUBIC
    square = image.resize(size, bicubic, box).resize((image_size, image_size), bicubic)
    return np.asarray(square, np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Decoder output to bytes: clip((x + 1) / 2 * 255, 0, 255), truncated as the reference does.

    Args:
        pixels: Floats of any shape (NumPy or JAX), about [-1, 1].

    Returns:
        uint8 of the same shape.
    """
    x = np.asarray(pixels).astype(np.float32)
    return np.clip((x + 1) / 2 * 255, 0, 255).astype(np.uint8)


def _as_rgb(image: Image.Image) -> Image.Image:
    _check_size(image.size, "the image", math.prod(image.size))
    return image if image.mode == "RGB" else _flatten(image)
