"""The emoji samples of packed steps, read back into text."""

import dataclasses

import numpy as np
import pytest

from janus_jax.processing.prompt import unconditional
from janus_jax.processing.settings import EMOJI_PROCESSOR
from train.data import tasks
from train.data.emoji import load_emoji, load_pictures
from train.data.emoji_source import EmojiSource, conversation
from train.data.packing import Conversation, Generation, Kind, Sample
from train.data.samples import EmojiData

P = 16
COUNTS: dict[Kind, int] = {"understanding": 10, "text": 2, "generation": 8}


@pytest.fixture(scope="module")
def source(data, codes) -> EmojiSource:
    return EmojiSource(data, COUNTS, codes)


def samples(source: EmojiSource, step: int) -> list[Sample]:
    return [source.load(step, entry) for entry in source.plan(step)]


def test_a_conversation_literally(data):
    qa = tasks.caption_examples(data.records[3])[0]
    sample = conversation("x", data.conversation(qa, data.pictures[3]))
    slots = np.flatnonzero(sample.tokens == data.tokenizer.image_placeholder)
    assert slots.tolist() == list(range(sample.starts[0], sample.starts[0] + P))
    around = sample.tokens[[slots[0] - 1, slots[-1] + 1]]
    assert around.tolist() == [data.tokenizer.image_start, data.tokenizer.image_end]
    answer = sample.tokens[sample.answer]
    assert answer[-1] == data.tokenizer.eos
    assert data.tokenizer.decode(answer).strip() == qa.answer
    # The answer is the end of the sample, and nothing before it is to be predicted.
    assert sample.answer.nonzero()[0].tolist() == list(
        range(sample.length - len(answer), sample.length)
    )
    assert sample.pictures is not None and (sample.pictures[0] == data.pictures[3]).all()
    assert conversation("y", data.conversation(tasks.QA("dog?", "yes"))).pictures is None


def test_entries_say_what_their_samples_are(source):
    for step in (0, 1, 1000):
        entries = source.plan(step)
        kinds = [entry.kind for entry in entries]
        assert {kind: kinds.count(kind) for kind in COUNTS} == COUNTS
        for entry, sample in zip(entries, samples(source, step), strict=True):
            assert sample.kind == entry.kind
            assert sample.length == entry.tokens
            assert f"{entry.kind}/{entry.number}" == sample.id
            talk = isinstance(sample, Conversation)
            assert entry.pictures == (len(sample.starts) if talk else 0)
            assert entry.text_targets == (sample.answer.sum() if talk else 0)


def test_steps_are_a_function_of_seed_and_step(data, codes, source):
    again = EmojiSource(data, COUNTS, codes)
    for step in (5, 0, 5):
        for a, b in zip(samples(again, step), samples(source, step), strict=True):
            assert a.id == b.id and a.length == b.length
    config = dataclasses.replace(data.config, seed=4)
    other = EmojiData(config, image_size=16, num_image_tokens=P, vocab_size=2048)
    assert [e.number for e in EmojiSource(other, COUNTS, codes).plan(0)] != [
        e.number for e in source.plan(0)
    ]


def test_kinds_without_a_share_are_left_out(data):
    only = EmojiSource(data, {"text": 3, "generation": 0}, None)
    assert [entry.kind for entry in only.plan(0)] == ["text"] * 3


def test_training_reads_the_training_split_alone(data, codes, monkeypatch):
    """Over some steps of all kinds: names, pictures, codes, and texts about names."""
    monkeypatch.setattr(data, "config", dataclasses.replace(data.config, shift_pixels=0))
    source = EmojiSource(data, COUNTS, codes)
    train = [e for e in load_emoji() if e.split == "train"]
    assert list(data.records) == train
    looks = {p.tobytes() for p in load_pictures(train, 16)}
    qa_texts = {f": {qa.question}\n\n: {qa.answer}" for e in train for qa in tasks.text_examples(e)}
    for step in range(30):
        for sample in samples(source, step):
            if isinstance(sample, Generation):
                e = train[64 * sample.codes[0] + sample.codes[1]]
                name = data.tokenizer.decode(sample.prompt).strip(": \n")
                assert name in ("", e.name, e.name_zh)
            elif sample.pictures is not None:
                assert {p.tobytes() for p in sample.pictures} <= looks
            else:
                text = data.tokenizer.decode(sample.tokens)
                assert text.removeprefix(EMOJI_PROCESSOR.system_prompt).strip() in qa_texts


def test_an_epoch_of_a_kind_draws_every_picture_once(data, source):
    steps = len(data.records) // COUNTS["generation"]
    numbers = [e.number for s in range(steps) for e in source.plan(s) if e.kind == "generation"]
    assert len(set(numbers)) == len(numbers) == steps * COUNTS["generation"]


def test_a_dropped_caption_keeps_its_length(data, codes, monkeypatch):
    monkeypatch.setattr(data, "config", dataclasses.replace(data.config, caption_drop=1.0))
    (drawn,) = samples(EmojiSource(data, {"generation": 1}, codes), 0)
    assert isinstance(drawn, Generation)
    i = int(drawn.id.split("/")[1])
    wholes = [data.prompt(data.records[i], chinese) for chinese in (False, True)]
    dropped = [unconditional(ids, data.tokenizer.pad).tolist() for ids in wholes]
    assert drawn.prompt.tolist() in dropped
