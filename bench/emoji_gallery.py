"""The gallery of the README: what the model drew, the true picture, the nearest training picture.

Dims: N entries, S picture side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from janus_jax.errors import InputError

COLUMNS = 4
_SIDE = 96  # of a picture on the sheet, pixels
_GAP = 8  # between the pictures of an entry
_PADDING = 12  # around an entry, inside its frame
_MARGIN = 12  # between frames
_TEXT_SIZE = 18
LINES = 2
_LINE_HEIGHT = 22
_HEADER = 96
_INK, _FAINT, _FRAME, _ACCENT = "#1f2328", "#59636e", "#d1d9e0", "#0969da"
_CELL_WIDTH = 3 * _SIDE + 2 * _GAP + 2 * _PADDING
TEXT_WIDTH = _CELL_WIDTH - 2 * _PADDING
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_gallery(
    drawn: np.ndarray,
    true: np.ndarray,
    nearest: np.ndarray,
    names: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Writes the sheet: entries in rows, three pictures each with the prompt beneath.

    Args:
        drawn: uint8 [N, S, S, 3], framed in colour.
        true: uint8 [N, S, S, 3].
        nearest: uint8 [N, S, S, 3], the training pictures nearest to the drawn ones.
        names: The prompts.
        title: First line of the header.
        path: The PNG, of 256 colours so that it stays small; folders are made.

    Raises:
        InputError: The file cannot be written.
    """
    texts = [fit(name) for name in names]
    rows = [texts[i : i + COLUMNS] for i in range(0, len(texts), COLUMNS)]
    # A row is as high as its longest text needs.
    heights = [
        2 * _PADDING + _SIDE + _GAP + _LINE_HEIGHT * max(len(lines) for lines, _ in row)
        for row in rows
    ]
    width = COLUMNS * (_CELL_WIDTH + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (width, _HEADER + sum(heights) + _MARGIN * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    _header(pen, title)
    top = _HEADER
    for r, row in enumerate(rows):
        for column, (lines, font) in enumerate(row):
            i = r * COLUMNS + column
            left = _MARGIN + column * (_CELL_WIDTH + _MARGIN)
            box = (left, top, left + _CELL_WIDTH - 1, top + heights[r] - 1)
            pen.rounded_rectangle(box, radius=8, outline=_FRAME, width=1)
            _pictures(sheet, pen, (left, top), (drawn[i], true[i], nearest[i]))
            y = top + _PADDING + _SIDE + _GAP
            for line in lines:
                pen.text((left + _CELL_WIDTH / 2, y), line, fill=_INK, font=font, anchor="ma")
                y += _LINE_HEIGHT
        top += heights[r] + _MARGIN
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _quantized(sheet).save(path, optimize=True)
    except OSError as error:
        raise InputError(
            f"the gallery {str(path)!r} cannot be written ({error})", fix="choose another --gallery"
        ) from error


def wrap(text: str, font: Font, width: int) -> list[str]:
    """Breaks a text at spaces into as few lines as fit, then makes them about equally long.

    Args:
        text: Words.
        font: What it is set in.
        width: Pixels; a longer word stays whole.

    Returns:
        At least one line.
    """
    lines = _break(text, font, width)
    while len(narrower := _break(text, font, width := width - 4)) == len(lines) and width > 0:
        lines = narrower
    return lines


def _break(text: str, font: Font, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def fit(name: str) -> tuple[list[str], Font]:
    """The lines of a prompt and their font, smaller where `LINES` lines would not hold it."""
    size = _TEXT_SIZE
    while True:
        font = ImageFont.load_default(size)
        lines = wrap(name, font, TEXT_WIDTH)
        if len(lines) <= LINES or size <= 10:
            return lines, font
        size -= 1


def _header(pen: ImageDraw.ImageDraw, title: str) -> None:
    pen.text((_MARGIN + 2, 12), title, fill=_INK, font=ImageFont.load_default(24))
    x = _MARGIN + 2
    font = ImageFont.load_default(18)
    legend = (
        ("left, framed: drawn by the model from the text beneath", _ACCENT),
        ("middle: the true picture, never trained on", _FAINT),
        ("right: of all training pictures the nearest to the drawn one", _FAINT),
    )
    for text, colour in legend:
        pen.text((x, 54), text, fill=colour, font=font)
        x += int(font.getlength(text)) + 28


def _pictures(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    pictures: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    for i, picture in enumerate(pictures):
        x, y = place[0] + _PADDING + i * (_SIDE + _GAP), place[1] + _PADDING
        enlarged = Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        sheet.paste(enlarged, (x, y))
        if i == 0:
            around = (x - 4, y - 4, x + _SIDE + 3, y + _SIDE + 3)
            pen.rounded_rectangle(around, radius=5, outline=_ACCENT, width=2)


def _quantized(sheet: Image.Image) -> Image.Image:
    """At most 256 colours; median cut follows the skin tones better than an octree does."""
    return sheet.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
