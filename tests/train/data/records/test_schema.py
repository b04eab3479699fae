import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.records.schema import CAPTION_QUESTION, BrokenRecord, parse

ASK = [{"role": "user", "text": "Colour?"}, {"role": "assistant", "text": "Black."}]


def load(value: object) -> bytes:
    if value == "gone":
        raise FileNotFoundError(2, "No such file", "gone")
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a path")
    return f"<{value}>".encode()


def one(fields: object, **options):
    (record,) = parse(fields, "f:1", load, **options)
    return record


def test_a_picture_with_a_caption_is_drawn():
    record = one({"image": "a", "caption": " a cat ", "width": 7})
    assert (record.id, record.kind, record.images, record.caption, record.turns) == (
        "f:1", "generation", (b"<a>",), "a cat", ()
    )  # fmt: skip


def test_a_caption_can_be_for_understanding_or_both():
    turns = (("user", CAPTION_QUESTION), ("assistant", "a cat"))
    fields = {"image": "a", "text": "a cat", "id": 7}
    record = one(fields, captions="understanding")
    assert (record.id, record.kind, record.turns) == ("7", "understanding", turns)
    both = parse(fields, "f:1", load, captions="both")
    assert [(r.id, r.kind) for r in both] == [
        ("7/generation", "generation"),
        ("7/understanding", "understanding"),
    ]
    # The record itself decides when it says so.
    assert one({**fields, "kind": "generation"}, captions="both").id == "7"


def test_turns_with_pictures_and_without():
    assert one({"image": "a", "turns": ASK}).kind == "understanding"
    record = one({"images": ["a", "b"], "turns": ASK})
    assert record.images == (b"<a>", b"<b>")
    assert one({"turns": ASK}).kind == "text"


def test_llava_conversations():
    record = one(
        {
            "image": "a",
            "conversations": [
                {"from": "human", "value": "<image>\nColour?"},
                {"from": "gpt", "value": "Black."},
            ],
        }
    )
    assert record.turns == (("user", "Colour?"), ("assistant", "Black."))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([], "not an object of fields"),
        ({}, "neither caption nor turns"),
        ({"image": "a"}, "neither caption nor turns"),
        ({"caption": "a"}, "generation needs one image and a caption"),
        ({"images": ["a", "b"], "caption": "a"}, "generation needs one image and a caption"),
        ({"image": "a", "images": ["a"], "caption": "a"}, "both image and images"),
        ({"images": "a", "caption": "a"}, "images is not a list"),
        ({"image": "gone", "caption": "a"}, "image file is missing"),
        ({"image": 7, "caption": "a"}, "image file cannot be read"),
        ({"image": "a", "caption": 7}, "caption is not a text"),
        ({"image": "a", "caption": "a", "kind": "video"}, "unknown kind"),
        ({"turns": "hello"}, "turns is not a list"),
        ({"turns": ["hello"]}, "a turn is not an object"),
        ({"turns": [{"role": "system", "text": "x"}]}, "unknown role"),
        ({"turns": [{"role": "user"}]}, "a turn has no text"),
        ({"turns": ASK[:1]}, "turns do not go user, assistant, ... and end with assistant"),
        ({"turns": ASK[::-1]}, "turns do not go user, assistant, ... and end with assistant"),
        ({"turns": [ASK[0], {"role": "assistant", "text": " "}]}, "an answer is empty"),
        ({"turns": ASK, "kind": "understanding"}, "understanding needs an image"),
        ({"turns": ASK, "image": "a", "kind": "text"}, "text has no images"),
    ],
)
def test_broken_records_say_why(fields: object, reason: str):
    with pytest.raises(BrokenRecord) as caught:
        parse(fields, "f:1", load)
    assert (caught.value.id, caught.value.reason) == ("f:1", reason)


FIELDS = ["id", "kind", "image", "images", "caption", "text", "turns", "conversations", "role"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_gives_records_or_a_broken_record(fields: object):
    try:
        found = parse(fields, "f:1", load, captions="both")
    except BrokenRecord:
        return
    assert found and all(record.id for record in found)
