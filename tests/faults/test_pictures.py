"""Pictures as users bring them, through `data pack` to samples: right, or counted with a reason."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from janus_jax.processing.image import MAX_PIXELS, load_image, understanding_canvas
from tests.faults.test_broken_records import bomb, floating
from tests.processing.fakes import encoded, picture
from tests.train.data.records.files import turns, write_jsonl
from tests.train.data.records.sets import PREPARATION, PROCESSOR
from train.data.packing import Conversation
from train.data.records.pack import PackSettings, pack
from train.data.records.shards import open_records

TWIN = picture(23, 14)
FRAMES = [Image.new("RGB", (9, 6), color) for color in ((255, 0, 0), (0, 0, 255))]
GREY = np.array([[0, 255, 256, 511], [4096, 32768, 65279, 65535]], np.uint16)

# Turned like this, a picture is upright again by its EXIF orientation.
TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def oriented(number: int) -> bytes:
    """The twin, stored turned, with the number that says so."""
    exif = Image.Exif()
    exif[0x0112] = number
    turn = TURNED[number]
    return encoded(TWIN if turn is None else TWIN.transpose(turn), "PNG", exif=exif)


def cmyk() -> Image.Image:
    return Image.fromarray(np.asarray(picture(8, 8 * 4)).reshape(16, 12, 4), "CMYK")


# Files, and the picture that each shows.
GOOD: dict[str, tuple[bytes, Image.Image]] = {
    **{f"orientation-{n}.png": (oriented(n), TWIN) for n in TURNED},
    "animated.gif": (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), FRAMES[0]),
    "animated.png": (encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), FRAMES[0]),
    "cmyk.tiff": (encoded(cmyk(), "TIFF"), cmyk().convert("RGB")),
    "16-bit.png": (
        encoded(Image.fromarray(GREY), "PNG"),
        Image.fromarray((GREY >> 8).astype(np.uint8)).convert("RGB"),
    ),
    "1x1.png": (encoded(picture(1, 1), "PNG"), picture(1, 1)),
    "1x20000.png": (encoded(picture(1, 20000), "PNG"), picture(1, 20000)),
    "20000x1.png": (encoded(picture(20000, 1), "PNG"), picture(20000, 1)),
}

# Files, and what is said of each.
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut.png": (lambda: encoded(TWIN, "PNG")[:-40], "broken image"),
    "cut.jpg": (lambda: encoded(picture(64, 64), "JPEG")[:-400], "broken image"),
    "page.png": (lambda: b"<html>404</html>", "not an image"),
    "empty.png": (lambda: b"", "not an image"),
    "floating.tiff": (lambda: floating(b""), "floating-point"),
    # Some bytes that say they are 60000 x 60000 pixels, and a few kilobytes that are 9000 x 9000.
    "header.png": (bomb, "is too big"),
    "bomb.png": (lambda: encoded(Image.new("1", (9000, 9000)), "PNG"), "is too big"),
}


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_odd_pictures_become_their_samples_and_broken_ones_are_counted(tmp_path: Path):
    for name, (data, _) in GOOD.items():
        (tmp_path / name).write_bytes(data)
    for name, (make, _) in BAD.items():
        (tmp_path / name).write_bytes(make())
    assert MAX_PIXELS < 9000 * 9000 and (tmp_path / "bomb.png").stat().st_size < 20_000
    lines = [{"id": name, "image": name, "turns": turns(0)} for name in (*GOOD, *BAD)]
    inputs = (str(write_jsonl(tmp_path / "in.jsonl", [*lines])),)
    manifest = pack(PackSettings(inputs), tmp_path / "out", workers=1, max_broken=0.5)

    records = {r.id: r for r in open_records(tmp_path / "out").kinds["understanding"]}
    assert list(records) == list(GOOD)
    for name, (data, shown) in GOOD.items():
        assert records[name].images == (data,)
        loaded = load_image(data)
        assert loaded.size == shown.size, name
        np.testing.assert_array_equal(np.asarray(loaded), np.asarray(shown), err_msg=name)
        sample = PREPARATION.sample(records[name])
        assert isinstance(sample, Conversation) and sample.pictures is not None
        canvas = understanding_canvas(shown, PROCESSOR.image)
        np.testing.assert_array_equal(sample.pictures, canvas[None], err_msg=name)

    reason = "picture cannot be decoded"
    assert manifest["broken"] == {"records": len(BAD), "reasons": {reason: len(BAD)}}
    [unit] = (tmp_path / "out" / "units").iterdir()
    broken = json.loads(unit.read_text())["broken"]
    assert [(entry["id"], entry["reason"]) for entry in broken] == [(name, reason) for name in BAD]
    for entry in broken:
        assert BAD[entry["id"]][1] in entry["detail"], entry
    # With this set, Pillow would hand out what is cut off as whole, grey where it ends.
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
