"""The parser of names: known examples, and every record of the data set."""

import pytest

from train.data.emoji import load_emoji
from train.data.freeze_emoji import clean_names
from train.data.naming import (
    _NEUTRAL,
    GENDERS,
    TONES,
    Attributes,
    parse_colour,
    parse_name,
    split_tone,
    words,
)


@pytest.mark.parametrize(
    ("name", "role", "gender", "tone"),
    [
        ("woman firefighter: medium skin tone", "firefighter", "woman", "medium"),
        ("firefighter", "firefighter", "person", None),
        ("man running facing right: dark skin tone", "running facing right", "man", "dark"),
        ("woman: light skin tone", "adult", "woman", "light"),
        ("boy", "child", "man", None),
        ("mermaid: medium-dark skin tone", "merperson", "woman", "medium-dark"),
        ("Mx Claus", "Claus", "person", None),
        ("bald person: dark skin tone", "bald", "person", "dark"),
        ("pregnant woman", "pregnant", "woman", None),
        ("woman and man holding hands", "holding hands", "woman and man", None),
        (
            "kiss, women: light skin tone, medium-light skin tone",
            "kiss",
            "women",
            "light, medium-light",
        ),
        ("people wrestling: dark skin tone", "wrestling", "people", "dark"),
        ("family: man, woman, boy", "family", None, None),
        ("thumbs up: dark skin tone", None, None, "dark"),
        ("flag: Isle of Man", None, None, None),
        ("man's shoe", None, None, None),
        ("men's room", None, None, None),
        # What a model may write.
        ("", None, None, None),
        (": dark skin tone", None, None, "dark"),
        ("woman firefighter: purple skin tone", "firefighter: purple skin tone", "woman", None),
        (
            "kiss, men: dark skin tone, dark skin tone, dark skin tone",
            None,
            None,
            None,
        ),
        ("  man pilot: light skin tone ", "pilot", "man", "light"),
    ],
)
def test_parse_name(name, role, gender, tone):
    assert parse_name(name) == Attributes(role, gender, tone)


def test_records_hold_what_their_names_say():
    for e in load_emoji():
        assert parse_name(e.name) == Attributes(e.role, e.gender, e.tone)
        assert (e.role is not None) == (e.kind == "person-role"), e.name
        assert e.gender is None or e.gender in GENDERS
        assert e.tone is None or set(e.tone.split(", ")) <= set(TONES)


def test_no_neutral_role_is_forgotten():
    """Whoever has a woman's and a man's variant is a person without either word, too."""
    names = {e.name for e in load_emoji() if e.tone is None}
    stems = {name.removeprefix("woman ") for name in names if name.startswith("woman ")}
    assert {stem for stem in stems if stem in names} <= _NEUTRAL
    assert names >= _NEUTRAL


@pytest.mark.parametrize(
    ("name", "colour", "thing"),
    [
        ("red heart", "red", "heart"),
        ("light blue heart", "light blue", "heart"),
        ("large orange diamond", "orange", "large diamond"),
        ("hollow red circle", "red", "hollow circle"),
        ("redwood", None, None),
        ("heart", None, None),
    ],
)
def test_parse_colour(name, colour, thing):
    assert parse_colour(name) == (colour, thing)


def test_split_tone_leaves_other_colons_alone():
    assert split_tone("flag: China") == ("flag: China", None)
    assert split_tone("family: man, boy") == ("family: man, boy", None)
    assert split_tone("ear: dark skin tone") == ("ear", "dark")


def test_words():
    assert words("man: medium-light skin tone") == ("man", ":", "medium-light", "skin", "tone")
    assert words("seven o'clock") == ("seven", "o'clock")
    assert words("seven-thirty") == ("seven", "-", "thirty")


def test_clean_names():
    assert clean_names(":woman_medium_skin_tone_red_hair:", ":女人_中等肤色红发:", "person") == (
        "woman with red hair: medium skin tone",
        "红发女人：中等肤色",
    )
    assert clean_names(":Congo-Kinshasa:", ":刚果_金:", "country-flag") == (
        "flag: Congo-Kinshasa",
        "旗：刚果（金）",
    )
