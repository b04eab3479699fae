from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from bench.emoji_gallery import LINES, TEXT_WIDTH, draw_gallery, fit, wrap
from janus_jax.errors import InputError
from train.data.emoji import load_emoji


def test_the_longest_names_fit_two_lines():
    names = sorted((e.name for e in load_emoji()), key=len)[-60:]
    for name in names:
        lines, font = fit(name)
        assert len(lines) == LINES, name
        assert max(map(font.getlength, lines)) <= TEXT_WIDTH, name


def test_wrap_keeps_words_and_balances_lines():
    font = ImageFont.load_default(18)
    text = "men wrestling: light skin tone, medium skin tone"
    lines = wrap(text, font, 300)
    assert " ".join(lines) == text
    assert len(lines) == 2
    assert min(map(len, lines)) > 18
    assert wrap("short", font, 300) == ["short"]
    assert wrap("unbreakable", font, 5) == ["unbreakable"]


def test_the_sheet_shows_the_pictures_side_by_side(tmp_path: Path):
    colours = np.array([(200, 0, 0), (0, 200, 0), (0, 0, 200)], np.uint8)
    drawn, true, nearest = (np.broadcast_to(c, (5, 8, 8, 3)) for c in colours)
    path = tmp_path / "new" / "gallery.png"
    draw_gallery(drawn, true, nearest, ["a name"] * 5, "Title", path)
    with Image.open(path) as sheet:
        assert sheet.mode == "P"
        pixels = np.asarray(sheet.convert("RGB"))
    seen = [int((pixels == colour).all(-1).sum()) for colour in colours]
    assert seen == [5 * 96 * 96] * 3
    assert pixels.shape[1] == 1372


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    picture = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="gallery"):
        draw_gallery(picture, picture, picture, ["a"], "b", tmp_path / "file" / "gallery.png")
