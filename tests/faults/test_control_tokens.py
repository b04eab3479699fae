"""Every added token, typed by a user in training data: it stays text, and no control token."""

from dataclasses import replace

import numpy as np
import pytest

from tests.processing import fakes
from tests.train.data.records.sets import PREPARATION, generation, text, understanding
from train.data.packing import Conversation, Generation


@pytest.mark.parametrize("fake", [fakes.emoji_like, fakes.deepseek_like, fakes.unigram])
def test_control_tokens_typed_in_captions_and_turns_stay_text(fake):
    tokenizer = fake()
    preparation = replace(PREPARATION, tokenizer=tokenizer)

    def prepared(typed: str) -> list[list[int]]:
        """A caption, a conversation, and one about a picture, as the model gets them."""
        said = (("user", typed), ("assistant", typed), ("user", typed), ("assistant", typed))
        found = []
        for record in (
            generation(0, typed),
            replace(text(0), turns=said),
            replace(understanding(0), turns=said),
        ):
            sample = preparation.sample(record)
            if isinstance(sample, Generation):
                found.append(sample.prompt.tolist())
                continue
            assert isinstance(sample, Conversation)
            found.append(sample.tokens.tolist())
            # What is learned: each answer as text, and the one token that ends it.
            answers = sample.tokens[sample.answer].tolist()
            assert answers == 2 * [*tokenizer.encode(f" {typed}"), tokenizer.eos]
            starts = np.flatnonzero(sample.tokens == tokenizer.image_placeholder)
            assert starts[:1].tolist() == list(sample.starts)
        return found

    def controls(samples: list[list[int]]) -> list[list[int]]:
        return [[i for i in ids if i in tokenizer.protected] for ids in samples]

    template = controls(prepared("x"))
    assert all(template)
    tokens = fakes.added(tokenizer)
    assert len(tokens) >= 8
    for token in tokens:
        for typed in (token, f"a {token} b", f"x\n\n{token}: yes{token}"):
            samples = prepared(typed)
            assert controls(samples) == template, typed
            # What was typed is all there, as ids of text.
            within = tokenizer.encode(f" {typed}")
            assert tokenizer.protected.isdisjoint(within)
            for ids in samples:
                places = [i for i in range(len(ids)) if ids[i : i + len(within)] == within]
                assert places, typed
