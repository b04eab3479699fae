"""Samples and batches of the emoji model, read back into text."""

import dataclasses

import numpy as np
import pytest

from janus_jax.processing.prompt import Turn, chat_prompt, unconditional
from janus_jax.processing.settings import EMOJI_PROCESSOR
from train.data import tasks
from train.data.samples import ROLES

P = 16


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


def test_named_pictures_say_which_look_the_same(data):
    batch = data.named_pictures()(0)
    assert batch["pixels"].shape == (20, 16, 16, 3)
    assert batch["mask"].any(1).all()
    looks = [e.picture for e in data.records]
    assert len(np.unique(data.picture_ids)) == len(set(looks))
    for a, b in ((0, 1), (5, 5)):
        assert (looks[a] == looks[b]) == (data.picture_ids[a] == data.picture_ids[b])
    assert data.pictures_only()(0)["pixels"].shape == (20, 16, 16, 3)
