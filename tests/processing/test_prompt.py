"""Prompts: equal to whole-string encoding on ordinary text, closed to typed control strings."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_jax.errors import InputError
from janus_jax.processing import (
    JANUS,
    JANUS_PRO,
    UNDERSTANDING_SYSTEM_PROMPT,
    Roles,
    Turn,
    chat_prompt,
    generation_prompt,
    image_index,
    left_pad,
    unconditional,
)

from . import fakes

FAKES = [fakes.emoji_like, fakes.deepseek_like]
SLOTS = 3
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
IMAGE = "<begin_of_image>" + "<image_placeholder>" * SLOTS + "<end_of_image>"

# Ordinary text: any Unicode but the first letters of the fakes' control tokens, and often the
# letters that one of them has as added tokens.
BENIGN = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="<a") | st.sampled_from("øü"),
    max_size=20,
)
SENTENCE = st.lists(
    st.sampled_from(
        ["a red apple", "What is this?", " ", "\n", "User:", "苹果", "é", "  ", "don't"]
    ),
    max_size=5,
).map("".join)
TEXT = st.one_of(BENIGN, SENTENCE)
CONVERSATION = st.lists(st.tuples(TEXT, st.integers(0, 2)), min_size=1, max_size=4)


def turns_of(conversation):
    return [
        Turn("user", text, images) if i % 2 == 0 else Turn("assistant", text)
        for i, (text, images) in enumerate(conversation)
    ]


def rendered(turns, roles, system):
    """The prompt as one string, written from the template's description."""
    out = system + "\n\n" if system else ""
    for turn in turns:
        role = roles.user if turn.role == "user" else roles.assistant
        message = ("<image_placeholder>\n" * turn.num_images + turn.text).strip()
        end = "\n\n" if turn.role == "user" else EOS
        out += f"{role}: {message}{end}" if message else f"{role}:"
    if turns[-1].role == "user":
        out += f"{roles.assistant}:"
    return BOS + out.strip().replace("<image_placeholder>", IMAGE)


def chat(tokenizer, turns, roles=JANUS_PRO, system=""):
    return chat_prompt(tokenizer, turns, roles=roles, system=system, num_image_tokens=SLOTS)


@pytest.mark.parametrize("roles", [JANUS, JANUS_PRO], ids=["janus", "janus-pro"])
@given(conversation=CONVERSATION, system=st.one_of(st.just(""), TEXT))
@settings(max_examples=120, deadline=None)
def test_ids_equal_whole_string_encoding(roles, conversation, system):
    turns = turns_of(conversation)
    if not any(turn.text.strip() or turn.num_images for turn in turns):
        return
    for fake in FAKES:
        t = fake()
        prompt = chat(t, turns, roles, system)
        assert prompt.ids.dtype == np.int32
        assert prompt.ids.tolist() == fakes.whole_string(t, rendered(turns, roles, system))
        slots = [i for i, token in enumerate(prompt.ids) if token == t.image_placeholder]
        spans = [i for start, length in prompt.image_spans for i in range(start, start + length)]
        assert spans == slots


@pytest.mark.parametrize("roles", [JANUS, JANUS_PRO], ids=["janus", "janus-pro"])
@given(text=TEXT)
@settings(max_examples=60, deadline=None)
def test_generation_ids_equal_whole_string_encoding(roles, text):
    if not text.strip():
        return
    for fake in FAKES:
        t = fake()
        expected = f"{BOS}{roles.user}: {text.strip()}\n\n{roles.assistant}:<begin_of_image>"
        ids = generation_prompt(t, text, roles=roles)
        assert ids.dtype == np.int32 and ids.tolist() == fakes.whole_string(t, expected)


def test_the_strings_are_those_of_the_reference():
    turns = [Turn("user", "What is this?", 1), Turn("assistant", "An apple."), Turn("user", "Red?")]
    assert rendered(turns, JANUS, UNDERSTANDING_SYSTEM_PROMPT) == (
        "<｜begin▁of▁sentence｜>You are a helpful language and vision assistant. You are able to "
        "understand the visual content that the user provides, and assist the user with a variety "
        f"of tasks using natural language.\n\nUser: {IMAGE}\nWhat is this?\n\nAssistant: An apple."
        "<｜end▁of▁sentence｜>User: Red?\n\nAssistant:"
    )
    turns = [Turn("user", "", 0), Turn("assistant", "hi")]
    assert rendered(turns, JANUS_PRO, "") == f"{BOS}<|User|>:<|Assistant|>: hi{EOS}"


def test_one_prompt_by_hand():
    t = fakes.emoji_like()
    prompt = chat(t, [Turn("user", "what?", 1), Turn("assistant", "apple"), Turn("user", "ok")])
    assert prompt.ids.tolist() == [
        *[0, 6, *t.encode(": "), 4, 3, 3, 3, 5, *t.encode("\nwhat?\n\n")],
        *[7, *t.encode(": apple"), 1],
        *[6, *t.encode(": ok\n\n"), 7, *t.encode(":")],
    ]
    start = 2 + len(t.encode(": ")) + 1
    assert prompt.image_spans == ((start, 3),)
    assert generation_prompt(t, "x", roles=JANUS_PRO).tolist() == [
        *[0, 6, *t.encode(": x\n\n"), 7, *t.encode(":"), 4]
    ]


@pytest.mark.parametrize("roles", [JANUS, JANUS_PRO], ids=["janus", "janus-pro"])
@pytest.mark.parametrize("fake", FAKES)
def test_typed_control_strings_stay_text(fake, roles):
    t = fake()

    def controls(ids):
        return [i for i in ids.tolist() if i in t.protected]

    clean = chat(t, [Turn("user", "x", 1), Turn("assistant", "x"), Turn("user", "x")], roles, "x")
    drawn = controls(generation_prompt(t, "x", roles=roles))
    for token in fakes.added(t):
        for text in (token, f"a {token} b", f"x\n\n{token}: yes{token}"):
            typed = chat(
                t, [Turn("user", text, 1), Turn("assistant", text), Turn("user", text)], roles, text
            )
            assert controls(typed.ids) == controls(clean.ids)
            assert len(typed.image_spans) == 1
            start, length = typed.image_spans[0]
            assert (typed.ids[start : start + length] == t.image_placeholder).all()
            ids = generation_prompt(t, text, roles=roles)
            assert controls(ids) == drawn
            assert text in t.decode(ids)


def test_roles_that_are_not_in_the_vocabulary_are_words():
    t = fakes.emoji_like()
    ids = generation_prompt(t, "x", roles=Roles("<|Human|>", "<|Machine|>")).tolist()
    assert ids == [t.bos, *t.encode("<|Human|>: x\n\n<|Machine|>:"), t.image_start]


@pytest.mark.parametrize("text", ["", " ", "\n\t　"])
def test_empty_prompts_are_refused(text):
    t = fakes.emoji_like()
    with pytest.raises(InputError, match="the prompt is empty"):
        generation_prompt(t, text, roles=JANUS_PRO)
    with pytest.raises(InputError, match="the prompt is empty"):
        chat(t, [Turn("user", text)], system="a system prompt")
    with pytest.raises(InputError, match="the prompt is empty"):
        chat(t, [])
    assert len(chat(t, [Turn("user", text, 1)]).image_spans) == 1


def test_turns_must_alternate_and_only_users_send_images():
    t = fakes.emoji_like()
    with pytest.raises(InputError, match="turn 1 has the role 'assistant'"):
        chat(t, [Turn("assistant", "hi")])
    with pytest.raises(InputError, match="turn 2 has the role 'user'"):
        chat(t, [Turn("user", "a"), Turn("user", "b")])
    with pytest.raises(InputError, match="turn 2"):
        chat(t, [Turn("user", "a"), Turn("assistant", "b", 1)])
    with pytest.raises(InputError, match="turn 1"):
        chat(t, [Turn("user", "a", -1)])


# --- arrays


def test_unconditional():
    ids = np.array([5, 6, 7, 8, 9], np.int32)
    row = unconditional(ids, 2)
    assert row.tolist() == [5, 2, 2, 2, 9] and row.dtype == np.int32
    assert ids.tolist() == [5, 6, 7, 8, 9]


def test_left_pad():
    ids, mask, positions = left_pad([np.array([5, 6, 7]), np.array([8])], 2)
    assert ids.tolist() == [[5, 6, 7], [2, 2, 8]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]
    assert positions.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert (ids.dtype, mask.dtype, positions.dtype) == (np.int32, np.bool_, np.int32)
    ids, mask, positions = left_pad([np.array([5, 6])], 2, length=4)
    assert ids.tolist() == [[2, 2, 5, 6]]
    assert mask.tolist() == [[False, False, True, True]]
    assert positions.tolist() == [[0, 0, 0, 1]]


def test_left_pad_keeps_a_real_pad_token_attended():
    row = unconditional(np.array([0, 6, 9, 4]), 2)
    _, mask, positions = left_pad([row, np.arange(5)], 2)
    assert mask.tolist() == [[False, True, True, True, True], [True] * 5]
    assert positions.tolist() == [[0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_left_pad_refuses_what_does_not_fit():
    for rows, length in (([], None), ([np.array([])], None), ([np.arange(3)], 2)):
        with pytest.raises(InputError):
            left_pad(rows, 0, length)


def test_image_index():
    spans = [[(1, 2), (4, 2)], [], [(0, 2)]]
    assert image_index(spans, 6, 2).tolist() == [
        [-1, 0, 1, -1, 2, 3],
        [-1, -1, -1, -1, -1, -1],
        [4, 5, -1, -1, -1, -1],
    ]
    padded = image_index(spans[1:], 4, 2, offsets=[0, 1])
    assert padded.tolist() == [[-1, -1, -1, -1], [-1, 0, 1, -1]]
    assert padded.dtype == np.int32


def test_image_index_refuses_spans_that_do_not_fit():
    for span, offset in (((0, 3), 0), ((3, 2), 0), ((1, 2), 2), ((-1, 2), 0)):
        with pytest.raises(ValueError, match="row 0"):
            image_index([[span]], 4, 2, offsets=[offset])


def test_spans_still_point_at_the_slots_after_left_padding():
    t = fakes.emoji_like()
    prompts = [
        chat(t, [Turn("user", "a long question, really", 2)]),
        chat(t, [Turn("user", "", 1)]),
    ]
    ids, _, _ = left_pad([p.ids for p in prompts], t.pad)
    offsets = [ids.shape[1] - len(p.ids) for p in prompts]
    index = image_index([p.image_spans for p in prompts], ids.shape[1], SLOTS, offsets)
    assert ((index >= 0) == (ids == t.image_placeholder)).all()
    assert index[index >= 0].tolist() == list(range(9))
