"""Samples and batches of the emoji model, read back into text."""

import dataclasses

import numpy as np
import pytest

from janus_jax.processing.prompt import Turn, chat_prompt, unconditional
from janus_jax.processing.settings import EMOJI_PROCESSOR
from train.data import tasks
from train.data.emoji import load_emoji, load_pictures
from train.data.samples import ROLES, EmojiData

P = 16


@pytest.fixture
def still(data, monkeypatch) -> EmojiData:
    """The data without shifts, so that pictures can be compared."""
    monkeypatch.setattr(data, "config", dataclasses.replace(data.config, shift_pixels=0))
    return data


def answers(data: EmojiData, batch: dict[str, np.ndarray]) -> list[str]:
    """What is to be predicted in each row, as text; every answer must end with end-of-sentence."""
    labels = batch["tokens"][:, -batch["answer"].shape[1] :]
    texts = []
    for row, wanted in zip(labels, batch["answer"], strict=True):
        assert row[wanted][-1] == data.tokenizer.eos
        texts.append(data.tokenizer.decode(row[wanted]).strip())
    return texts


def prompts(data: EmojiData, batch: dict[str, np.ndarray]) -> list[str]:
    return [
        data.tokenizer.decode(row[mask])
        for row, mask in zip(batch["tokens"], batch["mask"], strict=True)
    ]


def test_a_text_batch_literally(data):
    qas = [tasks.QA("dog in Chinese?", "狗"), tasks.QA("red heart. What colour?", "red")]
    rows = [data.conversation(qa) for qa in qas]
    batch = data.collate_text("text", rows)
    length, answer_length = data.lengths["text"]
    assert batch["tokens"].shape == (2, length)
    assert batch["answer"].shape == (2, answer_length)
    assert answers(data, batch) == ["狗", "red"]
    assert (batch["mask"].sum(1) == [len(row.ids) for row in rows]).all()
    # Padding stands on the left, so all rows end together.
    assert batch["mask"][:, -1].all() and not batch["mask"][:, 0].any()
    assert (batch["tokens"][~batch["mask"]] == data.tokenizer.pad).all()
    for text, qa in zip(prompts(data, batch), qas, strict=True):
        assert qa.question in text and text.endswith(qa.answer)
    assert "pixels" not in batch


def test_an_understanding_batch_literally(still):
    data, numbers = still, (3, 1000)
    qas = [tasks.caption_examples(data.records[i])[0] for i in numbers]
    rows = [data.conversation(qa, data.pictures[i]) for qa, i in zip(qas, numbers, strict=True)]
    batch = data.collate_text("understanding", rows)
    assert answers(data, batch) == [qa.answer for qa in qas]
    assert (batch["pixels"] == data.pictures[list(numbers)]).all()
    for b in range(2):
        slots = np.flatnonzero(batch["image_index"][b] >= 0)
        assert (batch["image_index"][b, slots] == b * P + np.arange(P)).all()
        assert (batch["tokens"][b, slots] == data.tokenizer.image_placeholder).all()
        around = batch["tokens"][b, [slots[0] - 1, slots[-1] + 1]]
        assert around.tolist() == [data.tokenizer.image_start, data.tokenizer.image_end]
        # No picture is left without a slot, and none is to be predicted.
        assert (batch["tokens"][b] == data.tokenizer.image_placeholder).sum() == P
    assert (batch["image_index"] < 0).sum() == batch["image_index"].size - 2 * P


def test_a_generation_batch_literally(data, codes):
    whole = data.prompt(data.records[3], False)
    dropped = unconditional(data.prompt(data.records[1000], True), data.tokenizer.pad)
    batch = data.collate_generation(codes, [(whole, 3), (dropped, 1000)])
    assert (batch["codes"] == codes[[3, 1000]]).all()
    assert (batch["tokens"][:, -1] == data.tokenizer.image_start).all()
    assert data.records[3].name in prompts(data, batch)[0]
    # The pads of a dropped caption are attended, unlike those that fill the row.
    row = batch["tokens"][1][batch["mask"][1]]
    assert row[0] == data.tokenizer.bos and (row[1:-1] == data.tokenizer.pad).all()
    assert len(row) == len(data.prompt(data.records[1000], True))


def test_prompts_are_how_answers_begin(data):
    """What `chat` feeds the model is, id by id, what training put before the answer."""
    rng = np.random.default_rng(0)
    for i in rng.integers(0, len(data.records), 200):
        e = data.records[i]
        qa = tasks.sample_text(e, rng) if i % 2 else tasks.sample_question(e, rng)
        pixels = None if i % 2 else data.pictures[i]
        row = data.conversation(qa, pixels)
        prompt = chat_prompt(
            data.tokenizer,
            [Turn("user", qa.question, num_images=int(pixels is not None))],
            roles=ROLES,
            system=EMOJI_PROCESSOR.system_prompt,
            num_image_tokens=P,
        )
        assert row.ids[: row.prompt_length].tolist() == prompt.ids.tolist()
        assert row.spans == prompt.image_spans


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_captions_are_dropped_as_guidance_drops_them(data, monkeypatch, share):
    config = dataclasses.replace(data.config, caption_drop=share, chinese=0.0)
    monkeypatch.setattr(data, "config", config)
    dropped = 0
    for k in range(300):
        i = 7 * k
        ids, number = data.pick_generation(i, np.random.default_rng(k))
        whole = data.prompt(data.records[i], False)
        assert number == i
        if (ids != whole).any():
            assert (ids == unconditional(whole, data.tokenizer.pad)).all()
            dropped += 1
    assert dropped / 300 == pytest.approx(share, abs=0.08 * (0 < share < 1))


def test_every_step_holds_the_ratio_of_the_stage(data, codes):
    batches = data.batches(codes)
    assert set(batches) == {"understanding", "text", "generation"}
    for step in (0, 1, 1000):
        sizes = {kind: len(batch(step)["tokens"]) for kind, batch in batches.items()}
        assert sizes == {"understanding": 10, "text": 2, "generation": 8}  # 5 : 1 : 4 of 20


def test_kinds_without_a_share_are_left_out(data, codes, monkeypatch):
    mixture = dataclasses.replace(data.config.mixture, text=0, understanding=0)
    monkeypatch.setattr(data, "config", dataclasses.replace(data.config, mixture=mixture))
    assert set(data.batches(codes)) == {"generation"}


def test_training_reads_the_training_split_alone(still, codes):
    """Over some steps of all kinds: names, pictures, codes, and texts about names."""
    data, batches = still, still.batches(codes)
    train = [e for e in load_emoji() if e.split == "train"]
    assert list(data.records) == train
    looks = {p.tobytes() for p in load_pictures(train, 16)}
    qa_texts = {f": {qa.question}\n\n: {qa.answer}" for e in train for qa in tasks.text_examples(e)}
    for step in range(30):
        assert {p.tobytes() for p in batches["understanding"](step)["pixels"]} <= looks
        for text in prompts(data, batches["text"](step)):
            assert text.removeprefix(EMOJI_PROCESSOR.system_prompt).strip() in qa_texts
        drawn = batches["generation"](step)
        for row, text in zip(drawn["codes"], prompts(data, drawn), strict=True):
            e = train[64 * row[0] + row[1]]
            name = text.strip(": \n")
            assert name in ("", e.name, e.name_zh)


def test_an_epoch_of_a_kind_draws_every_picture_once(data, codes):
    batch = data.batches(codes)["generation"]
    steps = len(data.records) // 8
    rows = np.concatenate([batch(step)["codes"] for step in range(steps)])
    numbers = 64 * rows[:, 0] + rows[:, 1]
    assert len(np.unique(numbers)) == len(numbers) == steps * 8


def test_lengths_are_those_of_the_longest_sample(data):
    length, answer_length = data.lengths["understanding"]
    rows = [
        data.conversation(qa, data.pictures[0])
        for e in data.records[::20]
        for qa in (*tasks.caption_examples(e), *tasks.question_examples(e))
    ]
    assert max(len(row.ids) for row in rows) <= length
    assert max(len(row.ids) - row.prompt_length for row in rows) <= answer_length < length
    longest = max(len(data.prompt(e, zh)) for e in data.records for zh in (False, True))
    assert data.lengths["generation"] == (longest, 0)


def test_named_pictures_say_which_look_the_same(data):
    batch = data.named_pictures()["pictures"](0)
    assert batch["pixels"].shape == (20, 16, 16, 3)
    assert batch["mask"].any(1).all()
    looks = [e.picture for e in data.records]
    assert len(np.unique(data.picture_ids)) == len(set(looks))
    for a, b in ((0, 1), (5, 5)):
        assert (looks[a] == looks[b]) == (data.picture_ids[a] == data.picture_ids[b])
    assert (data.pictures_only()["pictures"](0)["pixels"]).shape == (20, 16, 16, 3)
