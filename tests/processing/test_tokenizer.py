"""The tokenizer: control ids, the wall around them, round trips, files."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from janus_jax.errors import InputError
from janus_jax.processing import CONTROL_TOKENS, StreamDecoder, Tokenizer, train_bpe

from . import fakes

FAKES = [fakes.emoji_like, fakes.deepseek_like]
ALL = [*FAKES, fakes.unigram]
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
# Text made of whole and broken control strings, letters that are added tokens, and ordinary text.
SHARDS = st.sampled_from(
    [
        *(*CONTROL_TOKENS, "<|ref|>", "apple pie", "ø", "ü", "<", "|", ">", "<|", "|>", "▁", "｜"),
        *("User", " ", "\n", "a", "苹果", "apple", "image"),
    ]
)
HOSTILE = st.lists(SHARDS, max_size=8).map("".join)


def test_control_ids_are_looked_up_by_string():
    t = fakes.emoji_like()
    assert [t.bos, t.eos, t.pad, t.image_placeholder, t.image_start, t.image_end] == list(range(6))
    assert (t.user, t.assistant) == (6, 7)
    t = fakes.deepseek_like()
    ids = fakes.added(t)
    assert [t.bos, t.eos, t.pad] == [ids[s] for s in CONTROL_TOKENS[:3]] == [340, 341, 342]
    assert [t.image_placeholder, t.image_start, t.image_end, t.user, t.assistant] == [
        ids[s] for s in CONTROL_TOKENS[3:]
    ]
    assert t.vocab_size == 340 + 10  # the added letters share the ids of bytes


def test_control_strings():
    assert CONTROL_TOKENS == (
        "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "<\uff5c\u2581pad\u2581\uff5c>",
        "<image_placeholder>",
        "<begin_of_image>",
        "<end_of_image>",
        "<|User|>",
        "<|Assistant|>",
    )


def test_token_id_knows_control_strings_only():
    t = fakes.emoji_like()
    assert t.token_id("<|User|>") == 6
    assert t.token_id("a") is None and t.token_id("nothing") is None


# --- the wall


@pytest.mark.parametrize("fake", ALL)
def test_no_added_token_can_be_typed(fake):
    t = fake()
    tokens = {token: i for token, i in fakes.added(t).items() if len(token) > 1}
    assert len(tokens) >= 8
    for token, number in tokens.items():
        assert fakes.whole_string(t, token) == [number]  # unprotected, it is the control id
        for text in (token, f"a {token} b", token * 3, f"{token[:1]}{token}{token[1:]}"):
            ids = t.encode(text)
            assert t.protected.isdisjoint(ids), text
            assert t.decode(ids) == text


def test_added_letters_are_read_as_the_weights_know_them():
    t = fakes.deepseek_like()
    ids = fakes.added(t)
    for text in ("ø", "schön für Ümit, smørrebrød", "üø"):
        assert {ids["ø"], ids["ü"]} & set(t.encode(text))
        assert t.encode(text) == fakes.whole_string(t, text)
        assert t.decode(t.encode(text)) == text
    assert t.protected.isdisjoint(t.encode("<|User|> Smør"))
    assert t.token_id("ø") is None
    assert t.protected.isdisjoint([ids["ø"], ids["ü"]])


@given(text=HOSTILE)
@settings(max_examples=150, deadline=None)
def test_hostile_text_stays_text(text):
    for fake in ALL:
        t = fake()
        ids = t.encode(text)
        assert t.protected.isdisjoint(ids)
        if fake is not fakes.unigram:
            assert t.decode(ids) == text


def test_a_character_that_is_only_a_control_token_is_refused():
    raw = tokenizers.Tokenizer(
        models.Unigram([("<unk>", 0.0), ("a", -1.0), ("✂", -1.0)], unk_id=0, byte_fallback=False)
    )
    raw.add_special_tokens([*CONTROL_TOKENS, "✂"])
    t = Tokenizer(raw)
    assert len(t.encode("aa")) == 2
    with pytest.raises(InputError, match="✂"):
        t.encode("a✂")


def test_a_pattern_that_gives_up_is_an_error_and_no_panic():
    content = json.loads(fakes.emoji_like().to_json())
    pattern = {"Regex": "(a+)+$"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    tokenizer = Tokenizer.from_json(json.dumps(content | {"pre_tokenizer": split}))
    with pytest.raises(InputError, match="cannot encode this text"):
        tokenizer.encode("a" * 40 + "b")


def test_lone_surrogates_are_refused():
    with pytest.raises(InputError, match="position 1"):
        fakes.emoji_like().encode("a\ud800")


def test_a_files_truncation_and_padding_do_not_reach_segments():
    raw = tokenizers.Tokenizer.from_str(fakes.emoji_like().to_json())
    raw.enable_truncation(2)
    raw.enable_padding(length=50)
    assert Tokenizer(raw).encode("a red apple, and more") == fakes.emoji_like().encode(
        "a red apple, and more"
    )


# --- decode


@given(text=UNICODE)
@settings(max_examples=150, deadline=None)
def test_byte_level_round_trip(text):
    for fake in FAKES:
        t = fake()
        assert t.decode(t.encode(text)) == text


def test_decode_skips_control_and_unknown_ids():
    for fake in ALL:
        t = fake()
        ids = t.encode("a red")
        mixed = [
            t.bos,
            *ids[:1],
            t.image_start,
            t.image_placeholder,
            *ids[1:],
            t.user,
            t.eos,
            t.pad,
        ]
        assert t.decode([*mixed, 10**6, -1]) == "a red"
        assert t.decode(np.array(mixed, np.int32)) == "a red"
        assert t.decode([]) == ""


def test_added_letters_decode_as_themselves():
    t = fakes.deepseek_like()
    assert t.decode(fakes.whole_string(t, "Sørensen über apple pie")) == "Sørensen über apple pie"


@given(text=st.one_of(UNICODE, HOSTILE))
@settings(max_examples=100, deadline=None)
def test_stream_pieces_join_to_the_whole(text):
    for fake in FAKES:
        t = fake()
        stream = StreamDecoder(t)
        ids = [t.bos, *t.encode(text), t.eos]
        pieces = [stream.push(i) for i in ids]
        assert "".join(pieces) + stream.finish() == text


def test_stream_never_shows_half_a_character():
    t = fakes.emoji_like()
    ids = t.encode("é🙂")
    assert len(ids) == 6
    stream = StreamDecoder(t)
    assert [stream.push(i) for i in ids] == ["", "é", "", "", "", "🙂"]
    assert stream.finish() == ""
    stream.push(ids[2])
    assert stream.finish() == "\ufffd"  # the text ended inside a character


# --- training


def test_training_is_a_function_of_the_texts():
    first, again = train_bpe(fakes.TEXTS, 340), train_bpe(iter(fakes.TEXTS), 340)
    assert first.to_json() == again.to_json()
    assert first.vocab_size == 340
    # Exact ids: another order of merges in another process would change them.
    assert first.encode("a red apple") == [72, 332, 75, 297]
    assert first.to_json() != train_bpe(fakes.TEXTS[:3], 340).to_json()


def test_training_on_little_text_gives_a_small_vocabulary():
    t = train_bpe([], 2048)
    assert t.vocab_size == 256 + 8
    assert t.decode(t.encode("苹果 é")) == "苹果 é"
    with pytest.raises(InputError, match="at least 264"):
        train_bpe([], 263)


# --- files


@pytest.mark.parametrize("fake", ALL)
def test_saved_file_reloads_equal(fake, tmp_path):
    t = fake()
    path = tmp_path / "tokenizer.json"
    t.save(path)
    again = Tokenizer.from_file(path)
    assert again.to_json() == t.to_json()
    text = "a red apple 一个红苹果"
    assert again.encode(text) == t.encode(text)
    assert vars(again).keys() == vars(t).keys() and again.protected == t.protected


@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_a_missing_control_token_is_named(token, tmp_path):
    content = json.loads(fakes.deepseek_like().to_json())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != token]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    if token in ("<|User|>", "<|Assistant|>"):  # Janus-1.3B has no role tags
        t = Tokenizer.from_file(path)
        assert (t.user, t.assistant).count(None) == 1
        return
    with pytest.raises(InputError) as caught:
        Tokenizer.from_file(path)
    assert f"lacks the control tokens {token};" in str(caught.value)
    assert "tokenizer.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"model": {"type": "None"}}', "\x00"])
def test_a_broken_file_is_refused(text, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"broken\.json' is not a valid tokenizer\.json"):
        Tokenizer.from_file(path)


def test_an_unreadable_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Tokenizer.from_file(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match="cannot be read"):
        Tokenizer.from_file(tmp_path / "latin.json")
