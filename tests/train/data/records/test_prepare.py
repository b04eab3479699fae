"""Records as the model sees them: the prompts and pixels of inference, and the answers marked."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from janus_jax.processing.image import load_image, understanding_canvas
from janus_jax.processing.prompt import (
    JANUS,
    Turn,
    chat_prompt,
    generation_prompt,
    unconditional,
)
from janus_jax.processing.tokenizer import Tokenizer
from tests.train.data.records.sets import (
    IMAGE_TOKENS,
    PREPARATION,
    PROCESSOR,
    TOKENIZER,
    generation,
    picture,
    text,
    understanding,
)
from train.data.packing import Conversation, Generation
from train.data.records.record import Record
from train.data.records.schema import BrokenRecord


def chat(turns, preparation=PREPARATION):
    processor = preparation.processor
    return chat_prompt(
        TOKENIZER,
        turns,
        roles=processor.roles,
        system=processor.system_prompt,
        num_image_tokens=IMAGE_TOKENS,
    )


def test_a_question_about_pictures_is_the_prompt_of_inference_and_its_answer():
    pictures = (picture(1), picture(2, (8, 30), "JPEG"))
    sample = PREPARATION.sample(understanding(3, images=pictures))
    assert isinstance(sample, Conversation)
    prompt = chat([Turn("user", "what is it?", num_images=2)])
    np.testing.assert_array_equal(sample.tokens[: len(prompt.ids)], prompt.ids)
    assert sample.tokens[len(prompt.ids) :].tolist() == [
        *TOKENIZER.encode(" a red 3"),
        TOKENIZER.eos,
    ]
    assert sample.answer.tolist() == [False] * len(prompt.ids) + [True] * (
        len(sample.tokens) - len(prompt.ids)
    )
    assert sample.starts == tuple(start for start, _ in prompt.image_spans)
    assert sample.pictures is not None and sample.pictures.dtype == np.uint8
    for got, data in zip(sample.pictures, pictures, strict=True):
        want = understanding_canvas(load_image(data), PROCESSOR.image)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("roles", [PROCESSOR.roles, JANUS], ids=["control", "words"])
def test_every_answer_of_a_conversation_is_learned_with_its_end(roles):
    preparation = replace(PREPARATION, processor=replace(PROCESSOR, roles=roles))
    record = text(7, rounds=3)
    sample = preparation.sample(record)
    assert isinstance(sample, Conversation) and sample.pictures is None
    turns = [Turn(*turn) for turn in record.turns]  # type: ignore[arg-type]
    np.testing.assert_array_equal(sample.tokens, chat(turns, preparation).ids)
    want = np.zeros(len(sample.tokens), bool)
    for end in (2, 4, 6):
        before = chat(turns[: end - 1], preparation).ids
        want[len(before) : len(chat(turns[:end], preparation).ids)] = True
    assert sample.answer.tolist() == want.tolist()
    assert TOKENIZER.decode(sample.tokens[sample.answer]) == " a 7" * 3


def test_an_answer_that_the_tokenizer_joins_to_the_colon_starts_after_the_prompt():
    content = json.loads(TOKENIZER.to_json())
    content["pre_tokenizer"]["use_regex"] = False
    content["model"]["vocab"][":Ġ"] = len(content["model"]["vocab"])
    content["model"]["merges"].insert(0, [":", "Ġ"])
    joined = Tokenizer.from_json(json.dumps(content))
    sample = replace(PREPARATION, tokenizer=joined).sample(text(1))
    assert isinstance(sample, Conversation)
    assert joined.decode(sample.tokens[sample.answer]) == "a 1"


def test_a_drawing_is_its_prompt_and_codes_and_guidance_drops_its_caption():
    sample, dropped = (PREPARATION.sample(generation(70), drop) for drop in (False, True))
    assert isinstance(sample, Generation) and isinstance(dropped, Generation)
    prompt = generation_prompt(TOKENIZER, "a heart 70", roles=PROCESSOR.roles)
    np.testing.assert_array_equal(sample.prompt, prompt)
    np.testing.assert_array_equal(dropped.prompt, unconditional(prompt, TOKENIZER.pad))
    assert sample.codes.tolist() == dropped.codes.tolist() == [0, 0, 1, 6]


@pytest.mark.parametrize("record", [understanding(1), text(2, 2), generation(3)])
def test_measures_are_those_of_the_sample(record):
    found, sample = PREPARATION.measure(record), PREPARATION.sample(record)
    assert found.tokens == sample.length
    if isinstance(sample, Conversation):
        assert found.text_targets == sample.answer.sum()
        assert found.pictures == len(sample.starts)
    else:
        assert found.text_targets == found.pictures == 0


def codes(*values: int) -> Record:
    return replace(generation(1), codes=np.array(values, np.int32))


BROKEN = [
    (replace(generation(1), codes=None), "no image tokens"),
    (codes(1, 2, 3), "wrong number of image tokens"),
    (codes(1, 2, 3, 64), "image tokens out of range"),
    (codes(1, 2, 3, -1), "image tokens out of range"),
    (replace(generation(1), caption=" "), "the caption makes no prompt"),
    (replace(generation(1), caption="\ud800"), "the caption makes no prompt"),
    (replace(text(1), turns=()), "the turns make no prompt"),
    (replace(text(1), turns=(("user", "a"),)), "the turns make no prompt"),
    (replace(text(1), turns=(("user", "a"), ("assistant", " "))), "the turns make no prompt"),
    (replace(text(1), turns=(("assistant", "a"), ("user", "b"))), "the turns make no prompt"),
]


@pytest.mark.parametrize(("record", "reason"), BROKEN)
def test_broken_records_are_known_without_their_pictures(record, reason):
    with pytest.raises(BrokenRecord) as error:
        PREPARATION.measure(record)
    assert (error.value.id, error.value.reason) == (record.id, reason)


def test_broken_pictures_are_met_when_they_are_decoded():
    record = understanding(1, images=(picture(1)[:40],))
    assert PREPARATION.measure(record).pictures == 1
    with pytest.raises(BrokenRecord, match="u1: picture cannot be decoded"):
        PREPARATION.sample(record)


def test_fast_decoding_is_of_large_jpeg_files_only():
    fast = replace(PREPARATION, fast_decode=True)
    ramp = np.linspace(0, 255, 160 * 120 * 3).astype(np.uint8).reshape(120, 160, 3)
    ramp[::3, ::2] = 255 - ramp[::3, ::2]

    def pixels(preparation, format):
        buffer = io.BytesIO()
        Image.fromarray(ramp).save(buffer, format)
        sample = preparation.sample(understanding(1, images=(buffer.getvalue(),)))
        return sample.pictures[0].astype(int)

    np.testing.assert_array_equal(pixels(fast, "PNG"), pixels(PREPARATION, "PNG"))
    difference = abs(pixels(fast, "JPEG") - pixels(PREPARATION, "JPEG"))
    assert 0 < difference.mean() < 8


def test_the_fingerprint_tells_what_lengths_depend_on():
    same = replace(PREPARATION, fast_decode=True)
    assert same.fingerprint() == PREPARATION.fingerprint()
    others = [
        replace(PREPARATION, image_tokens=5),
        replace(PREPARATION, codebook_size=65),
        replace(PREPARATION, processor=replace(PROCESSOR, system_prompt="")),
        replace(PREPARATION, processor=replace(PROCESSOR, roles=JANUS)),
    ]
    prints = {p.fingerprint() for p in (PREPARATION, *others)}
    assert len(prints) == 5 and all(len(p) == 16 for p in prints)
